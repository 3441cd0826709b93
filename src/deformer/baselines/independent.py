"""The independent-features model: every feature by its marginal, none given another."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from deformer.baselines.baseline import own_features
from deformer.data.table import Rows
from deformer.nn.heads import Head


class Independent:
    """p(row) = prod_i p(x_i), fitted by counting.

    Examples:
        >>> from deformer import Binary, as_rows, table_schema
        >>> rows = as_rows([[0, 1], [1, 1], [0, 1]], table_schema([Binary(), Binary()]))
        >>> Independent(rows).log_prob(rows).exp()
        tensor([0.5469, 0.3281, 0.5469])
    """

    def __init__(self, rows: Rows) -> None:
        self.head = Head(own_features(rows.schema), d_model=1)
        self.head.fit_marginals(rows.values, rows.observed)

    @torch.no_grad()
    def log_prob(self, rows: Rows) -> Float[Tensor, "batch"]:
        """Give ln p(row) in nats, over the observed features of each row."""
        n, d = rows.values.shape
        features: Int[Tensor, "batch features"] = torch.arange(d).expand(n, d)
        conditionals = self.head(torch.zeros(n, d, 1), features)
        terms: Tensor = conditionals.log_prob(rows.values).masked_fill(~rows.observed, 0)
        return terms.sum(-1)
