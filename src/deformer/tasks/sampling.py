"""Sampling: predict, draw, observe, repeat, from nothing or from evidence."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from deformer.data.orders import check_orders, move_to_front, permute, random_orders
from deformer.data.table import Rows, as_rows
from deformer.errors import InputError
from deformer.nn.model import DEformer, State
from deformer.tasks.density import batches


@torch.no_grad()
def sample(
    model: DEformer,
    n: int,
    *,
    generator: torch.Generator,
    given: Any = None,
    orders: Tensor | None = None,
    temperature: float = 1.0,
) -> Float[Tensor, "n features"]:
    """Draw exact samples of rows: one feature after another, each given all those before it.

    Args:
        n: Number of rows.
        generator: For draws and, if none are given, for orders.
        given: Evidence to keep: one row for all draws, or n rows; NaN marks values to draw.
        orders: Orders in which features are drawn, (features,) or (n, features). None: a random one per row.
        temperature: Below 1, likely values become likelier.

    Returns:
        Rows in the units of the data, labels by their numbers.

    Raises:
        InputError: Invalid evidence, orders or temperature.

    Examples:
        >>> from deformer import DEformer, Binary, image_schema
        >>> model = DEformer(image_schema(2, 2, Binary()))
        >>> sample(model, 2, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 4])
    """
    if n < 1:
        raise InputError(f"The number of rows to draw must be at least 1, not {n}.")
    rows = _evidence(model, n, given)
    if orders is None:
        orders = random_orders(rows.observed, generator)
    else:
        orders = check_orders(orders, n, len(model.schema), complete=True).to(rows.observed.device)
        orders = move_to_front(orders, rows.observed)
    return complete(model, rows, orders, generator, temperature)


def _evidence(model: DEformer, n: int, given: Any) -> Rows:
    n_features = len(model.schema)
    if given is None:
        nothing = torch.zeros(n, n_features)
        return Rows(model.schema, nothing, nothing.bool())
    rows = as_rows(given, model.schema)
    if len(rows) not in (1, n):
        raise InputError(f"Evidence must be one row or {n} rows, not {len(rows)}.")
    return rows if len(rows) == n else rows[torch.zeros(n, dtype=torch.long)]


def complete(
    model: DEformer,
    rows: Rows,
    orders: Int[Tensor, "batch features"],
    generator: torch.Generator,
    temperature: float = 1.0,
) -> Float[Tensor, "batch features"]:
    """Draw whatever is missing, in orders that put each row's observed features first."""
    parts = []
    # A step looks at one feature per row: batches may be larger, as long as what they keep is not.
    size = len(model.schema) * model.tokens_per_value * max(1, model.config.d_model // 128) // 8
    for b in batches(len(rows), size):
        part, order = rows[b].to(model.device), orders[b].to(model.device)
        parts.append(_finish(model, part, order, generator, temperature).to(rows.values.device))
    return torch.cat(parts)


def _finish(model: DEformer, rows: Rows, orders: Tensor, generator: torch.Generator, temperature: float) -> Tensor:
    n_known = rows.observed.sum(-1)
    n_features = len(model.schema)
    values = precise(model, rows.values)
    state = observe_known(model, rows, orders)
    n_steps = n_features - int(n_known.min())

    def nth(step: int) -> Int[Tensor, "batch 1"]:
        return permute(orders, (n_known + step).clamp(max=n_features - 1)[:, None])

    conditionals = state.predict(nth(0))
    for step in range(n_steps):
        active = (n_known + step < n_features)[:, None]
        drawn = conditionals.sample(generator, temperature).to(values.dtype)
        values = torch.where(active, values.scatter(1, nth(step), drawn), values)
        if step + 1 < n_steps:
            state, conditionals = state.observe_and_predict(nth(step), drawn, nth(step + 1), _unless_all(active))
    return values


def precise(model: DEformer, values: Tensor) -> Tensor:
    """Give values the digits that drawn ones need: of numbers, which may lie far from zero, all."""
    exact = model.schema.has_numbers or values.dtype == torch.float64
    return values.to(torch.float64 if exact else model.dtype)


def observe_known(model: DEformer, rows: Rows, orders: Int[Tensor, "batch features"]) -> State:
    """Observe each row's known features, which its order puts first."""
    known = orders[:, : int(rows.observed.sum(-1).max())]
    state = model.start(len(rows), room=len(model.schema))
    if not known.shape[1]:
        return state
    return state.observe(known, permute(rows.values, known), _unless_all(permute(rows.observed, known)))


def _unless_all(present: Bool[Tensor, "batch n"]) -> Bool[Tensor, "batch n"] | None:
    """Drop a mask that hides nothing: attention without one is faster."""
    return None if present.all() else present
