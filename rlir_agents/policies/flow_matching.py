"""GRPO on diffusion world models without an SDE: a finished frame is as likely as flow matching says.

DanceGRPO makes sampling stochastic to have probabilities, and then has to find out which of thousands of random numbers
earned the reward. Here videos are made by the ODE, from noise of their own, as they are when the model is used; and
in the place of a log-probability stands minus the flow-matching loss of each finished frame, noised anew at some
timesteps: a lower bound of its log-likelihood, up to weights of the timesteps and a constant. Ratios, clips and
advantages stay those of GRPO (FPO, McAllister et al. 2025, arXiv 2507.21053; AWM, Xue et al. 2025, arXiv 2509.25050).

This is not in the paper; the paper's steps are `DenoisingPolicy`.

Letters: B rows, I items, T env steps, N denoising steps of a frame, K of them that count; c, h, w a latent's channels,
height and width.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from rlir_agents.hardware import autocast
from rlir_agents.policies.denoising import DenoisingPolicy
from rlir_agents.policies.latent_sequence import LatentSequences, constant_of
from rlir_agents.policies.latent_steps import LatentSteps
from rlir_agents.world_models import LatentSampler, LatentWorldModel
from rlir_env.layout import LatentLayout
from rlir_env.noise import step_normal, step_uniform
from rlir_env.schedules import gaussian_log_prob, select_steps

_SMALLEST_TIMESTEP = 0.02  # below it velocities are differences of nearly equal numbers


class FinishedFrames(LatentSteps):
    """Finished frames given what they were noised to: every denoising step is judged by where its frame ends."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of the last of a frame's latents ``[..., N, c, h, w]``, float32 ``[..., N]``."""
        return super().log_prob(value[..., -1:, :, :, :].expand_as(value))


