"""Streaming: a score after each arriving value, in whatever order values arrive, at the cost of one value."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from deformer.data.columns import Codes
from deformer.data.frames import Codec
from deformer.data.schema import Continuous, Domain, Schema
from deformer.data.table import as_rows
from deformer.data.times import absent
from deformer.errors import InputError
from deformer.nn.heads import Conditionals
from deformer.nn.model import DEformer, State
from deformer.tasks.density import log_prob_terms
from deformer.tasks.predictive import Predictive, expected_nats, shared_codes

FARTHEST = 1e15  # in units of a column's spread; beyond, densities in float32 are 0
# Nats above a threshold that raise no alarm: of what many ordinary rows have in common, the threshold is the very
# excess, which one value at a time is computed by other means than many rows are, and so differs in its last digits.
ROUNDING = 1e-4


@dataclass(frozen=True)
class Surprise:
    """How surprising one arriving value is.

    Args:
        name: The feature that arrived.
        nats: -ln p(value | earlier values).
        running_nats: -ln p(all values so far).
        excess_nats: `running_nats` minus what the model expected for each feature before it arrived; around 0 for a
            row like those of training, whichever values have arrived.
        tail: Probability of a value at least as unusual: a label no likelier, a number as far out.
        n_observed: Number of values so far.
        alarm: Whether `excess_nats` exceeds the threshold for this many values. None: there are no thresholds.
    """

    name: str
    nats: float
    running_nats: float
    excess_nats: float
    tail: float
    n_observed: int
    alarm: bool | None = None


@dataclass(frozen=True)
class Alarms:
    """Thresholds of `excess_nats` by the number of values that have arrived.

    Args:
        thresholds: `thresholds[n]` is for n + 1 values.
        rate: The share of false alarms requested from `calibrate`.
    """

    thresholds: tuple[float, ...]
    rate: float

    def __call__(self, excess_nats: float, n_observed: int) -> bool:
        return excess_nats > self.thresholds[min(n_observed, len(self.thresholds)) - 1] + ROUNDING


@dataclass(frozen=True)
class Arrival:
    """One value on its way into a session.

    Args:
        log_base: ln p(value | code); of a number, the log-Jacobian of its scale, which surprises nobody.
    """

    name: str
    feature: int
    code: float
    log_base: float
    continuous: bool


@dataclass(frozen=True)
class Reading:
    """What a session has been told, and the sums over it; with the model enough to rebuild the session exactly.

    Args:
        features, codes: What arrived, in its sequence, as column numbers and as the model's values.
    """

    features: tuple[int, ...] = ()
    codes: tuple[float, ...] = ()
    running_nats: float = 0.0
    expected_nats: float = 0.0

    def add(
        self, new: Arrival, nats_of_code: float, expected_nats: float, tail: float, alarms: Alarms | None
    ) -> tuple["Reading", Surprise]:
        """Take in a value that the model has weighed."""
        features, codes = (*self.features, new.feature), (*self.codes, new.code)
        nats = nats_of_code - new.log_base
        expected = self.expected_nats + expected_nats - (new.log_base if new.continuous else 0.0)
        after = Reading(features, codes, self.running_nats + nats, expected)
        excess, n = after.running_nats - expected, len(features)
        alarm = None if alarms is None else alarms(excess, n)
        return after, Surprise(new.name, nats, after.running_nats, excess, tail, n, alarm)


@dataclass(frozen=True)
class Vocabulary:
    """The names of a model's features and how their values are coded.

    Args:
        codec: Of a table model. None: values are the schema's own.
    """

    model: DEformer
    codec: Codec

    @classmethod
    def of(cls, model: DEformer, codec: Codec | None = None) -> "Vocabulary":
        return cls(model, Codec.of_schema(model.schema) if codec is None else codec)

    @cached_property
    def shared(self) -> Float[Tensor, "features 2"]:
        """Give what `shared_codes` gives for all features."""
        return shared_codes(self.codec.columns)

    def feature(self, name: Any) -> int:
        """Look up a feature; columns of tables whose names are numbers go by their text."""
        return self.model.schema.index([str(name)])[0]

    def encode(self, name: Any, value: Any) -> "Arrival":
        """Look up a feature and code its value.

        Raises:
            InputError: An unknown name, a missing value, or one outside the domain or too far out to have a density.
        """
        name, feature = str(name), self.feature(name)
        try:
            code, log_base = self.codec.encode_cell(feature, value)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{name!r}: {error}") from error
        if math.isnan(code):
            empty = self.codec.is_empty(feature) and not absent(value)
            why = "fit saw no value of it" if empty else "a missing value is not an observation"
            raise InputError(f"{name!r}: {why}; leave it out.")
        domain = self.codec.columns[feature].domain
        if not are_near(domain, np.array([code]), np.array([log_base])).all():
            raise InputError(f"{name!r}: {value!r} lies too far out to be scored.")
        continuous = isinstance(domain, Continuous)
        return Arrival(name, feature, code, log_base, continuous)


def are_near(domain: Domain, codes: Codes, log_base: Codes | float = 0.0) -> npt.NDArray[np.bool_]:
    """Say which codes are missing, the point mass, or near enough to have a density.

    Args:
        log_base: ln p(value | code), which must not swamp that density.
    """
    loc, scale, mass = (getattr(domain, name, None) for name in ("loc", "scale", "point_mass"))
    far = np.abs(codes - (loc or 0.0)) / (scale or 1.0) >= FARTHEST
    at_mass = codes == (np.nan if mass is None else mass)
    near: npt.NDArray[np.bool_] = (~far | at_mass) & (np.abs(log_base) < FARTHEST)
    return near


def check_new(arrival: Arrival, reading: Reading) -> None:
    """Refuse a second value of a feature."""
    if arrival.feature in reading.features:
        raise InputError(f"{arrival.name!r} has been observed already; a feature has one value a session.")


def state_of(model: DEformer, reading: Reading, but: int | None = None) -> State:
    """Observe what has arrived, but for a feature that must not tell about itself."""
    state = model.start(1, room=len(model.schema))
    told = [(f, code) for f, code in zip(reading.features, reading.codes, strict=True) if f != but]
    if not told:
        return state
    features, codes = zip(*told, strict=True)
    at = torch.tensor([features], device=model.device)
    return state.observe(at, torch.tensor([codes], dtype=torch.float64, device=model.device))


class Session:
    """One row whose values arrive one by one, in any order.

    After every value, the running score equals that of the row's observed part, scored at once in this order.

    Args:
        model: The model of the row.
        codec: How a table's values are coded. None: values are those of the schema.
        alarms: Thresholds from `calibrate`. None: no alarms.

    Examples:
        >>> from deformer import DEformer, Binary, image_schema
        >>> session = Session(DEformer(image_schema(2, 2, Binary())))
        >>> round(session.observe("r1c1", 1).nats, 4)
        0.6931
        >>> session.predict("r0c0").probabilities()
        array([[0.5, 0.5]])
    """

    def __init__(self, model: DEformer, codec: Codec | None = None, *, alarms: Alarms | None = None) -> None:
        self.words, self.alarms, self.reading = Vocabulary.of(model, codec), alarms, Reading()
        self._state: State | None = model.start(1, room=len(model.schema))

    @property
    def observed(self) -> tuple[str, ...]:
        """The names of the arrived features, in their sequence."""
        names = self.words.model.schema.names
        return tuple(names[f] for f in self.reading.features)

    def _open(self) -> State:
        if self._state is None:
            raise InputError("This session is closed.")
        return self._state

    def observe(self, name: Any, value: Any) -> Surprise:
        """Observe one value and return how surprising it is.

        Raises:
            InputError: A closed session, an unknown name, a feature seen before, a missing value, or one outside the
                domain or too far out to have a density. The session is unchanged.
        """
        state, device = self._open(), self.words.model.device
        arrival = self.words.encode(name, value)
        check_new(arrival, self.reading)
        at = torch.tensor([[arrival.feature]], device=device)
        x = torch.tensor([[arrival.code]], dtype=torch.float64, device=device)
        state, conditionals = state.observe_and_predict(at, x, at, beforehand=True)
        nats, expected, tail = (float(w) for w in weigh(conditionals, x, self.words.shared[at.cpu()]))
        self.reading, surprise = self.reading.add(arrival, nats, expected, tail, self.alarms)
        self._state = state
        return surprise

    def predict(self, name: Any) -> Predictive:
        """Return p(feature | all other values so far)."""
        state, feature = self._open(), self.words.feature(name)
        if feature in self.reading.features:
            state = state_of(self.words.model, self.reading, but=feature)
        asked = torch.tensor([[feature]], device=self.words.model.device)
        return Predictive(self.words.codec.columns[feature], state.predict(asked))

    def rank_unseen(self) -> dict[str, float]:
        """Rank features that have not arrived by the entropy of their predictions in nats, least certain first.

        Features of which fit saw no value are left out.

        Entropies of a table's numbers are those of the model's codes, so units do not matter; without a codec, they
        are in the units of the schema.
        """
        schema, state = self.words.model.schema, self._open()
        arrived, codec = set(self.reading.features), self.words.codec
        rest = [i for i in range(len(schema)) if i not in arrived and not codec.is_empty(i)]
        if not rest:
            return {}
        entropy = state.predict(torch.tensor([rest], device=self.words.model.device)).entropy()[0].tolist()
        return dict(sorted(zip((schema.names[i] for i in rest), entropy, strict=True), key=lambda pair: -pair[1]))

    def rank_seen(self) -> dict[str, float]:
        """Rank values that have arrived by -ln p(code | all others so far) in nats, most surprising first."""
        self._open()
        features = self.reading.features
        if not features:
            return {}
        model, n = self.words.model, len(features)
        values = torch.full((n, len(model.schema)), torch.nan, dtype=torch.float64)
        values[:, list(features)] = torch.tensor(self.reading.codes, dtype=torch.float64)
        orders = torch.tensor([[*features[:i], *features[i + 1 :], features[i]] for i in range(n)])
        terms = log_prob_terms(model, values, orders=orders).gather(1, orders[:, -1:])[:, 0]
        return dict(sorted(zip(self.observed, (-terms).tolist(), strict=True), key=lambda pair: -pair[1]))

    def fork(self) -> "Session":
        """Return an independent copy of this session, for what-if questions."""
        self._open()
        branch = Session.__new__(Session)
        branch.__dict__.update(self.__dict__)
        return branch

    def snapshot(self) -> dict[str, Any]:
        """Return what was observed, as JSON can hold it."""
        self._open()
        return dataclasses.asdict(self.reading)

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Return to a snapshot of this session, or of another one with the same model."""
        self._open()
        reading = read_snapshot(snapshot, self.words.model.schema)
        state = state_of(self.words.model, reading)
        self.reading, self._state = reading, state

    def close(self) -> None:
        """Free the memory of this session; using it afterwards is an error."""
        self._state = None


