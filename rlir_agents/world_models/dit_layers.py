"""What diffusion transformers over frames have in common: both ends, conditions, norms and rotations (DiT).

The public codes compute modulations once per token, which adds half of all other products; here it is once per frame.

Under autocast the products of the blocks and the attention are in its dtype. Norms, modulation, residual stream,
rotations and softmax are in float32, and so are the thin products at both ends: they cost little, and their rounding
would be that of the latent and of the velocity.

Letters: B rows, U frames or copies of frames, S tokens of a frame, d hidden, H heads, D head dimension; c, h, w a
latent's channels, height and width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

_NUM_FREQUENCIES = 128  # of the timestep's embedding, cosines and sines
_MAX_PERIOD = 10000


class PatchEmbedding(nn.Module):
    """Latent patches to tokens. Parameters are those of a convolution."""

    def __init__(self, num_channels: int, patch_size: int, hidden_size: int, *, has_time_axis: bool) -> None:
        """Make the convolution over (height, width), or over (time, height, width) with one frame a patch."""
        super().__init__()
        self.patch_size = patch_size
        if has_time_axis:
            patch = (1, patch_size, patch_size)
            self.proj: nn.Conv2d | nn.Conv3d = nn.Conv3d(num_channels, hidden_size, kernel_size=patch, stride=patch)
        else:
            self.proj = nn.Conv2d(num_channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, latent: Tensor) -> Tensor:
        """``[B, U, c, h, w]`` to ``[B, U, S, d]``."""
        p = self.patch_size
        weight, bias = self.proj.weight.flatten(1), self.proj.bias
        patches = rearrange(latent, "b u c (y p) (x q) -> b u (y x) (c p q)", p=p, q=p)
        with precise(latent):
            return F.linear(patches.to(weight.dtype), weight, bias)


class TimestepEmbedding(nn.Module):
    """Timestep labels, 0 .. 1000, to the hidden size."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = two_layers(2 * _NUM_FREQUENCIES, hidden_size)

    def forward(self, label: Tensor) -> Tensor:
        """``[...]`` to ``[..., d]``."""
        index = torch.arange(_NUM_FREQUENCIES, device=label.device, dtype=torch.float32)
        angle = label.float()[..., None] * torch.exp(-math.log(_MAX_PERIOD) / _NUM_FREQUENCIES * index)
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1).to(next(self.mlp.parameters()).dtype))


class Head(nn.Module):
    """Tokens to latents; starts at zero."""

    def __init__(self, num_channels: int, patch_size: int, hidden_size: int, eps: float, *, layout: str) -> None:
        """Make the head; the layout says in which order a token holds its patch, ``"c p q"`` or ``"p q c"``."""
        super().__init__()
        self.patch_size = patch_size
        self.eps = eps
        self.layout = layout
        self.adaLN_modulation = modulation(hidden_size, 2)
        self.linear = nn.Linear(hidden_size, num_channels * patch_size**2)

    def forward(self, x: Tensor, condition: Tensor, grid: tuple[int, int]) -> Tensor:
        """Residual stream ``[B, U, S, d]`` and conditions ``[B, U, d]`` to ``[B, U, c, h, w]``; grid is S in (y, x)."""
        shift, scale = self.adaLN_modulation(condition).to(x.dtype)[:, :, None].chunk(2, dim=-1)
        y = modulated_layer_norm(x, self.eps, shift, scale)
        with precise(x):
            patches = self.linear(y.to(self.linear.weight.dtype)).to(x.dtype)
        p, rows = self.patch_size, grid[0]
        return rearrange(patches, f"b u (y x) ({self.layout}) -> b u c (y p) (x q)", y=rows, p=p, q=p)


def modulation(hidden_size: int, num_parts: int) -> nn.Sequential:
    """AdaLN: from a frame's condition to the shifts, scales and gates of its tokens."""
    return nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, num_parts * hidden_size))


def two_layers(num_inputs: int, hidden_size: int) -> nn.Sequential:
    """A vector to the hidden size."""
    return nn.Sequential(nn.Linear(num_inputs, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))


def modulated_layer_norm(x: Tensor, eps: float, shift: Tensor, scale: Tensor) -> Tensor:
    """``norm(x) * (1 + scale) + shift`` of ``[B, U, S, d]``; the norm has no weights of its own."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=eps), 1 + scale)


def rotary_table(angle: Tensor) -> Tensor:
    """Rotations of queries and keys, complex64 ``[U, S, 2, 1, D/2]``, from angles ``[U, S, D/2]``.

    Queries are scaled by ``D ** -0.5``, too.
    """
    turn = torch.polar(torch.ones_like(angle), angle)
    return torch.stack([turn * (2 * angle.shape[-1]) ** -0.5, turn], dim=2)[..., None, :]


def rotate(qk: Tensor, rotary: Tensor) -> Tensor:
    """Turn neighbouring pairs, ``[B, U, S, 2, H, D]`` to ``[2, B, H, U, S, D]``, in float32 on the way.

    Args:
        qk: Queries and keys.
        rotary: See :func:`rotary_table`; U or S may be 1, for all alike.
    """
    wide = qk.to(torch.promote_types(qk.dtype, torch.float32))
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
    rotated = torch.view_as_real(pairs * rotary).flatten(-2)
    # One pass where the dtype changes; where it does not, `to` leaves the strides alone.
    return rotated.permute(3, 0, 4, 1, 2, 5).to(qk.dtype, memory_format=torch.contiguous_format).contiguous()


def rotated_qkv(qkv: Tensor, num_heads: int, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``[B, H, U, S, D]`` from one product ``[B, U, S, 3 d]`` that has them in this order."""
    qk, value = qkv.unflatten(-1, (3, num_heads, -1)).split([2, 1], dim=3)  # [B, U, S, 2 or 1, H, D]
    query, key = rotate(qk, rotary).unbind()
    return query, key, value.squeeze(3).permute(0, 3, 1, 2, 4).contiguous()


def initialize(model: nn.Module, zeros: Iterable[nn.Module]) -> None:
    """DiT's start: uniform weights, a small timestep embedding, and blocks and head that add nothing at first.

    Args:
        model: Has a ``t_embedder``; from torch's global generator.
        zeros: Its parts whose parameters are zero: head and modulations.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for parameter in model.get_submodule("t_embedder").parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)
    for part in zeros:
        for parameter in part.parameters():
            nn.init.zeros_(parameter)


def precise(tensor: Tensor) -> torch.autocast:
    """A context in which products keep the weights' precision."""
    return torch.autocast(tensor.device.type, enabled=False)
