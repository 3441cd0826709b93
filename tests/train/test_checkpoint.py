import errno
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from deformer.config import ModelConfig
from deformer.data.schema import Binary, Categorical, Continuous, Ordinal, image_schema, table_schema
from deformer.errors import CheckpointError, InputError
from deformer.nn.model import DEformer
from deformer.train import checkpoint
from deformer.train.checkpoint import load, load_weights, read_notes, save

SMALL = ModelConfig(d_model=16, n_layers=1, n_heads=2)
SCHEMAS = {
    "image": image_schema(2, 2, Binary()),
    "table": table_schema([Binary(), Categorical(3), Ordinal(5), Continuous(2.0, 3.0)]),
}


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_saved_is_loaded(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    model = DEformer(SCHEMAS[name], SMALL).to(dtype)
    save(tmp_path / "m.safetensors", model, {"nats": 1.5})
    back = load(tmp_path / "m.safetensors")
    assert (back.schema, back.config) == (model.schema, model.config)
    for (key, a), (_, b) in zip(model.state_dict().items(), back.state_dict().items(), strict=True):
        assert torch.equal(a, b), key
    assert read_notes(tmp_path / "m.safetensors") == {"nats": 1.5}


def test_a_long_header_is_kept_among_the_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "LONGEST_HEADER", 1000)
    path, notes = tmp_path / "m.safetensors", {"labels": ["naïve"] * 500}
    save(path, DEformer(SCHEMAS["table"], SMALL), notes)
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata() is None
    assert load(path).schema == SCHEMAS["table"]
    assert read_notes(path) == notes


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    save(path, DEformer(SCHEMAS["image"], SMALL))
    before = path.read_bytes()

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full_disk)
    with pytest.raises(InputError, match="No space left"):
        save(path, DEformer(SCHEMAS["image"], SMALL))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="asks the system what a descriptor is of")
def test_folders_that_cannot_be_synchronised_take_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync
    codes = [errno.EINVAL, errno.EIO]

    def not_of_folders(at: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{at}"):
            raise OSError(codes.pop(0), "folders are not synchronised")
        fsync(at)

    monkeypatch.setattr(checkpoint.os, "fsync", not_of_folders)
    checkpoint.write_bytes(tmp_path / "a", b"a")
    assert (tmp_path / "a").read_bytes() == b"a"
    with pytest.raises(InputError, match="Cannot write"):
        checkpoint.write_bytes(tmp_path / "b", b"b")


def test_bad_files_give_one_clear_error(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    save(whole, DEformer(SCHEMAS["image"], SMALL))
    contents = {
        "empty": b"",
        "truncated": whole.read_bytes()[:-100],
        "foreign": b"PK\x03\x04 a pickle in a zip",
        "headless": safetensors.torch.save({"a": torch.zeros(1)}),
        "later": safetensors.torch.save({"a": torch.zeros(1)}, {"deformer": json.dumps({"version": 99})}),
        "numberless": safetensors.torch.save({"a": torch.zeros(1)}, {"deformer": json.dumps({"x": 1})}),
        "garbled": safetensors.torch.save({"a": torch.zeros(1)}, {"deformer": "{"}),
        "hollow": safetensors.torch.save({"a": torch.zeros(1)}, {"deformer": json.dumps({"version": 1})}),
    }
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=name) as error:
            load(path)
        assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="absent"):
        load(tmp_path / "absent")


def test_a_mismatch_names_the_tensor() -> None:
    model = DEformer(SCHEMAS["image"], SMALL)
    weights = model.state_dict()
    with pytest.raises(CheckpointError, match="'beginning' has shape .3,.*needs .16,"):
        load_weights(model, {**weights, "beginning": torch.zeros(3)}, "file")
    with pytest.raises(CheckpointError, match="'extra' is unknown"):
        load_weights(model, {**weights, "extra": torch.zeros(3)}, "file")
    with pytest.raises(CheckpointError, match="'beginning' is missing"):
        load_weights(model, {k: t for k, t in weights.items() if k != "beginning"}, "file")
