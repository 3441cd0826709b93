"""Tables in files, read and written a chunk at a time, so that they may be larger than memory."""

import csv
import gzip
import io
import itertools
import math
import os
import re
import sys
import uuid
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd

from deformer.data.libraries import from_arrow, names_of_array, replaced
from deformer.errors import InputError

MISSING = [
    *("?", "NA", "N/A", "na", "n/a", "nan", "NaN", "-nan", "-NaN", "null", "NULL", "None", "none", ""),
    *("#N/A", "#N/A N/A", "#NA", "<NA>", "1.#IND", "1.#QNAN", "-1.#IND", "-1.#QNAN"),
]
TEXT = (".csv", ".tsv", ".txt", ".data")
SUFFIXES = (*TEXT, *(f"{suffix}.gz" for suffix in TEXT), ".parquet")
LOOKED_AT = 200  # lines of a text, to see how its numbers are written
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
CODE = re.compile(r"0\d+")  # a postal code or the like, which is no number
NO_PYARROW = "Parquet needs pyarrow: pip install 'deformer[parquet]'."


@dataclass(frozen=True)
class Layout:
    """What is known of a table before it is read.

    Args:
        labels: Columns to read as text whatever they look like, so that no label's type depends on its chunk.
        names: Of columns. A first line of nothing but these is a header.
        header: Whether the first line of a text holds names whatever stands there; else it does unless a number that
            is no name stands there.
        index: A column that names rows, and becomes their index where it is there.
    """

    labels: Collection[str] = ()
    names: Collection[str] = ()
    header: bool = False
    index: str | None = None


def suffix_of(path: Path) -> str:
    """Give the end of a name that tells what the file holds, in lower case; that of a compressed text has two parts."""
    inner = Path(path.stem).suffix if path.suffix.lower() == ".gz" else ""
    return (inner + path.suffix).lower()


def read_chunks(path: Path, n_rows: int, layout: Layout = Layout()) -> Iterator[pd.DataFrame]:
    """Read a table, at most n_rows at a time.

    Text may be compressed by gzip, be separated by commas, or by semicolons or tabs, and then have decimal commas.
    Cells that a line lacks at its end are missing. Whole numbers that begin with a zero are text, as postal codes are.

    Raises:
        InputError: The file is missing, unreadable, empty or of an unknown kind, has lines longer than its first, or
            two columns of one name.
    """
    suffix = suffix_of(path)
    if suffix not in SUFFIXES:
        raise InputError(f"{path} is none of {', '.join(SUFFIXES)}.")
    empty = True
    try:
        for chunk in _parquet(path, n_rows) if suffix == ".parquet" else _text_file(path, n_rows, layout):
            if len(chunk):
                empty = False
                yield chunk.set_index(layout.index) if layout.index in chunk else chunk
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8; convert it first, for example by iconv.") from error
    except (OSError, EOFError, ValueError, csv.Error, zlib.error, pd.errors.ParserError) as error:
        raise InputError(f"Cannot read {path}: {' '.join(str(error).split())}") from error
    if empty:
        raise InputError(f"{path} holds no rows.")


def read_all(path: Path, layout: Layout = Layout()) -> pd.DataFrame:
    """Read a whole table; text of nothing but days or moments, as ISO 8601 writes them, becomes moments."""
    chunks = list(read_chunks(path, sys.maxsize, layout))
    frame = pd.concat(chunks, ignore_index=chunks[0].index.name is None)
    names = [name for name in frame if name not in layout.labels and _holds_moments(frame[name])]
    return replaced(frame, {name: _moments(frame[name]) for name in names})


def _holds_moments(series: "pd.Series[Any]") -> bool:
    known = series.dropna()
    if not len(known) or not pd.api.types.is_string_dtype(known):
        return False
    if not known.astype(str).str.fullmatch(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d.*)?").all():
        return False
    try:
        return bool(_moments(known).notna().all())
    except (ValueError, OverflowError):
        return False


