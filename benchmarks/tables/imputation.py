"""Imputation of mixed tables: cells removed at random, or depending on values, in rows that fit did not see."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.tables.density import Results, markdown
from deformer import DEformerImputer
from deformer.api import tables
from deformer.api.tables import TableModel
from deformer.data.chunks import read_all
from deformer.data.columns import values_of

FILES = {"adult": "adult.data", "wine": "winequality-white.csv", "concrete": "concrete/data.txt"}
PATTERNS = ("random", "by_value")
CASES = tuple(f"{name}-{pattern}-{seed}" for name in FILES for pattern in PATTERNS for seed in range(5))
PEERS = ("iterative", "knn", "miceforest", "simple")
MISSING = 0.2
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def measure(data: Path, case: str, minutes: float) -> dict[str, Any]:
    """Remove cells, fit on most rows, fill in the others, and compare with what was removed."""
    name, pattern, seed = case.rsplit("-", 2)
    whole = read_all(data / "tables" / FILES[name])
    draws = np.random.default_rng(int(seed))
    whole = whole.iloc[draws.permutation(len(whole))].reset_index(drop=True)
    removed = (draws.random(whole.shape) if pattern == "random" else _by_value(whole, draws)) < MISSING
    holes = whole.mask(removed)
    n_fit = int(0.8 * len(whole))
    fit, use, truth = holes[:n_fit], holes[n_fit:], whole[n_fit:]
    hidden = removed[n_fit:] & truth.notna().to_numpy()
    methods: dict[str, Callable[[], tuple[pd.DataFrame, float | None]]] = {
        "deformer": lambda: _ours(fit, use, truth, hidden, minutes, int(seed)),
        **{peer: lambda peer=peer: (_peer(peer, fit, use, int(seed)), None) for peer in PEERS},
    }
    results: dict[str, Any] = {"rows": len(whole), "columns": whole.shape[1]}
    for method, fill in methods.items():
        start = time.monotonic()
        filled, coverage = fill()
        results[method] = {**_errors(filled, truth, hidden, fit), "seconds": time.monotonic() - start}
        if coverage is not None:
            results[method]["coverage_of_90_percent"] = coverage
    return results


def _by_value(whole: pd.DataFrame, draws: np.random.Generator) -> npt.NDArray[np.float64]:
    """Give cells a chance to go that rises with the rank of their own value, 0.2 on average."""
    ranks = whole.apply(lambda c: (c if c.dtype.kind in "if" else c.astype("category").cat.codes).rank(pct=True))
    odds: npt.NDArray[np.float64] = draws.random(whole.shape) / np.maximum(2 * ranks.to_numpy(dtype=float), 1e-9)
    return odds


def _ours(
    fit: pd.DataFrame, use: pd.DataFrame, truth: pd.DataFrame, hidden: Mask, minutes: float, seed: int
) -> tuple[pd.DataFrame, float]:
    imputer = DEformerImputer(minutes=minutes, random_state=seed, device="cpu").fit(fit)
    places: list[Floats] = []
    draws = np.random.default_rng(seed)
    for i, name in enumerate(use.columns):
        if truth[name].dtype.kind in "if" and hidden[:, i].any():
            part = hidden[:, i]
            places.append(_places(imputer.table_, use[part], name, truth[name].to_numpy(dtype=float)[part], draws))
    place = np.concatenate(places)
    return imputer.transform(use), float(((place > 0.05) & (place < 0.95)).mean())


def _places(table: TableModel, use: pd.DataFrame, name: str, values: Floats, draws: np.random.Generator) -> Floats:
    """Give P(column < value), plus a random part of P(column = value): uniform if predictions are calibrated.

    Where there are few levels, or a point mass, an interval of 90 % that holds them whole holds more than 90 % by
    necessity.
    """
    rows, _ = table.codec.encode(use)
    places = np.empty(len(values))
    for batch, predictive in tables.given_others(table, rows, name):
        own = values[batch]
        places[batch] = predictive.cdf(own)
        share, mass = np.zeros(len(own)), predictive.point_mass()
        if values_of(predictive.column) is not None:
            share = np.exp(predictive.log_prob(own))
        elif mass is not None:
            share = mass[1] * (own == mass[0])
        places[batch] -= draws.random(len(own)) * share
    return places


def _peer(name: str, fit: pd.DataFrame, use: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Fill by a peer, on numbers for numbers and on codes or one column a label for labels, as each expects.

    The simple one knows each column alone: its mean, or its most frequent label.
    """
    if name == "simple":
        return use.fillna({c: fit[c].mean() if fit[c].dtype.kind in "if" else fit[c].mode()[0] for c in fit})
    if name == "miceforest":
        return _miceforest(fit, use, seed)
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer, KNNImputer

    imputer = IterativeImputer(random_state=seed) if name == "iterative" else KNNImputer()
    dummies, columns = _one_hot(fit, use)
    n = len(fit)
    scale = dummies[:n].std().replace(0.0, 1.0)
    part = fit.sample(min(len(fit), 5000), random_state=seed).index if name == "knn" else fit.index
    imputer.fit((dummies / scale).loc[part])
    filled = pd.DataFrame(imputer.transform((dummies / scale)[n:]), columns=dummies.columns, index=use.index) * scale
    return pd.DataFrame({c: _undo(filled[names], c, use[c]) for c, names in columns.items()})


