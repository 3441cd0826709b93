"""What models of one fixed order share: that of the columns, for images row by row from the top left."""

from abc import abstractmethod

import torch
from torch import Tensor

from deformer.baselines.baseline import Baseline, Batch
from deformer.data.orders import raster_orders
from deformer.errors import InputError
from deformer.nn.heads import Conditionals


class RasterBaseline(Baseline):
    """A model that predicts each column from those before it, all at once where they are known."""

    @abstractmethod
    def conditionals(self, x: Batch) -> Conditionals:
        """Give p(x_i | x_1, ..., x_{i-1}) for every i."""

    def orders(self, n: int, generator: torch.Generator | None) -> Tensor:
        return raster_orders(torch.ones(n, len(self.schema), dtype=torch.bool))

    def loss(self, x: Batch, generator: torch.Generator) -> Tensor:
        return -self.conditionals(x).log_prob(x).sum(-1).mean()

    def terms(self, x: Batch, orders: Tensor) -> Batch:
        if not torch.equal(orders, self.orders(len(orders), None)):
            raise InputError(f"{type(self).__name__} knows one order, that of the columns.")
        return self.conditionals(x).log_prob(x)

    def draw(self, orders: Tensor, generator: torch.Generator) -> Batch:
        x, rows = torch.zeros(orders.shape, dtype=self.value_dtype), torch.arange(len(orders))
        for i in range(x.shape[1]):
            x[:, i] = self.conditionals(x).only(i, rows).sample(generator)[:, 0].to(x.dtype)
        return x
