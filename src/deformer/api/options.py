"""Options that several commands share, and the files that may set them."""

import json
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from deformer.errors import InputError


class Device(StrEnum):
    auto, cpu, cuda = "auto", "cpu", "cuda"


class Strategy(StrEnum):
    draw, mean, mode = "draw", "mean", "mode"


class Engine(StrEnum):
    local, ray = "local", "ray"


PARTS = ("train", "validation", "test")


def _check_part(part: str) -> str:
    """Refuse what is no part of any data set, also where rows are not split and the part does not matter."""
    if part not in PARTS:
        raise InputError(f"A data set has no part {part!r}; it has {', '.join(PARTS)}.")
    return part


def _read_config(context: Any, path: Path | None) -> Path | None:
    """Take defaults of options from a TOML or JSON file."""
    if path is None:
        return None
    try:
        text = path.read_text()
        settings = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read {path}: {error}") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path} must hold names of options and their values.")
    settings = {str(key).replace("_", "-"): value for key, value in settings.items()}
    known = {max(p.opts, key=len).lstrip("-"): str(p.name) for p in context.command.params}
    del known["config"]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise InputError(f"{path} sets {unknown[0]!r}; this command knows {', '.join(sorted(known))}.")
    given = {known[name]: value for name, value in settings.items()}
    context.default_map = {**(context.default_map or {}), **given}
    return path


Model = Annotated[
    str, typer.Option("--model", "-m", help="A file written by `deformer fit` or `train`, or a shipped model.")
]
Seed = Annotated[int, typer.Option(help="Seed of all random draws.", min=0, max=2**63 - 1)]
On = Annotated[Device, typer.Option(help="Where to compute.")]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", help="TOML or JSON file with defaults for these options.", callback=_read_config, is_eager=True
    ),
]
DataDir = Annotated[Path | None, typer.Option(help="Data folder, searched before DEFORMER_DATA and the user's cache.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="File to write. Default: CSV on standard output.")]
Input = Annotated[
    str,
    typer.Argument(
        help="A .csv, .tsv, .npy, .npz or .parquet file, a data set, or in score and impute a folder of .parquet files."
    ),
]
Part = Annotated[str, typer.Option(help="Part of a split data set: train, validation or test.", callback=_check_part)]
Rows = Annotated[int | None, typer.Option(help="Score only this many rows, drawn at random.", min=1)]
By = Annotated[Engine, typer.Option(help="For a folder of Parquet files: local, or ray for many workers.")]
Workers = Annotated[int, typer.Option(help="Ray workers, each with a copy of the model.", min=1)]
Orders = Annotated[int, typer.Option(help="Random orders per row.", min=1, max=10_000)]
