"""Tables of several libraries: pandas as it is, polars, Arrow and arrays into pandas, and back as they came."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from deformer.errors import InputError

# Whole numbers and booleans keep their type beside missing values.
KEPT = {
    **{"bool": "boolean", "int8": "Int8", "int16": "Int16", "int32": "Int32", "int64": "Int64"},
    **{"uint8": "UInt8", "uint16": "UInt16", "uint32": "UInt32", "uint64": "UInt64"},
}


def as_frame(table: Any) -> pd.DataFrame:
    """Take a frame of pandas, polars or Arrow as it is, and give an array's columns the names x0, x1, ...

    Sparse columns become dense, and decimals floats.

    Raises:
        InputError: Not a table, no columns, or names that are not unique.
    """
    if is_frame(table) and not isinstance(table, pd.DataFrame):
        table = from_arrow(table.to_arrow() if hasattr(table, "to_arrow") else table)
    if not isinstance(table, pd.DataFrame):
        array = np.asarray(table)
        if array.ndim != 2:
            raise InputError(f"Expected a table of rows and columns; this has shape {array.shape}.")
        table = pd.DataFrame(array, columns=names_of_array(array.shape[1]))
    names = [str(name) for name in table.columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"Column names must differ; {twice[0]!r} stands more than once.")
    if not names:
        raise InputError("The table holds no columns.")
    table = table.set_axis(names, axis=1)
    if odd := [name for name in names if _is_sparse(table[name]) or _holds_decimals(table[name])]:
        table = replaced(table, {name: _dense(table[name]) for name in odd})
    boxed = [name for name, dtype in table.dtypes.items() if isinstance(dtype, pd.ArrowDtype)]
    if boxed:
        import pyarrow

        arrow = pyarrow.Table.from_pandas(table[boxed], preserve_index=False).replace_schema_metadata(None)
        table = replaced(table, {name: series.set_axis(table.index) for name, series in from_arrow(arrow).items()})
    return table


def _is_sparse(series: "pd.Series[Any]") -> bool:
    return isinstance(series.dtype, pd.SparseDtype)


def _holds_decimals(series: "pd.Series[Any]") -> bool:
    types = pd.api.types
    return bool(types.is_object_dtype(series) and types.infer_dtype(series, skipna=True) == "decimal")


def _dense(series: "pd.Series[Any]") -> "pd.Series[Any]":
    """Give a sparse column as a dense one, and Python's decimals as floats, as which Arrow's come."""
    if _is_sparse(series):
        return series.sparse.to_dense()
    return pd.Series(series.to_numpy(np.float64, na_value=np.nan), series.index)


def names_of_array(n: int) -> tuple[str, ...]:
    """Name columns that have no names."""
    return tuple(f"x{i}" for i in range(n))


def replaced(frame: pd.DataFrame, columns: Mapping[Any, Any]) -> pd.DataFrame:
    """Put other values into columns, of whatever names: pandas' own `assign` takes none called self."""
    other = frame.copy(deep=False)
    for name, values in columns.items():
        other[name] = values
    return other


def relabelled(frame: pd.DataFrame, own: "pd.Index[Any]") -> pd.DataFrame:
    """Call columns as the user does, whose names may be numbers or have several levels; others keep their names."""
    at = {str(name): i for i, name in enumerate(own)}
    known = [at.get(str(name), -1) for name in frame.columns]
    if -1 not in known:
        return frame.set_axis(own[known], axis=1)
    names = pd.Index([name if i < 0 else own[i] for i, name in zip(known, frame.columns, strict=True)])
    return frame.set_axis(names.set_names(own.names) if names.nlevels == own.nlevels else names, axis=1)


def is_frame(table: Any) -> bool:
    return isinstance(table, pd.DataFrame) or (hasattr(table, "to_pandas") and hasattr(table, "schema"))


def from_arrow(table: Any) -> pd.DataFrame:
    """Give an Arrow table in pandas; decimals become floats, and times of the day text."""
    import pyarrow

    for at, field in enumerate(table.schema):
        other = pyarrow.float64() if pyarrow.types.is_decimal(field.type) else None
        other = pyarrow.string() if pyarrow.types.is_time(field.type) else other
        if other is not None:
            table = table.set_column(at, field.name, table.column(at).cast(other))

    def kept(kind: Any) -> Any:
        return pd.api.types.pandas_dtype(KEPT[str(kind)]) if str(kind) in KEPT else None

    frame: pd.DataFrame = table.to_pandas(types_mapper=kept)
    return frame


def like(table: Any, frame: pd.DataFrame) -> Any:
    """Give a frame back in the library and the types that a table came in, if values lose nothing by it."""
    if isinstance(table, pd.DataFrame):
        given = frame.copy(deep=False)
        for name in frame.columns.intersection(table.columns):
            if isinstance(table.dtypes[name], pd.ArrowDtype):
                given[name] = typed(frame[name].astype(object), table.dtypes[name])
        return given
    if not is_frame(table):
        return frame
    import pyarrow

    arrow = pyarrow.Table.from_pandas(frame)
    if not hasattr(table, "to_arrow"):
        return _like_arrow(table, arrow)
    import polars

    def cast(column: polars.Series) -> polars.Series:
        try:
            as_it_came = column.cast(table.schema.get(column.name, column.dtype))
            return as_it_came if as_it_came.cast(column.dtype).equals(column) else column
        except polars.exceptions.PolarsError:
            return column

    given = polars.DataFrame(arrow)
    return given.with_columns(cast(column) for column in given.iter_columns())


def _like_arrow(table: Any, arrow: Any) -> Any:
    import pyarrow

    for at, name in enumerate(arrow.column_names):
        if name in table.schema.names:
            column = arrow.column(at)
            try:
                as_it_came = column.cast(table.schema.field(name).type)
                if as_it_came.cast(column.type).equals(column):
                    arrow = arrow.set_column(at, name, as_it_came)
            except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError):
                continue
    return arrow


def typed(series: "pd.Series[Any]", dtype: Any) -> "pd.Series[Any]":
    """Give a column of objects a type, if it loses nothing by it."""
    if isinstance(dtype, pd.CategoricalDtype) and not series.dropna().isin(dtype.categories).all():
        return series.infer_objects()
    try:
        typed = series.astype(dtype)
        same = (typed.astype(object) == series) | (typed.isna() & series.isna())
        return typed if bool(same.all()) else series.infer_objects()
    except (TypeError, ValueError, OverflowError):
        return series.infer_objects()
