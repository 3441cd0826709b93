import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.models import mixed

from deformer.api import table_commands, tables
from deformer.api.tables import TableModel, load_table
from deformer.data.chunks import Layout, read_all, read_chunks
from deformer.errors import InputError
from deformer.train.history import History

TINY = {"minutes": None, "epochs": None, "steps": 3, "seed": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table as CSV and Parquet, and a model that hardly learned from it."""
    folder = tmp_path_factory.mktemp("tables")
    table = mixed(120).reset_index(drop=True)
    table.to_csv(folder / "t.csv", index=False)
    table.assign(kind=table["kind"].astype("str")).to_parquet(folder / "t.parquet")
    chosen = {"validation": None, "layout": Layout(["rooms"]), "numbers": []}
    assert table_commands.fit(folder / "t.csv", folder / "m.deformer", **chosen, **TINY) == "done"
    return folder


@pytest.fixture
def table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> TableModel:
    monkeypatch.setattr(table_commands, "ROWS_PER_CHUNK", 50)
    return load_table(folder / "m.deformer")


def test_scores_in_chunks_are_those_of_the_whole(table: TableModel, folder: Path, tmp_path: Path) -> None:
    table_commands.score(table, folder / "t.csv", tmp_path / "s.csv", 3)
    scores = pd.read_csv(tmp_path / "s.csv")
    whole = read_all(folder / "t.csv")
    np.testing.assert_allclose(scores["ensemble_over_orders"], tables.log_prob(table, whole, 3), atol=1e-4)
    np.testing.assert_allclose(scores["mean_over_orders"], tables.log_prob(table, whole, 3, "mean"), atol=1e-4)
    assert (scores["ensemble_over_orders"] >= scores["mean_over_orders"] - 1e-5).all()


@pytest.mark.parametrize("strategy", ["draw", "mean", "mode"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_holes_are_filled(table: TableModel, folder: Path, tmp_path: Path, strategy: str, suffix: str) -> None:
    before, path = read_all(folder / f"t.{suffix}"), tmp_path / f"f.{suffix}"
    table_commands.impute(table, folder / "t.csv", path, strategy, 1, 0)
    after = read_all(path)
    assert list(after.columns) == list(before.columns)
    assert len(after) == len(before)
    assert after.notna().all(axis=None)
    kept = before["price"].notna()
    np.testing.assert_allclose(after["price"][kept], before["price"][kept])


def test_several_draws_are_numbered(table: TableModel, folder: Path, tmp_path: Path) -> None:
    table_commands.impute(table, folder / "t.csv", tmp_path / "f.csv", "draw", 2, 0)
    drawn = pd.read_csv(tmp_path / "f.csv")
    assert drawn["imputation"].value_counts().tolist() == [120, 120]
    with pytest.raises(InputError, match="only draws differ"):
        table_commands.impute(table, folder / "t.csv", None, "mean", 2, 0)


def test_samples_explanations_and_conditionals(
    table: TableModel, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table_commands.sample(table, 7, None, tmp_path / "s.parquet", 0, 1.0)
    assert read_all(tmp_path / "s.parquet").shape == (7, 5)
    table_commands.sample(table, 7, None, tmp_path / "cold.parquet", 0, 0.1)
    assert (tmp_path / "cold.parquet").read_bytes() != (tmp_path / "s.parquet").read_bytes()
    pd.DataFrame({"kind": ["big"]}).to_csv(tmp_path / "given.csv", index=False)
    table_commands.sample(table, 3, tmp_path / "given.csv", None, 0, 1.0)
    assert [line["kind"] for line in csv.DictReader(capsys.readouterr().out.splitlines())] == ["big"] * 3
    table_commands.explanations(table, folder / "t.csv", tmp_path / "e.csv", 2)
    explained = pd.read_csv(tmp_path / "e.csv")
    assert explained.groupby("row").size().tolist() == [5] * 120
    table_commands.conditional(table, folder / "t.csv", tmp_path / "c.csv", "price", [0.5])
    assert list(pd.read_csv(tmp_path / "c.csv").columns) == ["mean", "std", "0.5"]
    table_commands.conditional(table, folder / "t.csv", tmp_path / "r.csv", "rooms", [0.5])
    np.testing.assert_allclose(pd.read_csv(tmp_path / "r.csv").sum(axis=1), 1.0, atol=1e-5)


def test_nothing_half_written_remains(table: TableModel, folder: Path, tmp_path: Path) -> None:
    bad = read_all(folder / "t.csv").assign(size=["1"] * 119 + ["x"])
    bad.to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(InputError, match="'size' is one of numbers"):
        table_commands.score(table, tmp_path / "bad.csv", tmp_path / "s.csv", 1)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.csv"]


def test_a_column_is_not_both_labels_and_numbers(folder: Path, tmp_path: Path) -> None:
    chosen = {"validation": None, "layout": Layout(["rooms"]), "numbers": ["size", "rooms"]}
    with pytest.raises(InputError, match="'rooms' cannot hold both labels and numbers"):
        table_commands.fit(folder / "t.csv", tmp_path / "m.deformer", **chosen, **TINY)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("a;b\n1,5;x\n2;y\n", ["a", "b"]),
        ("a\tb\n1\tx\n", ["a", "b"]),
        ("1, x\n2, ?\n", ["x0", "x1"]),
        ("\n \na,b\n\n1,x\n", ["a", "b"]),
        ('"a;b;c",d\n1,2\n', ["a;b;c", "d"]),
    ],
)
def test_text_of_many_kinds(tmp_path: Path, text: str, columns: list[str]) -> None:
    (tmp_path / "t.csv").write_text(text)
    table = read_all(tmp_path / "t.csv")
    assert list(table.columns) == columns
    assert "?" not in table.to_string()


def test_chunks_have_the_size_that_was_asked_for(folder: Path) -> None:
    for name in ("t.csv", "t.parquet"):
        assert [len(c) for c in read_chunks(folder / name, 50)] == [50, 50, 20]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.xlsx", b"", "none of .csv"),
        ("t.csv", b"", "Cannot read|no rows"),
        ("t.csv", b"a,b\n", "no rows"),
        ("t.csv", b"a,b\n1,2\n1,2,3\n", "Cannot read"),
        ("t.csv", b"a,b\n\xff\xfe,2\n", "not UTF-8"),
        ("t.parquet", b"PAR1", "Cannot read"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_all(tmp_path / name)
    with pytest.raises(InputError, match="does not exist"):
        read_all(tmp_path / "missing.csv")


def test_a_fit_that_ends_before_it_was_validated_is_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = tables.learn
    monkeypatch.setattr(tables, "learn", lambda *a, **k: (learn(*a, **k)[0], History((), "interrupted")))
    chosen = {"validation": None, "layout": Layout(), "numbers": []}
    assert table_commands.fit(folder / "t.csv", tmp_path / "m.deformer", **chosen, **TINY) == "interrupted"
    assert load_table(tmp_path / "m.deformer").codec.names


def test_what_names_rows_stands_in_the_results(folder: Path, tmp_path: Path) -> None:
    names = [f"r{i}" for i in range(120)]
    pd.read_csv(folder / "t.csv").assign(name=names).to_csv(tmp_path / "t.csv", index=False)
    model = tmp_path / "m.deformer"
    chosen = {"validation": None, "layout": Layout(index="name"), "numbers": []}
    table_commands.fit(tmp_path / "t.csv", model, **chosen, **TINY)
    table = load_table(model)
    assert "name" not in table.codec.names
    pd.read_csv(tmp_path / "t.csv").set_index("name").to_parquet(tmp_path / "t.parquet")
    for suffix in ("csv", "parquet"):
        source, result = tmp_path / f"t.{suffix}", tmp_path / f"r.{suffix}"
        read = pd.read_csv if suffix == "csv" else lambda path: pd.read_parquet(path).reset_index()
        table_commands.impute(table, source, result, "draw", 2, 0)
        assert read(result)["name"].tolist() == names * 2
        table_commands.score(table, source, result, 1)
        assert read(result)["name"].tolist() == names
        table_commands.explanations(table, source, result, 1)
        assert read(result)["name"].tolist() == [name for name in names for _ in range(5)]
        table_commands.conditional(table, source, result, "rooms", [0.5])
        assert read(result)["name"].tolist() == names
    called_row = dataclasses.replace(table, codec=dataclasses.replace(table.codec, index="row"))
    pd.read_csv(tmp_path / "t.csv").rename(columns={"name": "row"}).to_csv(tmp_path / "row.csv", index=False)
    with pytest.raises(InputError, match="Rows are named by 'row'"):
        table_commands.explanations(called_row, tmp_path / "row.csv", tmp_path / "r.csv", 1)
    with pytest.raises(InputError, match="No column is called 'nome'"):
        table_commands.fit(tmp_path / "t.csv", model, **{**chosen, "layout": Layout(index="nome")}, **TINY)


def test_a_column_imputation_is_not_lost(tmp_path: Path) -> None:
    pd.DataFrame({"imputation": [0, 1, 2, None] * 10, "x": [0.0, None] * 20}).to_csv(tmp_path / "t.csv", index=False)
    model = tmp_path / "m.deformer"
    table_commands.fit(tmp_path / "t.csv", model, **{"validation": None, "layout": Layout(), "numbers": []}, **TINY)
    table_commands.impute(load_table(model), tmp_path / "t.csv", tmp_path / "r.csv", "draw", 1, 0)
    assert pd.read_csv(tmp_path / "r.csv")["imputation"].notna().all()
    with pytest.raises(InputError, match="a column 'imputation' itself"):
        table_commands.impute(load_table(model), tmp_path / "t.csv", tmp_path / "r.csv", "draw", 2, 0)


def test_a_first_line_of_numbers_is_spoken_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text("country,1990\n" + "France,1\nSpain,2\n" * 10)
    chosen = {"validation": None, "layout": Layout(), "numbers": []}
    table_commands.fit(tmp_path / "t.csv", tmp_path / "m.deformer", **chosen, **TINY)
    assert "--header" in capsys.readouterr().err
    table_commands.fit(tmp_path / "t.csv", tmp_path / "m.deformer", **{**chosen, "layout": Layout(header=True)}, **TINY)
    assert capsys.readouterr().err == ""
    assert load_table(tmp_path / "m.deformer").codec.names == ("country", "1990")


def test_columns_that_seem_to_name_rows_are_spoken_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.DataFrame(
        {"code": [f"c{i}" for i in range(30)], "n": range(7, 37), "x": [0.5, 1.5] * 15, "y": ["a", "b"] * 15}
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    chosen = {"validation": None, "layout": Layout(), "numbers": []}
    table_commands.fit(tmp_path / "t.csv", tmp_path / "m.deformer", **chosen, **TINY)
    said = capsys.readouterr().err
    assert [word in said for word in ("--id code", "--id n ", "--id x", "--id y")] == [True, True, False, False]


def test_labels_that_are_nearly_numbers_are_spoken_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.DataFrame(
        {"comma": ["1,5", "2,5"] * 10, "dash": ["3"] * 19 + ["-"], "word": ["4", "b"] * 10, "tag": ["5", "-"] * 10}
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    chosen = {"validation": None, "layout": Layout(["tag"]), "numbers": []}
    table_commands.fit(tmp_path / "t.csv", tmp_path / "m.deformer", **chosen, **TINY)
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" is")[0] for line in said] == ["'comma'", "'dash'"]
    assert [line.split("not ")[1] for line in said] == ["'1,5'.", "'-'."]


def test_validation_rows_are_read_as_the_table_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pd.DataFrame({"day": ["2020-01-31", "unknown"] * 20, "x": range(40)}).to_csv(tmp_path / "t.csv", index=False)
    pd.DataFrame({"day": ["2020-01-31"] * 5, "x": range(5)}).to_csv(tmp_path / "v.csv", index=False)
    read, learn = [], tables.learn

    def spy(table: pd.DataFrame, held_out: pd.DataFrame, **choices: Any) -> tuple[TableModel, History]:
        read.append(held_out)
        return learn(table, held_out, **choices)

    monkeypatch.setattr(tables, "learn", spy)
    chosen = {"validation": tmp_path / "v.csv", "layout": Layout(), "numbers": []}
    table_commands.fit(tmp_path / "t.csv", tmp_path / "m.deformer", **chosen, **TINY)
    assert read[0]["day"].tolist() == ["2020-01-31"] * 5
