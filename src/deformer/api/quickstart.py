"""Quickstart: train on small images of digits, compare, and draw what the model learned."""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from deformer.api import plots
from deformer.api.defaults import suited
from deformer.api.files import make_folder
from deformer.baselines.independent import Independent
from deformer.config import ModelConfig, TrainConfig
from deformer.data.orders import raster_orders
from deformer.data.seeds import generator
from deformer.data.sources import Source, load_source
from deformer.data.table import Rows, as_rows
from deformer.errors import InputError
from deformer.nn.model import DEformer, new_model
from deformer.tasks.density import NLL, log_prob, nll
from deformer.tasks.imputation import impute
from deformer.tasks.sampling import sample
from deformer.train.checkpoint import save, write_bytes
from deformer.train.fit import fit
from deformer.train.history import History
from deformer.train.process import keep_memory

ORDERS = 10


def run(folder: Path, minutes: float, name: str, seed: int, device: str) -> None:
    """Train two models of one size, one for any order and one for a fixed one, and write figures and pictures."""
    keep_memory()
    make_folder(folder)
    source = load_source(name)
    shape = source.schema.image_shape
    if shape is None or source.validation is None or source.test is None:
        raise InputError("The quickstart draws images; choose digits or digits-binary.")
    limits = TrainConfig(minutes=minutes / 2, seed=seed)  # each model has half of the time
    network, any_order = suited(source.train, limits, device)
    # Subsets of features mean nothing to a fixed order.
    fixed = dataclasses.replace(any_order, orders="raster", curriculum=((1.0, 1.0),))
    print("training a DEformer for any order, then one of the same size for a fixed order", file=sys.stderr)
    model, history = _train(source, network, any_order, device)
    raster, raster_history = _train(source, network, fixed, device)
    save(folder / "model.safetensors", model, {"source": name, "training": dataclasses.asdict(any_order)})
    scores = nll(model, source.test, n_orders=ORDERS, generator=generator(seed, "orders"))
    figures = _figures(source, scores, raster)
    write_bytes(folder / "results.json", json.dumps(figures, indent=2).encode())
    _print(figures, len(source.schema))
    histories = {"any order, mean over orders": history, "fixed order": raster_history}
    pictures = _pictures(model, source, shape, scores, histories, seed)
    for picture, content in pictures.items():
        write_bytes(folder / picture, content)
    print(f"model.safetensors, results.json, {', '.join(pictures)} are in {folder}/", file=sys.stderr)


def _train(source: Source, network: ModelConfig, config: TrainConfig, device: str) -> tuple[DEformer, History]:
    model = new_model(source.schema, network, config.seed)
    shown = sys.stderr.isatty()
    history = fit(model, source.train, config, validation=source.validation, device=device, progress=shown)
    history.raise_if_interrupted()
    return model, history


def _figures(source: Source, scores: NLL, raster: DEformer) -> dict[str, dict[str, float]]:
    assert source.test is not None
    fixed = NLL(-log_prob(raster, source.test, orders=raster_orders(source.test.observed))[None])
    alone = NLL(-Independent(source.train).log_prob(source.test)[None])
    return {
        "DEformer, mean over orders": {"nats": scores.mean, "standard_error": scores.mean_error},
        "DEformer, ensemble over orders": {"nats": scores.ensemble, "standard_error": scores.ensemble_error},
        "same size, fixed order": {"nats": fixed.mean, "standard_error": fixed.mean_error},
        "independent features": {"nats": alone.mean, "standard_error": alone.mean_error},
    }


def _print(figures: dict[str, dict[str, float]], n_features: int) -> None:
    table = Table("model", "test NLL (nats)", "bits per dimension", title=f"test rows, {ORDERS} random orders")
    for name, f in figures.items():
        bits = [v / math.log(2) / n_features for v in f.values()]
        table.add_row(name, f"{f['nats']:.2f} +- {f['standard_error']:.2f}", f"{bits[0]:.3f} +- {bits[1]:.3f}")
    Console().print(table)


def _pictures(
    model: DEformer,
    source: Source,
    shape: tuple[int, int],
    scores: NLL,
    histories: Mapping[str, History],
    seed: int,
) -> dict[str, bytes]:
    assert source.test is not None
    return {
        "samples.png": _sorted_samples(model, shape, seed),
        "holes.png": filled_holes(model, source.test, shape, seed),
        "histogram.png": _histogram(model, source.test, scores, seed),
        "curve.png": plots.curve(
            {name: _points(history) for name, history in histories.items()}, "minutes", "validation NLL (nats)"
        ),
    }


def _points(history: History) -> tuple[list[float], list[float]]:
    points = [(p.minutes, p.validation_nll) for p in history.points if p.validation_nll is not None]
    return [x for x, _ in points], [y for _, y in points]


def _sorted_samples(model: DEformer, shape: tuple[int, int], seed: int) -> bytes:
    drawn = sample(model, 50, generator=generator(seed, "samples"))
    surprise = nll(model, drawn, n_orders=ORDERS, generator=generator(seed, "sample orders")).per_order.mean(0)
    ranked = surprise.argsort()
    return plots.sheet(drawn[ranked], shape, [f"{v:.1f}" for v in surprise[ranked].tolist()])


def hole_masks(shape: tuple[int, int], n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Say which pixels are kept when about an eighth of them is removed as a square, as rows, and at random."""
    height, width = shape
    side = round(math.sqrt(height * width / 8))
    square, lines = torch.ones(height, width, dtype=torch.bool), torch.ones(height, width, dtype=torch.bool)
    top, left = (height - side) // 2, (width - side) // 2
    square[top : top + side, left : left + side] = False
    lines[(height - max(1, height // 8)) // 2 :][: max(1, height // 8)] = False
    noise = torch.rand(n, height * width, generator=generator)
    scattered = noise.argsort(-1).argsort(-1) >= side * side
    return {"square": square.flatten().expand(n, -1), "rows": lines.flatten().expand(n, -1), "random": scattered}


def filled_holes(model: DEformer, test: Rows, shape: tuple[int, int], seed: int) -> bytes:
    """Show five test images with an eighth of their pixels removed in three ways, and filled in."""
    chosen = test[torch.randperm(len(test), generator=generator(seed, "holes"))[:5]]
    filled = {}
    for kind, kept in hole_masks(shape, 5, generator(seed, "masks")).items():
        known = as_rows(chosen.values, model.schema, observed=kept)
        filled[kind] = (kept, impute(model, known, generator=generator(seed, "fill", kind))[0])
    return plots.holes(chosen.values, filled, shape, float(test.values.max()))


def _histogram(model: DEformer, test: Rows, scores: NLL, seed: int) -> bytes:
    noise = torch.rand(test.values.shape, generator=generator(seed, "shuffle"))
    shuffled = as_rows(test.values.gather(1, noise.argsort(-1)), model.schema)
    strange = nll(model, shuffled, n_orders=ORDERS, generator=generator(seed, "shuffled orders")).per_order.mean(0)
    return plots.histogram({"test images": scores.per_order.mean(0), "the same with shuffled pixels": strange})
