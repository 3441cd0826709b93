"""Packed parameters: the conditionals of all queries of one family, in the units of the data."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from deformer.nn.families import Bernoulli, Family, Mixture, Params, Values, uniform
from deformer.nn.units import is_mass


@dataclass(frozen=True)
class Packed:
    """The conditionals of all queries of one family.

    Args:
        family: What the parameters mean.
        params: One row per query.
        at: Flat positions of the queries in (batch, queries). None: all of them, in order.
        units: Location, scale and point mass (NaN: none) of each query, in float64; None for labels, which have none.
    """

    family: Family
    params: Params
    at: Int[Tensor, "tokens"] | None = None
    units: Float[Tensor, "tokens 3"] | None = None

    def take(self, which: Tensor) -> "Packed":
        """Keep the queries of some numbers, in this sequence."""
        units = None if self.units is None else self.units[which]
        return replace(self, params=self.params[which], at=None, units=units)

    def repeat(self, n: int) -> "Packed":
        """Ask every query n times in a row."""
        each = torch.arange(len(self.params), device=self.params.device).repeat_interleave(n)
        at = None if self.at is None else (n * self.at[:, None] + torch.arange(n, device=self.at.device)).flatten()
        return replace(self.take(each), at=at)

    def standardise(self, x: Tensor) -> Values:
        if self.units is None:
            return x.to(self.params.dtype)
        return ((x - self.units[:, 0]) / self.units[:, 1]).to(self.params.dtype)

    def restore(self, x: Values) -> Values:
        """Bring numbers back to the units of the data, in float64: they may lie far from zero."""
        return x if self.units is None else x * self.units[:, 1] + self.units[:, 0]

    def log_scale(self) -> Values | float:
        return 0.0 if self.units is None else self.units[:, 1].log().to(self.params.dtype)

    def log_prob(self, x: Tensor) -> Values:
        return self.family.log_prob(self.params, self.standardise(x)) - self.log_scale()

    def cdf(self, x: Tensor) -> Values:
        return self.family.cdf(self.params, self.standardise(x))

    def tail(self, x: Tensor) -> Values:
        return self.family.tail(self.params, self.standardise(x))

    def sample(self, generator: torch.Generator, temperature: float) -> Values:
        return self.restore(self.family.sample(self.params, generator, temperature))

    def mean(self) -> Values:
        return self.restore(self.family.mean(self.params))

    def variance(self) -> Values:
        variance = self.family.variance(self.params)
        return variance if self.units is None else variance * self.units[:, 1] ** 2

    def mode(self) -> Values:
        return self.restore(self.family.mode(self.params))

    def entropy(self) -> Values:
        return self.family.entropy(self.params) + self.log_scale()


@dataclass(frozen=True)
class PackedInflated(Packed):
    """Numbers of which one, the point mass, has a probability of its own.

    It is told by the value itself, in the digits of the data, and may lie far from all others. Its log-probability is
    that of a probability, that of any other value one of a density.
    """

    @property
    def odds(self) -> Values:
        """Give the log-odds of the point mass."""
        return self.params[:, -1]

    @property
    def share(self) -> Values:
        return torch.sigmoid(self.odds)

    @property
    def rest(self) -> Values:
        """Give the probability of all other values, in all its digits where it is small."""
        return torch.sigmoid(-self.odds)

    @property
    def mass(self) -> Values:
        assert self.units is not None
        return self.units[:, 2]

    def log_prob(self, x: Tensor) -> Values:
        at, rest = is_mass(x, self.mass), F.logsigmoid(-self.odds)
        elsewhere = torch.where(at, self.restore(torch.zeros_like(rest)), x)  # the mass may be too far for a gradient
        return torch.where(at, F.logsigmoid(self.odds), rest + super().log_prob(elsewhere))

    def cdf(self, x: Tensor) -> Values:
        reached = (x >= self.mass) | is_mass(x, self.mass)
        return self.rest * super().cdf(x) + self.share * reached

    def tail(self, x: Tensor) -> Values:
        assert isinstance(self.family, Mixture)
        reached = (x <= self.mass) | is_mass(x, self.mass)
        above = self.family.cdf(self.params, self.standardise(x), above=True)
        sides = torch.minimum(self.cdf(x), self.rest * above + self.share * reached)
        return (2 * sides).clamp(max=1.0)

    def sample(self, generator: torch.Generator, temperature: float) -> Values:
        drawn = super().sample(generator, temperature)
        return torch.where(uniform(self.odds, generator) < torch.sigmoid(self.odds / temperature), self.mass, drawn)

    def mean(self) -> Values:
        rest = super().mean()
        return rest + self.share * (self.mass - rest)

    def variance(self) -> Values:
        return self.rest * (super().variance() + self.share * (self.mass - super().mean()) ** 2)

    def mode(self) -> Values:
        """Give the point mass if it has half of the probability, else the highest point of the density."""
        return torch.where(self.odds >= 0, self.mass, super().mode())

    def entropy(self) -> Values:
        return Bernoulli().entropy(self.odds[:, None]) + self.rest * super().entropy()
