"""Picture quality against the real continuation: PSNR and SSIM, as MineWorld's benchmark computes them.

A video that obeys its game actions differently from the recording loses PSNR too; it guards against
a world model that pays for its actions with the picture. It is *not* the paper's FVD or VBench.

Letters: N clips, n frames per clip.
"""

from __future__ import annotations

import math
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rlir_env.metrics.base import Metric
from rlir_env.recordings import RecordingError, first_frames, in_order_of_numbers, list_recordings
from rlir_env.resize import resize_like_opencv

# MineWorld's benchmark calls frames this close identical, and gives them this many decibels.
_IDENTICAL_MSE = 1e-10
_IDENTICAL_PSNR = 100.0

_PUBLISHED_SIZE = (224, 384)  # at which MineWorld's script compares

# Of SSIM (Wang et al. 2004), for pixels in [0, 1]: the window and what keeps divisions stable.
_WINDOW_SIZE, _WINDOW_SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


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


def ssim(generated: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of every frame: by channel, where the Gaussian window fits, and then the mean.

    Args:
        generated: ``[..., 3, H, W]`` in [0, 1], at least 11 pixels high and wide.
        reference: The same shape.

    Returns:
        float64 ``[...]``, 1 for identical frames.

    Raises:
        ValueError: if frames are smaller than the window.
    """
    height, width = generated.shape[-2:]
    if min(height, width) < _WINDOW_SIZE:
        raise ValueError(f"SSIM looks through a window of {_WINDOW_SIZE} pixels, frames are {height}x{width}")
    frames = zip(*(videos.reshape(-1, *generated.shape[-3:]) for videos in (generated, reference)), strict=True)
    # Frame by frame, which stay in the processor's cache: five times as fast as all at once.
    similarities = [_ssim_of_frame(x.double(), y.double()) for x, y in frames]
    return torch.stack(similarities).reshape(generated.shape[:-3])


def _ssim_of_frame(x: Tensor, y: Tensor) -> Tensor:
    mean_x, mean_y = _window_means(x), _window_means(y)
    variance_x, variance_y = _window_means(x * x) - mean_x**2, _window_means(y * y) - mean_y**2
    covariance = _window_means(x * y) - mean_x * mean_y
    similarity = ((2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)) / (
        (mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2)
    )
    return similarity.mean((-3, -2, -1))


def _window_means(values: Tensor) -> Tensor:
    """Weighted means of all windows, ``[..., H - 10, W - 10]``; float64 convolutions are slow on CPUs, sums are not."""
    weights = [math.exp(-((i - _WINDOW_SIZE // 2) ** 2) / (2 * _WINDOW_SIGMA**2)) for i in range(_WINDOW_SIZE)]
    for dim in (-2, -1):
        length = values.shape[dim] - _WINDOW_SIZE + 1
        shifted = (values.narrow(dim, i, length) * (weight / sum(weights)) for i, weight in enumerate(weights))
        values = reduce(torch.add, shifted)
    return values


@torch.no_grad()
def compare_folder(
    videos: str | Path, references: str | Path, num_frames: int = 15, max_clips: int = 500, first_frame: int = 1
) -> dict[str, dict[str, Any]]:
    """MineWorld's protocol for picture quality on files, as far as it needs no network.

    Args:
        videos: Folder of ``.mp4`` files of generated frames.
        references: Folder of the real videos of the same names.
        num_frames: Compared of each.
        max_clips: The first so many videos, by the number at the end of their names as the script counts, and not by
            name as for action following.
        first_frame: Of the real videos that is compared: 1 where they begin with the given frame, 0 where both are
            whole recordings.

    Returns:
        ``psnr`` (dB) and ``ssim``, each with ``value`` and ``value_std`` over videos for every frame.

    Raises:
        ValueError: if there are no videos, or one is broken, too short or without a real one.
    """
    measures = {"psnr": psnr, "ssim": ssim}
    by_clip: dict[str, list[Tensor]] = {name: [] for name in measures}
    real_videos = {file.stem: file for file in list_recordings(references)}
    chosen = in_order_of_numbers(list_recordings(videos))[:max_clips]
    for video in tqdm(chosen, desc="comparing videos", unit="clip", leave=False):
        generated = _as_published(first_frames(video, num_frames))
        if video.stem not in real_videos:
            raise RecordingError(f"{references}: {video.name} is missing")
        real = first_frames(real_videos[video.stem], first_frame + num_frames)
        reference = _as_published(real[first_frame:])
        for name, measure in measures.items():
            by_clip[name].append(measure(generated, reference))
    figures = {}
    for name, clips in by_clip.items():
        value = torch.stack(clips)  # [N, n]
        figures[name] = {"value": value.mean(0).tolist(), "value_std": value.std(0, correction=0).tolist()}
    return figures


def _as_published(frames: np.ndarray) -> Tensor:
    """Frames ``[n, H, W, 3]`` as the script compares them: ``[n, 3, 224, 384]`` in [0, 1]."""
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2)
    if tuple(pictures.shape[-2:]) != _PUBLISHED_SIZE:
        pictures = resize_like_opencv(pictures, _PUBLISHED_SIZE)
    return pictures.float() / 255


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
