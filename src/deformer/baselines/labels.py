"""Binary and categorical features as flat inputs and outputs of a plain network."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from deformer.data.schema import Binary, Schema
from deformer.errors import InputError


class Labels(nn.Module):
    """One number for a binary feature, one for each label of a categorical or ordinal one.

    Raises:
        InputError: A feature is continuous.
    """

    slots: Tensor
    owner: Tensor
    label: Tensor

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

    def encode(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch inputs"]:
        """Give 0 or 1 for each input: whether its feature has its label."""
        return (x[:, self.owner] == self.label).to(x.dtype)

    def spread(self, mask: Float[Tensor, "batch features"]) -> Float[Tensor, "batch inputs"]:
        """Give each input its feature's number."""
        return mask[:, self.owner]

    def log_probs(self, logits: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch features labels"]:
        """Normalise the outputs over each feature's labels."""
        ends = logits.new_tensor([0.0, -torch.inf]).expand(len(logits), 2)
        return torch.cat([logits, ends], 1)[:, self.slots].log_softmax(-1)

    def log_prob(
        self, logits: Float[Tensor, "batch inputs"], x: Float[Tensor, "batch features"]
    ) -> Float[Tensor, "batch features"]:
        """Give the log-probability of each feature's label, in nats."""
        return self.log_probs(logits).gather(2, x.long()[..., None])[..., 0]

    def draw(
        self, logits: Float[Tensor, "batch inputs"], feature: Int[Tensor, "batch"], generator: torch.Generator
    ) -> Float[Tensor, "batch"]:
        """Draw the label of one feature of each row."""
        p = self.log_probs(logits)[torch.arange(len(logits)), feature].exp()
        return torch.multinomial(p, 1, generator=generator)[:, 0].to(logits.dtype)