def read_snapshot(snapshot: Mapping[str, Any], schema: Schema) -> Reading:
    """Check and read what `Session.snapshot` wrote.

    Raises:
        InputError: It is none of a model of this schema.
    """
    try:
        fields = {f.name: snapshot[f.name] for f in dataclasses.fields(Reading)}
        features, codes = tuple(int(f) for f in fields["features"]), tuple(float(c) for c in fields["codes"])
        sums = float(fields["running_nats"]), float(fields["expected_nats"])
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise InputError(f"This is not a snapshot: {error!r}") from error
    fits = len(features) == len(codes) == len(set(features)) and all(0 <= f < len(schema) for f in features)
    if not fits or not np.isfinite([*codes, *sums]).all():
        raise InputError("This snapshot does not belong to a session of this model.")
    row = torch.full((1, len(schema)), torch.nan, dtype=torch.float64)
    row[0, list(features)] = torch.tensor(codes, dtype=torch.float64)
    as_rows(row, schema)
    return Reading(features, codes, *sums)


def weigh(conditionals: Conditionals, x: Tensor, shared: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give -ln p(code), what was expected of the value, and the tail probability, (batch, 1) each."""
    return -conditionals.log_prob(x), expected_nats(conditionals, shared), conditionals.tail(x)


def as_tensors(
    readings: Sequence[Reading], n_features: int, device: torch.device
) -> tuple[Int[Tensor, "readings longest"], Float[Tensor, "readings longest"], Bool[Tensor, "readings longest"]]:
    """Give features, codes and a mask of what is there; shorter readings are filled up with features they lack."""
    longest = max(len(r.features) for r in readings)
    orders = [[*r.features, *sorted(set(range(n_features)) - set(r.features))][:longest] for r in readings]
    codes = [[*r.codes, *[0.0] * (longest - len(r.codes))] for r in readings]
    present = torch.arange(longest) < torch.tensor([len(r.features) for r in readings])[:, None]
    told = torch.tensor(orders, device=device), torch.tensor(codes, dtype=torch.float64, device=device)
    return *told, present.to(device)
