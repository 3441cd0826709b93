"""A pool of sessions: what arrives for thousands of rows is taken in together, in bounded memory."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deformer.data.frames import Codec
from deformer.errors import InputError
from deformer.nn.model import DEformer
from deformer.nn.slots import Slots
from deformer.tasks.density import batches
from deformer.tasks.predictive import Predictive, ask_together
from deformer.tasks.streaming import (
    Alarms,
    Arrival,
    Reading,
    Surprise,
    Vocabulary,
    as_tensors,
    check_new,
    read_snapshot,
    state_of,
    weigh,
)

SESSIONS_AT_ONCE = 256  # whose states are copied for one step
Numbered = tuple[int, tuple[Hashable, Arrival]]


class SessionPool:
    """Many sessions at once, each equivalent to a `Session`, computed in batches.

    States are kept in at most `memory` bytes. Of the other sessions, the least recently used, only the observed values
    are kept; their states are rebuilt from these when needed, at the cost of one pass over them.

    Args:
        model: The model of the sessions' rows.
        codec: How a table's values are coded. None: values are those of the schema.
        alarms: Thresholds from `calibrate`. None: no alarms.
        memory: Bytes for states; at least one state is kept.

    Examples:
        >>> from deformer import DEformer, Binary, image_schema
        >>> pool = SessionPool(DEformer(image_schema(2, 2, Binary())))
        >>> pool.open("first"), pool.open("second")
        ('first', 'second')
        >>> [s.n_observed for s in pool.observe([("first", "r0c0", 1), ("second", "r1c1", 0), ("first", "r0c1", 0)])]
        [1, 1, 2]
    """

    def __init__(
        self,
        model: DEformer,
        codec: Codec | None = None,
        *,
        alarms: Alarms | None = None,
        memory: int = 2**28,
    ) -> None:
        self.words, self.alarms = Vocabulary.of(model, codec), alarms
        self.capacity = max(1, memory // Slots.bytes_per_slot(model))
        self._slots: Slots | None = None
        self._free: list[int] = []
        self._slot_of: OrderedDict[Hashable, int] = OrderedDict()  # the least recently used first
        self._readings: dict[Hashable, Reading] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._readings)

    def __contains__(self, name: Hashable) -> bool:
        return name in self._readings

    @property
    def n_cached(self) -> int:
        """The number of sessions whose state is kept."""
        return len(self._slot_of)

    def open(self, name: Hashable = None, snapshot: Mapping[str, Any] | None = None) -> Hashable:
        """Open a session, or continue from a snapshot, and return its name.

        Args:
            name: Name of the session. None: a number is chosen.
        """
        while name is None:
            name, self._next = (self._next if self._next not in self else None), self._next + 1
        if name in self:
            raise InputError(f"There is a session {name!r} already.")
        reading = Reading() if snapshot is None else read_snapshot(snapshot, self.words.model.schema)
        self._readings[name] = reading
        return name

    def reading(self, name: Hashable) -> Reading:
        """Return the observed values of a session and their sums.

        Raises:
            InputError: There is no such session.
        """
        if name not in self:
            raise InputError(f"There is no session {name!r}.")
        return self._readings[name]

    def close(self, name: Hashable) -> None:
        """Forget a session."""
        self.reading(name)
        del self._readings[name]
        if name in self._slot_of:
            self._free.append(self._slot_of.pop(name))

    def observe(self, arrivals: Iterable[tuple[Hashable, Any, Any]]) -> list[Surprise]:
        """Observe (session, feature, value) triples; those of one session are observed in the given sequence.

        Raises:
            InputError: One of them is invalid; then none is observed.
        """
        coded = [(name, self.words.encode(feature, value)) for name, feature, value in arrivals]
        self._check(coded)
        surprises: dict[int, Surprise] = {}
        waiting = list(enumerate(coded))
        while waiting:
            now, waiting = self._next_round(waiting)
            surprises.update(zip((i for i, _ in now), self._observe([a for _, a in now]), strict=True))
        return [surprises[i] for i in range(len(coded))]

    def _next_round(self, waiting: list[Numbered]) -> tuple[list[Numbered], list[Numbered]]:
        """Split off the first arrivals of as many sessions as there are slots."""
        names: set[Hashable] = set()
        now: list[Numbered] = []
        later: list[Numbered] = []
        for numbered in waiting:
            name = numbered[1][0]
            ready = name not in names and len(names) < min(self.capacity, SESSIONS_AT_ONCE)
            names.add(name)
            (now if ready else later).append(numbered)
        return now, later

    def _check(self, coded: Sequence[tuple[Hashable, Arrival]]) -> None:
        fresh: set[tuple[Hashable, int]] = set()
        for name, arrival in coded:
            check_new(arrival, self.reading(name))
            if (name, arrival.feature) in fresh:
                raise InputError(f"{arrival.name!r} arrives twice in session {name!r}.")
            fresh.add((name, arrival.feature))

    def _observe(self, coded: Sequence[tuple[Hashable, Arrival]]) -> list[Surprise]:
        """Take in one value for each of some sessions, no more than there are slots."""
        device = self.words.model.device
        features = torch.tensor([[a.feature] for _, a in coded], device=device)
        codes = torch.tensor([[a.code] for _, a in coded], dtype=torch.float64, device=device)
        store, slots = self._cached([name for name, _ in coded])
        state, conditionals = store.take(slots, 1).observe_and_predict(features, codes, features, beforehand=True)
        weighed = [w[:, 0].tolist() for w in weigh(conditionals, codes, self.words.shared[features.cpu()])]
        store.put(slots, state, torch.ones_like(slots))
        surprises = []
        for (name, arrival), nats, expected, tail in zip(coded, *weighed, strict=True):
            self._readings[name], surprise = self._readings[name].add(arrival, nats, expected, tail, self.alarms)
            surprises.append(surprise)
        return surprises

    def predict(self, asked: Sequence[tuple[Hashable, Any]]) -> list[Predictive]:
        """Return p(feature | all other observed values) for (session, feature) pairs."""
        return [self.ask(name, [feature], lambda predictive: [predictive])[0] for name, feature in asked]

    def ask(
        self, name: Hashable, features: Sequence[Any], question: Callable[[Predictive], Sequence[Any]]
    ) -> list[Any]:
        """Ask about several features of one session, each given all other observed values."""
        reading, columns = self.reading(name), self.words.codec.columns
        asked = [self.words.feature(feature) for feature in features]
        answers = {}
        for feature in set(asked).intersection(reading.features):
            state = state_of(self.words.model, reading, but=feature)
            answers[feature] = ask_together([state], columns, [feature], question)[0]
        if free := [feature for feature in asked if feature not in answers]:
            store, slots = self._cached([name])
            told = ask_together([store.take(slots, 0)], columns, free, question)
            answers.update(zip(free, told, strict=True))
        return [answers[feature] for feature in asked]

    def _cached(self, names: Sequence[Hashable]) -> tuple[Slots, Tensor]:
        """Give the slots of some different sessions, rebuilding those that have none."""
        if self._slots is None:
            self._slots = Slots(self.words.model, self.capacity)
            self._free = list(range(self.capacity))
        for name in names:
            if name in self._slot_of:
                self._slot_of.move_to_end(name)
        absent = [name for name in names if name not in self._slot_of]
        for name in absent:
            slot = self._free.pop() if self._free else self._slot_of.popitem(last=False)[1]
            self._slot_of[name] = slot
        device = self.words.model.device
        if absent:
            try:
                self._rebuild(self._slots, torch.tensor([self._slot_of[n] for n in absent], device=device), absent)
            except BaseException:  # a slot that was not filled must not be taken for a session
                self._free += [self._slot_of.pop(name) for name in absent]
                raise
        return self._slots, torch.tensor([self._slot_of[n] for n in names], device=device)

    def _rebuild(self, store: Slots, slots: Tensor, names: Sequence[Hashable]) -> None:
        store.clear(slots)
        n_features = len(self.words.model.schema)
        readings = [(slot, self._readings[name]) for slot, name in zip(slots.tolist(), names, strict=True)]
        told = [(slot, reading) for slot, reading in readings if reading.features]
        for part in batches(len(told), n_features):
            features, codes, present = as_tensors([reading for _, reading in told[part]], n_features, slots.device)
            some = torch.tensor([slot for slot, _ in told[part]], device=slots.device)
            state = store.take(some, features.shape[1]).observe(features, codes, present)
            store.put(some, state, present.sum(1))
