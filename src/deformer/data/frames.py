"""Frames: tables as people hold them, in pandas, polars or arrays, and the rows of codes that a model sees."""

import decimal
import math
import numbers
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from deformer.data.chunks import Layout
from deformer.data.columns import (
    Codes,
    Column,
    Draw,
    Labels,
    Levels,
    Nothing,
    Numbers,
    Plain,
    Values,
    from_dict,
    has_order,
    label_column,
    numeric_column,
    spell_label,
    to_dict,
)
from deformer.data.dtypes import as_label, dtype_from_json, dtype_to_json, restore
from deformer.data.libraries import as_frame, is_frame, relabelled, typed
from deformer.data.schema import Feature, Schema
from deformer.data.table import Rows, as_rows
from deformer.data.times import (
    absent,
    as_dates,
    as_times,
    from_days,
    holds_dates,
    is_time,
    to_days,
    to_the_second,
    unboxed,
)
from deformer.errors import InputError

KINDS = ("number", "label")
LARGEST = 1e150  # larger numbers stand for infinity or for what is missing; their squares are no floats


@dataclass(frozen=True)
class Codec:
    """How the columns of a frame become features, and back with the types they had.

    Args:
        names, columns, dtypes: Of the frame, in the sequence of the features.
        dates: Names of columns whose moments are days of a calendar, objects in the frame.
        index: Name of the frame's index, a column of files that names rows. None: it has none.
        own_schema: Of a model whose features are more than columns, such as pixels with places. None: plain features.
    """

    names: tuple[str, ...]
    columns: tuple[Column, ...]
    dtypes: tuple[Any, ...]
    dates: tuple[str, ...] = ()
    index: str | None = None
    own_schema: Schema | None = None

    @cached_property
    def schema(self) -> Schema:
        if self.own_schema is not None:
            return self.own_schema
        features = (Feature(name, column.domain) for name, column in zip(self.names, self.columns, strict=True))
        return Schema(tuple(features))

    @cached_property
    def units(self) -> dict[str, Any]:
        """Give the types in which columns of numbers count; object where nothing is counted."""
        nothing = np.dtype(object)
        columns = zip(self.names, self.columns, self.dtypes, strict=True)
        return {n: d if has_order(c) and not isinstance(c, Nothing) else nothing for n, c, d in columns}

    @cached_property
    def text_labels(self) -> frozenset[str]:
        """Name the columns whose labels are text, digits or not."""
        named = zip(self.names, self.columns, strict=True)
        return frozenset(n for n, c in named if isinstance(c, Labels) and all(isinstance(v, str) for v in c.labels))

    @property
    def layout(self) -> Layout:
        """Say what to expect of files with such columns."""
        return Layout(self.text_labels, self.names, index=self.index)

    def encode(self, table: Any) -> tuple[Rows, Tensor]:
        """Turn a table into rows; a column that it lacks is missing in every row.

        Returns:
            The rows, and ln p(value | code) of every cell in nats, (batch, features), 0 where missing.

        Raises:
            InputError: A column that was not there in fit, no rows, infinite numbers, or text where numbers were.
        """
        frame = self.frame_of(table)
        if not len(frame):
            raise InputError("The table holds no rows.")
        codes, log_base = np.full((len(frame), len(self.names)), np.nan), np.zeros((len(frame), len(self.names)))
        for at, name in enumerate(self.names):
            if name in frame:
                codes[:, at], of_codes = self.encode_column(at, frame[name])
                log_base[:, at] = np.where(np.isnan(codes[:, at]), 0, of_codes)
        return as_rows(torch.from_numpy(codes), self.schema), torch.from_numpy(log_base)

    def encode_column(self, at: int, series: "pd.Series[Any]") -> tuple[Codes, Codes]:
        """Give codes of a column's values, NaN where missing, and ln p(value | code) in nats."""
        column = self.columns[at]
        if self.is_empty(at):
            return np.full(len(series), np.nan), np.zeros(len(series))
        series = as_times(series, self.dtypes[at])
        if isinstance(column, Labels):
            return self._encode_labels(at, _objects(series))
        if is_time(series.dtype) and not is_time(self.dtypes[at]):
            raise InputError(f"Column {series.name!r} held numbers in fit; now it holds times ({series.dtype}).")
        return column.encode(self._read_numbers(at, series))

    def _read_numbers(self, at: int, series: "pd.Series[Any]") -> Values:
        spelled = pd.api.types.is_bool_dtype(self.dtypes[at]) and not pd.api.types.is_bool_dtype(series)
        return _numbers(_truths(series) if spelled else series)

    def is_empty(self, at: int) -> bool:
        """Say whether fit saw no value of a column, so that the network learned what none of them means."""
        column = self.columns[at]
        return isinstance(column, Nothing) or (isinstance(column, Labels) and not column.seen)

    def _encode_labels(self, at: int, objects: Values) -> tuple[Codes, Codes]:
        column, labels = self.columns[at], _labels(objects, self.names[at])
        assert isinstance(column, Labels)
        spell = _as_text if self.names[at] in self.text_labels else _as_seen
        return column.encode(spell(labels, column))

    def encode_cell(self, at: int, value: Any) -> tuple[float, float]:
        """Code one value of a column as `encode` would, without making a column of it if that can be spared.

        Raises:
            InputError: Not a value of this column.
        """
        if absent(value) or self.is_empty(at):
            return math.nan, 0.0
        held = np.empty(1, dtype=object)
        held[0] = value
        if is_time(self.dtypes[at]) or pd.api.types.is_bool_dtype(self.dtypes[at]):
            codes, log_base = self.encode_column(at, pd.Series(held, name=self.names[at]))
        elif isinstance(self.columns[at], Labels):
            codes, log_base = self._encode_labels(at, held)
        elif abs(float(value)) > LARGEST:
            raise InputError(f"{value!r} is not finite, or beyond {LARGEST:g}.")
        else:
            codes, log_base = self.columns[at].encode(held)
        return float(codes[0]), float(log_base[0])

    def frame_of(self, table: Any) -> pd.DataFrame:
        """Take a frame by the names of its columns, an array by their number."""
        frame = as_frame(table)
        if not is_frame(table):
            if frame.shape[1] != len(self.names):
                raise InputError(f"The table has {frame.shape[1]} columns; there were {len(self.names)} in fit.")
            return frame.set_axis(list(self.names), axis=1)
        unknown = [name for name in frame.columns if name not in self.names]
        if unknown:
            raise InputError(f"Column {unknown[0]!r} was not there in fit; there were {', '.join(self.names[:8])}.")
        return frame

    def decode(self, codes: npt.NDArray[np.float64], index: Any = None, draw: Draw | None = None) -> pd.DataFrame:
        """Turn codes (batch, features) into a frame of the types seen in fit.

        Args:
            index: Of the frame. None: 0, 1, ...
            draw: Uniform numbers, for what a code leaves open. None: the likeliest value.
        """
        decoded = {
            n: c.decode(codes[:, i], draw) for i, (n, c) in enumerate(zip(self.names, self.columns, strict=True))
        }
        frame = self.restore(decoded)
        return frame if index is None else frame.set_axis(index, axis=0)

    def restore(self, values: Mapping[str, Values]) -> pd.DataFrame:
        """Give plain values of all columns, numbers and labels, the types seen in fit."""
        restored = {}
        for name, column, dtype in zip(self.names, self.columns, self.dtypes, strict=True):
            plain = values[name] if isinstance(column, Labels) else values[name].astype(np.float64)
            whole = _is_whole(column) or (name in self.dates and not isinstance(column, Labels))
            series = restore(np.round(plain) if is_time(dtype) and whole else plain, dtype)
            restored[name] = as_dates(series) if name in self.dates else series
        return pd.DataFrame(restored)

    def in_units(self, name: str, numbers: Values) -> "pd.Series[Any]":
        """Give numbers as moments, lengths of time or booleans where a column holds such; others as they are."""
        dtype = self.units[name]
        if is_time(dtype):
            return from_days(numbers, dtype)
        truths = pd.api.types.is_bool_dtype(dtype) and not np.isnan(numbers).any()
        return pd.Series(numbers.astype(bool) if truths else numbers)

    def fill(self, table: Any, guesses: pd.DataFrame) -> pd.DataFrame:
        """Put guesses where a table has no value of its own, under its index and names; columns are those of fit."""
        frame = self.frame_of(table)
        filled = {}
        for at, (name, column) in enumerate(zip(self.names, self.columns, strict=True)):
            guess = guesses[name].set_axis(frame.index)
            own = self._own(at, frame[name]) if name in frame else guess
            whole = own.astype(object).where(own.notna(), guess.astype(object))
            if isinstance(column, Labels) and _is_partly_text(whole) and not _is_partly_text(column.seen):
                whole = _as_text_alone(whole, column)
            filled[name] = whole if name in self.dates else typed(whole, self.dtypes[at])
        guessed = pd.DataFrame(filled)
        return relabelled(guessed, table.columns) if isinstance(table, pd.DataFrame) else guessed

    def _own(self, at: int, series: "pd.Series[Any]") -> "pd.Series[Any]":
        """Give a column's own values as times or numbers where they were such in fit and may be text now."""
        series, column = as_times(series, self.dtypes[at]), self.columns[at]
        if self.names[at] in self.dates:
            return as_dates(series)
        numbers = not isinstance(column, Labels | Nothing) and not is_time(self.dtypes[at])
        may_spell = numbers and not pd.api.types.is_numeric_dtype(series.dtype)
        if may_spell and any(isinstance(value, str) for value in _objects(series)):
            return pd.Series(self._read_numbers(at, series), series.index)
        return series

    def to_dict(self) -> dict[str, Any]:
        """Write the codec as JSON can hold it.

        Raises:
            InputError: It belongs to a model that is none of tables, which is saved as it is.
        """
        if self.own_schema is not None:
            raise InputError("This model is none of tables; save the model itself.")
        columns = [to_dict(column) for column in self.columns]
        dtypes = [dtype_to_json(d) for d in self.dtypes]
        own = {"names": list(self.names), "columns": columns, "dtypes": dtypes}
        return {**own, "dates": list(self.dates), "index": self.index}

    @classmethod
    def of_schema(cls, schema: Schema) -> "Codec":
        """Take columns for what a schema says they are, labels by their numbers."""
        columns = tuple(Plain(f.domain) for f in schema.features)
        return cls(tuple(schema.names), columns, (np.dtype(np.float64),) * len(schema), own_schema=schema)

    @classmethod
    def from_dict(cls, written: dict[str, Any]) -> "Codec":
        """Read what `to_dict` wrote."""
        dtypes = tuple(dtype_from_json(d) for d in written["dtypes"])
        columns, dates = tuple(from_dict(c) for c in written["columns"]), tuple(written.get("dates", ()))
        return cls(tuple(written["names"]), columns, dtypes, dates, written.get("index"))

    def describe(self) -> pd.DataFrame:
        """List the features: name, type in the frame, how values are coded, and examples."""
        lines = [
            {
                "name": name,
                "dtype": "date" if name in self.dates else str(dtype),
                "coded as": type(column).__name__.lower(),
                "values": _spell(column, dtype),
            }
            for name, column, dtype in zip(self.names, self.columns, self.dtypes, strict=True)
        ]
        return pd.DataFrame(lines).set_index("name")


