"""The learning rate over a run: warm-up, then half a cosine (paper, Appendix A)."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine_with_warmup(
    optimizer: Optimizer,
    num_iterations: int,
    *,
    warmup_iterations: int = 0,
    final_fraction: float = 0.0,
) -> LambdaLR:
    """Rise linearly to the optimizer's own rate, then fall to a fraction of it along a cosine.

    Counted in iterations (one `step` per collected batch), so that epochs and minibatches do not
    change its length.

    Args:
        optimizer: its ``lr`` is the peak.
        num_iterations: length of the run; the last iteration still has a rate above the final one.
        warmup_iterations: iterations until the peak, starting at ``lr / warmup_iterations``.
        final_fraction: share of the peak at which the cosine would end.

    Returns:
        The scheduler; call `step` once an iteration.

    Raises:
        ValueError: if the warm-up does not fit into the run.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.AdamW(torch.nn.Linear(1, 1).parameters(), lr=1.0)
        >>> scheduler = cosine_with_warmup(optimizer, 4, warmup_iterations=2)
        >>> scheduler.get_last_lr()
        [0.5]
    """
    if not 0 <= warmup_iterations < max(1, num_iterations):
        raise ValueError(
            f"warmup_iterations={warmup_iterations} does not fit into {num_iterations} iterations: choose fewer"
        )

    def share_of_peak(iteration: int) -> float:
        if iteration < warmup_iterations:
            return (iteration + 1) / warmup_iterations
        progress = (iteration - warmup_iterations) / (num_iterations - warmup_iterations)
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
        return final_fraction + (1.0 - final_fraction) * cosine

    return LambdaLR(optimizer, share_of_peak)
