"""The parts of NFD's transformer, with the parameter names of the public checkpoints of its family (LIVE).

Pre-norm blocks with adaLN-zero (DiT), SwiGLU, rotary positions along time, height and width (HunyuanVideo). The public
code computes modulations once per token, which adds half of all other products, and rounds to halves in eval mode only;
here it is once per frame, and no mode changes the numbers.

Under autocast the products of the blocks and the attention are in its dtype. Norms, modulation, residual stream,
rotations and softmax are in float32, and so are the thin products at both ends: they cost little, and their rounding
would be that of the latent and of the velocity.

Letters: B rows, U frames or copies of frames, S tokens of a frame, d hidden, H heads, D head dimension, A width of a
game-action vector; c, h, w a latent's channels, height and width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

_NUM_FREQUENCIES = 128  # of the timestep's embedding, cosines and sines
_MAX_PERIOD = 10000

# From scaled queries, keys and values [B, H, U, S, D] to attention output of that shape.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class PatchEmbedding(nn.Module):
    """Latent patches to tokens. Parameters are those of a convolution over (time, height, width)."""

    def __init__(self, num_channels: int, patch_size: int, hidden_size: int) -> None:
        super().__init__()
        patch = (1, patch_size, patch_size)
        self.proj = nn.Conv3d(num_channels, hidden_size, kernel_size=patch, stride=patch)

    def forward(self, latent: Tensor) -> Tensor:
        """``[B, U, c, h, w]`` to ``[B, U, S, d]``."""
        p = self.proj.kernel_size[1]
        weight, bias = self.proj.weight.flatten(1), self.proj.bias
        patches = rearrange(latent, "b u c (y p) (x q) -> b u (y x) (c p q)", p=p, q=p)
        with precise(latent):
            return F.linear(patches.to(weight.dtype), weight, bias)


class VectorEmbedding(nn.Module):
    """A vector to the hidden size by two layers."""

    def __init__(self, num_inputs: int, hidden_size: int) -> None:
        super().__init__()
        self.mlp = _two_layers(num_inputs, hidden_size)

    def forward(self, vector: Tensor) -> Tensor:
        """``[..., inputs]`` to ``[..., d]``."""
        return self.mlp(vector)


class TimestepEmbedding(nn.Module):
    """Timestep labels, 0 .. 1000, to the hidden size."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = _two_layers(2 * _NUM_FREQUENCIES, hidden_size)

    def forward(self, label: Tensor) -> Tensor:
        """``[...]`` to ``[..., d]``."""
        index = torch.arange(_NUM_FREQUENCIES, device=label.device, dtype=torch.float32)
        angle = label.float()[..., None] * torch.exp(-math.log(_MAX_PERIOD) / _NUM_FREQUENCIES * index)
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1).to(next(self.mlp.parameters()).dtype))


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
        qk, value = self.wqkv(y).unflatten(-1, (3, self.num_heads, -1)).split([2, 1], dim=3)  # [B, U, S, 2 or 1, H, D]
        query, key = rotate(qk, rotary).unbind()
        value = value.squeeze(3).permute(0, 3, 1, 2, 4).contiguous()
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


class Head(nn.Module):
    """Tokens to velocities; starts at zero."""

    def __init__(self, num_channels: int, patch_size: int, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.eps = eps
        self.adaLN_modulation = modulation(hidden_size, 2)
        self.linear = nn.Linear(hidden_size, num_channels * patch_size**2)

    def forward(self, x: Tensor, condition: Tensor, grid: tuple[int, int]) -> Tensor:
        """Residual stream ``[B, U, S, d]`` and conditions ``[B, U, d]`` to ``[B, U, c, h, w]``; grid is S in (y, x)."""
        shift, scale = self.adaLN_modulation(condition).to(x.dtype)[:, :, None].chunk(2, dim=-1)
        y = torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=self.eps), 1 + scale)
        with precise(x):
            patches = self.linear(y.to(self.linear.weight.dtype)).to(x.dtype)
        p, rows = self.patch_size, grid[0]
        return rearrange(patches, "b u (y x) (c p q) -> b u c (y p) (x q)", y=rows, p=p, q=p)


def modulation(hidden_size: int, num_parts: int) -> nn.Sequential:
    """AdaLN: from a frame's condition to the shifts, scales and gates of its tokens."""
    return nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, num_parts * hidden_size))


def _two_layers(num_inputs: int, hidden_size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(num_inputs, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))


def modulated_rms_norm(x: Tensor, norm: nn.RMSNorm, shift: Tensor, scale: Tensor) -> Tensor:
    """``norm(x) * (1 + scale) + shift`` of ``[B, U, S, d]``, in the dtype of the product that follows."""
    assert norm.eps is not None
    inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps)
    return torch.addcmul(shift, x * inverse, norm.weight * (1 + scale)).to(product_dtype(norm.weight))


def rotary_table(
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
    angle = torch.cat(angles, dim=-1).unflatten(0, (len(frame_index), -1))  # [U, S, D/2]
    turn = torch.polar(torch.ones_like(angle), angle)
    return torch.stack([turn * sum(dims) ** -0.5, turn], dim=2)[..., None, :]


def rotate(qk: Tensor, rotary: Tensor) -> Tensor:
    """Rotate queries and keys, ``[B, U, S, 2, H, D]`` to ``[2, B, H, U, S, D]``, in float32 on the way."""
    wide = qk.to(torch.promote_types(qk.dtype, torch.float32))
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
    rotated = torch.view_as_real(pairs * rotary).flatten(-2)
    # One pass where the dtype changes; where it does not, `to` leaves the strides alone.
    return rotated.permute(3, 0, 4, 1, 2, 5).to(qk.dtype, memory_format=torch.contiguous_format).contiguous()


def precise(tensor: Tensor) -> torch.autocast:
    """A context in which products keep the weights' precision."""
    return torch.autocast(tensor.device.type, enabled=False)


def product_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of matrix products: that of autocast where it is on, else the weight's own."""
    device_type = weight.device.type
    is_autocast = torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if is_autocast else weight.dtype
