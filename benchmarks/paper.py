"""The paper's table and figures: `python -m benchmarks.paper [--model M] [--rows N] [--letters N] [--orders 10]`.

Writes table1.md, figure2.png, figure3.png, figure4.png and figures.json to results/paper. Scores are kept order by
order in the folder of --keep, those of each model apart, so that an interrupted run goes on. Random subsets carry
standard errors. With --bfloat16 products are rounded in scoring, as they are in training: twice as fast where the
processor has units for it, and a density all the same, since every conditional still sums to 1. What that changes is
measured beside it.
"""

import argparse
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.machine import RESULTS, circumstances
from deformer import DEformer, as_rows, generator, load_source, log_prob, sample
from deformer.api import plots
from deformer.api.files import model_path, open_model
from deformer.api.quickstart import filled_holes
from deformer.data.table import Rows, subset
from deformer.tasks.density import NLL
from deformer.train.checkpoint import read_notes

SIDES = (28, 28)
PAPER = "Alcorn & Nguyen 2021, table 1"
PUBLISHED = (
    ("DeepNADE, mean over orders", 89.17, f"{PAPER}, after Uria et al. 2014"),
    ("MADE, ensemble of 32 orders", 86.64, f"{PAPER}, after Germain et al. 2015"),
    ("DeepNADE, ensemble of 128 orders", 85.10, "Uria et al. 2014, table 2"),
    ("EoNADE-5, ensemble of 128 orders", 84.68, "van den Oord et al. 2016, table 4"),
    ("DEformer of the paper, mean over 10 orders", 80.49, PAPER),
    ("PixelRNN, fixed order", 79.20, f"{PAPER}, after van den Oord et al. 2016"),
    ("TraDE, fixed order", 78.92, f"{PAPER}, after Fakoor et al. 2020"),
)


def score(
    model: DEformer, rows: Rows, n_orders: int, seed: int, keep: Path | None, name: str, bfloat16: bool = False
) -> NLL:
    """Score rows under several random orders, each kept in a file as soon as it is there."""
    lines = []
    for order in range(n_orders):
        path = None if keep is None else keep / f"{name}-{len(rows)}-{seed}-{order}.npy"
        if path is not None and path.exists():
            lines.append(torch.from_numpy(np.load(path)))
            continue
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            lines.append(-log_prob(model, rows, generator=generator(seed, name, order)).double())
        print(f"{name}, order {order}: {lines[-1].mean():.3f}", flush=True)
        if path is not None:
            np.save(path, lines[-1].numpy())
    return NLL(torch.stack(lines))


def rounding(model: DEformer, rows: Rows, seed: int) -> dict[str, float]:
    """Say how much lower rows score with products in bfloat16 than without, each under one order."""
    exact, rounded = (score(model, rows, 1, seed, None, "rounding", b).per_order for b in (False, True))
    less = NLL(exact - rounded)
    return {"rows": len(rows), "mean": less.mean, "error": less.mean_error}


def named(scores: NLL) -> dict[str, Any]:
    """Name both order-agnostic numbers with their standard errors over rows."""
    n_orders, n_rows = scores.per_order.shape
    return {
        **{"rows": n_rows, "orders": n_orders, "mean_over_orders": scores.mean, "mean_error": scores.mean_error},
        **{"ensemble_over_orders": scores.ensemble, "ensemble_error": scores.ensemble_error},
        **{"order_spread": scores.order_spread},
    }


def table_1(test: NLL, many: NLL) -> str:
    """Write the paper's table with our rows beside the published ones, best last."""
    n_orders, n_rows = test.per_order.shape
    ours = [
        (f"this DEformer, mean over {n_orders} orders", test.mean, test.mean_error, n_rows),
        (f"this DEformer, ensemble of {n_orders} orders", test.ensemble, test.ensemble_error, n_rows),
        (
            f"this DEformer, ensemble of {len(many.per_order)} orders",
            *(many.ensemble, many.ensemble_error, many.per_order.shape[1]),
        ),
    ]
    lines = [(nats, f"| {name} | {nats:.2f} | {source} |") for name, nats, source in PUBLISHED]
    lines += [(nats, f"| **{name}** | **{nats:.2f} +- {e:.2f}** | measured, {n} rows |") for name, nats, e, n in ours]
    body = [line for _, line in sorted(lines, key=lambda pair: -pair[0])]
    return "\n".join(["| model | test NLL (nats) | source |", "|---|---|---|", *body, ""])


