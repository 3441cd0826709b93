"""Binarized MNIST: train the model that ships.

`python -m benchmarks.mnist train --minutes 180 --directory runs/mnist` trains in any number of pieces: stop it whenever
you like, with Ctrl-C or `timeout --signal INT 90m`, and the same command goes on from the newest checkpoint, or from
the one of fewer minutes that `pack` left in the repository. When the time is up the weights stand in `--output`.
`--preset paper` trains the paper's network in the paper's way instead.
"""

import argparse
import csv
import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import RESULTS, circumstances
from benchmarks.recipe import parse, split_changes
from deformer import (
    DEformer,
    ModelConfig,
    Rows,
    TrainConfig,
    fit,
    generator,
    load,
    load_source,
    new_model,
    nll,
    paper_config,
    paper_training,
    save,
)
from deformer.api import plots
from deformer.config import from_json
from deformer.data.table import split, subset
from deformer.train.checkpoint import describe, read_header, read_tensors, write_tensors
from deformer.train.fit import newest
from deformer.train.process import keep_memory

SHIPPED_TRAINING: dict[str, Any] = {
    **{"minutes": 180.0, "constant": 0.7, "averaging": 0.999},
    "curriculum": ((0.06, 0.1), (0.15, 0.2), (0.4, 0.45), (0.92, 0.65), (1.0, 1.0)),
    **{"validation_rows": 300, "validation_orders": 2},
}
WEIGHTS = Path(__file__).parents[1] / "src" / "deformer" / "weights"
PIECE = Path(__file__).parents[1] / "checkpoints" / "mnist.safetensors"
AVERAGE = "training.average."
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


def paper_split(data: Path | None = None, seed: int = 0) -> tuple[Rows, Rows]:
    """Give the rows that the paper trains on: train and valid together, of which 2 % are held out."""
    source = load_source("mnist-binarized", data)
    assert source.validation is not None
    parts = (source.train, source.validation)
    rows = Rows(source.schema, *(torch.cat([getattr(p, what) for p in parts]) for what in ("values", "observed")))
    return split(rows, 0.02, generator(seed, "held out"))


def checkpoint_in(directory: Path) -> Path:
    """Find the newest checkpoint, or end with a message."""
    path = newest(directory)
    if path is None:
        raise SystemExit(f"{directory} holds no checkpoint.")
    return path


def pack(directory: Path) -> None:
    """Write the newest checkpoint without its best weights, small enough to travel to another machine.

    What the optimisers remember, and how far the averaged weights are from the newest, is rounded to bfloat16.
    """
    path = checkpoint_in(directory)
    tensors, header = read_tensors(path)
    slim = {}
    for name, t in tensors.items():
        if name.startswith(AVERAGE):
            t = t - tensors["model." + name.removeprefix(AVERAGE)]
        if name.startswith("training.") and t.dim():
            t = t.bfloat16()
        if not name.startswith("best."):
            slim[name] = t
    write_tensors(PIECE, slim, {**header, "run": {**header["run"], "best_nll": math.inf}})
    print(f"{PIECE}: {PIECE.stat().st_size / 2**20:.1f} MB, after {header['run']['minutes']:.1f} minutes")


def unpack(directory: Path, minutes: float = math.inf) -> None:
    """Let a directory without checkpoints go on from the packed one, if there is one of fewer minutes."""
    if newest(directory) is None and PIECE.exists() and read_header(PIECE)["run"]["minutes"] < minutes:
        tensors, header = read_tensors(PIECE)
        tensors = {name: t.float() if t.dtype == torch.bfloat16 else t for name, t in tensors.items()}
        for name in tensors:
            if name.startswith(AVERAGE):
                tensors[name] = tensors["model." + name.removeprefix(AVERAGE)] + tensors[name]
        write_tensors(directory / f"last-{header['run']['step']:09d}.safetensors", tensors, header)


