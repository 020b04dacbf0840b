"""Log-probabilities of finished rollouts as training sees them: sequence mode, its precision.

The log-prob at collection comes from step mode with a cache; in bf16 the two differ by more than
some clip ranges (a 2e-4 mismatch already exceeds DanceGRPO's). Ratios are therefore taken against a
recomputed one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch.distributions import Distribution
from torchrl.modules import set_recurrent_mode

from rlir_agents.losses.kl_to_reference import entries_of_reference
from rlir_agents.minibatches import select_rollouts


def sequence_log_prob(
    policy: TensorDictModuleBase,
    rollouts: TensorDictBase,
    *,
    micro_batch_size: int,
) -> torch.Tensor:
    """Log-prob of the stored actions by one teacher-forced forward per micro-batch.

    Args:
        policy: with ``get_dist`` in sequence mode.
        rollouts: [N, T] with ``action``.
        micro_batch_size: rollouts per forward.

    Returns:
        float32, of the shape of ``action_log_prob``: [N, T, k], for k tokens or denoising steps per env step.
    """
    return _by_micro_batch(
        policy, rollouts, micro_batch_size, lambda dist, action: {"log_prob": dist.log_prob(action).float()}
    )["log_prob"]


def reference_entries(
    policy: TensorDictModuleBase,
    rollouts: TensorDictBase,
    *,
    micro_batch_size: int,
) -> TensorDict:
    """What a leash to this policy reads, in the same way; see `entries_of_reference`.

    Args:
        policy: the reference.
        rollouts: [N, T] with ``action``.
        micro_batch_size: rollouts per forward.

    Returns:
        [N, T] with ``ref_log_prob`` and perhaps ``ref_mean``.
    """
    return _by_micro_batch(policy, rollouts, micro_batch_size, entries_of_reference)


@torch.no_grad()
def _by_micro_batch(
    policy: TensorDictModuleBase,
    rollouts: TensorDictBase,
    micro_batch_size: int,
    entries: Callable[[Distribution, torch.Tensor], dict[str, torch.Tensor]],
) -> TensorDict:
    parts = []
    for rows in torch.arange(rollouts.shape[0]).split(micro_batch_size):
        batch = select_rollouts(rollouts, rows)
        with set_recurrent_mode(True):
            dist = policy.get_dist(batch)
        parts.append(TensorDict(entries(dist, batch["action"]), batch_size=batch.batch_size))
    return torch.cat(parts)
