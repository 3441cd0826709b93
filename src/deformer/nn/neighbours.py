"""Neighbours: what lies around a feature and has been observed, as an input of its tokens beside attention."""

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from deformer.config import ModelConfig
from deformer.data.schema import Schema
from deformer.errors import InputError
from deformer.nn.units import Units

NEVER = 1 << 30
MOST_OFFSETS = 200_000
GRID = 1 << 20  # coordinates closer than its inverse are the same


@dataclass(frozen=True)
class Evidence:
    """What the rows of a batch have observed, by column; one more place, never observed, stands for nobody.

    Args:
        values: In units of the features' spread; meaningless where nothing was observed.
        times: How many observations came before; NEVER where there was none.
        length: How many observations there have been, present in a row or not.
    """

    values: Float[Tensor, "batch places"]
    times: Int[Tensor, "batch places"]
    length: int = 0

    @classmethod
    def empty(cls, batch: int, n_features: int, like: Tensor) -> "Evidence":
        values = like.new_zeros(batch, n_features + 1)
        return cls(values, torch.full_like(values, NEVER, dtype=torch.int32))

    def add(
        self, features: Int[Tensor, "batch n"], values: Tensor, present: Bool[Tensor, "batch n"] | None = None
    ) -> "Evidence":
        """Observe more features, one after the other."""
        end = self.length + features.shape[1]
        now = torch.arange(self.length, end, dtype=torch.int32, device=features.device).expand(features.shape)
        if present is not None:
            now = now.masked_fill(~present, NEVER)
        return Evidence(self.values.scatter(1, features, values), self.times.scatter(1, features, now), end)

    def select(self, rows: Tensor) -> "Evidence":
        return Evidence(self.values[rows], self.times[rows], self.length)


class Neighbours(nn.Module):
    """A small network that reads the observed values within a radius of a feature's coordinates.

    Of every neighbour it is told whether it was observed before a given time, and with what value. Offsets are what
    its weights belong to, so features at different places share them.
    """

    around: Tensor

    def __init__(self, schema: Schema, around: Int[Tensor, "features neighbours"], config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("around", around, persistent=False)
        self.units = Units(schema, lambda n: ((n - 1) / 2, max(n - 1, 1) / 2))  # labels lie between -1 and 1
        n_inputs, width = 2 * around.shape[1], config.width_ff
        self.up, self.down = nn.Linear(n_inputs, width), nn.Linear(width, config.d_model)
        for linear in (self.up, self.down):
            nn.init.normal_(linear.weight, std=1 / math.sqrt(linear.in_features))
            nn.init.zeros_(linear.bias)

    def start(self, batch: int) -> Evidence:
        """Give the evidence of rows of which nothing is known."""
        return Evidence.empty(batch, len(self.around), self.up.weight)

    def add(
        self,
        evidence: Evidence,
        features: Int[Tensor, "batch n"],
        values: Shaped[Tensor, "batch n"],
        present: Bool[Tensor, "batch n"] | None = None,
    ) -> Evidence:
        """Observe values in the units of the data."""
        spread = self.units.standardise(values, features).asinh()
        return evidence.add(features, spread.to(evidence.values.dtype), present)

    def forward(
        self, features: Int[Tensor, "batch n"], evidence: Evidence, times: Int[Tensor, "n"]
    ) -> Float[Tensor, "batch n d_model"]:
        """Give what is told of each feature's surroundings by the observations before a time of its own."""
        around = self.around[features]  # batch n neighbours
        flat = around.flatten(1)
        seen = evidence.times.gather(1, flat).view_as(around) < times[:, None]
        values = evidence.values.gather(1, flat).view_as(around).masked_fill(~seen, 0)
        told: Tensor = self.down(F.gelu(self.up(torch.cat([seen.to(values.dtype), values], -1))))
        return told


def make_neighbours(schema: Schema, config: ModelConfig) -> Neighbours | None:
    """Make the network of a config, or None where it asks for none or no feature has a neighbour."""
    around = columns_around(schema, config.neighbourhood)
    return Neighbours(schema, around, config) if around.shape[1] else None


def columns_around(schema: Schema, radius: int) -> Int[Tensor, "features neighbours"]:
    """Look up who lies at each whole offset up to a radius along every axis; the number of features is nobody.

    Offsets at which no feature has a neighbour are left out.
    """
    placed = torch.tensor([i for i, f in enumerate(schema.features) if f.coordinates is not None], dtype=torch.long)
    places = torch.tensor([f.coordinates for f in schema.features if f.coordinates is not None], dtype=torch.float64)
    columns = []
    if radius and len(placed):
        if (2 * radius + 1) ** places.shape[1] > MOST_OFFSETS:
            raise InputError(f"A neighbourhood of {radius} is too wide for {places.shape[1]} coordinates; 0 is none.")
        steps = ((places - places.amin(0)) * GRID).round() / GRID
        whole = steps.floor()
        _, apart = torch.unique(steps - whole, dim=0, return_inverse=True)  # no whole offset leads from one to another
        whole = torch.stack([_closer(along, radius) for along in whole.T], 1)
        extents = whole.amax(0) + 2 * radius + 1
        strides = torch.cumprod(F.pad(extents, (1, -1), value=1.0), 0)
        if extents.prod() * (apart.max() + 1) > 2**53:
            raise InputError(f"There are too many places for a neighbourhood of {radius}; 0 is none.")
        # One number per place, unlike for every offset within reach.
        keys, ranked = (whole @ strides + apart * extents.prod()).sort()
        for offset in itertools.product(range(-radius, radius + 1), repeat=places.shape[1]):
            wanted = keys + float(torch.tensor(offset, dtype=torch.float64) @ strides)
            found = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
            there = keys[found] == wanted
            if any(offset) and there.any():
                column = torch.full((len(schema),), len(schema))
                column[placed[ranked]] = torch.where(there, placed[ranked[found]], len(schema))
                columns.append(column)
    return torch.stack(columns, 1) if columns else torch.empty(len(schema), 0, dtype=torch.long)


def _closer(along: Float[Tensor, "places"], radius: int) -> Float[Tensor, "places"]:
    """Shrink gaps that no neighbourhood spans, so that few numbers suffice for places far apart."""
    distinct, which = torch.unique(along, return_inverse=True)
    gaps = distinct.diff().clamp(max=radius + 1)
    return F.pad(gaps.cumsum(0), (1, 0))[which]
