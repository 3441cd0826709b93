"""Recipes at equal time: `python -m benchmarks.recipe NAME --source S --minutes M --set n_layers=2 lr=0.008`.

Trains a DEformer as the defaults have it but for what is set, and adds a line to results/S_recipe.csv, of
mnist-binarized mnist_recipe.csv. S is the name of a data set, or the path of an .npz with train, valid and test.
"""

import argparse
import csv
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import RESULTS, circumstances
from deformer import ModelConfig, TrainConfig, fit, load_source, new_model
from deformer.api.defaults import suited
from deformer.api.training import with_parts
from deformer.config import tuples
from deformer.data.sources import Source
from deformer.train.process import keep_memory

COLUMNS = ("name", "changes", "minutes", "threads", "steps", "images", "parameters", "validation_nll", "commit", "cpu")
Changes = dict[str, Any]


def split_changes(changes: Changes) -> tuple[Changes, Changes]:
    """Say which changes belong to the network and which to its training."""
    network = {f.name for f in fields(ModelConfig)}
    return {k: v for k, v in changes.items() if k in network}, {k: v for k, v in changes.items() if k not in network}


def parse(settings: list[str]) -> Changes:
    """Read name=value pairs, values as JSON."""
    pairs = (s.partition("=") for s in settings)
    return {name: tuples(json.loads(value)) for name, _, value in pairs}


def defaults(source: Source, minutes: float) -> tuple[Changes, Changes]:
    """Give network and training as `deformer train` chooses them."""
    network, training = suited(source.train, TrainConfig(minutes=minutes), "cpu")
    return asdict(network), asdict(training)


def label(source: str) -> str:
    """Name a source; files of one name in two folders differ."""
    path = Path(source)
    return f"{path.parent.name}-{path.stem}" if path.suffix else source


def recipe(name: str, source: Source, changes: Changes, minutes: float, output: Path = RESULTS) -> None:
    """Train on the training rows for some minutes and note the best score on validation rows."""
    (network, training), (own, its) = defaults(source, minutes), split_changes(changes)
    model = new_model(source.schema, ModelConfig(**{**network, **own}))
    history = fit(model, source.train, TrainConfig(**{**training, **its}), validation=source.validation)
    history.raise_if_interrupted()
    for p in history.points:
        print(f"{p.minutes:.1f} min, step {p.step}: {p.training_nll:.1f}, {p.validation_nll:.2f}")
    last, best, machine = history.points[-1], history.best, circumstances()
    assert best is not None
    line = (
        *(name, json.dumps(changes), f"{last.minutes:.1f}", torch.get_num_threads(), last.step, last.rows_seen),
        *(model.n_parameters, f"{best.validation_nll:.3f}", machine["commit"], machine["cpu"]),
    )
    print(*line)
    path = output / f"{label(source.name).removesuffix('-binarized')}_recipe.csv"
    new = not path.exists()
    with path.open("a", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, line] if new else [line])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--source", default="mnist-binarized")
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_memory()
    source = with_parts(load_source(chosen.source), 0)
    recipe(chosen.name, source, parse(chosen.set), chosen.minutes)


if __name__ == "__main__":
    main()
