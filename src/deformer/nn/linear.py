"""Linear maps with weights per feature."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

MOST_PADDING = 4  # times the tokens; of slots that are full alike to a factor of two there is less


def linear_per_slot(
    x: Float[Tensor, "tokens inputs"],
    slot: Int[Tensor, "tokens"],
    weight: Float[Tensor, "slots outputs inputs"],
    bias: Float[Tensor, "slots outputs"],
) -> Float[Tensor, "tokens outputs"]:
    """Map each token by the weights of its own slot.

    One batched product over the slots that occur: tokens are laid out by slot, padded to the fullest; in a batch of
    whole rows every slot is equally full. Where they differ much, those that are about as full are mapped together.
    For one or two outputs it is less work to look up each token's weights.
    """
    if len(weight) == 1:
        return F.linear(x, weight[0], bias[0])
    if weight.shape[1] <= 2:
        own = F.embedding(slot, weight.flatten(1)).view(len(x), *weight.shape[1:])
        return (own * x[:, None]).sum(-1) + F.embedding(slot, bias)
    slots, index, counts = torch.unique(slot, return_inverse=True, return_counts=True)
    by_slot = index.argsort(stable=True)
    place = torch.arange(len(index), device=x.device) - (counts.cumsum(0) - counts)[index[by_slot]]
    fullest = int(counts.max()) if len(x) else 0
    if len(slots) * fullest > MOST_PADDING * len(x):
        fullness = counts.double().log2().long()[index]
        parts = [(fullness == k).nonzero()[:, 0] for k in fullness.unique().tolist()]
        mapped = torch.cat([linear_per_slot(x[part], slot[part], weight, bias) for part in parts])
        return mapped[torch.cat(parts).argsort()]
    padded = x.new_zeros(len(slots), fullest, x.shape[1])  # slots fullest inputs
    padded = padded.index_put((index[by_slot], place), x[by_slot])
    mapped = torch.baddbmm(bias[slots][:, None].to(x.dtype), padded, weight[slots].to(x.dtype).transpose(1, 2))
    return mapped.new_empty(len(x), mapped.shape[2]).index_put((by_slot,), mapped[index[by_slot], place])
