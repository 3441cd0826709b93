"""Peak memory of one row of 3,072 features, a CIFAR-10 image: `python -m benchmarks.memory`.

Each task runs in a process of its own, whose largest resident size the operating system reports.
"""

import argparse
import json
import resource
import subprocess
import sys

import torch

from benchmarks.machine import RESULTS, circumstances
from deformer import DEformer, ModelConfig, Ordinal, as_rows, generator, image_schema, log_prob


def run(task: str, side: int = 32) -> float:
    """Score or train on one row and give this process's peak in megabytes."""
    schema = image_schema(side, side, Ordinal(256), channels=3)
    model = DEformer(schema, ModelConfig(d_model=128, n_layers=4))
    values = torch.randint(0, 256, (1, len(schema)), generator=generator(0))
    if task == "score":
        log_prob(model, as_rows(values, schema), generator=generator(0))
    else:
        order = torch.randperm(len(schema), generator=generator(0))[None]
        optimiser = torch.optim.Adam(model.parameters())
        (-model(order, values.gather(1, order)).log_prob(values.gather(1, order)).mean()).backward()
        optimiser.step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=["score", "train"])
    task = parser.parse_args().task
    if task is not None:
        print(run(task))
        return
    results = {
        f"{name}_megabytes": float(subprocess.check_output([sys.executable, "-m", "benchmarks.memory", "--task", name]))
        for name in ("score", "train")
    }
    results_and_machine = {**results, "machine": circumstances()}
    print(json.dumps(results_and_machine, indent=2))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "memory.json").write_text(json.dumps(results_and_machine, indent=2) + "\n")


if __name__ == "__main__":
    main()
