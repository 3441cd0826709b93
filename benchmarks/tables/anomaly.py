"""Anomalies in eight classical tables: AUROC of an unlabelled fit, beside detectors of PyOD on the same rows."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from benchmarks.tables.density import Results, markdown
from deformer import DEformerDetector

SETS = ("4_breastw", "6_cardio", "14_glass", "18_Ionosphere", "29_Pima", "38_thyroid", "40_vowels", "43_WDBC")
PEERS = ("IForest", "ECOD", "COPOD", "KNN", "LOF")
SEEDS = (0, 1, 2)
Array = npt.NDArray[np.float64]


def measure(data: Path, name: str, minutes: float) -> dict[str, Any]:
    """Fit on all rows without labels and rank them; again with a fifth of the cells missing, for us alone."""
    with np.load(data / "anomaly" / f"{name}.npz") as file:
        X, y = file["X"].astype(np.float64), file["y"]
    holes = np.where(np.random.default_rng(0).random(X.shape) < 0.2, np.nan, X)
    ours = [_ours(X, y, minutes, seed) for seed in SEEDS]
    peers = {peer: [_auroc(_pyod(peer, seed), X, y) for seed in SEEDS] for peer in PEERS}
    return {
        **{"rows": len(X), "features": X.shape[1], "anomalies": int(y.sum())},
        "deformer": ours,
        "deformer_with_holes": [_ours(holes, y, minutes, seed) for seed in SEEDS],
        **peers,
    }


def _ours(X: Array, y: npt.NDArray[Any], minutes: float, seed: int) -> dict[str, float]:
    start = time.monotonic()
    detector = DEformerDetector(minutes=minutes, random_state=seed, device="cpu", n_orders=16).fit(X)
    auroc = float(roc_auc_score(y, -detector.score_samples(X)))
    return {"auroc": auroc, "seconds": time.monotonic() - start}


def _pyod(name: str, seed: int) -> Callable[[Array], Array]:
    import importlib

    kind = getattr(importlib.import_module(f"pyod.models.{name.lower()}"), name)
    detector = kind(random_state=seed) if name == "IForest" else kind()
    return lambda X: np.asarray(detector.fit(X).decision_scores_)


def _auroc(detect: Callable[[Array], Array], X: Array, y: npt.NDArray[Any]) -> dict[str, float]:
    start = time.monotonic()
    scores = detect((X - X.mean(0)) / np.maximum(X.std(0), 1e-12))
    return {"auroc": float(roc_auc_score(y, scores)), "seconds": time.monotonic() - start}


def table(data: Path, results: Results) -> str:
    """Write mean AUROCs over seeds, and their mean over data sets."""
    methods = ["deformer", "deformer_with_holes", *PEERS]
    lines, columns = (
        [],
        {m: [float(np.mean([run["auroc"] for run in r[m]])) for r in results.values()] for m in methods},
    )
    for i, name in enumerate(results):
        lines.append([name, *(f"{columns[m][i]:.3f}" for m in methods)])
    lines.append(["**mean**", *(f"**{np.mean(columns[m]):.3f}**" for m in methods)])
    return markdown(["data set", *(m.replace("_", " ") for m in methods)], lines)
