"""Backbone: blocks of attention and feed-forward over content tokens u and queries z, with and without a cache."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor, nn

from deformer.config import ModelConfig
from deformer.errors import InputError
from deformer.nn.attention import attend, attend_causally, attend_with_self
from deformer.nn.cache import Cache

Tokens = Float[Tensor, "batch rows d_model"]
Heads = Float[Tensor, "batch heads rows width"]
Turns = Complex[Tensor, "batch 1 rows pairs"] | None  # the same in every head


class Rotary(nn.Module):
    """Turns of queries and keys by coordinates, as complex numbers, so that attention sees offsets between features.

    A head's pairs are divided evenly among the axes, with wavelengths rising geometrically to about 2 pi base.

    References:
        RoFormer: Enhanced Transformer with Rotary Position Embedding (Su et al., 2021), https://arxiv.org/abs/2104.09864
    """

    turns: Tensor

    def __init__(self, coordinates: Float[Tensor, "features axes"], head_width: int, base: float) -> None:
        super().__init__()
        n_axes, n_pairs = coordinates.shape[1], head_width // 2
        per_axis = n_pairs // n_axes
        if not per_axis:
            needs = "take fewer heads, a larger d_model or rotary_base=None"
            raise InputError(f"Heads of width {head_width} cannot turn by {n_axes} coordinates: {needs}.")
        speeds = base ** (-torch.arange(per_axis, dtype=torch.float64) / per_axis)
        centre = coordinates.double().mean(0, keepdim=True)  # where what has no place is taken to be
        angles = (torch.cat([coordinates.double(), centre])[..., None] * speeds).flatten(1)
        angles = F.pad(angles, (0, n_pairs - angles.shape[1]))
        self.register_buffer("turns", torch.stack([angles.cos(), angles.sin()], -1), persistent=False)

    def forward(self, features: Tensor, dtype: torch.dtype) -> Complex[Tensor, "batch 1 rows pairs"]:
        """Look up turns; the number of features stands for the beginning of a row."""
        precision = torch.float64 if dtype == torch.float64 else torch.float32
        if features.numel() < len(self.turns):
            return torch.view_as_complex(self.turns[features[:, None]].to(precision))
        return torch.view_as_complex(self.turns.to(precision))[features[:, None]]


def rotate(x: Heads, turns: Turns) -> Heads:
    """Turn each pair of a head's numbers by its angle."""
    if turns is None:
        return x
    if not torch.is_grad_enabled() and x.dtype == turns.dtype.to_real():  # fewer steps, which know no gradients
        return (x.contiguous().view(turns.dtype) * turns).view(x.dtype)
    pairs = torch.view_as_complex(x.to(turns.dtype.to_real()).reshape(*x.shape[:-1], -1, 2))  # batch heads rows pairs
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)


class Dropout:
    """Zeroes numbers at random and scales up the others, so that the expectation stays.

    References:
        Dropout: A Simple Way to Prevent Neural Networks from Overfitting (Srivastava et al., 2014)
    """

    def __init__(self, rate: float, generator: torch.Generator) -> None:
        self.dropped, self.generator = min(round(rate * 2**16), 2**16 - 1), generator

    def __call__(self, x: Tensor) -> Tensor:
        # Random bits are dear: a number of 64 of them decides on four places, each at 1 in 2**16.
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=self.generator.device)
        bits = words.random_(-(2**63), None, generator=self.generator).view(torch.int16)[: x.numel()].view(x.shape)
        kept = bits.to(x.device) >= self.dropped - 2**15
        return x * kept.to(x.dtype).mul_(1 / (1 - self.dropped / 2**16))


def _all_of(x: Tensor) -> Tensor:
    return x


