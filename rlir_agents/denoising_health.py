"""Is a denoising run well, noise level by noise level? What the mean over all steps hides.

An SDE weighs its steps differently, and reaches the reader through noise that evaluation does not have; both are
reasons for a reward that stays flat. Figures, where ``<t>`` is the timestep from which a denoising step starts (the
noisiest that flow matching draws for it):

    * ``denoising/grad_norm/<t>``: norm of the gradient of ``mean(advantage * log-prob)`` over the actions of that step:
      which noise levels learn.
    * ``denoising/log_prob_drift/<t>``: mean absolute difference of the log-prob at collection and as recomputed; above
      rounding, something is wrong with the cache or the context noise.
    * ``denoising/ode_minus_sde_reward``: what the same prompts are paid, from the same initial noise, without the
      steps' noise. Large and positive, the reader judges noise; negative, noise earns reward that evaluation will miss.

Letters: P prompts, G group size, T env steps, k denoising steps per env step.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase

from rlir_agents.minibatches import select_rollouts
from rlir_agents.policies import DenoisingPolicy
from rlir_agents.rollouts import collect
from rlir_env.envs import DenoisingEnv


class DenoisingHealth:
    """Figures of one scored batch; see the module docstring."""

    def __init__(
        self, env: DenoisingEnv, policy: DenoisingPolicy, num_rollouts: int = 32, batch_size: int | None = None
    ) -> None:
        """Hold what is asked.

        Args:
            env: that made the batch.
            policy: that learns.
            num_rollouts: gradients are taken over so many, all in one graph; each noise level costs a backward pass.
            batch_size: videos generated at once, as in `collect`.
        """
        self._env, self._policy = env, policy
        self._num_rollouts, self._batch_size = num_rollouts, batch_size

    def __call__(self, rollout: TensorDictBase) -> dict[str, float]:
        """Figures of a rollout [P, G, T] with ``advantage``, and with both log-probs if they were recomputed."""
        figures = self._gradients(rollout) | self._drift(rollout)
        if self._policy.table.is_stochastic.any():
            figures["denoising/ode_minus_sde_reward"] = self._reward_gap(rollout)
        return figures

    def _gradients(self, rollout: TensorDictBase) -> dict[str, float]:
        rows = torch.arange(min(self._num_rollouts, rollout.shape[:2].numel()))
        batch = select_rollouts(rollout.flatten(0, 1), rows)
        log_prob = self._policy.get_dist(batch).log_prob(batch["action"])  # [n, T, k]
        advantage = batch["advantage"].reshape(*log_prob.shape[:2], -1)
        parameters = [p for p in self._policy.parameters() if p.requires_grad]
        figures = {}
        for step, name in self._steps().items():
            is_this = self._is_step(batch, step) & batch["loss_mask"]
            if is_this.any():
                gain = (advantage * log_prob)[is_this].mean()
                gradient = torch.autograd.grad(gain, parameters, retain_graph=True, allow_unused=True)
                norms = torch.stack([g.norm() for g in gradient if g is not None])
                figures[f"denoising/grad_norm/{name}"] = norms.norm().item()
        return figures

    def _drift(self, rollout: TensorDictBase) -> dict[str, float]:
        if "collection_log_prob" not in rollout.keys():
            return {}
        difference = (rollout["collection_log_prob"] - rollout["action_log_prob"]).abs()
        counted = {name: self._is_step(rollout, step) & rollout["loss_mask"] for step, name in self._steps().items()}
        return {
            f"denoising/log_prob_drift/{name}": difference[is_this].mean().item()
            for name, is_this in counted.items()
            if is_this.any()
        }

    @torch.no_grad()
    def _reward_gap(self, rollout: TensorDictBase) -> float:
        chosen = (rollout[key][:, :, 0].flatten() for key in ("prompt_index", "episode_seed", "group_id"))
        state = self._env.initial_state(*chosen)
        solved = collect(self._env, self._policy.without_noise(), state, self._batch_size)
        return (solved["next", "reward"][:, :, -1].mean() - rollout["next", "reward"][:, :, -1].mean()).item()

    def _steps(self) -> dict[int, str]:
        """Denoising steps that may count, with the timestep each starts from."""
        table = self._policy.table
        return {step: f"{table.timestep[step]:.3f}" for step in self._policy.counted_steps.tolist()}

    @staticmethod
    def _is_step(rollout: TensorDictBase, step: int) -> torch.Tensor:
        """Which actions are that denoising step, bool of the shape of ``loss_mask``."""
        num_inner = rollout["loss_mask"].shape[-1]
        inner = torch.arange(num_inner, device=rollout["denoising_step"].device)
        return rollout["denoising_step"] + inner == step
