"""The parts of Oasis' transformer, with the parameter names of etched-ai/open-oasis.

A block has two halves, each attention and a perceptron behind modulated norms and gates: the first attends inside a
frame, the second along time at one place of the frame. Precisions are those of `dit_layers.py`.

Letters: B rows, U frames or copies of frames, S tokens of a frame, d hidden, H heads, D head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rlir_agents.world_models.dit_layers import (
    modulated_layer_norm,
    modulation,
    rotary_table,
    rotated_qkv,
)
from rlir_agents.world_models.frame_attention import Attend, attend
from rlir_agents.world_models.kernels import product_dtype

_THETA = 10000.0
_LARGEST_PIXEL_FREQUENCY = 256.0


class Frequencies(nn.Module):
    """Fixed angular frequencies of rotary positions."""

    freqs: Tensor

    def __init__(self, freqs: Tensor) -> None:
        """Hold them, under the name of the public files."""
        super().__init__()
        self.register_buffer("freqs", freqs)


def pixel_frequencies(count: int) -> Tensor:
    """Of positions from -1 to 1 in a picture, evenly spaced."""
    return torch.linspace(1.0, _LARGEST_PIXEL_FREQUENCY / 2, count) * math.pi


def time_frequencies(count: int) -> Tensor:
    """Of whole positions in a sequence, as in language models."""
    return _THETA ** -(torch.arange(count) / count)


def spatial_rotary_table(freqs: Tensor, grid: tuple[int, int]) -> Tensor:
    """Rotations inside a frame, ``[1, S, 2, 1, D/2]``: half of the pairs turn with the row, half with the column."""
    rows, columns = (torch.linspace(-1, 1, size, device=freqs.device) for size in grid)
    places = torch.cartesian_prod(rows, columns)  # [S, 2]
    return rotary_table((places[:, :, None] * freqs.float()).flatten(1)[None])


def temporal_rotary_table(freqs: Tensor, frame_index: list[int]) -> Tensor:
    """Rotations along time, ``[U, 1, 2, 1, D/2]``."""
    index = torch.tensor(frame_index, dtype=torch.float32, device=freqs.device)
    return rotary_table(torch.outer(index, freqs.float())[:, None])


class SpatioTemporalBlock(nn.Module):
    """Attention inside a frame and a perceptron; attention along time and another."""

    def __init__(self, hidden_size: int, num_heads: int, intermediate_size: int, eps: float) -> None:
        """Make both halves."""
        super().__init__()
        self.eps = eps
        self.s_attn = Attention(hidden_size, num_heads)
        self.s_mlp = Perceptron(hidden_size, intermediate_size)
        self.s_adaLN_modulation = modulation(hidden_size, 6)
        self.t_attn = Attention(hidden_size, num_heads)
        self.t_mlp = Perceptron(hidden_size, intermediate_size)
        self.t_adaLN_modulation = modulation(hidden_size, 6)

    def forward(self, x: Tensor, condition: Tensor, rotary: tuple[Tensor, Tensor], attend_in_time: Attend) -> Tensor:
        """One block on the residual stream.

        Args:
            x: ``[B, U, S, d]``, in float32.
            condition: Of every frame, ``[B, U, d]``.
            rotary: Inside a frame and along time, see :func:`spatial_rotary_table`.
            attend_in_time: Which frames see which, for rows that are places of frames ``[B S, H, U, 1, D]``.
        """

        def along_time(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            by_place = (rearrange(part, "b h u s d -> (b s) h u 1 d").contiguous() for part in (query, key, value))
            return rearrange(attend_in_time(*by_place), "(b s) h u 1 d -> b h u s d", s=x.shape[2])

        x = self._half(x, condition, self.s_adaLN_modulation, self.s_attn, self.s_mlp, rotary[0], _inside_frames)
        return self._half(x, condition, self.t_adaLN_modulation, self.t_attn, self.t_mlp, rotary[1], along_time)

    def _half(
        self,
        x: Tensor,
        condition: Tensor,
        modulate: nn.Module,
        attention: nn.Module,
        perceptron: nn.Module,
        rotary: Tensor,
        attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> Tensor:
        parts = modulate(condition).to(x.dtype)[:, :, None].chunk(6, dim=-1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts  # [B, U, 1, d]
        x = x + gate * attention(modulated_layer_norm(x, self.eps, shift, scale), rotary, attend)
        return x + mlp_gate * perceptron(modulated_layer_norm(x, self.eps, mlp_shift, mlp_scale))


class Attention(nn.Module):
    """Multi-head attention; ``to_qkv`` holds queries, then keys, then values."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.to_out = nn.Linear(hidden_size, hidden_size)

    def forward(self, y: Tensor, rotary: Tensor, attend: Attend) -> Tensor:
        """``[B, U, S, d]`` to the same shape."""
        qkv = self.to_qkv(y.to(product_dtype(self.to_qkv.weight)))
        return self.to_out(rearrange(attend(*rotated_qkv(qkv, self.num_heads, rotary)), "b h u s d -> b u s (h d)"))


class Perceptron(nn.Module):
    """``fc2(gelu(fc1 y))``, with the tanh form of GELU."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, y: Tensor) -> Tensor:
        """``[..., d]`` to the same shape."""
        return self.fc2(F.gelu(self.fc1(y.to(product_dtype(self.fc1.weight))), approximate="tanh"))


def _inside_frames(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Every copy attends to itself, ``[B, H, U, S, D]``."""
    by_copy = (rearrange(part, "b h u s d -> (b u) h s d") for part in (query, key, value))
    return rearrange(attend(*by_copy), "(b u) h s d -> b h u s d", u=query.shape[2])