def make_codec(table: Any, kinds: Mapping[Any, str | Column] | None = None, levels: bool = True) -> Codec:
    """Choose how to code every column of a table.

    Args:
        kinds: What some columns are: "number", "label", or a column of one's own. None: what their values look like.
        levels: Whether numbers of which there are few become labels with an order; booleans always do.

    Raises:
        InputError: Not a table, no rows, an unknown column or kind, or infinite numbers.

    Examples:
        >>> table = pd.DataFrame({"age": [31.0, 29.5, 40.5], "job": ["nurse", "clerk", None]})
        >>> make_codec(table).describe()["coded as"].tolist()
        ['numbers', 'labels']
    """
    frame, kinds = as_frame(table), {str(name): kind for name, kind in (kinds or {}).items()}
    if not len(frame):
        raise InputError("The table holds no rows.")
    for name, kind in kinds.items():
        if name not in frame:
            raise InputError(f"No column is called {name!r}; there are {', '.join(list(frame.columns)[:8])}.")
        chosen = isinstance(kind, Levels | Labels | Numbers | Nothing | None)
        if not chosen and not (isinstance(kind, str) and kind in KINDS):
            raise InputError(f"Column {name!r} cannot be a {kind!r}; choose {' or '.join(KINDS)}.")
    dates = tuple(name for name in frame if holds_dates(frame[name]))
    frame = frame.apply(unboxed)
    columns = tuple(_choose(frame[name], kinds.get(name), frame.shape[1], levels) for name in frame.columns)
    index = None if frame.index.name is None or frame.index.name in frame else str(frame.index.name)
    return Codec(tuple(frame.columns), columns, tuple(frame.dtypes), dates, index)


