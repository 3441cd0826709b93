"""NADE in one order with tied weights, and DeepNADE in any order."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from deformer.baselines.any_order import AnyOrderBaseline
from deformer.baselines.baseline import Batch
from deformer.baselines.labels import Labels
from deformer.baselines.raster import RasterBaseline
from deformer.data.schema import Schema
from deformer.data.table import Rows
from deformer.nn.heads import Conditionals


class DeepNADE(AnyOrderBaseline):
    """A multilayer perceptron over [known values, mask of what is known].

    Args:
        hidden: Widths of its layers.

    References:
        A Deep and Tractable Density Estimator (Uria, Murray, Larochelle, 2014), https://arxiv.org/abs/1310.1757

    Examples:
        >>> from deformer import Binary, table_schema
        >>> model = DeepNADE(table_schema([Binary()] * 3), hidden=(8,))
        >>> model.log_prob([[0, 1, 1]], torch.tensor([2, 0, 1])).shape
        torch.Size([1])
    """

    def __init__(self, schema: Schema, hidden: tuple[int, ...] = (500, 500)) -> None:
        super().__init__(schema)
        self.labels = Labels(schema)
        widths = (2 * self.labels.n, *hidden)
        layers = [part for a, b in zip(widths, widths[1:], strict=False) for part in (nn.Linear(a, b), nn.ReLU())]
        self.network = nn.Sequential(*layers)
        self.out = nn.Linear(widths[-1], self.labels.n)

    def start(self, rows: Rows) -> None:
        nn.init.zeros_(self.out.weight)
        self.labels.fit_marginals(self.out.bias, rows.values.to(self.dtype))

    def conditionals(self, x: Batch, known: Batch, asked: Int[Tensor, "batch n"] | None = None) -> Conditionals:
        mask = self.labels.spread(known)
        h = self.network(torch.cat([self.labels.encode(x) * mask, mask], 1))
        return self.labels.conditionals(self.out(h), asked)


class NADE(RasterBaseline):
    """A sigmoid layer whose input grows by one feature at a time: h_i = sigmoid(c + sum of W_j x_j over j < i).

    The weights of a feature's input are the same in all conditionals, so that all of them cost as much as one.

    Args:
        hidden: Width of the layer.

    References:
        The Neural Autoregressive Distribution Estimator (Larochelle & Murray, 2011)

    Examples:
        >>> from deformer import Binary, table_schema
        >>> NADE(table_schema([Binary()] * 3), 8).log_prob([[0, 1, 1]]).shape
        torch.Size([1])
    """

    def __init__(self, schema: Schema, hidden: int = 500) -> None:
        super().__init__(schema)
        self.labels = Labels(schema)
        self.into = nn.Parameter(torch.randn(self.labels.n, hidden) / math.sqrt(self.labels.n))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.out = nn.Parameter(torch.zeros(self.labels.n, hidden))
        self.out_bias = nn.Parameter(torch.zeros(self.labels.n))

    def start(self, rows: Rows) -> None:
        self.labels.fit_marginals(self.out_bias, rows.values.to(self.dtype))

    def conditionals(self, x: Batch) -> Conditionals:
        told = self.labels.encode(x)[..., None] * self.into  # batch inputs hidden
        whole = self.labels.n == x.shape[1]  # one input a feature
        by_feature = told if whole else told.new_zeros(*x.shape, told.shape[2]).index_add(1, self.labels.owner, told)
        before: Float[Tensor, "batch features hidden"] = F.pad(by_feature.cumsum(1), (0, 0, 1, 0))[:, :-1]
        h = torch.sigmoid(self.bias + before)
        logits = (h if whole else h[:, self.labels.owner]).mul(self.out).sum(-1) + self.out_bias
        return self.labels.conditionals(logits)
