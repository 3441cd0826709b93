"""The models of the paper's comparison at equal time: `python -m benchmarks.compare --source S --minutes M`.

Every model trains for the same minutes on the same threads, is validated on the same rows, and is scored on the same
test rows. Looking at validation rows counts as training. A baseline that stops early, since nothing gets better,
spends what is left on its next variant, and validation chooses among them. Each result is a file in results/compare;
what is there already, of the same recipe, is not measured again, so that an interrupted run goes on. Sources:
digits-binary, mnist-binarized, or the path of an .npz with train, valid and test.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.machine import RESULTS, circumstances, matmul_rate, uninterrupted
from benchmarks.recipe import defaults, label
from benchmarks.tables.density import markdown
from deformer import DEformer, ModelConfig, Rows, TrainConfig, fit, generator, load_source, new_model, sample
from deformer.api import plots
from deformer.api.training import with_parts
from deformer.baselines.baseline import Baseline, fit_baseline
from deformer.baselines.made import MADE
from deformer.baselines.masked import MaskedTransformer
from deformer.baselines.nade import NADE, DeepNADE
from deformer.baselines.pixels import PixelRNN
from deformer.baselines.trade import TraDE
from deformer.data.schema import Schema
from deformer.data.sources import Source
from deformer.data.table import subset
from deformer.errors import InputError
from deformer.tasks.density import NLL, log_prob
from deformer.train.checkpoint import write_bytes
from deformer.train.process import bfloat16_is_fast, keep_memory

FOLDER = RESULTS / "compare"


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


class Ours:
    """A DEformer of some configuration.

    Args:
        orders: "random", or "raster" for a model of one order.
    """

    exact = rounds = True

    def __init__(
        self, schema: Schema, network: dict[str, Any], training: dict[str, Any], orders: str = "random"
    ) -> None:
        self.model: DEformer = new_model(schema, ModelConfig(**network))
        self.training, self.orders, self.recipe = training, orders, {"network": network, "training": training}

    def train(self, source: Source, minutes: float, n_looked_at: int) -> tuple[list[float], list[float], int]:
        asked: dict[str, Any] = {"minutes": minutes, "orders": self.orders}
        asked |= {"validation_orders": 1, "validation_rows": n_looked_at}
        config = TrainConfig(**{**self.training, **asked})
        history = fit(self.model, source.train, config, validation=source.validation)
        uninterrupted(history)
        points = history.points
        return [p.minutes for p in points], [p.validation_nll or 0.0 for p in points], points[-1].rows_seen

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
        makers: Ways to make it.
        decays: Weight decays: with the first all ways come in turn, then with the next.
        rounds: Whether its products may be rounded to bfloat16, as the DEformer's are where that is fast; those of a
            model that is no faster so are not.
        training: For `fit_baseline`.
    """

    def __init__(
        self,
        schema: Schema,
        makers: Sequence[Callable[[Schema], Baseline]],
        decays: Sequence[float],
        batch: int = 100,
        rounds: bool = False,
        **training: Any,
    ) -> None:
        self.batch, self.rounds = batch, rounds
        self.variants = [(make, {**training, "weight_decay": decay}) for decay in decays for make in makers]
        models = [make(schema) for make, _ in self.variants]
        self.model = models[0]
        self.recipe = [
            {"parameters": count(m), "batch": batch, **its} for m, (_, its) in zip(models, self.variants, strict=True)
        ]
        # A Transformer's run for each of many features would take hours for a handful of rows.
        self.exact = not isinstance(self.model, MaskedTransformer) or len(schema) <= EXACT_FEATURES

    def train(self, source: Source, minutes: float, n_looked_at: int) -> tuple[list[float], list[float], int]:
        assert source.validation is not None
        held_out = subset(source.validation, n_looked_at, generator(0, "validation rows"))
        limits: dict[str, Any] = {"batch": min(self.batch, len(source.train))}
        limits["bfloat16"] = self.rounds and bfloat16_is_fast()
        along: list[float] = []
        nll: list[float] = []
        rows_seen, begin = 0, time.monotonic()
        for make, training in self.variants:
            spent = (time.monotonic() - begin) / 60
            if nll and spent > 0.98 * minutes:
                break
            model, best = make(source.schema), min(nll, default=math.inf)
            curve = fit_baseline(model, source.train, held_out, minutes=minutes - spent, **training, **limits)
            if min(curve.nll) < best:
                self.model = model
            along += [spent + m for m in curve.minutes]
            nll += [min(best, n) for n in curve.nll]
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


MANY_FEATURES = 500
EXACT_FEATURES = 64
N_MASKS = 32
DECAYS = (0.0, 0.1, 0.3)
Make = Callable[[Source, float], Contender]  # given the minutes of training


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def ours(network: dict[str, Any], orders: str = "random") -> Make:
    """Make a DEformer with the defaults for a source and a time."""

    def make(source: Source, minutes: float) -> Contender:
        shape, training = defaults(source, minutes)
        if orders == "raster":
            training = {**training, "curriculum": ((1.0, 1.0),)}
        return Ours(source.schema, {**shape, **network}, training, orders)

    return make


