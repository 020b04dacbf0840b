"""Encoder and decoder of the KL tokenizer: a residual net with attention and the key names of LDM.

The blocks are those of ``vq_layers.py``; what is different is how they are named and that some look
at the whole picture: the middle of both halves, and the encoder after every block of its lowest
resolution. What the latents are is in ``kl.py``.

Letters: N images, C channels, H, W input size, h, w size of the latent grid.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rlir_env.tokenizers.vq_layers import NORM_EPS, Downsample, ResnetBlock, Upsample, conv3x3, resnet_blocks

_SHORTCUT_NAME = "nin_shortcut"  # LDM's, for "network in network"


class Attention(nn.Module):
    """Every position looks at all of its image, with one head as wide as the features; residual."""

    def __init__(self, width: int, num_groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, width, eps=NORM_EPS)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, h, w]`` to the same shape."""
        normed = self.norm(x)
        q, k, v = (rearrange(part(normed), "n c h w -> n (h w) c") for part in (self.q, self.k, self.v))
        seen = rearrange(F.scaled_dot_product_attention(q, k, v), "n (h w) c -> n c h w", h=x.shape[-2])
        # Contiguous: group norms of bfloat16 cost 25 times as much in channels-last memory on a CPU.
        return x + self.proj_out(seen.contiguous())


class DownLevel(nn.Module):
    """One resolution of the encoder: residual blocks, then a downsampling; in the last level attention after each."""

    def __init__(self, widths: Sequence[int], num_groups: int, is_last: bool):
        """Builds the level; ``widths`` are those before, between and after its blocks."""
        super().__init__()
        self.block = resnet_blocks(widths, num_groups, _SHORTCUT_NAME)
        self.attn = nn.ModuleList(Attention(width, num_groups) if is_last else nn.Identity() for width in widths[1:])
        self.downsample = nn.Identity() if is_last else Downsample(widths[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, h, w]`` to ``[N, C', h / 2, w / 2]`` (the last level keeps h and w)."""
        for block, attn in zip(self.block, self.attn, strict=True):
            x = attn(block(x))
        return self.downsample(x)


class UpLevel(nn.Module):
    """One resolution of the decoder: residual blocks, then (but for the last) an upsampling."""

    def __init__(self, widths: Sequence[int], num_groups: int, is_last: bool):
        """Builds the level; ``widths`` are those before, between and after its blocks."""
        super().__init__()
        self.block = resnet_blocks(widths, num_groups, _SHORTCUT_NAME)
        self.upsample = nn.Identity() if is_last else Upsample(widths[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, h, w]`` to ``[N, C', 2h, 2w]`` (the last level keeps h and w)."""
        return self.upsample(self.block(x))


class Encoder(nn.Module):
    """Images to what the moments of the posterior are read from."""

    def __init__(self, widths: Sequence[int], num_resnets: int, num_out: int, num_groups: int):
        """Builds the encoder.

        Args:
            widths: Channels before the first level and after each, from full resolution down.
            num_resnets: Residual blocks per level.
            num_out: Channels of the output.
            num_groups: Of the group norms.
        """
        super().__init__()
        self.conv_in = conv3x3(3, widths[0])
        self.down = nn.Sequential()
        for level, width in enumerate(widths[1:]):
            is_last = level == len(widths) - 2
            self.down.append(DownLevel([widths[level]] + [width] * num_resnets, num_groups, is_last))
        self.mid = _middle(widths[-1], num_groups)
        self.norm_out = nn.GroupNorm(num_groups, widths[-1], eps=NORM_EPS)
        self.conv_out = conv3x3(widths[-1], num_out)

    def forward(self, images: Tensor) -> Tensor:
        """Maps ``[N, 3, H, W]`` in [-1, 1] to ``[N, num_out, h, w]``."""
        x = self.mid(self.down(self.conv_in(images)))
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Latents to images."""

    def __init__(self, widths: Sequence[int], num_resnets: int, num_in: int, num_groups: int):
        """Builds the decoder; arguments as the encoder's, ``widths`` in the encoder's order (the first is not used)."""
        super().__init__()
        self.conv_in = conv3x3(num_in, widths[-1])
        self.mid = _middle(widths[-1], num_groups)
        levels = []
        for level, width in enumerate(widths[1:]):
            below = widths[min(level + 2, len(widths) - 1)]
            # One residual block more than in the encoder's levels, as in LDM.
            levels.append(UpLevel([below] + [width] * (num_resnets + 1), num_groups, is_last=level == 0))
        self.up = nn.ModuleList(levels)  # as in LDM level 0 is the full resolution, so the last comes first
        self.norm_out = nn.GroupNorm(num_groups, widths[1], eps=NORM_EPS)
        self.conv_out = conv3x3(widths[1], 3)

    def forward(self, latents: Tensor) -> Tensor:
        """Maps ``[N, num_in, h, w]`` to ``[N, 3, H, W]``, about in [-1, 1] but not clamped."""
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


def _middle(width: int, num_groups: int) -> nn.Sequential:
    """What is done at the resolution of the latents: block, attention, block."""
    return nn.Sequential(
        OrderedDict(
            block_1=ResnetBlock(width, width, num_groups, _SHORTCUT_NAME),
            attn_1=Attention(width, num_groups),
            block_2=ResnetBlock(width, width, num_groups, _SHORTCUT_NAME),
        )
    )