def _choose(series: "pd.Series[Any]", kind: str | Column | None, n_columns: int, levels: bool) -> Column:
    if not isinstance(kind, str | None):
        return kind
    as_labels = kind == "label" or (kind is None and not _is_numeric(series))
    if as_labels:
        return label_column(_labels(_objects(series), series.name).tolist())
    return numeric_column(_numbers(series), n_columns, levels or pd.api.types.is_bool_dtype(series))


def _is_numeric(series: "pd.Series[Any]") -> bool:
    types = pd.api.types
    if types.is_numeric_dtype(series) or is_time(series.dtype):
        return not types.is_complex_dtype(series)
    known = series.dropna()
    if series.dtype != object:
        return False
    return all(isinstance(v, (numbers.Real, np.bool_, decimal.Decimal)) and not isinstance(v, bool) for v in known)


def _objects(series: "pd.Series[Any]") -> Values:
    objects: Values = series.astype(object).where(series.notna(), None).to_numpy(dtype=object)
    return objects


def _labels(objects: Values, name: Hashable) -> Values:
    """Give objects, None where missing, as labels that can be written to a file."""
    strange = next((v for v in objects if not isinstance(v, Hashable)), None)
    if strange is not None:
        raise InputError(f"Column {name!r} holds {strange!r}, which cannot be a label.")
    labels: Values = np.array([None if v is None else as_label(v) for v in objects], dtype=object)
    return labels


