"""Bilinear resizing of 8-bit images, bit for bit as OpenCV's ``INTER_LINEAR`` does it.

The published inverse dynamics model was trained on frames that OpenCV had resized. A float bilinear
resize followed by rounding differs from OpenCV's fixed-point arithmetic by one grey level in 6-13 %
of the pixels, so parity needs the integers. This is not a general image library: 8-bit, bilinear,
nothing else.

Letters: N images, C channels, H, W input size, h, w output size.
"""

from __future__ import annotations

import torch
from torch import Tensor

# OpenCV's fixed point: interpolation weights are integers that sum to 2**11.
_WEIGHT_SCALE = 2048


def resize_like_opencv(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes as ``cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)`` does.

    Args:
        images: ``[..., H, W]`` uint8; channels, if any, lie before H.
        size: ``(h, w)`` of the output.

    Returns:
        ``[..., h, w]`` uint8 on the device of ``images``.

    Raises:
        ValueError: If ``images`` is not uint8.

    Example:
        >>> resize_like_opencv(torch.tensor([[0, 100]], dtype=torch.uint8), (1, 4)).tolist()
        [[0, 25, 75, 100]]
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"expected uint8 images, got {images.dtype}; convert with (x * 255).round().byte()")
    height, width = images.shape[-2:]
    if (height, width) == tuple(size):
        return images
    if (height, width) == (2 * size[0], 2 * size[1]):
        return _halve(images)
    left, right, weight_left, weight_right = _taps(width, size[1], images.device, True)
    pixels = (images.index_select(-1, side).int() for side in (left, right))  # bytes are gathered, not integers
    rows = weight_left * next(pixels) + weight_right * next(pixels)  # [..., H, w]
    top, bottom, weight_top, weight_bottom = _taps(height, size[0], images.device, False)
    # The shifts keep OpenCV's intermediate in 16 bits; their truncation is what must be reproduced.
    upper = (weight_top[:, None] * (rows.index_select(-2, top) >> 4)) >> 16  # [..., h, w]
    lower = (weight_bottom[:, None] * (rows.index_select(-2, bottom) >> 4)) >> 16
    return ((upper + lower + 2) >> 2).to(torch.uint8)


def _halve(images: Tensor) -> Tensor:
    """Rounded mean of 2x2 blocks: what OpenCV silently does instead for an exact factor of two."""
    pixels = images.int()
    rows = pixels[..., 0::2, :] + pixels[..., 1::2, :]
    return ((rows[..., 0::2] + rows[..., 1::2] + 2) >> 2).to(torch.uint8)


def _taps(source: int, target: int, device: torch.device, is_horizontal: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two source indices and the two integer weights of every target index along one axis.

    Outside the image both taps are the border pixel. OpenCV then puts the whole weight on one of
    them along rows but keeps the split along columns, where it changes the truncation.
    """
    # Not cached: made in a dry run they would have no memory, and would stay so in the process.
    position = ((torch.arange(target, dtype=torch.float64) + 0.5) * (source / target) - 0.5).float()
    start = position.floor()
    fraction = position - start
    if is_horizontal:
        fraction = fraction.where((start >= 0) & (start < source - 1), torch.zeros(()))
    first, second = (index.long().clamp(0, source - 1) for index in (start, start + 1))
    weight_first = ((1 - fraction) * _WEIGHT_SCALE).round().int()  # round() is half-to-even, as OpenCV's
    weight_second = (fraction * _WEIGHT_SCALE).round().int()
    return first.to(device), second.to(device), weight_first.to(device), weight_second.to(device)
