"""Tables in folders of Parquet files: one output part for every input part, on one machine or on a cluster."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deformer.api import table_commands
from deformer.api.files import make_folder
from deformer.api.tables import TableModel
from deformer.data.chunks import has_rows
from deformer.errors import InputError
from deformer.train.checkpoint import write_bytes


@dataclass(frozen=True)
class Part:
    """One file of a table, and where its result goes."""

    path: Path
    output: Path

    @property
    def done(self) -> bool:
        """Say whether there is a result, of the file as it is now, though its own time may be an older one's."""
        if not self.output.exists():
            return False
        now = self.path.stat()
        return self.output.stat().st_mtime_ns >= max(now.st_mtime_ns, now.st_ctime_ns)


@dataclass(frozen=True)
class Job:
    """What is done to every part: a function of the part alone, whoever does it and however often.

    Args:
        model: File of a table model, which every worker can read.
        seed: Of what is drawn; each part draws its own.
    """

    model: str
    device: str
    kind: Literal["score", "impute"]
    n_orders: int = 4
    strategy: str = "draw"
    n_imputations: int = 1
    seed: int = 0

    def open(self) -> TableModel:
        return table_commands.open_table(self.model, self.device)

    def do(self, table: TableModel, part: Part) -> None:
        """Write the result of a part; it appears when all of it is there.

        Raises:
            InputError: The part, which is named, cannot be worked on.
        """
        try:
            self._write(table, part)
        except InputError as error:
            told = str(error)
            raise InputError(told if str(part.path) in told else f"{part.path}: {told}") from error

    def _write(self, table: TableModel, part: Part) -> None:
        if self.kind == "score":
            table_commands.score(table, part.path, part.output, self.n_orders)
        else:
            name = f"{self.seed}/{part.path.name}".encode()
            seed = int.from_bytes(hashlib.blake2b(name, digest_size=6).digest(), "big")
            table_commands.impute(table, part.path, part.output, self.strategy, self.n_imputations, seed)


class Worker:
    """A copy of the model that works on one part after another; what Ray Data maps over."""

    def __init__(self, job: Job) -> None:
        self.job, self.table = job, job.open()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Work on parts; what fails is told in the result, since Ray would wrap an error in its own."""
        failures = []
        for path, output in zip(batch["path"], batch["output"], strict=True):
            try:
                self.job.do(self.table, Part(Path(str(path)), Path(str(output))))
                failures.append("")
            except InputError as error:
                failures.append(str(error))
        return {"failure": np.array(failures)}


def find_parts(folder: Path, output: Path) -> list[Part]:
    """List the parts of a table that hold rows; each result has the name of its part."""
    paths = [path for path in sorted(folder.glob("*.parquet")) if has_rows(path)]
    if not paths:
        raise InputError(f"{folder} holds no Parquet files with rows.")
    return [Part(path, output / path.name) for path in paths]


def run(job: Job, folder: Path, output: Path | None, engine: str = "local", n_workers: int = 2) -> None:
    """Do a job to all parts that have no result yet.

    Raises:
        InputError: No parts, a part that cannot be worked on, no folder for results, an unknown engine, options that
            make no sense, or a model that is none of a table.
    """
    if output is None or output.resolve() == folder.resolve():
        raise InputError("Results of a folder need a folder of their own: give --output.")
    if engine not in ("local", "ray"):
        raise InputError(f"engine must be local or ray, not {engine!r}.")
    table_commands.check_draws(job.strategy, job.n_imputations)  # before anything is written
    parts, table = find_parts(folder, output), job.open()
    make_folder(output)
    _note(job, folder, output / ".job.json")
    if gone := sorted({path.name for path in output.glob("*.parquet")} - {part.output.name for part in parts}):
        print(f"{output} also holds {', '.join(gone)}, which belong to no part now.", file=sys.stderr)
    left = [part for part in parts if not part.done]
    if len(left) < len(parts):
        print(f"{len(parts) - len(left)} of {len(parts)} parts were there already.", file=sys.stderr)
    if left and engine == "ray":
        with_ray(job, left, n_workers)
    else:
        for part in left:
            job.do(table, part)


def _note(job: Job, folder: Path, path: Path) -> None:
    """Keep what the results in a folder are of, so that no other job adds to them.

    Raises:
        InputError: Another job's results are there.
    """
    digest = hashlib.sha256(Path(job.model).read_bytes()).hexdigest()
    written = {**asdict(job), "device": None, "model": digest, "folder": str(folder.resolve())}
    results = any(path.parent.glob("*.parquet"))  # without any, a command that failed may be put right
    if results and path.exists() and {**written, **json.loads(path.read_text())} != written:
        raise InputError(
            f"{path.parent} holds results of another model, of another folder, or of other options: {path.read_text()}"
        )
    write_bytes(path, json.dumps(written).encode())


def with_ray(job: Job, parts: Sequence[Part], n_workers: int) -> None:
    """Share parts among workers of a Ray cluster; the parts of a worker that dies go to others.

    Raises:
        InputError: Ray is not installed, or some parts cannot be worked on; all others are done.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("The engine needs Ray: pip install 'deformer[ray]'.") from error
    items = [{"path": str(p.path.resolve()), "output": str(p.output.resolve())} for p in parts]
    job = replace(job, model=str(Path(job.model).resolve()))
    work = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        Worker,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(n_workers, len(items))),
        num_cpus=1,
    )
    failures = sorted(filter(None, (str(f) for done in work.iter_batches(batch_size=1) for f in done["failure"])))
    if failures:
        raise InputError("; ".join(failures[:5]))
