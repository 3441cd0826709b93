"""Features: a name, an identity and a domain of values."""

import json
import math
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from deformer.errors import InputError


@dataclass(frozen=True)
class Binary:
    """Values 0 and 1."""

    @property
    def n_labels(self) -> int:
        return 2


@dataclass(frozen=True)
class Categorical:
    """Values 0, ..., n_labels - 1 without an order; `labels` gives their names."""

    n_labels: int
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_labels", _count("Categorical.n_labels", self.n_labels))
        if self.labels is not None and len(self.labels) != self.n_labels:
            raise InputError(f"Categorical names {len(self.labels)} labels, but has {self.n_labels}.")


@dataclass(frozen=True)
class Ordinal:
    """Values 0, ..., n_labels - 1 whose order carries meaning: counts, grey levels, grades."""

    n_labels: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_labels", _count("Ordinal.n_labels", self.n_labels))


@dataclass(frozen=True)
class Continuous:
    """Real values; the model sees (value - loc) / scale, and densities are per unit of the value itself.

    Args:
        point_mass: A value with a probability of its own: a zero among amounts, the end of a sensor's range. None:
            there is none.
    """

    loc: float = 0.0
    scale: float = 1.0
    point_mass: float | None = None

    def __post_init__(self) -> None:
        for name in ("loc", "scale"):  # NumPy's numbers cannot be written as JSON
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.point_mass is not None:
            object.__setattr__(self, "point_mass", float(self.point_mass))
            if not math.isfinite(self.point_mass):
                raise InputError(f"Continuous.point_mass must be finite, not {self.point_mass}.")
        if not (self.scale > 0 and abs(self.loc) < float("inf") and self.scale < float("inf")):
            raise InputError(
                f"Continuous needs a finite loc and a positive finite scale, not {self.loc}, {self.scale}."
            )


ROWS_AT_ONCE = 1 << 14  # that are checked; what is computed of a large table should not be as large
Domain = Binary | Categorical | Ordinal | Continuous
DOMAINS: dict[str, type[Domain]] = {d.__name__.lower(): d for d in (Binary, Categorical, Ordinal, Continuous)}


def _count(what: str, count: Any) -> int:
    """Give a number of labels, which may be one of NumPy's, as Python's own."""
    if isinstance(count, bool) or not isinstance(count, numbers.Integral) or count < 1:
        raise InputError(f"{what} must be a whole number of at least 1, not {count!r}.")
    return int(count)


@dataclass(frozen=True)
class Feature:
    """One column of a table, one pixel of an image, one sensor of a machine.

    Args:
        name: Name, unique within a schema.
        domain: The values it can take.
        coordinates: Position; features with coordinates know each other's offsets, and share their weights unless
            learned.
        learned: Whether it has an embedding and weights of its own. None: only if it has no coordinates.
    """

    name: str
    domain: Domain
    coordinates: tuple[float, ...] | None = None
    learned: bool | None = None

    def __post_init__(self) -> None:
        if self.coordinates is not None:
            object.__setattr__(self, "coordinates", tuple(map(float, self.coordinates)))
            if not self.coordinates or not all(map(math.isfinite, self.coordinates)):
                raise InputError(f"Feature {self.name!r} needs finite coordinates, not {self.coordinates}.")
        if self.learned is None:
            object.__setattr__(self, "learned", self.coordinates is None)
        if not self.learned and self.coordinates is None:
            raise InputError(f"Feature {self.name!r} has no identity: give it coordinates or learned=True.")


