"""Slots: the states of many sessions side by side, of which any few can be taken out, moved on and put back."""

import torch
from torch import Tensor

from deformer.nn.cache import Cache
from deformer.nn.model import DEformer, Pending, State
from deformer.nn.neighbours import NEVER, Evidence


class Slots:
    """Room for a fixed number of states, each at its own length.

    Args:
        model: Whose states they are.
        n_slots: How many.
    """

    def __init__(self, model: DEformer, n_slots: int) -> None:
        self.model = model
        self._fresh = model.start(1)
        keys = self._fresh.cache.store.keys  # layers 1 heads 1 width
        self._per_value = model.tokens_per_value
        room = self._fresh.cache.length + self._per_value * len(model.schema)
        self._keys = keys.new_empty(keys.shape[0], n_slots, keys.shape[2], room, keys.shape[4])
        self._values = torch.empty_like(self._keys)
        self._lengths = torch.zeros(n_slots, dtype=torch.long, device=keys.device)
        self._evidence = model.nothing_known(n_slots)
        fresh, every = self._fresh.pending, torch.zeros_like(self._lengths)
        self._pending = None if fresh is None else fresh.select(every)

    @staticmethod
    def bytes_per_slot(model: DEformer) -> int:
        """Give the memory that one state takes when it has observed everything."""
        c, n_values = model.config, len(model.schema)
        tokens = 1 + model.tokens_per_value * n_values
        size = next(model.parameters()).element_size()
        return size * (2 * c.n_layers * c.d_model * tokens) + (size + 4) * (n_values + 1)

    def clear(self, slots: Tensor) -> None:
        """Begin anew in some slots."""
        store, start = self._fresh.cache.store, self._fresh.cache.length
        for own, fresh in ((self._keys, store.keys), (self._values, store.values)):
            own[:, slots] = 0  # what attention masks must be finite all the same
            own[:, slots, :, :start] = fresh[..., :start, :]
        self._lengths[slots] = start
        if self._evidence is not None:
            empty = Evidence.empty(len(slots), len(self.model.schema), self._evidence.values)
            self._evidence.values[slots], self._evidence.times[slots] = empty.values, empty.times
        if self._pending is not None and self._fresh.pending is not None:
            _put(self._pending, slots, self._fresh.pending)

    def take(self, slots: Tensor, n_new: int) -> State:
        """Copy the states of some slots into one that has room for so many new observations."""
        lengths = self._lengths[slots]
        longest = int(lengths.max())
        room = longest + self._per_value * n_new
        keys, values = (self._take(store, slots, longest, room) for store in (self._keys, self._values))
        present = None
        if int(lengths.min()) < longest:
            present = torch.arange(longest, device=lengths.device) < lengths[:, None]
        evidence = None
        if self._evidence is not None:
            known = self._evidence
            evidence = Evidence(known.values[slots], known.times[slots], 1)
        pending = None if self._pending is None else self._pending.select(slots)
        return State(self.model, Cache.holding(keys, values, longest, present), 0, evidence, pending)

    @staticmethod
    def _take(store: Tensor, slots: Tensor, longest: int, room: int) -> Tensor:
        taken = store.new_empty(store.shape[0], len(slots), store.shape[2], room, store.shape[4])
        taken[..., :longest, :] = store[:, slots, :, :longest]
        return taken

    def put(self, slots: Tensor, state: State, n_new: Tensor) -> None:
        """Put back a state after its rows have observed n_new values each, the first ones of what was added."""
        keys, values, evidence = state.cache.store.keys, state.cache.store.values, state.evidence
        counts = self._per_value * n_new
        first = state.cache.length - int(counts.max())
        row = torch.arange(len(slots), device=slots.device).repeat_interleave(counts)
        nth = torch.arange(len(row), device=slots.device) - (counts.cumsum(0) - counts)[row]
        target = self._lengths[slots][row] + nth
        self._keys[:, slots[row], :, target] = keys[:, row, :, first + nth]
        self._values[:, slots[row], :, target] = values[:, row, :, first + nth]
        self._lengths[slots] += counts
        if self._evidence is not None and evidence is not None:
            # That they lie before whatever comes next is all that matters of observations so far.
            times = evidence.times.masked_fill(evidence.times < NEVER, 0)
            self._evidence.values[slots], self._evidence.times[slots] = evidence.values, times
        if self._pending is not None and state.pending is not None:
            _put(self._pending, slots, state.pending)


def _put(own: Pending, slots: Tensor, pending: Pending) -> None:
    own.tokens[slots], own.features[slots] = pending.tokens, pending.features