def _moments(series: "pd.Series[Any]") -> "pd.Series[Any]":
    """Read ISO 8601; moments whose offsets differ from row to row, as those of local time do, in UTC."""
    try:
        return pd.to_datetime(series, format="ISO8601")
    except ValueError:
        return pd.to_datetime(series, format="ISO8601", utc=True)


def _text_file(path: Path, n_rows: int, layout: Layout) -> Iterator[pd.DataFrame]:
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        yield from text_chunks(file, n_rows, layout)


def text_chunks(file: io.BufferedIOBase, n_rows: int, layout: Layout) -> Iterator[pd.DataFrame]:
    """Read text as `read_chunks` does, from an open file that can be rewound."""
    lines = (line.decode("utf-8-sig") for line in iter(file.readline, b""))
    n_blank, line = next(((i, line) for i, line in enumerate(lines) if line.strip()), (0, ""))
    unquoted = re.sub('"[^"]*"', "", line)
    if {";", "\t"} & {*unquoted}:  # commas within numbers separate nothing
        cells = re.split("([;\t])", unquoted.strip())
        unquoted = "".join(cell for cell in cells if not DECIMAL_COMMA.fullmatch(cell.strip()))
    separator = max(",;\t", key=unquoted.count)
    reader = csv.reader(itertools.chain([line], lines), delimiter=separator, skipinitialspace=True)
    records = filter(None, reader)  # pandas skips blank lines as well
    as_it_stands, second = next(records, []), next(records, [])
    first = [cell.strip() for cell in as_it_stands]
    known = {*layout.names, layout.index}
    if layout.names and len(first) > len(known):  # before each of them costs memory
        raise ValueError(f"{len(first)} cells in its first line, but {len(layout.names)} columns in fit")
    called = enumerate(zip(first, names_of_array(len(first)), strict=True))
    labels = {i for i, names in called if {*names} & {*layout.labels}}
    looked_at = [first, second, *itertools.islice(records, LOOKED_AT - 2)]
    decimal = "." if separator == "," else _decimal(looked_at, labels)
    file.seek(0)
    if any(second[len(first) :]):  # pandas would drop what has no name
        raise ValueError(f"{len(second)} cells in its second line, but {len(first)} in its first")
    if not first:
        return
    numbers = (_is_number(cell.replace(decimal, ".")) for cell in first)
    headed = layout.header or known.issuperset(first) or not any(numbers)
    twice = [name for name, n in Counter(first).items() if name and n > 1]
    if headed and twice:
        raise ValueError(f"the column name {twice[0]!r} stands more than once")
    names = [name or f"Unnamed: {i}" for i, name in enumerate(first)] if headed else names_of_array(len(first))
    columns = dict(zip(names, itertools.zip_longest(*looked_at[headed:], fillvalue=""), strict=False))
    codes = [name for name, cells in columns.items() if any(CODE.fullmatch(cell.strip()) for cell in cells)]
    options: dict[str, Any] = {"sep": separator, "decimal": decimal, "skipinitialspace": True, "index_col": False}
    options |= {"encoding": "utf-8-sig", "low_memory": False, "skiprows": n_blank, "skip_blank_lines": len(first) > 1}
    options |= {"dtype": dict.fromkeys([*layout.labels, layout.index, *codes], str), "keep_default_na": False}
    if not headed or first != as_it_stands:
        options |= {"names": names, "header": 0 if headed else None}
    options["na_values"] = {name: MISSING for name in names if name != layout.index}
    padded = any(cell != cell.rstrip() for record in looked_at for cell in record)
    with pd.read_csv(file, chunksize=min(n_rows, 2**31 - 1), **options) as reader:
        yield from map(_stripped, reader) if padded else reader


