"""The training loss, as a module that Fabric can wrap."""

import torch
from jaxtyping import Float
from torch import Tensor

from deformer.nn.backbone import Dropout
from deformer.nn.model import DEformer


class Kept:
    """A batch as it is: of bare tensors Fabric would change the type."""

    def __init__(self, features: Tensor, values: Tensor, scored: Tensor) -> None:
        self.features, self.values, self.scored = features, values, scored


class Loss(torch.nn.Module):
    """The sum over scored features of -ln p(x_k | x_1, ..., x_{k-1}), over a count; a module for Fabric to wrap.

    In bfloat16 products are rounded, and neither the values of the data nor their log-probabilities.
    """

    def __init__(self, model: DEformer, bfloat16: bool) -> None:
        super().__init__()
        self.model, self.rounding = model, bfloat16

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.rounding)

    def forward(self, batch: Kept, count: float, drop: Dropout | None = None) -> Float[Tensor, ""]:
        with self.autocast():
            terms = self.model(batch.features, batch.values, drop=drop).log_prob(batch.values)
        loss: Tensor = -(terms * batch.scored).sum() / count
        return loss
