"""A Transformer that predicts a set of features given a set, all tokens seeing all others: masked, not causal."""

import torch
from jaxtyping import Int
from torch import Tensor, nn

from deformer.baselines.any_order import AnyOrderBaseline
from deformer.baselines.baseline import Batch
from deformer.config import ModelConfig
from deformer.data.schema import Schema
from deformer.data.table import Rows
from deformer.nn.attention import attend
from deformer.nn.heads import Conditionals
from deformer.nn.model import DEformer


class MaskedTransformer(AnyOrderBaseline):
    """The DEformer's tokens, neighbours, blocks and heads, with full attention among one token for each feature.

    A known feature's token holds its value, any other asks for it. What is observed changes every token, so nothing can
    be kept from one observation to the next, and scoring a row takes as many passes as it has features.

    Args:
        config: The shape of the network; its wiring does not matter.
        dropout: Share of what each block adds that is left out at random in training.

    Examples:
        >>> from deformer import Binary, table_schema
        >>> model = MaskedTransformer(table_schema([Binary()] * 3), ModelConfig(d_model=8, n_heads=1))
        >>> model.log_prob([[0, 1, 1]], torch.tensor([2, 0, 1])).shape
        torch.Size([1])
    """

    def __init__(self, schema: Schema, config: ModelConfig | None = None, dropout: float = 0.0) -> None:
        super().__init__(schema, rows_at_once=max(1, 2**16 // len(schema)))
        whole = DEformer(schema, config)
        self.tokens, self.blocks, self.norm = whole.tokens, whole.backbone.blocks, whole.backbone.norm
        self.rotary, self.head, self.neighbours = whole.rotary, whole.head, whole.neighbours
        self.drop = nn.Dropout(dropout)
        self.eval()

    def start(self, rows: Rows) -> None:
        self.head.fit_marginals(rows.values, rows.observed)

    def hidden_matrices(self) -> list[nn.Parameter]:
        parts = [self.blocks] if self.neighbours is None else [self.blocks, self.neighbours]
        return [p for part in parts for p in part.parameters() if p.ndim == 2]

    def conditionals(self, x: Batch, known: Batch, asked: Int[Tensor, "batch n"] | None = None) -> Conditionals:
        features = torch.arange(x.shape[1]).expand(x.shape)
        turns = None if self.rotary is None else self.rotary(features, self.dtype)
        h = torch.where(known[..., None] > 0, self.tokens.u(features, x), self.tokens.z(features))
        if self.neighbours is not None:
            evidence = self.neighbours.add(self.neighbours.start(len(x)), features, x, known > 0)
            h = h + self.neighbours(features, evidence, torch.full((x.shape[1],), evidence.length))
        for block in self.blocks:
            y = block.normed(h)  # type: ignore[operator]
            attended = attend(block.queries(y, turns), *block.keys_values(y, turns))  # type: ignore[operator]
            h = block.finish(h, attended, self.drop)  # type: ignore[operator]
        if asked is not None:
            h, features = h.gather(1, asked[..., None].expand(-1, -1, h.shape[2])), asked
        answer: Conditionals = self.head(self.norm(h), features)
        return answer
