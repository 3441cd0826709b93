"""DeepNADE: a network told which features are known, and with what values, that predicts all others."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deformer.baselines.baseline import Baseline, Batch
from deformer.baselines.labels import Labels
from deformer.data.orders import random_orders, raster_orders
from deformer.data.schema import Schema
from deformer.data.table import as_rows
from deformer.errors import InputError

ROWS_AT_ONCE = 8192


class DeepNADE(Baseline):
    """A multilayer perceptron over [known values, mask of what is known].

    Args:
        hidden: Widths of its layers.
        fixed: Whether features always come in column order. Training draws a cut of it; NADE, whose weights are tied so
            that all cuts cost as much as one, takes them all.

    References:
        A Deep and Tractable Density Estimator (Uria, Murray, Larochelle, 2014), https://arxiv.org/abs/1310.1757

    Example:
        >>> from deformer import Binary, table_schema
        >>> model = DeepNADE(table_schema([Binary()] * 3), hidden=(8,))
        >>> model.log_prob([[0, 1, 1]], torch.tensor([2, 0, 1])).shape
        torch.Size([1])
    """

    def __init__(self, schema: Schema, hidden: tuple[int, ...] = (500, 500), fixed: bool = False) -> None:
        super().__init__(schema)
        self.labels, self.fixed = Labels(schema), fixed
        widths = (2 * self.labels.n, *hidden)
        layers = [part for a, b in zip(widths, widths[1:], strict=False) for part in (nn.Linear(a, b), nn.ReLU())]
        self.network = nn.Sequential(*layers, nn.Linear(widths[-1], self.labels.n))

    def forward(self, x: Batch, known: Batch) -> Float[Tensor, "batch outputs"]:
        """Give the outputs for every feature, given the known ones."""
        mask = self.labels.spread(known)
        out: Tensor = self.network(torch.cat([self.labels.encode(x) * mask, mask], 1))
        return out

    def orders(self, n: int, draws: torch.Generator) -> Tensor:
        everything = torch.ones(n, len(self.schema), dtype=torch.bool)
        return raster_orders(everything) if self.fixed else random_orders(everything, draws)

    def check(self, orders: Tensor) -> None:
        if self.fixed and not torch.equal(orders, raster_orders(torch.ones(orders.shape, dtype=torch.bool))):
            raise InputError("This NADE was made for one order, that of the columns.")

    def loss(self, x: Batch, draws: torch.Generator) -> Float[Tensor, ""]:
        """Predict all features behind a random place of an order; D / (D - c) makes their mean a row's NLL."""
        n, d = x.shape
        n_known = torch.randint(d, (n, 1), generator=draws)
        place = self.orders(n, draws).argsort(-1)
        known = (place < n_known).to(x.dtype)
        terms = self.labels.log_prob(self(x, known), x) * (1 - known)
        return -(terms.sum(-1) * d / (d - n_known[:, 0])).mean()

    def terms(self, x: Batch, orders: Tensor) -> Batch:
        """Run the network once for each feature of each row, many at a time."""
        n, d = x.shape
        place, out = orders.argsort(-1), torch.empty_like(x)
        for start in range(0, n * d, ROWS_AT_ONCE):
            flat = torch.arange(start, min(start + ROWS_AT_ONCE, n * d))
            row, feature = flat // d, flat % d
            known = place[row] < place[row, feature][:, None]
            own = self.labels.log_prob(self(x[row], known.to(x.dtype)), x[row])
            out[row, feature] = own.gather(1, feature[:, None])[:, 0]
        return out

    def draw(self, x: Batch, orders: Tensor, n_known: int, draws: torch.Generator) -> Batch:
        rows, known = torch.arange(len(x)), torch.zeros_like(x)
        known.scatter_(1, orders[:, :n_known], 1.0)
        for feature in orders.T[n_known:]:
            x = x.clone()
            x[rows, feature] = self.labels.draw(self(x, known), feature, draws)
            known[rows, feature] = 1.0
        return x

    @torch.no_grad()
    def impute(self, values: Any, draws: torch.Generator) -> Batch:
        """Draw missing values jointly, given what each row has."""
        if self.fixed:
            return super().impute(values, draws)
        rows = as_rows(values, self.schema)
        filled = []
        for x, observed in zip(rows.values.to(self.dtype), rows.observed, strict=True):
            order = random_orders(observed[None], draws)
            filled.append(self.draw(x[None], order, int(observed.sum()), draws))
        return torch.cat(filled)
