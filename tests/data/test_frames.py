import inspect
import json
import math
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from dateutil import tz

from deformer.data.columns import Labels, Levels, Nothing, Numbers, Plain
from deformer.data.frames import Codec, make_codec
from deformer.data.libraries import as_frame, like
from deformer.data.schema import Binary
from deformer.data.times import from_days
from deformer.errors import InputError

N = 60
RANDOM = np.random.default_rng(0)
FRAME = pd.DataFrame(
    {
        "float": RANDOM.normal(size=N),
        "int": RANDOM.integers(0, 10**6, N),
        "level": RANDOM.choice([1, 2, 5], N),
        "nullable": pd.array([1, 2, None] * (N // 3), dtype="Int64"),
        "flag": RANDOM.random(N) < 0.4,
        "maybe": pd.array([True, False, None] * (N // 3), dtype="boolean"),
        "text": ["a", "b", None] * (N // 3),
        "object": np.array([1, "one", None] * (N // 3), dtype=object),
        "category": pd.Categorical(["low", "high", None] * (N // 3), ["low", "middle", "high"], ordered=True),
        "when": pd.to_datetime("2024-02-29") + pd.to_timedelta(RANDOM.integers(0, 10**6, N), unit="s"),
        "zoned": pd.date_range("2020-01-01", periods=N, tz="Europe/Berlin"),
        "date": [date(2024, 2, 29) + timedelta(days=int(i)) for i in RANDOM.integers(0, 999, N)],
        "day": [date(9999, 12, 31), date(1, 1, 1), None] * (N // 3),
        "length": pd.to_timedelta(RANDOM.integers(0, 10**6, N), unit="s").where(RANDOM.random(N) < 0.9),
        "small": RANDOM.normal(size=N).astype(np.float32),
        "nothing": np.full(N, np.nan),
        "constant": np.full(N, 7),
    },
    index=[f"row {i}" for i in range(N)],
)
CODEC = make_codec(FRAME)


def back(codec: Codec, frame: pd.DataFrame) -> pd.DataFrame:
    rows, _ = codec.encode(frame)
    codes = rows.values.double().masked_fill(~rows.observed, torch.nan).numpy()
    return codec.decode(codes, frame.index)


@pytest.mark.parametrize("name", list(FRAME.columns))
def test_values_types_and_index_come_back(name: str) -> None:
    pd.testing.assert_series_equal(back(CODEC, FRAME)[name], FRAME[name], rtol=1e-6)


def test_what_columns_are_taken_for() -> None:
    kinds = dict(zip(CODEC.names, (type(c) for c in CODEC.columns), strict=True))
    assert kinds["float"] is kinds["int"] is kinds["when"] is kinds["zoned"] is Numbers
    assert kinds["nothing"] is Nothing
    assert kinds["level"] is kinds["nullable"] is kinds["flag"] is kinds["maybe"] is kinds["constant"] is Levels
    assert kinds["text"] is kinds["object"] is kinds["category"] is Labels
    text = CODEC.describe().to_string()
    for word in ("heavy", "a, b", "1, 2, 5", "labels"):
        assert (word in text) == (word != "heavy")


def test_kinds_can_be_overridden() -> None:
    codec = make_codec(FRAME, {"level": "label", "flag": "number", "float": Numbers(0.0, 2.0)})
    kinds = dict(zip(codec.names, codec.columns, strict=True))
    assert isinstance(kinds["level"], Labels)
    assert kinds["float"] == Numbers(0.0, 2.0)
    assert back(codec, FRAME)["level"].tolist() == FRAME["level"].tolist()
    with pytest.raises(InputError, match="No column is called 'bogus'"):
        make_codec(FRAME, {"bogus": "label"})
    with pytest.raises(InputError, match="cannot be a 'colour'; choose number or label"):
        make_codec(FRAME, {"level": "colour"})


def test_columns_are_found_by_name_and_absent_ones_are_missing() -> None:
    rows, _ = CODEC.encode(FRAME)
    shuffled, _ = CODEC.encode(FRAME[FRAME.columns[::-1]])
    assert torch.equal(rows.values, shuffled.values)
    fewer, log_base = CODEC.encode(FRAME[["text", "float"]])
    assert fewer.observed.any(0).tolist() == [name in ("text", "float") for name in CODEC.names]
    assert torch.equal(fewer.values[:, 0], rows.values[:, 0])
    assert (log_base[~fewer.observed] == 0).all()
    with pytest.raises(InputError, match="Column 'txet' was not there in fit"):
        CODEC.encode(FRAME.rename(columns={"text": "txet"}))


def test_arrays_go_by_position() -> None:
    values = RANDOM.normal(size=(30, 3))
    codec = make_codec(values)
    assert codec.names == ("x0", "x1", "x2")
    rows, log_base = codec.encode(values)
    np.testing.assert_allclose(codec.decode(rows.values.numpy()).to_numpy(), values)
    assert log_base.shape == (30, 3)
    with pytest.raises(InputError, match="2 columns; there were 3 in fit"):
        codec.encode(values[:, :2])


@pytest.mark.parametrize("name", [n for n in FRAME if n != "nothing"])
def test_a_cell_alone_is_coded_as_in_its_column(name: str) -> None:
    at = CODEC.names.index(name)
    rows, log_base = CODEC.encode(FRAME)
    for i in range(0, N, 7):
        code, base = CODEC.encode_cell(at, FRAME[name].iloc[i])
        assert math.isnan(code) == (not rows.observed[i, at])
        assert math.isnan(code) or (code, base) == (float(rows.values[i, at]), float(log_base[i, at]))


def test_cells_as_clients_write_them() -> None:
    at = {name: CODEC.names.index(name) for name in CODEC.names}
    labels = make_codec(pd.DataFrame({"zip": ["02139", "1", "7"] * 4}))
    assert labels.encode_cell(0, 1) == labels.encode_cell(0, "1")
    when = CODEC.encode_cell(at["when"], "2024-03-01T12:00:00")
    assert when == CODEC.encode_cell(at["when"], datetime(2024, 3, 1, 12))
    assert when == CODEC.encode_cell(at["when"], pd.Timestamp("2024-03-01 13:00", tz="Europe/Berlin"))
    assert CODEC.encode_cell(at["length"], 2) == CODEC.encode_cell(at["length"], timedelta(days=2))
    assert CODEC.encode_cell(at["length"], "2") == CODEC.encode_cell(at["length"], np.timedelta64(48, "h"))
    for value in (20240101, "13:45", "01/02/2024", "soon"):
        with pytest.raises(InputError, match="'when' holds moments; write them as ISO 8601"):
            CODEC.encode_cell(at["when"], value)
    with pytest.raises(InputError, match="is a number"):
        CODEC.encode(pd.DataFrame({"when": np.array([20240101, None], dtype=object)}))
    with pytest.raises(InputError, match="inf is not finite"):
        CODEC.encode_cell(at["float"], math.inf)


def test_frames_of_polars_and_arrow_come_back_as_they_were() -> None:
    moments = pl.Series([datetime(2024, 1, i) for i in range(1, N // 3 + 1)] * 3, dtype=pl.Datetime("ms", "Asia/Tokyo"))
    frame = pl.DataFrame(
        {
            "n": [1.5, None, 3.0] * (N // 3),
            "whole": pl.Series([1, None, 2**53 + 1] * (N // 3), dtype=pl.Int64),
            "small": pl.Series([1, 255, None] * (N // 3), dtype=pl.UInt8),
            "flag": [True, None, False] * (N // 3),
            "date": [None, date(2024, 2, 29), date(9999, 12, 31)] * (N // 3),
            "length": [None, timedelta(days=1), timedelta(seconds=1)] * (N // 3),
            "enum": pl.Series(["a", "b", None] * (N // 3), dtype=pl.Enum(["a", "b", "c"])),
            "category": pl.Series(["a", "b", None] * (N // 3), dtype=pl.Categorical),
            "text": ["a", "b", None] * (N // 3),
            "moment": moments,
        }
    )
    codec = make_codec(frame)
    rows, _ = codec.encode(frame)
    assert torch.equal(~rows.observed, torch.from_numpy(frame.select(pl.all().is_null()).to_numpy()))
    filled = like(frame, codec.fill(frame, codec.decode(rows.values.double().numpy())))
    assert filled.schema == frame.schema
    assert not any(filled.null_count().row(0))
    for name in frame.columns:
        there = frame[name].is_not_null()
        assert filled[name].filter(there).equals(frame[name].filter(there))
    arrow = frame.to_arrow()
    again = like(arrow, codec.fill(arrow, codec.decode(rows.values.double().numpy())))
    plain = [name for name in frame.columns if name not in ("enum", "category")]
    assert again.select(plain).cast(arrow.select(plain).schema).equals(filled.select(plain).to_arrow())
    assert again["enum"].to_pylist() == filled["enum"].to_list()


def test_pandas_over_arrow_comes_back_as_it_was() -> None:
    plain = FRAME[["float", "nullable", "maybe", "text", "date", "length", "when", "zoned"]]
    table = pa.Table.from_pandas(plain, preserve_index=False).to_pandas(
        types_mapper=pd.ArrowDtype, ignore_metadata=True
    )
    table = table.set_axis(plain.index)
    assert all(isinstance(dtype, pd.ArrowDtype) for dtype in table.dtypes)
    codec = make_codec(table)
    rows, _ = codec.encode(table)
    assert torch.equal(~rows.observed, torch.from_numpy(table.isna().to_numpy()))
    filled = like(table, codec.fill(table, codec.decode(rows.values.double().numpy())))
    assert filled.dtypes.equals(table.dtypes)
    assert not filled.isna().any(axis=None)
    pd.testing.assert_frame_equal(filled.where(table.notna()), table)


def test_decimals_and_times_of_the_day_of_polars() -> None:
    prices = pl.Series([Decimal("1.25"), None, Decimal("2.50")] * (N // 3), dtype=pl.Decimal(10, 2))
    frame = pl.DataFrame({"price": prices, "at": [time(1, 2), None, time(3, 4)] * (N // 3)})
    codec = make_codec(frame)
    rows, _ = codec.encode(frame)
    filled = like(frame, codec.fill(frame, codec.decode(rows.values.double().numpy())))
    assert filled["price"].dtype == pl.Decimal(10, 2)
    assert filled["price"].filter(prices.is_not_null()).equals(prices.drop_nulls())
    assert filled["at"].str.starts_with("0").all()


def test_what_polars_cannot_hold_as_it_came_is_given_as_it_is() -> None:
    codec = make_codec(pl.DataFrame({"a": [0.5, 1.5, None]}))
    table = pl.DataFrame({"a": pl.Series([1, None], dtype=pl.Int64)})
    assert like(table, codec.fill(table, pd.DataFrame({"a": [0.5, 0.5]})))["a"].to_list() == [1.0, 0.5]


def test_dates_and_lengths_of_time_as_people_write_them() -> None:
    described = CODEC.describe()
    assert described.loc["date", "dtype"] == "date"
    assert described.loc["day", "values"] == "0001-01-01 00:00:00, 9999-12-31 00:00:00"
    assert described.loc["length", "values"].endswith("days")
    rows, _ = CODEC.encode(FRAME)
    written = pd.DataFrame({"date": FRAME["date"].astype(str), "length": FRAME["length"] / pd.Timedelta(days=1)})
    again, _ = CODEC.encode(written)
    np.testing.assert_allclose(again.values[:, CODEC.names.index("date")], rows.values[:, CODEC.names.index("date")])
    at = CODEC.names.index("length")
    np.testing.assert_allclose(again.values[:, at], rows.values[:, at])
    spelled, _ = CODEC.encode(pd.DataFrame({"length": FRAME["length"].astype(str)}))
    np.testing.assert_allclose(spelled.values[:, at], rows.values[:, at])
    for wrong in ("soon", math.inf, 1e12):
        with pytest.raises(InputError, match="'length' holds lengths of time; write them as days"):
            CODEC.encode(pd.DataFrame({"length": [wrong]}))
        with pytest.raises(InputError, match="'length' holds lengths of time; write them as days"):
            CODEC.encode_cell(CODEC.names.index("length"), wrong)
    boxed = pd.DataFrame({"when": pd.Series([datetime(2024, 1, 1), None], dtype=object)})
    assert isinstance(make_codec(boxed).columns[0], Levels | Numbers)
    times = FRAME[["when", "zoned", "date", "length"]].iloc[:20]
    named = make_codec(times, dict.fromkeys(times, "label"))
    assert all(isinstance(column, Labels) for column in named.columns)
    pd.testing.assert_frame_equal(back(named, times), times)
    for at, name in enumerate(times):
        assert not math.isnan(code := named.encode_cell(at, times[name].iloc[1])[0])
        assert code == float(named.encode(times)[0].values[1, at])


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (np.zeros(3), "rows and columns"),
        (pd.DataFrame({"a": []}), "no rows"),
        (pd.DataFrame(index=range(3)), "no columns"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "'a' stands more than once"),
        (pd.DataFrame({"a": [1.0, np.inf]}), "'a' holds infinite"),
    ],
)
def test_bad_tables(table: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make_codec(table)


@pytest.mark.parametrize("kind", ["text", str, Labels, Plain(Binary()), 3])
def test_strange_kinds(kind: object) -> None:
    unchecked = inspect.unwrap(make_codec)  # tests check types, which users do not
    with pytest.raises(InputError, match="'a' cannot be a"):
        unchecked(pd.DataFrame({"a": [1, 2]}), {"a": kind})


def test_text_where_numbers_were() -> None:
    with pytest.raises(InputError, match="'float' is one of numbers; it holds 'x'"):
        CODEC.encode(pd.DataFrame({"float": ["x", "y"]}))


def test_a_codec_travels_as_json() -> None:
    again = Codec.from_dict(json.loads(json.dumps(CODEC.to_dict())))
    assert again.columns == CODEC.columns
    pd.testing.assert_frame_equal(back(again, FRAME), back(CODEC, FRAME))


def test_names_become_text() -> None:
    assert list(as_frame(pd.DataFrame([[1, 2]], columns=[3, 4])).columns) == ["3", "4"]


def test_the_largest_numbers_of_small_types_come_back() -> None:
    for dtype, most in (("uint8", 255), ("int8", 127), ("Int16", 2**15 - 1), ("UInt8", 255), ("int64", 2**62)):
        table = pd.DataFrame({"x": pd.array([0, most] * 20, dtype=dtype)})
        codec = make_codec(table)
        decoded = codec.decode(codec.encode(table)[0].values.double().numpy())
        pd.testing.assert_frame_equal(decoded, table)


def test_whole_numbers_taken_for_labels_stay_whole_beside_holes() -> None:
    codec = make_codec(
        pd.DataFrame({"n": [1, 2] * 10, "m": pd.array([3, 4] * 10, dtype="Int64")}, dtype=None), {"n": "label"}
    )
    values = np.array([1, None, 2], dtype=object)
    assert codec.restore({"n": values, "m": np.array([3.2, np.nan, 4.0])})["n"].tolist() == [1, None, 2]
    assert codec.restore({"n": values, "m": np.array([3.2, np.nan, 4.0])})["m"].dtype == "Int64"


def test_categories_of_any_kind_travel_as_json() -> None:
    for categories in (
        pd.cut(pd.Series(range(40)), 4),
        pd.Categorical(pd.to_datetime(["2024-01-01", "2024-02-01"] * 20)),
    ):
        table = pd.DataFrame({"c": categories})
        codec = Codec.from_dict(json.loads(json.dumps(make_codec(table).to_dict())))
        rows, _ = codec.encode(table)
        assert rows.observed.all()
        assert codec.decode(rows.values.double().numpy())["c"].tolist() == table["c"].astype(str).tolist()


def test_tables_get_their_own_names_back() -> None:
    pairs = pd.MultiIndex.from_tuples([("a", 1), ("a", 2)], names=["letter", "number"])
    for names in (pd.Index([0, 1], name="years"), pairs):
        table = pd.DataFrame(np.arange(40.0).reshape(20, 2), columns=names)
        codec = make_codec(table, {next(iter(table.columns)): "number"})
        holes = table.mask(table == 6.0)
        filled = codec.fill(holes, codec.decode(codec.encode(table)[0].values.double().numpy()))
        pd.testing.assert_index_equal(filled.columns, table.columns)
        assert not table.fillna(filled).isna().any().any()


def test_labels_that_were_text_are_known_as_numbers() -> None:
    codec = make_codec(pd.DataFrame({"code": ["1", "2", None] * 10}))
    as_text, as_numbers = (codec.encode(pd.DataFrame({"code": pd.Series(c)}))[0] for c in (["1", "2"], [1, 2]))
    assert as_text.values.equal(as_numbers.values)


def test_decimals_are_numbers() -> None:
    table = pd.DataFrame({"price": [Decimal(i) / 100 for i in range(300)]})
    assert make_codec(table).describe()["coded as"].tolist() == ["numbers"]
    holes = pd.DataFrame({"self": [Decimal("1.5"), pd.NA, None] * 20})
    assert make_codec(holes).encode(holes)[0].observed[:3, 0].tolist() == [True, False, False]


@pytest.mark.parametrize("zone", [None, "Europe/Zurich"])
def test_moments_are_filled_in_the_zone_of_fit(zone: str | None) -> None:
    times = pd.DataFrame({"when": pd.date_range("2024-01-01", periods=300, freq="h", tz=zone)})
    codec = make_codec(times)
    other = times["when"].dt.tz_convert(None) if zone else times["when"].dt.tz_localize("UTC")
    holed = pd.DataFrame({"when": other.mask(other.index == 7)})
    filled = codec.fill(holed, codec.decode(codec.encode(times)[0].values.double().numpy()))
    pd.testing.assert_frame_equal(filled, times)


@pytest.mark.parametrize("own", [["2024-01-05", None], [pd.Timestamp(2024, 1, 5), None], [date(2024, 1, 5), None]])
def test_dates_are_filled_as_dates_however_they_are_written(own: list[object]) -> None:
    codec = make_codec(pd.DataFrame({"d": [date(2024, 1, 1), date(2024, 2, 1)] * 20}))
    guesses = codec.decode(np.ones((2, 1)))
    assert codec.fill(pd.DataFrame({"d": own}), guesses)["d"].tolist() == [date(2024, 1, 5), date(2024, 2, 1)]
    table = pl.DataFrame({"d": own})
    assert like(table, codec.fill(table, guesses))["d"].null_count() == 0


def test_names_that_are_no_text_over_arrow() -> None:
    table = pd.DataFrame({0: pd.array([1.0, None] * 20, dtype="float64[pyarrow]"), "b": [1.0, 2.0] * 20})
    codec = make_codec(table)
    filled = like(table, codec.fill(table, codec.decode(np.zeros((40, 2)))))
    assert list(filled.columns) == [0, "b"]
    assert filled.dtypes.tolist() == table.dtypes.tolist()


def test_what_only_looks_like_a_frame_is_refused() -> None:
    for table in (pl.Series([1.0, 2.0]), pa.chunked_array([[1.0, 2.0]])):
        with pytest.raises(InputError, match="rows and columns"):
            as_frame(table)


def test_a_boolean_column_without_values_counts_nothing() -> None:
    codec = make_codec(pd.DataFrame({"flag": pd.array([None] * 40, dtype="boolean")}))
    assert codec.units["flag"] == np.dtype(object)


def test_times_are_no_numbers() -> None:
    codec = make_codec(pd.DataFrame({"x": RANDOM.normal(size=N)}))
    with pytest.raises(InputError, match="held numbers in fit; now it holds times"):
        codec.encode(pd.DataFrame({"x": [pd.Timestamp("1970-01-02")]}))


def test_labels_that_were_text_are_known_as_numbers_beside_holes() -> None:
    codec = make_codec(pd.DataFrame({"zip": ["98101", "02134", "7.0"] * 20, "x": range(60)}))
    read = pd.DataFrame({"zip": [98101.0, np.nan, 7.0, 2134.0]})  # as pandas reads them
    rows = codec.encode(read)[0]
    codes = rows.values[:, 0].tolist()
    known = codec.encode(pd.DataFrame({"zip": ["98101", "7.0"]}))[0].values[:, 0].tolist()
    assert codes[0] == known[0]
    assert rows.observed[:, 0].tolist() == [True, False, True, True]
    assert codes[2] == known[1]
    assert codes[3] == 3  # one that was not there


def test_the_name_of_an_index_is_remembered() -> None:
    codec = make_codec(pd.DataFrame({"x": [1.0, 2.0] * 20}, index=pd.Index(range(40), name="id")))
    assert Codec.from_dict(json.loads(json.dumps(codec.to_dict()))).layout.index == "id"


@pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame, lambda columns: pa.table(columns)])
def test_columns_of_another_type_than_in_fit_are_filled_in_one_type(library: Callable[[object], Any]) -> None:
    fitted = pd.DataFrame(
        {"zip": [10115, 80331] * 20, "code": ["02134", "98101"] * 20, "flag": [True, False] * 20, "x": [1.5, 2.25] * 20}
    )
    codec = make_codec(fitted, {"zip": "label"})
    own = {"zip": ["80331", "99", None], "code": [98101, 7, None], "flag": ["true", "False", None]}
    table = library({**own, "x": ["1.5", "2.25", None]})
    codec.encode(table)
    filled = as_frame(like(table, codec.fill(table, codec.decode(np.zeros((3, 4))))))
    assert filled["zip"].tolist() == ["80331", "99", "10115"]
    assert filled["code"].tolist() == ["98101", "7", "02134"]
    # Where text loses nothing, polars and Arrow get text back.
    assert filled["flag"].astype(str).str.lower().tolist() == ["true", "false", "false"]
    assert filled["x"].astype(str).tolist() == ["1.5", "2.25", "1.5"]
    if library is pd.DataFrame:
        assert filled[["flag", "x"]].dtypes.astype(str).tolist() == ["bool", "float64"]


def test_moments_are_filled_in_as_the_day_on_which_they_are() -> None:
    codec = make_codec(pd.DataFrame({"d": [date(2024, 1, 1), date(2024, 2, 1)] * 20}))
    own = pd.DataFrame({"d": [pd.Timestamp("2024-01-05 18:00"), pd.NaT]})
    assert codec.fill(own, codec.decode(np.ones((2, 1))))["d"].tolist() == [date(2024, 1, 5), date(2024, 2, 1)]
    beside = Codec(("d",), (Numbers(19_700.0, 1.0),), codec.dtypes, ("d",))
    assert beside.decode(np.array([[0.6]]))["d"].tolist() == [date(2023, 12, 10)]


@pytest.mark.parametrize(
    ("zone", "written"),
    [
        (tz.gettz("Europe/Berlin"), "Europe/Berlin"),
        (tz.tzoffset(None, 7200), "UTC+02:00"),
        (tz.tzutc(), "UTC"),
        (timezone(-timedelta(hours=3, minutes=30)), "UTC-03:30"),
        (ZoneInfo("Asia/Tokyo"), "Asia/Tokyo"),
    ],
)
def test_zones_travel_as_json(zone: tzinfo, written: str) -> None:
    times = pd.DataFrame({"when": pd.date_range("2024-03-30", periods=60, freq="h", tz=zone)})
    codec = make_codec(times)
    again = Codec.from_dict(json.loads(json.dumps(codec.to_dict())))
    assert str(again.dtypes[0]).endswith(f", {written}]")
    assert (back(again, times)["when"] == times["when"]).all()


def test_moments_as_labels_across_a_change_of_the_clock() -> None:
    when = pd.Series(pd.date_range("2024-03-30", periods=3, tz="Europe/Berlin")).repeat(10).reset_index(drop=True)
    times = pd.DataFrame({"when": when.mask(when.index == 4)})
    pd.testing.assert_frame_equal(back(make_codec(times, {"when": "label"}), times), times)


@pytest.mark.parametrize("end", ["9999-12-31 23:59:59", "9999-12-31 23:59:59.999999", "0001-01-01", "2149-01-01 12:34"])
@pytest.mark.parametrize("zone", [None, "UTC"])
def test_the_ends_of_time_come_back(end: str, zone: str | None) -> None:
    moments = pd.Series([datetime.fromisoformat(end), datetime(2024, 1, 1, 0, 0, 0, 123457)] * 20)
    times = pd.DataFrame({"until": moments.astype("datetime64[us]").dt.tz_localize(zone)})
    codec = make_codec(times)
    pd.testing.assert_frame_equal(back(codec, times), times)
    assert end[:10] in codec.describe().loc["until", "values"]


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York", "Europe/Berlin"])
def test_what_is_beyond_the_end_of_time_has_a_year(zone: str) -> None:
    latest = from_days(np.array([1e9, np.nan]), pd.DatetimeTZDtype("us", zone))
    assert latest.dt.year[0] == 9999
    assert latest.isna()[1]


def test_nanoseconds_come_back() -> None:
    latencies = pd.to_timedelta(RANDOM.integers(1, 10**6, N), unit="ns").astype("timedelta64[ns]")
    times = pd.DataFrame({"latency": latencies, "level": pd.to_timedelta([17, 90_000] * (N // 2), unit="ns")})
    times = times.astype("timedelta64[ns]")
    pd.testing.assert_frame_equal(back(make_codec(times), times), times)
