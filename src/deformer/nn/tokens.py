"""Tokens: z = g_z(identity) asks about a feature, u = g_u(identity, value) tells of one."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from deformer.config import ModelConfig
from deformer.data.schema import Continuous, Ordinal, Schema
from deformer.errors import InputError
from deformer.nn.linear import linear_per_slot
from deformer.nn.units import Units

Identities = Int[Tensor, "batch n"]
Tokens = Float[Tensor, "batch n d_model"]


def make_tokens(schema: Schema, config: ModelConfig) -> "EmbeddingTokens | MlpTokens":
    """Choose the token maker that a config names."""
    return EmbeddingTokens(schema, config.d_model) if config.tokens == "embedding" else MlpTokens(schema, config)


class MlpTokens(nn.Module):
    """The paper's g_z and g_u: two MLPs on raw coordinates and values, times sqrt(d_model).

    Numbers enter in units of their spread, labels as they are.
    """

    coordinates: Tensor

    def __init__(self, schema: Schema, config: ModelConfig) -> None:
        super().__init__()
        if any(f.coordinates is None for f in schema.features):
            raise InputError('tokens="mlp" reads coordinates; give every feature some, or use tokens="embedding".')
        coordinates = torch.tensor([f.coordinates for f in schema.features])
        self.register_buffer("coordinates", coordinates, persistent=False)
        self.units = Units(schema)
        n_axes = coordinates.shape[1]
        self.g_z = _mlp([n_axes, *config.mlp_widths, config.d_model])
        self.g_u = _mlp([n_axes + 1, *config.mlp_widths, config.d_model])
        self.factor = math.sqrt(config.d_model)

    def z(self, features: Identities) -> Tokens:
        z: Tensor = self.g_z(self.coordinates[features]) * self.factor
        return z

    def u(self, features: Identities, values: Shaped[Tensor, "batch n"]) -> Tokens:
        at = self.coordinates[features]  # batch n axes
        x = self.units.standardise(values, features).to(at.dtype)
        u: Tensor = self.g_u(torch.cat([at, x[..., None]], -1)) * self.factor
        return u


def _mlp(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class EmbeddingTokens(nn.Module):
    """Tables of identities and values.

    An identity is the sum of one embedding per coordinate, of one per feature, or both. A label is an entry in a table,
    the feature's own where its identity is learned, shared where it has only coordinates. A continuous value enters
    through waves of several lengths, and so does the place of an ordinal label beside its entry in the table; a point
    mass has an entry beside its waves.
    """

    n_waves = 5
    entries: Tensor
    offsets: Tensor
    is_number: Tensor
    has_waves: Tensor
    slots: Tensor

    def __init__(self, schema: Schema, d_model: int, std: float = 0.5) -> None:
        super().__init__()
        self.n_features = len(schema)
        self.query = nn.Parameter(torch.randn(d_model) * std)
        self._make_identities(schema, d_model, std)
        self._make_labels(schema, d_model, std)
        self._make_numbers(schema, d_model, std)

    def _make_identities(self, schema: Schema, d_model: int, std: float) -> None:
        learned = [i for i, f in enumerate(schema.features) if f.learned]
        axes = list(zip(*(f.coordinates for f in schema.features if f.coordinates is not None), strict=True))
        placed = [i for i, f in enumerate(schema.features) if f.coordinates is not None]
        groups = [(learned, list(range(len(learned))))]
        for axis in axes:
            ticks = {c: i for i, c in enumerate(sorted(set(axis)))}
            groups.append((placed, [ticks[c] for c in axis]))
        sizes = [len(set(entries)) for _, entries in groups]
        table = torch.full((len(schema), len(groups)), sum(sizes))  # the last entry is nothing
        for g, (columns, entries) in enumerate(groups):
            table[columns, g] = torch.tensor(entries, dtype=torch.long) + sum(sizes[:g])
        self.register_buffer("entries", table, persistent=False)
        self.identity = nn.Parameter(torch.randn(sum(sizes), d_model) * std)

    def _make_labels(self, schema: Schema, d_model: int, std: float) -> None:
        offsets, shared, total = [], {}, 0
        stds: list[float] = []
        for f in schema.features:
            size = 1 + (f.domain.point_mass is not None) if isinstance(f.domain, Continuous) else f.domain.n_labels
            key = f.name if f.learned else f.domain
            if key not in shared:
                shared[key], total = total, total + size
                stds += [0.2 * std if isinstance(f.domain, Ordinal) else std] * size  # beside the waves of its place
            offsets.append(shared[key])
        self.register_buffer("offsets", torch.tensor(offsets), persistent=False)
        self.label = nn.Parameter(torch.randn(total, d_model) * torch.tensor(stds)[:, None])

    @torch.no_grad()
    def settle_last_label(self, feature: int, n_labels: int) -> None:
        """Let the last label of a feature, which no row had, tell what its others do on average."""
        start = int(self.offsets[feature])
        self.label[start + n_labels - 1] = self.label[start : start + n_labels - 1].mean(0)

    def _make_numbers(self, schema: Schema, d_model: int, std: float) -> None:
        numeric = [f for f in schema.features if isinstance(f.domain, Continuous | Ordinal)]
        for name, kinds in (("is_number", Continuous), ("has_waves", Continuous | Ordinal)):
            told = torch.tensor([isinstance(f.domain, kinds) for f in schema.features])
            self.register_buffer(name, told, persistent=False)
        keys = {key: i for i, key in enumerate(dict.fromkeys(f.name if f.learned else "" for f in numeric))}
        slots = [keys.get(f.name if f.learned else "", 0) for f in schema.features]
        self.register_buffer("slots", torch.tensor(slots), persistent=False)
        self.units = Units(schema, lambda n: ((n - 1) / 2, max(n - 1, 1) / 4))  # labels spread from -2 to 2
        if numeric:
            n_inputs = 2 + 2 * self.n_waves
            self.number = nn.Parameter(torch.randn(len(keys), d_model, n_inputs) * std / math.sqrt(n_inputs / 2))

    def _identities(self, features: Identities) -> Tokens:
        entries = torch.cat([self.identity, self.identity.new_zeros(1, self.identity.shape[1])])
        if features.numel() < self.n_features:  # what arrives alone should not pay for a table of all features
            return F.embedding(self.entries[features], entries).sum(-2)
        return F.embedding(features, F.embedding(self.entries, entries).sum(1))

    def z(self, features: Identities) -> Tokens:
        return self._identities(features) + self.query

    def u(self, features: Identities, values: Shaped[Tensor, "batch n"]) -> Tokens:
        numeric = hasattr(self, "number")
        labels = torch.where(self.is_number[features], self._masses(features, values), values) if numeric else values
        u = self._identities(features) + F.embedding(self.offsets[features] + labels.long(), self.label)
        if not numeric:
            return u
        at = self.has_waves[features].nonzero(as_tuple=True)
        x = self.units.standardise(values[at], features[at]).to(u.dtype)
        nothing = self.number.new_zeros(()).expand(self.number.shape[:2])
        with torch.autocast(u.device.type, enabled=False):  # numbers need more digits than bfloat16 has
            told = linear_per_slot(self._waves(x), self.slots[features[at]], self.number, nothing)
        return u.index_put(at, u[at] + told.to(u.dtype))

    def _masses(self, features: Identities, values: Shaped[Tensor, "batch n"]) -> Tensor | int:
        """Give the entries of numbers: 1 for those at a point mass, 0 for all others."""
        return self.units.at_mass(values, features).to(values.dtype) if self.units.has_masses else 0

    def _waves(self, x: Float[Tensor, "tokens"]) -> Float[Tensor, "tokens inputs"]:
        x = x.clamp(-1e4, 1e4)  # a far outlier must not drown the rest of its row
        phase = x[:, None] * math.pi / 8 * 2.0 ** torch.arange(self.n_waves, dtype=x.dtype, device=x.device)
        return torch.cat([torch.asinh(x)[:, None], torch.tanh(x)[:, None], phase.sin(), phase.cos()], -1)
