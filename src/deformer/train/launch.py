"""Where a training runs: its devices, the processes on them, and how exact their products are."""

from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy

from deformer.config import TrainConfig
from deformer.errors import InputError
from deformer.train.process import bfloat16_is_fast, choose_device


def launch(config: TrainConfig, device: str, devices: int, nodes: int) -> Fabric:
    """Set up devices; of several, each in a process of its own."""
    if devices < 1 or nodes < 1:
        raise InputError(f"A run needs at least one device on one machine, not {devices} on {nodes}.")
    several = devices * nodes > 1
    if several and torch.distributed.is_initialized():
        raise InputError("A script trains on several devices once; start another one.")
    # A feature that is in no row of a batch leaves weights without a gradient, which DDP must be told of.
    strategy: Any = DDPStrategy(find_unused_parameters=True) if several else "auto"
    kind = choose_device(device).type
    # Fabric's own autocast would round the values of the data as well; see `Loss`.
    precision: Any = "64-true" if config.precision == "float64" else "32-true"
    fabric = Fabric(accelerator=kind, devices=devices, num_nodes=nodes, strategy=strategy, precision=precision)
    if several:
        fabric.launch()
    return fabric


def wants_bfloat16(config: TrainConfig, kind: str) -> bool:
    """Say whether products are rounded on a kind of device."""
    if config.precision != "auto":
        return config.precision == "bfloat16"
    if kind == "cuda":  # which emulates it before Ampere, slowly
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return kind == "cpu" and bfloat16_is_fast()