def _stripped(chunk: pd.DataFrame) -> pd.DataFrame:
    """Drop the spaces behind texts; those before are not read."""
    types = pd.api.types
    text = [
        name for name, dtype in chunk.dtypes.items() if types.is_object_dtype(dtype) or types.is_string_dtype(dtype)
    ]
    return replaced(chunk, {n: chunk[n].map(lambda v: v.strip() if isinstance(v, str) else v) for n in text})


def _decimal(records: Iterable[list[str]], labels: Collection[int]) -> str:
    """Say what stands before decimals: a comma where one must, and no number has a point.

    Args:
        labels: Columns that are read as text.
    """
    cells = {cell.strip() for record in records for i, cell in enumerate(record) if i not in labels}
    if any("." in cell and _is_number(cell.replace(",", "")) for cell in cells):
        return "."
    return "," if any(DECIMAL_COMMA.fullmatch(c) and not THOUSANDS.fullmatch(c) for c in cells) else "."


def _is_number(cell: str) -> bool:
    try:
        return not math.isinf(float(cell)) and "_" not in cell  # 2020_01 and inf are names
    except ValueError:
        return False


def _open_parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(NO_PYARROW) from error
    return pyarrow.parquet.ParquetFile(path)


def _parquet(path: Path, n_rows: int) -> Iterator[pd.DataFrame]:
    for batch in _open_parquet(path).iter_batches(min(n_rows, 2**31 - 1)):
        yield from_arrow(batch)


def has_rows(path: Path) -> bool:
    """Say whether a Parquet file holds any.

    Raises:
        InputError: It is none.
    """
    try:
        return bool(_open_parquet(path).metadata.num_rows)
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read {path}: {' '.join(str(error).split())}") from error


def write_out(text: str) -> None:
    """Write to standard output, of which a reader, such as head, may have seen enough."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


class ChunkWriter:
    """Writes a table piece by piece, to standard output as CSV, or to a file that appears when all of it is there."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.temporary = None if path is None else path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}"
        self.parquet: Any = None
        self.first = True

    def __enter__(self) -> "ChunkWriter":
        return self

    def write(self, chunk: pd.DataFrame) -> None:
        """Add rows, with their index if it has a name.

        Raises:
            InputError: The file cannot be written, a chunk's types are not those of the first, or the index and a
                column have one name.
        """
        names = [name for name in chunk.index.names if name is not None]
        named = bool(names)
        for name in names:
            if name in chunk:
                raise InputError(f"Rows are named by {name!r}, which is also a column of this result; rename it.")
        if self.temporary is None or self.path is None:
            write_out(chunk.to_csv(header=self.first, index=named))
        else:
            try:
                if self.path.suffix == ".parquet":
                    self._write_parquet(chunk, named)
                else:
                    chunk.to_csv(self.temporary, mode="a", header=self.first, index=named)
            except OSError as error:
                raise InputError(f"Cannot write {self.path}: {error.strerror or error}.") from error
        self.first = False

    def _write_parquet(self, chunk: pd.DataFrame, with_index: bool) -> None:
        import pyarrow
        import pyarrow.parquet

        try:
            table = pyarrow.Table.from_pandas(chunk, preserve_index=with_index)
            if self.parquet is None:
                self.parquet = pyarrow.parquet.ParquetWriter(self.temporary, table.schema)
            self.parquet.write_table(table.cast(self.parquet.schema))
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, pyarrow.ArrowNotImplementedError) as error:
            needs = "Parquet needs one type for all of a column, CSV does not"
            raise InputError(f"Cannot write {self.path}: {error}; {needs}.") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.temporary is None or self.path is None:
            return
        try:
            if self.parquet is not None:
                self.parquet.close()
            if error is None and self.temporary.exists():
                with self.temporary.open("rb+") as file:  # lest a loss of power leave the name without the rows
                    os.fsync(file.fileno())
                os.replace(self.temporary, self.path)
        except OSError as failure:
            raise InputError(f"Cannot write {self.path}: {failure.strerror or failure}.") from failure
        finally:
            self.temporary.unlink(missing_ok=True)
