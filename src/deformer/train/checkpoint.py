"""Checkpoints: safetensors with a JSON header, written whole or not at all."""

import errno
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from deformer import config as configs
from deformer.config import ModelConfig
from deformer.data.schema import Schema
from deformer.errors import CheckpointError, InputError
from deformer.nn.model import DEformer

VERSION = 1
HEADER = "deformer"
NO_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES, errno.EPERM)  # of folders, on some file systems
LONGEST_HEADER = 2**24  # safetensors reads at most 100 MB, and the labels of a large table may be more


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file at once: whoever reads it, even after a crash, sees the old content or the new.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}"  # tempfile's would be readable to us alone
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from error


def _sync_folder(folder: Path) -> None:
    """Let a renamed file survive a loss of power, where folders can be synchronised."""
    if os.name != "posix":
        return
    try:
        at = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(at)
        finally:
            os.close(at)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write named tensors and a JSON header, which if it is long becomes a tensor of bytes."""
    text = json.dumps({"version": VERSION, **header})
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    if long := len(text) > LONGEST_HEADER:  # JSON as it is written here is ASCII
        plain[HEADER] = torch.frombuffer(bytearray(text, "ascii"), dtype=torch.uint8)
    write_bytes(path, safetensors.torch.save(plain, None if long else {HEADER: text}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises:
        CheckpointError: The file is missing, truncated, not ours, or of a later version.
    """
    return _read(path, with_tensors=True)


def read_header(path: Path) -> dict[str, Any]:
    """Read the JSON header alone, with the same checks and errors as `read_tensors`."""
    return _read(path, with_tensors=False)[1]


def _read(path: Path, with_tensors: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names, header = list(file.keys()), (file.metadata() or {}).get(HEADER)
            if header is None and HEADER in names:
                header = file.get_tensor(HEADER).numpy().tobytes()
            tensors = {name: file.get_tensor(name) for name in names if with_tensors and name != HEADER}
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}.") from error
    if header is None:
        raise CheckpointError(f"{path} holds tensors, but no deformer model: its header is missing.")
    try:
        parsed = json.loads(header)
        version = int(parsed["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} has a header that is not deformer's.") from error
    if version > VERSION:
        raise CheckpointError(f"{path} is of version {version}; this deformer reads up to {VERSION}.")
    return tensors, parsed


def save(path: str | Path, model: DEformer, notes: Mapping[str, Any] | None = None) -> None:
    """Write a model's weights with its schema and config.

    Args:
        notes: Anything else to store with them, as JSON: data, recipe, scores.
    """
    write_tensors(Path(path), model.state_dict(), {**describe(model), "notes": dict(notes or {})})


def describe(model: DEformer) -> dict[str, Any]:
    """Give what is needed to build a model anew."""
    return {"schema": model.schema.to_json(), "config": configs.to_json(model.config)}


def load(path: str | Path) -> DEformer:
    """Read a model written by `save` or by a training run.

    Raises:
        CheckpointError: The file is missing, truncated or of another kind, or its tensors do not fit its config.
    """
    tensors, header = read_tensors(Path(path))
    try:
        model = DEformer(Schema.from_json(header["schema"]), configs.from_json(ModelConfig, header["config"]))
    except (KeyError, InputError) as error:
        raise CheckpointError(f"{path} has no usable header: {error}") from error
    weights = {n.removeprefix("model."): t for n, t in tensors.items() if not n.startswith(("training.", "best."))}
    load_weights(model, weights, path)
    return model


def read_notes(path: str | Path) -> dict[str, Any]:
    """Read the notes that were saved beside a model."""
    notes: dict[str, Any] = read_header(Path(path)).get("notes", {})
    return notes


def load_weights(model: DEformer, weights: Mapping[str, Tensor], origin: str | Path) -> None:
    """Put named tensors into a model.

    Raises:
        CheckpointError: A tensor is missing, unknown or of another shape; it is named.
    """
    own = model.state_dict()
    for name in [*own, *weights]:
        if name not in weights or name not in own:
            raise CheckpointError(f"{origin}: tensor {name!r} is {'missing' if name in own else 'unknown'}.")
        if own[name].shape != weights[name].shape:
            raise CheckpointError(
                f"{origin}: tensor {name!r} has shape {tuple(weights[name].shape)}; "
                f"the model needs {tuple(own[name].shape)}."
            )
    dtype = next(iter(weights.values())).dtype
    model.to(dtype).load_state_dict(dict(weights))
