"""The models of the paper's comparison at equal time: `python -m benchmarks.compare --source S --minutes M`.

Every model trains for the same minutes on the same threads, is validated on the same rows, and is scored on the same
test rows. Looking at validation rows counts as training. A baseline that stops early, since nothing gets better,
spends what is left on its next variant, if it has one, and validation chooses among them. Each result is a file in
results/compare; what is there already, of the same recipe, is not measured again, so that an interrupted run goes on;
after a change of a model's code delete its results. Sources: digits-binary, mnist-binarized, or the path of an .npz
with train, valid and test.
"""

import argparse
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import MODELS, N_MASKS, SEVERAL_ORDERS, Contender, Make
from benchmarks.machine import RESULTS, circumstances, counted, keep, matmul_rate
from benchmarks.recipe import label
from benchmarks.tables.density import markdown
from deformer import generator, load_source
from deformer.api import plots
from deformer.api.training import with_parts
from deformer.data.sources import Source
from deformer.data.table import subset
from deformer.errors import InputError
from deformer.tasks.density import NLL
from deformer.train.process import bfloat16_is_fast, keep_memory

FOLDER = RESULTS / "compare"


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
        **{"bfloat16": model.rounds and bfloat16_is_fast(), "chosen": model.chosen},
        "float32_operations_per_second": rates,
        "nll_by_row": [round(nats, 4) for nats in scores.per_order.mean(0).tolist()],
    }
    if n_orders > 1 and model.exact:
        result |= {"ensemble": scores.ensemble, "ensemble_error": scores.ensemble_error}
    return result


def sampling_seconds(model: Contender) -> float:
    """Time 16 draws: the fastest of at most four, begun within a second."""
    took: list[float] = []
    while len(took) < 4 and sum(took) < 1:
        start = time.monotonic()
        model.sample(16, generator(0))
        took.append(time.monotonic() - start)
    return min(took)


def wanted(source: Source, minutes: float, n_rows: int, n_orders: int, model: Contender) -> dict[str, Any]:
    """Say what a result must have been measured with to count."""
    assert source.test is not None
    limits = {"minutes": minutes, "rows": min(n_rows, len(source.test)), "orders": n_orders}
    return {**limits, "threads": torch.get_num_threads(), "recipe": model.recipe}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Write the results of one source at one length of training as Markdown.

    A row of which a random subset of features was trained on counts as a row. A mean over orders with a ~ is estimated.
    How much more a model needs than the DEformer, of several orders or of one, is known better than either, since both
    scored the same rows.
    """
    head = ["model", "parameters", "rows/s", "minutes", "NLL, mean over orders (nats)", "ensemble (orders)"]
    head += ["NLL, fixed order", "more than the DEformer", "16 samples (s)"]
    lines = []
    for name, r in results.items():
        score, drawing = f"{'' if r['exact'] else '~'}{r['nll']:.2f} +- {r['error']:.2f}", r["sampling_seconds_of_16"]
        cells = [f"{r['parameters']:,}", f"{r['rows_per_second']:.0f}", f"{r['minutes'][-1]:.1f}"]
        if name in SEVERAL_ORDERS:
            together = "ensemble" in r and f"{r['ensemble']:.2f} +- {r['ensemble_error']:.2f} ({r['wanted']['orders']})"
            cells += [score, together or "", "", paired_difference(r, results.get("deformer"))]
        else:
            cells += ["", "", score, paired_difference(r, results.get("deformer, fixed order"))]
        lines.append([name, *cells, f"{drawing:.{0 if drawing > 10 else 1 if drawing > 1 else 3}f}"])
    return markdown(head, lines)


def paired_difference(result: dict[str, Any], than: dict[str, Any] | None) -> str:
    """Give the mean difference of two models' scores of the same rows, and its standard error."""
    if than is None or than is result:
        return ""
    theirs, ours = (torch.tensor([r["nll_by_row"]], dtype=torch.float64) for r in (result, than))
    difference = NLL(theirs - ours)
    return f"{difference.mean:+.2f} +- {difference.mean_error:.2f}"


def settled(minutes: list[float], nats: list[float]) -> tuple[list[float], list[float]]:
    """Give the best so far, without the first fiftieth of a curve, which would flatten the rest."""
    best = accumulate(nats, min)
    kept = [(m, n) for m, n in zip(minutes, best, strict=True) if m >= 0.02 * minutes[-1]]
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
    written = table(results)
    processors = {name: r["machine"]["cpu"] for name, r in results.items()}
    if len(set(processors.values())) > 1:
        written += f"\nOn different processors: {', '.join(f'{name} on {cpu}' for name, cpu in processors.items())}.\n"
    (folder / "table.md").write_text(written)
    curves = {name: settled(r["minutes"], r["validation_nll"]) for name, r in results.items()}
    axis = f"minutes on {chosen.threads} thread{'s' * (chosen.threads > 1)}"
    (folder / "curves.png").write_bytes(plots.curve(curves, axis, "best validation NLL (nats)"))
    print(written)


if __name__ == "__main__":
    main()
