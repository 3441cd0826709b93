"""Density of binary tables with published results: six of the DEBD sets, three of the NADE papers' UCI sets."""

import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deformer import DEformerDensity
from deformer.api import tables
from deformer.data.files import read_arrays

DEBD = ("nltcs", "plants", "baudio", "jester", "accidents", "dna")
UCI = ("adult", "dna", "mushrooms")
Results = dict[str, dict[str, Any]]


def measure_debd(data: Path, name: str, minutes: float) -> dict[str, Any]:
    return measure(data / "debd" / f"{name}.npz", minutes, 32)


def measure_uci(data: Path, name: str, minutes: float) -> dict[str, Any]:
    return measure(data / "uci_binary" / f"{name}.npz", minutes, 16)


def measure(path: Path, minutes: float, n_orders: int) -> dict[str, Any]:
    """Fit on the training rows, choose weights by the validation rows, and score the test rows under many orders."""
    parts = read_arrays(path)
    density, start = DEformerDensity(minutes=minutes, random_state=0, device="cpu"), time.monotonic()
    density.fit(parts["train"], X_val=parts["valid"])
    spent = (time.monotonic() - start) / 60
    per_order = tables.terms(density.table_, parts["test"], n_orders)[0].sum(-1)
    ensemble, mean = tables.combined(per_order, "ensemble"), tables.combined(per_order, "mean")
    return {
        **{"rows": {name: len(part) for name, part in parts.items()}, "features": parts["train"].shape[1]},
        **{
            "minutes": spent,
            "curve": [[p.minutes, p.validation_nll] for p in density.history_.points],
            "orders": n_orders,
            "parameters": density.table_.model.n_parameters,
        },
        **{"ensemble": float(ensemble.mean()), "ensemble_error": error(ensemble)},
        **{"mean_over_orders": float(mean.mean()), "mean_error": error(mean)},
    }


def error(scores: npt.NDArray[np.float64]) -> float:
    """Give the standard error of a mean over rows."""
    return float(scores.std(ddof=1) / np.sqrt(len(scores)))


def published(data: Path, folder: str) -> dict[str, dict[str, str]]:
    with (data / folder / "published.csv").open(newline="") as file:
        return {line["file"]: line for line in csv.DictReader(file)}


def table_debd(data: Path, results: Results) -> str:
    """Write test log-likelihoods in nats, higher is better."""
    peers = ["MADE (8 orders)", "ID-SPN", "EiNet", "best_exact", "best_tractable"]
    return _table(published(data, "debd"), results, peers, 1.0)


def table_uci(data: Path, results: Results) -> str:
    """Write test negative log-likelihoods in nats, lower is better."""
    peers = ["NADE fixed order", "EoNADE 16 orders (OA)", "MADE", "MADE mask sampling", "DARN"]
    return _table(published(data, "uci_binary"), results, peers, -1.0)


def _table(cited: dict[str, dict[str, str]], results: Results, peers: list[str], sign: float) -> str:
    n_orders = next(iter(results.values()))["orders"]
    head = ["data set", f"ensemble of {n_orders} orders", "mean over orders", *peers]
    lines = []
    for name, r in results.items():
        ours = f"**{sign * r['ensemble']:.2f} +- {r['ensemble_error']:.2f}**"
        lines.append([name, ours, f"{sign * r['mean_over_orders']:.2f}", *(cited[name][p] for p in peers)])
    return markdown(head, lines)


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """Write a table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *lines]) + "\n"
