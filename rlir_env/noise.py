"""Noise that is a function of its place: of a seed and a position, or of a seed, a frame and a denoising step.

The same noise, whatever else is in the batch, in whatever order things are made, and whatever the global generator did
before; so a video can be continued, repeated and evaluated again from its seeds alone. Siblings that are to start from
the same noise have the same seed, siblings that are to differ have their own; one seed may serve both, because places
never meet.

Letters: c, h, w a latent's channels, height and width; ``[...]`` any leading dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# splitmix64's increment and multipliers (Steele et al., 2014), as signed 64-bit integers; products wrap.
_INCREMENT = 0x9E3779B97F4A7C15 - 2**64
_FIRST_MULTIPLIER = 0xBF58476D1CE4E5B9 - 2**64
_SECOND_MULTIPLIER = 0x94D049BB133111EB - 2**64

# Denoising steps come first, 0 .. N - 1; what a step needs besides has the places behind them (`FlowMatchingPolicy`:
# N + step and 2 N + step); three at the end are for what a frame needs once.
_PLACES_PER_FRAME = 2**12
STEP_SELECTION = _PLACES_PER_FRAME - 3
CONTEXT_NOISE = _PLACES_PER_FRAME - 2
INITIAL_NOISE = _PLACES_PER_FRAME - 1


def counter_uniform(seed: Tensor, position: Tensor | int) -> Tensor:
    """Noise at a place: float32 in the open interval (0, 1).

    Output ``position`` of the splitmix64 generator whose state is the hashed seed. 23 bits, centred in their cells:
    neither 0 nor 1 occurs, and every value is exact in float32.

    Args:
        seed: int64, any shape.
        position: int64 that broadcasts with it, 0 or more.

    Example:
        >>> seed = torch.tensor([7, 8])
        >>> bool((counter_uniform(seed, 3) == counter_uniform(seed.flip(0), 3).flip(0)).all())
        True
    """
    return (_shift_right(_bits(seed, position), 41).float() + 0.5) * 2.0**-23


def step_uniform(seed: Tensor, shape: Sequence[int], frame: Tensor | int, step: Tensor | int) -> Tensor:
    """Uniform noise of a denoising step: the stream of numbers that belongs to (seed, frame, step).

    Args:
        seed: int64 ``[...]``.
        shape: Of the noise of one seed.
        frame: Index of the frame, 0 or more; int64 that broadcasts with the seeds.
        step: Denoising step, 0 or more, or another of the places above; broadcasts alike.

    Returns:
        float32 ``[..., *shape]`` in the open interval (0, 1).

    Raises:
        ValueError: if a step is negative or has no place.
    """
    frame, step = (torch.as_tensor(index, device=seed.device) for index in (frame, step))
    if not bool(((step >= 0) & (step < _PLACES_PER_FRAME)).all()):
        raise ValueError(f"step={step.tolist()}: denoising steps are 0 .. {STEP_SELECTION - 1}")
    # A stream of its own for every place, so that streams of different lengths share no numbers.
    stream = _bits(seed, frame * _PLACES_PER_FRAME + step)
    numbers = counter_uniform(stream[..., None], torch.arange(math.prod(shape), device=seed.device))
    return numbers.unflatten(-1, tuple(shape))


def step_normal(seed: Tensor, shape: Sequence[int], frame: Tensor | int, step: Tensor | int) -> Tensor:
    """Standard normal noise of a denoising step, by the inverse of the cumulative distribution of `step_uniform`.

    Bitwise the same for every batch shape on one kind of device; a GPU's logarithms may differ in the last digit.

    Args:
        seed: As in `step_uniform`.
        shape: As there.
        frame: As there.
        step: As there.

    Returns:
        float32 ``[..., *shape]``, at most 5.4 in size.

    Example:
        >>> noise = step_normal(torch.tensor([7, 8]), (2, 3), frame=1, step=INITIAL_NOISE)
        >>> bool((noise[1] == step_normal(torch.tensor(8), (2, 3), frame=1, step=INITIAL_NOISE)).all())
        True
    """
    # 2 u - 1 is exact: uniform noise has 24 bits at most.
    return math.sqrt(2) * torch.erfinv(2 * step_uniform(seed, shape, frame, step) - 1)


def _bits(seed: Tensor, position: Tensor | int) -> Tensor:
    position = torch.as_tensor(position, device=seed.device)
    return _mix(_mix(seed + _INCREMENT) + (position + 1) * _INCREMENT)


def _mix(z: Tensor) -> Tensor:
    """splitmix64's finaliser: every bit of the input changes every bit of the output with probability one half."""
    z = (z ^ _shift_right(z, 30)) * _FIRST_MULTIPLIER
    z = (z ^ _shift_right(z, 27)) * _SECOND_MULTIPLIER
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift of int64: torch's own keeps the sign."""
    return (z >> bits) & (2 ** (64 - bits) - 1)
