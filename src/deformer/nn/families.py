"""Families of conditionals: what a head's numbers mean. Free of weights; everything in log space and nats.

Every function takes the parameters (tokens, n_params) of one family. Values of a continuous family are standardised;
`heads` brings them back to the units of the data.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Params = Float[Tensor, "tokens n_params"]
Values = Float[Tensor, "tokens"]
ENTROPIES_AT_ONCE = 512  # of mixtures; each takes the density at a thousand points
ENOUGH = 1 << 20  # values to take quantiles of; `torch.quantile` refuses more than 2^24


@runtime_checkable
class Family(Protocol):
    """One kind of conditional distribution over the values of a feature."""

    @property
    def n_params(self) -> int: ...
    def log_prob(self, params: Params, x: Values) -> Values: ...
    def sample(self, params: Params, generator: torch.Generator, temperature: float = 1.0) -> Values: ...
    def mean(self, params: Params) -> Values: ...
    def variance(self, params: Params) -> Values: ...
    def mode(self, params: Params) -> Values: ...
    def cdf(self, params: Params, x: Values) -> Values: ...
    def tail(self, params: Params, x: Values) -> Values: ...
    def entropy(self, params: Params) -> Values: ...
    def marginal(self, x: Values) -> Float[Tensor, "n_params"]: ...


def uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw from the open interval (0, 1) on the generator's device, so that draws do not depend on the model's."""
    u = torch.rand(like.shape, generator=generator, device=generator.device, dtype=torch.float64)
    return u.clamp(1e-300, 1 - 2**-53).to(like.device)


@dataclass(frozen=True)
class Bernoulli:
    """Values 0 and 1; one parameter, the log-odds of 1."""

    n_params: int = 1

    def log_prob(self, params: Params, x: Values) -> Values:
        return F.logsigmoid(params[:, 0] * (2 * x - 1))

    def sample(self, params: Params, generator: torch.Generator, temperature: float = 1.0) -> Values:
        p = torch.sigmoid(params[:, 0] / temperature)
        return (uniform(p, generator) < p).to(params.dtype)

    def log_probs(self, params: Params) -> Float[Tensor, "tokens 2"]:
        """Give the log-probability of either value."""
        return F.logsigmoid(torch.cat([-params, params], 1))

    def mean(self, params: Params) -> Values:
        return torch.sigmoid(params[:, 0])

    def variance(self, params: Params) -> Values:
        return torch.sigmoid(params[:, 0]) * torch.sigmoid(-params[:, 0])

    def mode(self, params: Params) -> Values:
        return (params[:, 0] > 0).to(params.dtype)

    def cdf(self, params: Params, x: Values) -> Values:
        return torch.where(x < 0, 0.0, torch.where(x < 1, torch.sigmoid(-params[:, 0]), 1.0))

    def tail(self, params: Params, x: Values) -> Values:
        """Give the probability of a value that is no likelier than x."""
        p = torch.sigmoid(params[:, 0] * (2 * x - 1))
        return torch.where(p < 0.5, p, 1.0)

    def entropy(self, params: Params) -> Values:
        away = params[:, 0].abs()  # without cancellation for what is nearly certain
        return F.softplus(-away) + away * torch.sigmoid(-away)

    def marginal(self, x: Values) -> Float[Tensor, "n_params"]:
        return torch.logit((x.sum() + 0.5) / (len(x) + 1))[None]


