"""Predictive distributions of one column given what each row has observed, in the units of the data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from deformer.data.columns import Codes, Column, Values, has_order, values_of
from deformer.errors import InputError
from deformer.nn.heads import Conditionals
from deformer.nn.model import State

# Equally likely slices of a continuous distribution over which expectations are taken.
N_SLICES = 64


@dataclass(frozen=True)
class Predictive:
    """p(column | evidence) for a batch of rows.

    Args:
        column: How the column's values are coded.
        conditionals: Of its codes, (batch, 1).
    """

    column: Column
    conditionals: Conditionals

    def log_prob(self, values: Values) -> npt.NDArray[np.float64]:
        """Give ln p(value) in nats, for numbers a log-density per unit; NaN where the value is missing."""
        codes, log_base = self.column.encode(values)
        missing = np.isnan(codes)
        log_p = self._per_row(self.conditionals.log_prob(self._codes(np.nan_to_num(codes)[:, None])))
        return np.where(missing, np.nan, log_p + log_base)

    def probabilities(self) -> npt.NDArray[np.float64]:
        """Give the probability of every code of labels or levels, (batch, codes).

        Raises:
            InputError: The column holds numbers, which have a density.
        """
        n = getattr(self.column.domain, "n_labels", None)
        if n is None:
            raise InputError("A column of numbers has no probabilities; ask for quantiles or the cdf.")
        each = self.conditionals.repeat(n)
        p: npt.NDArray[np.float64] = (
            each.log_prob(self._codes(np.arange(n)).expand(each.shape)).exp().double().cpu().numpy()
        )
        return p

    def mean(self) -> Codes:
        """Give the expected value of numbers or levels."""
        return self._moment(1)

    def std(self) -> Codes:
        """Give the standard deviation of numbers or levels."""
        spread: Codes = np.sqrt(np.maximum(self._moment(2) - self._moment(1) ** 2, 0.0))
        return spread

    def mode(self) -> Values:
        """Give the likeliest value."""
        return self.column.decode(self._per_row(self.conditionals.mode()))

    def quantile(self, q: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Give the quantiles of numbers or levels at probabilities q, (batch, len(q))."""
        self._require_numbers()
        codes = self._number_quantiles(q) if self._levels is None else self._level_quantiles(q)
        return np.stack([self.column.decode(c) for c in codes.T], 1)

    def cdf(self, values: Values) -> npt.NDArray[np.float64]:
        """Give P(column <= value) for one value per row; numbers and levels only."""
        self._require_numbers()
        if self._levels is not None:
            below = self._levels <= values.astype(np.float64)[:, None]
            total: npt.NDArray[np.float64] = (self.probabilities() * below).sum(1)
            return total
        return self._per_row(self.conditionals.cdf(self._codes(self.column.encode(values)[0][:, None])))

    @property
    def _levels(self) -> Codes | None:
        levels = values_of(self.column)
        return None if levels is None else np.asarray(levels, dtype=np.float64)

    def _require_numbers(self) -> None:
        if not has_order(self.column):
            raise InputError("Labels have no order: ask for their probabilities or the mode.")

    def _moment(self, power: int) -> Codes:
        self._require_numbers()
        if self._levels is not None:
            moment: Codes = self.probabilities() @ self._levels**power
            return moment
        slices = (np.arange(N_SLICES) + 0.5) / N_SLICES
        expected: Codes = (self.quantile(slices) ** power).mean(1)
        return expected

    def _level_quantiles(self, q: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        below = self.probabilities().cumsum(1)
        codes: npt.NDArray[np.float64] = (below[:, :-1, None] < q - 1e-9).sum(1).astype(np.float64)
        return codes

    def _number_quantiles(self, q: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Invert the distribution function by bisection, all rows and probabilities at once."""
        wanted = self._codes(q)
        low, high = self._bracket(wanted)
        each = self.conditionals.repeat(len(q))
        for _ in range(40):
            middle = (low + high) / 2
            above = each.cdf(middle) >= wanted
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        quantiles: npt.NDArray[np.float64] = ((low + high) / 2).cpu().numpy()
        return quantiles

    def _bracket(self, q: Float[Tensor, "probabilities"]) -> tuple[Tensor, Tensor]:
        """Find codes below and above every quantile by doubling."""
        cdf, width, domain = self.conditionals.cdf, 1.0, self.column.domain
        loc, scale = getattr(domain, "loc", 0.0), getattr(domain, "scale", 1.0)
        at = self._codes(np.zeros(self.conditionals.shape))
        while width < 1e6 and bool(
            (cdf(at + loc - width * scale) > q.min()).any() or (cdf(at + loc + width * scale) < q.max()).any()
        ):
            width *= 2
        low, high = at + loc - width * scale, at + loc + width * scale
        return low.expand(-1, len(q)), high.expand(-1, len(q))

    def _codes(self, codes: npt.NDArray[Any]) -> Tensor:
        return torch.as_tensor(codes, dtype=torch.float64, device=self.conditionals.packed[0].params.device)

    def _per_row(self, answers: Tensor) -> npt.NDArray[np.float64]:
        numbers: npt.NDArray[np.float64] = answers[:, 0].double().cpu().numpy()
        return numbers


def ask_together(
    state: State, columns: Sequence[Column], features: Sequence[int], question: Callable[[Predictive], Sequence[Any]]
) -> list[Any]:
    """Ask about several features of one row; those whose columns are coded alike are asked together.

    Args:
        state: Of one row.
        columns: Of all features.
        question: Gives one answer per row of a batch, and here one per feature.
    """
    alike: dict[Column, list[int]] = {}
    for feature in features:
        alike.setdefault(columns[feature], []).append(feature)
    answers: dict[int, Any] = {}
    for column, members in alike.items():
        conditionals = state.predict(torch.tensor([members], device=state.model.device))
        each = Conditionals(conditionals.packed, (len(members), 1))  # every question becomes a row of its own
        answers.update(zip(members, question(Predictive(column, each)), strict=True))
    return [answers[feature] for feature in features]
