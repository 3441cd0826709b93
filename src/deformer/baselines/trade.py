"""TraDE: a causal Transformer over the columns in their one order, with a recurrent encoding of position."""

import torch
from torch import Tensor, nn

from deformer.baselines.baseline import Batch, own_features
from deformer.baselines.raster import RasterBaseline
from deformer.data.schema import Schema
from deformer.data.table import Rows
from deformer.nn.heads import Conditionals, Head
from deformer.nn.units import Units


class TraDE(RasterBaseline):
    """Embeds each value, adds what a GRU made of the values so far, and attends to those before.

    Trained by maximum likelihood, without the paper's penalty on the discrepancy between samples and data.

    Args:
        d_model, n_layers, n_heads, d_ff: Of the Transformer.
        n_components: Gaussians of a continuous feature's conditional.
        dropout: Of the Transformer, but for its attention.

    References:
        TraDE: Transformers for Density Estimation (Fakoor et al., 2020), https://arxiv.org/abs/2004.02441

    Examples:
        >>> from deformer import Binary, Continuous, table_schema
        >>> TraDE(table_schema([Binary(), Continuous()]), 8, 1, 2, 16).log_prob([[0, 0.5]]).shape
        torch.Size([1])
    """

    features: Tensor
    sizes: Tensor
    starts: Tensor

    def __init__(
        self,
        schema: Schema,
        d_model: int = 128,
        n_layers: int = 4,
        n_heads: int = 4,
        d_ff: int = 512,
        n_components: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(schema)
        d = len(schema)
        counts = torch.tensor([getattr(f.domain, "n_labels", 0) for f in schema.features])
        self.register_buffer("features", torch.arange(d), persistent=False)
        self.register_buffer("sizes", counts, persistent=False)
        self.register_buffer("starts", counts.cumsum(0) - counts, persistent=False)
        self.units = Units(schema)
        self.labels = nn.Embedding(max(int(counts.sum()), 1), d_model)
        self.number = nn.Parameter(torch.randn(d, d_model) / d_model**0.5)
        self.begin = nn.Parameter(torch.randn(d_model) / d_model**0.5)
        self.position = nn.GRU(d_model, d_model, batch_first=True)
        blocks = [
            nn.TransformerEncoderLayer(d_model, n_heads, d_ff, dropout, "gelu", batch_first=True, norm_first=True)
            for _ in range(n_layers)
        ]
        for block in blocks:
            block.self_attn.dropout = 0.0  # it would take the fast kernels away
        self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(d_model)
        self.head = Head(own_features(schema), d_model, n_components, "gaussian")
        self.eval()

    def start(self, rows: Rows) -> None:
        self.head.fit_marginals(rows.values, rows.observed)

    def conditionals(self, x: Batch) -> Conditionals:
        n, d = x.shape
        discrete = self.sizes > 0
        label = self.starts + torch.where(discrete, x, 0).long()
        standard = self.units.standardise(x, self.features).to(self.dtype)[..., None] * self.number
        tokens = torch.where(discrete[:, None], self.labels(label.clamp(max=self.labels.num_embeddings - 1)), standard)
        shifted = torch.cat([self.begin.expand(n, 1, -1), tokens[:, :-1]], 1)
        causal = torch.ones(d, d, dtype=torch.bool, device=x.device).triu(1)
        h = shifted + self.position(shifted)[0]
        for block in self.blocks:
            h = block(h, src_mask=causal, is_causal=True)
        answer: Conditionals = self.head(self.norm(h), self.features.expand(n, d))
        return answer
