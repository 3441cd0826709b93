"""The models that are compared: the DEformer's variants and the baselines, trained and asked in one way."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.recipe import defaults
from deformer import DEformer, ModelConfig, Rows, TrainConfig, fit, generator, new_model, sample
from deformer.baselines.baseline import Baseline, fit_baseline
from deformer.baselines.made import MADE
from deformer.baselines.masked import MaskedTransformer
from deformer.baselines.nade import NADE, DeepNADE
from deformer.baselines.pixels import PixelRNN
from deformer.baselines.trade import TraDE
from deformer.data.schema import Schema
from deformer.data.sources import Source
from deformer.data.table import subset
from deformer.tasks.density import log_prob
from deformer.train.process import bfloat16_is_fast

MANY_FEATURES = 500
EXACT_FEATURES = 64
N_MASKS = 32
DECAYS = (0.0, 0.1, 0.3)


class Contender(Protocol):
    """A model in the comparison."""

    def train(self, source: Source, minutes: float, n_looked_at: int) -> tuple[list[float], list[float], int]:
        """Give minutes and validation NLL along the way, and rows seen.

        Args:
            n_looked_at: Validation rows at most.
        """

    def log_prob(self, rows: Rows, number: int) -> Tensor:
        """Score rows under the orders of the model's ensemble that have a number."""

    def sample(self, n: int, draws: torch.Generator) -> Tensor: ...

    @property
    def exact(self) -> bool:
        """Say whether scores are those of one order each; else their mean estimates the mean over orders."""

    @property
    def rounds(self) -> bool:
        """Say whether products are rounded to bfloat16 in training, where that is fast."""

    @property
    def parameters(self) -> int: ...

    @property
    def recipe(self) -> Any:
        """Give, as JSON would hold it, what must not have changed for an earlier result to count."""

    @property
    def chosen(self) -> Any:
        """Say which variant validation chose, if there are several."""


def plain(recipe: Any) -> Any:
    """Turn a recipe into what JSON would give back."""
    return json.loads(json.dumps(recipe, default=dataclasses.asdict))


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class Ours:
    """A DEformer of some configuration.

    Args:
        orders: "random", or "raster" for a model of one order.
    """

    exact = rounds = True
    chosen = None

    def __init__(
        self, schema: Schema, network: dict[str, Any], training: dict[str, Any], orders: str = "random"
    ) -> None:
        self.model: DEformer = new_model(schema, ModelConfig(**network))
        self.training, self.orders = training, orders
        self.recipe = plain({"network": network, "training": training, "orders": orders})

    def train(self, source: Source, minutes: float, n_looked_at: int) -> tuple[list[float], list[float], int]:
        asked: dict[str, Any] = {"minutes": minutes, "orders": self.orders}
        asked |= {"validation_orders": 1, "validation_rows": n_looked_at}
        config = TrainConfig(**{**self.training, **asked})
        history = fit(self.model, source.train, config, validation=source.validation)
        history.raise_if_interrupted()
        points = history.points
        nll = [p.validation_nll for p in points if p.validation_nll is not None]
        return [p.minutes for p in points], nll, points[-1].rows_seen

    def log_prob(self, rows: Rows, number: int) -> Tensor:
        if self.orders == "raster":
            return log_prob(self.model, rows, sequence=range(len(rows.schema)))
        return log_prob(self.model, rows, generator=generator(number, "orders"))

    def sample(self, n: int, draws: torch.Generator) -> Tensor:
        order = torch.arange(len(self.model.schema)) if self.orders == "raster" else None
        return sample(self.model, n, generator=draws, orders=order)

    @property
    def parameters(self) -> int:
        return count(self.model)


