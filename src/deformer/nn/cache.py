"""The key/value cache as a value: growing one never changes another."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

KeysValues = tuple[Float[Tensor, "batch heads keys width"], Float[Tensor, "batch heads keys width"]]


@dataclass
class _Store:
    """Room shared by caches that grew from one another. Slots below `used` are never written again."""

    keys: Float[Tensor, "layers batch heads room width"]
    values: Float[Tensor, "layers batch heads room width"]
    used: int


@dataclass(frozen=True)
class Cache:
    """Keys and values of `length` content tokens in every layer.

    Growing the newest cache of a store fills free slots behind it; growing an older one copies first. So a sequence of
    observations costs amortised constant copying, and every fork stays valid.
    """

    store: _Store
    length: int
    present: Bool[Tensor, "batch keys"] | None = None

    @classmethod
    def empty(cls, n_layers: int, batch: int, n_heads: int, width: int, like: Tensor) -> "Cache":
        room = like.new_empty(n_layers, batch, n_heads, 0, width)
        return cls(_Store(room, room, 0), 0)

    @classmethod
    def holding(
        cls,
        keys: Float[Tensor, "layers batch heads room width"],
        values: Float[Tensor, "layers batch heads room width"],
        length: int,
        present: Bool[Tensor, "batch keys"] | None,
    ) -> "Cache":
        """Make a cache of keys and values of which the first `length` are filled."""
        return cls(_Store(keys, values, length), length, present)

    @property
    def batch(self) -> int:
        return self.store.keys.shape[1]

    def grow(self, n: int, present: Bool[Tensor, "batch new"] | None = None, room: int = 0) -> "Cache":
        """Make space for n more tokens, to be filled by `write`; `room` foresees a final length."""
        store, end = self.store, self.length + n
        if store.used != self.length or end > store.keys.shape[3]:
            store = self._copy(max(end, room, 2 * self.length))
        store.used = end
        return Cache(store, end, self._join(n, present))

    def _copy(self, room: int) -> _Store:
        def moved(old: Tensor) -> Tensor:
            new = old.new_empty(*old.shape[:3], room, old.shape[4])
            new[..., : self.length, :] = old[..., : self.length, :]
            return new

        return _Store(moved(self.store.keys), moved(self.store.values), self.length)

    def _join(self, n: int, present: Tensor | None) -> Tensor | None:
        if present is None and self.present is None:
            return None
        ones = torch.ones(self.batch, self.length + n, dtype=torch.bool, device=self.store.keys.device)
        if self.present is not None:
            ones[:, : self.length] = self.present
        if present is not None:
            ones[:, self.length :] = present
        return ones

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Fill the newest slots of a layer, once, right after `grow`."""
        n = keys.shape[2]
        for held, new in zip(self.read(layer), (keys, values), strict=True):
            held.narrow(2, self.length - n, n).copy_(new)

    def seen_beforehand(self) -> Float[Tensor, "batch 1 2 keys"]:
        """Say which tokens the newest one sees, and which a query beside it sees that must not see the newest.

        Returns:
            0 for what is seen and -inf for what is not, made once for all layers.
        """
        seen = self.store.keys.new_zeros(self.batch, 1, 2, self.length)
        seen[..., 1, -1] = -math.inf
        return seen if self.present is None else seen.masked_fill_(~self.present[:, None, None], -math.inf)

    def read(self, layer: int) -> KeysValues:
        return self._held[layer]

    @cached_property
    def _held(self) -> tuple[KeysValues, ...]:
        """Views of every layer, taken at once: in a step of one value, each further operation on a tensor counts."""
        keys, values = (s.narrow(3, 0, self.length).unbind() for s in (self.store.keys, self.store.values))
        return tuple(zip(keys, values, strict=True))

    def select(self, rows: Tensor) -> "Cache":
        """Copy some rows of the batch, possibly several times: forks of the same evidence."""
        keys, values = (s[..., : self.length, :][:, rows] for s in (self.store.keys, self.store.values))
        return Cache.holding(keys, values, self.length, None if self.present is None else self.present[rows])
