"""From one scored batch to a better policy: the gradient steps that maximise Eq. 2.

Which objective this is, is the loss's business: whatever ``loss_*`` entries it returns are summed.
How a batch is cut up is in ``rlir_agents/minibatches.py``; how it was collected and compared, in
``rlir_agents/trainer.py``.

Letters: P prompts, G group size, N = P * G rollouts, T steps.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch.optim import Optimizer
from torchrl.objectives import LossModule

from rlir_agents.finite_checks import (
    require_finite_gradient,
    require_finite_losses,
    require_finite_parameters,
)
from rlir_agents.health import UpdateHealth
from rlir_agents.minibatches import (
    num_counted,
    select_rollouts,
    shuffled_minibatches,
    worth_training_on,
)
from rlir_agents.trainer_config import TrainerConfig


class PolicyUpdate:
    """Takes optimiser steps on one batch."""

    def __init__(
        self,
        loss: LossModule,
        optimizer: Optimizer,
        config: TrainerConfig,
    ) -> None:
        """Hold what learns.

        Args:
            loss: its ``loss_*`` entries are summed; holds everything that learns.
            optimizer: over the parameters of the loss.
            config: the numbers.
        """
        self.loss = loss
        self.optimizer = optimizer
        self.config = config
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(self, rollout: TensorDictBase, iteration: int) -> UpdateHealth:
        """Run all epochs over one batch.

        Args:
            rollout: [P, G, T] with ``advantage`` and the log-probs that the loss compares with.
            iteration: number of the batch; with the seed it fixes the order of minibatches, so that
                a resumed run deals the same ones.

        Returns:
            The diagnostics of the update.

        Raises:
            NonFiniteError: naming what was not finite, before it reaches the weights.
        """
        num_prompts, group_size = rollout.shape[:2]
        rollouts = rollout.flatten(0, 1)  # [N, T]
        health = UpdateHealth()
        order = torch.Generator().manual_seed(self.config.seed * 1_000_003 + iteration)
        for _ in range(self.config.num_epochs):
            for rows in shuffled_minibatches(num_prompts, group_size, self.config.num_minibatches, order):
                self._step(rollouts, rows, health)
        require_finite_parameters(self.loss)
        return health

    def _step(self, rollouts: TensorDictBase, rows: torch.Tensor, health: UpdateHealth) -> None:
        """One optimiser step on the rollouts of these rows."""
        self.optimizer.zero_grad()
        self._accumulate_gradient(rollouts, rows, health)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self.config.max_grad_norm)
        require_finite_gradient(norm, self.loss)
        self.optimizer.step()
        health.add_step(float(norm))

    def _accumulate_gradient(self, rollouts: TensorDictBase, rows: torch.Tensor, health: UpdateHealth) -> None:
        """Gradient of the mean loss over `rows`, one micro-batch after the other."""
        mask_key = self.loss.loss_mask_key
        total = num_counted(rollouts, rows, mask_key)
        if self.config.drop_zero_advantage:
            rows = worth_training_on(rollouts, rows)
        for micro_rows in rows.split(self.config.micro_batch_size or len(rows)):
            batch = select_rollouts(rollouts, micro_rows)
            losses = self.loss(batch)
            require_finite_losses(losses, batch, self.loss)
            count = num_counted(rollouts, micro_rows, mask_key)
            health.add_losses(losses, count)
            terms = [value for key, value in losses.items() if key.startswith("loss_")]
            (sum(terms) * (count / total)).backward()
