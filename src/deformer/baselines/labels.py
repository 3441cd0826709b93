"""Binary and categorical features as flat inputs and outputs of a plain network."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from deformer.data.schema import Binary, Schema
from deformer.errors import InputError
from deformer.nn import families
from deformer.nn.heads import Conditionals
from deformer.nn.packed import Packed


class Labels(nn.Module):
    """One number for a binary feature, one for each label of a categorical or ordinal one.

    Raises:
        InputError: A feature is continuous.
    """

    slots: Tensor
    owner: Tensor
    label: Tensor
    alone: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        counts = [getattr(f.domain, "n_labels", 0) for f in schema.features]
        if 0 in counts:
            raise InputError(f"{schema.names[counts.index(0)]!r} is continuous; this model takes labels only.")
        widths = [1 if isinstance(f.domain, Binary) else n for f, n in zip(schema.features, counts, strict=True)]
        self.n = sum(widths)
        most, start = max(counts), 0
        zero, never = self.n, self.n + 1  # two more places hold 0 and -inf
        slots = torch.full((len(counts), most), never)
        owner, label = torch.empty(self.n, dtype=torch.long), torch.empty(self.n)
        for i, width in enumerate(widths):
            own = torch.arange(start, start + width)
            owner[own], start = i, start + width
            if width == counts[i]:
                slots[i, :width], label[own] = own, torch.arange(width).float()
            else:
                slots[i, :2], label[own] = torch.tensor([zero, int(own)]), 1.0
        self.register_buffer("slots", slots, persistent=False)
        self.register_buffer("owner", owner, persistent=False)
        self.register_buffer("label", label, persistent=False)
        self.register_buffer("alone", torch.tensor(widths)[owner] == 1, persistent=False)
        self.all_binary = all(isinstance(f.domain, Binary) for f in schema.features)

    def encode(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch inputs"]:
        """Give 0 or 1 for each input: whether its feature has its label; of binary features their value."""
        if self.all_binary:
            return x
        own = x[:, self.owner]
        return torch.where(self.alone, own, (own == self.label).to(x.dtype))

    def spread(self, mask: Float[Tensor, "batch features"]) -> Float[Tensor, "batch inputs"]:
        """Give each input its feature's number."""
        return mask if self.all_binary else mask[:, self.owner]

    def conditionals(
        self, logits: Float[Tensor, "batch inputs"], asked: Int[Tensor, "batch n"] | None = None
    ) -> Conditionals:
        """Read outputs as the log-weights of some features' labels; of all features if none are named."""
        logits = logits.float() if logits.dtype == torch.bfloat16 else logits
        if self.all_binary:
            own = logits if asked is None else logits.gather(1, asked)
            packed = Packed(families.Bernoulli(), own.reshape(-1, 1))
            return Conditionals((packed,), (own.shape[0], own.shape[1]))
        ends = logits.new_tensor([0.0, -torch.inf]).expand(len(logits), 2)
        whole = torch.cat([logits, ends], 1)
        if asked is None:
            params = whole[:, self.slots]  # batch features labels
        else:
            slots = self.slots[asked]
            params = whole.gather(1, slots.flatten(1)).view(slots.shape)
        packed = Packed(families.Labels(params.shape[2]), params.flatten(0, 1))
        return Conditionals((packed,), (params.shape[0], params.shape[1]))

    @torch.no_grad()
    def fit_marginals(self, bias: Float[Tensor, "inputs"], x: Float[Tensor, "rows features"]) -> None:
        """Set the biases of outputs so that zero weights give each feature's marginal distribution."""
        p = (self.encode(x).sum(0) + 0.5) / (len(x) + 1)
        bias.copy_(torch.where(self.alone, torch.logit(p), p.log()))
