"""Predictive distributions of one column given what each row has observed, in the units of the data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from deformer.data.columns import (
    Codes,
    Column,
    Labels,
    Numbers,
    Values,
    has_order,
    point_mass,
    same_number,
    values_of,
)
from deformer.data.times import is_time, to_days, unboxed
from deformer.errors import InputError
from deformer.nn.heads import Conditionals
from deformer.nn.model import State

# Where codes are bent, expectations are taken over the middles of slices of a distribution: 64 of them equally likely,
# but that the outermost two are halved towards the tails, again and again.
_TAIL = 2.0 ** np.arange(-14, -5)
_ENDS = np.concatenate([[0.0], _TAIL, np.arange(2, 63) / 64, 1 - _TAIL[::-1], [1.0]])
SLICES, WEIGHTS = (_ENDS[1:] + _ENDS[:-1]) / 2, np.diff(_ENDS)


@dataclass(frozen=True)
class Predictive:
    """p(column | evidence) for a batch of rows, averaged over the orders in which the evidence was observed.

    Args:
        column: How the column's values are coded.
        conditionals: Of its codes, (orders * batch, 1), all rows under one order after those under another.
        n_orders: How many orders there are.
    """

    column: Column
    conditionals: Conditionals
    n_orders: int = 1

    def log_prob(self, values: Any) -> Codes:
        """Give ln p(value) in nats, for numbers a log-density per unit; NaN where the value is missing.

        Args:
            values: One for each row, or one for all; of columns of times also moments and lengths of time.
        """
        codes, log_base = self.column.encode(self._values(values))
        return np.where(np.isnan(codes), np.nan, self.log_prob_of_codes(np.nan_to_num(codes)) + log_base)

    def log_prob_of_codes(self, codes: Codes) -> Codes:
        """Give ln p(code) in nats."""
        per_order = self._by_order(self.conditionals.log_prob(self._codes(codes[:, None])))
        together: Codes = np.logaddexp.reduce(per_order, 0) - np.log(self.n_orders)
        return together

    def probabilities(self) -> Codes:
        """Give the probability of every code of labels or levels, (batch, codes).

        Raises:
            InputError: The column holds numbers, which have a density.
        """
        n = getattr(self.column.domain, "n_labels", None)
        if n is None:
            raise InputError("A column of numbers has no probabilities; ask for quantiles or the cdf.")
        p = self.conditionals.probabilities(n).view(self.n_orders, -1, n).mean(0)
        p = p.double() / p.double().sum(1, keepdim=True)  # in float32 they sum to 1 only nearly
        probabilities: Codes = p.cpu().numpy()
        return probabilities

    def mean(self) -> Codes:
        """Give the expected value of numbers or levels.

        Of a column with heavy tails it is that of 80 slices of the distribution, within the range of the values of
        fit: the tails beyond may have no moments.
        """
        self._require_numbers()
        if self._is_straight:
            return self.column.decode(self._by_order(self.conditionals.mean()).mean(0))
        return self._moments()[0]

    def std(self) -> Codes:
        """Give the standard deviation of numbers or levels; with heavy tails that of the same slices as `mean`."""
        self._require_numbers()
        if self._is_straight:
            mean, within = (self._by_order(a) for a in (self.conditionals.mean(), self.conditionals.variance()))
            unit = getattr(self.column, "scale", 1.0)
            straight: Codes = unit * np.sqrt(within.mean(0) + mean.var(0))
            return straight
        return self._moments()[1]

    @property
    def _is_straight(self) -> bool:
        """Say whether values are a linear map of codes."""
        return self._levels is None and not self._is_bent

    @property
    def _is_bent(self) -> bool:
        return isinstance(self.column, Numbers) and self.column.bend

    def mode(self) -> Values:
        """Give the likeliest value; of numbers, the likeliest of those that single orders find.

        On a bent scale, which moves modes, the middles of slices are looked at as well. A point mass counts if half of
        the probability is there.
        """
        if getattr(self.column.domain, "n_labels", None) is not None:
            shares = self.column.largest_shares() if isinstance(self.column, Labels) else 1.0
            return self.column.decode((self.probabilities() * shares).argmax(1).astype(np.float64))
        found = self._by_order(self.conditionals.mode())
        if self._is_bent:
            found = np.concatenate([found, self._number_quantiles(SLICES).T])
        values = np.stack([self.column.decode(codes) for codes in found])
        density, mass = np.stack([self.log_prob(row) for row in values]), self.point_mass()
        if mass is not None:
            density[values == mass[0]] = -np.inf  # what is known there is no density
        likeliest: Values = values[density.argmax(0), np.arange(values.shape[1])]
        return likeliest if mass is None else np.where(mass[1] >= 0.5, mass[0], likeliest)

    def point_mass(self) -> tuple[float, Codes] | None:
        """Give the number that has a probability of its own, and that probability; None where there is none."""
        if (mass := point_mass(self.column)) is None:
            return None
        codes = np.full(self.conditionals.shape[0] // self.n_orders, mass[0])
        return mass[1], np.exp(self.log_prob_of_codes(codes))

    def quantile(self, q: Any) -> npt.NDArray[np.float64]:
        """Give the quantiles of numbers or levels at one or several probabilities q, (batch, len(q)).

        Raises:
            InputError: The column holds labels, or a probability does not lie between 0 and 1.
        """
        self._require_numbers()
        q = np.atleast_1d(np.asarray(q, dtype=np.float64))
        if not (len(q) and ((q > 0) & (q < 1)).all()):
            raise InputError(f"Quantiles must lie between 0 and 1, not {q.tolist()}.")
        codes = self._number_quantiles(q) if self._levels is None else self._level_quantiles(q)
        values = np.stack([self.column.decode(c) for c in codes.T], 1)
        if (mass := self.point_mass()) is None:
            return values
        up_to = self.cdf(np.full(len(values), mass[0]))[:, None]
        return np.where((up_to - mass[1][:, None] < q) & (q <= up_to), mass[0], values)

    def entropy(self) -> Codes:
        """Give what -ln p is expected to be in nats, of numbers that of the code, averaged over orders."""
        shared = shared_codes([self.column]).expand(*self.conditionals.shape, 2)
        averaged: Codes = self._by_order(expected_nats(self.conditionals, shared)).mean(0)
        return averaged

    def cdf(self, values: Any) -> npt.NDArray[np.float64]:
        """Give P(column <= value) for one value per row, or one for all; numbers, levels and times only."""
        self._require_numbers()
        values = self._values(values)
        if self._levels is not None:
            numbers = values.astype(np.float64)
            nearest = self._levels[np.abs(self._levels - numbers[:, None]).argmin(1)]
            up_to = np.where(same_number(numbers, nearest), nearest, numbers)
            total = (self.probabilities() * (self._levels <= up_to[:, None])).sum(1)
            return np.where(np.isnan(numbers), np.nan, total)
        codes = self._codes(self.column.encode(values)[0][:, None])
        below_code: npt.NDArray[np.float64] = self._by_order(self.conditionals.cdf(codes)).mean(0)
        return below_code

    def _values(self, values: Any) -> Values:
        """Give one value for each row, times as the days that columns of them code."""
        if not has_order(self.column):  # an array of labels of several types would make text of them
            given: Values = values if isinstance(values, np.ndarray) else np.asarray(values, dtype=object)
            given = np.atleast_1d(given)
        else:
            given = np.atleast_1d(np.asarray(values))
            series = unboxed(pd.Series(given))
            given = to_days(series) if is_time(series.dtype) else given
        return given.repeat(self.conditionals.shape[0] // self.n_orders) if len(given) == 1 else given

    @property
    def _levels(self) -> Codes | None:
        levels = values_of(self.column)
        return None if levels is None else np.asarray(levels, dtype=np.float64)

    def _require_numbers(self) -> None:
        if not has_order(self.column):
            raise InputError("Labels have no order: ask for their probabilities or the mode.")

    def _moments(self) -> tuple[Codes, Codes]:
        """Give the mean and the standard deviation, by deviations, which may be far smaller than values."""
        if (levels := self._levels) is not None:
            return _mean_and_std(levels, self.probabilities())
        assert isinstance(self.column, Numbers)
        mass = self.point_mass()
        codes = self._number_quantiles(SLICES if mass is None else self._slices_beside(*mass))
        mean, std = _mean_and_std(self.column.within(self.column.decode(codes)), WEIGHTS)
        if mass is None:
            return mean, std
        away, share = mass[0] - mean, mass[1]
        return mean + share * away, np.sqrt((1 - share) * (std**2 + share * away**2))

    def _slices_beside(self, mass: float, share: Codes) -> npt.NDArray[np.float64]:
        """Give where in the whole distribution the slices of what is no point mass lie, (batch, slices)."""
        below = self.cdf(np.full(len(share), mass)) - share
        q: npt.NDArray[np.float64] = SLICES * (1 - share[:, None])
        return np.where(q < below[:, None], q, q + share[:, None])

    def _level_quantiles(self, q: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        below = self.probabilities().cumsum(1)
        codes: npt.NDArray[np.float64] = (below[:, :-1, None] < q - 1e-9).sum(1).astype(np.float64)
        return codes

    def _number_quantiles(self, q: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Invert the distribution function by bisection, at the same probabilities or others (batch, n) in each row."""
        wanted, each = torch.as_tensor(q, dtype=torch.float64), self.conditionals.repeat(q.shape[-1])
        low, high = self._bracket(wanted)
        for _ in range(40):
            middle = (low + high) / 2
            below = each.cdf(self._codes(middle.numpy())).double().cpu().view(self.n_orders, *middle.shape).mean(0)
            low, high = torch.where(below >= wanted, low, middle), torch.where(below >= wanted, middle, high)
        quantiles: npt.NDArray[np.float64] = ((low + high) / 2).numpy()
        return quantiles

    def _bracket(self, q: Float[Tensor, "*batch probabilities"]) -> tuple[Tensor, Tensor]:
        """Find codes below and above every quantile by doubling."""
        cdf, width, domain = self.conditionals.cdf, 1.0, self.column.domain
        loc, scale = getattr(domain, "loc", 0.0), getattr(domain, "scale", 1.0)
        batch = self.conditionals.shape[0] // self.n_orders
        at = self._codes(np.zeros((batch, 1)))
        while width < 1e6 and bool(
            (cdf(at + loc - width * scale) > q.min()).any() or (cdf(at + loc + width * scale) < q.max()).any()
        ):
            width *= 2
        shape = (batch, q.shape[-1])
        return tuple(torch.full(shape, loc + side * width * scale, dtype=torch.float64) for side in (-1, 1))  # type: ignore[return-value]

    def _codes(self, codes: npt.NDArray[Any]) -> Tensor:
        """Give codes of rows, (batch, n), to every order."""
        device = self.conditionals.packed[0].params.device
        return torch.as_tensor(codes, dtype=torch.float64, device=device).repeat(self.n_orders, 1)

    def _by_order(self, answers: Tensor) -> npt.NDArray[np.float64]:
        numbers: npt.NDArray[np.float64] = answers[:, 0].double().cpu().numpy()
        return numbers.reshape(self.n_orders, -1)