class Block(nn.Module):
    """One layer: attention and a feed-forward part, each added to what it read."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, self.n_heads = config.d_model, config.n_heads
        self.pre = config.norm == "pre"
        self.activation = F.gelu if config.activation == "gelu" else F.relu
        self.query, self.key, self.value, self.mix = (nn.Linear(d, d) for _ in range(4))
        self.up, self.down = nn.Linear(d, config.width_ff), nn.Linear(config.width_ff, d)
        self.norm_attention, self.norm_ff = nn.LayerNorm(d), nn.LayerNorm(d)
        self.norm_query, self.norm_key = (
            nn.LayerNorm(d // config.n_heads) if config.qk_norm else nn.Identity() for _ in range(2)
        )
        for linear in (self.query, self.key, self.value, self.mix, self.up, self.down):
            nn.init.normal_(linear.weight, std=1 / math.sqrt(linear.in_features))
            nn.init.zeros_(linear.bias)
        if self.pre:
            nn.init.zeros_(self.mix.weight)
            nn.init.zeros_(self.down.weight)

    def normed(self, x: Tokens) -> Tokens:
        y: Tensor = self.norm_attention(x) if self.pre else x
        return y

    def queries(self, y: Tokens, turns: Turns) -> Heads:
        return rotate(self.norm_query(self._split(self.query(y))), turns)

    def keys_values(self, y: Tokens, turns: Turns) -> tuple[Heads, Heads]:
        return rotate(self.norm_key(self._split(self.key(y))), turns), self._split(self.value(y))

    def finish(self, x: Tokens, attended: Heads, drop: Callable[[Tensor], Tensor] | None = None) -> Tokens:
        dropped = _all_of if drop is None else drop
        mixed = dropped(self.mix(attended.transpose(1, 2).flatten(2)))  # batch rows d_model
        if self.pre:
            x = x + mixed
            return x + dropped(self._feed_forward(self.norm_ff(x)))
        x = self.norm_attention(x + mixed)
        out: Tensor = self.norm_ff(x + dropped(self._feed_forward(x)))
        return out

    def _feed_forward(self, x: Tokens) -> Tokens:
        out: Tensor = self.down(self.activation(self.up(x)))
        return out

    def _split(self, x: Tokens) -> Heads:
        return x.view(*x.shape[:2], self.n_heads, x.shape[2] // self.n_heads).transpose(1, 2)  # batch heads rows width


class Backbone(nn.Module):
    """The blocks, run over whole rows (`extend` without a cache), over new content, or over queries."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.content_layers = config.depth_of_content if config.wiring == "two_stream" else config.n_layers
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model) if config.norm == "pre" else nn.Identity()

    def _layers(self) -> Iterator[tuple[int, Block]]:
        return ((i, block) for i, block in enumerate(self.blocks) if isinstance(block, Block))

    def empty_cache(self, batch: int, like: Tensor) -> Cache:
        c = self.config
        return Cache.empty(c.n_layers, batch, c.n_heads, c.d_model // c.n_heads, like)

    def extend(
        self,
        x: Tokens,
        turns: Turns,
        group: int = 1,
        cache: Cache | None = None,
        drop: Dropout | None = None,
        seen: Float[Tensor, "batch 1 2 keys"] | None = None,
        key_turns: Turns = None,
    ) -> Float[Tensor, "batch asked d_model"]:
        """Run a sequence in which every `group`-th token is content, and each sees the content up to its position.

        With group 2, content and queries alternate and only the queries are returned. With a cache, already grown to
        hold this content, the content is also written into it; `seen` then says which keys each token of a pair sees.
        Keys lie where their token asks from, or where `key_turns` says.
        """
        if key_turns is None and turns is not None:
            key_turns = turns[:, :, ::group]
        content, visible = None, seen if seen is not None or cache is None else cache.present
        for layer, block in self._layers():
            if layer == self.content_layers:  # from here on content is read, but changes no more
                content, asked = x[:, ::group], slice(1, None, 2) if group == 2 else slice(0)
                x, turns, group = x[:, asked], None if turns is None else turns[:, :, asked], 1
                visible = visible if seen is None else seen[:, :, asked]
            y = block.normed(x)
            k, v = block.keys_values(y[:, ::group] if content is None else block.normed(content), key_turns)
            if cache is not None:
                cache.write(layer, k, v)
                k, v = cache.read(layer)
            if x.shape[1]:
                x = block.finish(x, attend_causally(block.queries(y, turns), k, v, group, visible), drop)
        out: Tensor = self.norm(x)
        return out

    def ask(self, x: Tokens, turns: Turns, cache: Cache, own: bool, key_turns: Turns = None) -> Tokens:
        """Run queries that see the cache, and with `own` themselves, but never each other; turns as in `extend`."""
        key_turns = turns if key_turns is None else key_turns
        for layer, block in self._layers():
            y = block.normed(x)
            q, (k, v) = block.queries(y, turns), cache.read(layer)
            if own:
                attended = attend_with_self(q, (k, v), block.keys_values(y, key_turns), cache.present)
            else:
                attended = attend(q, k, v, cache.present)
            x = block.finish(x, attended)
        out: Tensor = self.norm(x)
        return out
