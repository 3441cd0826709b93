from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from tests.real import REAL, needs_real_data

from deformer.data.files import read_table
from deformer.data.infer import infer_schema, to_rows
from deformer.data.schema import Binary, Categorical, Continuous, Ordinal
from deformer.data.sources import _pixels, load_source
from deformer.errors import InputError, SourceError

CSV = "age,job,rich,score\n30,clerk,0,1.5\n?,nurse,1,NA\n41,,0,-3\n"


@pytest.mark.parametrize(("name", "n_labels"), [("digits", 17), ("digits-binary", 2)])
def test_digits_need_no_download(name: str, n_labels: int) -> None:
    source = load_source(name)
    assert source.validation is not None
    assert source.test is not None
    assert len(source.train) + len(source.validation) + len(source.test) == 1797
    assert {getattr(f.domain, "n_labels") for f in source.schema.features} == {n_labels}  # noqa: B009
    again = load_source(name)
    assert (again.train.values == source.train.values).all()


def test_a_csv_becomes_a_schema_and_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    table = read_table(tmp_path / "t.csv")
    domains = [f.domain for f in infer_schema(table).features]
    assert domains[:3] == [Ordinal(42), Categorical(2, ("clerk", "nurse")), Binary()]
    assert isinstance(domains[3], Continuous)
    rows = to_rows(table, infer_schema(table))
    assert rows.observed.tolist() == [[True] * 4, [False, True, True, False], [True, False, True, True]]
    assert rows.values[:, 1].tolist() == [0.0, 1.0, 0.0]


def test_all_kinds_of_files_hold_the_same_rows(tmp_path: Path) -> None:
    values = np.array([[0.0, 1.5], [1.0, np.nan], [1.0, -2.0]])
    np.save(tmp_path / "t.npy", values)
    np.savez(tmp_path / "t.npz", X=values)
    (tmp_path / "t.csv").write_text("0,1.5\n1,\n1,-2\n")
    columns = {f"x{i}": [None if np.isnan(v) else v for v in values[:, i]] for i in range(2)}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    for suffix in ("npy", "npz", "csv", "parquet"):
        rows = load_source(str(tmp_path / f"t.{suffix}")).train
        assert rows.values.tolist() == [[0.0, 1.5], [1.0, 0.0], [1.0, -2.0]], suffix
        assert rows.observed.sum() == 5


def test_packed_splits_are_unpacked(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2, (12, 11), dtype=np.uint8)
    parts = {k: np.packbits(bits[i * 4 : i * 4 + 4], axis=1) for i, k in enumerate(("train", "valid", "test"))}
    np.savez(tmp_path / "packed.npz", d=11, **parts)
    source = load_source(str(tmp_path / "packed.npz"))
    assert source.test is not None
    assert source.test.values.tolist() == bits[8:].tolist()


def test_an_array_called_d_may_hold_anything(tmp_path: Path) -> None:
    values, path = np.array([[0.5, 1.5], [2.5, 3.5]]), tmp_path / "t.npz"
    np.savez(path, d=values)
    assert load_source(str(path)).train.values.tolist() == values.tolist()
    np.savez(path, d=2, X=values)
    with pytest.raises(InputError, match=r"Cannot read .*not bit-packed"):
        load_source(str(path))


def test_arrays_with_the_wrong_suffix(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.zeros((2, 2)))
    (tmp_path / "t.npy").rename(tmp_path / "one.npz")
    np.savez(tmp_path / "t.npz", X=np.zeros((2, 2)))
    (tmp_path / "t.npz").rename(tmp_path / "several.npy")
    with pytest.raises(InputError, match=r"Cannot read .*call it .npy"):
        load_source(str(tmp_path / "one.npz"))
    with pytest.raises(InputError, match=r"Cannot read .*call it .npz"):
        load_source(str(tmp_path / "several.npy"))


