import pytest
import torch
import torch.nn.functional as F

from deformer.nn import attention
from deformer.nn.attention import attend_causally


def heads(rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, rows, 4, generator=generator, dtype=torch.float64, requires_grad=True)


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, group: int, present: torch.Tensor | None
) -> torch.Tensor:
    n, past = q.shape[2] // group, k.shape[2] - q.shape[2] // group
    visible = torch.ones(n, k.shape[2], dtype=torch.bool).tril(past).repeat_interleave(group, 0)
    mask = visible if present is None else visible & present[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@pytest.mark.parametrize("n", [1, 5, 150, 260])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("blocked", [True, False])
def test_values_and_gradients(n: int, group: int, blocked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not blocked:
        monkeypatch.setattr(attention, "BLOCKED_KEYS", 0)
    q, k, v = heads(group * n, 0), heads(n, 1), heads(n, 2)
    out, expected = attend_causally(q, k, v, group), reference(q, k, v, group, None)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((o * weight).sum(), (q, k, v)) for o in (out, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("absent", [True, False])
@pytest.mark.parametrize(("n", "past"), [(1, 7), (70, 3), (130, 0)])
def test_with_a_past_and_with_absent_keys(n: int, past: int, absent: bool) -> None:
    q, k, v = heads(n, 0), heads(n + past, 1), heads(n + past, 2)
    present = torch.rand(2, n + past, generator=torch.Generator().manual_seed(4)) < 0.7 if absent else None
    if present is not None:
        present[:, 0] = True
    out, expected = attend_causally(q, k, v, 1, present), reference(q, k, v, 1, present)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    ours, theirs = (torch.autograd.grad(o.square().sum(), (q, k, v)) for o in (out, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
