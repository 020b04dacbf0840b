"""The network of VPT's inverse dynamics model (Baker et al. 2022), with its published key names.

A convolution over time, an IMPALA image encoder per frame, and transformer blocks over the clip
without a mask. Several oddities of the released code are part of the weights' meaning and are kept:
the transformer's residual starts from the *normalised* input, attention is scaled by 1/head_dim,
and two layers are stored but never used. What the outputs mean is in ``vpt.py``.

Letters: B clips, T frames, N = B * T, C channels, h, w feature size, D hidden size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlir_env.inverse_dynamics.impala import ImageProcess, ImpalaCNN, NormLayer

# The relative attention bias has ten basis functions; here of length 0 (memory size = timesteps),
# hence no bias.
_NUM_RELATIVE_BASES = 10


class TemporalConv(nn.Module):
    """Convolution over time at every pixel, zero-padded, with bias and ReLU.

    Its weights are those of a ``Conv3d`` with kernel (5, 1, 1), under its key names. It is computed
    as a matrix product over pixels, several times faster on CPUs than the 3-d convolution, and
    already folded to [N, C, h, w].
    """

    def __init__(self, num_out: int, kernel_size: int = 5):
        """Builds the layer; it sees ``kernel_size // 2`` frames into the past and the future."""
        super().__init__()
        self.layer = nn.Conv3d(3, num_out, (kernel_size, 1, 1))
        self._show_frames_and_changes()

    @torch.no_grad()
    def _show_frames_and_changes(self) -> None:
        """Start with what motion is made of: the colours of each frame, then random differences between frames."""
        weight = self.layer.weight  # [num_out, 3, kernel_size, 1, 1]
        weight -= weight.mean(dim=2, keepdim=True)
        # A difference of frames is a fraction of a frame; this brings both to one scale.
        weight *= 3
        colours = torch.eye(weight[0].numel()).unflatten(1, weight.shape[1:])[: len(weight)]
        weight[: len(colours)] = colours
        assert self.layer.bias is not None  # a Conv3d has one unless told otherwise
        self.layer.bias[: len(colours)] = 0

    def forward(self, frames: Tensor) -> Tensor:
        """Maps ``[B, T, 3, H, W]`` to ``[B * T, num_out, H, W]`` in channels-last memory."""
        num_frames, kernel_size = frames.shape[1], self.layer.kernel_size[0]
        pixels = frames.permute(0, 1, 3, 4, 2)  # [B, T, H, W, 3]
        padded = F.pad(pixels, (0, 0, 0, 0, 0, 0, kernel_size // 2, kernel_size // 2))
        windows = torch.cat([padded[:, i : i + num_frames] for i in range(kernel_size)], dim=-1)
        weight = self.layer.weight.flatten(2).mT.flatten(1)  # [num_out, kernel_size * 3]
        features = F.relu_(F.linear(windows, weight, self.layer.bias))  # [B, T, H, W, num_out]
        return features.flatten(0, 1).permute(0, 3, 1, 2)


class ClipAttention(nn.Module):
    """Attention of all frames of a clip to all, without mask or positions.

    Only the convolution over time sees the order of the frames.
    """

    def __init__(self, hidsize: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_layer = nn.Linear(hidsize, hidsize)
        self.k_layer = nn.Linear(hidsize, hidsize, bias=False)
        self.v_layer = nn.Linear(hidsize, hidsize, bias=False)
        self.proj_layer = nn.Linear(hidsize, hidsize)
        # In the published file; without effect, because the bias that they would span has length 0.
        self.r_layer = nn.Linear(hidsize, _NUM_RELATIVE_BASES * num_heads).requires_grad_(False)
        self.b_nd = nn.Parameter(torch.zeros(_NUM_RELATIVE_BASES, 0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, T, D]`` to the same shape."""
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, T, head_dim]
            for layer in (self.q_layer, self.k_layer, self.v_layer)
        )
        # The published scale is 1/head_dim, not 1/sqrt(head_dim).
        attended = F.scaled_dot_product_attention(q, k, v, scale=1 / q.shape[-1])
        return self.proj_layer(attended.transpose(1, 2).flatten(2))


class AttentionResidual(nn.Module):
    """Adds attention to its input (the level ``r`` of the published key names)."""

    def __init__(self, hidsize: int, num_heads: int):
        super().__init__()
        self.orc_block = ClipAttention(hidsize, num_heads)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, T, D]`` to the same shape."""
        return x + self.orc_block(x)


class TransformerBlock(nn.Module):
    """Norm, attention, perceptron; the residual stream starts *after* the norm, as published."""

    def __init__(self, hidsize: int, num_heads: int, pointwise_ratio: int):
        """Builds the block; the perceptron is ``pointwise_ratio`` times as wide."""
        super().__init__()
        self.pre_r_ln = nn.LayerNorm(hidsize)
        self.r = AttentionResidual(hidsize, num_heads)
        self.mlp0 = NormLayer.linear(hidsize, pointwise_ratio * hidsize)
        narrowing = nn.Linear(pointwise_ratio * hidsize, hidsize)
        self.mlp1 = nn.ModuleDict({"layer": narrowing})
        # Both residual branches start silent. With random ones the blurred mean of all frames drowns the little that
        # moves from one to the next, and a small model reads its first direction later.
        for layer in (narrowing, self.r.orc_block.proj_layer):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, T, D]`` to the same shape."""
        x = self.r(self.pre_r_ln(x))
        return x + self.mlp1["layer"](self.mlp0(x))


class VPTNetwork(nn.Module):
    """Frames of a clip to one feature vector per frame (``net.`` in the published weights)."""

    def __init__(
        self,
        input_size: tuple[int, int],
        conv3d_channels: int,
        impala_channels: tuple[int, ...],
        impala_blocks: int,
        impala_outsize: int,
        hidsize: int,
        num_heads: int,
        num_layers: int,
        pointwise_ratio: int,
        batch_norm: bool,
    ):
        """Builds the network; the arguments are the fields of ``VPTConfig``."""
        super().__init__()
        self.conv3d_layer = TemporalConv(conv3d_channels)
        cnn = ImpalaCNN(input_size, conv3d_channels, impala_channels, impala_blocks, impala_outsize, batch_norm)
        self.img_process = ImageProcess(cnn, impala_outsize, hidsize)
        blocks = [TransformerBlock(hidsize, num_heads, pointwise_ratio) for _ in range(num_layers)]
        self.recurrent_layer = nn.ModuleDict({"blocks": nn.Sequential(*blocks)})
        # In the published file; the released code computes it and throws the result away.
        self.lastlayer = NormLayer.linear(hidsize, hidsize).requires_grad_(False)
        self.final_ln = nn.LayerNorm(hidsize)

    def forward(self, frames: Tensor) -> Tensor:
        """Maps float frames ``[B, T, 3, H, W]`` in [0, 1] to features ``[B, T, hidsize]``."""
        x = self.img_process(self.conv3d_layer(frames)).unflatten(0, frames.shape[:2])
        return self.final_ln(F.relu(self.recurrent_layer["blocks"](x)))
