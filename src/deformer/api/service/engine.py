"""What the service computes: from rows as clients write them to answers that JSON can hold. Knows nothing of HTTP."""

import io
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from deformer.api import tables
from deformer.api.explanations import surprises
from deformer.api.tables import TableModel
from deformer.data.chunks import text_chunks
from deformer.data.columns import Codes, has_order, values_of
from deformer.data.libraries import from_arrow, replaced
from deformer.data.times import is_moment, plain, to_the_second
from deformer.errors import InputError
from deformer.tasks.predictive import Predictive
from deformer.tasks.streaming import Alarms, Vocabulary, are_near

Row = Mapping[str, Any]
UNPACKED = 2**28  # bytes of a Parquet file without its compression
QUANTILES = (0.01, 0.05, *(i / 10 for i in range(1, 10)), 0.95, 0.99)


class FieldError(InputError):
    """A value that cannot be taken, and where it stands in the request."""

    def __init__(self, message: str, field: Sequence[str | int]) -> None:
        super().__init__(message)
        self.field = tuple(field)


@dataclass(frozen=True)
class Distribution:
    """What is predicted of one feature: probabilities of its values; of numbers mean, deviation and quantiles.

    Numbers may have one value with a probability.
    """

    probabilities: Mapping[Hashable, float]
    mean: float = 0.0
    std: float = 0.0
    quantiles: Sequence[float] = ()

    def spell(self, dtype: Any) -> dict[str, Any]:
        """Write it as JSON can hold it, in the units of a column of this type."""
        probabilities: dict[str, float] = {}
        for value, p in self.probabilities.items():  # of which two may be spelled alike, as 1 and "1" are
            key = _key(spell(value, dtype))
            probabilities[key] = probabilities.get(key, 0.0) + p
        if not self.quantiles:
            return {"kind": "discrete", "probabilities": probabilities}
        quantiles = {str(q): spell(x, dtype) for q, x in zip(QUANTILES, self.quantiles, strict=True)}
        told = {"mean": spell(self.mean, dtype), "std": plain(self.std), "quantiles": quantiles}
        kind = "moment" if is_moment(dtype) else "number"
        return {"kind": kind, **told, **({"probabilities": probabilities} if probabilities else {})}