def shared_codes(columns: Sequence[Column]) -> Float[Tensor, "columns 2"]:
    """Give the code that rare labels of each column share, and the entropy of their shares; 0 where none do."""
    shared = torch.zeros(len(columns), 2, dtype=torch.float64)
    for i, column in enumerate(columns):
        if isinstance(column, Labels) and column.others:
            counts = np.array([1, *(n for _, n in column.others)])  # of what was never seen, and of the others
            share = counts / counts.sum()
            shared[i] = torch.tensor([len(column.labels), -(share * np.log(share)).sum()])
    return shared


def expected_nats(
    conditionals: Conditionals, shared: Float[Tensor, "batch queries 2"]
) -> Float[Tensor, "batch queries"]:
    """Give what -ln p(value) is expected to be, of numbers that of the code.

    It is the entropy of the code, and that of the shares of rare labels as often as their common code is expected.

    Args:
        shared: What `shared_codes` gives for the columns that are asked about.
    """
    entropy = conditionals.entropy()
    if not shared.any():
        return entropy
    shared = shared.to(entropy.device)
    p = conditionals.log_prob(shared[..., 0]).exp()
    return entropy + torch.where(shared[..., 1] > 0, p * shared[..., 1], 0.0).to(entropy.dtype)


def _mean_and_std(values: Codes, weights: Codes) -> tuple[Codes, Codes]:
    mean: Codes = (weights * values).sum(1)
    return mean, np.sqrt((weights * (values - mean[:, None]) ** 2).sum(1))


def ask_together(
    states: Sequence[State],
    columns: Sequence[Column],
    features: Sequence[int],
    question: Callable[[Predictive], Sequence[Any]],
) -> list[Any]:
    """Ask about several features of one row; those whose columns are coded alike and share a head are asked together.

    Args:
        states: Of one row, by order of its evidence.
        columns: Of all features.
        question: Gives one answer per row of a batch, and here one per feature.
    """
    kinds, device = states[0].model.head.kind_of.tolist(), states[0].model.device
    alike: dict[tuple[str, int], list[int]] = {}
    for feature in features:  # columns that are equal may be spelled apart, as those of True and of 1 are
        alike.setdefault((repr(columns[feature]), kinds[feature]), []).append(feature)
    answers: dict[int, Any] = {}
    for members in alike.values():
        asked = torch.tensor([members], device=device)
        together = Conditionals.joined([state.predict(asked).as_rows() for state in states])
        answers.update(zip(members, question(Predictive(columns[members[0]], together, len(states))), strict=True))
    return [answers[feature] for feature in features]
