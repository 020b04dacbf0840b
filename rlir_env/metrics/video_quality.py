"""Picture quality against the real continuation: PSNR, as MineWorld's benchmark computes it.

A video that obeys its game actions differently from the recording loses PSNR too; it guards against
a world model that pays for its actions with the picture. It is *not* the paper's FVD or VBench.

Letters: N clips, n frames per clip.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlir_env.metrics.base import Metric

# MineWorld's benchmark calls frames this close identical, and gives them this many decibels.
_IDENTICAL_MSE = 1e-10
_IDENTICAL_PSNR = 100.0


def psnr(generated: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of every frame over all its channels, in dB.

    Args:
        generated: ``[..., 3, H, W]`` in [0, 1].
        reference: The same shape.

    Returns:
        float64 ``[...]``, 100 for identical frames.
    """
    mse = (generated.double() - reference.double()).square().mean((-3, -2, -1))
    return torch.where(mse < _IDENTICAL_MSE, _IDENTICAL_PSNR, -10 * mse.clamp(min=1e-30).log10())


class PSNR(Metric):
    """Mean PSNR over clips and frames; frames are float ``[N, n, 3, H, W]`` in [0, 1]."""

    def table(self, generated: Tensor, reference: Tensor) -> Tensor:
        """PSNR of every frame, ``[N, n]``.

        Raises:
            ValueError: if the frames are not floats: uint8 frames are to be divided by 255.
        """
        if not (generated.is_floating_point() and reference.is_floating_point()):
            raise ValueError("frames must be floats in [0, 1]: divide uint8 frames by 255")
        return psnr(generated, reference)

    def compute(self) -> dict[str, float]:
        """``video/psnr`` in dB."""
        return {"video/psnr": float(self.per_clip.mean())}
