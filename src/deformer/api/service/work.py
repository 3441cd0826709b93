"""The work of the service: one thread that computes, the batchers before it, and what a request may cost."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from deformer.api.service.batching import Batcher, Busy
from deformer.api.service.engine import Engine
from deformer.api.service.problems import TooLarge
from deformer.api.service.sessions import Sessions
from deformer.api.service.wire import LONGEST

Item = TypeVar("Item")
Table = tuple[bytes, str] | None  # an uploaded table and its kind
PIECE = 2**15  # values that are computed before others have their turn
DRAWN = 8  # what drawing a value costs, in values that are scored
READERS = 4  # requests whose rows are laid out at the same time, beside the one that is computed


@dataclass(frozen=True)
class Limits:
    """What the service takes on.

    Args:
        body: Bytes of a request.
        small: Bytes of a request that is not about many rows.
        held: Bytes of all requests that are being read or answered; beyond them, others are answered 503.
        rows: Rows of a request, and rows that it may draw.
        values: Values that a request may have computed: rows times features times passes; a drawn value counts as
            `DRAWN`.
        sessions: Open sessions, and snapshots kept.
        idle_seconds: After which an unused session is closed when the next one begins.
        snapshot_seconds: After which a snapshot makes room for a new one, where as many are kept as allowed.
        waiting: Requests of a kind that wait for the model; more are answered 503.
        seconds: In which the body of a request must arrive, else it is answered 408; and each step of the answer may
            take as long, else it is 504.
        memory: Bytes for the states of sessions.
    """

    body: int = 16 * 2**20
    small: int = 2**20
    held: int = 16 * 16 * 2**20
    rows: int = 10_000
    values: int = 2**20
    sessions: int = 100_000
    idle_seconds: float = 3600.0
    snapshot_seconds: float = 30 * 24 * 3600.0
    waiting: int = 256
    seconds: float = 30.0
    memory: int = 2**29


def _call_each(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    answers: list[Any] = []
    for task in tasks:
        try:
            answers.append(task())
        except Exception as error:  # each task answers for itself
            answers.append(error)
    return answers


class Service:
    """A model at work.

    Args:
        snapshots: Folder where snapshots of sessions outlive the process. None: they end with it.
    """

    def __init__(self, engine: Engine, limits: Limits, snapshots: Path | None) -> None:
        self.engine, self.limits = engine, limits
        self.sessions = Sessions(
            engine,
            most=limits.sessions,
            idle_seconds=limits.idle_seconds,
            snapshot_seconds=limits.snapshot_seconds,
            memory=limits.memory,
            folder=snapshots,
        )
        own = self.registry = CollectorRegistry()
        self.requests = Counter("deformer_requests", "Requests by route and status", ["route", "status"], registry=own)
        self.took = Histogram("deformer_request_seconds", "Seconds by route", ["route"], registry=own)
        sizes = (1, 2, 4, 8, 16, 32, 64, 128)
        together = Histogram("deformer_batch_items", "Requests computed together", registry=own, buckets=sizes).observe
        Gauge("deformer_sessions", "Open sessions", registry=own).set_function(lambda: len(self.sessions))
        waiting = limits.waiting
        n = len(engine.table.codec.names)
        self.scores = Batcher(
            self._score, most=PIECE, waiting=waiting, size=lambda s: n * len(s[0]) * s[1], seen=together
        )
        self.arrivals = Batcher(self.sessions.observe, most=1024, waiting=waiting, seen=together)
        self.entries = Batcher(_call_each, most=64, waiting=waiting, seen=together)
        # Of all else every request is computed alone, so that one that was given up costs nothing.
        self.calls = Batcher(_call_each, most=1, waiting=waiting, seen=together)
        self._executor: ThreadPoolExecutor | None = None
        self._readers: asyncio.Semaphore | None = None
        self._reading = 0

    @property
    def batchers(self) -> tuple[Batcher[Any], ...]:
        return self.scores, self.arrivals, self.entries, self.calls

    @property
    def ready(self) -> bool:
        return all(batcher.alive for batcher in self.batchers)

    @asynccontextmanager
    async def running(self, app: object) -> AsyncIterator[None]:
        """Work while the application lives."""
        self._executor, self._readers = ThreadPoolExecutor(1, "deformer"), asyncio.Semaphore(READERS)
        for batcher in self.batchers:
            batcher.start(self._executor)
        yield
        for batcher in self.batchers:
            await batcher.stop()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _score(self, asked: Sequence[tuple[pd.DataFrame, int]]) -> list[Any]:
        """Score the rows of several requests that want the same number of orders together."""
        answers: list[Any] = [None] * len(asked)
        for n_orders in {n for _, n in asked}:
            members = [i for i, (_, n) in enumerate(asked) if n == n_orders]
            together = pd.concat([asked[i][0] for i in members], ignore_index=True)
            scores, parts = self.engine.score(together, n_orders)
            start = 0
            for i in members:
                end = start + len(asked[i][0])
                answers[i], start = list(zip(scores[start:end], parts[start:end], strict=True)), end
        return answers

    async def enter(self, task: Callable[..., Any], *args: Any) -> Any:
        """Do what takes no time, such as opening a session, on the model's thread together with others."""
        return await self.within(self.entries.ask(lambda: task(*args)))

    async def in_pieces(
        self,
        batcher: Batcher[Item],
        item: Callable[[int, int, Any], Item],
        n_rows: int,
        per_row: int,
        parts: Sequence[Any] = (None,),
        admitted: bool = False,
    ) -> list[list[Any]]:
        """Compute rows a piece at a time, so that others have their turn and nothing goes on after the time is up.

        Args:
            item: Gives what to ask of the batcher: about rows from a start to an end, and a part of what is asked.
            per_row: Values that a part of a row has computed.
            admitted: Whether the request was let in with an earlier part of its work, as its later pieces are here.

        Returns:
            What all pieces gave, together, by part.
        """
        size = max(1, PIECE // per_row)

        async def all_of_them() -> list[list[Any]]:
            found: list[list[Any]] = [[] for _ in parts]
            begun = admitted
            for answers, part in zip(found, parts, strict=True):
                for start in range(0, n_rows, size):
                    answers += await batcher.ask(item(start, min(start + size, n_rows), part), begun)
                    begun = True
            return found

        answers: list[list[Any]] = await self.within(all_of_them())
        return answers

    async def within(self, answer: Awaitable[Any]) -> Any:
        """Wait for an answer as long as allowed."""
        return await asyncio.wait_for(answer, self.limits.seconds)

    def forget(self, session: str) -> None:
        """Close a session after whatever is under way, without waiting for it."""
        if self._executor is not None:
            self._executor.submit(self.sessions.forget, session)

    def forget_snapshot(self, snapshot: str) -> None:
        """Drop a snapshot, if it was kept, after whatever is under way, without waiting for it."""
        if self._executor is not None:
            self._executor.submit(self.sessions.drop, snapshot)

    async def frame(
        self, rows: Sequence[Any], table: Table, n_passes: int, n_parts: int = 1, field: str = "rows"
    ) -> tuple[pd.DataFrame, int]:
        """Lay out rows that were sent in JSON, or as a table, if what is asked about them can be afforded.

        Returns:
            The rows, and the values that a part of one has computed.

        Raises:
            TooLarge: It would cost too much.
            Busy: Too many requests wait to be read.
        """
        per_row = self.afford(len(rows), n_passes, n_parts)  # what is refused is not kept waiting
        async with self.reading():
            if table is not None:
                rows = await self.within(asyncio.to_thread(self.engine.read, *table, self.limits.rows + 1, LONGEST))
                self.afford(len(rows), n_passes, n_parts)
            frame: pd.DataFrame = await self.within(asyncio.to_thread(self.engine.frame, rows, field))
            return frame, per_row

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Wait for a place among the few that take in what was sent, which may be hundreds of times as large.

        Raises:
            Busy: Too many wait for one.
        """
        assert self._readers is not None
        if self._reading >= self.limits.waiting:
            raise Busy
        self._reading += 1
        try:
            await self.within(self._readers.acquire())
            try:
                yield
            finally:
                self._readers.release()
        finally:
            self._reading -= 1

    def afford(self, n_rows: int, n_passes: int, n_parts: int = 1) -> int:
        """Refuse what would cost too much, and give the values that a part of a row has computed.

        Raises:
            TooLarge: It would.
        """
        per_row = n_passes * len(self.engine.table.codec.names)
        if n_rows > self.limits.rows or n_rows * per_row * n_parts > self.limits.values:
            raise TooLarge
        return per_row
