"""A Llama layer as pure functions: the arithmetic that MineWorld's training forward and its decoding share.

MineWorld is a stock Llama (paper, section 4.2; the numbered steps are those of the published code): RMS norm, rotary
positions in the half-split layout, grouped-query attention, SwiGLU. Modules, parameters and caches are *not* here.

Letters: n positions, h hidden, H query heads, KV key/value heads, d head dimension, I intermediate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rlir_agents.world_models.kernels import suits_cpu

_QUERIES_PER_BLOCK = 96  # small enough to skip nearly half of the products, large enough to fill them

# From queries [B, H, n, d], keys and values [B, KV, n, d] of new positions to attention output [B, H, n, d].
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class LayerWeights(NamedTuple):
    """What one layer computes with. Projections that read the same input are stacked: one product, not three.

    Attributes:
        input_norm: ``[h]``.
        qkv: Queries, keys and values, ``[(H + 2 KV) d, h]``.
        out: ``[h, H d]``.
        post_attention_norm: ``[h]``.
        gate_up: SwiGLU's gate and value, ``[2 I, h]``.
        down: ``[h, I]``.
    """

    input_norm: Tensor
    qkv: Tensor
    out: Tensor
    post_attention_norm: Tensor
    gate_up: Tensor
    down: Tensor


class Rotary(NamedTuple):
    """Rotary angles of n positions: ``cos`` and sign-folded ``sin``, each ``[n, d]``."""

    cos: Tensor
    sin: Tensor


def rotary_table(num_positions: int, head_dim: int, theta: float, device: torch.device) -> Rotary:
    """Angles of positions 0 .. n-1, float32: ``position * theta ** (-2 j / d)``, the halves repeated.

    The minus sign of ``rot(u) = [-u2, u1]`` is folded into ``sin``: a roll by d/2 replaces negating and concatenating.
    """
    half = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32)
    positions = torch.arange(num_positions, device=device, dtype=torch.float32)
    angle = torch.outer(positions, theta ** (-half / head_dim))
    cos, sin = angle.cos(), angle.sin()
    return Rotary(torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1))


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate heads ``[B, n, heads, d]`` by their positions; the table is cast to the activation's dtype."""
    cos, sin = rotary.cos.to(x.dtype)[:, None], rotary.sin.to(x.dtype)[:, None]
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``g * (x / sqrt(mean(x^2) + eps))``, statistics in float32."""
    return F.rms_norm(x.float(), weight.shape, weight.float(), eps)


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend within a sequence that starts at position 0; query head i reads KV head ``i // (H / KV)``."""
    if suits_cpu(query) and query.shape[2] > _QUERIES_PER_BLOCK:
        return _blocked_attention(query, key, value)
    is_grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=is_grouped)


def _blocked_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same in plain products, a block of queries and the keys up to its end at a time.

    Forward and backward of torch's fused kernel take twice as long on CPUs (sequences of 725, bfloat16).
    """
    num_kv_heads, head_dim = key.shape[1], key.shape[-1]
    grouped = query.unflatten(1, (num_kv_heads, -1))  # [B, KV, H / KV, n, d]
    keys, values = key.flatten(0, 1).transpose(1, 2), value.flatten(0, 1)  # [B KV, d, n], [B KV, n, d]
    blocks = []
    for start in range(0, query.shape[2], _QUERIES_PER_BLOCK):
        rows = grouped[..., start : start + _QUERIES_PER_BLOCK, :]  # [B, KV, H / KV, c, d]
        end = start + rows.shape[-2]
        is_future = torch.ones(rows.shape[-2], end, dtype=torch.bool, device=rows.device).triu(start + 1)
        bias = torch.zeros_like(is_future, dtype=rows.dtype).masked_fill(is_future, -torch.inf)
        bias = bias.repeat(rows.shape[2], 1).expand(len(values), -1, -1)  # [B KV, (H / KV) c, end]
        rows = rows.flatten(0, 1).flatten(1, 2)
        scores = torch.baddbmm(bias, rows, keys[..., :end], alpha=head_dim**-0.5)
        attended = scores.softmax(-1) @ values[:, :end]
        blocks.append(attended.unflatten(1, (grouped.shape[2], -1)))
    return torch.cat(blocks, dim=2).unflatten(0, (-1, num_kv_heads)).flatten(1, 2)


def layer_forward(
    x: Tensor, weights: LayerWeights, rotary: Rotary, attend: Attend, dtype: torch.dtype, eps: float
) -> Tensor:
    """One layer on the residual stream, which keeps its own precision (float32 also where products are bfloat16).

    Args:
        x: ``[B, n, h]``.
        weights: Of this layer, in ``dtype`` (or to be autocast to it).
        rotary: Angles of the n positions.
        attend: Causal attention, with or without a cache.
        dtype: Of matrix products and attention.
        eps: Of the norms.
    """
    head_dim = rotary.cos.shape[-1]
    num_heads = weights.out.shape[1] // head_dim
    num_kv_heads = (weights.qkv.shape[0] // head_dim - num_heads) // 2
    y = rms_norm(x, weights.input_norm, eps).to(dtype)
    heads = F.linear(y, weights.qkv).unflatten(-1, (-1, head_dim))  # [B, n, H + 2 KV, d]
    rotated, value = heads.split([num_heads + num_kv_heads, num_kv_heads], dim=2)
    query, key = rotate(rotated, rotary).transpose(1, 2).split([num_heads, num_kv_heads], dim=1)
    attended = attend(query, key, value.transpose(1, 2)).transpose(1, 2).flatten(2)  # [B, n, H d]
    x = x + F.linear(attended, weights.out)
    y = rms_norm(x, weights.post_attention_norm, eps).to(dtype)
    gate, up = F.linear(y, weights.gate_up).chunk(2, dim=-1)
    return x + F.linear(F.silu(gate) * up, weights.down)
