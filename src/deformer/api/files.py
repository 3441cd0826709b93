"""Models and rows from files, results into files or onto standard output."""

import csv
import io
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path

import numpy as np
from torch import Tensor

from deformer.api.pretrained import SHIPPED, shipped_path
from deformer.data.chunks import NO_PYARROW, write_out
from deformer.data.schema import Categorical, Continuous, Domain, Schema
from deformer.data.sources import load_source
from deformer.data.table import Rows
from deformer.errors import InputError
from deformer.nn.model import DEformer
from deformer.train.checkpoint import load, read_header, write_bytes
from deformer.train.process import choose_device, keep_memory


def model_path(name: str) -> Path:
    """Find a model by the name under which it ships, else take the name for a path."""
    return shipped_path(name) if name in SHIPPED else Path(name)


def is_table(name: str) -> bool:
    """Say whether a model was learned from a table, with codes for its columns."""
    return "codec" in read_header(model_path(name))


def open_model(name: str, device: str = "auto") -> DEformer:
    """Load a model, by path or by the name under which it ships, onto a device, ready to answer."""
    keep_memory()
    return load(model_path(name)).to(choose_device(device)).eval()


def read_rows(model: DEformer, name: str, data_dir: Path | None, part: str = "test") -> Rows:
    """Read a part of a source, or all of one that is not split, under a model's schema.

    Raises:
        InputError: An unknown source or part, or rows of another schema.
    """
    source = load_source(name, data_dir, schema=model.schema)
    if source.schema != model.schema:
        pairs = zip_longest(source.schema.features, model.schema.features)
        theirs, ours = next((a, b) for a, b in pairs if a != b)
        raise InputError(f"{name} follows another schema than the model: it has {theirs} where the model has {ours}.")
    parts = {"train": source.train, "validation": source.validation, "test": source.test}
    there = {key: rows for key, rows in parts.items() if rows is not None}
    if list(there) == ["train"]:
        return source.train
    if part not in there:
        raise InputError(f"{name} has no part {part!r}; it has {', '.join(there)}.")
    return there[part]


def check_output(path: Path | None, suffixes: Sequence[str]) -> None:
    """Find out before any work whether a result can be written.

    Raises:
        InputError: An unknown suffix, a folder that is missing or takes no files, or Parquet without pyarrow.
    """
    if path is None:
        return
    if path.suffix not in suffixes:
        raise InputError(f"{path} must end in {' or '.join(suffixes)}.")
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise InputError(NO_PYARROW)
    if not path.parent.is_dir():
        raise InputError(f"Cannot write {path}: there is no folder {path.parent}.")
    if path.is_dir():
        raise InputError(f"Cannot write {path}: it is a folder.")
    _try_writing(path.parent, path)


def make_folder(path: Path) -> None:
    """Make a folder for results, unless it is there.

    Raises:
        InputError: It cannot be made or takes no files.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Cannot make the folder {path}: {error.strerror or error}.") from error
    _try_writing(path, path)


def _try_writing(folder: Path, goal: Path) -> None:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"Cannot write {goal}: {error.strerror or error}.") from error


def write_rows(values: Tensor, schema: Schema, output: Path | None) -> None:
    """Write rows in the units and labels of the data: .npz holds X, anything else is CSV."""
    if output is not None and output.suffix == ".npz":
        buffer = io.BytesIO()
        np.savez_compressed(buffer, X=values.cpu().numpy())
        write_bytes(output, buffer.getvalue())
        return
    spelled = [[_spell(v, f.domain) for v, f in zip(row, schema.features, strict=True)] for row in values.tolist()]
    write_csv(schema.names, spelled, output)


def write_csv(header: Sequence[str], lines: Sequence[Sequence[object]], output: Path | None) -> None:
    """Write a CSV to a file, at once, or to standard output."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(header)
    table.writerows(lines)
    if output is not None:
        write_bytes(output, text.getvalue().encode())
    else:
        write_out(text.getvalue())


def _spell(value: float, domain: Domain) -> str:
    if isinstance(domain, Categorical) and domain.labels is not None:
        return domain.labels[int(value)]
    return repr(value) if isinstance(domain, Continuous) else f"{value:.6g}"
