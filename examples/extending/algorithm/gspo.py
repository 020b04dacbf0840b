"""An algorithm in one file: GSPO, one ratio for the whole video (Zheng et al., 2025, arXiv 2507.18071).

The paper names it among the successors of GRPO that it does not use (section 3.2). GRPO clips the ratio of every token
by itself; GSPO clips their geometric mean, because the reward, too, belongs to the whole sequence. It is *not* a
trainer: collecting, comparing siblings and stepping stay what they are. `README.md` beside this file is the recipe.

Letters: B rollouts, T steps, k tokens per step.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.objectives import LossModule


class GSPOLoss(LossModule):
    """Clipped objective on ``s_i = exp(mean over tokens of log p / p_old)`` (their Eq. 5 and 7).

    Reads ``action_log_prob``, ``advantage`` and what the policy reads; writes ``loss_objective`` to be minimised, and
    detached diagnostics, which the trainer logs as ``train/<name>``.
    """

    def __init__(self, actor_network: TensorDictModuleBase, *, clip_epsilon: float = 4e-4) -> None:
        """Make the loss.

        Args:
            actor_network: policy with ``get_dist``.
            clip_epsilon: half width of the clip. Means of logs move far less than single ones: the authors print
                3e-4 and 4e-4, where GRPO has 0.2.
        """
        super().__init__()
        self.actor_network = actor_network
        self.clip_epsilon = clip_epsilon
        self.in_keys = [*actor_network.in_keys, "action", "action_log_prob", "advantage"]
        self.out_keys = ["loss_objective", "clip_fraction", "mean_ratio", "max_ratio"]

    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Score rollouts ``[B, T]``."""
        log_prob = self.actor_network.get_dist(tensordict).log_prob(tensordict["action"])  # [B, T, k]
        log_ratio = (log_prob - tensordict["action_log_prob"]).flatten(1).mean(1)
        ratio = log_ratio.exp()  # [B]
        advantage = tensordict["advantage"].flatten(1).mean(1)  # [B]; the same at every step with sequence credit
        clipped = ratio.clamp(1 - self.clip_epsilon, 1 + self.clip_epsilon)
        gain = torch.minimum(ratio * advantage, clipped * advantage)
        is_clipped = (ratio.detach() - 1).abs() > self.clip_epsilon
        return TensorDict(
            {
                "loss_objective": -gain.mean(),
                "clip_fraction": is_clipped.float().mean(),
                "mean_ratio": ratio.detach().mean(),
                "max_ratio": ratio.detach().max(),
            }
        )

    def _forward_value_estimator_keys(self, **kwargs: object) -> None:
        """There is no value estimator whose keys would follow."""
