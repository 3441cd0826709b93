"""Orders: in which sequence the features of a row are met. Nothing else in the library permutes.

An order holds column numbers, (batch, n) with n <= features, each at most once in a row.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from deformer.errors import InputError

Orders = Int[Tensor, "batch n"]


def random_orders(
    first: Bool[Tensor, "batch features"],
    generator: torch.Generator,
    then: Bool[Tensor, "batch features"] | None = None,
) -> Int[Tensor, "batch features"]:
    """Draw one uniformly random order per row: the features of `first`, those of `then`, and all others last.

    With the observed features in front, what is missing comes last and can be cut off or ignored.
    """
    noise = torch.rand(first.shape, generator=generator, device=generator.device).to(first.device)
    return torch.argsort(noise + _stages(first, then), dim=-1, stable=True)


def required(generator: torch.Generator | None) -> torch.Generator:
    """Refuse to draw orders without a generator.

    Raises:
        InputError: There is none.
    """
    if generator is None:
        raise InputError("Random orders need a generator; give one, or give the orders.")
    return generator


def fixed_orders(
    order: Sequence[int] | Int[Tensor, "n"],
    first: Bool[Tensor, "batch features"],
    then: Bool[Tensor, "batch features"] | None = None,
) -> Int[Tensor, "batch n"]:
    """Use one order for all rows, with the features of `first` moved to the front, and those of `then` behind them."""
    sequence = torch.as_tensor(order, device=first.device)
    return move_to_front(sequence.expand(len(first), -1), first, then)


def move_to_front(
    orders: Orders, first: Bool[Tensor, "batch features"], then: Bool[Tensor, "batch features"] | None = None
) -> Orders:
    """Move the features of `first`, and behind them those of `then`, to the front and change nothing else."""
    stages = permute(_stages(first, then), orders)
    return permute(orders, torch.argsort(stages, dim=-1, stable=True))


def _stages(first: Tensor, then: Tensor | None) -> Int[Tensor, "batch features"]:
    return (~first).int() if then is None else (~first).int() + ~(first | then)


def raster_orders(first: Bool[Tensor, "batch features"]) -> Int[Tensor, "batch features"]:
    """Use the column order for all rows: for an image row by row, from the top left."""
    return fixed_orders(range(first.shape[1]), first)


def check_orders(orders: Tensor, n_rows: int, n_features: int, *, complete: bool) -> Orders:
    """Check orders that a user gave, (n,) for all rows or (batch, n), and return them per row.

    Args:
        complete: Whether each row must name every feature.

    Raises:
        InputError: Wrong shape or type, unknown columns, repeated columns, or missing ones where all are needed.
    """
    orders = torch.as_tensor(orders)
    if orders.ndim == 1:
        orders = orders.expand(n_rows, -1)
    if orders.ndim != 2 or len(orders) != n_rows:
        raise InputError(f"Orders must have shape (n,) or ({n_rows}, n), not {tuple(orders.shape)}.")
    if orders.dtype == torch.bool or orders.is_floating_point():
        raise InputError(f"Orders must hold column numbers, not {orders.dtype}.")
    orders = orders.long()
    if orders.numel() and (orders.min() < 0 or orders.max() >= n_features):
        raise InputError(f"Orders must hold column numbers from 0 to {n_features - 1}.")
    ranked = orders.sort(dim=-1).values
    if (ranked[:, 1:] == ranked[:, :-1]).any():
        raise InputError("An order names a feature more than once.")
    if complete and orders.shape[1] != n_features:
        raise InputError(f"An order names {orders.shape[1]} of {n_features} features; all are needed here.")
    return orders


def permute(columns: Shaped[Tensor, "batch features"], orders: Orders) -> Shaped[Tensor, "batch n"]:
    """Lay values from column order out in the sequence of an order."""
    return columns.gather(1, orders)


def unpermute(sequence: Shaped[Tensor, "batch n"], orders: Orders, n_features: int) -> Shaped[Tensor, "batch features"]:
    """Lay values from the sequence of an order back out in column order; features outside it hold 0."""
    return sequence.new_zeros((len(sequence), n_features)).scatter(1, orders, sequence)