@dataclass(frozen=True)
class Labels:
    """Values 0, ..., n_labels - 1; one log-weight per label.

    An ordered family adds a line and a parabola over the labels, so that neighbours share what is learned while every
    label stays free.
    """

    n_labels: int
    ordered: bool = False

    @property
    def n_params(self) -> int:
        return self.n_labels + 2 * self.ordered

    def log_probs(self, params: Params) -> Float[Tensor, "tokens n_labels"]:
        """Give the log-probability of every label."""
        free = params[:, : self.n_labels]
        if self.ordered:
            t = torch.linspace(-1, 1, self.n_labels, dtype=params.dtype, device=params.device)
            free = free + params[:, -2:-1] * t + params[:, -1:] * (t * t)  # a product would be rounded in training
        return free.log_softmax(-1)

    def _labels(self, params: Params) -> Tensor:
        return torch.arange(self.n_labels, dtype=params.dtype, device=params.device)

    def log_prob(self, params: Params, x: Values) -> Values:
        return self.log_probs(params).gather(1, x.long()[:, None])[:, 0]

    def sample(self, params: Params, generator: torch.Generator, temperature: float = 1.0) -> Values:
        p = (self.log_probs(params).double() / temperature).softmax(-1)
        u = uniform(p[:, :1], generator)
        possible = (p > 0).long().cumsum(-1).argmax(-1)  # rounding must not reach a label of probability 0
        return torch.minimum((p.cumsum(-1) <= u).sum(-1), possible).to(params.dtype)

    def mean(self, params: Params) -> Values:
        return self.log_probs(params).exp() @ self._labels(params)

    def variance(self, params: Params) -> Values:
        away = self._labels(params) - self.mean(params)[:, None]
        return (self.log_probs(params).exp() * away**2).sum(-1)

    def mode(self, params: Params) -> Values:
        return self.log_probs(params).argmax(-1).to(params.dtype)

    def cdf(self, params: Params, x: Values) -> Values:
        return (self.log_probs(params).exp() * (self._labels(params) <= x[:, None])).sum(-1).clamp(max=1.0)

    def tail(self, params: Params, x: Values) -> Values:
        """Give the probability of a label that is no likelier than x."""
        log_p = self.log_probs(params)
        return (log_p.exp() * (log_p <= log_p.gather(1, x.long()[:, None]))).sum(-1).clamp(max=1.0)

    def entropy(self, params: Params) -> Values:
        log_p = self.log_probs(params)
        return -(log_p.exp() * log_p.clamp(min=-1e30)).sum(-1)

    def marginal(self, x: Values) -> Float[Tensor, "n_params"]:
        counts = torch.bincount(x.long(), minlength=self.n_labels).to(x.dtype)
        free = ((counts + 0.5) / (len(x) + 0.5 * self.n_labels)).log()
        return F.pad(free, (0, 2 * self.ordered))


