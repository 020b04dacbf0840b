"""Intervals by drawing clips anew: is a difference more than the luck of the evaluation clips?

Paired: both models played the same prompts with the same seeds, so a draw takes a clip of both or
of neither: use the same weights for both. It says nothing about the luck of the training seed; for
that, train again.

Letters: N clips, D draws.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw_weights(num_clips: int, num_draws: int = 1000, seed: int = 0) -> Tensor:
    """How often each clip is in each draw of N clips with replacement, float64 ``[D, N]``."""
    noise = torch.Generator().manual_seed(seed)
    chosen = torch.randint(num_clips, (num_draws, num_clips), generator=noise)
    weights = torch.zeros(num_draws, num_clips, dtype=torch.float64)
    return weights.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.float64))


def weighted_sum(tables: Tensor, weights: Tensor) -> Tensor:
    """Sum the clips' tables ``[N, ...]`` in every draw, float64 ``[D, ...]``."""
    return torch.tensordot(weights, tables.double(), dims=1)
