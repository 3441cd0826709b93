"""Defaults: a network and its training by the size of the data and, on CPUs, by the time."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch

from deformer.config import ModelConfig, TrainConfig
from deformer.data.table import Rows
from deformer.train.process import choose_device

MANY_IMAGES = 50_000  # as many images as MNIST has overfit late
SMALL = 20_000  # cells of a table
CELLS_PER_SECOND = 16_000  # that the largest of these networks learns from, on one thread of a CPU
# By the steps that this one would make in the time: width and layers.
SIZES = ((8_000, (128, 3)), (2_800, (128, 2)), (600, (64, 2)), (0, (64, 1)))


def by_tokens(training: Mapping[str, Any]) -> dict[str, Any]:
    """Let the tokens of a step count if they are named, as they do only where its rows are not counted."""
    return {"rows_per_step": None, **training} if "tokens_per_step" in training else dict(training)


def suited(
    rows: Rows,
    limits: TrainConfig,
    device: str = "auto",
    devices: int = 1,
    *,
    large: bool = False,
) -> tuple[ModelConfig, TrainConfig]:
    """Choose a network and its training by the size of the data and, on CPUs, the time.

    Steps use whole rows, a few thousand cells each, and weights are averaged. With few rows, noise and dropout limit
    overfitting, and training ends after the first learning-rate cycle without improvement, if no limit ends it before;
    if there is time for few passes, there is one cycle. Small images get a higher learning rate, a smaller
    neighbourhood and at least two layers; for `MANY_IMAGES` and more, only the defaults of `ModelConfig` are chosen.

    Args:
        limits: Limits of the training, its seed, threads, recipe and orders; the rest is chosen.
        device, devices: Where `fit` will train. In the few steps that minutes on CPUs allow, a small network learns
            more than a large one, whose steps take longer.
        large: Whether the size of the network ignores the time.

    Examples:
        >>> from deformer import load_source
        >>> rows = load_source("digits").train
        >>> network, training = suited(rows, TrainConfig(minutes=1, threads=1), "cpu")
        >>> network.d_model, network.n_layers, training.rows_per_step
        (64, 2, 64)
    """
    shape = rows.schema.image_shape
    if shape is not None and len(rows) >= MANY_IMAGES:
        return ModelConfig(), limits
    n_rows, n_features = rows.values.shape
    cells, per_step = n_rows * n_features, min(256, n_rows, max(16, n_rows // 16), max(4, 4096 // n_features))
    in_time = math.inf if large else 60 * CELLS_PER_SECOND * _cpu_minutes(limits, device, devices)
    n_steps = in_time / (per_step * n_features)
    d_model, n_layers = (64, 3) if cells < SMALL else next(size for least, size in SIZES if n_steps >= least)
    network = ModelConfig(d_model=d_model, n_layers=n_layers, n_heads=2)
    training = _training(limits, n_rows, n_features, per_step, cells < SMALL or in_time > 100 * cells)
    if shape is None:
        return network, training
    # A neighbourhood of half an image overfits.
    near = dataclasses.replace(network, n_layers=max(2, n_layers), neighbourhood=max(1, min(5, min(shape) // 4)))
    return near, dataclasses.replace(training, muon_lr=2e-2)


def _cpu_minutes(limits: TrainConfig, device: str, devices: int) -> float:
    """Give minutes times threads of a training that time alone ends, on CPUs; of others infinity."""
    by_count = limits.epochs is not None or limits.steps is not None
    if limits.minutes is None or by_count or choose_device(device).type != "cpu":
        return math.inf
    return limits.minutes * (limits.threads * devices if limits.threads else torch.get_num_threads())


def _training(limits: TrainConfig, n_rows: int, n_features: int, per_step: int, several_passes: bool) -> TrainConfig:
    cells, by_muon = n_rows * n_features, limits.recipe == "muon"
    return dataclasses.replace(
        limits,
        curriculum=((1.0, 1.0),),
        rows_per_step=per_step,
        lr=2e-3 if cells < SMALL or not by_muon else 8e-3,
        muon_lr=1e-2,
        weight_decay=0.1,
        warmup_steps=50,
        dropout=0.2 if n_rows < 5_000 else 0.1 if n_rows < 50_000 else 0.0,
        noise=min(0.1, 2 / n_rows**0.5),
        cycles=3 if by_muon and several_passes and cells < 3_000_000 else 1,
        averaging=0.99,
        validation_rows=min(2000, max(100, 400_000 // n_features)),
        validation_orders=2,
    )
