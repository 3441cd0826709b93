"""Logs of a training: metrics.csv, TensorBoard events and a progress bar."""

import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from deformer.errors import InputError
from deformer.train.checkpoint import write_bytes
from deformer.train.history import Point


class Log:
    """Writes every validation to `metrics.csv` and to TensorBoard; to nowhere without a directory.

    Raises:
        InputError: TensorBoard's events cannot be written from the start; later the run goes on without them.
    """

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        self.board: Any = None

    def __enter__(self) -> "Log":
        if self.directory is not None:
            from torch.utils.tensorboard import SummaryWriter  # costs a second to import

            folder = self.directory / "tensorboard"
            try:
                self.board = SummaryWriter(str(folder))
            except OSError as error:
                raise InputError(f"Cannot write {folder}: {error.strerror or error}.") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._on_board("close")

    def write(self, point: Point, points: Sequence[Point]) -> None:
        """Add a point; the file holds the whole history, so that a resumed run repeats nothing."""
        if self.directory is None:
            return
        text = io.StringIO()
        table = csv.DictWriter(text, list(asdict(point)))
        table.writeheader()
        table.writerows(asdict(p) for p in points)
        write_bytes(self.directory / "metrics.csv", text.getvalue().encode())
        for name in ("training_nll", "validation_nll"):
            if (score := getattr(point, name)) is not None:
                self._on_board("add_scalar", name, score, point.step)

    def _on_board(self, method: str, *arguments: object) -> None:
        """Call a method of the board while there is one; events that cannot be written must not end a run."""
        if self.board is None:
            return
        try:
            getattr(self.board, method)(*arguments)
        except OSError as error:
            self.board = None
            print(f"TensorBoard's events end here: {error.strerror or error}.", file=sys.stderr)


class Progress:
    """A bar with loss in nats, speed and time left, on standard error."""

    def __init__(self, visible: bool) -> None:
        self.bar = RichProgress(
            TextColumn("step {task.fields[step]}"),
            BarColumn(),
            TextColumn("{task.percentage:.0f} %  loss {task.fields[loss]:.2f} nats  validation {task.fields[best]}"),
            TextColumn("{task.fields[speed]:.1f} rows/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not visible,
        )
        self.smooth: float | None = None
        self.first_rows: int | None = None

    def __enter__(self) -> "Progress":
        self.bar.start()
        self.task = self.bar.add_task("", total=1.0, step=0, loss=0.0, best="-", speed=0.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def show(self, done: float, loss: float, step: int, rows_seen: int) -> None:
        """Move the bar; the loss is smoothed over about 20 steps."""
        self.smooth = loss if self.smooth is None else 0.95 * self.smooth + 0.05 * loss
        self.first_rows = rows_seen if self.first_rows is None else self.first_rows
        elapsed = self.bar.tasks[0].elapsed or 0.0
        speed = (rows_seen - self.first_rows) / elapsed if elapsed else 0.0
        self.bar.update(self.task, completed=min(done, 1.0), loss=self.smooth, step=step, speed=speed)

    def validated(self, score: float | None) -> None:
        """Show the newest validation score."""
        self.bar.update(self.task, best="-" if score is None else f"{score:.2f}")
