"""Units: where each feature's values lie and how far they spread, in as many digits as the data have."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from deformer.data.schema import Continuous, Domain, Schema


def _as_they_are(n_labels: int) -> tuple[float, float]:
    return 0.0, 1.0


class Units(nn.Module):
    """The location and scale of each feature's values, in float64 whatever the precision of the model around them.

    Rounded, they would tell apart no more what lies close together far from zero.

    Args:
        of_labels: Location and scale of the labels 0, ..., n - 1; numbers have those of their domain.
        from_point_mass: Whether numbers are counted from their point mass, if there is one.
    """

    loc: Tensor
    scale: Tensor
    point_mass: Tensor

    def __init__(
        self,
        schema: Schema,
        of_labels: Callable[[int], tuple[float, float]] = _as_they_are,
        from_point_mass: bool = False,
    ) -> None:
        super().__init__()

        def pair(domain: Domain) -> tuple[float, float]:
            if not isinstance(domain, Continuous):
                return of_labels(domain.n_labels)
            mass = domain.point_mass if from_point_mass else None
            return (domain.loc if mass is None else mass), domain.scale

        units = torch.tensor([pair(f.domain) for f in schema.features], dtype=torch.float64)
        self.register_buffer("loc", units[:, 0].contiguous(), persistent=False)
        self.register_buffer("scale", units[:, 1].contiguous(), persistent=False)
        masses = [getattr(f.domain, "point_mass", None) for f in schema.features]
        self.has_point_masses = any(mass is not None for mass in masses)
        told = torch.tensor([math.nan if mass is None else mass for mass in masses], dtype=torch.float64)
        self.register_buffer("point_mass", told, persistent=False)

    def standardise(self, values: Shaped[Tensor, "..."], features: Int[Tensor, "..."] | int) -> Float[Tensor, "..."]:
        """Give values of features in their units."""
        return (values - self.loc[features]) / self.scale[features]

    def at_point_mass(self, values: Shaped[Tensor, "..."], features: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """Say which values are the point mass of their feature."""
        return values == self.point_mass[features]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        exact = self.loc, self.scale, self.point_mass
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = (t.to(self.loc.device) for t in exact)  # of what fn does only the move counts
        self.loc, self.scale, self.point_mass = moved
        return self
