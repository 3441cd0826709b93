"""Estimators after scikit-learn, for mixed, incomplete tables: density, imputer, and what detectors share with them."""

import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict, TypeVar, Unpack

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from deformer.api import tables
from deformer.api.explanations import Explanation, explain
from deformer.api.tables import Combine, TableModel, load_table, save_table
from deformer.data.columns import Column, has_order
from deformer.data.doubts import doubts
from deformer.data.libraries import as_frame, is_frame, like, names_of_array, relabelled
from deformer.data.seeds import derive_of_piece
from deformer.errors import InputError
from deformer.tasks.calibration import Per
from deformer.tasks.pool import SessionPool
from deformer.tasks.predictive import Predictive
from deformer.tasks.streaming import Alarms, Session
from deformer.train.checkpoint import read_notes

Floats = npt.NDArray[np.float64]
Names = Sequence[Hashable]
MOST = np.iinfo(np.int32).max
Randomness = int | np.random.RandomState | None
_Estimator = TypeVar("_Estimator", bound="TableEstimator")


def _unmasked(X: Any) -> Any:
    """Give an array whose masked values are missing ones."""
    if not np.ma.is_masked(X):
        return X
    kind = X.dtype.kind
    missing = X.dtype.type("NaT") if kind in "mM" else np.nan if kind in "iuf" else None
    return np.where(np.ma.getmaskarray(X), missing, X.data)


