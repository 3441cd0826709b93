"""Training on two processes: the run of one process with the whole batch, also after one of them was killed."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from deformer.train.checkpoint import load
from deformer.train.fit import newest

SCRIPT = """
import sys
from pathlib import Path
from deformer import ModelConfig, TrainConfig, fit, load_source, new_model, save
folder, devices, steps = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
source = load_source("digits-binary")
model = new_model(source.schema, ModelConfig(d_model=16, n_layers=1))
config = TrainConfig(steps=steps, tokens_per_step=512, precision="float64", threads=1, checkpoint_steps=5,
                     validate_every=20, validation_rows=40, validation_orders=1, dropout=0.0)
fit(model, source.train, config, validation=source.validation, directory=folder, resume=True,
    device="cpu", devices=devices)
save(folder / "model.safetensors", model, {})
"""


def start(folder: Path, devices: int, steps: int) -> "subprocess.Popen[str]":
    folder.mkdir(exist_ok=True)
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(folder), str(devices), str(steps)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def scores(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(line["validation_nll"]) for line in csv.DictReader(file)]


def finish(folder: Path, devices: int, steps: int) -> list[float]:
    process = start(folder, devices, steps)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert load(folder / "model.safetensors")
    return scores(folder)


def test_two_processes_learn_as_one_does_also_after_one_was_killed(tmp_path: Path) -> None:
    alone, together = finish(tmp_path / "one", 1, 60), finish(tmp_path / "two", 2, 60)
    assert len(alone) == len(together) == 3
    assert max(abs(a - b) for a, b in zip(alone, together, strict=True)) < 1e-5

    process = start(tmp_path / "killed", 2, 60)
    while newest(tmp_path / "killed") is None:
        assert process.poll() is None
        time.sleep(0.02)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(children.split()[-1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0, errors
    resumed = finish(tmp_path / "killed", 2, 60)
    assert max(abs(a - b) for a, b in zip(alone, resumed, strict=True)) < 1e-5
