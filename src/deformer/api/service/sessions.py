"""Sessions of the service: who is open, since when, and snapshots that outlive the process."""

import dataclasses
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deformer.api.service.engine import Engine, FieldError, distributions
from deformer.errors import InputError
from deformer.tasks.pool import SessionPool
from deformer.tasks.streaming import Reading, Surprise
from deformer.train.checkpoint import write_bytes


class NotThere(Exception):
    """There is no such session or snapshot."""


class TooMany(Exception):
    """No more sessions are opened."""


class Sessions:
    """The open sessions of a model. Everything here is called on one thread.

    Args:
        most: How many may be open.
        idle_seconds: After which a session that was not used makes room for a new one.
        memory: Bytes for states.
        folder: Where snapshots go. None: they are kept in memory and end with the process.
    """

    def __init__(self, engine: Engine, *, most: int, idle_seconds: float, memory: int, folder: Path | None) -> None:
        self.engine, self.most, self.idle_seconds, self.folder = engine, most, idle_seconds, folder
        columns = engine.table.codec.columns
        self.pool = SessionPool(engine.table.model, columns, alarms=engine.alarms, memory=memory)
        self._used: dict[str, float] = {}
        self._snapshots: dict[str, dict[str, Any]] = {}
        self._on_disk: set[str] = set()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._on_disk = {path.stem for path in folder.glob("*.json")}

    def __len__(self) -> int:
        return len(self.pool)

    def open(self, snapshot: str | None) -> str:
        """Begin a session and give its name.

        Raises:
            NotThere: No such snapshot.
            TooMany: As many as allowed are in use.
        """
        saved = None if snapshot is None else self._saved(snapshot)
        if len(self.pool) >= self.most:
            self._drop_idle()
        name = secrets.token_urlsafe(18)
        self.pool.open(name, saved)
        self._used[name] = time.monotonic()
        return name

    def _drop_idle(self) -> None:
        """Close the session that was not used for the longest, if that is long enough."""
        oldest = min(self._used, key=self._used.__getitem__)
        if time.monotonic() - self._used[oldest] < self.idle_seconds:
            raise TooMany
        self.close(oldest)

    def reading(self, name: str) -> Reading:
        """Give what a session was told."""
        if name not in self.pool:
            raise NotThere(f"There is no session {name!r}.")
        self._used[name] = time.monotonic()
        return self.pool.reading(name)

    def told(self, reading: Reading) -> dict[str, Any]:
        """Give the observed values by name."""
        codec = self.engine.table.codec
        frame = codec.decode(_one_row(reading, len(codec.names)))
        return {codec.names[f]: frame.iloc[0, f] for f in reading.features}

    def close(self, name: str) -> None:
        """Forget a session."""
        self.reading(name)
        self.pool.close(name)
        del self._used[name]

    def forget(self, name: str) -> None:
        """Close a session, if it is still open."""
        if name in self.pool:
            self.close(name)

    def observe(self, arrivals: Sequence[tuple[str, str, Any]]) -> list[Surprise | Exception]:
        """Take in (session, feature, value) triples together; what cannot be taken in is answered by its error."""
        answers: list[Surprise | Exception | None] = [None] * len(arrivals)
        good: list[int] = []
        coming: set[tuple[str, str]] = set()
        for i, (session, name, value) in enumerate(arrivals):
            try:
                reading, value = self.reading(session), self.engine.value(name, value)
                if self.engine.words.feature(name) in reading.features or (session, name) in coming:
                    raise FieldError(f"{name!r} has been observed already", ("name",))
            except (NotThere, InputError) as error:
                answers[i] = error
            else:
                coming.add((session, name))
                good.append(i)
        triples = [(s, n, self.engine.value(n, v)) for s, n, v in (arrivals[i] for i in good)]
        for i, surprise in zip(good, self.pool.observe(triples), strict=True):
            answers[i] = surprise
        return [a for a in answers if a is not None]

    def predict(self, session: str, names: Sequence[str] | None) -> dict[str, Any]:
        """Describe p(feature | what has arrived) for some features, by default for those that have not arrived."""
        seen = set(self.reading(session).features)
        everything = self.engine.table.codec.names
        asked = [n for i, n in enumerate(everything) if i not in seen] if names is None else list(names)
        for i, name in enumerate(asked):
            self.engine.check(name, None, ("names", i))
        answers = self.pool.ask(session, asked, distributions)
        return self.engine.in_units(dict(zip(asked, answers, strict=True)))

    def save(self, session: str) -> str:
        """Keep a snapshot, on the disk before this returns if there is a folder, and give its name."""
        reading, name = self.reading(session), secrets.token_hex(16)
        written = dataclasses.asdict(reading)
        if self.folder is None:
            self._snapshots[name] = written
        else:
            write_bytes(self.folder / f"{name}.json", json.dumps(written).encode())
            self._on_disk.add(name)
        return name

    def _saved(self, name: str) -> Mapping[str, Any]:
        if self.folder is not None and name in self._on_disk:  # names given out, never a path that a client made up
            saved: Mapping[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
            return saved
        if name not in self._snapshots:
            raise NotThere(f"There is no snapshot {name!r}.")
        return self._snapshots[name]


def _one_row(reading: Reading, n_features: int) -> npt.NDArray[np.float64]:
    row = np.full((1, n_features), np.nan)
    row[0, list(reading.features)] = reading.codes
    return row
