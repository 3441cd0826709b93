"""What models share that predict any feature from any set of others: one network run for each conditional."""

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from deformer.baselines.baseline import Baseline, Batch
from deformer.data.orders import random_orders, required
from deformer.data.schema import Schema
from deformer.data.table import as_rows
from deformer.nn.heads import Conditionals

LOOKS = 4  # draws of what is known, for each validation row


def known_sets(n: int, d: int, generator: torch.Generator) -> Bool[Tensor, "n d"]:
    """Draw n sets of known features: of every size below d with equal probability, of one size all alike.

    Features that are each known with one probability, itself uniform, give all sizes up to d the same chance, without a
    permutation; only sets of all features are drawn again.
    """
    known = torch.ones(n, d, dtype=torch.bool)
    while (whole := known.all(1)).any():
        again = int(whole.sum())
        known[whole] = torch.rand(again, d, generator=generator) < torch.rand(again, 1, generator=generator)
    return known


class AnyOrderBaseline(Baseline):
    """A model of p(any feature | any set of known ones), whose network runs once for each conditional."""

    def __init__(self, schema: Schema, rows_at_once: int = 8192) -> None:
        super().__init__(schema, rows_at_once)

    @abstractmethod
    def conditionals(self, x: Batch, known: Batch, asked: Int[Tensor, "batch n"] | None = None) -> Conditionals:
        """Give p(asked | known) for each row; of all features in column order if none are named."""

    def orders(self, n: int, generator: torch.Generator | None) -> Tensor:
        return random_orders(torch.ones(n, len(self.schema), dtype=torch.bool), required(generator))

    def loss(self, x: Batch, generator: torch.Generator) -> Float[Tensor, ""]:
        return -self.estimate(x, generator).mean()

    def estimate(self, x: Batch, generator: torch.Generator) -> Float[Tensor, "batch"]:
        """Estimate the mean over orders of ln p(row) by one network run a row, where scoring one order takes D.

        All features outside of a random set of c known ones are predicted; D / (D - c) makes their mean unbiased.
        """
        n, d = x.shape
        known = known_sets(n, d, generator).to(x.dtype)
        terms = self.conditionals(x, known).log_prob(x) * (1 - known)
        return terms.sum(-1) * d / (1 - known).sum(-1)

    @torch.no_grad()
    def look(self, x: Batch, generator: torch.Generator) -> float:
        """Estimate the NLL by the training objective, the same draws at every look: exact orders cost D runs a row."""
        sums = [len(x[p]) * self.loss(x[p], generator).item() for p in self.parts(len(x)) for _ in range(LOOKS)]
        return sum(sums) / (len(x) * LOOKS)

    def terms(self, x: Batch, orders: Tensor) -> Batch:
        """Run the network once for each feature of each row, many at a time."""
        n, d = x.shape
        place, out = orders.argsort(-1), torch.empty(x.shape, dtype=self.dtype)
        for start in range(0, n * d, self.rows_at_once):
            flat = torch.arange(start, min(start + self.rows_at_once, n * d))
            row, feature = flat // d, flat % d
            known = (place[row] < place[row, feature][:, None]).to(x.dtype)
            own = self.conditionals(x[row], known, feature[:, None])
            out[row, feature] = own.log_prob(x[row, feature][:, None])[:, 0]
        return out

    def draw(self, orders: Tensor, generator: torch.Generator) -> Batch:
        nothing = torch.zeros(orders.shape, dtype=self.value_dtype)
        return self._fill(nothing, orders, torch.zeros(len(orders), dtype=torch.long), generator)

    def _fill(self, x: Batch, orders: Tensor, n_known: Int[Tensor, "batch"], generator: torch.Generator) -> Batch:
        """Draw whatever each row's order puts behind the features that it has."""
        x, rows = x.clone(), torch.arange(len(x))
        known = (orders.argsort(-1) < n_known[:, None]).to(x.dtype)
        for k in range(int(n_known.min()), x.shape[1]):
            feature, open_ = orders[:, k], n_known <= k
            drawn = self.conditionals(x, known, feature[:, None]).sample(generator)[:, 0].to(x.dtype)
            x[rows, feature] = torch.where(open_, drawn, x[rows, feature])
            known[rows, feature] = 1.0
        return x

    @torch.no_grad()
    def impute(self, values: Any, generator: torch.Generator) -> Batch:
        """Draw missing values jointly, given what each row has."""
        rows = as_rows(values, self.schema)
        x, orders = rows.values.to(self.value_dtype), random_orders(rows.observed, generator)
        n_known = rows.observed.sum(-1)
        return torch.cat([self._fill(x[p], orders[p], n_known[p], generator) for p in self.parts(len(x))])
