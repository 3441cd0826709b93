"""Batches as a function of a seed and counters, so that an interrupted run goes on as if it had not been."""

import functools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from deformer.data.orders import permute, random_orders, raster_orders
from deformer.data.schema import Continuous
from deformer.data.seeds import generator
from deformer.data.table import Rows
from deformer.nn.units import Units


@dataclass(frozen=True)
class Batch:
    """Rows laid out in their orders, cut off behind the features that are trained on."""

    features: Int[Tensor, "batch n"]
    values: Shaped[Tensor, "batch n"]
    scored: Bool[Tensor, "batch n"]


def draw_rows(n_rows: int, seed: int, rows_seen: int, size: int) -> Int[Tensor, "size"]:
    """Give the next rows of an endless sequence of random permutations."""
    chosen = []
    while size:
        epoch, start = divmod(rows_seen, n_rows)
        shuffled = _permutation(n_rows, seed, epoch)[start : start + size]
        chosen.append(shuffled)
        size, rows_seen = size - len(shuffled), rows_seen + len(shuffled)
    return torch.cat(chosen)


@functools.lru_cache(maxsize=2)
def _permutation(n_rows: int, seed: int, epoch: int) -> Int[Tensor, "rows"]:
    return torch.randperm(n_rows, generator=generator(seed, "rows", epoch))


def draw_batch(
    rows: Rows,
    seed: int,
    step: int,
    rows_seen: int,
    size: int,
    n: int,
    orders: str,
    weights: Float[Tensor, "features"] | None = None,
) -> Batch:
    """Draw a batch of `size` rows with at most n features each.

    Args:
        weights: Features of twice the weight are twice as soon among the n. None: all alike.
    """
    picked = rows[draw_rows(len(rows), seed, rows_seen, size)]
    draws = generator(seed, "orders", step)
    if orders == "raster":
        laid = raster_orders(picked.observed)
    elif weights is None:
        laid = random_orders(picked.observed, draws)
    else:
        laid = random_orders(_chosen(picked.observed, weights, n, draws), draws, then=picked.observed)
    laid = laid[:, : max(1, min(n, int(picked.observed.sum(-1).max())))]
    return Batch(laid, permute(picked.values, laid), permute(picked.observed, laid))


def with_noise(batch: Batch, units: Units, deviation: float, generator: torch.Generator) -> Batch:
    """Add Gaussian noise to values that are no point mass.

    Args:
        units: What the deviation is in; those of labels have location and scale 0.
    """
    noise = torch.randn(batch.values.shape, generator=generator, dtype=torch.float64)
    noise *= deviation * units.table[batch.features][..., 1]
    noise.masked_fill_(units.at_mass(batch.values, batch.features), 0)
    return Batch(batch.features, batch.values + noise, batch.scored)


def with_absent_near(batch: Batch, units: Units) -> Batch:
    """Put absent numbers at their location: as the 0 that is stored they may lie so far out that gradients are NaN.

    They come last in their orders and are not scored, so nothing else changes.
    """
    if batch.values.dtype not in (torch.float32, torch.float64) or batch.scored.all():
        return batch
    locations = units.table[batch.features][..., 0].to(batch.values.dtype)
    return Batch(batch.features, torch.where(batch.scored, batch.values, locations), batch.scored)


def _chosen(
    observed: Bool[Tensor, "batch features"], weights: Float[Tensor, "features"], n: int, generator: torch.Generator
) -> Bool[Tensor, "batch features"]:
    """Choose n observed features of each row without replacement: the n that an exponential race sees first."""
    arrival = torch.empty(observed.shape).exponential_(generator=generator) / weights
    first = arrival.masked_fill(~observed, math.inf).argsort(-1)[:, :n]
    return torch.zeros_like(observed).scatter(1, first, True) & observed


def marginal_entropies(rows: Rows) -> Float[Tensor, "features"]:
    """Estimate the entropy of each feature's distribution in the data, in nats; continuous ones get the largest.

    What never varies gets a little, so that every feature can be drawn.
    """
    entropies = torch.full((len(rows.schema),), -1.0)
    for i, f in enumerate(rows.schema.features):
        if not isinstance(f.domain, Continuous):
            values = rows.values[rows.observed[:, i], i]
            counts = torch.bincount(values.long(), minlength=1).double()
            shares = counts / counts.sum().clamp(min=1)
            entropies[i] = -torch.xlogy(shares, shares).sum()
    largest = entropies.max().clamp(min=1.0)
    return torch.where(entropies < 0, largest, entropies).clamp(min=1e-3)
