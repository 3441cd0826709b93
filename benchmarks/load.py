"""The service under load, on loopback: `python -m benchmarks.load [--clients 64] [--seconds 60]`.

Clients score rows, fill them in and feed sessions, all at once. Every step of every session and every score is checked
afterwards against the library. Then twice as many requests as may wait arrive together, and twice as many sessions as
may be open: some are turned away with 503 and 429, none fails, and the service answers as before. The exit code says
whether all of that held.
"""

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import torch

from benchmarks.machine import RESULTS, circumstances
from deformer.api import tables
from deformer.api.tables import TableModel
from deformer.tasks.density import log_prob_terms

Row = dict[str, Any]


def a_table(n: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Twelve columns that follow three hidden ones."""
    draws = np.random.default_rng(seed)
    hidden = draws.normal(size=(n, 3))
    numbers = hidden @ draws.normal(size=(3, 8)) + 0.3 * draws.normal(size=(n, 8))
    frame = pd.DataFrame(numbers.round(3), columns=[f"n{i}" for i in range(8)])
    for i in range(4):
        frame[f"c{i}"] = np.array(["a", "b", "c"])[
            np.digitize(hidden[:, i % 3] + 0.3 * draws.normal(size=n), [-0.5, 0.5])
        ]
    return frame


WAITING, SESSIONS = 128, 1000  # that the service under load allows


def start(model: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start a service and wait until it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "deformer.api.cli", "serve", "--model", str(model), "--port", str(port)]
    command += ["--waiting", str(WAITING), "--sessions", str(SESSIONS)]
    environment = {name: value for name, value in os.environ.items() if name != "DEFORMER_TOKEN"}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server, url = subprocess.Popen(command, env=environment, **quiet), f"http://127.0.0.1:{port}"
    while server.poll() is None:
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return server, url
        except httpx.TransportError:
            time.sleep(0.2)
    raise SystemExit("The service did not start.")


class Load:
    """What many clients ask, what they were answered, and how long it took."""

    def __init__(self, http: httpx.AsyncClient, rows: list[Row], until: float) -> None:
        self.http, self.rows, self.until = http, rows, until
        self.took: dict[str, list[float]] = {"score": [], "observe": [], "impute": []}
        self.scores: list[tuple[Row, float]] = []
        self.sessions: list[tuple[list[tuple[str, Any]], list[dict[str, Any]]]] = []
        self.errors: Counter[str] = Counter()

    async def post(self, kind: str, path: str, body: Any) -> Any:
        begin = time.perf_counter()
        answer = await self.http.post(f"/v1/{path}", json=body)
        self.took.setdefault(kind, []).append(time.perf_counter() - begin)
        if not answer.is_success:
            raise httpx.HTTPError(f"{kind} {answer.status_code}")
        return answer.json()

    async def client(self, number: int) -> None:
        draws = random.Random(number)
        while time.monotonic() < self.until:
            try:
                await draws.choice([self.score, self.session, self.session, self.impute])(draws)
            except httpx.HTTPError as error:
                self.errors[str(error) or type(error).__name__] += 1

    async def score(self, draws: random.Random) -> None:
        row = draws.choice(self.rows)
        answer = await self.post("score", "score", {"rows": [row], "n_orders": 2})
        self.scores.append((row, answer["scores"][0]["mean_over_orders"]))

    async def impute(self, draws: random.Random) -> None:
        row = draws.choice(self.rows)
        known = {name: row[name] for name in draws.sample(sorted(row), 6)}
        answer = await self.post("impute", "impute", {"rows": [known], "seed": draws.randrange(1000)})
        filled = answer["imputations"][0][0]
        if any(filled[name] != value for name, value in known.items()):
            self.errors["impute changed what was known"] += 1

    async def session(self, draws: random.Random) -> None:
        row = draws.choice(self.rows)
        told = [(name, row[name]) for name in draws.sample(sorted(row), draws.randint(1, len(row)))]
        name = (await self.post("open", "sessions", {}))["session"]
        answers = [
            await self.post("observe", f"sessions/{name}/observe", {"name": feature, "value": value})
            for feature, value in told
        ]
        self.sessions.append((told, answers))
        closed = await self.http.delete(f"/v1/sessions/{name}")
        if closed.status_code != 204:
            self.errors[f"close {closed.status_code}"] += 1

    def wrong(self, table: TableModel) -> int:
        """Count sessions and scores that are not what the library says."""
        found = 0
        for length in {len(told) for told, _ in self.sessions}:
            group = [(told, answers) for told, answers in self.sessions if len(told) == length]
            expected = running_nats(table, [told for told, _ in group])
            for (told, answers), nats in zip(group, expected, strict=True):
                right = all(
                    answer["name"] == name and answer["n_observed"] == k and abs(answer["running_nats"] - n) < 1e-3
                    for k, ((name, _), answer, n) in enumerate(zip(told, answers, nats, strict=True), 1)
                )
                found += not right
        expected_scores = tables.log_prob(table, pd.DataFrame([row for row, _ in self.scores]), 2, "mean")
        near = np.abs(expected_scores - [score for _, score in self.scores]) < 1e-3
        return found + int((~near).sum())


def running_nats(table: TableModel, sessions: list[list[tuple[str, Any]]]) -> list[list[float]]:
    """Score rows of as many values each, in the sequences in which they came, after every value."""
    rows, log_base = table.codec.encode(pd.DataFrame([dict(told) for told in sessions]))
    orders = torch.tensor([rows.schema.index([name for name, _ in told]) for told in sessions])
    terms = log_prob_terms(table.model, rows, orders=orders).double() + log_base
    nats: list[list[float]] = (-terms.gather(1, orders)).cumsum(1).tolist()
    return nats


async def overload(http: httpx.AsyncClient, rows: list[Row]) -> dict[str, dict[str, int]]:
    """Ask for twice as much as may wait, and for twice as many sessions as may be open; count answers by status."""
    holes = [{name: value for name, value in row.items() if name[0] == "c"} for row in rows[:10]]
    answers = await asyncio.gather(*(http.post("/v1/impute", json={"rows": holes}) for _ in range(2 * WAITING)))
    opened = [await http.post("/v1/sessions", json={}) for _ in range(2 * SESSIONS)]
    for answer in opened:
        if answer.status_code == 201:
            await http.delete(f"/v1/sessions/{answer.json()['session']}")
    counts = {"impute": Counter(a.status_code for a in answers), "sessions": Counter(a.status_code for a in opened)}
    return {kind: {str(status): n for status, n in sorted(found.items())} for kind, found in counts.items()}


async def run(url: str, table: TableModel, rows: list[Row], clients: int, seconds: float) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        load = Load(http, rows, time.monotonic() + seconds)
        await asyncio.gather(*(load.client(i) for i in range(clients)))
        statuses = await overload(http, rows)
        after = Load(http, rows, 0.0)
        await asyncio.gather(*(after.session(random.Random(i)) for i in range(8)), after.score(random.Random(0)))
    quantiles = {
        kind: dict(zip(("p50_ms", "p99_ms"), (1000 * np.quantile(took, [0.5, 0.99])).round(1).tolist(), strict=True))
        for kind, took in load.took.items()
        if took
    }
    return {
        **{"clients": clients, "seconds": seconds, "requests": sum(map(len, load.took.values()))},
        **{"errors": dict(load.errors), "sessions": len(load.sessions), "scores": len(load.scores)},
        **{"wrong": load.wrong(table), "latency": quantiles},
        "overload": statuses,
        "wrong_afterwards": after.wrong(table) + sum(after.errors.values()),
        "machine": circumstances(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    chosen = parser.parse_args()
    frame = a_table()
    table, _ = tables.learn(frame, steps=200, epochs=None, minutes=None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.deformer"
        tables.save_table(path, table)
        server, url = start(path)
        try:
            results = asyncio.run(run(url, table, frame.to_dict("records"), chosen.clients, chosen.seconds))
        finally:
            server.terminate()
            server.wait()
    print(json.dumps(results, indent=2))
    (RESULTS / "load.json").write_text(json.dumps(results, indent=2) + "\n")
    raise SystemExit(not held(results))


def held(results: dict[str, Any]) -> bool:
    """Say whether nothing was lost, mixed up or failed, and what was too much was turned away."""
    refused = {"impute": {"200", "503"}, "sessions": {"201", "429"}}
    turned_away = all(set(results["overload"][kind]) == statuses for kind, statuses in refused.items())
    return not results["errors"] and not results["wrong"] and not results["wrong_afterwards"] and turned_away


if __name__ == "__main__":
    main()
