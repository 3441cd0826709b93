"""Defaults: a network and its training by the size of the data and, on CPUs, by the time."""

import math
from dataclasses import replace

import torch

from deformer.config import ModelConfig, TrainConfig
from deformer.train.process import choose_device

MANY_IMAGES = 50_000  # as many images as MNIST has overfit late
CELLS_PER_SECOND = 16_000  # that the largest of these networks learns from, on one thread of a CPU
# By the steps that this one would make in the time: width and layers.
SHAPES = ((8_000, (128, 3)), (2_800, (128, 2)), (600, (64, 2)), (0, (64, 1)))


def minutes_of_cpus(limits: TrainConfig, device: str) -> float:
    """Give minutes times threads of a training that time alone ends, on CPUs; of others infinity."""
    by_count = limits.epochs is not None or limits.steps is not None
    if limits.minutes is None or by_count or choose_device(device).type != "cpu":
        return math.inf
    return limits.minutes * (limits.threads or torch.get_num_threads())


def suited(
    n_rows: int,
    n_features: int,
    minutes: float | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    cpu_minutes: float = math.inf,
    shape: tuple[int, int] | None = None,
) -> tuple[ModelConfig, TrainConfig]:
    """Choose a network and its training by the size of a table, and on CPUs by the time.

    Whole rows, some thousand cells a step, averaged weights. Few rows are held apart by noise and dropout, and end
    after the first cycle of rates that brings nothing better, if a limit is not reached before; where there is time
    for few passes, there is one cycle. Many images are trained on as `TrainConfig` has it.

    Args:
        cpu_minutes: Minutes times threads of CPUs, where time is what ends the training. In as few steps as they are
            good for, a small network learns more than a large one, of which each step takes longer.
        shape: (height, width) where a row is an image.
    """
    if shape is not None and n_rows >= MANY_IMAGES:
        return ModelConfig(), TrainConfig(minutes=minutes, epochs=epochs, steps=steps, seed=seed)
    rows = min(256, n_rows, max(16, n_rows // 16), max(4, 4096 // n_features))
    cells, in_time = n_rows * n_features, 60 * CELLS_PER_SECOND * cpu_minutes
    small = cells < 20_000
    d_model, n_layers = next(size for least, size in SHAPES if in_time >= least * rows * n_features)
    if small:
        d_model, n_layers = 64, 3
    training = TrainConfig(
        minutes=minutes,
        epochs=epochs,
        steps=steps,
        seed=seed,
        curriculum=((1.0, 1.0),),
        rows_per_step=rows,
        lr=2e-3 if small else 8e-3,
        muon_lr=1e-2 if shape is None else 2e-2,
        weight_decay=0.1,
        warmup_steps=50,
        dropout=0.2 if n_rows < 5_000 else 0.1 if n_rows < 50_000 else 0.0,
        noise=min(0.1, 2 / n_rows**0.5),
        cycles=3 if small or (cells < 3_000_000 and in_time > 100 * cells) else 1,
        averaging=0.99,
        validation_rows=min(2000, max(100, 400_000 // n_features)),
        validation_orders=2,
    )
    network = ModelConfig(d_model=d_model, n_layers=n_layers, n_heads=2)
    if shape is None:
        return network, training
    # A neighbourhood of half an image overfits, and pixels are learned by two layers better than by one.
    return replace(network, n_layers=max(2, n_layers), neighbourhood=min(5, min(shape) // 4)), training
