"""Online learning in the manner of River: rows as dictionaries, learned and scored one by one."""

import copy
import decimal
import numbers
from collections import deque
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from deformer.api import tables
from deformer.api.defaults import suited
from deformer.api.tables import TableModel
from deformer.config import ModelConfig, TrainConfig, check_names
from deformer.data.frames import LARGEST
from deformer.data.times import python
from deformer.errors import InputError
from deformer.tasks.streaming import Session
from deformer.train.fit import fit

Row = Mapping[str, Any]


class DEformerStream:
    """An anomaly detector for a stream of rows, whose keys may be missing, come late or be in any sequence.

    The first `warm_up` rows determine how columns are coded and the model; after that, it is trained for
    `steps_per_update` steps on the last `buffer` rows whenever `update_every` more have arrived.

    Args:
        warm_up: Rows before the first training; until then, every score is 0.
        buffer: Number of latest rows to keep and learn from.
        update_every: Rows between updates. None: the model stays as it is after the warm-up.
        steps_per_update: Training steps per update, which bound its time.
        minutes: Maximum minutes of the first training; few shrink the network.
        n_orders: Orders under which a row is scored.
        seed: Seed of all random draws.
        network: Changes to the network chosen for the size of the warm-up and the time.
        training: Changes to its training.

    Examples:
        >>> stream = DEformerStream(warm_up=50, update_every=None, training={"steps": 100})
        >>> for i in range(60):
        ...     _ = stream.learn_one({"a": i % 2, "b": i % 2})
        >>> stream.score_one({"b": 1, "a": 1}) < stream.score_one({"a": 0, "b": 1})
        True
    """

    def __init__(
        self,
        *,
        warm_up: int = 500,
        buffer: int = 5_000,
        update_every: int | None = 500,
        steps_per_update: int = 50,
        minutes: float = 1.0,
        n_orders: int = 4,
        seed: int = 0,
        network: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        if not 2 <= warm_up <= buffer:
            raise InputError(f"warm_up must lie between 2 and buffer = {buffer}, not {warm_up}.")
        if steps_per_update < 1:
            raise InputError(f"steps_per_update must be at least 1, not {steps_per_update}.")
        check_names(ModelConfig, network or ())
        check_names(TrainConfig, training or ())
        self.warm_up, self.update_every, self.steps_per_update = warm_up, update_every, steps_per_update
        self.minutes, self.n_orders, self.seed = minutes, n_orders, seed
        self.network, self.training = network, training
        self.table: TableModel | None = None
        self.n_seen = 0
        self._rows: deque[Row] = deque(maxlen=buffer)

    def learn_one(self, row: Row) -> "DEformerStream":
        """Learn from a row. Keys that were not in the warm-up are ignored; None and NaN count as missing.

        Raises:
            InputError: A value that its column cannot hold; the row is not kept.
        """
        row = {str(name): value for name, value in row.items()}
        if self.table is not None:
            self.table.codec.encode(self._frame([row], self.table))  # what cannot be coded is refused, and not kept
        else:
            _require_values(row)
        self._rows.append(row)
        self.n_seen += 1
        if self.table is None:
            if self.n_seen >= self.warm_up:
                self._begin()
        elif self.update_every and (self.n_seen - self.warm_up) % self.update_every == 0:
            self._update(self.table)
        return self

    def score_one(self, row: Row) -> float:
        """Return -ln p of the row's known values in nats: higher = more anomalous. Nothing is learned."""
        if self.table is None:
            return 0.0
        frame = self._frame([{str(name): value for name, value in row.items()}], self.table)
        if frame.isna().all(axis=None):
            return 0.0
        return -float(tables.log_prob(self.table, frame, self.n_orders)[0])

    def session(self) -> Session:
        """Open a session for a row whose values arrive one by one.

        Raises:
            InputError: The warm-up is not over.
        """
        if self.table is None:
            raise InputError(f"There is no model yet; {self.n_seen} of {self.warm_up} rows of the warm-up have come.")
        return Session(self.table.model, self.table.codec)

    def _frame(self, rows: list[Row], table: TableModel) -> pd.DataFrame:
        return pd.DataFrame([{name: row.get(name) for name in table.codec.names} for row in rows])

    def _begin(self) -> None:
        frame = pd.DataFrame(list(self._rows))
        self.table, history = tables.learn(
            frame, minutes=self.minutes, network=self.network, training=self.training, seed=self.seed
        )
        history.raise_if_interrupted()

    def _update(self, table: TableModel) -> None:
        """Train a copy, so that sessions that are open keep the model they began with."""
        model = copy.deepcopy(table.model)
        rows, _ = table.codec.encode(self._frame(list(self._rows), table))
        _, config = suited(rows, TrainConfig(steps=self.steps_per_update, seed=self.n_seen))
        rates: dict[str, Any] = {"lr": config.lr / 4, "muon_lr": config.muon_lr / 4, "warmup_steps": 0}
        limits: dict[str, Any] = {"steps": self.steps_per_update, "epochs": None, "minutes": None, "cycles": 1}
        training = TrainConfig(**{**vars(config), **rates, **(self.training or {}), **limits})
        history = fit(model, rows, training, fresh=False)
        self.table = TableModel(table.codec, model.eval(), table.seed)
        history.raise_if_interrupted()


def _require_values(row: Row) -> None:
    """Refuse what no column could hold, before there are columns.

    Raises:
        InputError: An infinite, too large or unhashable value.
    """
    for name, value in row.items():
        value = python(value)  # NumPy's lengths of time pass for its whole numbers
        try:
            too_large = isinstance(value, numbers.Real | decimal.Decimal) and abs(float(value)) > LARGEST
        except (OverflowError, ValueError):
            too_large = True
        if too_large or not isinstance(value, Hashable):
            raise InputError(f"{name!r}: {value!r} is no value that a column could hold.")
