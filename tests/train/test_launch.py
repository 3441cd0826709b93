"""Devices and machines that are not there are told at once; no process is started here."""

import pytest
import torch

from deformer.config import TrainConfig
from deformer.errors import InputError
from deformer.train import launch as launching
from deformer.train.launch import launch

CONFIG = TrainConfig(steps=1)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching.Fabric, "launch", lambda _: None)


def test_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "choose_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="This machine has 1 GPUs, not 2"):
        launch(CONFIG, "cuda", 2, 1)


def test_machines_must_know_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="on 2 machines needs MASTER_ADDR, MASTER_PORT, NODE_RANK in the environment"):
        launch(CONFIG, "cpu", 1, 2)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("NODE_RANK", "0")
    with pytest.raises(InputError, match="needs MASTER_PORT in"):
        launch(CONFIG, "cpu", 1, 2)
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert launch(CONFIG, "cpu", 1, 2).world_size == 2


def test_fewer_rows_than_processes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    launch(TrainConfig(steps=1, rows_per_step=3), "cpu", 3, 1)
    assert "rows" not in capsys.readouterr().err
    launch(TrainConfig(steps=1, rows_per_step=1), "cpu", 3, 1)
    assert "A step takes 3 rows, one for each process, not 1." in capsys.readouterr().err
