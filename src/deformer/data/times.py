"""Moments and lengths of time, which models see as days: since 1970 in UTC, or as they are."""

import datetime
import math
import numbers
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from deformer.errors import InputError

EPOCH = pd.Timestamp(0, tz="UTC").as_unit("s")
DAY = pd.Timedelta(days=1)
YEARS = (-719_162, 2_932_897)  # days from 1970 to the first one of year 1, and to the end of year 9999
NANOSECONDS = (-106_751, 106_751)  # days that a time in nanoseconds can lie away
PER_DAY = {"ms": 86_400e3, "us": 86_400e6, "ns": 86_400e9}
Days = npt.NDArray[np.float64]


def is_moment(dtype: Any) -> bool:
    return bool(pd.api.types.is_datetime64_any_dtype(dtype))


def is_length(dtype: Any) -> bool:
    return bool(pd.api.types.is_timedelta64_dtype(dtype))


def is_time(dtype: Any) -> bool:
    return is_moment(dtype) or is_length(dtype)


def holds_dates(series: "pd.Series[Any]") -> bool:
    """Say whether a column holds Python's own dates, as days of a calendar come out of Parquet files."""
    return bool(series.dtype == object and pd.api.types.infer_dtype(series, skipna=True) == "date")


def unboxed(series: "pd.Series[Any]") -> "pd.Series[Any]":
    """Give a column of Python's own dates, moments or lengths of time a type of times; any other as it is."""
    if holds_dates(series):  # by way of days, which reach farther than the nanoseconds of older pandas
        days = np.array(series.where(series.notna(), None).tolist(), dtype="datetime64[D]")
        return pd.Series(days.astype("datetime64[s]"), series.index, name=series.name)
    kind = pd.api.types.infer_dtype(series, skipna=True) if series.dtype == object else None
    return series.infer_objects() if kind in ("datetime", "timedelta") else series


def as_dates(series: "pd.Series[Any]") -> "pd.Series[Any]":
    """Give moments as the days, Python's own dates, on which they are; None where missing."""
    return series.dt.floor("D").dt.date.astype(object).where(series.notna(), None)


def to_days(series: "pd.Series[Any]") -> Days:
    """Give times as days, NaN where missing.

    Raises:
        InputError: A moment farther away than can be counted.
    """
    try:
        if is_length(series.dtype):
            lengths: Days = (series / DAY).to_numpy(dtype=np.float64)
            return lengths
        moments = series.dt.tz_localize("UTC") if series.dt.tz is None else series.dt.tz_convert("UTC")
        days: Days = ((moments - EPOCH) / DAY).to_numpy(dtype=np.float64)
        return days
    except (ValueError, OverflowError) as error:
        raise InputError(f"Column {series.name!r} holds a moment too far away: {error}") from error


def _farthest(dtype: Any) -> tuple[int, int]:
    return NANOSECONDS if "[ns" in str(dtype) else YEARS


def from_days(days: Days, dtype: Any) -> "pd.Series[Any]":
    """Give days as times of a type."""
    nanoseconds, zone = "[ns" in str(dtype), getattr(dtype, "tz", None)
    lengths = _lengths(np.clip(days, *_farthest(dtype)), nanoseconds)
    if is_length(dtype):
        return pd.Series(lengths).astype(dtype)
    lengths = lengths if nanoseconds else np.minimum(lengths, _latest(zone))
    moments = pd.Series(np.datetime64(0, "us") + lengths).dt.tz_localize("UTC")
    return (moments.dt.tz_localize(None) if zone is None else moments.dt.tz_convert(zone)).astype(dtype)


def _lengths(days: Days, nanoseconds: bool) -> npt.NDArray[Any]:
    """Give days as lengths of time, rounded to the finest unit in which floats still tell neighbours apart."""
    lengths: npt.NDArray[Any] = np.round(days * PER_DAY["ms"]).astype("timedelta64[ms]")
    for unit in ("us", "ns") if nanoseconds else ("us",):
        fine = np.spacing(np.abs(days)) * PER_DAY[unit] < 1
        lengths = np.where(fine, np.round(days * PER_DAY[unit]).astype(f"timedelta64[{unit}]"), lengths)
    return lengths


def _latest(zone: datetime.tzinfo | None) -> np.timedelta64:
    """Give the time from 1970 to the last microsecond of year 9999, in UTC or in a zone that is ahead of it."""
    ahead = None if zone is None else zone.utcoffset(datetime.datetime(9999, 12, 31))
    before = max(ahead or datetime.timedelta(), datetime.timedelta())
    return np.timedelta64(YEARS[1], "D") - np.timedelta64(before + datetime.timedelta(microseconds=1), "us")


def to_the_second(day: float, dtype: Any) -> Any:
    """Give one number of days as a time of a type."""
    seconds = np.round(float(day) * 86_400)  # before it is a moment, of which the last one has no next second
    return from_days(np.array([seconds / 86_400]), dtype).iloc[0].floor("s")


def as_times(series: "pd.Series[Any]", dtype: Any) -> "pd.Series[Any]":
    """Read text, dates and numbers as times where a column held times in fit; lengths without a unit are days.

    Raises:
        InputError: They are none, or too far away.
    """
    if is_length(dtype) and not is_length(series.dtype):
        return _as_lengths(series, dtype)
    series = unboxed(series) if is_moment(dtype) else series
    if not is_moment(dtype):
        return series
    zone = getattr(dtype, "tz", None)
    if is_moment(series.dtype) and (series.dt.tz is None) == (zone is None):
        return series
    try:
        if pd.api.types.is_numeric_dtype(series) or series.dtype == object:
            _refuse_numbers(series)
        instants = pd.to_datetime(series, format="ISO8601", utc=True)  # offsets may differ from row to row
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"Column {series.name!r} holds moments; write them as ISO 8601: {error}") from error
    return instants.dt.tz_localize(None) if zone is None else instants.dt.tz_convert(zone)


def _refuse_numbers(series: "pd.Series[Any]") -> None:
    number = next((v for v in series if isinstance(v, numbers.Number) and not absent(v)), None)
    if number is not None:
        raise ValueError(f"{number!r} is a number")


def _as_lengths(series: "pd.Series[Any]", dtype: Any) -> "pd.Series[Any]":
    try:
        if pd.api.types.is_numeric_dtype(series):
            days = series.to_numpy(dtype=np.float64, na_value=np.nan)
        else:
            days = np.array([np.nan if absent(value) else _as_length(value) for value in series], dtype=np.float64)
        if (np.abs(days) > _farthest(dtype)[1]).any():
            raise ValueError("one of them is too long")
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"Column {series.name!r} holds lengths of time; write them as days: {error}") from error
    return from_days(days, dtype).set_axis(series.index)


def _as_length(value: Any) -> float:
    if not isinstance(value, np.timedelta64):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    return float(pd.Timedelta(value) / DAY)


def absent(value: Any) -> bool:
    """Say whether a value stands for a missing one."""
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value))


def python(value: Any) -> Any:
    """Give what NumPy holds as a value of Python or pandas, times of any unit as times."""
    if isinstance(value, np.datetime64):
        return pd.Timestamp(value)
    if isinstance(value, np.timedelta64):
        return pd.Timedelta(value)
    return value.item() if isinstance(value, np.generic) else value


def plain(value: Any) -> Any:
    """Give a value as JSON can hold it: None for what is missing or not finite, ISO 8601, days for lengths of time."""
    value = python(value)
    if isinstance(value, datetime.timedelta) and value is not pd.NaT:
        return value / datetime.timedelta(days=1)
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, bool | int | str) else str(getattr(value, "isoformat", lambda: value)())
