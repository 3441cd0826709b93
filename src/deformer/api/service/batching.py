"""Dynamic batching: requests that wait at the same time are computed together, on one thread."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Work = Callable[[Sequence[Item]], Sequence[Any]]


class Busy(Exception):
    """More requests wait than the service takes on."""


class Batcher(Generic[Item]):
    """Collects what arrives while a computation runs, and computes it together next.

    Args:
        work: Gives the answer, or the exception, of each of several items; called on the executor's thread.
        most: Most weight that is computed together; one heavier item is computed alone.
        waiting: Most items that wait.
        size: Gives how much an item weighs.
        seen: Told the number of items of every computation.
    """

    def __init__(
        self,
        work: Work[Item],
        *,
        most: int,
        waiting: int,
        size: Callable[[Item], int] = lambda _: 1,
        seen: Callable[[int], object] = lambda _: None,
    ) -> None:
        self.work, self.size, self.most, self.waiting, self.seen = work, size, most, waiting, seen
        self._task: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        return self._task is not None and not self._task.done()

    def start(self, executor: Executor) -> None:
        """Begin to answer, in a running event loop.

        Args:
            executor: One thread that all batchers share, so that computations do not compete.
        """
        self._queue: asyncio.Queue[tuple[Item, asyncio.Future[Any]]] = asyncio.Queue()
        self._held: tuple[Item, asyncio.Future[Any]] | None = None
        self._task = asyncio.create_task(self._serve(executor))

    async def stop(self) -> None:
        """Stop answering; what still waits is cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        waiting = [] if self._held is None else [self._held]
        while not self._queue.empty():
            waiting.append(self._queue.get_nowait())
        for _, future in waiting:
            future.cancel()

    async def ask(self, item: Item, admitted: bool = False) -> Any:
        """Wait for an item's answer.

        Args:
            admitted: Whether it waits however many do: it goes on with a request that was let in.

        Raises:
            Busy: Too many wait already.
        """
        if not admitted and self._queue.qsize() >= self.waiting:
            raise Busy
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((item, future))
        return await future

    async def _serve(self, executor: Executor) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [pair for pair in await self._collect() if not pair[1].done()]  # the others were given up
            if not batch:
                continue
            self.seen(len(batch))
            try:
                answers = await loop.run_in_executor(executor, self.work, [item for item, _ in batch])
            except asyncio.CancelledError:
                for _, future in batch:
                    future.cancel()
                raise
            except Exception as error:
                answers = [error] * len(batch)
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    async def _collect(self) -> list[tuple[Item, asyncio.Future[Any]]]:
        """Take all that waits, up to the largest weight."""
        first = self._held or await self._queue.get()
        batch, weight, self._held = [first], self.size(first[0]), None
        while not self._queue.empty():
            following = self._queue.get_nowait()
            weight += self.size(following[0])
            if weight > self.most:
                self._held = following
                break
            batch.append(following)
        return batch
