"""Gaussian noise that is a function of its place: of a seed, a frame and a denoising step, and of nothing else.

The same noise, whatever else is in the batch, in whatever order frames are made, and whatever the global generator did
before. Siblings that are to start from the same noise have the same seed, siblings that are to differ have their own;
one seed may serve both, because places never meet.

Letters: c, h, w a latent's channels, height and width; ``[...]`` any leading dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rlir_agents.world_models.sampling import counter_uniform

# Denoising steps come first; the noise a frame starts from and that of its context have the two last places.
_PLACES_PER_FRAME = 2**12
CONTEXT_NOISE = _PLACES_PER_FRAME - 2
INITIAL_NOISE = _PLACES_PER_FRAME - 1


def counter_normal(seed: Tensor, shape: Sequence[int], frame: Tensor | int, step: Tensor | int) -> Tensor:
    """Standard normal noise at a place, by the inverse of the cumulative distribution of `counter_uniform`.

    Bitwise the same for every batch shape on one kind of device; a GPU's logarithms may differ in the last digit.

    Args:
        seed: int64 ``[...]``.
        shape: Of the noise of one seed.
        frame: Index of the frame, 0 or more; int64 that broadcasts with the seeds.
        step: Denoising step, 0 or more, or ``INITIAL_NOISE`` or ``CONTEXT_NOISE``; broadcasts alike.

    Returns:
        float32 ``[..., *shape]``, at most 5.4 in size.

    Raises:
        ValueError: if a step is negative or has no place.

    Example:
        >>> noise = counter_normal(torch.tensor([7, 8]), (2, 3), frame=1, step=INITIAL_NOISE)
        >>> bool((noise[1] == counter_normal(torch.tensor(8), (2, 3), frame=1, step=INITIAL_NOISE)).all())
        True
    """
    step = torch.as_tensor(step, device=seed.device)
    if not bool(((step >= 0) & (step < _PLACES_PER_FRAME)).all()):
        raise ValueError(f"step={step.tolist()}: denoising steps are 0 .. {CONTEXT_NOISE - 1}")
    place = torch.as_tensor(frame, device=seed.device) * _PLACES_PER_FRAME + step
    index = torch.arange(math.prod(shape), device=seed.device)
    position = place[..., None] * len(index) + index
    uniform = counter_uniform(seed[..., None], position)
    # 2 u - 1 is exact: uniform has 24 bits at most.
    return (math.sqrt(2) * torch.erfinv(2 * uniform - 1)).unflatten(-1, tuple(shape))
