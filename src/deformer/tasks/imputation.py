"""Imputation: observe what is known, then fill in the rest."""

from typing import Any, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor

from deformer.data.orders import permute, random_orders, unpermute
from deformer.data.schema import Categorical
from deformer.data.table import Rows, as_rows
from deformer.errors import InputError
from deformer.nn.model import DEformer
from deformer.tasks.density import batches
from deformer.tasks.sampling import complete, observe_known, precise

Strategy = Literal["draw", "mean", "mode"]


@torch.no_grad()
def impute(
    model: DEformer,
    values: Any,
    *,
    generator: torch.Generator,
    strategy: Strategy = "draw",
    n_imputations: int = 1,
) -> Shaped[Tensor, "imputations batch features"]:
    """Fill in missing values; observed values are returned unchanged.

    Args:
        values: Rows, or a table in which NaN is a missing value.
        strategy: "draw" samples all missing values jointly, each given those drawn before. "mean" and "mode" fill in
            each value's own expectation or likeliest value, given the observed values; of a categorical feature, whose
            label numbers have no mean, both fill in the likeliest label.
        generator: For draws, and for the orders in which values are observed.
        n_imputations: Number of independent draws; 1 for "mean" and "mode".

    Returns:
        Complete rows in the units of the data; observed values are those given.

    Raises:
        InputError: Invalid values, strategy or number.

    Examples:
        >>> from deformer import DEformer, Binary, image_schema
        >>> model = DEformer(image_schema(2, 2, Binary()))
        >>> rows = torch.tensor([[1.0, float("nan"), 0.0, 1.0]])
        >>> impute(model, rows, strategy="mean", generator=torch.Generator())
        tensor([[[1.0000, 0.5000, 0.0000, 1.0000]]])
    """
    if strategy not in ("draw", "mean", "mode"):
        raise InputError(f"strategy must be 'draw', 'mean' or 'mode', not {strategy!r}.")
    if n_imputations < 1 or (n_imputations > 1 and strategy != "draw"):
        raise InputError(f"n_imputations must be at least 1, and 1 for {strategy!r}; it is {n_imputations}.")
    rows = as_rows(values, model.schema)
    if strategy != "draw":
        orders = random_orders(rows.observed, generator)
        parts = [_expect(model, rows[b], orders[b], strategy) for b in batches(len(rows), len(model.schema))]
        return torch.cat(parts)[None]
    draws = []
    for _ in range(n_imputations):
        orders = random_orders(rows.observed, generator)
        draws.append(complete(model, rows, orders, generator))
    return torch.stack(draws)


def _expect(model: DEformer, rows: Rows, orders: Tensor, strategy: Strategy) -> Tensor:
    on_device = rows.to(model.device)
    orders = orders.to(model.device)
    n_features = len(model.schema)
    values, observed = precise(model, on_device.values), on_device.observed
    first_missing = int(observed.sum(-1).min())
    if first_missing == n_features:
        return values.to(rows.values.device)
    state = observe_known(model, on_device, orders)
    asked = orders[:, first_missing:]
    conditionals = state.predict(asked)
    guess = conditionals.mean() if strategy == "mean" else conditionals.mode()
    categorical = torch.tensor([isinstance(f.domain, Categorical) for f in model.schema.features])
    if strategy == "mean" and categorical.any():  # the likeliest numbers take long to find
        guess = torch.where(categorical.to(asked.device)[asked], conditionals.mode(), guess)
    filled = torch.where(permute(observed, asked), permute(values, asked), guess.to(values.dtype))
    return torch.where(observed, values, unpermute(filled, asked, n_features)).to(rows.values.device)