def figure_2(
    model: DEformer, test: Rows, n_orders: int, seed: int, bfloat16: bool, n: int = 50
) -> tuple[bytes, dict[str, Any]]:
    """Show test images above samples, each sorted by its mean NLL over orders."""
    real = subset(test, n, generator(seed, "figure 2"))
    drawn = as_rows(sample(model, n, generator=generator(seed, "samples")), test.schema)
    groups = {"test images": real, "samples": drawn}
    images, titles, ranges = [], [], {}
    for name, rows in groups.items():
        nats = score(model, rows, n_orders, seed, None, name, bfloat16).per_order.mean(0)
        ranked = nats.argsort()
        images.append(rows.values[ranked].float())
        titles += [f"{v:.1f}" for v in nats[ranked].tolist()]
        ranges[name] = {"lowest": nats.min().item(), "highest": nats.max().item(), "mean": nats.mean().item()}
    return plots.sheet(torch.cat(images), SIDES, titles), ranges


def figure_4(test: Tensor, strange: Tensor) -> tuple[bytes, dict[str, float]]:
    """Show how test images and letters score, and how well a threshold tells them apart."""
    labels = torch.cat([torch.zeros(len(test)), torch.ones(len(strange))])
    auroc = float(roc_auc_score(labels, torch.cat([test, strange])))
    figures = {
        "auroc": auroc,
        "standard_error": _auroc_error(auroc, len(test), len(strange)),
        **{"test_mean": test.mean().item(), "notmnist_mean": strange.mean().item()},
    }
    return plots.histogram({"MNIST test images": test, "notMNIST": strange}), figures


def _auroc_error(auroc: float, n: int, m: int) -> float:
    """Give the standard error of an AUROC (Hanley & McNeil, 1982)."""
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = auroc * (1 - auroc) + (m - 1) * (q1 - auroc**2) + (n - 1) * (q2 - auroc**2)
    return math.sqrt(max(variance, 0.0) / (n * m))


def fingerprint(name: str, bfloat16: bool) -> str:
    """Name what scores are of, so that those of another file or rounding are not taken for them."""
    return hashlib.sha256(model_path(name).read_bytes()).hexdigest()[:12] + "-bfloat16" * bfloat16


def reproduce(chosen: argparse.Namespace, folder: Path) -> None:
    """Make all figures and then the table, and note each part as soon as it is there."""
    model, seed, bfloat16 = open_model(chosen.model, "cpu"), chosen.seed, chosen.bfloat16
    keep = None if chosen.keep is None else chosen.keep / fingerprint(chosen.model, bfloat16)
    for needed in (folder, *([] if keep is None else [keep])):
        needed.mkdir(parents=True, exist_ok=True)
    notes = read_notes(model_path(chosen.model))
    results = {"seed": seed, "bfloat16": bfloat16, "model": notes, "machine": circumstances()}

    def note(**part: Any) -> None:
        results.update(part)
        (folder / "figures.json").write_text(json.dumps(results, indent=2) + "\n")

    test = load_source("mnist-binarized").test
    assert test is not None
    test_rows = subset(test, chosen.rows, generator(seed, "test rows"))
    few = subset(test, min(chosen.few, len(test_rows)), generator(seed, "few rows"))
    letters = subset(load_source("notmnist").train, chosen.letters or chosen.rows, generator(seed, "letters"))
    scores = score(model, test_rows, chosen.orders, seed, keep, "test", bfloat16)
    note(test=named(scores))
    (folder / "figure3.png").write_bytes(filled_holes(model, test, SIDES, seed))
    sheet, ranges = figure_2(model, test, chosen.orders, seed, bfloat16)
    (folder / "figure2.png").write_bytes(sheet)
    note(figure_2=ranges, float32_minus_bfloat16=rounding(model, few[:500], seed) if bfloat16 else None)
    strange = score(model, letters, chosen.letter_orders, seed, keep, "letters", bfloat16)
    comparable = scores.per_order[: chosen.letter_orders].mean(0)
    histogram, separation = figure_4(comparable, strange.per_order.mean(0))
    (folder / "figure4.png").write_bytes(histogram)
    note(figure_4={**separation, "orders": chosen.letter_orders, "notmnist": named(strange)})
    many = score(model, few, chosen.many, seed, keep, "few", bfloat16)
    (folder / "table1.md").write_text(table_1(scores, many))
    note(many_orders=named(many))


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mnist-binarized")
    parser.add_argument("--rows", type=int, help="random test rows; all if not given")
    parser.add_argument("--letters", type=int, help="random letters; as many as rows if not given")
    parser.add_argument("--orders", type=int, default=10)
    parser.add_argument("--few", type=int, default=1000, help="random test rows for the ensemble of many orders")
    parser.add_argument("--many", type=int, default=64, help="how many orders that ensemble has")
    parser.add_argument("--letter-orders", type=int, default=2, help="orders for the histograms of figure 4")
    parser.add_argument("--bfloat16", action="store_true", help="round products in scoring")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for scores of finished orders")
    parser.add_argument("--output", type=Path, default=RESULTS / "paper")
    chosen = parser.parse_args(words)
    reproduce(chosen, chosen.output)
    print((chosen.output / "table1.md").read_text())


if __name__ == "__main__":
    main()