def _numbers(series: "pd.Series[Any]") -> Values:
    """Give a column's values as floats, NaN where missing; times as days."""
    if is_time(series.dtype):
        return to_days(series)
    try:
        values: Values = series.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"Column {series.name!r} is one of numbers; it holds {_no_number(series)!r}.") from error
    if (np.abs(values) > LARGEST).any():
        raise InputError(
            f"Column {series.name!r} holds infinite numbers, or ones beyond {LARGEST:g}; write NaN for missing."
        )
    return values


def _as_text(labels: Values, column: Labels) -> Values:
    """Spell labels that were text in fit and are numbers now, as a file may be read."""
    known = column.spelled
    spelled: Values = np.array([None if v is None else spell_label(v, known) for v in labels], dtype=object)
    return spelled


def _as_seen(labels: Values, column: Labels) -> Values:
    """Take text that is no label for the label that is spelled so: numbers in fit may be read as text now."""
    if not any(isinstance(v, str) for v in labels):
        return labels
    return np.array([column.spelled.get(v, v) if isinstance(v, str) else v for v in labels], dtype=object)


def _as_text_alone(series: "pd.Series[Any]", column: Labels) -> "pd.Series[Any]":
    return series.map(lambda v: None if absent(v) else spell_label(as_label(v), column.spelled))


def _is_partly_text(values: Iterable[Any]) -> bool:
    """Say whether some values are text and others are not."""
    return len({isinstance(value, str) for value in values if not absent(value)}) > 1


def _is_whole(column: Column) -> bool:
    """Say whether a column held whole numbers only."""
    if isinstance(column, Levels):
        return all(level.is_integer() for level in column.levels)
    return isinstance(column, Numbers) and column.whole


def _truths(series: "pd.Series[Any]") -> "pd.Series[Any]":
    """Read the words true and false, of any case, among booleans."""
    words = {"true": True, "false": False}
    return series.map(lambda v: words.get(v.strip().lower(), v) if isinstance(v, str) else v)


def _no_number(series: "pd.Series[Any]") -> Any:
    """Give the first value that is none."""

    def fits(value: Any) -> bool:
        try:
            return absent(value) or math.isfinite(float(value))
        except (TypeError, ValueError, OverflowError):
            return False

    return next((v for v in series if not fits(v)), series.iloc[0])


def _spell(column: Column, dtype: Any) -> str:
    def number(value: float, digits: int) -> str:
        return str(to_the_second(value, dtype)) if is_time(dtype) else f"{value:.{digits}g}"

    if isinstance(column, Labels):
        rest = f", and {len(column.others)} rare ones" if column.others else ""
        return _some(column.labels) + rest
    if isinstance(column, Levels):
        return _some([number(v, 6) for v in column.levels])
    if isinstance(column, Plain):
        return str(column.domain)
    if isinstance(column, Nothing):
        return "none"
    spread = f"{column.scale:.4g}" + " days" * is_time(dtype)
    often = "" if column.point_mass is None else f", often exactly {number(column.point_mass, 15)}"
    return f"around {number(column.loc, 4)}, spread {spread}" + ", heavy tails" * column.bend + often


def _some(values: Sequence[Any]) -> str:
    shown = ", ".join(str(v) for v in values[:5])
    return shown + (f", ... ({len(values)})" if len(values) > 5 else "")