def _as_numbers(X: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Read an array of text as numbers if it spells nothing else."""
    try:
        return X.astype(np.float64)
    except ValueError:
        return X


def _as_objects(X: npt.NDArray[Any]) -> npt.NDArray[Any]:
    objects = X.astype(object)
    objects[X == "nan"] = None  # as which NumPy spells what is missing
    return objects


def _plain(value: Any) -> Any:
    """Give what NumPy holds as Python's own numbers, as searches over a grid hand them in."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


class Choices(TypedDict, total=False):
    """What `fit` may be told in place of what the constructor was."""

    minutes: float | None
    epochs: float | None
    steps: int | None
    kinds: Mapping[Any, str | Column] | None


class TableEstimator(BaseEstimator):  # type: ignore[misc]
    """What all estimators of tables share: how they learn; their arguments stand at `DEformerDensity`."""

    _kept: ClassVar[tuple[str, ...]] = ()  # what `save` keeps beside the model
    _discrete: ClassVar[bool] = True  # whether numbers of which there are few become labels with an order
    _smoothing: ClassVar[Mapping[str, Any]] = {}  # what this kind changes of the training that the size would choose
    _large: ClassVar[bool] = False  # whether its network is as large however little the time

    def __init__(
        self,
        *,
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
        self.minutes, self.epochs, self.steps, self.kinds = minutes, epochs, steps, kinds
        self.network, self.training, self.device = network, training, device
        self.random_state, self.progress = random_state, progress

    def _learn(self, X: Any, X_val: Any, choices: Choices) -> None:
        X = self._checked(X, reset=True)
        named: Choices = {"minutes": self.minutes, "epochs": self.epochs, "steps": self.steps, "kinds": self.kinds}
        named.update(choices)
        if is_frame(X):
            for doubt in doubts(as_frame(X), {str(name) for name in named["kinds"] or ()}):
                warnings.warn(doubt, stacklevel=3)
        self.table_, self.history_ = tables.learn(
            X,
            None if X_val is None else self._checked(X_val, learned=False),
            levels=self._discrete,
            **{name: _plain(v) for name, v in named.items()},
            network=self.network,
            large=self._large,
            training={**self._smoothing, **(self.training or {})},
            seed=int(check_random_state(self.random_state).randint(MOST)),
            device=self.device,
            progress=self.progress,
        )
        self._own_columns = X.columns if isinstance(X, pd.DataFrame) else pd.Index(self.table_.codec.names)

    def _named(self, frame: pd.DataFrame) -> pd.DataFrame:
        return relabelled(frame, self._own_columns)

    def _like(self, X: Any, frame: pd.DataFrame) -> Any:
        """Give a frame in the library of a table, under its names, and where it lacks a column under that of fit."""
        return like(X, relabelled(self._named(frame), X.columns) if isinstance(X, pd.DataFrame) else frame)

    def _is_name(self, target: Any) -> bool:
        """Say whether this is one column's name, as a pair is where names have two levels."""
        several = isinstance(target, Iterable) and not isinstance(target, str)
        return not several or (isinstance(target, tuple) and str(target) in self.table_.codec.names)

    def _texts(self, names: Hashable | Names) -> list[str]:
        """Take one name, or several, of columns that may be called by numbers."""
        return [str(names)] if self._is_name(names) else [str(name) for name in names]  # type: ignore[union-attr]

    def _checked(self, X: Any, reset: bool = False, learned: bool = True) -> Any:
        """Check an array as scikit-learn does; a frame is checked column by column when it is encoded."""
        if not reset and learned:
            check_is_fitted(self)
        if not is_frame(X):
            X = self._array(_unmasked(X), reset)
        if reset or not is_frame(X):
            # pandas may have put an index among the columns of an Arrow table
            told = as_frame(X) if is_frame(X) and not isinstance(X, pd.DataFrame) else X
            validate_data(self, told, reset=reset, skip_check_array=True)
        return X

    def _array(self, X: Any, reset: bool) -> npt.NDArray[Any]:
        limits: dict[str, Any] = {"ensure_all_finite": "allow-nan", "ensure_min_samples": 2 if reset else 1}
        array: npt.NDArray[Any] = check_array(X, dtype=None, **limits)
        if array.dtype.kind in "biufOmM":
            return array
        if not hasattr(X, "dtype"):  # NumPy makes text of the numbers in lists that hold text as well
            array = check_array(X, dtype=object, **limits)
        array = _as_numbers(array) if reset else array  # in use, the columns of fit say what text stands for
        return array if array.dtype.kind == "f" else _as_objects(array)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "table_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.non_deterministic = False
        return tags

    def save(self, path: str | Path) -> None:
        """Write what was learned to one file, without code; of the arguments, only those needed after fit."""
        check_is_fitted(self)
        kept = {name: getattr(self, name) for name in self._kept}
        kept["random_state"] = None if self.random_state is None else self.table_.seed
        plain = {name: _plain(v) for name, v in kept.items()}
        save_table(path, self.table_, {"estimator": plain})

    @classmethod
    def load(cls: type[_Estimator], path: str | Path, device: str = "auto") -> _Estimator:
        """Read what `save` wrote or, for a density or an imputer, what `deformer fit` wrote."""
        estimator = cls.from_table(load_table(path, device), read_notes(path).get("estimator", {}))
        estimator.device = device
        return estimator

    @classmethod
    def from_table(cls: type[_Estimator], table: TableModel, kept: Mapping[str, Any] | None = None) -> _Estimator:
        """Wrap a model that was learned elsewhere, such as the `table_` of another estimator.

        Args:
            kept: What `save` keeps besides the model. None: the defaults, for estimators that need no more.

        Raises:
            InputError: This kind of estimator needs more than a model.
        """
        kept = kept or {}
        estimator = cls(random_state=kept.get("random_state", table.seed))
        for name in cls._kept:
            if name in kept:
                setattr(estimator, name, np.array(kept[name]) if isinstance(kept[name], list) else kept[name])
            elif not hasattr(estimator, name):
                raise InputError(f"The file holds no {cls.__name__}, or one of another version: it lacks {name}.")
        estimator.table_, estimator.n_features_in_ = table, len(table.codec.names)
        estimator._own_columns = pd.Index(table.codec.names)
        if table.codec.names != names_of_array(len(table.codec.names)):
            estimator.feature_names_in_ = np.array(table.codec.names, dtype=object)
        return estimator


class DEformerDensity(TableEstimator):
    """The joint density of a table's columns, and with it any marginal and any conditional.

    Every score is in nats; higher is more normal.

    Args:
        minutes: Maximum minutes of training; on CPUs few shrink the network. None: 3, unless epochs or steps are given.
        epochs: Maximum passes over the rows. None: 300.
        steps: Maximum optimiser steps. None: no limit.
        kinds: Kinds of some columns, by name: "number", "label", or `Levels`, `Labels` or `Numbers` of
            `deformer.data.columns`. None: inferred from their values.
        network: Changes to the network chosen for the table's size and the time, as arguments of `ModelConfig`.
        training: Changes to its training, as arguments of `TrainConfig`.
        device: "auto", "cpu" or "cuda".
        random_state: Seed of all random draws, in fit and in use. Fits that `steps` or `epochs` end are reproducible;
            what `minutes` suffice for also depends on the machine.
        progress: Whether a bar on standard error shows the validation NLL in nats; otherwise `fit` is silent.

    Attributes:
        table_: The network and the codes of its columns.
        history_: How training went.

    Ctrl-C during `fit` ends the training and raises KeyboardInterrupt; the estimator keeps the best weights so far.

    Examples:
        >>> table = pd.DataFrame({"a": [0, 1] * 50, "b": [0, 1] * 50})
        >>> density = DEformerDensity(steps=20, random_state=0).fit(table)
        >>> density.score_samples(table).shape
        (100,)
    """

    def fit(self, X: Any, y: Any = None, *, X_val: Any = None, **choices: Unpack[Choices]) -> "DEformerDensity":
        """Learn from a table; NaN, None and NA are missing values.

        Args:
            X_val: Rows to choose the best weights on. None: a tenth of X.
            choices: minutes, epochs, steps or kinds for this fit, in place of the constructor's.
        """
        self._learn(X, X_val, choices)
        self.history_.raise_if_interrupted()
        return self

    def score_samples(self, X: Any, n_orders: int = 4, combine: Combine = "ensemble") -> Floats:
        """Return ln p(row) in nats, (rows,), higher = more normal; missing values are left out, not guessed.

        Args:
            n_orders: Orders under which every row is scored.
            combine: "ensemble" averages probabilities over orders, "mean" averages log-probabilities.
        """
        X = self._checked(X)
        return tables.log_prob(self.table_, X, n_orders, combine)

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean of `score_samples`: nats per row, higher is better."""
        return float(self.score_samples(X).mean())

    def log_prob(
        self, X: Any, targets: Hashable | Names | None = None, given: Hashable | Names = (), n_orders: int = 4
    ) -> Floats:
        """Return ln p(targets | given) of every row in nats; other columns are marginalised exactly."""
        X, wanted = self._checked(X), None if targets is None else self._texts(targets)
        return tables.log_prob(self.table_, X, n_orders, "ensemble", wanted, self._texts(given))

    def sample(self, n: int = 1, given: Any = None, random_state: Randomness = None) -> pd.DataFrame:
        """Draw rows; `given` holds evidence, one row for all or n rows, whose missing values are drawn.

        Args:
            random_state: None: the estimator's, so that draws repeat if it has a seed, and differ if it has none.
        """
        check_is_fitted(self)
        given = None if given is None else self._checked(given)
        drawn = tables.draw_rows(self.table_, n, given, self._seed_of_draws(random_state))
        return self._named(drawn)

    def sample_remaining_columns(self, known: Any, random_state: Randomness = None) -> Any:
        """Draw the columns that each row of known values lacks, by conditioning, never by rejection."""
        known = self._checked(known)
        drawn = tables.complete(self.table_, known, self._seed_of_draws(random_state))
        return self._like(known, drawn)

    def _seed_of_draws(self, random_state: Randomness) -> int:
        if isinstance(random_state, int | np.integer):
            return int(random_state)
        if random_state is None and self.random_state is not None:
            return self.table_.seed
        return int(check_random_state(random_state).randint(MOST))

    def conditional(self, X: Any, targets: Hashable | Names, quantiles: Sequence[float] = (0.05, 0.5, 0.95)) -> Any:
        """Describe p(column | the row's other values) for every row.

        Returns:
            A frame for one column, else a dict of frames: probabilities of labels or levels, or mean, std, quantiles.
        """
        X = self._checked(X)
        if self._is_name(targets):
            return tables.conditional(self.table_, X, str(targets), quantiles)
        return {name: tables.conditional(self.table_, X, str(name), quantiles) for name in targets}  # type: ignore[union-attr]

    def predict_proba(self, X: Any, target: Hashable) -> Floats:
        """Return the probability of each label or level of a column, given the row's other values: (rows, labels).

        `conditional` returns the same as a frame with their names; for labels, the last is "(other)", in
        more brackets if a label is called so.
        """
        X = self._checked(X)
        return tables.ask(self.table_, X, str(target), Predictive.probabilities)

    def explain(self, X: Any, n_orders: int = 8) -> Explanation:
        """Return how surprising each value of each row is, and what was expected in its place."""
        X = self._checked(X)
        return explain(self.table_, X, n_orders).renamed(self._own_columns)

    def session(self, alarms: Alarms | None = None) -> Session:
        """Open a session for a row whose values arrive one by one, in any order."""
        check_is_fitted(self)
        return Session(self.table_.model, self.table_.codec, alarms=alarms)

    def pool(self, alarms: Alarms | None = None, memory: int = 2**28) -> SessionPool:
        """Open a pool of many such sessions, which keeps at most `memory` bytes of states."""
        check_is_fitted(self)
        return SessionPool(self.table_.model, self.table_.codec, alarms=alarms, memory=memory)

    def alarms(self, X: Any, rate: float = 0.01, per: Per = "row") -> Alarms:
        """Calibrate alarms of sessions on ordinary rows that were not in fit; see `calibrate`.

        Args:
            rate: Share of ordinary rows that may raise an alarm.
            per: "row": an alarm at any time; "length": one at a number of values chosen in advance.
        """
        X = self._checked(X)
        return tables.alarms(self.table_, X, rate, per=per)


class DEformerImputer(OneToOneFeatureMixin, TransformerMixin, TableEstimator):  # type: ignore[misc]
    """Fill in missing values of any kind of table, by the conditionals of a density.

    Args:
        strategy: "mean" fills in the expectation of numbers and the likeliest label, "mode" the likeliest value of
            every column, "sample" draws all missing values of a row jointly.
        n_imputations: Number of tables that `impute` draws.

    The other arguments are those of `DEformerDensity`.
    """

    _kept = ("strategy", "n_imputations")

    def __init__(
        self,
        strategy: Literal["mean", "mode", "sample"] = "mean",
        *,
        n_imputations: int = 1,
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
        self.strategy, self.n_imputations = strategy, n_imputations

    def fit(self, X: Any, y: Any = None, *, X_val: Any = None, **choices: Unpack[Choices]) -> "DEformerImputer":
        """Learn from a table that may have missing values; the arguments are those of `DEformerDensity.fit`."""
        self._check_strategy()
        self._learn(X, X_val, choices)
        self.history_.raise_if_interrupted()
        return self

    def _check_strategy(self) -> None:
        if self.strategy not in ("mean", "mode", "sample"):
            raise InputError(f"strategy must be 'mean', 'mode' or 'sample', not {self.strategy!r}.")
        if self.n_imputations > 1 and self.strategy != "sample":
            raise InputError(f"n_imputations must be 1 for {self.strategy!r}; only samples differ.")

    def transform(self, X: Any, return_std: bool = False) -> Any:
        """Return the table with missing values filled in; types, names and index are preserved.

        An array is returned as an array, a frame as a frame; a column without a value in fit stays missing.

        Args:
            return_std: Whether to return `spread` as well.
        """
        X = self._checked(X)
        filled = self._fill(X, self.table_.seed)
        return (filled, self.spread(X)) if return_std else filled

    def impute(self, X: Any) -> list[Any]:
        """Return `n_imputations` tables, drawn independently if the strategy is "sample"."""
        X = self._checked(X)
        return [self._fill(X, derive_of_piece(self.table_.seed, 0, i)) for i in range(self.n_imputations)]

    def spread(self, X: Any) -> pd.DataFrame:
        """Return the standard deviation of missing values, NaN elsewhere; numbers only."""
        X = self._checked(X)
        codec = self.table_.codec
        numeric = [n for n, c in zip(codec.names, codec.columns, strict=True) if has_order(c)]
        spreads = tables.expect(self.table_, X, dict.fromkeys(numeric, Predictive.std))
        spread = pd.DataFrame(spreads, codec.frame_of(X).index, numeric, np.float64)
        return self._named(spread)

    def _fill(self, X: Any, seed: int) -> Any:
        self._check_strategy()
        if self.strategy == "sample":
            filled = tables.complete(self.table_, X, seed)
        else:
            filled = tables.complete_expected(self.table_, X, self.strategy)
        if is_frame(X):
            return self._like(X, filled)
        return filled.to_numpy(dtype=X.dtype if X.dtype.kind == "f" else None)

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[Any]:
        """Return the names of the columns, which are those of fit.

        Args:
            input_features: What an array's columns are called, or the names of fit. None: the names of fit, x0, x1, ...
                of an array.
        """
        check_is_fitted(self)
        given = self.table_.codec.names if input_features is None else super().get_feature_names_out(input_features)
        return np.array(given, dtype=object)
