"""PPO's advantage: what came, against what a learned critic expected. The paper has no critic.

The recursion is TorchRL's `GAE`. This adapter gives it values from one forward over whole episodes
(TorchRL wraps only losses in recurrent mode, not value estimators) and speaks the trainer's
contract, a callable on rollouts [P, G, T].
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.modules import set_recurrent_mode
from torchrl.objectives.value import GAE


class GeneralizedAdvantage:
    """Generalized advantage estimation (Schulman et al., 2016) with a critic.

    An episode always ends by `terminated`, so no value is needed behind its last step, and the
    value of every earlier next state is the value of the next row: one critic forward on [B, T]
    serves both.
    """

    def __init__(
        self,
        critic: TensorDictModuleBase,
        *,
        gamma: float = 1.0,
        lmbda: float = 0.95,
        normalize: bool = True,
    ) -> None:
        """Make the estimator.

        Args:
            critic: writes ``state_value`` [B, T, 1] when called on [B, T] in recurrent mode; the
                same module that the loss trains.
            gamma: discount; 1 by default, for an episode is one video and its reward comes at the
                end.
            lmbda: TorchRL's spelling of lambda.
            normalize: give the advantages of a batch zero mean and unit deviation.
        """
        self.critic = critic
        self._estimator = GAE(gamma=gamma, lmbda=lmbda, value_network=None, average_gae=normalize)

    @torch.no_grad()
    def __call__(self, rollout: TensorDictBase) -> TensorDictBase:
        """Write ``advantage``, ``value_target`` and ``state_value``, all [P, G, T, 1]."""
        episodes = rollout.flatten(0, 1)  # [P * G, T]
        with set_recurrent_mode(True):
            value = self.critic(episodes.select(*self.critic.in_keys))["state_value"].float()
        next_value = torch.zeros_like(value)
        next_value[:, :-1] = value[:, 1:]
        outcome = episodes.select(("next", "reward"), ("next", "done"), ("next", "terminated")).set(
            "state_value", value
        )
        outcome["next", "state_value"] = next_value
        self._estimator(outcome, time_dim=1)
        for key in ("advantage", "value_target", "state_value"):
            rollout.set(key, outcome[key].unflatten(0, rollout.shape[:2]))
        return rollout