@dataclass(frozen=True)
class Schema:
    """The features of a row, in column order.

    Examples:
        >>> schema = Schema((Feature("colour", Categorical(3)), Feature("weight", Continuous(70.0, 10.0))))
        >>> Schema.from_json(schema.to_json()) == schema
        True
        >>> schema.index(["weight"])
        [1]
    """

    features: tuple[Feature, ...]
    _columns: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))
        object.__setattr__(self, "_columns", {f.name: i for i, f in enumerate(self.features)})
        if not self.features:
            raise InputError("A schema needs at least one feature.")
        if len(self._columns) < len(self.features):
            names = [f.name for f in self.features]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise InputError(f"Feature names must differ; these stand more than once: {', '.join(twice[:5])}.")
        if len({len(f.coordinates) for f in self.features if f.coordinates is not None}) > 1:
            raise InputError("All features with coordinates must have the same number of them.")

    def __len__(self) -> int:
        return len(self.features)

    @property
    def has_numbers(self) -> bool:
        return any(isinstance(f.domain, Continuous) for f in self.features)

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """Give (height, width) if the features are the pixels of one grey image, row by row, else None."""
        places = [f.coordinates for f in self.features]
        if any(p is None or len(p) != 2 for p in places):
            return None
        height, width = (int(max(p[axis] for p in places if p is not None)) + 1 for axis in (0, 1))
        if height * width != len(self):  # which may be far more than there is memory for
            return None
        raster = [(float(r), float(c)) for r in range(height) for c in range(width)]
        return (height, width) if places == raster else None

    @property
    def names(self) -> list[str]:
        return [f.name for f in self.features]

    def index(self, names: Iterable[str]) -> list[int]:
        """Look up the column numbers of features by name.

        Raises:
            InputError: A name is not in the schema.
        """
        names = list(names)
        unknown = [n for n in names if n not in self._columns]
        if unknown:
            raise InputError(
                f"No feature is called {unknown[0]!r}; the schema has {len(self)}: {', '.join(self.names[:8])}"
                f"{', ...' if len(self) > 8 else ''}."
            )
        return [self._columns[n] for n in names]

    def check(self, values: Shaped[Tensor, "batch features"], observed: Bool[Tensor, "batch features"]) -> None:
        """Check that every observed value lies in its feature's domain.

        Raises:
            InputError: The number of columns is wrong, or a value lies outside; the message names its feature, the
                value and what was expected.
        """
        if values.shape[-1] != len(self):
            raise InputError(f"Rows have {values.shape[-1]} columns; the schema has {len(self)} features.")
        n_labels = torch.tensor([getattr(f.domain, "n_labels", 0) for f in self.features], device=values.device)
        for start in range(0, len(values), ROWS_AT_ONCE):
            some, known = (t[start : start + ROWS_AT_ONCE] for t in (values, observed))
            fits = torch.isfinite(some)
            fits &= (n_labels == 0) | ((some >= 0) & (some < n_labels) & (some == some.floor()))
            bad = (~fits & known).nonzero()
            if len(bad):
                row, column = bad[0].tolist()
                raise InputError(
                    f"Feature {self.names[column]!r} holds {some[row, column].item():g} in row {start + row}; "
                    f"expected {_expected(self.features[column].domain)} (a missing value is NaN in a table)."
                )

    def to_json(self) -> str:
        """Write the schema as JSON, without loss."""
        return json.dumps([_feature_to_dict(f) for f in self.features])

    @classmethod
    def from_json(cls, text: str) -> "Schema":
        """Read what `to_json` wrote.

        Raises:
            InputError: The text is not a schema.
        """
        try:
            return cls(tuple(_feature_from_dict(d) for d in json.loads(text)))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"This is not a schema: {error}") from error


def _expected(domain: Domain) -> str:
    if isinstance(domain, Continuous):
        return "a finite number"
    return f"a whole number from 0 to {domain.n_labels - 1}"


def _feature_to_dict(feature: Feature) -> dict[str, Any]:
    kind = type(feature.domain).__name__.lower()
    return {**asdict(feature), "domain": {"kind": kind, **asdict(feature.domain)}}


def _feature_from_dict(d: dict[str, Any]) -> Feature:
    domain: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in d["domain"].items()
    }
    coordinates = None if d["coordinates"] is None else tuple(d["coordinates"])
    return Feature(d["name"], DOMAINS[domain.pop("kind")](**domain), coordinates, d["learned"])


def table_schema(domains: Sequence[Domain], names: Sequence[str] | None = None) -> Schema:
    """Make the schema of a table: every feature has an identity of its own."""
    names = [f"x{i}" for i in range(len(domains))] if names is None else list(names)
    return Schema(tuple(Feature(n, d) for n, d in zip(names, domains, strict=True)))


def image_schema(height: int, width: int, domain: Domain, channels: int = 1) -> Schema:
    """Make the schema of an image: a feature's identity is its (row, column), plus (channel) if there are several.

    Examples:
        >>> image_schema(28, 28, Binary()).names[-1]
        'r27c27'
    """
    for what, count in (("height", height), ("width", width), ("channels", channels)):
        _count(what, count)
    many = channels > 1
    return Schema(
        tuple(
            Feature(f"r{r}c{c}" + f"k{k}" * many, domain, (float(r), float(c)) + (float(k),) * many)
            for r in range(height)
            for c in range(width)
            for k in range(channels)
        )
    )
