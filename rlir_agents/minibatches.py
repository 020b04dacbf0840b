"""How a batch is cut up for the update: groups into minibatches, rollouts into micro-batches.

A *minibatch* is what one optimiser step sees: whole groups, so that the siblings an advantage
compares are weighed together. A *micro-batch* is what fits into memory at once; gradients of
micro-batches add up to the minibatch's.

Letters: P prompts, G group size, N = P * G rollouts (row p * G + g), T steps.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey


def check_minibatches(num_prompts: int, num_minibatches: int) -> None:
    """Refuse what the groups of a batch cannot be dealt out to evenly.

    Raises:
        ValueError: naming both numbers.
    """
    if num_prompts % num_minibatches:
        raise ValueError(
            f"num_minibatches={num_minibatches} must divide the {num_prompts} prompts of a batch, "
            "because a group is not split over optimiser steps"
        )


def shuffled_minibatches(
    num_prompts: int, group_size: int, num_minibatches: int, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Deal whole groups out to minibatches in random order.

    Args:
        num_prompts: P.
        group_size: G.
        num_minibatches: how many; each gets P / num_minibatches groups (`check_minibatches`).
        generator: source of the order.

    Yields:
        Row indices of one minibatch, long [N / num_minibatches].
    """
    order = torch.randperm(num_prompts, generator=generator)
    for prompts in order.chunk(num_minibatches):
        yield (prompts[:, None] * group_size + torch.arange(group_size)).flatten()


def select_rollouts(rollouts: TensorDictBase, rows: torch.Tensor) -> TensorDictBase:
    """Copy some rollouts, but keep entries that are constant along time as stride-0 views.

    Indexing alone would write out, for every step, prompts that the collector stored once.

    Args:
        rollouts: [N, T].
        rows: indices, long [n].

    Returns:
        Tensordict [n, T].
    """

    def take(entry: torch.Tensor) -> torch.Tensor:
        if entry.stride(1) == 0:
            return entry[:, :1][rows].expand(len(rows), *entry.shape[1:])
        return entry[rows]

    return rollouts.apply(take, batch_size=[len(rows), rollouts.shape[1]])


def worth_training_on(rollouts: TensorDictBase, rows: torch.Tensor) -> torch.Tensor:
    """Drop the rollouts whose advantage is zero at every step; keep one if that is all of them.

    The clipped loss has no gradient there. The one that stays keeps the optimiser step itself
    (momentum, weight decay), so that dropping changes nothing but the time.

    Args:
        rollouts: [N, T] with ``advantage`` [N, T, 1].
        rows: row indices, long [n].

    Returns:
        The rows that remain, in order.
    """
    is_zero = (rollouts["advantage"][rows] == 0).flatten(1).all(1)
    kept = rows[~is_zero.cpu()]
    return kept if len(kept) else rows[:1]


def num_counted(rollouts: TensorDictBase, rows: torch.Tensor, mask_key: NestedKey | None) -> float:
    """How many actions of these rollouts the loss averages over: its mask's, or all (one each).

    Micro-batch losses are means over what they hold; weighed by this count they add up to the
    minibatch's mean even where masks differ.

    Args:
        rollouts: [N, T].
        rows: row indices, long [n].
        mask_key: the loss's ``loss_mask_key``; ignored if the rollouts have no such entry.

    Returns:
        The count, in units that are the same for all rows.
    """
    mask = rollouts.get(mask_key, default=None) if mask_key is not None else None
    return float(len(rows)) if mask is None else float(mask[rows].sum())
