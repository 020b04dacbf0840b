"""Log-probabilities of finished rollouts as training sees them: sequence mode, its precision.

The log-prob at collection comes from step mode with a cache; in bf16 the two differ by more than
some clip ranges (a 2e-4 mismatch already exceeds DanceGRPO's). Ratios are therefore taken against a
recomputed one.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.modules import set_recurrent_mode

from rlir_agents.minibatches import select_rollouts


@torch.no_grad()
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
    log_probs = []
    rows = torch.arange(rollouts.shape[0])
    for micro_rows in rows.split(micro_batch_size):
        batch = select_rollouts(rollouts, micro_rows)
        with set_recurrent_mode(True):
            log_probs.append(policy.get_dist(batch).log_prob(batch["action"]).float())
    return torch.cat(log_probs)
