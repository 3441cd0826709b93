"""Heads: from processed queries to conditionals, each feature by the family of its domain."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from deformer.data.schema import Binary, Continuous, Domain, Ordinal, Schema
from deformer.errors import InputError
from deformer.nn.families import Bernoulli, Family, Inflated, Labels, Mixture, Values
from deformer.nn.linear import linear_per_slot
from deformer.nn.packed import Packed, PackedInflated
from deformer.nn.units import Units

Queries = Float[Tensor, "batch queries"]
Given = Shaped[Tensor, "batch queries"]


@dataclass(frozen=True)
class Conditionals:
    """The distributions p(x_i | evidence) of a batch of queries, in the units of the data.

    Values, probabilities and moments are (batch, queries), in the sequence in which the features were queried.
    """

    packed: tuple[Packed, ...]
    shape: tuple[int, int]

    def _map(self, one: Callable[[Packed, Tensor | None], Values], x: Given | None = None) -> Queries:
        flat = None if x is None else x.reshape(-1)
        if len(self.packed) == 1 and self.packed[0].at is None:
            return one(self.packed[0], flat).view(self.shape)
        answers = [one(p, None if flat is None else flat[p.at]) for p in self.packed]
        dtype = functools.reduce(torch.promote_types, (a.dtype for a in answers))
        out = answers[0].new_zeros(self.shape[0] * self.shape[1], dtype=dtype)
        for p, answer in zip(self.packed, answers, strict=True):
            out = out.index_put((p.at,), answer.to(dtype))
        return out.view(self.shape)

    def repeat(self, n: int) -> "Conditionals":
        """Repeat every query n times in succession: (batch, n * queries)."""
        return Conditionals(tuple(p.repeat(n) for p in self.packed), (self.shape[0], n * self.shape[1]))

    def only(self, query: int, rows: Int[Tensor, "some"]) -> "Conditionals":
        """Keep one query of some rows: (some, 1)."""
        wanted = (rows * self.shape[1] + query).to(self.packed[0].params.device)
        for p in self.packed:
            at = wanted if p.at is None else torch.searchsorted(p.at, wanted)
            if p.at is None or (len(p.at) and bool((p.at[at.clamp(max=len(p.at) - 1)] == wanted).all())):
                return Conditionals((p.take(at),), (len(rows), 1))
        raise InputError("Of a query there must be one kind of answer.")

    def as_rows(self) -> "Conditionals":
        """Make every query a row of its own, (batch * queries, 1), if all are for the same kind of feature."""
        [packed] = (p for p in self.packed if len(p.params))
        return Conditionals((packed,), (len(packed.params), 1))

    @staticmethod
    def joined(parts: "Sequence[Conditionals]") -> "Conditionals":
        """Concatenate the rows of several results of `only` or `as_rows`."""
        packed = [part.packed[0] for part in parts]
        params = torch.cat([p.params for p in packed])
        units = [p.units for p in packed if p.units is not None]
        together = replace(packed[0], params=params, at=None, units=torch.cat(units) if units else None)
        return Conditionals((together,), (len(params), 1))

    def probabilities(self, n_labels: int) -> Float[Tensor, "tokens labels"]:
        """Return every label's probability for queries of one feature with labels, flattened.

        Raises:
            InputError: The queries are for numbers.
        """
        packed = next(p for p in self.packed if len(p.params))
        if not isinstance(packed.family, Bernoulli | Labels):
            raise InputError("Numbers have no probabilities; ask for quantiles or the cdf.")
        log_p: Tensor = packed.family.log_probs(packed.params)
        return log_p[:, :n_labels].exp()

    def log_prob(self, values: Given) -> Queries:
        """Return ln p(values | evidence) in nats; for continuous features, a log-density per unit of the value."""
        return self._map(lambda p, x: p.log_prob(_given(x)), values)

    def cdf(self, values: Given) -> Queries:
        """Return P(feature <= value | evidence)."""
        return self._map(lambda p, x: p.cdf(_given(x)), values)

    def tail(self, values: Given) -> Queries:
        """Return the probability of a value at least as unusual: a label no likelier, a number as far out."""
        return self._map(lambda p, x: p.tail(_given(x)), values)

    def sample(self, generator: torch.Generator, temperature: float = 1.0) -> Queries:
        """Draw a value per query. Temperatures below 1 make likely values likelier."""
        if not temperature > 0:
            raise InputError(f"temperature must be positive, not {temperature}.")
        return self._map(lambda p, _: p.sample(generator, temperature))

    def mean(self) -> Queries:
        """Return the expected value; for a categorical feature, the expected label number (seldom meaningful)."""
        return self._map(lambda p, _: p.mean())

    def variance(self) -> Queries:
        """Return the variance, in squared units of the data; for labels, that of their numbers."""
        return self._map(lambda p, _: p.variance())

    def mode(self) -> Queries:
        """Return the likeliest value."""
        return self._map(lambda p, _: p.mode())

    def entropy(self) -> Queries:
        """Return the entropy in nats; for continuous features, differential entropy in units of the data."""
        return self._map(lambda p, _: p.entropy())


def _given(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


def family_of(domain: Domain, n_components: int, mixture: str) -> Family:
    """Choose the family that models a domain."""
    if isinstance(domain, Binary):
        return Bernoulli()
    if isinstance(domain, Continuous):
        kind = Mixture if domain.point_mass is None else Inflated
        return kind(n_components, "gaussian" if mixture == "gaussian" else "logistic")
    if isinstance(domain, Ordinal):
        return Labels(domain.n_labels, ordered=True)
    return Labels(_padded(domain.n_labels))


def _padded(n_labels: int) -> int:
    """Round up to a power of two, so that features with similar numbers of labels share one batched product."""
    return 1 << (n_labels - 1).bit_length()


class SlotHead(nn.Module):
    """The linear map from queries to the parameters of one family.

    A slot is a set of weights: features with only coordinates share one, features with a learned identity have their
    own.
    """

    slots: Tensor
    limits: Tensor

    def __init__(self, schema: Schema, columns: list[int], family: Family, d_model: int) -> None:
        super().__init__()
        self.family, self.columns = family, columns
        features = [schema.features[c] for c in columns]
        n_own = sum(bool(f.learned) for f in features)
        n_slots = n_own + (n_own < len(features))
        own = iter(range(n_own))
        slots = torch.zeros(len(schema), dtype=torch.long)
        slots[columns] = torch.tensor([next(own) if f.learned else n_slots - 1 for f in features])
        self.register_buffer("slots", slots, persistent=False)
        n_labels = [getattr(f.domain, "n_labels", 0) for f in features]
        self.narrow = isinstance(family, Labels) and min(n_labels) < family.n_labels
        limits = torch.zeros(n_slots, dtype=torch.long).scatter(0, slots[columns], torch.tensor(n_labels))
        self.register_buffer("limits", limits, persistent=False)
        self.weight = nn.Parameter(torch.zeros(n_slots, family.n_params, d_model))
        self.bias = nn.Parameter(torch.zeros(n_slots, family.n_params))
        if isinstance(family, Mixture):
            self.bias.data[:, family.n_components : 2 * family.n_components] = torch.linspace(
                -1.5, 1.5, family.n_components
            )

    def forward(self, h: Float[Tensor, "tokens d_model"], features: Int[Tensor, "tokens"]) -> Tensor:
        slot = self.slots[features]
        # Numbers need more digits than bfloat16 has: components may be far narrower than they are apart.
        exact = isinstance(self.family, Mixture)
        with torch.autocast(h.device.type, enabled=False) if exact else contextlib.nullcontext():
            params = linear_per_slot(h.to(self.weight.dtype) if exact else h, slot, self.weight, self.bias)
        params = params.float() if params.dtype == torch.bfloat16 else params
        if self.narrow:
            labels = torch.arange(params.shape[1], device=h.device)
            params = params.masked_fill(labels >= self.limits[slot][:, None], -torch.inf)
        return params

    @torch.no_grad()
    def fit_marginals(self, values: Iterable[Tensor]) -> None:
        """Set the biases so that zero weights give each slot's marginal distribution; there is one tensor a column."""
        pooled: dict[int, list[Tensor]] = {}
        for slot, x in zip(self.slots[self.columns].tolist(), values, strict=True):
            pooled.setdefault(slot, []).append(x.to(self.bias.dtype))
        for slot, parts in pooled.items():
            if len(together := torch.cat(parts)):
                self.bias[slot] = self.family.marginal(together).to(self.bias)