def theirs(*makers: Callable[[Schema], Baseline], decays: Sequence[float] = DECAYS, **choices: Any) -> Make:
    return lambda source, minutes: Theirs(source.schema, makers, decays, **choices)


def made(n_masks: int, *layers: int) -> Callable[[Schema], Baseline]:
    """Make a MADE of some layers, wide where there are many features."""
    return lambda s: MADE(s, tuple(n * (4 if len(s) > MANY_FEATURES else 1) for n in layers), n_masks=n_masks)


def masked(source: Source, minutes: float) -> Contender:
    """Make a masked Transformer of the DEformer's size, which learns at its rates."""
    shape, training = defaults(source, minutes)
    rates = {name: training[name] for name in ("lr", "muon_lr")}

    def make(schema: Schema) -> Baseline:
        return MaskedTransformer(schema, ModelConfig(**shape), training["dropout"])

    batch = training["rows_per_step"] or 16
    return Theirs(source.schema, [make], [training["weight_decay"]], batch, rounds=True, **rates)


def trade(source: Source, minutes: float) -> Contender:
    """Make a TraDE of the DEformer's size."""
    size = ModelConfig(**defaults(source, minutes)[0])

    def make(schema: Schema) -> Baseline:
        return TraDE(schema, size.d_model, size.n_layers, size.n_heads, size.width_ff)

    return Theirs(source.schema, [make], DECAYS, 32, rounds=True, lr=3e-4)


SEVERAL_ORDERS = (
    *("deformer", "deformer interleaved", "deformer single stream", "masked Transformer", "DeepNADE"),
    "MADE, 32 orders",
)
MODELS: dict[str, Make] = {
    "deformer": ours({}),
    "deformer interleaved": ours({"wiring": "interleaved"}),
    "deformer single stream": ours({"wiring": "single_stream"}),
    "masked Transformer": masked,
    "DeepNADE": theirs(lambda s: DeepNADE(s, (500, 500)), lambda s: DeepNADE(s, (500,)), rounds=True),
    "MADE, 32 orders": theirs(made(N_MASKS, 500, 500), made(N_MASKS, 500), rounds=True),
    "deformer, fixed order": ours({}, "raster"),
    "NADE": theirs(NADE, batch=20),
    "MADE, one order": theirs(lambda s: MADE(s, (500,), n_masks=1), rounds=True),
    "TraDE": trade,
    "PixelCNN": theirs(lambda s: PixelRNN(s, "cnn", 64), batch=32, rounds=True),
    "Row LSTM": theirs(lambda s: PixelRNN(s, "row"), batch=16),
    "Diagonal BiLSTM": theirs(lambda s: PixelRNN(s, "diagonal"), batch=16),
}


def measure(
    make: Make,
    source: Source,
    minutes: float,
    n_rows: int,
    n_orders: int,
    n_looked_at: int = 500,
) -> dict[str, Any]:
    """Train a model and score test rows; under several orders the mean and the ensemble."""
    torch.manual_seed(0)
    assert source.test is not None
    model, machine = make(source, minutes), circumstances()
    # A machine shared with others may be slower for one model than for the next: the result tells.
    rate_before = matmul_rate(torch.float32)
    along, nll, rows_seen = model.train(source, minutes, n_looked_at)
    rates = [rate_before, matmul_rate(torch.float32)]
    rows = subset(source.test, n_rows, generator(0, "test rows"))
    start = time.monotonic()
    scores = NLL(torch.stack([-model.log_prob(rows, number).double() for number in range(n_orders)]))
    scoring = time.monotonic() - start
    result = {
        **{"parameters": model.parameters, "rows_seen": rows_seen, "rows_per_second": rows_seen / (60 * along[-1])},
        **{"nll": scores.mean, "error": scores.mean_error, "test_rows": len(rows), "exact": model.exact},
        "wanted": wanted(source, minutes, n_rows, n_orders, model),
        **{"scoring_seconds": scoring, "sampling_seconds_of_16": sampling_seconds(model)},
        **{"minutes": along, "validation_nll": nll, "machine": machine},
        "bfloat16": model.rounds and bfloat16_is_fast(),
        "float32_operations_per_second": rates,
    }
    result["nll_by_row"] = [round(nats, 4) for nats in scores.per_order.mean(0).tolist()]
    if n_orders > 1 and model.exact:
        result |= {"ensemble": scores.ensemble, "ensemble_error": scores.ensemble_error}
    return result


def sampling_seconds(model: Contender) -> float:
    """Time 16 draws: the fastest of four, or one that takes longer than a second."""
    took: list[float] = []
    while len(took) < 4 and sum(took) < 1:
        start = time.monotonic()
        model.sample(16, generator(0))
        took.append(time.monotonic() - start)
    return min(took)


