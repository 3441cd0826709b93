"""PixelRNN and PixelCNN: images row by row, by masked convolutions and by LSTMs along rows or diagonals."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from deformer.baselines.baseline import Batch
from deformer.baselines.raster import RasterBaseline
from deformer.data.schema import Binary, Continuous, Schema
from deformer.data.table import Rows
from deformer.errors import InputError
from deformer.nn.families import Bernoulli, Family, Labels
from deformer.nn.heads import Conditionals
from deformer.nn.packed import Packed

Images = Float[Tensor, "batch _ height width"]


class MaskedConv(nn.Conv2d):
    """A convolution that sees what lies before a pixel row by row, and with `itself` the pixel as well."""

    mask: Tensor

    def __init__(self, n_inputs: int, n_outputs: int, kernel: tuple[int, int], itself: bool) -> None:
        height, width = kernel
        super().__init__(n_inputs, n_outputs, kernel, padding=(height // 2, width // 2))
        mask = torch.zeros(kernel)
        mask[: height // 2] = 1
        mask[height // 2, : width // 2 + itself] = 1
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, input: Images) -> Images:
        seen: Tensor = self._conv_forward(input, self.weight * self.mask, self.bias)
        return seen


def lstm(gates: Tensor, cell: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Give the next output and cell of an LSTM from its summed gates, which lie side by side along a dimension."""
    forget, enter, leave, new = gates.chunk(4, dim)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
    return torch.sigmoid(leave) * torch.tanh(cell), cell


class RowLSTM(nn.Module):
    """An LSTM from row to row, whose states see three pixels of the row above."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.from_input = MaskedConv(2 * n_channels, 4 * n_channels, (1, 3), itself=True)
        self.from_state = nn.Conv1d(n_channels, 4 * n_channels, 3, padding=1)

    def forward(self, x: Images) -> Images:
        gates = self.from_input(x)
        state = cell = gates.new_zeros(len(x), gates.shape[1] // 4, x.shape[3])
        rows = []
        for row in gates.unbind(2):
            state, cell = lstm(row + self.from_state(state), cell, 1)
            rows.append(state)
        return torch.stack(rows, 2)


class DiagonalBiLSTM(nn.Module):
    """Two LSTMs along diagonals, from the left and from the right; the latter's answer moves down by one row.

    Their states see the pixels above and to the side, so that all before are in reach. Both go at once.
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.n_channels = n_channels
        self.from_input = nn.Conv2d(2 * n_channels, 2 * 4 * n_channels, 1)
        # Of either direction, from the states above and beside.
        self.from_state = nn.Parameter(torch.empty(2, 2 * n_channels, 4 * n_channels))
        nn.init.uniform_(self.from_state, -((2 * n_channels) ** -0.5), (2 * n_channels) ** -0.5)

    def forward(self, x: Images) -> Images:
        (n, _, height, width), h = x.shape, self.n_channels
        left, right = self.from_input(x).chunk(2, 1)
        slanted = skew(torch.cat([left, right.flip(3)])).view(2, n, 4 * h, height, -1)
        columns = slanted.permute(4, 0, 1, 3, 2).reshape(-1, 2, n * height, 4 * h)
        state = cell = columns.new_zeros(2, n * height, h)
        states = []
        for column in columns:
            above = F.pad(state.view(2, n, height, h), (0, 0, 1, 0))[:, :, :-1].reshape(state.shape)
            state, cell = lstm(torch.baddbmm(column, torch.cat([above, state], 2), self.from_state), cell, 2)
            states.append(state)
        together = torch.stack(states).view(-1, 2 * n, height, h).permute(1, 3, 2, 0)
        left, right = unskew(together, width).chunk(2)
        return left + F.pad(right.flip(3), (0, 0, 1, 0))[:, :, :-1]


def skew(x: Images) -> Float[Tensor, "batch _ height slanted"]:
    """Move every row one place further to the right than the one above."""
    n, channels, height, width = x.shape
    padded = F.pad(x, (0, height)).flatten(2)[..., : height * (width + height - 1)]
    return padded.reshape(n, channels, height, width + height - 1)


def unskew(x: Float[Tensor, "batch _ height slanted"], width: int) -> Images:
    """Move the rows back."""
    n, channels, height, _ = x.shape
    return F.pad(x.flatten(2), (0, height)).reshape(n, channels, height, width + height)[..., :width]


class Layer(nn.Module):
    """One layer of the stack, added to what it read."""

    def __init__(self, n_channels: int, kind: str) -> None:
        super().__init__()
        self.core: nn.Module
        if kind == "cnn":
            self.core = nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(2 * n_channels, n_channels, 1),
                nn.ReLU(),
                MaskedConv(n_channels, n_channels, (3, 3), itself=True),
                nn.ReLU(),
            )
        else:
            self.core = RowLSTM(n_channels) if kind == "row" else DiagonalBiLSTM(n_channels)
        self.out = nn.Conv2d(n_channels, 2 * n_channels, 1)

    def forward(self, x: Images) -> Images:
        summed: Tensor = x + self.out(self.core(x))
        return summed


class PixelRNN(RasterBaseline):
    """A stack of layers between a masked convolution and one output per pixel.

    Args:
        kind: "row" (Row LSTM), "diagonal" (Diagonal BiLSTM) or "cnn" (PixelCNN, the quick one).
        n_channels: Features h of a layer; the stack is 2h wide.
        n_layers: Layers.

    Raises:
        InputError: The features are not the pixels of an image, all with the same labels.

    References:
        Pixel Recurrent Neural Networks (van den Oord et al., 2016), https://arxiv.org/abs/1601.06759

    Examples:
        >>> from deformer import Binary, image_schema
        >>> PixelRNN(image_schema(3, 3, Binary()), "cnn", 4, 1).log_prob(torch.zeros(2, 9)).shape
        torch.Size([2])
    """

    def __init__(
        self, schema: Schema, kind: Literal["row", "diagonal", "cnn"] = "row", n_channels: int = 16, n_layers: int = 7
    ) -> None:
        super().__init__(schema)
        domains = {f.domain for f in schema.features}
        domain = next(iter(domains))
        if len(domains) > 1 or isinstance(domain, Continuous) or schema.image_shape is None:
            raise InputError("PixelRNN needs the pixels of one image, row by row, all with the same labels.")
        self.height, self.width = schema.image_shape
        self.family: Family = Bernoulli() if isinstance(domain, Binary) else Labels(domain.n_labels)
        self.n_labels = domain.n_labels
        n_inputs = 1 if isinstance(domain, Binary) else domain.n_labels
        self.first = MaskedConv(n_inputs, 2 * n_channels, (7, 7), itself=False)
        self.layers = nn.Sequential(*(Layer(n_channels, kind) for _ in range(n_layers)))
        self.last = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(2 * n_channels, 2 * n_channels, 1),
            nn.ReLU(),
            nn.Conv2d(2 * n_channels, self.family.n_params, 1),
        )

    def start(self, rows: Rows) -> None:
        last = self.last[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(self.family.marginal(rows.values.flatten().to(last.bias)))

    def conditionals(self, x: Batch) -> Conditionals:
        values = x.view(len(x), self.height, self.width)
        if isinstance(self.family, Bernoulli):
            channels = values[:, None]
        else:
            channels = F.one_hot(values.long(), self.n_labels).movedim(-1, 1).to(x.dtype)
        out = self.last(self.layers(self.first(channels)))
        params = out.movedim(1, -1).reshape(-1, self.family.n_params)
        params = params.float() if params.dtype == torch.bfloat16 else params
        return Conditionals((Packed(self.family, params),), (len(x), math.prod(values.shape[1:])))
