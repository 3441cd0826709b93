import gzip
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from deformer import load_source
from deformer.data.chunks import ChunkWriter, Layout, read_all, read_chunks
from deformer.errors import InputError


def test_days_and_moments_are_known_by_their_spelling(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("day,moment,code,mixed\n2024-01-31,2024-01-31T10:00,2024-01,2024-01-31\n,,,soon\n")
    frame = read_all(path)
    assert [pd.api.types.is_datetime64_any_dtype(frame[n]) for n in frame] == [True, True, False, False]


def test_the_type_of_a_label_does_not_depend_on_its_chunk(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("code,n\nA1,1\n12,2\n13,3\n,4\n")
    chunks = list(read_chunks(path, 2, Layout(["code"])))
    assert [list(chunk["code"].dropna()) for chunk in chunks] == [["A1", "12"], ["13"]]
    assert chunks[1]["n"].tolist() == [3, 4]


def test_moments_across_a_change_of_the_clocks(tmp_path: Path) -> None:
    times = ["2024-03-30T12:00:00+01:00", "2024-04-01T12:00:00+02:00"]
    (tmp_path / "log.csv").write_text("when,x\n" + "".join(f"{t},1\n" for t in times))
    frame = read_all(tmp_path / "log.csv")
    assert [str(t) for t in frame["when"]] == ["2024-03-30 11:00:00+00:00", "2024-04-01 10:00:00+00:00"]


@pytest.mark.parametrize("labels", [[], ["zip"]])
def test_codes_keep_their_zeros(tmp_path: Path, labels: list[str]) -> None:
    (tmp_path / "people.csv").write_text("zip,x,share\n01234,1,0.5\n1234,0,00.5\n")
    frame = read_all(tmp_path / "people.csv", Layout(labels))
    assert frame["zip"].tolist() == ["01234", "1234"]
    assert frame[["x", "share"]].to_numpy().tolist() == [[1, 0.5], [0, 0.5]]


def test_spaces_around_cells_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(" c , v\nx , 1\n y,2 \n")
    assert read_all(tmp_path / "t.csv", Layout(["c"])).to_dict("list") == {"c": ["x", "y"], "v": [1, 2]}


def test_a_blank_line_is_a_hole_where_there_is_one_column(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("\nv\n0.5\n\n0.7\n")
    values = read_all(tmp_path / "t.csv")["v"]
    assert values.isna().tolist() == [False, True, False]
    assert values.sum() == 1.2
    (tmp_path / "t.csv").write_text("v,w\n0.5,1\n\n0.7,2\n")
    assert len(read_all(tmp_path / "t.csv")) == 2


def test_compressed_text(tmp_path: Path) -> None:
    whole = gzip.compress(b"a,b\n" + b"".join(b"%d,x\n" % i for i in range(2000)))
    path = tmp_path / "t.CSV.gz"
    path.write_bytes(whole)
    assert read_all(path)["a"].tolist() == list(range(2000))
    assert [len(chunk) for chunk in read_chunks(path, 1500)] == [1500, 500]
    assert len(load_source(str(path)).train) == 2000
    for broken in [whole[:-100], whole[:20] + bytes(20) + whole[40:], b"a,b\n1,2\n"]:
        path.write_bytes(broken)
        with pytest.raises(InputError, match="Cannot read"):
            read_all(path)
    with pytest.raises(InputError, match="is none of"):
        read_all(tmp_path / "t.gz")


def test_names_that_python_would_take_for_numbers_are_names(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("item,2020_01,inf\nx,1,2 \n")
    assert read_all(tmp_path / "t.csv").to_dict("list") == {"item": ["x"], "2020_01": [1], "inf": [2]}


def test_a_column_called_self_and_columns_that_were_not_in_fit(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("self,b\nx ,1\n")
    assert read_all(tmp_path / "t.csv")["self"].tolist() == ["x"]
    (tmp_path / "t.csv").write_text("," * 5000 + "\n")
    with pytest.raises(InputError, match="5001 cells in its first line, but 2 columns in fit"):
        read_all(tmp_path / "t.csv", Layout(names=["a", "b"]))
    (tmp_path / "t.csv").write_text("id,a,b,b\n1,2,3,4\n")
    with pytest.raises(InputError, match="4 cells in its first line"):
        read_all(tmp_path / "t.csv", Layout(names=["a", "b"], index="id"))


def test_names_of_rows_are_never_missing(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,v\nNA,1\n007,NA\n")
    frame = read_all(tmp_path / "t.csv", Layout(index="id"))
    assert list(frame.index) == ["NA", "007"]
    assert frame["v"].isna().tolist() == [False, True]


def test_lines_longer_than_the_names_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text('"a","b"\n"1",0.5,"x"\n"2",0.5,"y"\n')  # names of rows, as R writes them
    with pytest.raises(InputError, match="3 cells in its second line, but 2 in its first"):
        read_all(path)
    path.write_text("a,b\n1,2,\n3,4,\n")
    assert read_all(path)["b"].tolist() == [2, 4]


def test_a_name_may_hold_a_line_break(tmp_path: Path) -> None:
    path = tmp_path / "n.csv"
    path.write_text('"a\nb",c\n1,2\n')
    assert list(read_all(path)) == ["a\nb", "c"]
    path.write_text(",,a,a\n1,2,3,4\n")
    with pytest.raises(InputError, match="'a' stands more than once"):
        read_all(path)


def test_names_that_are_numbers_are_a_header_where_they_are_known(tmp_path: Path) -> None:
    path = tmp_path / "years.csv"
    path.write_text("country,1990,1991\nFrance,1,2\n")
    assert list(read_all(path)) == ["x0", "x1", "x2"]
    assert list(read_all(path, Layout(header=True))) == ["country", "1990", "1991"]
    assert list(read_all(path, Layout(names=("1990", "1991"), index="country"))) == ["1990", "1991"]


def test_a_column_that_names_rows_becomes_their_index(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,x\n007,1\nseven,2\n,3\n")
    frame = read_all(path, Layout(index="id"))
    assert frame.index.name == "id"
    assert frame.index.tolist()[:2] == ["007", "seven"]
    assert [chunk.index[0] for chunk in read_chunks(path, 1, Layout(index="id"))][:2] == ["007", "seven"]
    frame.to_parquet(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(read_all(tmp_path / "t.parquet"), frame, check_dtype=False, check_index_type=False)


def test_rows_named_by_several_columns_keep_their_names(tmp_path: Path) -> None:
    index = pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["site", "day"])
    frame = pd.DataFrame({"x": [0.5, 1.5]}, index)
    for name in ("t.csv", "t.parquet"):
        with ChunkWriter(tmp_path / name) as writer:
            writer.write(frame)
    assert list(read_all(tmp_path / "t.csv")) == ["site", "day", "x"]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), frame)
    with pytest.raises(InputError, match="named by 'x'"), ChunkWriter(tmp_path / "u.csv") as writer:
        writer.write(frame.set_index("x", drop=False))


def test_types_that_change_between_chunks_are_told(tmp_path: Path) -> None:
    with ChunkWriter(tmp_path / "t.parquet") as writer:
        writer.write(pd.DataFrame({"x": [0.5]}))
        with pytest.raises(InputError, match="one type for all of a column"):
            writer.write(pd.DataFrame({"x": pd.to_datetime(["2024-01-31"])}))


def test_rows_are_on_the_disk_before_their_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def spy(name: str) -> None:
        real: Any = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *words: (done.append(name), real(*words))[1])

    spy("fsync")
    spy("replace")
    with ChunkWriter(tmp_path / "t.csv") as writer:
        writer.write(pd.DataFrame({"x": [0.5]}))
    assert done == ["fsync", "replace"]


@pytest.mark.parametrize("mark", [";", "\t"])
@pytest.mark.parametrize("header", ["size;colour;n\n", ""])
def test_decimal_commas(tmp_path: Path, mark: str, header: str) -> None:
    (tmp_path / "x.csv").write_text((header + "1,5;red, or so;3\n-2;blue;4\n;red;1\n").replace(";", mark))
    frame = read_all(tmp_path / "x.csv")
    assert frame.iloc[:2, 0].tolist() == [1.5, -2.0]
    assert frame.iloc[:, 1].tolist() == ["red, or so", "blue", "red"]
    assert frame.iloc[:, 2].tolist() == [3, 4, 1]


NOT_DECIMAL = {
    "a;b\n1,5;2.5\n": ["1,5", 2.5],
    "a;b\n1,5;2.\n": ["1,5", 2.0],
    "a;b\n1,5;1,234.5\n": ["1,5", "1,234.5"],
    "a\tb\n1,234\t999\n": ["1,234", 999],
    'a,b\n"1,5",2\n': ["1,5", 2],
    "a,b;c\n1,2\n": [1, 2],
    "3,14,Action;Comedy;Drama\n5,6,Drama\n": [3, 14, "Action;Comedy;Drama"],
}


@pytest.mark.parametrize("text", NOT_DECIMAL)
def test_commas_that_may_be_something_else_stay(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    assert read_all(tmp_path / "x.csv").iloc[0].tolist() == NOT_DECIMAL[text]


@pytest.mark.parametrize("end", [";", "\t"])
def test_a_mark_at_the_end_of_a_line_does_not_separate_it(tmp_path: Path, end: str) -> None:
    (tmp_path / "x.csv").write_text(f"1,2,3{end}\n4,5,6{end}\n")
    assert read_all(tmp_path / "x.csv").iloc[:, :2].to_numpy().tolist() == [[1, 2], [4, 5]]


def test_labels_with_commas_say_nothing_of_numbers(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("code;n\n1,3;1\n1,30;2\n")
    assert read_all(tmp_path / "x.csv", Layout(["code"]))["code"].tolist() == ["1,3", "1,30"]
