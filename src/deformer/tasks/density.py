"""Density: log-probabilities of rows, of some of their features, and of some given others. Nats throughout."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from deformer.data.orders import check_orders, fixed_orders, permute, random_orders, required, unpermute
from deformer.data.table import Rows, as_rows
from deformer.errors import InputError
from deformer.nn.model import DEformer

Names = Sequence[str]

# Tokens of one batch where nothing needs a gradient: enough to fill two cores, little enough for their caches.
TOKENS_PER_BATCH = 6_000


@torch.no_grad()
def log_prob_terms(
    model: DEformer,
    values: Any,
    *,
    orders: Tensor | None = None,
    given: Names = (),
    targets: Names | None = None,
    sequence: Sequence[int] | Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch features"]:
    """Return ln p(x_i | features before i in its row's order) for each scored feature, in column order.

    Args:
        values: Rows, or a table that `as_rows` takes; NaN is a missing value, neither scored nor seen.
        orders: (n,) or (batch, n) column numbers; only these features are scored. None: random orders.
        given: Features that are seen first and not scored.
        targets: Features that are scored. None: all that are not given.
        sequence: One order of all features for all rows, in which given features move to the front and missing ones
            are skipped. None: random orders.
        generator: Draws the random orders; needed if neither `orders` nor `sequence` is given.

    Returns:
        Nats; 0 where nothing was scored. For continuous features, log-densities per unit of the value.

    Raises:
        InputError: Invalid values, names or orders.

    Examples:
        >>> from deformer import DEformer, Binary, image_schema
        >>> model = DEformer(image_schema(2, 2, Binary()))
        >>> log_prob_terms(model, torch.zeros(1, 4), given=["r0c0"], generator=torch.Generator())
        tensor([[ 0.0000, -0.6931, -0.6931, -0.6931]])
    """
    rows = as_rows(values, model.schema)
    first, scored = _roles(rows, given, targets)
    if orders is None:
        return _terms_of_roles(model, rows, first, scored, sequence, generator)
    if given or targets is not None or sequence is not None:
        raise InputError("Give either orders, or given, targets and a sequence; orders already say what comes first.")
    orders = check_orders(orders, len(rows), len(model.schema), complete=False).to(rows.observed.device)
    if not orders.shape[1]:
        return torch.zeros(rows.values.shape, dtype=model.dtype, device=rows.values.device)
    if not permute(rows.observed, orders).all():
        raise InputError("An order names a missing value; leave it out, or let the orders be drawn at random.")
    return torch.cat([_terms(model, rows[b], orders[b], scored[b]) for b in batches(len(rows), orders.shape[1])])


def log_prob(model: DEformer, values: Any, **choices: Any) -> Float[Tensor, "batch"]:
    """Sum `log_prob_terms`, with the same arguments: ln p(row), a marginal or a conditional, in nats."""
    return log_prob_terms(model, values, **choices).sum(-1)


def batches(n_rows: int, n_features: int) -> Iterator[slice]:
    """Cut rows into batches of about `TOKENS_PER_BATCH` tokens."""
    return pieces(n_rows, max(1, TOKENS_PER_BATCH // max(n_features, 1)))


def pieces(n: int, size: int) -> Iterator[slice]:
    """Cut n things into pieces of a size."""
    return (slice(start, start + size) for start in range(0, n, size))


def _roles(rows: Rows, given: Names, targets: Names | None) -> tuple[Tensor, Tensor]:
    """Say which features are seen first and which are scored; both masks are (batch, features)."""
    first, scored = torch.zeros_like(rows.observed), rows.observed.clone()
    columns = rows.schema.index(given)
    if targets is not None:
        scored[:] = False
        chosen = rows.schema.index(targets)
        scored[:, chosen] = rows.observed[:, chosen]
        both = sorted(set(columns) & set(chosen))
        if both:
            raise InputError(f"{rows.schema.names[both[0]]!r} is both given and a target.")
    first[:, columns], scored[:, columns] = rows.observed[:, columns], False
    return first, scored


def _terms_of_roles(
    model: DEformer,
    rows: Rows,
    first: Tensor,
    scored: Tensor,
    sequence: Sequence[int] | Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    if sequence is not None:
        sequence = check_orders(torch.as_tensor(sequence), 1, len(model.schema), complete=True)[0]
    out = []
    most = max(1, int((first | scored).sum(-1).max()))
    for b in batches(len(rows), most):
        if sequence is not None:
            orders = fixed_orders(sequence, first[b], then=scored[b])
        else:
            orders = random_orders(first[b], required(generator), then=scored[b])
        out.append(_terms(model, rows[b], orders[:, :most], scored[b]))
    return torch.cat(out)


def _terms(model: DEformer, rows: Rows, orders: Tensor, scored: Tensor) -> Tensor:
    orders, x = orders.to(model.device), rows.values.to(model.device)
    x = permute(x, orders)
    terms = model(orders, x).log_prob(x).masked_fill(~permute(scored.to(model.device), orders), 0)
    return unpermute(terms, orders, len(model.schema)).to(rows.values.device)


@dataclass(frozen=True)
class NLL:
    """Negative log-likelihoods in nats per row, over several random orders.

    Args:
        per_order: -ln p_o(row) for each order o.
    """

    per_order: Float[Tensor, "orders rows"]

    @property
    def mean(self) -> float:
        """The mean over orders and rows, as the paper reports."""
        return self.per_order.mean().item()

    @property
    def mean_error(self) -> float:
        """The standard error of `mean` over rows."""
        return _standard_error(self.per_order.mean(0))

    @property
    def ensemble_per_row(self) -> Float[Tensor, "rows"]:
        """-ln mean_o p_o(row): a proper density, never above the mean over orders."""
        return math.log(len(self.per_order)) - torch.logsumexp(-self.per_order, 0)

    @property
    def ensemble(self) -> float:
        """The mean over rows of -ln mean_o p_o(row)."""
        return self.ensemble_per_row.mean().item()

    @property
    def ensemble_error(self) -> float:
        """The standard error of `ensemble` over rows."""
        return _standard_error(self.ensemble_per_row)

    @property
    def order_spread(self) -> float:
        """The standard deviation over orders of a row's log-likelihood, averaged over rows: 0 if orders agree."""
        return self.per_order.std(0, correction=0).mean().item()


def _standard_error(per_row: Tensor) -> float:
    return (per_row.std() / math.sqrt(len(per_row))).item() if len(per_row) > 1 else math.nan


def nll(model: DEformer, values: Any, *, n_orders: int = 10, generator: torch.Generator) -> NLL:
    """Score each row under several random orders.

    Args:
        values: Rows, or a table that `as_rows` takes; a missing value, NaN, is left out of its row's score.
        n_orders: Orders of each row.
        generator: For the orders.

    Returns:
        Scores under each order, with their mean, their ensemble and the standard errors of both, in nats per row.

    Raises:
        InputError: Invalid values, or no orders.

    Examples:
        >>> from deformer import DEformer, Binary, image_schema
        >>> model = DEformer(image_schema(2, 2, Binary()))
        >>> round(nll(model, torch.zeros(3, 4), generator=torch.Generator()).mean, 4)
        2.7726
    """
    if n_orders < 1:
        raise InputError(f"n_orders must be at least 1, not {n_orders}.")
    rows = as_rows(values, model.schema)
    return NLL(torch.stack([-log_prob(model, rows, generator=generator).double() for _ in range(n_orders)]))
