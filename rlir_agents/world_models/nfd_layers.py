"""The parts of NFD's transformer, with the parameter names of the public checkpoints of its family (LIVE).

Pre-norm blocks with adaLN-zero (DiT), SwiGLU, rotary positions along time, height and width (HunyuanVideo). The public
code rounds to halves in eval mode only; here no mode changes the numbers. Precisions are those of `dit_layers.py`.

Letters: B rows, U frames or copies of frames, S tokens of a frame, d hidden, H heads, D head dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rlir_agents.world_models.dit_layers import modulation, rotary_table, rotated_qkv, two_layers
from rlir_agents.world_models.frame_attention import Attend
from rlir_agents.world_models.kernels import product_dtype


class VectorEmbedding(nn.Module):
    """A vector to the hidden size by two layers."""

    def __init__(self, num_inputs: int, hidden_size: int) -> None:
        super().__init__()
        self.mlp = two_layers(num_inputs, hidden_size)

    def forward(self, vector: Tensor) -> Tensor:
        """``[..., inputs]`` to ``[..., d]``."""
        return self.mlp(vector)


class Block(nn.Module):
    """Attention and SwiGLU, each behind a modulated norm and a gate that starts at zero."""

    def __init__(self, hidden_size: int, num_heads: int, intermediate_size: int, eps: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(hidden_size, eps)
        self.attention = Attention(hidden_size, num_heads)
        self.ffn_norm = nn.RMSNorm(hidden_size, eps)
        self.feed_forward = SwiGLU(hidden_size, intermediate_size)
        self.adaLN_modulation = modulation(hidden_size, 6)

    def forward(self, x: Tensor, condition: Tensor, rotary: Tensor, attend: Attend) -> Tensor:
        """One block on the residual stream ``[B, U, S, d]``.

        Args:
            x: In float32.
            condition: Of every frame, ``[B, U, d]``.
            rotary: See :func:`rotary_table`.
            attend: Who sees whom.
        """
        parts = self.adaLN_modulation(condition).to(x.dtype)[:, :, None].chunk(6, dim=-1)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = parts  # [B, U, 1, d]
        y = modulated_rms_norm(x, self.attention_norm, shift, scale)
        x = x + gate * self.attention(y, rotary, attend)
        y = modulated_rms_norm(x, self.ffn_norm, ffn_shift, ffn_scale)
        return x + ffn_gate * self.feed_forward(y)


class Attention(nn.Module):
    """Multi-head attention; ``wqkv`` holds queries, then keys, then values."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.wqkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.wo = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, y: Tensor, rotary: Tensor, attend: Attend) -> Tensor:
        """``[B, U, S, d]`` to the same shape."""
        query, key, value = rotated_qkv(self.wqkv(y), self.num_heads, rotary)
        return self.wo(rearrange(attend(query, key, value), "b heads u s d -> b u s (heads d)"))


class SwiGLU(nn.Module):
    """``w2(silu(w1 x) * w3 x)``."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.w3 = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.w2 = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, y: Tensor) -> Tensor:
        """``[..., d]`` to the same shape."""
        return self.w2(F.silu(self.w1(y)) * self.w3(y))


def modulated_rms_norm(x: Tensor, norm: nn.RMSNorm, shift: Tensor, scale: Tensor) -> Tensor:
    """``norm(x) * (1 + scale) + shift`` of ``[B, U, S, d]``, in the dtype of the product that follows."""
    assert norm.eps is not None
    inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps)
    return torch.addcmul(shift, x * inverse, norm.weight * (1 + scale)).to(product_dtype(norm.weight))


def frame_rotary_table(
    frame_index: list[int], grid: tuple[int, int], dims: tuple[int, int, int], theta: float, device: torch.device
) -> Tensor:
    """Rotations of queries and keys at (frame, row, column), complex64 ``[U, S, 2, 1, D/2]``.

    Neighbouring pairs of a head's dimensions turn by ``position * theta ** (-2 j / dim)``: the first ``dims[0]`` by the
    frame, the next by the row, the last by the column. Queries are scaled by ``D ** -0.5``, too.

    Args:
        frame_index: Frame of every copy, U numbers.
        grid: Rows and columns of a frame's tokens, in that order.
        dims: Dimensions of a head that each axis turns; their sum is D.
        theta: Base of the angles.
        device: Of the table.
    """
    axes = [torch.tensor(frame_index), torch.arange(grid[0]), torch.arange(grid[1])]
    positions = torch.cartesian_prod(*(axis.to(device, torch.float32) for axis in axes))  # [U S, 3]
    angles = [
        torch.outer(position, theta ** (-torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim))
        for position, dim in zip(positions.unbind(1), dims, strict=True)
    ]
    return rotary_table(torch.cat(angles, dim=-1).unflatten(0, (len(frame_index), -1)))
