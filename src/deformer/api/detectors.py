"""Detectors of anomalies: scikit-learn's signs, and PyOD's."""

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.utils.validation import check_is_fitted

from deformer.api import tables
from deformer.api.estimators import Choices, Floats, Randomness, TableEstimator
from deformer.data.columns import Column
from deformer.errors import InputError

LEAST_SPREAD = 0.1  # nats, below which likelihoods of a feature are taken to be alike


class DEformerDetector(OutlierMixin, TableEstimator):  # type: ignore[misc]
    """Find rows that are unlikely under a density of the table; missing values are left out, not guessed.

    The density is smooth: numbers, whole ones too, are learned under noise, so that a small cluster of anomalies does
    not get a peak of its own and look ordinary.

    Args:
        contamination: Share of rows in fit to treat as outliers; it sets `offset_`.
        n_orders: Orders under which every row is scored.

    The other arguments are those of `DEformerDensity`.

    Attributes:
        offset_: The score below which a row is an outlier.
        median_: Median of each feature's ln p over the rows of fit that have it, in nats.
        spread_: Median absolute deviation of these ln p, in nats, times 1.48 as for a Gaussian, and at least 0.1.
        expected_: Mean contribution of each feature to the strangeness of these rows.
    """

    _kept = ("contamination", "n_orders", "offset_", "median_", "spread_", "expected_")
    _discrete = False
    # What fits less closely tells anomalies better: measured on eight tables, see docs/tables.md.
    _smoothing: ClassVar[Mapping[str, Any]] = {"noise": 0.7, "lr": 2e-3}
    _large = True

    def __init__(
        self,
        contamination: float = 0.1,
        *,
        n_orders: int = 4,
        minutes: float | None = None,
        epochs: float | None = None,
        steps: int | None = None,
        kinds: Mapping[Any, str | Column] | None = None,
        network: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        device: str = "auto",
        random_state: Randomness = None,
        progress: bool = False,
    ) -> None:
        super().__init__(
            minutes=minutes,
            epochs=epochs,
            steps=steps,
            kinds=kinds,
            network=network,
            training=training,
            device=device,
            random_state=random_state,
            progress=progress,
        )
        self.contamination, self.n_orders = contamination, n_orders

    def fit(self, X: Any, y: Any = None, *, X_val: Any = None, **choices: Unpack[Choices]) -> "DEformerDetector":
        """Learn from a table that may contain outliers; the arguments are those of `DEformerDensity.fit`."""
        self.learn_and_score(X, X_val, **choices)
        return self

    def fit_predict(self, X: Any, y: Any = None) -> npt.NDArray[np.int64]:
        """Learn from a table and return -1 for its outliers and +1 for all others."""
        return np.where(self.learn_and_score(X) < self.offset_, -1, 1)

    def learn_and_score(self, X: Any, X_val: Any = None, **choices: Unpack[Choices]) -> Floats:
        """Do what `fit` does and return the rows' `score_samples`, which it needs anyway."""
        share: Any = self.contamination  # peers take words as well
        if isinstance(share, str) or not 0 < share <= 0.5:
            raise InputError(f"contamination must be a share in (0, 0.5], not {self.contamination!r}.")
        self._learn(X, X_val, choices)
        terms = self._terms(X)
        columns = np.where(np.isnan(terms).all(0), 0.0, terms)
        self.median_ = np.nanmedian(columns, 0)
        self.spread_ = np.maximum(1.4826 * np.nanmedian(np.abs(columns - self.median_), 0), LEAST_SPREAD)
        self.expected_ = np.nanmean(self._strangeness(columns), 0)
        scores = self._score(terms)
        self.offset_ = float(np.quantile(scores, self.contamination))
        self.history_.raise_if_interrupted()
        return scores

    def score_samples(self, X: Any) -> Floats:
        """Return how normal rows are, (rows,): higher = more normal, 0 on average over the rows of fit.

        A value's strangeness is ln(1 + z) if ln p(value | values before it), averaged over orders, lies z of the
        feature's spreads below the feature's median, and 0 if it lies above. A row's score is the strangeness expected
        for the features it has, minus its own: units do not matter, and no feature decides alone.
        """
        return self._score(self._terms(X))

    def explain(self, X: Any) -> pd.DataFrame:
        """Return how much stranger each value is than expected for its feature; a row sums to -`score_samples`.

        Returns:
            Rows by columns, higher = stranger; NaN where a value is missing.
        """
        parts = self._strangeness(self._terms(X)) - self.expected_
        codec = self.table_.codec
        return self._named(pd.DataFrame(parts, codec.frame_of(X).index, codec.names))

    def _terms(self, X: Any) -> Floats:
        """Give ln p of each value, averaged over orders, (rows, features) in nats; NaN where missing."""
        X = self._checked(X)
        rows, log_base = self.table_.codec.encode(X)
        return np.where(rows.observed.numpy(), tables.mean_terms(self.table_, rows, log_base, self.n_orders), np.nan)

    def _strangeness(self, terms: Floats) -> Floats:
        strangeness: Floats = np.log1p(np.maximum((self.median_ - terms) / self.spread_, 0))
        return strangeness

    def _score(self, terms: Floats) -> Floats:
        score: Floats = np.nansum(self.expected_ - self._strangeness(terms), 1)
        return score

    def decision_function(self, X: Any) -> Floats:
        """Return `score_samples` minus `offset_`, (rows,): negative = outlier."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> npt.NDArray[np.int64]:
        """Return -1 for outliers and +1 for all others."""
        return np.where(self.decision_function(X) < 0, -1, 1)


class DEformerPyOD(BaseEstimator):  # type: ignore[misc]
    """A `DEformerDetector` with the signs and names of PyOD: higher = outlier, labels 0 and 1.

    Args:
        contamination: Share of rows in fit to treat as outliers; it sets `threshold_`.
        detector: The detector to fit. None: `DEformerDetector()`.

    Attributes:
        decision_scores_: -`score_samples` of the rows of fit, higher = outlier.
        threshold_: The score above which a row is an outlier.
        labels_: 1 for outliers among the rows of fit, 0 for all others.
    """

    def __init__(self, contamination: float = 0.1, *, detector: DEformerDetector | None = None) -> None:
        self.contamination, self.detector = contamination, detector

    def fit(self, X: Any, y: Any = None) -> "DEformerPyOD":
        """Learn from a table that may contain outliers."""
        detector = DEformerDetector() if self.detector is None else clone(self.detector)
        self.detector_ = detector.set_params(contamination=self.contamination)
        self.decision_scores_, self.threshold_ = -detector.learn_and_score(X), -detector.offset_
        self.labels_ = (self.decision_scores_ > self.threshold_).astype(np.int64)
        return self

    def decision_function(self, X: Any) -> Floats:
        """Return -`score_samples` of the detector, (rows,): higher = outlier."""
        check_is_fitted(self)
        surprise: Floats = -self.detector_.score_samples(X)
        return surprise

    def predict(self, X: Any) -> npt.NDArray[np.int64]:
        """Return 1 for outliers and 0 for all others."""
        return (self.decision_function(X) > self.threshold_).astype(np.int64)

    def fit_predict(self, X: Any, y: Any = None) -> npt.NDArray[np.int64]:
        """Learn from a table and return its `labels_`."""
        return self.fit(X).labels_

    def predict_proba(self, X: Any) -> Floats:
        """Scale each row's score to the range of the scores of fit, as PyOD does by default: (rows, 2)."""
        scores = self.decision_function(X)
        low, high = self.decision_scores_.min(), self.decision_scores_.max()
        outlier = np.clip((scores - low) / max(high - low, 1e-12), 0, 1)
        return np.column_stack([1 - outlier, outlier])
