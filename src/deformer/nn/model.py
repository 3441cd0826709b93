"""The DEformer: rows in, conditionals out; all at once, or one observation at a time."""

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from deformer.config import ModelConfig
from deformer.data.schema import Schema
from deformer.nn.backbone import Backbone, Dropout, Rotary
from deformer.nn.cache import Cache
from deformer.nn.heads import Conditionals, Head
from deformer.nn.neighbours import Evidence, make_neighbours
from deformer.nn.tokens import make_tokens

Identities = Int[Tensor, "batch n"]


class DEformer(nn.Module):
    """An order-agnostic density estimator: p(any feature | any others, observed in any order).

    Args:
        schema: The features of a row.
        config: The architecture. None: the default, two streams with four layers of width 128.

    References:
        The DEformer: An Order-Agnostic Distribution Estimating Transformer (Alcorn & Nguyen, 2021),
        https://arxiv.org/abs/2106.06989

    Examples:
        >>> from deformer.data.schema import Binary, image_schema
        >>> model = DEformer(image_schema(2, 2, Binary()))
        >>> state = model.start().observe(torch.tensor([[0, 3]]), torch.tensor([[1.0, 0.0]]))
        >>> state.predict(torch.tensor([[1, 2]])).mean()
        tensor([[0.5000, 0.5000]])
    """

    def __init__(self, schema: Schema, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.config = ModelConfig() if config is None else config
        self.tokens = make_tokens(schema, self.config)
        self.backbone = Backbone(self.config)
        self.head = Head(schema, self.config.d_model, self.config.n_components, self.config.mixture)
        self.rotary = self._make_rotary()
        self.neighbours = make_neighbours(schema, self.config)
        if self.config.wiring != "interleaved":
            self.beginning = nn.Parameter(torch.randn(self.config.d_model) * 0.5)

    @property
    def two_stream(self) -> bool:
        return self.config.wiring == "two_stream"

    @property
    def single_stream(self) -> bool:
        return self.config.wiring == "single_stream"

    @property
    def tokens_per_value(self) -> int:
        """The number of keys that an observation adds."""
        return 2 if self.config.wiring == "interleaved" else 1

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _make_rotary(self) -> Rotary | None:
        places = [f.coordinates for f in self.schema.features if f.coordinates is not None]
        if self.config.rotary_base is None or not places:
            return None
        centre = tuple(sum(axis) / len(axis) for axis in zip(*places, strict=True))
        coordinates = torch.tensor([f.coordinates or centre for f in self.schema.features], dtype=torch.float64)
        return Rotary(coordinates, self.config.d_model // self.config.n_heads, self.config.rotary_base)

    def _turns(self, features: Tensor) -> Tensor | None:
        return None if self.rotary is None else self.rotary(features, self.dtype)

    def _beginning(self, batch: int) -> tuple[Tensor, Tensor]:
        """Give the token that opens the content stream, and the identity that places it."""
        nowhere = torch.full((batch, 1), len(self.schema), device=self.device)
        return self.beginning.expand(batch, 1, -1), nowhere

    def nothing_known(self, batch: int) -> Evidence | None:
        """Return empty evidence for the neighbourhood network, or None without one."""
        return None if self.neighbours is None else self.neighbours.start(batch)

    def tell_neighbours(
        self,
        evidence: Evidence | None,
        features: Identities,
        values: Shaped[Tensor, "batch n"],
        present: Bool[Tensor, "batch n"] | None = None,
    ) -> tuple[Evidence | None, Tensor | float]:
        """Add observations in turn; return the evidence and each feature's input from the observations before it."""
        if self.neighbours is None or evidence is None:
            return None, 0.0
        times = torch.arange(evidence.length, evidence.length + features.shape[1], device=self.device)
        evidence = self.neighbours.add(evidence, features, values, present)
        return evidence, self.neighbours(features, evidence, times)

    def queries(self, features: Identities, evidence: Evidence | None) -> Tensor:
        """Return query tokens of features, given only this evidence."""
        z: Tensor = self.tokens.z(features)
        if self.neighbours is None or evidence is None:
            return z
        now = torch.full(features.shape[1:], evidence.length, device=self.device)
        told: Tensor = self.neighbours(features, evidence, now)
        return z + told

    def forward(
        self,
        features: Identities,
        values: Shaped[Tensor, "batch n"],
        scored: slice = slice(None),
        drop: Dropout | None = None,
    ) -> Conditionals:
        """Return p(x_k | x_1, ..., x_{k-1}) for every k, in one pass, for rows already laid out in their orders.

        Args:
            features: Column numbers, in each row's order.
            values: Their values; those after a position never affect it, bit for bit.
            scored: The positions k to return.
            drop: Dropout on the outputs of the blocks, in training.
        """
        z, u = self.tokens.z(features), self.tokens.u(features, values)
        _, around = self.tell_neighbours(self.nothing_known(len(features)), features, values)
        z = z + around
        if not self.single_stream:  # there a token is the sum of both, and is told once, by z
            u = u + around
        if self.config.wiring != "interleaved":
            beginning, nowhere = self._beginning(len(features))
            u = torch.cat([beginning.to(u.dtype), u[:, :-1]], 1)
            told = torch.cat([nowhere, features[:, :-1]], 1)
        if self.two_stream:
            pairs, places = torch.stack([u, z], 2), torch.stack([told, features], 2)  # batch n 2 d_model
            processed = self.backbone.extend(pairs.flatten(1, 2), self._turns(places.flatten(1)), group=2, drop=drop)
        elif self.single_stream:
            processed = self.backbone.extend(u + z, self._turns(features), key_turns=self._turns(told), drop=drop)
        else:
            pairs, places = torch.stack([z, u], 2), features.repeat_interleave(2, 1)
            processed = self.backbone.extend(pairs.flatten(1, 2), self._turns(places), drop=drop)[:, ::2]
        conditionals: Conditionals = self.head(processed[:, scored], features[:, scored])
        return conditionals

    @torch.inference_mode()
    def start(self, batch: int = 1, room: int = 0) -> "State":
        """Return a state with nothing observed.

        Args:
            batch: Number of rows to follow in parallel.
            room: Observations to reserve memory for; more may follow.
        """
        like = next(self.backbone.parameters())
        cache = self.backbone.empty_cache(batch, like)
        if self.two_stream:
            token, nowhere = self._beginning(batch)
            cache = cache.grow(1, room=room + 1)
            self.backbone.extend(token, self._turns(nowhere), cache=cache)
        pending = Pending(*self._beginning(batch)) if self.single_stream else None
        return State(self, cache, room, self.nothing_known(batch), pending)

    @torch.no_grad()
    def fit_marginals(self, values: Shaped[Tensor, "rows features"], observed: Bool[Tensor, "rows features"]) -> None:
        """Initialise the head to each feature's marginal distribution in the data."""
        self.head.fit_marginals(values.to(self.device), observed.to(self.device))


def new_model(schema: Schema, config: ModelConfig | None = None, seed: int = 0) -> DEformer:
    """Make a model whose initial weights depend on the seed alone, leaving the global generator unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # and not those of GPUs, which nothing would set back
        return DEformer(schema, config)


@dataclass(frozen=True)
class Pending:
    """In "single_stream" what was observed last: part of the token of whoever is next, whose key lies at its place."""

    tokens: Float[Tensor, "batch n d_model"]
    features: Identities

    def observe(
        self, u: Float[Tensor, "batch n d_model"], features: Identities, present: Bool[Tensor, "batch n"] | None
    ) -> tuple["Pending", "Pending"]:
        """Observe more; give what was present last before each of these features, and what is last of all."""
        places = torch.arange(1, u.shape[1] + 1, device=u.device).expand(features.shape)
        newest = (places if present is None else places.masked_fill(~present, 0)).cummax(1).values
        at = F.pad(newest, (1, 0))  # batch n + 1
        tokens = torch.cat([self.tokens.to(u.dtype), u], 1).gather(1, at[..., None].expand(-1, -1, u.shape[2]))
        features = torch.cat([self.features, features], 1).gather(1, at)
        return Pending(tokens[:, :-1], features[:, :-1]), Pending(tokens[:, -1:], features[:, -1:])

    def select(self, rows: Tensor) -> "Pending":
        return Pending(self.tokens[rows], self.features[rows])


@dataclass(frozen=True)
class State:
    """An immutable record of what a model has observed so far: observing returns a new state.

    It works in PyTorch's inference mode: no gradients flow, and small steps cost less.

    Args:
        room: Observations to reserve memory for.
        evidence: The observations that the neighbourhood network reads.
        pending: The last observation, in "single_stream".
    """

    model: DEformer
    cache: Cache
    room: int = 0
    evidence: Evidence | None = None
    pending: Pending | None = None

    @torch.inference_mode()
    def observe(
        self, features: Identities, values: Shaped[Tensor, "batch n"], present: Bool[Tensor, "batch n"] | None = None
    ) -> "State":
        """Observe any number of features, in any order.

        Args:
            features: Column numbers, not observed before.
            values: Their values.
            present: Which of them each row has. None: all.
        """
        model = self.model
        evidence, around = model.tell_neighbours(self.evidence, features, values, present)
        x, key_turns, pending = model.tokens.u(features, values), None, None
        if self.pending is not None:
            before, pending = self.pending.observe(x, features, present)
            x, key_turns = before.tokens + model.tokens.z(features) + around, model._turns(before.features)
        elif model.two_stream:
            x = x + around
        else:
            x = torch.stack([model.tokens.z(features) + around, x + around], 2).flatten(1, 2)
            features = features.repeat_interleave(2, 1)
            present = None if present is None else present.repeat_interleave(2, 1)
        cache = self.cache.grow(x.shape[1], present, model.tokens_per_value * self.room + 1)
        model.backbone.extend(x, model._turns(features), cache=cache, key_turns=key_turns)
        return dataclasses.replace(self, cache=cache, evidence=evidence, pending=pending)

    @torch.inference_mode()
    def predict(self, features: Identities) -> Conditionals:
        """Return p(x_i | everything observed) for any number of features at once, each separately."""
        model = self.model
        z, turns = model.queries(features, self.evidence), model._turns(features)
        key_turns = None
        if self.pending is not None:
            z, key_turns = z + self.pending.tokens, model._turns(self.pending.features.expand(features.shape))
        processed = model.backbone.ask(z, turns, self.cache, own=not model.two_stream, key_turns=key_turns)
        conditionals: Conditionals = model.head(processed, features)
        return conditionals

    @torch.inference_mode()
    def observe_and_predict(
        self,
        feature: Int[Tensor, "batch 1"],
        value: Shaped[Tensor, "batch 1"],
        asked: Int[Tensor, "batch 1"],
        present: Bool[Tensor, "batch 1"] | None = None,
        *,
        beforehand: bool = False,
    ) -> tuple["State", Conditionals]:
        """Observe one feature and predict another; in "two_stream", the cache is read once for both.

        Args:
            beforehand: Whether to predict as before the observation, possibly the same feature.
        """
        model = self.model
        if not model.two_stream:
            state = self.observe(feature, value, present)
            return state, (self if beforehand else state).predict(asked)
        both, evidence = torch.cat([feature, asked], 1), self.evidence
        pair = torch.cat([model.tokens.u(feature, value), model.tokens.z(asked)], 1)
        if model.neighbours is not None and evidence is not None:
            now = torch.tensor([evidence.length, evidence.length + 1 - beforehand], device=model.device)
            evidence = model.neighbours.add(evidence, feature, value, present)
            pair = pair + model.neighbours(both, evidence, now)  # the observation is not told of itself
        cache, turns = self.cache.grow(1, present, self.room + 1), model._turns(both)
        seen = cache.seen_beforehand() if beforehand else None
        processed = model.backbone.extend(pair, turns, group=2, cache=cache, seen=seen)
        conditionals: Conditionals = model.head(processed, asked)
        return dataclasses.replace(self, cache=cache, evidence=evidence), conditionals

    def select(self, rows: Tensor) -> "State":
        """Return the state of some rows, possibly several copies of one."""
        evidence = None if self.evidence is None else self.evidence.select(rows)
        pending = None if self.pending is None else self.pending.select(rows)
        return dataclasses.replace(self, cache=self.cache.select(rows), evidence=evidence, pending=pending)
