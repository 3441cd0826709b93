"""Attention in which query row r sees the keys up to its own position, and nothing later.

Queries come in groups of `group` rows per position: one for an ordinary causal sequence, two where the content and
the query stream ask side by side. With more keys than positions, the first keys are the past and seen by all.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Queries = Float[Tensor, "batch heads rows width"]
Keys = Float[Tensor, "batch heads keys width"]
Present = Bool[Tensor, "batch keys"]
Seen = Float[Tensor, "batch 1 rows keys"]

# Above this many keys a block of probabilities no longer fits the caches, and the library kernel wins.
BLOCKED_KEYS = 2048


def attend(q: Queries, k: Keys, v: Keys, present: Present | Seen | None = None) -> Queries:
    """Let every query see every present key, or the keys that its row sees: 0 for those, -inf for others."""
    mask = present[:, None, None, :] if present is not None and present.ndim == 2 else present
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def attend_with_self(
    q: Queries, told: tuple[Keys, Keys], own: tuple[Queries, Queries], present: Present | None = None
) -> Queries:
    """Let every query see every present key and one key of its own, but no other query's."""
    (k, v), (own_k, own_v) = told, own
    scale = 1 / math.sqrt(q.shape[-1])
    past = (q @ k.transpose(-1, -2)) * scale  # batch heads queries keys
    if present is not None:
        past = past.masked_fill(~present[:, None, None, :], -math.inf)
    itself = (q * own_k).sum(-1, keepdim=True) * scale
    weights = torch.cat([past, itself], -1).softmax(-1)
    return weights[..., :-1] @ v + weights[..., -1:] * own_v


def attend_causally(q: Queries, k: Keys, v: Keys, group: int = 1, present: Present | Seen | None = None) -> Queries:
    """Let every query see the present keys up to its own position; of a single position, what its rows see."""
    n_past = k.shape[2] - q.shape[2] // group
    if n_past and q.shape[2] == group:
        return attend(q, k, v, present)
    if present is None and q.device.type == "cpu" and k.shape[2] <= BLOCKED_KEYS:
        out: Queries = _BlockedAttention.apply(q, k, v, group)  # type: ignore[no-untyped-call]
        return out
    if present is not None or n_past:
        return _masked(q, k, v, group, present)
    streams = [F.scaled_dot_product_attention(q[:, :, s::group], k, v, is_causal=True) for s in range(group)]
    return torch.stack(streams, 3).flatten(2, 3)


def _blocks(n_positions: int) -> list[tuple[int, int]]:
    size = 64 if n_positions <= 256 else 112
    return [(start, min(start + size, n_positions)) for start in range(0, n_positions, size)]


def _later(n_positions: int, group: int, like: Tensor) -> Tensor:
    """Mark, within one block, the keys that lie after a query's position: (group * n, n)."""
    ones = torch.ones(n_positions, n_positions, dtype=torch.bool, device=like.device)
    return ones.triu(1).repeat_interleave(group, 0)


def _masked(q: Queries, k: Keys, v: Keys, group: int, present: Present | None) -> Queries:
    """Attend with a past or with absent keys, a block of queries at a time to bound the memory of the masks."""
    n_positions = q.shape[2] // group
    n_past = k.shape[2] - n_positions
    outputs = []
    for start, end in _blocks(n_positions):
        visible = torch.ones(group * (end - start), n_past + end, dtype=torch.bool, device=q.device)
        visible[:, n_past + start :] = ~_later(end - start, group, q)
        if present is not None:
            visible = visible & present[:, None, None, : n_past + end]
        block = q[:, :, group * start : group * end]
        outputs.append(
            F.scaled_dot_product_attention(block, k[:, :, : n_past + end], v[:, :, : n_past + end], attn_mask=visible)
        )
    return torch.cat(outputs, 2)


class _BlockedAttention(torch.autograd.Function):
    """Causal attention as a few dense products: a block of queries against all keys up to the block's end.

    Only the diagonal block is masked, so hardly more than half of the products are computed. On CPUs this is
    well ahead of the library kernel, which computes in small tiles.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, group: int) -> Tensor:
        scale = 1 / math.sqrt(q.shape[-1])
        batch, heads, n_rows, width = q.shape
        q3, k3, v3 = (t.reshape(batch * heads, -1, width) for t in (q, k, v))
        out = torch.empty_like(q3)
        weights = []
        n_past = k3.shape[1] - n_rows // group
        for start, end in _blocks(n_rows // group):
            rows, keys = slice(group * start, group * end), slice(n_past + end)
            scores = torch.bmm(q3[:, rows] * scale, k3[:, keys].transpose(1, 2))
            scores[..., n_past + start :].masked_fill_(_later(end - start, group, q), -math.inf)
            block = scores.softmax(-1)
            out[:, rows] = torch.bmm(block, v3[:, keys])
            if any(ctx.needs_input_grad):
                weights.append(block)
        ctx.save_for_backward(q3, k3, v3, out, *weights)
        ctx.group, ctx.scale, ctx.shapes = group, scale, (q.shape, k.shape)
        return out.view(q.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, *weights = ctx.saved_tensors
        grad = grad.reshape(q.shape)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        through_out = (grad * out).sum(-1, keepdim=True)
        n_positions = q.shape[1] // ctx.group
        n_past = k.shape[1] - n_positions
        for (start, end), block in zip(_blocks(n_positions), weights, strict=True):
            rows, keys = slice(ctx.group * start, ctx.group * end), slice(n_past + end)
            grad_v[:, keys].baddbmm_(block.transpose(1, 2), grad[:, rows])
            scores = torch.bmm(grad[:, rows], v[:, keys].transpose(1, 2))
            scores.sub_(through_out[:, rows]).mul_(block)
            grad_q[:, rows] = torch.bmm(scores, k[:, keys]).mul_(ctx.scale)
            grad_k[:, keys].baddbmm_(scores.transpose(1, 2), q[:, rows], alpha=ctx.scale)
        q_shape, k_shape = ctx.shapes
        return grad_q.view(q_shape), grad_k.view(k_shape), grad_v.view(k_shape), None