def wanted(source: Source, minutes: float, n_rows: int, n_orders: int, model: Contender) -> dict[str, Any]:
    """Say what a result must have been measured with to count."""
    assert source.test is not None
    rows, recipe = min(n_rows, len(source.test)), json.loads(json.dumps(model.recipe))
    threads = torch.get_num_threads()
    return {"minutes": minutes, "rows": rows, "orders": n_orders, "threads": threads, "recipe": recipe}


def counted(path: Path, required: dict[str, Any]) -> dict[str, Any] | None:
    """Read a result, if it is there and was measured as it must be."""
    result: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return result if result is not None and result["wanted"] == required else None


def keep(path: Path, result: dict[str, Any]) -> None:
    """Write a result, whole or not at all."""
    write_bytes(path, (json.dumps(result, indent=2) + "\n").encode())


def table(results: dict[str, dict[str, Any]]) -> str:
    """Write the results of one source at one length of training as Markdown.

    A row of which a random subset of features was trained on counts as a row. A mean over orders with a ~ is estimated.
    How much more a model needs than the DEformer of as many orders is known better than either, since both scored the
    same rows.
    """
    head = ["model", "parameters", "rows/s", "NLL, mean over orders (nats)", "ensemble", "NLL, fixed order"]
    head += ["more than the DEformer", "minutes", "16 samples (s)"]
    lines = []
    for name, r in results.items():
        score = f"{'' if r.get('exact', True) else '~'}{r['nll']:.2f} +- {r['error']:.2f}"
        any_order = name in SEVERAL_ORDERS
        together = f"{r['ensemble']:.2f} +- {r['ensemble_error']:.2f}" if "ensemble" in r else ""
        cells = [f"{r['parameters']:,}", f"{r['rows_per_second']:.0f}", score if any_order else "", together]
        rival = results.get("deformer" if any_order else "deformer, fixed order")
        cells += ["" if any_order else score, paired_difference(r, rival), f"{r['minutes'][-1]:.1f}"]
        lines.append([name, *cells, f"{r['sampling_seconds_of_16']:.2g}"])
    return markdown(head, lines)


def paired_difference(result: dict[str, Any], than: dict[str, Any] | None) -> str:
    """Give the mean difference of two models' scores of the same rows, and its standard error."""
    if than is None or than is result or "nll_by_row" not in result or "nll_by_row" not in than:
        return ""
    theirs, ours = (torch.tensor([r["nll_by_row"]], dtype=torch.float64) for r in (result, than))
    difference = NLL(theirs - ours)
    return f"{difference.mean:+.2f} +- {difference.mean_error:.2f}"


def settled(minutes: list[float], nats: list[float]) -> tuple[list[float], list[float]]:
    """Leave out the first fiftieth of a curve, which would flatten the rest."""
    kept = [(m, n) for m, n in zip(minutes, nats, strict=True) if m >= 0.02 * minutes[-1]]
    return [m for m, _ in kept], [n for _, n in kept]


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="digits-binary")
    parser.add_argument("--minutes", type=float, default=3.0, help="of training, per model")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--rows", type=int, default=500, help="random test rows")
    parser.add_argument("--orders", type=int, default=8)
    parser.add_argument("--output", type=Path, default=FOLDER)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args(words)
    torch.set_num_threads(chosen.threads)
    keep_memory()
    source = with_parts(load_source(chosen.source), 0)
    folder = chosen.output / f"{label(chosen.source)}-{chosen.minutes:g}"
    folder.mkdir(parents=True, exist_ok=True)
    n_orders = {name: chosen.orders if name in SEVERAL_ORDERS else 1 for name in MODELS} | {"MADE, 32 orders": N_MASKS}
    required = {}
    for name, make in MODELS.items():
        try:
            model = make(source, chosen.minutes)
        except InputError as error:  # this source is not for every model
            print(f"{name}: {error}")
            continue
        required[name] = wanted(source, chosen.minutes, chosen.rows, n_orders[name], model)
    for name in [name for name in chosen.models if name in required]:
        path = folder / f"{name}.json"
        if (done := counted(path, required[name])) is not None:
            print(f"{name}: {done['nll']:.2f} +- {done['error']:.2f}, measured before")
            continue
        result = measure(MODELS[name], source, chosen.minutes, chosen.rows, n_orders[name])
        keep(path, result)
        print(f"{name}: {result['nll']:.2f} +- {result['error']:.2f}", flush=True)
    found = {name: counted(folder / f"{name}.json", needed) for name, needed in required.items()}
    results = {name: result for name, result in found.items() if result is not None}
    (folder / "table.md").write_text(table(results))
    curves = {name: settled(r["minutes"], r["validation_nll"]) for name, r in results.items()}
    axis = f"minutes on {chosen.threads} thread{'s' * (chosen.threads > 1)}"
    (folder / "curves.png").write_bytes(plots.curve(curves, axis, "validation NLL (nats)"))
    print(table(results))


if __name__ == "__main__":
    main()
