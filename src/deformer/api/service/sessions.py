"""Sessions of the service: who is open, since when, and snapshots that outlive the process."""

import dataclasses
import hashlib
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deformer.api.service.engine import Engine, FieldError, distributions
from deformer.errors import InputError
from deformer.nn.model import DEformer
from deformer.tasks.pool import SessionPool
from deformer.tasks.streaming import Reading, Surprise
from deformer.train.checkpoint import write_bytes


class NotThere(Exception):
    """There is no such session or snapshot."""


class TooMany(Exception):
    """No more sessions are opened, or snapshots kept."""


class Conflict(FieldError):
    """The session has that value already."""


class Sessions:
    """The open sessions of a model. Everything here is called on one thread.

    Args:
        most: How many may be open, and how many snapshots are kept.
        idle_seconds: After which a session that was not used makes room for a new one.
        memory: Bytes for states.
        folder: Where snapshots go. None: they are kept in memory and end with the process.
    """

    def __init__(self, engine: Engine, *, most: int, idle_seconds: float, memory: int, folder: Path | None) -> None:
        self.engine, self.most, self.idle_seconds, self.folder = engine, most, idle_seconds, folder
        columns = engine.table.codec.columns
        self.pool = SessionPool(engine.table.model, columns, alarms=engine.alarms, memory=memory)
        self._used: OrderedDict[str, float] = OrderedDict()  # the one that was not used for the longest first
        self._snapshots: dict[str, Mapping[str, Any]] = {}
        self._on_disk: set[str] = set()
        self._told: dict[str, dict[str, Any]] = {}  # what clients sent, as they sent it
        self._model = fingerprint(engine.table.model)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._on_disk = {path.stem for path in folder.glob("*.json")}

    def __len__(self) -> int:
        return len(self.pool)

    def open(self, name: str, snapshot: str | None) -> None:
        """Begin a session.

        Raises:
            NotThere: No such snapshot.
            TooMany: As many as allowed are in use.
        """
        saved = None if snapshot is None else self._saved(snapshot)
        if len(self.pool) >= self.most:
            self._drop_idle()
        self.pool.open(name, saved)
        self._used[name] = time.monotonic()
        self._told[name] = dict(saved["told"]) if saved else {}

    def _drop_idle(self) -> None:
        """Close the session that was not used for the longest, if that is long enough."""
        oldest, since = next(iter(self._used.items()))
        if time.monotonic() - since < self.idle_seconds:
            raise TooMany
        self.close(oldest)

    def reading(self, name: str) -> Reading:
        """Give what a session was told.

        Raises:
            NotThere: No such session.
        """
        if name not in self.pool:
            raise NotThere(f"There is no session {name!r}.")
        self._used[name] = time.monotonic()
        self._used.move_to_end(name)
        return self.pool.reading(name)

    def told(self, name: str) -> dict[str, Any]:
        """Give the observed values of a session by name, as they were sent."""
        return self._told[name]

    def close(self, name: str) -> None:
        """Forget a session.

        Raises:
            NotThere: No such session.
        """
        self.reading(name)
        self.pool.close(name)
        del self._used[name], self._told[name]

    def forget(self, name: str) -> None:
        """Close a session, if it is still open."""
        if name in self.pool:
            self.close(name)

    def observe(self, arrivals: Sequence[tuple[str, str, Any]]) -> list[Surprise | Exception]:
        """Take in (session, feature, value) triples together; what cannot be taken in is answered by its error."""
        answers: list[Surprise | Exception | None] = [None] * len(arrivals)
        good: dict[int, tuple[str, str, Any]] = {}
        coming: set[tuple[str, str]] = set()
        for i, (session, name, value) in enumerate(arrivals):
            try:
                reading, coded = self.reading(session), self.engine.value(name, value)
                if self.engine.words.feature(name) in reading.features or (session, name) in coming:
                    raise Conflict(f"{name!r} has been observed already", ("name",))
            except Exception as error:  # each arrival answers for itself
                answers[i] = error
            else:
                coming.add((session, name))
                good[i] = (session, name, coded)
        for i, surprise in zip(good, self.pool.observe(good.values()), strict=True):
            session, name, value = arrivals[i]
            answers[i], self._told[session][name] = surprise, value
        return [a for a in answers if a is not None]

    def predict(self, session: str, names: Sequence[str] | None) -> dict[str, Any]:
        """Describe p(feature | what has arrived) for some features, by default for those that have not arrived."""
        seen = set(self.reading(session).features)
        everything = self.engine.table.codec.names
        asked = [n for i, n in enumerate(everything) if i not in seen] if names is None else list(dict.fromkeys(names))
        for i, name in enumerate(asked):
            self.engine.check(name, None, ("names", i))
        answers = self.pool.ask(session, asked, distributions)
        return self.engine.in_units(dict(zip(asked, answers, strict=True)))

    def save(self, session: str) -> str:
        """Keep a snapshot, on the disk before this returns if there is a folder, and give its name.

        Raises:
            NotThere: No such session.
            TooMany: As many as allowed are kept.
        """
        reading, name = self.reading(session), secrets.token_hex(16)
        if len(self._snapshots) + len(self._on_disk) >= self.most:
            raise TooMany
        written = {**dataclasses.asdict(reading), "told": dict(self._told[session]), "model": self._model}
        if self.folder is None:
            self._snapshots[name] = written
        else:
            write_bytes(self.folder / f"{name}.json", json.dumps(written).encode())
            self._on_disk.add(name)
        return name

    def drop(self, name: str) -> None:
        """Forget a snapshot.

        Raises:
            NotThere: There is none of this name.
        """
        self._require(name)
        if self._snapshots.pop(name, None) is None and self.folder is not None:
            (self.folder / f"{name}.json").unlink(missing_ok=True)
            self._on_disk.discard(name)

    def _require(self, name: str) -> None:
        if name not in self._snapshots and name not in self._on_disk:
            raise NotThere(f"There is no snapshot {name!r}.")

    def _saved(self, name: str) -> Mapping[str, Any]:
        self._require(name)
        if self.folder is not None and name in self._on_disk:  # names given out, never a path that a client made up
            saved: Mapping[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
        else:
            saved = self._snapshots[name]
        if saved.get("model") != self._model:
            raise InputError(f"Snapshot {name!r} was taken of another model.")
        return saved


def fingerprint(model: DEformer) -> str:
    """Tell a model from all others: by its features and its weights."""
    seen = hashlib.sha256(model.schema.to_json().encode())
    for name, weights in sorted(model.state_dict().items()):
        seen.update(name.encode())
        seen.update(weights.detach().cpu().contiguous().numpy().tobytes())
    return seen.hexdigest()
