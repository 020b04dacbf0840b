"""The learning rate over a run: warm-up, perhaps a plateau, then half a cosine (paper, Appendix A)."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine_with_warmup(
    optimizer: Optimizer,
    num_iterations: int,
    *,
    warmup_iterations: int = 0,
    decay_iterations: int | None = None,
    final_fraction: float = 0.0,
) -> LambdaLR:
    """Rise linearly to the optimizer's own rate, hold it, then fall to a fraction of it along a cosine.

    Counted in iterations (one `step` per collected batch), so that epochs and minibatches do not
    change its length. With a plateau it is the schedule "warm-up, stable, decay" (MiniCPM, Hu et al. 2024, arXiv
    2404.06395): until it falls, a run is what a longer one begins with.

    Args:
        optimizer: its ``lr`` is the peak.
        num_iterations: length of the run; the last iteration still has a rate above the final one.
        warmup_iterations: iterations until the peak, starting at ``lr / warmup_iterations``.
        decay_iterations: iterations of the cosine at the end of the run, the peak being held until then; None, or more
            than there are behind the warm-up, takes all of those.
        final_fraction: share of the peak at which the cosine would end.

    Returns:
        The scheduler; call `step` once an iteration.

    Raises:
        ValueError: if the warm-up does not fit into the run, or nothing is left to decay.

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
    if decay_iterations is not None and decay_iterations < 1:
        raise ValueError(
            f"decay_iterations={decay_iterations}: must be at least 1, or null; final_fraction=1 keeps the peak"
        )
    num_decaying = num_iterations - warmup_iterations
    if decay_iterations is not None:
        num_decaying = min(num_decaying, decay_iterations)
    decay_start = num_iterations - num_decaying

    def share_of_peak(iteration: int) -> float:
        if iteration < warmup_iterations:
            return (iteration + 1) / warmup_iterations
        progress = max(0, iteration - decay_start) / num_decaying
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
        return final_fraction + (1.0 - final_fraction) * cosine

    return LambdaLR(optimizer, share_of_peak)
