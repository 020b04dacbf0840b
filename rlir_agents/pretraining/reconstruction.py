"""What all tokenizers are trained on and measured by: single frames, and how far their reconstructions are off.

L1 on pixels and on differences of neighbouring pixels: edges carry motion, and a plain L1 blurs them away. What keeps
the codes in order is the business of each kind of tokenizer (``tokenizer.py``, ``kl_tokenizer.py``).

Letters: N frames, H, W frame size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rlir_agents.pretraining.augmentation import mirror_frames
from rlir_env.recordings import FrameArchive


def draw_frames(archive: FrameArchive, num_frames: int, generator: torch.Generator) -> Tensor:
    """Draw frames, each from a different place and half of them mirrored: float ``[N, 3, H, W]`` in [0, 1]."""
    frames = archive.sample_clips(num_frames, 1, generator).frames[:, 0]
    half = len(frames) // 2
    return torch.cat([mirror_frames(frames[:half]), frames[half:]]).float() / 255


def spread_frames(archive: FrameArchive, num_frames: int) -> Tensor:
    """Pick frames evenly, always the same: uint8 ``[N, 3, H, W]``, fewer if the archive has no more."""
    return archive.clips(archive.spread_starts(num_frames, 1), 1).frames[:, 0]


def pixel_error(reconstruction: Tensor, frames: Tensor) -> Tensor:
    """Mean absolute error of ``[N, 3, H, W]`` in units of the pixel range: a scalar."""
    return F.l1_loss(reconstruction, frames)


def edge_error(reconstruction: Tensor, frames: Tensor) -> Tensor:
    """Mean absolute errors of the differences of neighbours in a column and in a row, added: a scalar."""
    rows, columns = (F.l1_loss(reconstruction.diff(dim=dim), frames.diff(dim=dim)) for dim in (-2, -1))
    return rows + columns


def mean_psnr(reconstruction: Tensor, frames: Tensor) -> float:
    """Mean over frames of their PSNR in dB, 100 at most.

    Args:
        reconstruction: float ``[N, 3, H, W]`` in [0, 1].
        frames: uint8 of the same shape.
    """
    error = reconstruction - frames.float() / 255
    psnr = -10 * error.square().mean(dim=(1, 2, 3)).clamp_min(1e-10).log10()
    return float(psnr.mean())
