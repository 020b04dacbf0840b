"""Intervals of what is claimed about a run: percentiles over draws, and the share of a gap.

The draws themselves are `rlir_env.metrics.draw_weights`: a draw takes clips with replacement, the
*same* clips of every evaluation (same prompts, same seeds), so that what the clips have in common
cancels in differences and shares.

Letters: D draws.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_DRAWS = 1000
LEVEL = 0.95


def interval(draws: Tensor, level: float = LEVEL) -> list[float] | None:
    """Percentile interval [lo, hi] of draws [D]; None if one of them is undefined.

    Example:
        >>> interval(torch.arange(101.0), level=0.9)
        [5.0, 95.0]
    """
    if not torch.isfinite(draws).all():
        return None
    tail = (1 - level) / 2
    bounds = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    return [round(bound, 6) for bound in torch.quantile(draws.to(torch.float64), bounds).tolist()]


def share_of_gap(before: Tensor, after: Tensor, ceiling: Tensor) -> Tensor:
    """(after - before) / (ceiling - before); NaN where there is no gap to close.

    Args:
        before: the base model's figure, any shape.
        after: the post-trained model's, same shape.
        ceiling: the real continuation's, same shape.

    Example:
        >>> share_of_gap(torch.tensor(0.5), torch.tensor(0.6), torch.tensor(0.9))
        tensor(0.2500)
    """
    gap = ceiling - before
    return torch.where(gap > 0, (after - before) / gap, torch.full_like(gap, torch.nan))
