"""Optimisers of the recipes, and their state as named tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Muon, Optimizer

from deformer.config import TrainConfig
from deformer.nn.model import DEformer


def make_optimisers(model: DEformer, config: TrainConfig) -> list[Optimizer]:
    """Make one Adam, or Muon for the matrices of the blocks and Adam for all else."""
    betas = (config.betas[0], config.betas[1])
    if config.recipe == "adam":
        return [Adam(model.parameters(), lr=config.lr, betas=betas, eps=config.eps)]
    parts = [model.backbone] if model.neighbours is None else [model.backbone, model.neighbours]
    matrices = [p for part in parts for p in part.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    muon = Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay, adjust_lr_fn="original")
    return [muon, AdamW(others, lr=config.lr, betas=betas, eps=config.eps, weight_decay=0.0)]


def set_rates(optimisers: list[Optimizer], factor: float) -> None:
    """Set every rate to a multiple of the one it began with."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group.setdefault("first_lr", group["lr"])
            group["lr"] = group["first_lr"] * factor


def optimiser_tensors(optimisers: list[Optimizer]) -> dict[str, Tensor]:
    """Name every tensor of the optimisers' state."""
    return {
        f"training.{i}.{p}.{name}": torch.as_tensor(value)
        for i, optimiser in enumerate(optimisers)
        for p, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimisers(optimisers: list[Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimiser_tensors` named."""
    for i, optimiser in enumerate(optimisers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            kind, _, rest = key.partition(f"training.{i}.")
            if not kind and rest:
                p, _, name = rest.partition(".")
                state.setdefault(int(p), {})[name] = tensor
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
