"""The models of the paper's comparison at equal time: `python -m benchmarks.compare --source S --minutes M`.

Every model trains for the same minutes on the same threads, is validated on the same rows, and is scored on the same
test rows. Each result is a file in results/compare; what is there already is not measured again, so that an interrupted
run goes on. Sources: digits-binary, mnist-binarized, or the path of an .npz with train, valid and test.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.machine import RESULTS, circumstances
from deformer import DEformer, ModelConfig, Rows, TrainConfig, fit, generator, load_source, new_model, sample
from deformer.api import plots
from deformer.api.training import with_parts
from deformer.baselines.baseline import Baseline, fit_baseline
from deformer.baselines.made import MADE
from deformer.baselines.nade import DeepNADE
from deformer.baselines.pixels import PixelRNN
from deformer.baselines.trade import TraDE
from deformer.data.schema import Schema
from deformer.data.sources import Source
from deformer.data.table import subset
from deformer.errors import InputError
from deformer.tasks.density import NLL, log_prob
from deformer.train.process import keep_memory

FOLDER = RESULTS / "compare"


class Contender(Protocol):
    """A model in the comparison."""

    def train(self, source: Source, minutes: float) -> tuple[list[float], list[float], int]:
        """Give minutes and validation NLL along the way, and rows seen."""

    def log_prob(self, rows: Rows, draws: torch.Generator) -> Tensor:
        """Score rows under an order for each that the model draws."""

    def sample(self, n: int, draws: torch.Generator) -> Tensor: ...

    @property
    def parameters(self) -> int: ...


class Ours:
    """A DEformer of some configuration.

    Args:
        orders: "random", or "raster" for a model of one order.
    """

    def __init__(
        self, schema: Schema, network: dict[str, Any], training: dict[str, Any], orders: str = "random"
    ) -> None:
        self.model: DEformer = new_model(schema, ModelConfig(**network))
        self.training, self.orders = training, orders

    def train(self, source: Source, minutes: float) -> tuple[list[float], list[float], int]:
        quiet: dict[str, Any] = {"minutes": minutes, "orders": self.orders, "validation_orders": 1}
        config = TrainConfig(**{**quiet, **self.training})
        points = fit(self.model, source.train, config, validation=source.validation).points
        return [p.minutes for p in points], [p.validation_nll or 0.0 for p in points], points[-1].rows_seen

    def log_prob(self, rows: Rows, draws: torch.Generator) -> Tensor:
        if self.orders == "raster":
            return log_prob(self.model, rows, sequence=range(len(rows.schema)))
        return log_prob(self.model, rows, generator=draws)

    def sample(self, n: int, draws: torch.Generator) -> Tensor:
        order = torch.arange(len(self.model.schema)) if self.orders == "raster" else None
        return sample(self.model, n, generator=draws, orders=order)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


class Theirs:
    """A baseline."""

    def __init__(self, model: Baseline, lr: float = 1e-3, batch: int = 100) -> None:
        self.model, self.lr, self.batch = model, lr, batch

    def train(self, source: Source, minutes: float) -> tuple[list[float], list[float], int]:
        assert source.validation is not None
        held_out = subset(source.validation, 500, generator(0, "validation rows"))
        curve = fit_baseline(self.model, source.train, held_out, minutes=minutes, lr=self.lr, batch=self.batch)
        return curve.minutes, curve.nll, curve.rows_seen

    def log_prob(self, rows: Rows, draws: torch.Generator) -> Tensor:
        return self.model.log_prob(rows, draws=draws)

    def sample(self, n: int, draws: torch.Generator) -> Tensor:
        return self.model.sample(n, draws)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


SEVERAL_ORDERS = ("deformer", "deformer interleaved", "deformer single stream", "DeepNADE", "MADE, 32 orders")
MODELS: dict[str, Callable[[Schema], Contender]] = {
    "deformer": lambda s: Ours(s, {}, {}),
    "deformer interleaved": lambda s: Ours(s, {"wiring": "interleaved"}, {}),
    "deformer single stream": lambda s: Ours(s, {"wiring": "single_stream"}, {}),
    "deformer, fixed order": lambda s: Ours(s, {}, {"curriculum": ((1.0, 1.0),)}, "raster"),
    "DeepNADE": lambda s: Theirs(DeepNADE(s)),
    "MADE, 32 orders": lambda s: Theirs(MADE(s)),
    "DeepNADE, fixed order": lambda s: Theirs(DeepNADE(s, fixed=True)),
    "TraDE": lambda s: Theirs(TraDE(s), 3e-4, 32),
    "PixelCNN": lambda s: Theirs(PixelRNN(s, "cnn"), 1e-3, 32),
    "Row LSTM": lambda s: Theirs(PixelRNN(s, "row"), 1e-3, 16),
    "Diagonal BiLSTM": lambda s: Theirs(PixelRNN(s, "diagonal"), 1e-3, 16),
}


def measure(name: str, source: Source, minutes: float, n_rows: int, n_orders: int) -> dict[str, Any]:
    """Train a model and score test rows; of those that take any order the mean and the ensemble over several."""
    torch.manual_seed(0)
    assert source.test is not None
    model = MODELS[name](source.schema)
    along, nll, rows_seen = model.train(source, minutes)
    rows = subset(source.test, n_rows, generator(0, "test rows"))
    k = n_orders if name in SEVERAL_ORDERS else 1
    start = time.monotonic()
    scores = NLL(torch.stack([-model.log_prob(rows, generator(i, "orders")).double() for i in range(k)]))
    scoring, start = time.monotonic() - start, time.monotonic()
    model.sample(16, generator(0))
    result = {
        **{"parameters": model.parameters, "rows_seen": rows_seen, "rows_per_second": rows_seen / (60 * along[-1])},
        **{"nll": scores.mean, "error": scores.mean_error, "orders": k, "test_rows": len(rows)},
        **{"scoring_seconds": scoring, "sampling_seconds_of_16": time.monotonic() - start},
        **{"minutes": along, "validation_nll": nll, "machine": circumstances()},
    }
    return {**result, "ensemble": scores.ensemble, "ensemble_error": scores.ensemble_error} if k > 1 else result


def table(results: dict[str, dict[str, Any]]) -> str:
    """Write the results of one source at one length of training as Markdown."""
    lines = [
        "| model | parameters | rows/s | NLL, mean over orders (nats) | ensemble | NLL, fixed order | 16 samples (s) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in (n for n in MODELS if n in results):
        r = results[name]
        score = f"{r['nll']:.2f} +- {r['error']:.2f}"
        any_order = name in SEVERAL_ORDERS
        together = f"{r['ensemble']:.2f}" if "ensemble" in r else ""
        cells = [f"{r['parameters']:,}", f"{r['rows_per_second']:.0f}", score if any_order else "", together]
        cells += ["" if any_order else score, f"{r['sampling_seconds_of_16']:.1f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="digits-binary")
    parser.add_argument("--minutes", type=float, default=3.0, help="of training, per model")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--rows", type=int, default=500, help="random test rows")
    parser.add_argument("--orders", type=int, default=8)
    parser.add_argument("--output", type=Path, default=FOLDER)
    chosen = parser.parse_args()
    keep_memory()
    source = with_parts(load_source(chosen.source), 0)
    folder = chosen.output / f"{Path(chosen.source).stem}-{chosen.minutes:g}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in chosen.models:
        path = folder / f"{name}.json"
        if path.exists() and (done := json.loads(path.read_text()))["test_rows"] == chosen.rows:
            print(f"{name}: {done['nll']:.2f} +- {done['error']:.2f}, measured before")
            continue
        try:
            result = measure(name, source, chosen.minutes, chosen.rows, chosen.orders)
        except InputError as error:
            print(f"{name}: {error}")
            continue
        path.write_text(json.dumps(result, indent=2) + "\n")
        print(f"{name}: {result['nll']:.2f} +- {result['error']:.2f}", flush=True)
    results = {p.stem: json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))}
    (folder / "table.md").write_text(table(results))
    curves = {name: (r["minutes"], r["validation_nll"]) for name, r in results.items()}
    (folder / "curves.png").write_bytes(plots.curve(curves, "minutes on two cores", "NLL (nats)"))
    print(table(results))


if __name__ == "__main__":
    main()
