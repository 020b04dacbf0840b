"""DDPM's thousand noise levels of Oasis as timesteps of flow matching, and back.

DDPM step k has ``alpha data + s noise`` with ``alpha**2 = alpha_bar[k]``, here by a sigmoid schedule (Jabri et al.
2022, arXiv 2212.11972). As a share of noise that is ``s / (alpha + s)``, up to 0.9995 at step 999.
"""

from __future__ import annotations

import torch
from torch import Tensor

_NUM_STEPS = 1000
_START, _END = -3.0, 3.0  # of the sigmoid
_LARGEST_BETA = 0.999


def timesteps() -> Tensor:
    """The timestep of every DDPM step, rising, float64 ``[1000]``."""
    # Not cached: made in a dry run it would have no memory, and would stay so in the process.
    place = torch.linspace(_START, _END, _NUM_STEPS + 1, dtype=torch.float64)
    # The public code takes the two ends in float32, and the products of alphas too.
    first, last = torch.tensor([_START, _END]).sigmoid()
    survived = (last - place.sigmoid()) / (last - first)
    beta = (1 - survived[1:] / survived[:-1]).clamp(0, _LARGEST_BETA)
    alpha_bar = (1 - beta.float()).cumprod(0).double()
    alpha, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    return s / (alpha + s)


def ddim_grid(num_steps: int = 10) -> Tensor:
    """Timesteps of the sampler that Oasis is published with: DDIM, which is Euler's method on this grid.

    Args:
        num_steps: N; the public code has 10.

    Returns:
        ``[N+1]`` float64, from step 999's timestep to 0.

    Raises:
        ValueError: if there are no steps, or more than DDPM's.

    Example:
        >>> [round(t, 3) for t in ddim_grid(4).tolist()]
        [0.999, 0.705, 0.5, 0.295, 0.0]
    """
    if not 1 <= num_steps <= _NUM_STEPS:
        raise ValueError(f"num_steps={num_steps}: choose 1 to {_NUM_STEPS}; Oasis has 10")
    steps = torch.linspace(-1, _NUM_STEPS - 1, num_steps + 1).long().flip(0)  # cut off to whole steps
    return torch.cat([timesteps()[steps[:-1]], torch.zeros(1, dtype=torch.float64)])


def nearest_label(timestep: Tensor) -> Tensor:
    """The DDPM step whose timestep is nearest, float32 of the shape of the timesteps."""
    table = timesteps()
    return torch.bucketize(timestep.double(), ((table[1:] + table[:-1]) / 2).to(timestep.device)).float()


def continuous_label(timestep: Tensor) -> Tensor:
    """Between two DDPM steps, by their timesteps; float32 of the shape of the timesteps, from 0 to 999."""
    table = timesteps().to(timestep.device)
    wanted = timestep.double().clamp(table[0], table[-1])
    upper = torch.bucketize(wanted, table).clamp(min=1)
    low, high = table[upper - 1], table[upper]
    return (upper - 1 + (wanted - low) / (high - low)).float()
