"""Intervals by drawing clips anew: is a difference more than the luck of the evaluation clips?

Paired: both models played the same prompts with the same seeds, so a draw takes a clip of both or
of neither. It says nothing about the luck of the training seed; for that, train again.

Letters: N clips, D draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Gain(NamedTuple):
    """A difference with its 95 % interval."""

    value: float
    low: float
    high: float


def draw_weights(num_clips: int, num_draws: int = 1000, seed: int = 0) -> Tensor:
    """How often each clip is in each draw of N clips with replacement, float64 ``[D, N]``."""
    noise = torch.Generator().manual_seed(seed)
    chosen = torch.randint(num_clips, (num_draws, num_clips), generator=noise)
    weights = torch.zeros(num_draws, num_clips, dtype=torch.float64)
    return weights.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.float64))


def weighted_sum(tables: Tensor, weights: Tensor) -> Tensor:
    """Sum the clips' tables ``[N, ...]`` in every draw, float64 ``[D, ...]``."""
    return torch.tensordot(weights, tables.double(), dims=1)


def paired_gain(
    before: Tensor,
    after: Tensor,
    statistic: Callable[[Tensor], Tensor],
    num_draws: int = 1000,
    seed: int = 0,
) -> Gain:
    """The gain of a statistic of summed tables, with a percentile interval.

    Args:
        before: One table per clip, ``[N, ...]`` (:attr:`~rlir_env.metrics.Metric.per_clip`).
        after: The same clips by the other model.
        statistic: From sums over clips ``[D, ...]`` to numbers ``[D]``.
        num_draws: D.
        seed: Of the draws.

    Returns:
        The gain on all clips, and the 2.5 % and 97.5 % points over draws.

    Raises:
        ValueError: if the clips are not the same number.
    """
    if before.shape != after.shape:
        raise ValueError(f"before {tuple(before.shape)} and after {tuple(after.shape)} must be the same clips")
    everything = torch.ones(1, len(before), dtype=torch.float64)
    weights = torch.cat([everything, draw_weights(len(before), num_draws, seed)])
    gains = statistic(weighted_sum(after, weights)) - statistic(weighted_sum(before, weights))
    low, high = torch.quantile(gains[1:], torch.tensor([0.025, 0.975], dtype=torch.float64))
    return Gain(float(gains[0]), float(low), float(high))
