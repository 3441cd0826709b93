"""Sessions of the service: who is open, since when, and snapshots that outlive the process."""

import dataclasses
import hashlib
import json
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deformer.api.service.engine import Engine, FieldError, apart, distributions
from deformer.errors import InputError
from deformer.nn.model import DEformer
from deformer.tasks.pool import SessionPool
from deformer.tasks.streaming import Reading, Surprise
from deformer.train.checkpoint import write_bytes

LOG = logging.getLogger(__name__)
SNAPSHOT = re.compile("[0-9a-f]{32}")


class NotThere(Exception):
    """There is no such session or snapshot."""


class TooMany(Exception):
    """No more sessions are opened, or snapshots kept."""


class NoRoom(Exception):
    """A snapshot could not be written, or removed."""


class Conflict(FieldError):
    """The session has that value already."""


class Sessions:
    """The open sessions of a model. Everything here is called on one thread.

    Args:
        most: How many may be open, and how many snapshots are kept.
        idle_seconds: After which a session that was not used is closed when the next one begins.
        snapshot_seconds: After which a snapshot makes room for a new one.
        memory: Bytes for states.
        folder: Where snapshots go. None: they are kept in memory and end with the process.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        most: int,
        idle_seconds: float,
        snapshot_seconds: float,
        memory: int,
        folder: Path | None,
    ) -> None:
        self.engine, self.most, self.folder = engine, most, folder
        self.idle_seconds, self.snapshot_seconds = idle_seconds, snapshot_seconds
        self.pool = SessionPool(engine.table.model, engine.table.codec, alarms=engine.alarms, memory=memory)
        self._used: OrderedDict[str, float] = OrderedDict()  # the one that was not used for the longest first
        self._snapshots: dict[str, Mapping[str, Any]] = {}  # those that are not on the disk
        self._saved_at: OrderedDict[str, float] = OrderedDict()  # of every snapshot, the oldest first
        self._told: dict[str, dict[str, Any]] = {}  # what clients sent, as they sent it
        self._model = fingerprint(engine.table.model)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            found = [path for path in folder.glob("*.json") if SNAPSHOT.fullmatch(path.stem)]
            times = sorted((path.stat().st_mtime, path.stem) for path in found)
            self._saved_at = OrderedDict((name, saved) for saved, name in times)

    def __len__(self) -> int:
        return len(self.pool)

    def open(self, name: str, snapshot: str | None) -> None:
        """Begin a session.

        Raises:
            NotThere: No such snapshot.
            TooMany: As many as allowed are in use.
        """
        saved = None if snapshot is None else self._saved(snapshot)
        self._drop_idle()
        if len(self.pool) >= self.most:
            raise TooMany
        self.pool.open(name, saved)
        self._used[name] = time.monotonic()
        self._told[name] = dict(saved["told"]) if saved else {}

    def _drop_idle(self) -> None:
        """Close the sessions that were not used for long: clients may leave theirs behind."""
        last = time.monotonic() - self.idle_seconds
        while self._used and next(iter(self._used.values())) <= last:
            self.close(next(iter(self._used)))

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
        return dict(self._told[name])

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
                reading = self.reading(session)
                self.engine.check_arrival(name, value)
                if self.engine.words.feature(name) in reading.features or (session, name) in coming:
                    raise Conflict(f"{name!r} has been observed already", ("name",))
            except Exception as error:  # each arrival answers for itself
                answers[i] = error
            else:
                coming.add((session, name))
                good[i] = (session, name, value)
        for i, surprise in zip(good, self.pool.observe(good.values()), strict=True):
            session, name, value = arrivals[i]
            answers[i], self._told[session][name] = surprise, value
        return [a for a in answers if a is not None]

    def targets(self, session: str, names: Sequence[str] | None) -> list[list[str]]:
        """Say of which features to ask together: all that have not arrived, and each that has on its own.

        Args:
            names: None: all that have not arrived.
        """
        everything = self.engine.table.codec.names
        seen = {everything[i] for i in self.reading(session).features}
        asked = [n for n in everything if n not in seen] if names is None else list(dict.fromkeys(names))
        for i, name in enumerate(asked):
            self.engine.check(name, None, ("names", i))
        return apart(asked, seen)

    def predict(self, session: str, names: Sequence[str]) -> dict[str, Any]:
        """Describe p(feature | what has arrived beside it) for some features."""
        self.reading(session)
        answers = self.pool.ask(session, names, distributions)
        return self.engine.in_units(dict(zip(names, answers, strict=True)))

    def save(self, session: str, name: str) -> None:
        """Keep a snapshot under a new name, on the disk before this returns if there is a folder.

        Args:
            name: 32 hexadecimal digits, which nobody guesses.

        Raises:
            NotThere: No such session.
            TooMany: As many as allowed are kept.
            NoRoom: It could not be written, nor an old one removed.
        """
        reading = self.reading(session)
        if len(self._saved_at) >= self.most:
            self._drop_oldest()
        written = {**dataclasses.asdict(reading), "told": dict(self._told[session]), "model": self._model}
        if self.folder is None:
            self._snapshots[name] = written
        else:
            try:
                write_bytes(self.folder / f"{name}.json", json.dumps(written).encode())
            except InputError as error:  # names the folder, which is none of the client's business
                LOG.error("A snapshot is lost: %s", error)
                raise NoRoom from error
        self._saved_at[name] = time.time()

    def _drop_oldest(self) -> None:
        """Forget the oldest snapshot, if it is old enough."""
        oldest, saved = next(iter(self._saved_at.items()))
        if time.time() - saved < self.snapshot_seconds:
            raise TooMany
        self.drop(oldest)

    def drop(self, name: str) -> None:
        """Forget a snapshot.

        Raises:
            NotThere: There is none of this name.
            NoRoom: The disk will not let go of it.
        """
        if name not in self._saved_at:  # names given out, never a path that a client made up
            raise NotThere(f"There is no snapshot {name!r}.")
        if self.folder is not None:
            try:
                (self.folder / f"{name}.json").unlink(missing_ok=True)
            except OSError as error:
                LOG.error("A snapshot stays: %s", error)
                raise NoRoom from error
        self._snapshots.pop(name, None)
        del self._saved_at[name]

    def _saved(self, name: str) -> Mapping[str, Any]:
        saved: Mapping[str, Any] | None = self._snapshots.get(name)
        if self.folder is not None and name in self._saved_at:
            saved = self._read(self.folder / f"{name}.json")
        if saved is None:
            raise NotThere(f"There is no snapshot {name!r}.")
        if saved.get("model") != self._model:
            raise InputError(f"Snapshot {name!r} was taken of another model.")
        return saved

    def _read(self, path: Path) -> dict[str, Any] | None:
        """Read a snapshot from the disk; None if it is gone or damaged."""
        try:
            saved = json.loads(path.read_text())
            return {**saved, "told": dict(saved["told"])}
        except FileNotFoundError:  # somebody else took it away
            del self._saved_at[path.stem]
        except (OSError, ValueError, KeyError, TypeError) as error:  # it stays, for whoever can mend or delete it
            LOG.error("Snapshot %s cannot be read: %r", path.stem, error)
        return None


def fingerprint(model: DEformer) -> str:
    """Tell a model from all others: by its features and its weights."""
    seen = hashlib.sha256(model.schema.to_json().encode())
    for name, weights in sorted(model.state_dict().items()):
        seen.update(name.encode())
        seen.update(weights.detach().cpu().contiguous().numpy().tobytes())
    return seen.hexdigest()
