"""A plain implementation in the style of the paper's scripts, to time ours against.

Post-norm library encoder, a float triangular mask over 2D tokens, float32, one image at a time, and a full pass over
all tokens for every pixel that is drawn.
"""

import math

import torch
from torch import Tensor, nn


def _mlp(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class PlainDEformer(nn.Module):
    """Logits of every pixel given those before it in a sequence of (row, column, value)."""

    def __init__(self, n_pixels: int, d_model: int, n_heads: int, d_ff: int, n_layers: int) -> None:
        super().__init__()
        self.g_z, self.g_u = _mlp([2, 128, 256, d_model]), _mlp([3, 128, 256, d_model])
        layer = nn.TransformerEncoderLayer(d_model, n_heads, d_ff, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)
        self.classifier = nn.Linear(d_model, 1)
        self.register_buffer("mask", torch.full((2 * n_pixels, 2 * n_pixels), -math.inf).triu(1))
        self.factor = math.sqrt(d_model)

    def forward(self, places: Tensor, values: Tensor) -> Tensor:
        """Take one image: places (pixels, 2) and values (pixels,) in the sequence of its order."""
        z = self.g_z(places) * self.factor
        u = self.g_u(torch.cat([places, values[:, None]], -1)) * self.factor
        tokens = torch.stack([z, u], 1).flatten(0, 1)[None]
        return self.classifier(self.encoder(tokens, mask=self.mask)[0, ::2])[:, 0]


@torch.no_grad()
def draw_pixels(model: PlainDEformer, places: Tensor, values: Tensor, first: int, n: int) -> Tensor:
    """Draw n pixels from position `first` on, by a full pass for each."""
    for k in range(first, first + n):
        p = torch.sigmoid(model(places, values)[k])
        values[k] = (torch.rand(()) < p).float()
    return values
