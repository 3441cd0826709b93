"""Training from the command line: a source, a preset and changes to it become a model file."""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deformer.api.defaults import by_tokens, suited
from deformer.api.files import check_output, make_folder
from deformer.api.report import report, spell
from deformer.config import ModelConfig, TrainConfig, from_json, paper_config, paper_training
from deformer.data.seeds import generator
from deformer.data.sources import Source, load_source
from deformer.data.table import split, subset
from deformer.errors import CheckpointError, InputError
from deformer.nn.model import new_model
from deformer.tasks.density import nll
from deformer.train.checkpoint import read_header, save
from deformer.train.fit import fit, newest
from deformer.train.process import keep_memory


def train(
    name: str,
    output: Path,
    directory: Path | None,
    resume: bool,
    preset: str,
    network: Mapping[str, Any],
    training: Mapping[str, Any],
    n_report: int,
    data_dir: Path | None,
    device: str,
    devices: int = 1,
    nodes: int = 1,
) -> str:
    """Train, save and report on random test rows; say why the training ended."""
    keep_memory()
    check_output(output, [".safetensors"])
    if directory is not None:
        make_folder(directory)
    limits = check_training(preset, training)  # before data sets are read or downloaded
    source = with_parts(load_source(name, data_dir), limits.seed)
    if (checkpoint := newest(directory) if resume else None) is not None:
        defaults = read_configs(checkpoint, preset)
    elif preset == "paper":
        defaults = paper_config(), limits
    else:  # machines that count other threads must not choose other networks
        defaults = suited(source.train, limits, device, devices, large=nodes > 1)
    network_config, config = configure(defaults, network, training, limits)
    check_memory(network_config)
    model = new_model(source.schema, network_config, config.seed)
    assert source.validation is not None
    history = fit(
        model,
        source.train,
        config,
        validation=source.validation,
        directory=directory,
        resume=resume,
        device=device,
        devices=devices,
        nodes=nodes,
        progress=sys.stderr.isatty(),
    )
    last = history.points[-1] if history.points else None
    notes: dict[str, Any] = {"source": name, "stopped": history.stopped, "training": dataclasses.asdict(config)}
    if last is not None:
        notes |= {"steps": last.step, "minutes": last.minutes, "rows_seen": last.rows_seen}
    save(output, model, notes)
    if history.stopped == "interrupted":
        print(f"interrupted; the best weights so far are in {output}", file=sys.stderr)
        return history.stopped
    part, rows = ("test", source.test) if source.test is not None else ("validation", source.validation)
    chosen = subset(rows, n_report, generator(config.seed, "report"))
    figures = report(nll(model, chosen, n_orders=4, generator=generator(config.seed, "orders")), len(model.schema))
    save(output, model, {**notes, f"{part}_scores": figures})
    print(f"{part} rows: {spell(figures)}")
    return history.stopped


def check_training(preset: str, training: Mapping[str, Any]) -> TrainConfig:
    """Apply what was named to a preset's training, whose limits are meant.

    Raises:
        InputError: An unknown preset, an impossible value, or no limit.
    """
    if preset not in ("default", "paper"):
        raise InputError(f"preset must be default or paper, not {preset!r}.")
    named = _named(training)
    return paper_training(**{"epochs": None, **named}) if preset == "paper" else TrainConfig(**named)


def read_configs(checkpoint: Path, preset: str = "default") -> tuple[ModelConfig, TrainConfig]:
    """Give the network and the training of a run that goes on.

    Args:
        preset: What the run is said to have begun with; "default" takes any.

    Raises:
        CheckpointError: It is no checkpoint of a run, or of one that did not begin with the paper's preset.
    """
    header = read_header(checkpoint)
    try:
        network = from_json(ModelConfig, header["config"])
        training = from_json(TrainConfig, json.dumps(header["training"]))
    except (KeyError, InputError) as error:
        raise CheckpointError(f"{checkpoint} has no usable header: {error}") from error
    papers = paper_config().norm  # which no option changes
    if preset == "paper" and network.norm != papers:
        raise CheckpointError(f"{checkpoint} is of a run whose norm is {network.norm!r}, not {papers!r}.")
    return network, training


def configure(
    defaults: tuple[ModelConfig, TrainConfig],
    network: Mapping[str, Any],
    training: Mapping[str, Any],
    limits: TrainConfig,
) -> tuple[ModelConfig, TrainConfig]:
    """Change what was named, and when the training ends.

    Raises:
        InputError: An impossible value.
    """
    ends = {name: getattr(limits, name) for name in ("minutes", "epochs", "steps")}
    changes = by_tokens(ends | _named(training))
    return dataclasses.replace(defaults[0], **_named(network)), dataclasses.replace(defaults[1], **changes)


def _named(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in changes.items() if value is not None}


def check_memory(config: ModelConfig) -> None:
    """Refuse, before anything is allocated, blocks that this machine could not train.

    Raises:
        InputError: Weights, gradients and two moments in float32 exceed the physical memory.
    """
    if not hasattr(os, "sysconf"):
        return
    weights = config.n_layers * config.d_model * (4 * config.d_model + 2 * config.width_ff)
    needed, there = 4 * 4 * weights / 1e9, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if needed > there:
        raise InputError(
            f"{config.n_layers} layers of width {config.d_model} need {needed:,.0f} GB to train; this machine has "
            f"{there:,.0f} GB. Choose a smaller d_model or n_layers."
        )


def with_parts(source: Source, seed: int) -> Source:
    """Hold out a tenth of the rows for validation, where a source has none of its own."""
    if source.validation is not None:
        return source
    train_rows, validation = split(source.train, 0.1, generator(seed, "split"))
    return dataclasses.replace(source, train=train_rows, validation=validation)
