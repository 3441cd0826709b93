"""The service as a process: who may ask, and killing it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from tests.models import mixed

from deformer.api import tables
from deformer.api.service.guard import LOOPBACK, Admission
from deformer.api.service.run import check_port, choose_admission, open_engine
from deformer.client import Client
from deformer.errors import CheckpointError, InputError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "houses.deformer"
    tables.save_table(path, tables.learn(mixed(100), steps=5, epochs=None, minutes=None)[0])
    return path


@contextmanager
def running(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "deformer.api.cli", "serve", "--port", str(port), *options]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "DEFORMER_TOKEN": ""})
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert server.poll() is None, server.stderr and server.stderr.read()
            try:
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        else:
            pytest.fail("the service was never ready")
        yield server, url
    finally:
        server.kill()
        server.wait()


def test_a_killed_service_loses_no_acknowledged_snapshot(model: Path, tmp_path: Path) -> None:
    options = ("--model", str(model), "--snapshots", str(tmp_path / "snapshots"))
    saved: dict[str, float] = {}

    def save_on_and_on(url: str, number: int) -> None:
        with Client(url) as client, suppress(httpx.TransportError):
            session, told = client.session(), 0.01 * number
            session.observe("size", told)
            while True:
                saved[session.save()] = told

    with running(*options) as (server, url), ThreadPoolExecutor(4) as threads:
        for number in range(4):
            threads.submit(save_on_and_on, url, number)
        time.sleep(1.5)
        server.send_signal(signal.SIGKILL)
    assert len(saved) > 20
    with running(*options) as (server, url), Client(url) as client:
        for snapshot, told in list(saved.items())[-50:]:
            assert client.session(snapshot).look().observed == {"size": told}
        assert client.session(snapshot).observe("kind", "big").n_observed == 2
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) in (0, -signal.SIGTERM)


def test_a_token_is_needed_beyond_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEFORMER_TOKEN", raising=False)
    for host in ("127.0.0.1", "localhost", "::1"):
        assert choose_admission(host, False) == Admission(None, LOOPBACK)
    assert choose_admission("127.0.0.2", False) == Admission(None, (*LOOPBACK, "127.0.0.2"))
    assert choose_admission("0.0.0.0", True) == Admission()
    for host in ("0.0.0.0", "example.org"):
        with pytest.raises(InputError, match="DEFORMER_TOKEN"):
            choose_admission(host, False)
    monkeypatch.setenv("DEFORMER_TOKEN", "secret\n")  # as files of secrets end
    assert choose_admission("0.0.0.0", False) == Admission("secret")
    monkeypatch.setenv("DEFORMER_TOKEN", "geheimnisträger")
    with pytest.raises(InputError, match="printable ASCII"):
        choose_admission("127.0.0.1", False)


def test_models_of_any_kind_are_opened(model: Path, tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary.csv"
    mixed(50, seed=1).to_csv(ordinary, index=False)
    engine = open_engine("mnist-binarized", "cpu")
    assert engine.describe()["image_shape"] == (28, 28)
    with pytest.raises(CheckpointError):
        open_engine(str(tmp_path / "nothing.deformer"), "cpu")
    assert open_engine(str(model), "cpu").alarms is None
    alarms = open_engine(str(model), "cpu", ordinary, 0.1).alarms
    assert alarms is not None
    assert len(alarms.thresholds) == 5


def test_headers_are_bounded_and_idle_connections_stay_open(model: Path) -> None:
    with running("--model", str(model)) as (_, url):
        host, port = "127.0.0.1", int(url.rpartition(":")[2])
        with socket.create_connection((host, port), timeout=30) as flood, suppress(OSError):
            flood.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ")
            for _ in range(64):
                flood.sendall(b"x" * 2**14)
            answer = flood.recv(2**12)
            assert answer.startswith(b"HTTP/1.1 4") or answer == b""
        with socket.create_connection((host, port), timeout=30) as idle:
            for seconds in (
                0,
                6,
            ):  # uvicorn would keep it for five, as long as clients do, so that both drop it at once
                time.sleep(seconds)
                idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                answer = b""
                while b"alive" not in answer:
                    more = idle.recv(2**12)
                    assert more, answer
                    answer += more


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of 127.0.0.1: Address already in use"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)
