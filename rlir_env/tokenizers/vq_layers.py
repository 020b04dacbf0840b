"""Encoder and decoder of the VQ tokenizer: a residual net with the key names of diffusers.

Each level of the encoder halves the resolution, each of the decoder doubles it; there is no
attention. What the codes are is in ``vq.py``. The KL tokenizer is put together from the same blocks
under other names (``kl_layers.py``).

Letters: N images, C channels, H, W input size, h, w size of the code grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6  # LDM's and diffusers' for autoencoders; the published weights were trained with it
_NUM_MID_RESNETS = 2


def conv3x3(num_in: int, num_out: int) -> nn.Conv2d:
    """A convolution that keeps the resolution."""
    return nn.Conv2d(num_in, num_out, 3, padding=1)


class ResnetBlock(nn.Module):
    """Twice GroupNorm, SiLU, convolution, beside the identity (1x1 if the width changes)."""

    def __init__(self, num_in: int, num_out: int, num_groups: int, shortcut_name: str = "conv_shortcut"):
        """Builds the block; ``shortcut_name`` is the key of the 1x1 convolution, diffusers' unless given."""
        super().__init__()
        self.norm1 = nn.GroupNorm(num_groups, num_in, eps=NORM_EPS)
        self.conv1 = conv3x3(num_in, num_out)
        self.norm2 = nn.GroupNorm(num_groups, num_out, eps=NORM_EPS)
        self.conv2 = conv3x3(num_out, num_out)
        self._shortcut_name = shortcut_name
        self.register_module(shortcut_name, nn.Conv2d(num_in, num_out, 1) if num_in != num_out else None)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, num_in, h, w]`` to ``[N, num_out, h, w]``."""
        branch = self.conv1(F.silu(self.norm1(x)))
        branch = self.conv2(F.silu(self.norm2(branch)))
        shortcut = getattr(self, self._shortcut_name)
        return branch + (x if shortcut is None else shortcut(x))


class Downsample(nn.Module):
    """Halves the resolution: zeros at right and bottom only, then a convolution of stride 2."""

    def __init__(self, num_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(num_channels, num_channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, h, w]`` to ``[N, C, h / 2, w / 2]``."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the resolution: every pixel twice in both directions, then a 3x3 convolution."""

    def __init__(self, num_channels: int):
        super().__init__()
        self.conv = conv3x3(num_channels, num_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, h, w]`` to ``[N, C, 2h, 2w]``."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def resnet_blocks(widths: Sequence[int], num_groups: int, shortcut_name: str = "conv_shortcut") -> nn.Sequential:
    """Residual blocks one after the other; ``widths`` are those before, between and after them."""
    pairs = zip(widths[:-1], widths[1:], strict=True)
    return nn.Sequential(*(ResnetBlock(a, b, num_groups, shortcut_name) for a, b in pairs))


class DownLevel(nn.Module):
    """One resolution of the encoder: residual blocks, then (but for the last) a downsampling."""

    def __init__(self, widths: Sequence[int], num_groups: int, is_last: bool):
        """Builds the level; ``widths`` are those before, between and after its blocks."""
        super().__init__()
        self.resnets = resnet_blocks(widths, num_groups)
        self.downsamplers = nn.Sequential(*([] if is_last else [Downsample(widths[-1])]))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, h, w]`` to ``[N, C', h / 2, w / 2]`` (the last level keeps h and w)."""
        return self.downsamplers(self.resnets(x))


class UpLevel(nn.Module):
    """One resolution of the decoder: residual blocks, then (but for the last) an upsampling."""

    def __init__(self, widths: Sequence[int], num_groups: int, is_last: bool):
        """Builds the level; ``widths`` are those before, between and after its blocks."""
        super().__init__()
        self.resnets = resnet_blocks(widths, num_groups)
        self.upsamplers = nn.Sequential(*([] if is_last else [Upsample(widths[-1])]))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, h, w]`` to ``[N, C', 2h, 2w]`` (the last level keeps h and w)."""
        return self.upsamplers(self.resnets(x))


class MidBlock(nn.Module):
    """The residual blocks at the resolution of the codes."""

    def __init__(self, width: int, num_groups: int):
        super().__init__()
        self.resnets = resnet_blocks([width] * (_NUM_MID_RESNETS + 1), num_groups)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, h, w]`` to the same shape."""
        return self.resnets(x)


class Encoder(nn.Module):
    """Images to latents."""

    def __init__(self, widths: Sequence[int], num_resnets: int, num_out: int, num_groups: int):
        """Builds the encoder.

        Args:
            widths: Channels of each level, from full resolution down.
            num_resnets: Residual blocks per level.
            num_out: Channels of the latents.
            num_groups: Of the group norms.
        """
        super().__init__()
        self.conv_in = conv3x3(3, widths[0])
        self.down_blocks = nn.Sequential()
        for level, width in enumerate(widths):
            level_widths = [widths[max(level - 1, 0)]] + [width] * num_resnets
            is_last = level == len(widths) - 1
            self.down_blocks.append(DownLevel(level_widths, num_groups, is_last))
        self.mid_block = MidBlock(widths[-1], num_groups)
        self.conv_norm_out = nn.GroupNorm(num_groups, widths[-1], eps=NORM_EPS)
        self.conv_out = conv3x3(widths[-1], num_out)

    def forward(self, images: Tensor) -> Tensor:
        """Maps ``[N, 3, H, W]`` in [-1, 1] to ``[N, num_out, h, w]``."""
        x = self.mid_block(self.down_blocks(self.conv_in(images)))
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """Latents to images."""

    def __init__(self, widths: Sequence[int], num_resnets: int, num_in: int, num_groups: int):
        """Builds the decoder; arguments as the encoder's, ``widths`` in the encoder's order."""
        super().__init__()
        reverse = list(reversed(widths))
        self.conv_in = conv3x3(num_in, reverse[0])
        self.mid_block = MidBlock(reverse[0], num_groups)
        self.up_blocks = nn.Sequential()
        for level, width in enumerate(reverse):
            # One residual block more than in the encoder's levels, as in diffusers.
            level_widths = [reverse[max(level - 1, 0)]] + [width] * (num_resnets + 1)
            self.up_blocks.append(UpLevel(level_widths, num_groups, level == len(reverse) - 1))
        self.conv_norm_out = nn.GroupNorm(num_groups, widths[0], eps=NORM_EPS)
        self.conv_out = conv3x3(widths[0], 3)

    def forward(self, latents: Tensor) -> Tensor:
        """Maps ``[N, num_in, h, w]`` to ``[N, 3, H, W]``, about in [-1, 1] but not clamped."""
        x = self.up_blocks(self.mid_block(self.conv_in(latents)))
        return self.conv_out(F.silu(self.conv_norm_out(x)))
