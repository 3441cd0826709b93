"""Columns of tables: how values of any kind become the codes that a model sees, and come back as they were.

A code is the number of a label, or a real number. What it leaves open is said by `log_base`, ln p(value | code): the
share of a label among those that have one code in common, or the log-Jacobian of a bent scale. So the log-probability
of codes plus `log_base` is that of the values, exactly. Missing values are NaN or None, and NaN among the codes.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from deformer.config import tuples
from deformer.data.schema import Binary, Categorical, Continuous, Domain, Ordinal
from deformer.errors import InputError

Values = npt.NDArray[Any]
Codes = npt.NDArray[np.float64]
Draw = Callable[[int], npt.NDArray[np.float64]]  # that many uniform numbers between 0 and 1

MOST_LEVELS = 256
FEW_LEVELS, ROWS_PER_FEW, ROWS_PER_LEVEL = 16, 10, 50
MOST_LABELS = 255
HEAVY_TAILS = 30.0
ROUNDING = 1e-12  # of a level, by which 0.1 * 3 is still 0.3
MASS, TIMES_THE_OTHERS = 0.05, 10  # of one number among others: its share, and how much more frequent it is


@dataclass(frozen=True)
class Levels:
    """Numbers of which there are few: each is a label of its own, gaps and all.

    Another number, met only in use, takes the code of the nearest level and, by `log_base`, a share of the one cell in
    `n_cells` + 1 that is expected off the levels, less the more gaps between levels it lies off.

    Examples:
        >>> Levels((0.0, 1.0, 10.0), 99).encode(np.array([10.0, np.nan, 2.0]))[0]
        array([ 2., nan,  1.])
    """

    levels: tuple[float, ...]
    n_cells: int

    @property
    def domain(self) -> Domain:
        return Binary() if len(self.levels) == 2 else Ordinal(len(self.levels))

    def encode(self, values: Values) -> tuple[Codes, Codes]:
        known, numbers = np.asarray(self.levels), values.astype(np.float64)
        below = np.searchsorted(known[1:], numbers, side="right")
        above = np.minimum(below + 1, len(known) - 1)
        codes = np.where(known[above] - numbers < numbers - known[below], above, below).astype(np.float64)
        codes[np.isnan(numbers)] = np.nan
        level = self.decode(codes)
        off = np.where(same_number(numbers, level), 0.0, np.nan_to_num(np.abs(numbers - level)))
        gap = (known[-1] - known[0]) / len(known) or abs(known[-1]) or 1.0  # so that units do not matter
        elsewhere = -math.log(2 * (self.n_cells + 1)) - 2 * (np.log(gap + off) - math.log(gap))
        return codes, np.where(off == 0, math.log(self.n_cells / (self.n_cells + 1)), elsewhere)

    def decode(self, codes: Codes, draw: Draw | None = None) -> Values:
        return _look_up(np.asarray(self.levels), codes, np.nan)


def same_number(numbers: Codes, levels: Codes) -> npt.NDArray[np.bool_]:
    """Say which numbers are a level as arithmetic rounds it or, unless it is a whole number, float32."""
    close = np.abs(numbers - levels) <= np.minimum(ROUNDING * np.abs(levels), 0.5)
    whole = (levels == np.floor(levels)) & (np.abs(levels) < 2**53)
    in_float32 = (_in_float32(numbers) == levels) | (numbers == _in_float32(levels))
    alike: npt.NDArray[np.bool_] = close | (in_float32 & ~whole)
    return alike


def _in_float32(x: Codes) -> Codes:
    with np.errstate(over="ignore"):
        return x.astype(np.float32).astype(np.float64)


def _spells(numbers: Codes, mass: float) -> npt.NDArray[np.bool_]:
    """Say which numbers are a point mass, or what float32 makes of it unless that is another whole number."""
    at_mass: npt.NDArray[np.bool_] = numbers == mass
    whole = mass.is_integer() and abs(mass) < 2**53
    return at_mass if whole else at_mass | (numbers == _in_float32(np.array([mass])))


@dataclass(frozen=True)
class Labels:
    """Labels without an order, the frequent ones by name, all others under one last code.

    Args:
        labels: Those with a code of their own.
        others: What else was seen, and how often.
    """

    labels: tuple[Hashable, ...]
    others: tuple[tuple[Hashable, int], ...] = ()

    @property
    def domain(self) -> Domain:
        return Categorical(len(self.labels) + 1)

    @property
    def seen(self) -> tuple[Hashable, ...]:
        """Give all labels of fit, those with a code of their own last."""
        return (*(other for other, _ in self.others), *self.labels)

    @cached_property
    def spelled(self) -> dict[str, Hashable]:
        """Give all labels of fit by how they are spelled; text before what is spelled like it."""
        return {str(v): v for v in self.seen} | {v: v for v in self.seen if isinstance(v, str)}

    @cached_property
    def _code(self) -> dict[Hashable, float]:
        return {label: float(i) for i, label in enumerate(self.labels)}

    @cached_property
    def _log_share(self) -> dict[Hashable, float]:
        """Give the shares of the last code, one more for what was never seen, under None."""
        total = sum(n for _, n in self.others) + 1
        return {label: math.log(n / total) for label, n in (*self.others, (None, 1))}

    def encode(self, values: Values) -> tuple[Codes, Codes]:
        """Give codes; a label that was never seen shares the last code, as if seen once in a wider world."""
        code, rest, share = self._code, float(len(self.labels)), self._log_share
        codes = np.array([np.nan if _missing(v) else code.get(v, rest) for v in values], dtype=np.float64)
        shares = [share.get(v, share[None]) if c == rest else 0.0 for v, c in zip(values, codes, strict=True)]
        return codes, np.array(shares, dtype=np.float64)

    def largest_shares(self) -> Codes:
        """Give, for each code, the largest share of its probability that one value has: 0 where none was ever seen."""
        shares = np.ones(len(self.labels) + 1)
        shares[-1] = self.others[0][1] / sum(n for _, n in self.others) if self.others else 0.0
        return shares

    def decode(self, codes: Codes, draw: Draw | None = None) -> Values:
        """Give labels; of those that share the last code the most frequent one, or by `draw` a random one."""
        names = np.empty(len(self.labels) + 1, dtype=object)
        names[:-1] = self.labels
        names[-1] = self.others[0][0] if self.others else (self.labels[0] if self.labels else None)
        values = _look_up(names, codes, None)
        shared = np.flatnonzero(codes == len(self.labels))
        if draw is not None and self.others and len(shared):
            counts = np.cumsum([n for _, n in self.others])
            picked = np.searchsorted(counts, draw(len(shared)) * counts[-1], side="right")
            for row, which in zip(shared, picked, strict=True):
                values[row] = self.others[which][0]
        return values


@dataclass(frozen=True)
class Numbers:
    """Real numbers, on a scale that is bent far out where tails are heavy.

    Args:
        loc, scale: Of the codes, (value - loc) / scale.
        bend: Whether a code is asinh of that.
        whole: Whether values are whole numbers, to which a draw is rounded.
        least, most: Range of the values but the point mass, which no draw leaves. None: there is no bound.
        point_mass: A value with a probability of its own, which stays exact. None: there is none.
    """

    loc: float = 0.0
    scale: float = 1.0
    bend: bool = False
    whole: bool = False
    least: float | None = None
    most: float | None = None
    point_mass: float | None = None

    @property
    def domain(self) -> Domain:
        return Continuous(point_mass=self.code_of_mass)

    @property
    def code_of_mass(self) -> float | None:
        """Give the code of the point mass."""
        if self.point_mass is None:
            return None
        t = (self.point_mass - self.loc) / self.scale
        return round(math.asinh(t), 9) if self.bend else t  # platforms do not agree on the last digit of asinh

    def encode(self, values: Values) -> tuple[Codes, Codes]:
        numbers = values.astype(np.float64)
        t = (numbers - self.loc) / self.scale
        log_base = np.nan_to_num(-math.log(self.scale) - (np.log(np.hypot(1, t)) if self.bend else np.zeros(len(t))))
        codes, mass = (np.arcsinh(t) if self.bend else t), self.code_of_mass
        if mass is None or self.point_mass is None:
            return codes, log_base
        at_mass = (codes == mass) | _spells(numbers, self.point_mass)
        return np.where(at_mass, mass, codes), np.where(at_mass, 0.0, log_base)

    def decode(self, codes: Codes, draw: Draw | None = None) -> Values:
        values = self.loc + self.scale * (np.sinh(codes) if self.bend else codes)
        if draw is not None:
            values = self.within(np.round(values) if self.whole else values)
        return values if self.point_mass is None else np.where(codes == self.code_of_mass, self.point_mass, values)

    def within(self, values: Values) -> Values:
        """Move values that lie outside of the range to its ends."""
        bounds = (-np.inf if self.least is None else self.least), (np.inf if self.most is None else self.most)
        inside: Values = np.clip(values, *bounds)
        return inside


@dataclass(frozen=True)
class Nothing:
    """A column that never had a value: whatever arrives there is missing."""

    scale: ClassVar[float] = math.nan  # so that no spread is told of what was never seen

    @property
    def domain(self) -> Domain:
        return Continuous()

    def encode(self, values: Values) -> tuple[Codes, Codes]:
        return np.full(len(values), np.nan), np.zeros(len(values))

    def decode(self, codes: Codes, draw: Draw | None = None) -> Values:
        return np.full(len(codes), np.nan)


@dataclass(frozen=True)
class Plain:
    """Values that are codes already: numbers of labels, or real numbers in the units of the domain.

    Raises:
        InputError: On encoding a value outside the domain.

    Examples:
        >>> Plain(Ordinal(3)).encode(np.array([2.0, np.nan]))[0]
        array([ 2., nan])
    """

    domain: Domain

    @property
    def levels(self) -> tuple[float, ...] | None:
        """Name the numbers that labels stand for; None where any real number may be."""
        n = getattr(self.domain, "n_labels", None)
        return None if n is None else tuple(float(label) for label in range(n))

    def encode(self, values: Values) -> tuple[Codes, Codes]:
        codes = values.astype(np.float64)
        known = codes[~np.isnan(codes)]
        n = getattr(self.domain, "n_labels", None)
        fits = np.isfinite(known) if n is None else (known >= 0) & (known < n) & (known == np.floor(known))
        if not fits.all():
            raise InputError(f"{known[~fits][0]!r} is no value of {self.domain}.")
        mass = getattr(self.domain, "point_mass", None)
        return codes if mass is None else np.where(_spells(codes, mass), mass, codes), np.zeros(len(codes))

    def decode(self, codes: Codes, draw: Draw | None = None) -> Values:
        return codes


Column = Levels | Labels | Numbers | Nothing | Plain
KINDS: dict[str, type[Column]] = {kind.__name__.lower(): kind for kind in (Levels, Labels, Numbers, Nothing)}


def values_of(column: Column) -> tuple[Hashable, ...] | None:
    """Name the values that a column's codes stand for; None where codes are real numbers."""
    if isinstance(column, Labels):
        rest = "(other)"
        while rest in column.spelled:
            rest = f"({rest})"
        return (*column.labels, rest)
    return getattr(column, "levels", None)


