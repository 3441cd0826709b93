"""MADE: an autoencoder whose weights are masked so that each output sees only what its order puts before it."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from deformer.baselines.baseline import Baseline, Batch
from deformer.baselines.labels import Labels
from deformer.data.orders import required
from deformer.data.schema import Schema
from deformer.data.seeds import generator
from deformer.data.table import Rows
from deformer.errors import InputError
from deformer.nn.heads import Conditionals

Masks = list[Tensor]
FEW_MASKS = 32  # of two layers of 2,000 units for 784 pixels they take a gigabyte


class MADE(Baseline):
    """A masked multilayer perceptron with a direct connection from inputs to outputs.

    Args:
        hidden: Widths of its layers.
        n_masks: Different orders, each with connections of its own, of which every training step draws one. Of few
            features there may be fewer.
        looks: Orders whose ensemble chooses the weights. 1: rows under one order each.
        seed: Of the orders and connections.

    References:
        MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015), https://arxiv.org/abs/1502.03509

    Examples:
        >>> from deformer import Binary, table_schema
        >>> model = MADE(table_schema([Binary()] * 3), hidden=(8,), n_masks=2)
        >>> model.sample(5, generator(0)).shape
        torch.Size([5, 3])
    """

    own_orders: Tensor
    degrees: Tensor
    _kept: dict[int, Masks]

    def __init__(
        self, schema: Schema, hidden: tuple[int, ...] = (500, 500), n_masks: int = 32, looks: int = 1, seed: int = 0
    ) -> None:
        super().__init__(schema, rows_at_once=8192)
        self._kept = {}
        self.labels, self.looks, draws = Labels(schema), looks, generator(seed, "masks")
        d = len(schema)
        self.n_masks = n_masks = min(n_masks, math.factorial(d))
        self.register_buffer("own_orders", _distinct_orders(n_masks, d, draws))
        # A hidden unit of degree m sees the first m features of an order, through units of no higher degree.
        low, degrees = torch.ones(n_masks, 1), []
        for width in hidden:
            share = torch.rand(n_masks, width, generator=draws)
            degrees.append((low + share * (max(d, 2) - low)).long())
            low = degrees[-1].amin(1, keepdim=True).float()
        self.register_buffer("degrees", torch.cat(degrees, 1))
        widths = (self.labels.n, *hidden, self.labels.n)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.direct = nn.Linear(self.labels.n, self.labels.n, bias=False)
        self.hidden = hidden

    def masks(self, which: int) -> Masks:
        """Give the mask of every layer, (outputs, inputs), and that of the direct connection, last.

        Those of few orders are kept, since to make them costs as much as to use them.
        """
        if which in self._kept:
            return self._kept[which]
        place = self.own_orders[which].argsort()[self.labels.owner] + 1  # of each input: 1, ..., D
        levels = [place, *torch.split(self.degrees[which], list(self.hidden))]
        masks = [after[:, None] >= before for before, after in zip(levels, levels[1:], strict=False)]
        numbers = [m.to(self.dtype) for m in (*masks, place[:, None] > levels[-1], place[:, None] > place)]
        if self.n_masks <= FEW_MASKS:
            self._kept[which] = numbers
        return numbers

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._kept.clear()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def load_state_dict(self, *args: Any, **choices: Any) -> Any:
        self._kept.clear()
        return super().load_state_dict(*args, **choices)

    def weights(self, which: int) -> list[Tensor]:
        """Give what an order's masks leave of every layer's weights, and of those of the direct connection, last."""
        return [layer.weight * mask for layer, mask in zip((*self.layers, self.direct), self.masks(which), strict=True)]

    def start(self, rows: Rows) -> None:
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        for layer in (last, self.direct):
            nn.init.zeros_(layer.weight)
        self.labels.fit_marginals(last.bias, rows.values.to(self.dtype))

    def conditionals(
        self, x: Batch, weights: list[Tensor], asked: Int[Tensor, "batch n"] | None = None
    ) -> Conditionals:
        """Give p(feature | those before it in the order of the weights), of all features if none are named."""
        *through, direct = weights
        h = encoded = self.labels.encode(x)
        for i, (layer, weight) in enumerate(zip(self.layers, through, strict=True)):
            h = F.linear(h, weight, layer.bias)  # type: ignore[arg-type]
            h = F.relu(h) if i < len(self.hidden) else h
        return self.labels.conditionals(h + F.linear(encoded, direct), asked)

    def order_of(self, number: int, n: int, generator: torch.Generator) -> Tensor:
        return self.own_orders[number % self.n_masks].expand(n, -1)

    def orders(self, n: int, generator: torch.Generator | None) -> Tensor:
        if self.n_masks == 1:
            return self.own_orders.expand(n, -1)
        return self.own_orders[torch.randint(self.n_masks, (n,), generator=required(generator))]

    def _which(self, orders: Tensor) -> Tensor:
        """Look up which of the model's orders each row follows.

        Raises:
            InputError: It is none of them.
        """
        different, place = torch.unique(orders, dim=0, return_inverse=True)
        same = (different[:, None] == self.own_orders).all(-1)
        if not same.any(1).all():
            raise InputError(f"MADE knows {self.n_masks} orders, its own; draw them with `orders`.")
        which: Tensor = same.int().argmax(1)[place]
        return which

    def loss(self, x: Batch, generator: torch.Generator) -> Float[Tensor, ""]:
        which = int(torch.randint(self.n_masks, (), generator=generator))
        return -self.conditionals(x, self.weights(which)).log_prob(x).sum(-1).mean()

    @torch.no_grad()
    def look(self, x: Batch, generator: torch.Generator) -> float:
        if self.looks == 1:
            return super().look(x, generator)
        chosen = torch.randperm(self.n_masks, generator=generator)[: self.looks].tolist()
        per_order = torch.stack([self.conditionals(x, self.weights(k)).log_prob(x).sum(-1) for k in chosen])
        return -(per_order.logsumexp(0) - math.log(len(chosen))).mean().item()

    def terms(self, x: Batch, orders: Tensor) -> Batch:
        which, out = self._which(orders), torch.empty_like(x)
        for k in set(which.tolist()):
            rows = which == k
            out[rows] = self.conditionals(x[rows], self.weights(k)).log_prob(x[rows])
        return out

    def draw(self, orders: Tensor, generator: torch.Generator) -> Batch:
        which, x = self._which(orders), torch.zeros(orders.shape, dtype=self.dtype)
        for k in set(which.tolist()):
            rows, weights = (which == k).nonzero()[:, 0], self.weights(k)
            for feature in self.own_orders[k]:
                asked = feature.expand(len(rows), 1)
                x[rows, feature] = self.conditionals(x[rows], weights, asked).sample(generator)[:, 0]
        return x


def _distinct_orders(n: int, d: int, generator: torch.Generator) -> Int[Tensor, "n d"]:
    orders: dict[tuple[int, ...], None] = {}  # in the order in which they are drawn
    while len(orders) < n:
        orders[tuple(torch.randperm(d, generator=generator).tolist())] = None
    return torch.tensor(list(orders))