def test_constant_and_missing_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,c\n7.5,,x\n7.5,,x\n")
    schema = infer_schema(read_table(tmp_path / "t.csv"))
    assert [f.domain for f in schema.features] == [Continuous(7.5, 1.0), Continuous(), Categorical(1, ("x",))]


def test_a_source_that_is_nowhere_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEFORMER_DATA", raising=False)
    monkeypatch.setattr("deformer.data.sources.cache", lambda: tmp_path / "cache")

    def offline(*_: object, **__: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr("deformer.data.sources.pooch.retrieve", offline)
    with pytest.raises(SourceError, match=r"put binarized_mnist.npz or the three .amat files there"):
        load_source("mnist-binarized", tmp_path)
    with pytest.raises(SourceError, match=r"notmnist_10k.npz .* put it there"):
        load_source("notmnist", tmp_path)
    with pytest.raises(InputError, match="No source is called"):
        load_source("cifar")


def test_damaged_files_of_sources_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "binarized_mnist.npz", train=np.zeros((50_000, 98), np.uint8))
    with pytest.raises(SourceError, match=r"binarized_mnist.npz holds no 'valid'"):
        load_source("mnist-binarized", tmp_path)
    np.savez(tmp_path / "notmnist_10k.npz", letters=np.zeros((3, 5), np.uint8))
    with pytest.raises(SourceError, match="holds no letters"):
        load_source("notmnist", tmp_path)
    (tmp_path / "notmnist_10k.npz").write_bytes(b"PK nothing")
    with pytest.raises(SourceError, match="Cannot read"):
        load_source("notmnist", tmp_path)


@needs_real_data
def test_binarized_mnist() -> None:
    source = load_source("mnist-binarized", REAL)
    assert source.validation is not None
    assert source.test is not None
    assert (len(source.train), len(source.validation), len(source.test)) == (50_000, 10_000, 10_000)
    assert source.schema.image_shape == (28, 28)
    assert 0.12 < source.train.values.float().mean() < 0.14


@needs_real_data
def test_notmnist() -> None:
    assert load_source("notmnist", REAL).train.values.shape == (10_000, 784)


def test_words_are_labels_with_and_without_holes(tmp_path: Path) -> None:
    kinds = []
    for name, last in (("whole", "True"), ("holed", "")):
        (tmp_path / f"{name}.csv").write_text(f"a,b\nTrue ,1\nFalse,2\n{last},1\n")
        kinds.append([f.domain for f in load_source(str(tmp_path / f"{name}.csv")).schema.features])
    assert kinds[0] == kinds[1] == [Categorical(2, ("False", "True")), Ordinal(3)]


def test_pixels_may_be_packed_or_not() -> None:
    pixels = (np.random.default_rng(0).random((5, 784)) < 0.5).astype(np.uint8)
    assert (_pixels(pixels) == pixels).all()
    assert (_pixels(np.packbits(pixels, axis=1)) == pixels).all()


def test_labels_are_read_as_text_whatever_they_look_like(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n007,1\nA,2\n1,3\n")
    table = read_table(tmp_path / "t.csv")
    schema = infer_schema(table)
    (tmp_path / "one.csv").write_text("a,b\n007,1\n1,3\n")
    rows = load_source(str(tmp_path / "one.csv"), schema=schema).train
    assert rows.values[:, 0].tolist() == to_rows(table, schema).values[[0, 2], 0].tolist()


def test_a_constant_that_is_no_binary_fraction(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a\n" + "0.1\n" * 7)
    [feature] = infer_schema(read_table(tmp_path / "t.csv")).features
    assert feature.domain.scale == 1.0  # type: ignore[union-attr]


def test_a_column_of_nothing_in_parquet(tmp_path: Path) -> None:
    pd.DataFrame({"a": [None, None], "b": [0.5, 1.5]}).to_parquet(tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    schema = infer_schema(table)
    assert schema.features[0].domain == Continuous()
    assert to_rows(table, schema).observed.tolist() == [[False, True]] * 2
