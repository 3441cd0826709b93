"""How soon a row is known to be anomalous: `python -m benchmarks.early_alarm --data FOLDER`.

Values arrive in random orders. Thresholds are calibrated on held-out ordinary rows, of which 1 % or 5 % may ever raise
an alarm; then the shares of other ordinary and of anomalous rows that have raised one are counted at tenths of the
features, beside the shares that lie above thresholds whose rate holds at each length by itself. Tables of anomalies,
and handwritten digits (the model that ships) against printed letters.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.machine import RESULTS, circumstances
from benchmarks.mnist import paper_split
from benchmarks.tables.anomaly import SETS
from deformer import DEformer, Rows, generator, load_source, pretrained
from deformer.api import tables
from deformer.data.table import subset
from deformer.tasks.calibration import excess_of_prefixes, row_thresholds, thresholds
from deformer.train.process import keep_memory

Part = tuple[Rows, Tensor | None]  # codes, and ln p(value | code) of labels and levels
RATES = (0.01, 0.05)
TENTHS = tuple(range(1, 11))
IMAGES = "digits and letters"


def detection(
    model: DEformer, calibration: Part, ordinary: Part, anomalous: Part, n_orders: int = 4
) -> dict[str, list[float]]:
    """Give shares of ordinary and anomalous rows with an alarm by, and at, each tenth of the features, by rate."""
    prefixes = [
        excess_of_prefixes(model, rows, n_orders, generator(0, name), base)
        for name, (rows, base) in (("calibration", calibration), ("ordinary", ordinary), ("anomalous", anomalous))
    ]
    n = prefixes[0].shape[1]
    at = [max(1, round(n * tenth / 10)) - 1 for tenth in TENTHS]
    results = {}
    for rate in RATES:
        ever, just_then = (limits(prefixes[0], rate, n_orders) for limits in (row_thresholds, thresholds))
        for name, excess in (("false", prefixes[1]), ("detected", prefixes[2])):
            above, known = excess > just_then, ~excess.isnan()
            results[f"{name}_at_{rate}"] = [float((excess > ever)[:, : i + 1].any(1).double().mean()) for i in at]
            results[f"{name}_per_length_at_{rate}"] = [float(above[:, i].sum() / known[:, i].sum()) for i in at]
    return results


def of_table(data: Path, name: str, minutes: float, seed: int = 0) -> dict[str, Any]:
    """Learn from half of a table's ordinary rows, calibrate on a quarter, and test on the others."""
    with np.load(data / "anomaly" / f"{name}.npz") as file:
        X, y = file["X"].astype(np.float64), file["y"]
    ordinary = np.random.default_rng(seed).permutation(X[y == 0])
    cuts = np.split(ordinary, [len(ordinary) // 2, 3 * len(ordinary) // 4])
    table, _ = tables.learn(cuts[0], minutes=minutes, seed=seed, device="cpu")
    calibration, rest, anomalous = (tables.codes_and_base(table, part) for part in (cuts[1], cuts[2], X[y == 1]))
    return {"features": X.shape[1], "minutes": minutes, **detection(table.model, calibration, rest, anomalous, 16)}


def of_digits(data: Path, n_rows: int) -> dict[str, Any]:
    """Take the model that ships, calibrate on images held out of its training, and test digits against letters."""
    digits, letters = load_source("mnist-binarized", data), load_source("notmnist", data)
    assert digits.test is not None
    parts = [
        (subset(rows, n_rows, generator(0, name)), None)
        for name, rows in (("held out", paper_split(data)[1]), ("test", digits.test), ("letters", letters.train))
    ]
    return {
        "features": 784,
        "images": n_rows,
        **detection(pretrained("mnist-binarized"), parts[0], parts[1], parts[2], 1),
    }


def picture(results: dict[str, Any], rate: float) -> Figure:
    """Draw the share detected against the fraction of values that have arrived."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, r in results.items():
        axes.plot([t / 10 for t in TENTHS], r[f"detected_at_{rate}"], marker=".", label=name)
    axes.set(
        xlabel="fraction of values that have arrived",
        ylabel=f"flagged, where {rate:.0%} of ordinary rows are",
        ylim=(0, 1.02),
    )
    figure.legend(fontsize="small", loc="outside right upper")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds anomaly/, mnist/ and ood/")
    parser.add_argument("--minutes", type=float, default=1.0, help="of training, per table")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--only", nargs="*", choices=(*SETS, IMAGES), metavar="NAME", help="others stay as they were")
    chosen = parser.parse_args()
    keep_memory()
    path = RESULTS / "early_alarm.json"
    results: dict[str, Any] = json.loads(path.read_text())["sets"] if chosen.only else {}
    for name in chosen.only or (*SETS, IMAGES):
        found = of_digits(chosen.data, chosen.images) if name == IMAGES else of_table(chosen.data, name, chosen.minutes)
        results[name] = {**found, "machine": circumstances()}
        print(name, json.dumps(results[name]), flush=True)
    path.write_text(json.dumps({"sets": results}, indent=2) + "\n")
    for rate in RATES:
        picture(results, rate).savefig(RESULTS / f"early_alarm_{rate:.0%}.png".replace("%", "percent"), dpi=120)


if __name__ == "__main__":
    main()
