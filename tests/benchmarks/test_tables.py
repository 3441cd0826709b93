import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from benchmarks.tables import __main__ as command
from benchmarks.tables import anomaly, density, imputation

from deformer.api import tables
from deformer.api.tables import TableModel
from deformer.data.columns import Levels, Numbers
from deformer.data.frames import Codec
from deformer.nn.model import new_model

DRAWS = np.random.default_rng(0)
PEER_LIST = "file,MADE (8 orders),ID-SPN,EiNet,best_exact,best_tractable\nnltcs,-6.04,-6.02,-6.02,-5.99,-5.99\n"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with toy sets in place of the real ones."""
    monkeypatch.setenv("DEFORMER_DATA", str(tmp_path))
    for folder in ("debd", "anomaly", "tables"):
        (tmp_path / folder).mkdir()
    bits = {
        name: np.packbits(DRAWS.integers(0, 2, (n, 5)), axis=1)
        for name, n in zip(("train", "valid", "test"), (60, 20, 20), strict=True)
    }
    np.savez(tmp_path / "debd" / "nltcs.npz", d=5, **bits)
    (tmp_path / "debd" / "published.csv").write_text(PEER_LIST)
    X = np.r_[DRAWS.normal(size=(60, 3)), DRAWS.normal(9, 1, size=(6, 3))]
    np.savez(tmp_path / "anomaly" / "14_glass.npz", X=X, y=np.r_[np.zeros(60), np.ones(6)].astype(np.int32))
    frame = pd.DataFrame({"a": X[:, 0], "b": X[:, 0] + 0.1 * X[:, 1], "c": np.where(X[:, 0] > 0, "p", "q")})
    frame.to_csv(tmp_path / "tables" / "winequality-white.csv", index=False)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> str:
    task, *others = words
    monkeypatch.setattr(sys, "argv", ["tables", task, "--minutes", "0.005", "--output", str(folder / "out"), *others])
    command.main()
    return (folder / "out" / f"{task}.md").read_text()


def test_density(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = run(monkeypatch, data, "debd", "--only", "nltcs")
    assert "| nltcs | **-" in table
    assert "| -6.04 |" in table
    path = data / "out" / "debd" / "nltcs.json"
    result = json.loads(path.read_text())
    assert result["mean_over_orders"] <= result["ensemble"] + 1e-9 < 0
    path.write_text(json.dumps({**result, "ensemble": -1.5}))
    assert "-1.50" in run(monkeypatch, data, "debd", "--only", "nltcs")  # not measured again
    assert "-1.50" not in run(monkeypatch, data, "debd", "--only", "nltcs", "--minutes", "0.01")


def test_anomaly(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anomaly, "PEERS", ())
    monkeypatch.setattr(anomaly, "SEEDS", (0,))
    assert "| 14_glass | " in run(monkeypatch, data, "anomaly", "--only", "14_glass")
    result = json.loads((data / "out" / "anomaly" / "14_glass.json").read_text())
    assert 0.9 < result["deformer"][0]["auroc"] <= 1


@pytest.mark.parametrize("pattern", imputation.PATTERNS)
def test_imputation(data: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    monkeypatch.setattr(imputation, "PEERS", ("iterative", "knn", "simple"))
    assert f"| wine-{pattern} | " in run(monkeypatch, data, "impute", "--only", f"wine-{pattern}-0")
    result = json.loads((data / "out" / "impute" / f"wine-{pattern}-0.json").read_text())
    for method in ("deformer", "iterative", "knn", "simple"):
        assert 0 < result[method]["nrmse"] < 2
        assert 0 <= result[method]["accuracy"] <= 1


def test_values_go_missing_as_often_as_planned() -> None:
    whole = pd.DataFrame({"a": DRAWS.normal(size=20_000)})
    removed = (imputation._by_value(whole, DRAWS) < imputation.MISSING)[:, 0]
    assert removed.mean() == pytest.approx(0.2, abs=0.01)
    assert whole["a"][removed].mean() > 0.2


def test_errors_are_standard_errors() -> None:
    assert density.error(np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(0.6455, abs=1e-3)


def test_places_are_uniform_where_predictions_are_calibrated() -> None:
    columns = (Numbers(), Numbers(point_mass=0.0), Levels((1.0, 2.0, 4.0), 99))
    codec = Codec(("number", "rain", "level"), columns, (np.dtype(np.float64),) * 3)
    table = TableModel(codec, new_model(codec.schema).eval())
    drawn = tables.draw_rows(table, 500, seed=0)
    for name in drawn:
        place = imputation._places(table, drawn, name, drawn[name].to_numpy(), np.random.default_rng(0))
        counts = np.histogram(place, 5, (0, 1))[0]
        assert counts.sum() == 500
        assert (abs(counts - 100) < 40).all()