class Head(nn.Module):
    """All slot heads of a schema: one per family that occurs."""

    kind_of: Tensor

    def __init__(self, schema: Schema, d_model: int, n_components: int = 8, mixture: str = "logistic") -> None:
        super().__init__()
        families = [family_of(f.domain, n_components, mixture) for f in schema.features]
        kinds = list(dict.fromkeys((f, self._share(schema, i, f)) for i, f in enumerate(families)))
        columns = [[i for i, f in enumerate(families) if (f, self._share(schema, i, f)) == kind] for kind in kinds]
        self.heads = nn.ModuleList(
            SlotHead(schema, c, kind[0], d_model) for kind, c in zip(kinds, columns, strict=True)
        )
        kind_of = torch.zeros(len(schema), dtype=torch.long)
        for k, members in enumerate(columns):
            kind_of[members] = k
        self.register_buffer("kind_of", kind_of, persistent=False)
        self.units = Units(schema)

    @staticmethod
    def _share(schema: Schema, column: int, family: Family) -> int:
        """Tell shared categorical slots of different sizes apart, which one bias could not serve."""
        feature = schema.features[column]
        shared_labels = isinstance(family, Labels) and not feature.learned
        return getattr(feature.domain, "n_labels", 0) if shared_labels else 0

    def forward(
        self, h: Float[Tensor, "batch queries d_model"], features: Int[Tensor, "batch queries"]
    ) -> Conditionals:
        flat, columns = h.flatten(0, 1), features.flatten()
        shape = (features.shape[0], features.shape[1])
        if len(self.heads) == 1:
            return Conditionals((self._pack(0, flat, columns, None),), shape)
        kinds = self.kind_of[columns]
        where = [(kinds == k).nonzero()[:, 0] for k in range(len(self.heads))]
        return Conditionals(tuple(self._pack(k, flat[at], columns[at], at) for k, at in enumerate(where)), shape)

    def _pack(self, kind: int, h: Tensor, features: Tensor, at: Tensor | None) -> Packed:
        head = self.heads[kind]
        assert isinstance(head, SlotHead)
        units = self.units.table[features] if isinstance(head.family, Mixture) else None
        made = PackedInflated if isinstance(head.family, Inflated) else Packed
        return made(head.family, head(h, features), at, units)

    @torch.no_grad()
    def fit_marginals(self, values: Shaped[Tensor, "rows features"], observed: Bool[Tensor, "rows features"]) -> None:
        """Start every feature at its marginal distribution in the data."""
        for head in self.heads:
            assert isinstance(head, SlotHead)
            known = ((c, values[observed[:, c], c].double()) for c in head.columns)
            head.fit_marginals(
                self.units.standardise(x, c).masked_fill(self.units.at_mass(x, c), torch.nan) for c, x in known
            )
