import pytest
import torch

from deformer.nn.linear import linear_per_slot


@pytest.mark.parametrize("outputs", [1, 2, 3])
@pytest.mark.parametrize("tokens", [0, 1, 40])
def test_every_token_is_mapped_by_its_own_slot(tokens: int, outputs: int) -> None:
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(5, outputs, 7, generator=draws, dtype=torch.float64)
    bias = torch.randn(5, outputs, generator=draws, dtype=torch.float64)
    x = torch.randn(tokens, 7, generator=draws, dtype=torch.float64)
    slot = torch.randint(0, 4, (tokens,), generator=draws)
    if tokens > 20:
        slot[:20] = 4  # one slot is much fuller than the others
    expected = [weight[s] @ row + bias[s] for s, row in zip(slot.tolist(), x, strict=True)]
    mapped = linear_per_slot(x, slot, weight, bias)
    torch.testing.assert_close(mapped, torch.stack(expected) if expected else mapped.new_empty(0, outputs))


def test_full_slots_do_not_make_room_in_empty_ones() -> None:
    weight = torch.randn(1000, 3, 2, generator=torch.Generator().manual_seed(0))
    slot = torch.cat([torch.zeros(1000, dtype=torch.long), torch.arange(1000)])
    x = torch.arange(4000.0).view(2000, 2)
    mapped = linear_per_slot(x, slot, weight, torch.zeros(1000, 3))
    torch.testing.assert_close(mapped, torch.einsum("toi,ti->to", weight[slot], x))