@dataclass(frozen=True)
class Mixture:
    """Real values; log-weights, means and log-scales of `n_components` Gaussians or logistics.

    Log-scales lie smoothly between -7 and 4 in standardised units: no density can grow without bound.
    """

    n_components: int
    kind: Literal["gaussian", "logistic"] = "logistic"

    @property
    def n_params(self) -> int:
        return 3 * self.n_components

    def _parts(self, params: Params) -> tuple[Tensor, Tensor, Tensor]:
        weights, means, scales = torch.split(params, self.n_components, -1)
        return weights.log_softmax(-1), means, -1.5 + 5.5 * torch.tanh((scales + 1.5) / 5.5)

    def _log_density(self, z: Tensor) -> Tensor:
        if self.kind == "gaussian":
            return -0.5 * z * z - 0.5 * math.log(2 * math.pi)
        return -z.abs() - 2 * F.softplus(-z.abs())

    def _distribution(self, z: Tensor) -> Tensor:
        below: Tensor = torch.special.ndtr(z) if self.kind == "gaussian" else torch.sigmoid(z)
        return below

    def _quantile(self, u: Tensor) -> Tensor:
        z: Tensor = torch.special.ndtri(u) if self.kind == "gaussian" else torch.logit(u)
        return z

    def log_prob(self, params: Params, x: Values) -> Values:
        return self._log_prob_each(params, x[:, None])[:, 0]

    def sample(self, params: Params, generator: torch.Generator, temperature: float = 1.0) -> Values:
        log_w, means, log_s = self._parts(params)
        chosen = Labels(self.n_components).sample(log_w, generator, temperature).long()[:, None]
        noise = self._quantile(uniform(params[:, 0], generator)).to(params.dtype)
        drawn: Tensor = means.gather(1, chosen)[:, 0] + temperature**0.5 * log_s.gather(1, chosen)[:, 0].exp() * noise
        return drawn

    def mean(self, params: Params) -> Values:
        log_w, means, _ = self._parts(params)
        mean: Tensor = (log_w.exp() * means).sum(-1)
        return mean

    def variance(self, params: Params) -> Values:
        log_w, means, log_s = self._parts(params)
        unit = 1.0 if self.kind == "gaussian" else math.pi**2 / 3
        away = means - (log_w.exp() * means).sum(-1, keepdim=True)
        variance: Tensor = (log_w.exp() * (unit * (2 * log_s).exp() + away**2)).sum(-1)
        return variance

    def mode(self, params: Params) -> Values:
        """Give the highest point among those that gradient-free steps reach from each component's mean."""
        _, candidates, log_s = self._parts(params)
        width = log_s.exp()
        best = self._log_prob_each(params, candidates)
        for step in range(40):  # steps shrink from one scale to a 1e-6th of it
            for side in (-1.0, 1.0):
                moved = candidates + side * width * 0.7**step
                density = self._log_prob_each(params, moved)
                candidates = torch.where(density > best, moved, candidates)
                best = torch.maximum(density, best)
        return candidates.gather(1, best.argmax(-1, keepdim=True))[:, 0]

    def _log_prob_each(self, params: Params, x: Float[Tensor, "tokens points"]) -> Float[Tensor, "tokens points"]:
        log_w, means, log_s = (p[:, None] for p in self._parts(params))
        return torch.logsumexp(log_w + self._log_density((x[..., None] - means) * torch.exp(-log_s)) - log_s, -1)

    def cdf(self, params: Params, x: Values, above: bool = False) -> Values:
        """Give the probability of a value below x, or above it."""
        log_w, means, log_s = self._parts(params)
        z = (x[:, None] - means) * torch.exp(-log_s)
        return (log_w.exp() * self._distribution(-z if above else z)).sum(-1).clamp(max=1.0)

    def tail(self, params: Params, x: Values) -> Values:
        """Give the probability of a value at least as far out as x, on either side."""
        sides = torch.minimum(self.cdf(params, x), self.cdf(params, x, above=True))
        return (2 * sides).clamp(max=1.0)

    def entropy(self, params: Params) -> Values:
        """Integrate over each component's quantiles by the tanh-sinh rule.

        Within about 1e-4 nats for a few components of like widths; narrow ones far from wide ones cost up to 0.1.
        """
        starts = range(0, max(len(params), 1), ENTROPIES_AT_ONCE)
        return torch.cat([self._entropy(params[s : s + ENTROPIES_AT_ONCE]) for s in starts])

    def _entropy(self, params: Params) -> Values:
        log_w, means, log_s = self._parts(params)
        t = torch.linspace(-3.2, 3.2, 129, dtype=torch.float64)
        u = (1 + torch.tanh(math.pi / 2 * torch.sinh(t))) / 2
        w = torch.cosh(t) / torch.cosh(math.pi / 2 * torch.sinh(t)) ** 2
        u, w = (a.to(params.device) for a in (u, w / w.sum()))
        z = self._quantile(u.clamp(1e-15, 1 - 1e-15)).to(params.dtype)
        points = means[..., None] + log_s.exp()[..., None] * z  # tokens components nodes
        log_p = self._log_prob_each(params, points.flatten(1)).view_as(points)
        return -(log_w.exp() * (log_p @ w.to(params.dtype))).sum(-1)

    def marginal(self, x: Values) -> Float[Tensor, "n_params"]:
        k = self.n_components
        some = x[:: len(x) // ENOUGH + 1].double()
        q = torch.quantile(some, (torch.arange(k, dtype=torch.float64, device=x.device) + 0.5) / k)
        spread = (x.double().std(correction=0) / k).clamp(min=1e-3)
        return torch.cat([torch.zeros_like(q), q, spread.log().expand(k)]).to(x.dtype)


@dataclass(frozen=True)
class Inflated(Mixture):
    """A mixture of all numbers but a point mass; one more parameter, the last, is the log-odds of that mass."""

    @property
    def n_params(self) -> int:
        return super().n_params + 1

    def _parts(self, params: Params) -> tuple[Tensor, Tensor, Tensor]:
        return super()._parts(params[:, :-1])

    def marginal(self, x: Values) -> Float[Tensor, "n_params"]:
        """Give the parameters of numbers x, NaN for those that are the point mass."""
        rest = x[~x.isnan()]
        odds = torch.logit(x.isnan().to(x.dtype).sum().add(0.5) / (len(x) + 1))
        return torch.cat([super().marginal(rest if len(rest) else x.nan_to_num()), odds[None]])
