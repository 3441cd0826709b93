"""What all baselines share: how they are trained, asked and told what they cannot do."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from deformer.data.orders import check_orders
from deformer.data.schema import Feature, Schema
from deformer.data.seeds import generator
from deformer.data.table import Rows, as_rows
from deformer.errors import InputError, TrainingError
from deformer.tasks.density import TOKENS_PER_BATCH, pieces

Batch = Float[Tensor, "batch features"]
LEAST_STEPS = 100  # between looks: so few rows that an epoch takes a few steps would else run out of patience at once


def own_features(schema: Schema) -> Schema:
    """Give every feature an identity, and so weights, of its own, and no place."""
    return Schema(tuple(Feature(f.name, f.domain, None, True) for f in schema.features))


class Baseline(nn.Module, ABC):
    """A density over complete rows of one schema.

    Args:
        rows_at_once: How many rows its network takes at a time. None: as many as the DEformer's.
    """

    def __init__(self, schema: Schema, rows_at_once: int | None = None) -> None:
        super().__init__()
        self.schema = schema
        self.rows_at_once = max(1, TOKENS_PER_BATCH // len(schema)) if rows_at_once is None else rows_at_once

    @abstractmethod
    def loss(self, x: Batch, generator: torch.Generator) -> Float[Tensor, ""]:
        """Give an unbiased estimate of the training objective, in nats per row."""

    @abstractmethod
    def terms(self, x: Batch, orders: Tensor) -> Batch:
        """Give ln p(x_i | what its row's order puts before i), in column order.

        Raises:
            InputError: The model cannot take an order.
        """

    @abstractmethod
    def draw(self, orders: Tensor, generator: torch.Generator) -> Batch:
        """Draw one row for each order."""

    @abstractmethod
    def orders(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Draw orders (n, features) that the model can take.

        Raises:
            InputError: There are several, and no generator.
        """

    def order_of(self, number: int, n: int, generator: torch.Generator) -> Tensor:
        """Give n rows the orders of the model's ensemble that have a number."""
        return self.orders(n, generator)

    def start(self, rows: Rows) -> None:
        """Begin at the marginals of complete rows, if the model can."""

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Give the matrices that Muon may train."""
        return []

    @torch.no_grad()
    def look(self, x: Batch, generator: torch.Generator) -> float:
        """Estimate the NLL of validation rows in nats, by which weights are chosen."""
        return -self.log_prob(x, generator=generator).mean().item()

    @torch.no_grad()
    def log_prob(
        self, values: Any, orders: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Give ln p(row) in nats, under given orders or under ones that are drawn.

        Raises:
            InputError: Invalid values or orders, or neither orders nor, if there are several, a generator.
        """
        x = self.complete(values)
        if orders is None:
            orders = self.orders(len(x), generator)
        else:
            orders = check_orders(orders, len(x), len(self.schema), complete=True)
        return torch.cat([self.terms(x[part], orders[part]).sum(-1) for part in self.parts(len(x))])

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw rows.

        Raises:
            InputError: Fewer than one.
        """
        if n < 1:
            raise InputError(f"The number of rows to draw must be at least 1, not {n}.")
        orders = self.orders(n, generator)
        return torch.cat([self.draw(orders[part], generator) for part in self.parts(n)])

    @torch.no_grad()
    def impute(self, values: Any, generator: torch.Generator) -> Batch:
        """Fill in missing values, for models that take any order.

        Raises:
            InputError: The model has orders of its own.
        """
        raise InputError(f"{type(self).__name__} cannot condition on arbitrary features: its orders are fixed.")

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def value_dtype(self) -> torch.dtype:
        """That of labels is the model's; numbers may lie far from zero and keep all their digits."""
        return torch.float64 if self.schema.has_numbers else self.dtype

    def parts(self, n: int) -> Iterator[slice]:
        """Cut n rows into pieces that the network takes at once."""
        return pieces(n, self.rows_at_once)

    def complete(self, values: Any) -> Batch:
        """Give rows as the model takes them.

        Raises:
            InputError: A value is missing.
        """
        rows = as_rows(values, self.schema)
        if not rows.observed.all():
            raise InputError(f"{type(self).__name__} needs complete rows.")
        return rows.values.to(self.value_dtype)


@dataclass
class Curve:
    """How a training went: minutes, validation NLL in nats, and rows seen."""

    minutes: list[float] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
    rows_seen: int = 0


@torch.random.fork_rng(devices=())
def fit_baseline(
    model: Baseline,
    rows: Rows,
    validation: Rows,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    batch: int = 100,
    lr: float = 1e-3,
    muon_lr: float | None = None,
    weight_decay: float = 0.0,
    patience: int = 20,
    bfloat16: bool = False,
    seed: int = 0,
) -> Curve:
    """Train by Adam, or by Muon and Adam, and keep the weights that are best on validation rows.

    There is a look after every epoch of at least `LEAST_STEPS` or a fiftieth of the time.

    The rate falls linearly to 0 with the time; `patience` looks that bring nothing better divide it by 3 and go on from
    the best weights; the fourth time the training ends. So rows that are soon overfitted do no harm.

    Args:
        minutes, steps: The first to be reached ends the run; under the clock looks take a tenth of the time at most.
        muon_lr: Rate of the matrices that the model leaves to Muon. None: Adam trains all.
        weight_decay: Of Muon's matrices, or without Muon of all but biases, apart from the gradient, times the rate.
        bfloat16: Whether products are rounded.

    Raises:
        InputError: Neither minutes nor steps, no time at all, or rows that are not complete.
        TrainingError: The loss is not finite, or the NLL of the validation rows no number.
    """
    limits = [limit for limit in (minutes, steps) if limit is not None]
    if not limits or min(limits) <= 0:
        raise InputError("Say how long to train: give minutes or steps, more than 0.")
    x, held_out, d = model.complete(rows), model.complete(validation), len(model.schema)
    epoch = max(LEAST_STEPS, len(rows) // batch)
    torch.default_generator.manual_seed(seed)  # of PyTorch's own dropout
    model.start(rows)
    optimisers = _optimisers(model, lr, muon_lr, weight_decay)
    rates = [(group, group["lr"]) for optimiser in optimisers for group in optimiser.param_groups]
    curve, best, best_nll = Curve(), model.state_dict(), math.inf
    begin, step, done, stale, drops, looked, look_took = time.monotonic(), 0, 0.0, 0, 0, 0.0, 0.0
    while done < 1 and drops < 4:
        draws = generator(seed, "baseline", step)
        for group, first in rates:
            group["lr"] = first * (1 - done) / 3**drops
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = model.loss(x[torch.randint(len(x), (batch,), generator=draws)], draws) / d
        if not math.isfinite(loss.item()):
            raise TrainingError(f"The loss at step {step} is {loss.item()}.")
        for optimiser in optimisers:
            optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        step, curve.rows_seen = step + 1, curve.rows_seen + batch
        took = time.monotonic() - begin
        done = max(took / (60 * minutes) if minutes else 0.0, step / steps if steps else 0.0)
        waited = took - looked
        due = step % epoch == 0 or (minutes is not None and waited > 60 * minutes / 50)
        if done < 1 and (not due or (minutes is not None and waited < 9 * look_took)):
            continue
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            nll = model.eval().look(held_out, generator(seed, "validation"))
        if math.isnan(nll):
            raise TrainingError(f"The NLL of the validation rows at step {step} is {nll}.")
        looked, look_took = time.monotonic() - begin, time.monotonic() - begin - took
        curve.minutes.append(took / 60)
        curve.nll.append(nll)
        stale += 1
        if nll < best_nll:
            best_nll, best, stale = nll, {name: t.clone() for name, t in model.state_dict().items()}, 0
        if stale >= patience:
            model.load_state_dict(best)
            for optimiser in optimisers:
                optimiser.state.clear()  # moments of the weights that are given up
            stale, drops = 0, drops + 1
    model.load_state_dict(best)
    model.eval()
    return curve


def _optimisers(model: Baseline, lr: float, muon_lr: float | None, weight_decay: float) -> list[Optimizer]:
    """Give the optimisers; what decays are the matrices that Muon trains, or without it all but biases and vectors."""
    if muon_lr is not None:
        hidden = model.hidden_matrices()
        chosen = {id(p) for p in hidden}
        adam = AdamW([p for p in model.parameters() if id(p) not in chosen], lr=lr, weight_decay=0.0, fused=True)
        return [Muon(hidden, lr=muon_lr, weight_decay=weight_decay, adjust_lr_fn="original"), adam]
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, p in model.named_parameters():
        groups[p.ndim > 1 and not name.endswith("bias")].append(p)
    return [AdamW([{"params": ps, "weight_decay": weight_decay * d} for d, ps in groups.items()], lr=lr, fused=True)]