def grow(directory: Path, output: Path, changes: dict[str, Any]) -> None:
    """Begin where a run stands with more blocks or wider feed-forward parts, which at first add nothing.

    Optimisers begin anew, and so does the choice of the best weights.
    """
    unpack(directory)
    path = checkpoint_in(directory)
    small = load(path)
    tensors, header = read_tensors(path)
    large = new_model(small.schema, dataclasses.replace(small.config, **changes), seed=1)
    grown = {}
    for prefix in ("model.", AVERAGE):
        if not any(name.startswith(prefix) for name in tensors):
            continue
        for name, fresh in large.named_parameters():
            weights, old = fresh.detach().clone(), tensors.get(prefix + name)
            if old is not None and name.endswith("down.weight"):
                weights.zero_()  # new hidden units are not heard at first
            if old is not None:
                weights[tuple(slice(n) for n in old.shape)] = old
            grown[prefix + name] = weights
    run = {**header["run"], "best_nll": math.inf}
    write_tensors(output / path.name, grown, {**header, **describe(large), "run": run})
    print(f"{output / path.name}: {large.n_parameters:,} parameters, after {run['minutes']:.1f} minutes")


def train(preset: str, directory: Path, output: Path, changes: dict[str, Any]) -> None:
    """Train, or go on training, on all rows but the test rows, and write the weights when the time is up."""
    network, training = split_changes(changes)
    if preset == "paper":
        config, shape = paper_training(**training), paper_config()
    else:
        config = TrainConfig(**{**SHIPPED_TRAINING, **training})
        unpack(directory, config.minutes or math.inf)
        path = newest(directory)
        shape = ModelConfig() if path is None else from_json(ModelConfig, read_header(path)["config"])
    rows, held_out = paper_split()
    model = new_model(rows.schema, dataclasses.replace(shape, **network), config.seed)
    shown = sys.stderr.isatty()
    history = fit(model, rows, config, validation=held_out, directory=directory, resume=True, progress=shown)
    last, best = (history.points[-1], history.best) if history.points else (None, None)
    print(history.stopped, last)
    if history.stopped != "interrupted" and last is not None and best is not None:
        notes = {"source": "mnist-binarized, train and valid", "training": dataclasses.asdict(config)}
        notes |= {"minutes": last.minutes, "steps": last.step, "rows_seen": last.rows_seen, "machine": circumstances()}
        save(output, model, {**notes, "validation_nll": best.validation_nll})


def blend(model: DEformer, earlier: DEformer, held_out: Rows) -> float:
    """Mix a model's weights with those it had when rates had fallen before, in the share that held-out rows like best.

    References:
        Averaging Weights Leads to Wider Optima and Better Generalization (Izmailov et al., 2018)
    """
    own, other = ({n: t.clone() for n, t in m.state_dict().items()} for m in (model, earlier))

    def mix(share: float) -> None:
        model.load_state_dict({n: torch.lerp(t, other[n], share) for n, t in own.items()})

    def nats(share: float) -> float:
        mix(share)
        score = nll(model.eval(), held_out, n_orders=1, generator=generator(0, "blend")).mean
        print(f"{share:.0%} of the earlier weights: {score:.3f}", flush=True)
        return score

    best = min(SHARES, key=nats)
    mix(best)
    return best


