"""Files of rows: .npy, .npz, .csv and .parquet, as columns of numbers and labels."""

import csv
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deformer.errors import InputError

MISSING = frozenset({"", "?", "na", "nan", "n/a", "null", "none"})
Column = npt.NDArray[Any]


@dataclass(frozen=True)
class Table:
    """Named columns of equal length: floats with NaN where missing, or text with None."""

    names: tuple[str, ...]
    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        twice = sorted({n for n in self.names if self.names.count(n) > 1})
        if twice:
            raise InputError(f"Column names must differ; {twice[0]!r} stands more than once.")


def read_table(path: Path) -> Table:
    """Read one table.

    Raises:
        InputError: The file is missing, unreadable, truncated, ragged, empty or of an unknown kind.
    """
    readers: dict[str, Callable[[Path], Table]] = {".csv": _csv, ".parquet": _parquet, ".npy": _npy, ".npz": _npz}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path} is none of {', '.join(readers)}.")
    try:
        table = reader(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist.") from error
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"Cannot read {path}: {' '.join(str(error).split())}") from error
    if not table.columns or not len(table.columns[0]):
        raise InputError(f"{path} holds no rows.")
    return table


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read all arrays of an .npz; bit-packed ones, whose number of columns stands under "d", are unpacked."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    width = arrays.pop("d", None)
    if width is None:
        return arrays
    return {name: np.unpackbits(a, axis=1)[:, : int(width)] if a.ndim == 2 else a for name, a in arrays.items()}


def table_of(array: npt.NDArray[Any], names: Sequence[str] | None = None) -> Table:
    """Turn a two-dimensional array into named columns."""
    if array.ndim != 2 or not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise InputError(f"Expected an array of numbers, rows x columns; it is {array.dtype}, shape {array.shape}.")
    names = [f"x{i}" for i in range(array.shape[1])] if names is None else names
    return Table(tuple(names), tuple(array.T.astype(np.float64)))


def _npy(path: Path) -> Table:
    return table_of(np.load(path, allow_pickle=False))


def _npz(path: Path) -> Table:
    arrays = {name: a for name, a in read_arrays(path).items() if a.ndim == 2}
    if "X" in arrays:
        return table_of(arrays["X"])
    if len(arrays) != 1:
        raise InputError(f"{path} holds {len(arrays)} two-dimensional arrays; name the one with the rows 'X'.")
    return table_of(next(iter(arrays.values())))


def _csv(path: Path) -> Table:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = [[cell.strip() for cell in line] for line in csv.reader(file) if line]
    if not lines:
        raise InputError(f"{path} holds no rows.")
    for number, line in enumerate(lines, 1):
        if len(line) != len(lines[0]):
            raise InputError(f"{path} has {len(line)} cells in line {number}, but {len(lines[0])} in its first.")
    headed = all(_number(cell) is None and cell.lower() not in MISSING for cell in lines[0])
    names = lines[0] if headed else [f"x{i}" for i in range(len(lines[0]))]
    body = lines[1:] if headed else lines
    return Table(tuple(names), tuple(_column([line[c] for line in body]) for c in range(len(names))))


def _column(cells: Sequence[str]) -> Column:
    numbers = [np.nan if cell.lower() in MISSING else _number(cell) for cell in cells]
    if all(number is not None for number in numbers):
        return np.array(numbers, dtype=np.float64)
    return np.array([None if cell.lower() in MISSING else cell for cell in cells], dtype=object)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _parquet(path: Path) -> Table:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError("Reading Parquet needs pyarrow: pip install 'deformer[parquet]'.") from error
    read = pyarrow.parquet.read_table(path)
    columns = []
    for name in read.column_names:
        values = read.column(name).to_pylist()
        if all(v is None or isinstance(v, (int, float)) for v in values):
            columns.append(np.array([np.nan if v is None else float(v) for v in values]))
        else:
            columns.append(np.array([None if v is None else str(v) for v in values], dtype=object))
    return Table(tuple(read.column_names), tuple(columns))
