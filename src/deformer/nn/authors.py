"""Weights of the paper's authors, from the layout of their released module into ours."""

import dataclasses
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from deformer.config import ModelConfig, paper_config
from deformer.data.schema import Binary, Categorical, Domain, image_schema
from deformer.errors import CheckpointError
from deformer.nn.model import DEformer

_BLOCK = {
    "self_attn.out_proj": "mix",
    "linear1": "up",
    "linear2": "down",
    "norm1": "norm_attention",
    "norm2": "norm_ff",
}


def from_authors_state_dict(state_dict: Mapping[str, Tensor], height: int, width: int, *, n_heads: int = 8) -> DEformer:
    """Build an interleaved model from a state dict of the authors' `DEformer` module.

    Args:
        state_dict: Tensors named `pos_mlp.layerK.*`, `pix_mlp.layerK.*`, `transformer.layers.K.*` and
            `pixel_classifier.*`; a `mask` buffer is ignored. Sizes are read from the shapes.
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        n_heads: Attention heads, which the shapes do not reveal; 8 in the paper.

    Raises:
        CheckpointError: The named tensor is missing, unknown or of an impossible shape.

    References:
        The authors' repository, https://github.com/airalcorn2/deformer
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if name != "mask":
            ours.update(_translate(name, tensor))
    for needed in ("tokens.g_z.0.weight", "backbone.blocks.0.up.weight", "head.heads.0.bias"):
        if needed not in ours:
            raise CheckpointError(f"The authors' state dict lacks the tensor behind {needed!r}.")
    model = DEformer(image_schema(height, width, _domain(state_dict["pixel_classifier.bias"])), _config(ours, n_heads))
    own = model.state_dict()
    for name in [*own, *ours]:
        if name not in ours or name not in own or own[name].shape != ours[name].shape:
            found = tuple(ours[name].shape) if name in ours else "missing"
            raise CheckpointError(f"The authors' state dict does not fit: the tensor for {name!r} is {found}.")
    model.load_state_dict(ours)
    return model.eval()


def _translate(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Give our names for one of theirs; joint projections fall into three, a classifier gains its slot."""
    if match := re.fullmatch(r"(pos|pix)_mlp\.layer(\d+)\.(weight|bias)", name):
        kind, layer, leaf = match.groups()
        return {f"tokens.g_{'z' if kind == 'pos' else 'u'}.{2 * int(layer)}.{leaf}": tensor}
    if match := re.fullmatch(r"transformer\.layers\.(\d+)\.self_attn\.in_proj_(weight|bias)", name):
        layer, leaf = match.groups()
        parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
        return {f"backbone.blocks.{layer}.{part}.{leaf}": t for part, t in parts}
    if match := re.fullmatch(r"transformer\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
        layer, part, leaf = match.groups()
        if part in _BLOCK:
            return {f"backbone.blocks.{layer}.{_BLOCK[part]}.{leaf}": tensor}
    if name in ("pixel_classifier.weight", "pixel_classifier.bias"):
        n_params = len(tensor)
        padded = tensor if n_params == 1 else _pad(tensor)
        return {f"head.heads.0.{name.rpartition('.')[2]}": padded[None]}
    raise CheckpointError(f"The authors' module has no tensor {name!r}.")


def _pad(tensor: Tensor) -> Tensor:
    """Add rows for the labels that our categorical heads keep in reserve and never use."""
    reserve = (1 << (len(tensor) - 1).bit_length()) - len(tensor)
    return torch.cat([tensor, tensor.new_zeros(reserve, *tensor.shape[1:])])


def _domain(classifier_bias: Tensor) -> Domain:
    return Binary() if len(classifier_bias) == 1 else Categorical(len(classifier_bias))


def _config(ours: Mapping[str, Tensor], n_heads: int) -> ModelConfig:
    widths = [len(ours[f"tokens.g_z.{k}.bias"]) for k in range(0, 100, 2) if f"tokens.g_z.{k}.bias" in ours]
    return dataclasses.replace(
        paper_config(),
        d_model=widths[-1],
        n_layers=sum(name.endswith(".up.weight") for name in ours),
        n_heads=n_heads,
        d_ff=len(ours["backbone.blocks.0.up.weight"]),
        mlp_widths=tuple(widths[:-1]),
    )