def ship(directory: Path, folder: Path = WEIGHTS, earlier: Path | None = None) -> None:
    """Write the averaged weights of the newest checkpoint as the model that ships, with its card.

    Args:
        earlier: Weights when rates had fallen before, to mix in.
    """
    path = checkpoint_in(directory)
    tensors, header = read_tensors(path)
    model, run, training = load(path), header["run"], header["training"]
    averaged = {name.removeprefix(AVERAGE): t for name, t in tensors.items() if name.startswith(AVERAGE)}
    model.load_state_dict({**model.state_dict(), **averaged})
    rows = paper_split()[1]
    share = 0.0 if earlier is None else blend(model, load(earlier), subset(rows, 300, generator(0, "blend")))
    held_out = subset(rows, 500, generator(0, "card"))
    scores = nll(model.eval(), held_out, n_orders=4, generator=generator(0, "card orders"))
    finished = run["minutes"] >= (training["minutes"] or 0)
    notes = {
        **{"source": "mnist-binarized, train and valid", "minutes": run["minutes"], "steps": run["step"]},
        **{"rows_seen": run["rows_seen"], "finished": finished, "training": training, "machine": circumstances()},
        **{"validation_nll": scores.mean, "validation_error": scores.mean_error, "rows": 500, "orders": 4},
        "share_of_earlier_weights": share,
    }
    save(folder / "mnist-binarized.safetensors", model, notes)
    stage = (
        "" if finished else f"Unfinished: {training['minutes']:.0f} minutes are planned, the last with falling rates."
    )
    card = (Path(__file__).parent / "mnist_card.md").read_text()
    facts = {**notes, **dataclasses.asdict(model.config), **circumstances(), "stage": stage}
    (folder / "mnist-binarized.md").write_text(card.format(**facts, parameters=model.n_parameters))
    print((folder / "mnist-binarized.md").read_text())


def curve(directory: Path) -> None:
    """Write the validation scores of a training as a table and a plot."""
    unpack(directory)
    points = [p for p in read_header(checkpoint_in(directory))["run"]["points"] if p["validation_nll"] is not None]
    with (RESULTS / "mnist_curve.csv").open("w", newline="") as file:
        lines = csv.DictWriter(file, list(points[0]), lineterminator="\n")
        lines.writeheader()
        lines.writerows(points)
    minutes, nats = ([p[what] for p in points] for what in ("minutes", "validation_nll"))
    picture = plots.curve({"held-out images, mean over orders": (minutes, nats)}, "minutes", "NLL (nats)")
    (RESULTS / "mnist_curve.png").write_bytes(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    long = commands.add_parser("train", help="train the model that ships, in pieces")
    long.add_argument("--preset", choices=["shipped", "paper"], default="shipped")
    long.add_argument("--directory", type=Path, default=Path("runs/mnist"))
    long.add_argument("--output", type=Path, default=Path("runs/mnist-binarized.safetensors"))
    long.add_argument("--minutes", type=float)
    long.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    small = commands.add_parser("pack", help=f"write the newest checkpoint to {PIECE.name}, to go on elsewhere")
    small.add_argument("--directory", type=Path, default=Path("runs/mnist"))
    larger = commands.add_parser("grow", help="begin a run of a larger network where one of a smaller stands")
    larger.add_argument("--directory", type=Path, default=Path("runs/mnist"))
    larger.add_argument("--output", type=Path, required=True, help="directory of the new run")
    larger.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="such as n_layers=6")
    drawn = commands.add_parser("curve", help="write the learning curve of a training to results")
    drawn.add_argument("--directory", type=Path, default=Path("runs/mnist"))
    shipped = commands.add_parser("ship", help="make the newest checkpoint the model that ships")
    shipped.add_argument("--directory", type=Path, default=Path("runs/mnist"))
    shipped.add_argument("--earlier", type=Path, help="weights when rates had fallen before, to mix in")
    chosen = parser.parse_args()
    keep_memory()
    if chosen.command == "grow":
        grow(chosen.directory, chosen.output, parse(chosen.set))
        return
    finishing = {"curve": curve, "pack": pack}
    if chosen.command == "ship":
        ship(chosen.directory, earlier=chosen.earlier)
        return
    if chosen.command in finishing:
        finishing[chosen.command](chosen.directory)
        return
    limit = {} if chosen.minutes is None else {"minutes": chosen.minutes}
    train(chosen.preset, chosen.directory, chosen.output, {**limit, **parse(chosen.set)})


if __name__ == "__main__":
    main()
