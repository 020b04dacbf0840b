"""The image encoder of VPT's networks: an IMPALA residual net (Espeholt et al. 2018), pre-norm.

It looks at one frame at a time; what mixes frames is in ``vpt_network.py``. Attribute names are
those of VPT's published weights.

Letters: N images, C channels, H, W input size, h, w feature size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NormLayer(nn.Module):
    """VPT's pre-norm layer: normalise, then a bias-free linear or 3x3 convolution, then ReLU."""

    def __init__(self, norm: nn.Module, layer: nn.Linear | nn.Conv2d, gain: float = 1.0):
        """Builds the layer; every output unit starts with a weight vector of length ``gain``."""
        super().__init__()
        self.norm, self.layer = norm, layer
        with torch.no_grad():
            unit_rows = F.normalize(layer.weight.flatten(1), dim=1)
            layer.weight.copy_(gain * unit_rows.view_as(layer.weight))

    @classmethod
    def linear(cls, num_in: int, num_out: int) -> NormLayer:
        """LayerNorm, linear, ReLU."""
        # sqrt(2) undoes the halving of the second moment by the ReLU.
        return cls(nn.LayerNorm(num_in), nn.Linear(num_in, num_out, bias=False), gain=math.sqrt(2))

    @classmethod
    def conv(cls, num_in: int, num_out: int, gain: float = 1.0, batch_norm: bool = False) -> NormLayer:
        """Norm of the input channels, 3x3 convolution, ReLU."""
        layer = nn.Conv2d(num_in, num_out, 3, padding=1, bias=False)
        return cls(channel_norm(num_in, batch_norm), layer, gain)

    def forward(self, x: Tensor, pool: bool = False) -> Tensor:
        """Maps ``[..., in]`` or ``[N, in, h, w]`` to width ``out``; ``pool`` halves h and w."""
        x = self.layer(self.norm(x))
        if pool:  # before the ReLU, which commutes with the maximum and is then four times smaller
            x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        return F.relu_(x)


def channel_norm(num_channels: int, batch_norm: bool) -> nn.Module:
    """VPT's two choices: batch norm, or group norm with one group (all published models)."""
    return nn.BatchNorm2d(num_channels) if batch_norm else nn.GroupNorm(1, num_channels)


class ResidualBlock(nn.Module):
    """IMPALA's residual block: two pre-norm convolutions beside the identity."""

    def __init__(self, num_channels: int, gain: float, batch_norm: bool):
        """Builds the block; ``gain`` is that of both convolutions."""
        super().__init__()
        self.conv0 = NormLayer.conv(num_channels, num_channels, gain, batch_norm)
        self.conv1 = NormLayer.conv(num_channels, num_channels, gain, batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, h, w]`` to the same shape."""
        return x + self.conv1(self.conv0(x))


class DownStack(nn.Module):
    """One stage of IMPALA: convolution, 3x3 max-pool with stride 2, norm, residual blocks."""

    def __init__(self, num_in: int, num_out: int, num_blocks: int, batch_norm: bool):
        super().__init__()
        self.firstconv = NormLayer.conv(num_in, num_out, batch_norm=batch_norm)
        self.n = channel_norm(num_out, batch_norm)
        # The branches of a stage together add about as much variance as the stage receives.
        gain = num_blocks**-0.25
        self.blocks = nn.ModuleList([ResidualBlock(num_out, gain, batch_norm) for _ in range(num_blocks)])

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, in, h, w]`` to ``[N, out, ceil(h / 2), ceil(w / 2)]``."""
        x = self.n(self.firstconv(x, pool=True))
        for block in self.blocks:
            x = block(x)
        return x


class ImpalaCNN(nn.Module):
    """Image encoder: stages, then a dense layer over all features, flattened in C, h, w order."""

    def __init__(
        self,
        input_size: tuple[int, int],
        num_in: int,
        widths: tuple[int, ...],
        num_blocks: int,
        num_out: int,
        batch_norm: bool,
    ):
        """Builds the encoder: a stage of ``num_blocks`` per entry of ``widths``."""
        super().__init__()
        height, width = input_size
        pairs = zip((num_in, *widths[:-1]), widths, strict=True)
        self.stacks = nn.ModuleList([DownStack(a, b, num_blocks, batch_norm) for a, b in pairs])
        for _ in widths:
            height, width = (height + 1) // 2, (width + 1) // 2
        self.dense = NormLayer.linear(widths[-1] * height * width, num_out)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, in, H, W]`` to ``[N, num_out]``."""
        for stack in self.stacks:
            x = stack(x)
        return self.dense(x.flatten(1))


class ImageProcess(nn.Module):
    """The encoder and the layer that widens its output to the hidden size."""

    def __init__(self, cnn: ImpalaCNN, num_features: int, hidsize: int):
        """Builds the layer behind ``cnn``, which puts out ``num_features``."""
        super().__init__()
        self.cnn = cnn
        self.linear = NormLayer.linear(num_features, hidsize)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, H, W]`` to ``[N, hidsize]``."""
        return self.linear(self.cnn(x))
