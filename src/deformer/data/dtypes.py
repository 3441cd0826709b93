"""Types of columns: values brought back to the type they had, and types as JSON holds them."""

import datetime
import re
import zoneinfo
from typing import Any

import numpy as np
import pandas as pd

from deformer.data.columns import Values
from deformer.data.times import from_days, is_time

WRITABLE = (str, bool, int, float)  # other labels, such as intervals, are known by their text


def as_label(value: Any) -> Any:
    """Give a label as JSON can hold it."""
    plain = value.item() if isinstance(value, np.generic) else value
    return plain if isinstance(plain, WRITABLE) else str(plain)


def restore(values: Values, dtype: Any) -> "pd.Series[Any]":
    """Give plain values, numbers and labels, a type."""
    if is_time(dtype):
        if values.dtype != object:
            return from_days(values, dtype)
        zoned = getattr(dtype, "tz", None) is not None  # where offsets differ, as clocks change
        return pd.Series(pd.to_datetime(values, format="ISO8601", utc=True) if zoned else values).astype(dtype)
    series = pd.Series(values)
    missing = series.isna().any()
    if isinstance(dtype, pd.IntervalDtype):
        return series  # they are known by their text
    categorical = isinstance(dtype, pd.CategoricalDtype)
    if categorical and series.dtype.kind == "f" and pd.api.types.is_numeric_dtype(dtype.categories):
        return _nearest_category(series, dtype)
    if categorical:
        by_text = {str(category): category for category in dtype.categories}
        series = series.map(lambda v: v if isinstance(v, WRITABLE) and v in dtype.categories else by_text.get(v))
    if pd.api.types.is_integer_dtype(dtype):
        limits = np.iinfo(getattr(dtype, "numpy_dtype", dtype))
        most = float(limits.max) if int(float(limits.max)) == limits.max else np.nextafter(float(limits.max), 0)
        if series.dtype.kind == "f":  # numbers that were taken for labels are whole already
            series = series.round().clip(float(limits.min), most)
    if missing and isinstance(dtype, np.dtype) and dtype.kind in "iub":
        return series  # these types know no missing values
    if pd.api.types.is_bool_dtype(dtype) and not missing:
        series = series.astype(float).round().astype(bool)
    return series.astype(dtype)


def _nearest_category(numbers: "pd.Series[Any]", dtype: pd.CategoricalDtype) -> "pd.Series[Any]":
    """Round what was taken for numbers to categories, which are numbers then."""
    categories = dtype.categories.to_numpy(dtype=np.float64)
    nearest = np.abs(numbers.to_numpy()[:, None] - categories).argmin(1)
    codes = np.where(numbers.isna(), -1, nearest)
    return pd.Series(pd.Categorical.from_codes(codes, dtype=dtype))


def dtype_to_json(dtype: Any) -> Any:
    if isinstance(dtype, pd.CategoricalDtype):
        return {"categories": [as_label(c) for c in dtype.categories], "ordered": bool(dtype.ordered)}
    zone = getattr(dtype, "tz", None)
    return str(dtype) if zone is None else f"datetime64[{dtype.unit}, {_zone_to_json(zone)}]"


def _zone_to_json(zone: datetime.tzinfo) -> str:
    """Name a zone by its key or its offset; of one that has neither, moments are kept in UTC."""
    key = getattr(zone, "key", None) or getattr(zone, "zone", None)
    if key is None and (offset := zone.utcoffset(None)) is not None:
        return str(datetime.timezone(offset))
    if key is None:  # dateutil tells only of the file
        file = re.fullmatch(r"tzfile\('(?:.*/zoneinfo/)?(.+)'\)", repr(zone))
        key = file[1] if file and file[1] in zoneinfo.available_timezones() else "UTC"
    return str(key)


def dtype_from_json(written: Any) -> Any:
    return pd.CategoricalDtype(**written) if isinstance(written, dict) else pd.api.types.pandas_dtype(written)
