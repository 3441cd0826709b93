"""Units: where each feature's values lie and how far they spread, in as many digits as the data have."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from deformer.data.schema import Continuous, Domain, Schema

FAR = 8.0  # deviations


def _as_they_are(n_labels: int) -> tuple[float, float]:
    return 0.0, 1.0


def is_mass(values: Shaped[Tensor, "..."], mass: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
    """Say which values are a point mass, as they would spell it."""
    return values == (mass.to(values.dtype) if values.is_floating_point() else mass)


class Units(nn.Module):
    """The location, scale and point mass of each feature, in float64 whatever the precision of the model around them.

    Rounded, they would tell apart no more what lies close together far from zero.

    Args:
        of_labels: Location and scale of the labels 0, ..., n - 1; numbers have those of their domain.
    """

    table: Tensor  # features (location, scale, point mass or NaN)

    def __init__(self, schema: Schema, of_labels: Callable[[int], tuple[float, float]] = _as_they_are) -> None:
        super().__init__()

        def units(domain: Domain) -> tuple[float, float, float]:
            if not isinstance(domain, Continuous):
                return *of_labels(domain.n_labels), math.nan
            return domain.loc, domain.scale, math.nan if domain.point_mass is None else domain.point_mass

        table = torch.tensor([units(f.domain) for f in schema.features], dtype=torch.float64)
        self.register_buffer("table", table, persistent=False)
        self.has_masses = not bool(table[:, 2].isnan().all())

    def standardise(self, values: Shaped[Tensor, "..."], features: Int[Tensor, "..."] | int) -> Float[Tensor, "..."]:
        """Give values of features in their units, a point mass no farther off than others may lie."""
        loc, scale, mass = self.table[features].unbind(-1)
        x = (values - loc) / scale
        return torch.where(is_mass(values, mass), x.clamp(-FAR, FAR), x) if self.has_masses else x

    def at_mass(self, values: Shaped[Tensor, "..."], features: Int[Tensor, "..."] | int) -> Bool[Tensor, "..."]:
        """Say which values are the point mass of their feature."""
        return is_mass(values, self.table[features][..., 2])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        exact = self.table
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.table = exact.to(self.table.device)  # of what fn does only the move counts
        return self
