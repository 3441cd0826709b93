import re

import pytest
import torch
from torch import Tensor, nn

from deformer.errors import CheckpointError
from deformer.nn.authors import from_authors_state_dict


class Reference(nn.Module):
    """The layout of the authors' module, written from the paper: interleaved tokens in a library encoder."""

    def __init__(self, n_outputs: int) -> None:
        super().__init__()
        self.pos_mlp, self.pix_mlp = self._mlp(2), self._mlp(3)
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.pixel_classifier = nn.Linear(16, n_outputs)
        self.register_buffer("mask", torch.full((18, 18), -torch.inf).triu(1))

    @staticmethod
    def _mlp(n_inputs: int) -> nn.Sequential:
        mlp = nn.Sequential()
        for k, (inputs, outputs) in enumerate([(n_inputs, 8), (8, 12), (12, 16)]):
            mlp.add_module(f"layer{k}", nn.Linear(inputs, outputs))
            if k < 2:
                mlp.add_module(f"relu{k}", nn.ReLU())
        return mlp

    def forward(self, places: Tensor, values: Tensor) -> Tensor:
        z = self.pos_mlp(places) * 4
        u = self.pix_mlp(torch.cat([places, values[..., None]], -1)) * 4
        tokens = torch.stack([z, u], 2).flatten(1, 2)
        return self.pixel_classifier(self.transformer(tokens, mask=self.mask)[:, ::2])


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_the_same_logits(n_outputs: int) -> None:
    torch.manual_seed(0)
    theirs = Reference(n_outputs)
    ours = from_authors_state_dict(theirs.state_dict(), 3, 3, n_heads=4)
    order = torch.stack([torch.randperm(9) for _ in range(4)])
    values = torch.randint(0, max(n_outputs, 2), (4, 9)).float()
    logits = theirs(torch.stack([order // 3, order % 3], -1).float(), values)
    params = ours(order, values).packed[0].params.view(4, 9, -1)[..., :n_outputs]
    torch.testing.assert_close(params, logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"pixel_classifier.bias": None}, "pixel_classifier|heads.0.bias"),
        ({"transformer.layers.0.norm1.weight": None}, "blocks.0.norm_attention.weight' is missing"),
        ({"surplus.weight": torch.zeros(1)}, "no tensor 'surplus.weight'"),
        ({"transformer.layers.1.linear2.weight": torch.zeros(3, 3)}, re.escape("blocks.1.down.weight' is (3, 3)")),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(changes: dict[str, Tensor | None], text: str) -> None:
    state = {**Reference(1).state_dict(), **changes}
    with pytest.raises(CheckpointError, match=text):
        from_authors_state_dict({k: t for k, t in state.items() if t is not None}, 3, 3, n_heads=4)