class Theirs:
    """A baseline, in variants of which validation chooses where one leaves time for the next.

    Args:
        kind: Its class.
        shapes: What it is made with. All come in turn with the first weight decay, then with the next.
        rounds: Whether its products may be rounded to bfloat16, as the DEformer's are where that is fast; those of a
            model that is no faster so are not.
        training: For `fit_baseline`.
    """

    def __init__(
        self,
        schema: Schema,
        kind: type[Baseline],
        shapes: Sequence[dict[str, Any]] = ({},),
        decays: Sequence[float] = DECAYS,
        batch: int = 100,
        rounds: bool = False,
        **training: Any,
    ) -> None:
        self.kind, self.batch, self.rounds = kind, batch, rounds
        self.variants = [(shape, {**training, "weight_decay": decay}) for decay in decays for shape in shapes]
        self.model, self.chosen = kind(schema, **shapes[0]), plain(self.variants[0])
        self.recipe = plain({"model": kind.__name__, "batch": batch, "variants": self.variants})
        # A Transformer's run for each of many features would take hours for a handful of rows.
        self.exact = kind is not MaskedTransformer or len(schema) <= EXACT_FEATURES

    def train(self, source: Source, minutes: float, n_looked_at: int) -> tuple[list[float], list[float], int]:
        assert source.validation is not None
        held_out = subset(source.validation, n_looked_at, generator(0, "validation rows"))
        limits: dict[str, Any] = {"batch": min(self.batch, len(source.train))}
        limits["bfloat16"] = self.rounds and bfloat16_is_fast()
        along: list[float] = []
        nll: list[float] = []
        rows_seen, begin = 0, time.monotonic()
        for shape, training in self.variants:
            spent = (time.monotonic() - begin) / 60
            if nll and spent > 0.98 * minutes:
                break
            model = self.kind(source.schema, **shape)
            curve = fit_baseline(model, source.train, held_out, minutes=minutes - spent, **training, **limits)
            if min(curve.nll) < min(nll, default=math.inf):
                self.model, self.chosen = model, plain((shape, training))
            along += [spent + m for m in curve.minutes]
            nll += curve.nll
            rows_seen += curve.rows_seen
        return along, nll, rows_seen

    def log_prob(self, rows: Rows, number: int) -> Tensor:
        draws = generator(number, "orders")
        if self.exact:
            return self.model.log_prob(rows, self.model.order_of(number, len(rows), draws))
        assert isinstance(self.model, MaskedTransformer)
        x = self.model.complete(rows)
        with torch.no_grad():
            return torch.cat([self.model.estimate(x[part], draws) for part in self.model.parts(len(x))])

    def sample(self, n: int, draws: torch.Generator) -> Tensor:
        return self.model.sample(n, draws)

    @property
    def parameters(self) -> int:
        return count(self.model)


Make = Callable[[Source, float], Contender]  # given the minutes of training


def ours(network: dict[str, Any], orders: str = "random") -> Make:
    """Make a DEformer with the defaults for a source and a time."""

    def make(source: Source, minutes: float) -> Contender:
        shape, training = defaults(source, minutes)
        if orders == "raster":
            training = {**training, "curriculum": ((1.0, 1.0),)}
        return Ours(source.schema, {**shape, **network}, training, orders)

    return make


def theirs(kind: type[Baseline], *shapes: dict[str, Any], **choices: Any) -> Make:
    return lambda source, _: Theirs(source.schema, kind, shapes or ({},), **choices)


def made(n_masks: int, *depths: int) -> Make:
    """Make a MADE of some numbers of layers, wide where there are many features."""

    def make(source: Source, _: float) -> Contender:
        width = 2000 if len(source.schema) > MANY_FEATURES else 500
        shapes = [{"hidden": (width,) * depth, "n_masks": n_masks} for depth in depths]
        return Theirs(source.schema, MADE, shapes, rounds=True)

    return make


def masked(source: Source, minutes: float) -> Contender:
    """Make a masked Transformer of the DEformer's size, which learns at its rates."""
    network, training = defaults(source, minutes)
    shape = {"config": ModelConfig(**network), "dropout": training["dropout"]}
    rates = {name: training[name] for name in ("lr", "muon_lr")}
    batch = training["rows_per_step"] or 16
    return Theirs(source.schema, MaskedTransformer, [shape], [training["weight_decay"]], batch, rounds=True, **rates)


def trade(source: Source, minutes: float) -> Contender:
    """Make a TraDE of the DEformer's size and dropout."""
    network, training = defaults(source, minutes)
    size = ModelConfig(**network)
    shape = {"d_model": size.d_model, "n_layers": size.n_layers, "n_heads": size.n_heads, "d_ff": size.width_ff}
    return Theirs(source.schema, TraDE, [{**shape, "dropout": training["dropout"]}], batch=32, rounds=True)


SEVERAL_ORDERS = (
    *("deformer", "deformer interleaved", "deformer single stream", "masked Transformer", "DeepNADE"),
    "MADE, 32 orders",
)
MODELS: dict[str, Make] = {
    "deformer": ours({}),
    "deformer interleaved": ours({"wiring": "interleaved"}),
    "deformer single stream": ours({"wiring": "single_stream"}),
    "masked Transformer": masked,
    "DeepNADE": theirs(DeepNADE, {"hidden": (500, 500)}, {"hidden": (500,)}, rounds=True),
    "MADE, 32 orders": made(N_MASKS, 2, 1),
    "deformer, fixed order": ours({}, "raster"),
    "NADE": theirs(NADE, batch=20),
    "MADE, one order": made(1, 2, 1),
    "TraDE": trade,
    "PixelCNN": theirs(PixelRNN, {"kind": "cnn", "n_channels": 64}, batch=32, rounds=True),
    "Row LSTM": theirs(PixelRNN, {"kind": "row"}, batch=16),
    "Diagonal BiLSTM": theirs(PixelRNN, {"kind": "diagonal"}, batch=16),
}
