"""Baselines against what their authors published: `python -m benchmarks.published --data FOLDER [--minutes M]`.

Binary sets of the NADE papers, with their own splits: every model is trained, chosen by all validation rows and scored
on all test rows. Each result is a file in results/published, in a folder for its minutes; what is there already, of the
same recipe, is not measured again. The table holds all that is there of as many threads, of earlier recipes too.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks import compare
from benchmarks.contenders import Make, theirs
from benchmarks.machine import RESULTS
from benchmarks.tables.density import markdown, published
from deformer import load_source
from deformer.baselines.made import MADE
from deformer.baselines.nade import NADE, DeepNADE
from deformer.train.process import keep_memory

SETS = ("adult", "mushrooms", "dna")


# The number of orders was a choice of MADE's authors for each set. Ours are tested by the ensemble of all orders; 1,000
# stand for their new ones at each step, of which as theirs 300 choose the weights.
N_MASKS = {f"MADE, {n} orders": n for n in (4, 32, 1000)}
# Widths of its layers and decay. Its authors trained one layer first and then put the second on top.
DEEP: dict[str, tuple[tuple[int, ...], float]] = {
    "DeepNADE": ((500, 500), 0.0),
    "DeepNADE, weight decay": ((500, 500), 0.3),
    "DeepNADE, one layer": ((500,), 0.1),
}


def made(n: int) -> Make:
    return theirs(MADE, {"hidden": (500,), "n_masks": n, "looks": min(n, 300)}, decays=[0.0], rounds=True)


def deep(hidden: tuple[int, ...], decay: float) -> Make:
    return theirs(DeepNADE, {"hidden": hidden}, decays=[decay], rounds=True)


MODELS = {
    "NADE": theirs(NADE, decays=[0.0], batch=20),
    "MADE, one order": made(1),
    **{name: deep(*choices) for name, choices in DEEP.items()},
    **{name: made(n) for name, n in N_MASKS.items()},
}
ORDERS = {**dict.fromkeys(DEEP, 16), **N_MASKS}
# Our models, of which validation chooses one, what of its result is compared, and the published column.
ROWS = (
    (("NADE",), "nll", "NADE fixed order"),
    (tuple(DEEP), "nll", "NADE OA 2 layers (one order)"),
    (tuple(DEEP), "ensemble", "EoNADE 16 orders (OA)"),
    (("MADE, one order",), "nll", "MADE"),
    (tuple(N_MASKS), "ensemble", "MADE mask sampling"),
)


def table(results: dict[str, dict[str, Any]], cited: dict[str, dict[str, str]]) -> str:
    """Write our test NLL in nats, the published one, and how far ours lies above it."""
    lines = []
    for name in cited:
        for models, what, column in ROWS:
            measured = [found for model in models if (found := results.get(f"{name} {model}")) is not None]
            if measured:
                result = min(measured, key=lambda r: min(r["validation_nll"]))
                ours, theirs = result[what], float(cited[name][column])
                gap = f"{100 * (ours / theirs - 1):+.1f} %"
                error = result["ensemble_error" if what == "ensemble" else "error"]
                lines.append([name, column, f"{theirs:.2f}", f"{ours:.2f} +- {error:.2f}", gap])
    return markdown(["data set", "published model", "published", "ours", "difference"], lines)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds uci_binary/")
    parser.add_argument("--minutes", type=float, default=20.0, help="of training at most, per model")
    parser.add_argument("--only", nargs="*", choices=SETS, default=SETS)
    models = list(dict.fromkeys(model for models, _, _ in ROWS for model in models))
    parser.add_argument("--models", nargs="*", choices=models, default=models, metavar="NAME")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=RESULTS / "published")
    chosen = parser.parse_args(words)
    torch.set_num_threads(chosen.threads)
    keep_memory()
    folder = chosen.output / f"{chosen.minutes:g}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in chosen.only:
        source = load_source(str(chosen.data / "uci_binary" / f"{name}.npz"))
        for model in chosen.models:
            path = folder / f"{name} {model}.json"
            limits = (chosen.minutes, 10**9, ORDERS.get(model, 1))
            required = compare.wanted(source, *limits, MODELS[model](source, chosen.minutes))
            if compare.counted(path, required) is None:
                result = compare.measure(MODELS[model], source, *limits, n_looked_at=10**9)
                compare.keep(path, result)
                print(f"{name}, {model}: {result['nll']:.2f}", flush=True)
    found = {p.stem: json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))}
    results = {name: result for name, result in found.items() if result["wanted"]["threads"] == chosen.threads}
    written = table(results, published(chosen.data, "uci_binary"))
    (folder / "table.md").write_text(written)
    print(written)


if __name__ == "__main__":
    main()