def has_order(column: Column) -> bool:
    """Say whether a column's values are numbers, which have means and quantiles."""
    return not isinstance(column.domain, Categorical)


def point_mass(column: Column) -> tuple[float, float] | None:
    """Give code and value of the number that has a probability of its own; None where there is none."""
    code: float | None = getattr(column.domain, "point_mass", None)
    return None if code is None else (code, float(column.decode(np.array([code]))[0]))


def _missing(value: Any) -> bool:
    return value is None or value != value


def _look_up(table: Values, codes: Codes, absent: Any) -> Values:
    known = ~np.isnan(codes)
    values = np.full(len(codes), absent, dtype=table.dtype)
    values[known] = table[codes[known].astype(np.int64)]
    return values


def numeric_column(values: Values, n_columns: int = 1, levels: bool = True) -> Levels | Numbers | Nothing:
    """Choose how to code one of several columns, which holds numbers, NaN where missing.

    With `levels` few distinct values become levels: up to sixteen with ten rows to each, more only with fifty, since
    else nearness tells of the rare ones; of others, one that is frequent becomes a point mass. A fourth moment far
    above a Gaussian's bends the scale, whose unit is then that of the middle half of the values, which outliers do not
    move.
    """
    known = np.sort(values[np.isfinite(values)].astype(np.float64))
    if not len(known):
        return Nothing()
    distinct, counts = np.unique(known, return_counts=True)
    learnable = max(min(FEW_LEVELS, len(known) / ROWS_PER_FEW), len(known) / ROWS_PER_LEVEL)
    if levels and len(distinct) <= min(MOST_LEVELS, max(2, learnable)):
        return Levels(tuple(distinct.tolist()), len(known) * n_columns)
    whole = bool((known == np.floor(known)).all())
    frequent, share = float(distinct[counts.argmax()]), counts.max() / len(known)
    mass = frequent if levels and share >= MASS and share * len(distinct) >= TIMES_THE_OTHERS else None
    rest = known if mass is None else known[known != mass]
    return Numbers(*_unit(rest), whole, float(rest[0]), float(rest[-1]), mass)


