import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.models import mixed

from deformer.api import parts, tables
from deformer.api.pretrained import shipped_path
from deformer.errors import CheckpointError, InputError


@pytest.fixture
def job(tmp_path: Path) -> parts.Job:
    """A model of a table, and the table in four parts."""
    table, _ = tables.learn(mixed(100), steps=5, epochs=None, minutes=None)
    tables.save_table(tmp_path / "model.deformer", table)
    (tmp_path / "in").mkdir()
    for i in range(4):
        mixed(30, seed=i).reset_index(drop=True).to_parquet(tmp_path / "in" / f"{i}.parquet")
    return parts.Job(str(tmp_path / "model.deformer"), "cpu", "impute", seed=1)


def read(folder: Path) -> pd.DataFrame:
    return pd.concat(pd.read_parquet(path) for path in sorted(folder.glob("*.parquet")))


def test_parts_are_done_once(job: parts.Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts.run(job, tmp_path / "in", tmp_path / "out")
    filled = read(tmp_path / "out")
    assert len(filled) == 120
    assert filled.notna().all(axis=None)
    changed = (tmp_path / "out" / "2.parquet").stat().st_mtime_ns
    (tmp_path / "out" / "1.parquet").unlink()
    parts.run(job, tmp_path / "in", tmp_path / "out")
    assert "3 of 4 parts" in capsys.readouterr().err
    assert (tmp_path / "out" / "2.parquet").stat().st_mtime_ns == changed
    pd.testing.assert_frame_equal(read(tmp_path / "out"), filled)


def test_a_part_that_changed_is_done_again(job: parts.Job, tmp_path: Path) -> None:
    parts.run(job, tmp_path / "in", tmp_path / "out")
    mixed(10).reset_index(drop=True).to_parquet(tmp_path / "in" / "1.parquet")
    mixed(0).to_parquet(tmp_path / "in" / "nothing.parquet")
    parts.run(job, tmp_path / "in", tmp_path / "out")
    assert len(read(tmp_path / "out")) == 100


def test_results_of_parts_that_are_gone_are_named(
    job: parts.Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts.run(job, tmp_path / "in", tmp_path / "out")
    assert "also holds" not in capsys.readouterr().err
    (tmp_path / "in" / "2.parquet").unlink()
    mixed(0).to_parquet(tmp_path / "in" / "3.parquet")
    parts.run(job, tmp_path / "in", tmp_path / "out")
    assert "also holds 2.parquet, 3.parquet, which belong to no part now" in capsys.readouterr().err


def test_results_of_another_folder_are_left_alone(job: parts.Job, tmp_path: Path) -> None:
    parts.run(job, tmp_path / "in", tmp_path / "out")
    (tmp_path / "in").rename(tmp_path / "february")
    with pytest.raises(InputError, match="another folder"):
        parts.run(job, tmp_path / "february", tmp_path / "out")


def test_a_model_that_does_not_fit_leaves_nothing_behind(job: parts.Job, tmp_path: Path) -> None:
    for name in (str(shipped_path("mnist-binarized")), "missing.deformer"):
        with pytest.raises(CheckpointError):
            parts.run(dataclasses.replace(job, model=name), tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_that_make_no_sense_are_refused(job: parts.Job, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder of their own"):
        parts.run(job, tmp_path / "in", tmp_path / "in")
    with pytest.raises(InputError, match="no Parquet"):
        parts.run(job, tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="local or ray"):
        parts.run(job, tmp_path / "in", tmp_path / "out", "spark")


def spoil(folder: Path) -> str:
    """Let one part hold words in a column of numbers; give the start of the error that names it."""
    path = folder / "2.parquet"
    pd.read_parquet(path).assign(size="words").to_parquet(path)
    return "2.parquet: .*'size' is one of numbers"


def test_a_bad_part_is_named(job: parts.Job, tmp_path: Path) -> None:
    says = spoil(tmp_path / "in")
    with pytest.raises(InputError, match=says):
        parts.run(job, tmp_path / "in", tmp_path / "out")
    path = str(tmp_path / "in" / "{}.parquet")
    results = np.array([str(tmp_path / "out" / f"{i}.parquet") for i in (1, 2)])
    good, bad = parts.Worker(job)({"path": np.array([path.format(i) for i in (1, 2)]), "output": results})["failure"]
    assert good == ""
    assert path.format(2) in bad


def test_a_bad_part_is_named_by_a_cluster(job: parts.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="the cluster is tested where Ray is installed")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    says = spoil(tmp_path / "in")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(InputError, match=says):
            parts.run(job, tmp_path / "in", tmp_path / "out", "ray", 1)
    finally:
        ray.shutdown()
    assert sorted(path.name for path in (tmp_path / "out").glob("*.parquet")) == [f"{i}.parquet" for i in (0, 1, 3)]


def test_a_command_that_failed_may_be_put_right(job: parts.Job, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only draws differ"):
        parts.run(dataclasses.replace(job, strategy="mode", n_imputations=2), tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    says = spoil(tmp_path / "in")
    (tmp_path / "in" / "2.parquet").rename(tmp_path / "in" / "0.parquet")
    with pytest.raises(InputError, match=says.replace("2", "0")):
        parts.run(job, tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "0.parquet").unlink()
    other = dataclasses.replace(job, seed=2)
    parts.run(other, tmp_path / "in", tmp_path / "out")
    with pytest.raises(InputError, match="other options"):
        parts.run(job, tmp_path / "in", tmp_path / "out")


def test_a_cluster_gives_the_same_also_when_a_worker_dies(
    job: parts.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="the cluster is tested where Ray is installed")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # beside other work, niced workers would hardly begin
    for i in range(4, 12):
        mixed(400, seed=i).reset_index(drop=True).to_parquet(tmp_path / "in" / f"{i:02d}.parquet")
    parts.run(job, tmp_path / "in", tmp_path / "alone")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        killer = subprocess.Popen([sys.executable, "-c", KILLER, str(tmp_path / "cluster")])
        parts.run(job, tmp_path / "in", tmp_path / "cluster", "ray", 2)
        assert killer.wait(10) == 0, "no worker was killed"
    finally:
        ray.shutdown()
    pd.testing.assert_frame_equal(read(tmp_path / "cluster"), read(tmp_path / "alone"))


KILLER = """
import os, signal, subprocess, sys, time
from pathlib import Path
while not any(Path(sys.argv[1]).glob("*.parquet")):
    time.sleep(0.05)
workers = subprocess.run(["pgrep", "-f", "ray::.*Map"], capture_output=True, text=True).stdout.split()
os.kill(int(workers[0]), signal.SIGKILL)
"""
