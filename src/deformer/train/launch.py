"""Where a training runs: its devices, the processes on them, and how exact their products are."""

import os
import sys
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy

from deformer.config import TrainConfig
from deformer.errors import InputError
from deformer.train.process import bfloat16_is_fast, choose_device


def launch(config: TrainConfig, device: str, devices: int, nodes: int) -> Fabric:
    """Set up devices; of several, each in a process of its own.

    Raises:
        InputError: Fewer than one device, more GPUs than there are, or several machines that do not know each other.
    """
    if devices < 1 or nodes < 1:
        raise InputError(f"A run needs at least one device on one machine, not {devices} on {nodes}.")
    several = devices * nodes > 1
    if several and torch.distributed.is_initialized():
        raise InputError("A script trains on several devices once; start another one.")
    # A feature that is in no row of a batch leaves weights without a gradient, which DDP must be told of.
    strategy: Any = DDPStrategy(find_unused_parameters=True) if several else "auto"
    kind = choose_device(device).type
    if kind == "cuda" and devices > torch.cuda.device_count():
        raise InputError(f"This machine has {torch.cuda.device_count()} GPUs, not {devices}.")
    # Fabric's own autocast would round the values of the data as well; see `Loss`.
    precision: Any = "64-true" if config.precision == "float64" else "32-true"
    fabric = Fabric(accelerator=kind, devices=devices, num_nodes=nodes, strategy=strategy, precision=precision)
    if several:
        if nodes > 1 and not strategy.cluster_environment.creates_processes_externally:
            _require_address(nodes)
        fabric.launch()
        least = devices * nodes
        if config.rows_per_step is not None and config.rows_per_step < least and fabric.is_global_zero:
            print(f"A step takes {least} rows, one for each process, not {config.rows_per_step}.", file=sys.stderr)
    return fabric


def _require_address(nodes: int) -> None:
    """Refuse machines that would wait for each other without end."""
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if not os.environ.get(name)]
    if missing:
        raise InputError(f"A run on {nodes} machines needs {', '.join(missing)} in the environment of each.")


def wants_bfloat16(config: TrainConfig, kind: str) -> bool:
    """Say whether products are rounded on a kind of device."""
    if config.precision != "auto":
        return config.precision == "bfloat16"
    if kind == "cuda":  # which emulates it before Ampere, slowly
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return kind == "cpu" and bfloat16_is_fast()