def _unit(known: Codes) -> tuple[float, float, bool]:
    """Choose loc and scale of numbers, and whether to bend it."""
    low, loc, high = np.quantile(known, [0.25, 0.5, 0.75])
    spread = deviation(known) if known.min() < known.max() else abs(float(known[0])) or 1.0
    kurtosis = float((((known - known.mean()) / spread) ** 4).mean())
    if kurtosis >= HEAVY_TAILS:
        return float(loc), float(high - low) / 1.35 or spread, True
    return float(known.mean()), spread, False


def deviation(known: Codes) -> float:
    """Give the standard deviation of numbers that are not all the same, whose squares may be too small for floats."""
    away = known - known.mean()
    largest = float(np.abs(away).max())
    return largest * float((away / largest).std()) or largest


def spell_label(value: Any, known: Collection[Hashable]) -> str:
    """Spell a label, which a file may hold as a number, beside holes as a float: an unknown 7.0 is a 7."""
    text = str(value)
    return str(int(value)) if text not in known and isinstance(value, float) and value.is_integer() else text


def label_column(values: Sequence[Any]) -> Labels:
    """Choose codes for labels: the most frequent ones get their own, in a stable sequence."""
    counts = Counter(v for v in values if not _missing(v))
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], str(pair[0])))
    own = sorted((label for label, _ in ranked[:MOST_LABELS]), key=str)
    return Labels(tuple(own), tuple(ranked[MOST_LABELS:]))


def to_dict(column: Column) -> dict[str, Any]:
    """Write a column as JSON can hold it."""
    return {"kind": type(column).__name__.lower(), **asdict(column)}


def from_dict(written: dict[str, Any]) -> Column:
    """Read what `to_dict` wrote, also through JSON, which turns tuples into lists."""
    fields = {name: tuples(value) for name, value in written.items() if name != "kind"}
    return KINDS[written["kind"]](**fields)