def _key(value: Any) -> str:
    """Spell a value as JSON would."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def distributions(predictive: Predictive) -> list[Distribution]:
    """Describe what is predicted, for each row."""
    values = values_of(predictive.column)
    if values is not None:
        return [Distribution(dict(zip(values, p.tolist(), strict=True))) for p in predictive.probabilities()]
    mean, std, quantiles = predictive.mean(), predictive.std(), predictive.quantile(np.array(QUANTILES))
    mass = predictive.point_mass()
    masses: list[Mapping[Hashable, float]] = (
        [{}] * len(mean) if mass is None else [{mass[0]: p} for p in mass[1].tolist()]
    )
    numbers = zip(masses, mean.tolist(), std.tolist(), quantiles.tolist(), strict=True)
    return [Distribution(*described) for described in numbers]


def spell(value: Any, dtype: Any) -> Any:
    """Write a value of a column as rows hold it: days as a moment, whole levels without a point."""
    if is_moment(dtype):
        return plain(to_the_second(value, dtype))
    if pd.api.types.is_bool_dtype(dtype):
        return bool(value)
    value = plain(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def apart(names: Sequence[str], told: Collection[str]) -> list[list[str]]:
    """Say of which features to ask together: all that were not told, and each that was on its own."""
    free = [name for name in names if name not in told]
    held = [[name] for name in names if name in told]
    return [free, *held] if free else held


class Engine:
    """A model that answers in plain values.

    Args:
        table: The model and the codes of its columns.
        name: What it is called.
        alarms: Thresholds for sessions.
    """

    def __init__(self, table: TableModel, name: str, alarms: Alarms | None = None) -> None:
        self.table, self.name, self.alarms = table, name, alarms
        self.words = Vocabulary.of(table.model, table.codec)

    def describe(self) -> dict[str, Any]:
        """Say what the model is about: its features, their kinds and values, and an image's shape."""
        features = []
        codec = self.table.codec
        for column, (name, dtype) in zip(codec.columns, codec.units.items(), strict=True):
            values = values_of(column)
            kind = "label" if not has_order(column) else "number" if values is None else "level"
            kind = "moment" if is_moment(dtype) else kind
            features.append(
                {"name": name, "kind": kind, "values": None if values is None else [spell(v, dtype) for v in values]}
            )
        shape = self.table.model.schema.image_shape
        n_parameters = self.table.model.n_parameters
        return {"name": self.name, "parameters": n_parameters, "features": features, "image_shape": shape}

    def frame(self, rows: Sequence[Row], field: str = "rows") -> pd.DataFrame:
        """Lay rows out as a frame of the model's columns.

        Args:
            field: Where they stand in the request: "rows", or of a single row another name.

        Raises:
            FieldError: The first value that does not fit.
        """
        codec = self.table.codec
        known = set(codec.names)
        for i, row in enumerate(rows):
            for name in row.keys() - known:
                self.check(name, None, (field, i, name) if field == "rows" else (field, name))
        try:
            columns = {name: pd.Series([row.get(name) for row in rows], dtype=object) for name in codec.names}
            frame = pd.DataFrame(columns)
            self._require_codes(frame)
        except InputError as error:
            where = self._find_fault(frame)
            path: tuple[str | int, ...] = () if where is None else where if field == "rows" else where[1:]
            raise FieldError(str(error), (field, *path)) from error
        return frame

    def _require_codes(self, frame: pd.DataFrame) -> None:
        """Raise an InputError if a value has no code, or none that could be scored."""
        encoded, log_base = self.table.codec.encode(frame)
        parts = zip(encoded.values.T.double().numpy(), log_base.T.numpy(), strict=True)
        if not all(self._is_near(at, *of_column) for at, of_column in enumerate(parts)):
            raise InputError("a number lies too far out to be scored")

    def _is_near(self, at: int, codes: Codes, log_base: Codes) -> bool:
        """Say whether all values of a column are missing, its point mass, or near enough to have a density."""
        return bool(are_near(self.table.codec.columns[at].domain, codes, log_base).all())

    def _find_fault(self, frame: pd.DataFrame) -> tuple[int, str] | None:
        """Find row and column of a value at fault, by halves, since a request may hold millions of values."""

        def at_fault(at: int, start: int, end: int) -> bool:
            try:
                return not self._is_near(at, *self.table.codec.encode_column(at, frame[names[at]][start:end]))
            except InputError:
                return True

        names, start, end = self.table.codec.names, 0, len(frame)
        filled = [at for at, name in enumerate(names) if name in frame and frame[name].notna().any()]
        found = next((at for at in filled if at_fault(at, start, end)), None)
        if found is None:
            return None
        while end - start > 1:
            middle = (start + end) // 2
            start, end = (start, middle) if at_fault(found, start, middle) else (middle, end)
        return start, names[found]

    def check(self, name: str, value: Any, field: Sequence[str | int]) -> None:
        """Find out whether a feature can have a value; None is a missing one.

        Raises:
            FieldError: It cannot.
        """
        try:
            self.words.feature(name)
            if value is not None:
                self.words.encode(name, value)
        except InputError as error:
            raise FieldError(str(error), field) from error

    def check_arrival(self, name: str, value: Any) -> None:
        """Find out whether a session can take a value.

        Raises:
            FieldError: An unknown name, or a value that does not fit.
        """
        if value is None:
            raise FieldError("a missing value is not an observation; leave it out", ("value",))
        self.check(name, value, ("value",) if name in self.table.codec.names else ("name",))

    def read(self, body: bytes, kind: str, most: int, longest: int) -> list[dict[str, Any]]:
        """Read an uploaded table as files are read, no more than so many rows of it.

        Args:
            kind: "csv" or "parquet".
            longest: Characters of a text.

        Raises:
            InputError: The body cannot be read, or holds no rows.
        """
        try:
            if kind == "csv":
                frame = next(text_chunks(io.BytesIO(body), most, self.table.codec.layout), pd.DataFrame())
            else:
                frame = self._parquet(body, most)
            frame = frame.drop(columns=self.table.codec.index or [], errors="ignore")
            for name in frame:
                held = frame[name].cat.categories if hasattr(frame[name], "cat") else frame[name]
                if held.dtype.kind == "O" and held.astype(str).str.len().max() > longest:
                    raise InputError(f"column {name!r} holds a text of more than {longest} characters")
            rows: list[dict[str, Any]] = frame.astype(object).where(frame.notna(), None).to_dict("records")
        except Exception as error:  # whatever a reader of foreign bytes may raise
            raise InputError(f"the body is no readable {kind}: {error}") from error
        if not rows:
            raise InputError("the body holds no rows")
        return rows

    def _parquet(self, body: bytes, most: int) -> pd.DataFrame:
        """Read Parquet, of which a few bytes may stand for gigabytes: no column unread, no text more than once."""
        schema = pq.read_schema(io.BytesIO(body))
        index = [self.table.codec.index, *(schema.pandas_metadata or {}).get("index_columns", ())]
        columns = [column for column in schema if column.name not in index]
        for column in columns:
            if column.name not in self.table.codec.names:
                raise InputError(f"column {column.name!r} was not there in fit")
            if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
                raise InputError(f"column {column.name!r} holds {column.type}, which is no value")
        texts = [c.name for c in columns if pa.types.is_string(c.type) or pa.types.is_large_string(c.type)]
        file = pq.ParquetFile(io.BytesIO(body), read_dictionary=texts)
        sizes = (file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
        if sum(sizes) > UNPACKED:
            raise InputError("the body holds too much when it is unpacked")
        batches: list[pa.RecordBatch] = []
        n = 0
        for batch in file.iter_batches(most, columns=[c.name for c in columns]):  # of text, one for each row group
            batches.append(batch)
            n += len(batch)
            if n >= most:
                break
        return from_arrow(pa.Table.from_batches(batches)[:most].unify_dictionaries()) if batches else pd.DataFrame()

    def score(self, frame: pd.DataFrame, n_orders: int) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
        """Give the log-likelihood of each row in nats, and the parts of it that each value has."""
        per_order, rows = tables.terms(self.table, frame, n_orders)
        scores = tables.summary(per_order.sum(-1)).to_dict("records")
        shares, names = -per_order.mean(0), self.table.codec.names
        told = rows.observed.numpy()
        parts = [{names[f]: float(shares[i, f]) for f in np.flatnonzero(told[i])} for i in range(len(told))]
        return scores, parts

    def impute(self, frame: pd.DataFrame, strategy: str, seed: int) -> list[dict[str, Any]]:
        """Fill in what is missing."""
        if strategy != "draw":
            return records(tables.complete_expected(self.table, frame, strategy))
        return records(tables.complete(self.table, frame, seed))

    def sample(self, n: int, given: Row | None, seed: int) -> list[dict[str, Any]]:
        """Draw rows, keeping what is given."""
        evidence = self.frame([given], "given") if given else None
        return records(tables.draw_rows(self.table, n, evidence, seed))

    def targets(self, row: Row, targets: Sequence[str] | None) -> list[list[str]]:
        """Say of which features to ask together: all that the row lacks, and each that it holds on its own.

        Raises:
            FieldError: An unknown feature.
        """
        names = self.table.codec.names
        asked = [n for n in names if row.get(n) is None] if targets is None else list(dict.fromkeys(targets))
        for i, name in enumerate(asked):
            self.check(name, None, ("targets", i))
        return apart(asked, {name for name in asked if row.get(name) is not None})

    def conditional(self, frame: pd.DataFrame, targets: Sequence[str], n_orders: int) -> dict[str, Any]:
        """Describe p(feature | the row's other values) for each target; what is held must not tell about itself."""
        hidden = replaced(frame, {name: None for name in targets if frame[name].notna().any()})
        return self.in_units(tables.ask_row(self.table, hidden, targets, distributions, n_orders))

    def in_units(self, answers: Mapping[str, Distribution]) -> dict[str, Any]:
        """Write distributions of columns in the units of the table."""
        units = self.table.codec.units
        return {name: distribution.spell(units[name]) for name, distribution in answers.items()}

    def surprises(self, frame: pd.DataFrame, names: Sequence[str]) -> list[list[dict[str, Any]]]:
        """Say how much the values of some features of each row surprise, and what was expected."""
        told = surprises(self.table, frame, self.table.codec.encode(frame), names)
        parts = dict(zip(("value", "expected", "surprise", "excess"), told, strict=True))
        rows = [pd.DataFrame({k: p.iloc[i].astype(object) for k, p in parts.items()}) for i in range(len(frame))]
        return [records(row.rename_axis("feature").reset_index()) for row in rows]


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Give a frame's rows as dictionaries of plain values."""
    return [{str(k): plain(v) for k, v in row.items()} for row in frame.to_dict("records")]
