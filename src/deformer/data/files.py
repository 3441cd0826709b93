"""Files of rows: text, Parquet, .npy and .npz, as columns of numbers and labels."""

import sys
import zipfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from deformer.data.chunks import SUFFIXES, Layout, read_chunks, suffix_of
from deformer.data.libraries import names_of_array
from deformer.errors import InputError

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


def read_table(path: Path, labels: Collection[str] = ()) -> Table:
    """Read one table.

    Args:
        labels: Columns of text to read as it is, whatever it looks like.

    Raises:
        InputError: The file is missing, unreadable, truncated, empty or of an unknown kind.
    """
    frame = partial(_frame, labels=labels)
    readers: dict[str, Callable[[Path], Table]] = {**dict.fromkeys(SUFFIXES, frame), ".npy": _npy, ".npz": _npz}
    reader = readers.get(suffix_of(path))
    if reader is None:
        raise InputError(f"{path} is none of {', '.join(readers)}.")
    try:
        table = reader(path)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist.") from error
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"Cannot read {path}: {' '.join(str(error).split())}") from error
    if not table.columns or not len(table.columns[0]):
        raise InputError(f"{path} holds no rows.")
    return table


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read all arrays of an .npz; bit-packed ones, whose number of columns stands under "d", are unpacked."""
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        raise ValueError("it holds a single array; call it .npy")
    with loaded as file:
        arrays = {name: file[name] for name in file.files}
    width = arrays.get("d")
    if width is None or width.size != 1 or not np.issubdtype(width.dtype, np.integer):
        return arrays
    del arrays["d"]
    if any(a.ndim == 2 and a.dtype != np.uint8 for a in arrays.values()):
        raise ValueError('it holds a number of columns "d", but arrays that are not bit-packed')
    width = width.item()
    return {name: np.unpackbits(a, axis=1)[:, : int(width)] if a.ndim == 2 else a for name, a in arrays.items()}


def table_of(array: npt.NDArray[Any]) -> Table:
    """Turn a two-dimensional array into named columns."""
    if array.ndim != 2 or not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise InputError(f"Expected an array of numbers, rows x columns; it is {array.dtype}, shape {array.shape}.")
    return Table(tuple(names_of_array(array.shape[1])), tuple(array.T.astype(np.float64)))


def _npy(path: Path) -> Table:
    loaded = np.load(path, allow_pickle=False)
    if not isinstance(loaded, np.ndarray):
        raise ValueError("it holds several arrays by name; call it .npz")
    return table_of(loaded)


def _npz(path: Path) -> Table:
    arrays = {name: a for name, a in read_arrays(path).items() if a.ndim == 2}
    if "X" in arrays:
        return table_of(arrays["X"])
    if len(arrays) != 1:
        raise InputError(f"{path} holds {len(arrays)} two-dimensional arrays; name the one with the rows 'X'.")
    return table_of(next(iter(arrays.values())))


def _frame(path: Path, labels: Collection[str]) -> Table:
    """Read text or Parquet as tables are read everywhere; whatever are no numbers are labels, as text."""
    frame = pd.concat(read_chunks(path, sys.maxsize, Layout(labels)), ignore_index=True)
    columns = []
    for _, series in frame.items():
        # The words true and false are labels, whether or not a cell is missing beside them.
        if pd.api.types.is_numeric_dtype(series) and (series.dtype != np.bool_ or path.suffix.lower() == ".parquet"):
            columns.append(series.to_numpy(dtype=np.float64, na_value=np.nan))
        else:
            spelled = series.astype(object).where(series.notna(), None)
            columns.append(np.array([None if v is None else str(v).strip() for v in spelled], dtype=object))
    return Table(tuple(str(name).strip() for name in frame.columns), tuple(columns))
