"""Batches as a function of a seed and counters, so that an interrupted run goes on as if it had not been."""

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from deformer.data.orders import permute, random_orders, raster_orders
from deformer.data.seeds import generator
from deformer.data.table import Rows


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


def draw_batch(rows: Rows, seed: int, step: int, rows_seen: int, size: int, n: int, orders: str) -> Batch:
    """Draw a batch of `size` rows with at most n features each."""
    picked = rows[draw_rows(len(rows), seed, rows_seen, size)]
    if orders == "raster":
        laid = raster_orders(picked.observed)
    else:
        laid = random_orders(picked.observed, generator(seed, "orders", step))
    laid = laid[:, : max(1, min(n, int(picked.observed.sum(-1).max())))]
    return Batch(laid, permute(picked.values, laid), permute(picked.observed, laid))
