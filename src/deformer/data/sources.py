"""Data sets by name, and tables by path."""

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pooch
import torch

from deformer.data.files import read_arrays, read_table
from deformer.data.infer import infer_schema, to_rows
from deformer.data.schema import Binary, Categorical, Ordinal, Schema, image_schema, table_schema
from deformer.data.seeds import generator
from deformer.data.table import Rows, as_rows, split
from deformer.errors import InputError, SourceError

MNIST_HOME = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
MNIST_FILES = {
    "train": ("ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d", 50_000),
    "valid": ("1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2", 10_000),
    "test": ("e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c", 10_000),
}


@dataclass(frozen=True)
class Source:
    """Rows to learn from, to choose by and to report on."""

    name: str
    train: Rows
    validation: Rows | None = None
    test: Rows | None = None

    @property
    def schema(self) -> Schema:
        return self.train.schema


def load_source(
    name: str, data_dir: str | Path | None = None, *, schema: Schema | None = None, seed: int = 0
) -> Source:
    """Load a data set by name, or a table by path.

    Files are looked for in `data_dir`, in the folder named by the environment variable DEFORMER_DATA and in the
    user's cache; files that are in none of them are downloaded to the cache, if they are public.

    Args:
        name: "digits", "digits-binary", "mnist-binarized", "notmnist", or a path that ends in .npy, .npz, .parquet,
            .csv, .tsv, .txt or .data, the last four also with .gz behind.
        data_dir: Folder that is looked into first. None: only the others are.
        schema: Schema of a table. None: inferred from its values.
        seed: Seed of the random split of a data set without its own.

    Raises:
        InputError: An unknown name, or a table that cannot be read.
        SourceError: The data set was not found; the message says which file to put where.

    Examples:
        >>> load_source("digits").train.values.shape
        torch.Size([1438, 64])
    """
    if name in SOURCES:
        return SOURCES[name](_folders(data_dir), seed)
    path = Path(name)
    if not path.suffix:
        raise InputError(f"No source is called {name!r}; there are {', '.join(SOURCES)}, and paths of tables.")
    return _splits(path, schema) or Source(name, _table(path, schema))


def _table(path: Path, schema: Schema | None) -> Rows:
    if schema is None:
        table = read_table(path)
        return to_rows(table, infer_schema(table))
    labels = [f.name for f in schema.features if isinstance(f.domain, Categorical) and f.domain.labels is not None]
    return to_rows(read_table(path, labels), schema)


def _splits(path: Path, schema: Schema | None) -> Source | None:
    """Read an .npz that holds its own splits, all of 0 and 1."""
    if path.suffix != ".npz" or not path.is_file():
        return None
    try:
        arrays = read_arrays(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"Cannot read {path}: {error}") from error
    if arrays.get("train", np.empty(0)).ndim != 2:
        return None
    if schema is None:
        schema = table_schema([Binary()] * arrays["train"].shape[1])
    parts = {k: as_rows(arrays[k], schema) for k in ("train", "valid", "test") if k in arrays}
    return Source(str(path), parts["train"], parts.get("valid"), parts.get("test"))


def _folders(data_dir: str | Path | None) -> list[Path]:
    named = [data_dir, os.environ.get("DEFORMER_DATA")]
    return [Path(folder) for folder in named if folder] + [cache()]


def cache() -> Path:
    """Give the folder that downloads go to."""
    return Path(pooch.os_cache("deformer"))


def _find(folders: list[Path], *names: str) -> Path | None:
    """Find the first of some files in the folders, or one level below."""
    for folder in folders:
        for name in names:
            for path in (folder / name, folder / "mnist" / name, folder / "ood" / name):
                if path.is_file():
                    return path
    return None


def _digits(binary: bool, seed: int) -> Source:
    from sklearn.datasets import load_digits  # costs a second to import

    pixels = load_digits().data
    schema = image_schema(8, 8, Binary() if binary else Ordinal(17))
    rows = as_rows((pixels >= 8 if binary else pixels).astype(np.uint8), schema)
    train, rest = split(rows, 0.2, generator(seed, "digits"))
    validation, test = split(rest, 0.5, generator(seed, "digits", 1))
    return Source("digits-binary" if binary else "digits", train, validation, test)


def _mnist(folders: list[Path], seed: int) -> Source:
    packed = _find(folders, "binarized_mnist.npz")
    if packed is None:
        arrays = {part: _amat(folders, part) for part in MNIST_FILES}
    else:
        arrays = {part: _pixels(a) for part, a in _read_packed(packed).items() if part in MNIST_FILES}
    schema = image_schema(28, 28, Binary())
    parts = {}
    for part, (_, n) in MNIST_FILES.items():
        if part not in arrays:
            raise SourceError(f"{packed} holds no {part!r}; binarized MNIST has {', '.join(MNIST_FILES)}.")
        if arrays[part].shape != (n, 784):
            raise SourceError(f"binarized MNIST {part} must be {n} x 784; {arrays[part].shape} was found.")
        parts[part] = as_rows(torch.from_numpy(arrays[part]), schema)
    return Source("mnist-binarized", parts["train"], parts["valid"], parts["test"])


def _read_packed(path: Path) -> dict[str, npt.NDArray[np.uint8]]:
    try:
        return read_arrays(path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise SourceError(f"Cannot read {path}: {error}") from error


def _pixels(a: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Unpack 784 pixels, eight of which may share a byte."""
    return np.unpackbits(a, axis=1) if a.ndim == 2 and a.shape[1] == 98 else a


def _amat(folders: list[Path], part: str) -> npt.NDArray[np.uint8]:
    name = f"binarized_mnist_{part}.amat"
    path = _find(folders, name)
    if path is not None:
        text = path.read_bytes()
    else:
        try:
            text = Path(pooch.retrieve(MNIST_HOME + name, f"sha256:{MNIST_FILES[part][0]}", name, cache())).read_bytes()
        except (OSError, ValueError) as error:
            looked = ", ".join(str(f) for f in folders)
            raise SourceError(
                f"{name} is in none of {looked} and cannot be downloaded from {MNIST_HOME}; "
                f"put binarized_mnist.npz or the three .amat files there, or name their folder with --data-dir."
            ) from error
    digits = np.frombuffer(text, dtype=np.uint8)
    bits: npt.NDArray[np.uint8] = digits[(digits == 48) | (digits == 49)] - 48
    if len(bits) % 784:
        raise SourceError(f"{name} is cut short: it holds {len(bits)} pixels, no whole number of images.")
    return bits.reshape(-1, 784)


def _notmnist(folders: list[Path], seed: int) -> Source:
    path = _find(folders, "notmnist_10k.npz")
    if path is None:
        looked = ", ".join(str(f) for f in folders)
        raise SourceError(f"notmnist_10k.npz (28 x 28 letters, bit-packed) is in none of {looked}; put it there.")
    letters = [a for a in map(_pixels, _read_packed(path).values()) if a.ndim == 2 and a.shape[1] == 784]
    if not letters:
        raise SourceError(f"{path} holds no letters: an array of 98 bytes or 784 pixels each.")
    return Source("notmnist", as_rows(torch.from_numpy(letters[0]), image_schema(28, 28, Binary())))


SOURCES: dict[str, Callable[[list[Path], int], Source]] = {
    "digits": lambda folders, seed: _digits(False, seed),
    "digits-binary": lambda folders, seed: _digits(True, seed),
    "mnist-binarized": _mnist,
    "notmnist": _notmnist,
}