def _one_hot(fit: pd.DataFrame, use: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    both, parts, columns = pd.concat([fit, use]), [], {}
    for name in both:
        if both[name].dtype.kind in "if":
            part = both[[name]].astype(float)
        else:
            part = pd.get_dummies(both[name], prefix=name, prefix_sep="=").astype(float)
            part[both[name].isna()] = np.nan
        parts.append(part)
        columns[name] = list(part.columns)
    return pd.concat(parts, axis=1), columns


def _undo(filled: pd.DataFrame, name: str, original: "pd.Series[Any]") -> "pd.Series[Any]":
    if list(filled.columns) == [name]:
        return filled[name]
    likeliest = filled.idxmax(axis=1).str.removeprefix(f"{name}=")
    return original.where(original.notna(), likeliest)


def _miceforest(fit: pd.DataFrame, use: pd.DataFrame, seed: int, rounds: int = 5) -> pd.DataFrame:
    """Fill by the predictions of its trees, since what is compared are expectations, not draws.

    New rows are filled here by the trees that it learned, column after column, as `impute_new_data` means to do; that
    of 6.0.5 fills them worse than their columns' means would.
    """
    import miceforest

    both = pd.concat([fit, use], ignore_index=True)
    both = both.astype({c: "category" for c in both if both[c].dtype.kind not in "if"})
    known, rows = both[: len(fit)], both[len(fit) :]
    kernel = miceforest.ImputationKernel(known, num_datasets=1, mean_match_candidates=0, random_state=seed)
    kernel.mice(rounds)
    draws, holes, filled = np.random.default_rng(seed), rows.isna(), rows.copy()
    for name in rows:
        filled.loc[holes[name], name] = draws.choice(known[name].dropna().to_numpy(), int(holes[name].sum()))
    for name in rounds * kernel.model_training_order:
        if holes[name].any():
            guess = kernel.get_model(name, 0, -1).predict(filled[holes[name]].drop(columns=name))
            if rows[name].dtype == "category":
                codes = guess.argmax(1) if guess.ndim > 1 else (guess > 0.5).astype(int)
                guess = rows[name].cat.categories[codes]
            filled.loc[holes[name], name] = guess
    return filled.set_axis(use.index)


def _errors(filled: pd.DataFrame, truth: pd.DataFrame, hidden: Mask, fit: pd.DataFrame) -> dict[str, Any]:
    """Give, over the removed cells, the mean over columns of normalised RMSE and of accuracy."""
    numeric, categorical = {}, {}
    for i, name in enumerate(truth.columns):
        rows = hidden[:, i]
        if not rows.any():
            continue
        guess, value = filled[name].to_numpy()[rows], truth[name].to_numpy()[rows]
        if truth[name].dtype.kind in "if":
            spread = max(float(fit[name].std()), 1e-12)
            numeric[name] = float(np.sqrt(((guess.astype(float) - value.astype(float)) ** 2).mean()) / spread)
        else:
            categorical[name] = float((guess.astype(str) == value.astype(str)).mean())
    return {
        "nrmse": float(np.mean(list(numeric.values()))),
        "accuracy": float(np.mean(list(categorical.values()))) if categorical else None,
        **{"nrmse_by_column": numeric, "accuracy_by_column": categorical},
    }


def table(data: Path, results: Results) -> str:
    """Write means over seeds."""
    methods, lines = ["deformer", *PEERS], []
    for case in dict.fromkeys(name.rsplit("-", 1)[0] for name in results):
        runs = [r for name, r in results.items() if name.rsplit("-", 1)[0] == case]
        cells = [f"{np.mean([r[m]['nrmse'] for r in runs]):.3f}" for m in methods]
        if runs[0]["deformer"]["accuracy"] is not None:
            cells = [
                f"{c} / {np.mean([r[m]['accuracy'] for r in runs]):.3f}" for c, m in zip(cells, methods, strict=True)
            ]
        covered = np.mean([r["deformer"]["coverage_of_90_percent"] for r in runs])
        lines.append([case, *cells, f"{100 * covered:.1f} %"])
    return markdown(["case: normalised RMSE / accuracy", *methods, "within central 90 % (randomised PIT)"], lines)