class FlowMatchingPolicy(DenoisingPolicy):
    """A policy that is paid for the frames it makes, however it makes them.

    An env step is a frame. Its denoising steps stand for N timesteps, one between each two of the grid, at which the
    finished frame x is noised to ``(1 - t) x + t noise``; of them a random part counts, as in `DenoisingPolicy`, and
    their log-prob is that of x under ``N(what the model makes of it, t^2)``: minus half the loss of the velocity, up to
    a number that the weights do not change. Timesteps and noise are functions of (episode seed, frame, step). (The same
    ones for all siblings would compare videos under the same noise, but a group would look at few places; on the
    shipped world runs with it did worse, one seed each.)
    """

    _distribution = FinishedFrames

    def __init__(
        self,
        world_model: LatentWorldModel,
        layout: LatentLayout,
        steps_per_action: int | str = "frame",
        *,
        loss_window: tuple[int, int] | None = None,
        log_prob_at_collection: bool = True,
        order: int = 1,
        autocast_dtype: torch.dtype | None = None,
        **settings: Any,
    ) -> None:
        """Wrap a world model.

        Args:
            world_model: As in `DenoisingPolicy`.
            layout: As there.
            steps_per_action: ``"frame"``, or N.
            loss_window: First step and number of steps that may count; None takes all N. Where there is most noise most
                of the gradient is signal (cosine between the gradients of halves of a batch), but a model that learns
                there alone loses its pictures: on the shipped world 3.5 dB in 12 updates.
            log_prob_at_collection: Look at frames noised anew already when they are made. False saves these passes and
                writes no ``action_log_prob``, which a loss needs only if a batch is learnt from by several updates.
            order: Of the solver on the layout's grid: 1 is Euler, or the steps of an SDE; 2 is DPM-Solver++ (2M), by
                which evaluation makes videos, too.
            autocast_dtype: As there.
            **settings: Further keywords of `DenoisingPolicy`; ``variant`` is ``"ode"`` unless it is given.

        Raises:
            ValueError: as there, or if the window does not fit, an env step is not a frame, or an SDE is to be of
                second order.
        """
        self._loss_window = loss_window
        settings = {"variant": "ode", **settings, "autocast_dtype": autocast_dtype}
        super().__init__(world_model, layout, steps_per_action, **settings)
        self._solver = LatentSampler(layout.grid, order)
        self.log_prob_at_collection = log_prob_at_collection
        if not log_prob_at_collection:
            self.out_keys.remove("action_log_prob")
        if self.steps_per_action != layout.num_denoising_steps:
            raise ValueError(
                f"steps_per_action={steps_per_action}: flow matching looks at finished frames, so an env step is a "
                'frame; take steps_per_action="frame"'
            )
        if order == 2 and self.table.is_stochastic.any():
            raise ValueError('order=2: the solver of second order is one of the ODE; take variant="ode", or order=1')

    @property
    def counted_steps(self) -> Tensor:
        """Those of the window: no step has to sample.

        Raises:
            ValueError: if the window is empty or leaves the grid.
        """
        num_steps = self.layout.num_denoising_steps
        first, length = (0, num_steps) if self._loss_window is None else self._loss_window
        if first < 0 or length < 1 or first + length > num_steps:
            raise ValueError(
                f"loss_window=({first}, {length}): give the first of {num_steps} denoising steps and how many, or null"
            )
        return torch.arange(first, first + length)

    @property
    def num_forwards_per_frame(self) -> int:
        """N to make it, perhaps K to look at it noised anew."""
        steps = torch.zeros(1, len(self.counted_steps))
        num_looks = select_steps(steps, self.selected_fraction).shape[-1] if self.log_prob_at_collection else 0
        return super().num_forwards_per_frame + num_looks

    def _evaluated(self, tensordict: TensorDictBase, items: LatentSequences) -> tuple[Tensor, Tensor]:
        """Every finished frame noised at its N timesteps; see the base class."""
        num_steps = self.layout.num_denoising_steps
        by_frame = items.action.unflatten(1, (-1, num_steps))
        finished = by_frame[:, :, -1:].expand_as(by_frame).flatten(1, 2)
        episode_seed = constant_of(tensordict, "episode_seed")
        return self._noised(finished, episode_seed, items.frame_index, items.denoising_step)

    def _gaussian(self, latent: Tensor, timestep: Tensor, velocity: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Of the finished frame, given what it was noised to; see the base class."""
        return latent - timestep[:, None, None, None] * velocity, timestep

    def _denoise(self, state: TensorDictBase, frames: Tensor, latent: Tensor, vector: Tensor, step: int) -> TensorDict:
        """Make a frame, and perhaps look at it noised anew; see the base class."""
        solve = super()._denoise if self._solver.order == 1 else self._solve
        written = solve(state, frames, latent, vector, step)
        if not self.log_prob_at_collection:
            return written.exclude("action_log_prob")
        finished, is_counted = written["action"][:, -1], written["loss_mask"]
        index, episode_seed = frames.shape[1], state["episode_seed"].squeeze(-1)
        log_probs = torch.zeros_like(written["action_log_prob"])
        steps = is_counted.nonzero()[:, 1].view(len(finished), -1)  # [B, K]: equally many count in every row
        with autocast(latent.device, self.autocast_dtype):
            cache = self._reader.read(self.world_model, frames, vector, state["prompt_seed"].squeeze(-1))
            for place in steps.unbind(1):
                noised, timestep = self._noised(finished, episode_seed, torch.full_like(place, index), place)
                velocity = self.world_model.next_velocity(noised, timestep, vector[:, index], cache)
                mean, std = self._gaussian(noised, timestep, velocity, place)
                log_prob = gaussian_log_prob(finished, mean, std, self.log_prob_reduction)
                log_probs.scatter_(1, place[:, None], log_prob[:, None])
        return written.set("action_log_prob", log_probs)

    def _solve(self, state: TensorDictBase, frames: Tensor, latent: Tensor, vector: Tensor, step: int) -> TensorDict:
        """Make a frame as evaluation does: from the given step, which is the first, by steps without probabilities."""
        index = frames.shape[1]
        with autocast(latent.device, self.autocast_dtype):
            cache = self._reader.read(self.world_model, frames, vector, state["prompt_seed"].squeeze(-1))
            action = self._solver.latents(self.world_model, vector[:, index], latent, cache)
        is_counted = self._selected(state["episode_seed"].squeeze(-1))[:, index - 1]
        log_probs = action.new_zeros(is_counted.shape)
        written = {"action": action, "action_log_prob": log_probs, "loss_mask": is_counted}
        return TensorDict(written, batch_size=[len(latent)])

    def _noised(self, finished: Tensor, episode_seed: Tensor, frame: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Finished frames ``[..., c, h, w]`` between clean and noise, and their timesteps ``[...]``."""
        grid, num_steps = self.layout.grid.float().to(finished.device), self.layout.num_denoising_steps
        # The steps' own places are taken by the noise of an SDE.
        share = step_uniform(episode_seed, (1,), frame, num_steps + step).squeeze(-1)
        timestep = torch.lerp(grid[step], grid[step + 1], share).clamp(min=_SMALLEST_TIMESTEP)
        noise = step_normal(episode_seed, self.layout.latent_shape, frame, 2 * num_steps + step)
        return torch.lerp(finished, noise, timestep[..., None, None, None]), timestep
