"""A diffusion world model as a TorchRL policy: its actions are the latents after the next denoising steps.

Paper, section 4.3. Flow matching samples by an ODE, which has no probabilities; the policy takes the steps of an SDE
with the same marginals instead (`rlir_env.schedules`). Step mode (``forward``) denoises with a cache of finished
frames, for collection. Sequence mode (``get_dist``) is one forward over finished videos, for losses. Their
log-probabilities agree to 1e-5 in float32. Rewards, advantages and losses are *not* here.

Letters: B rows, T env steps, k denoising steps per env step, N denoising steps of a frame, F frames, A width of a
game-action vector; c, h, w a latent's channels, height and width.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from rlir_agents.hardware import autocast
from rlir_agents.policies.latent_sequence import (
    Arrangement,
    LatentSequences,
    check_fit,
    common_place,
    constant_of,
    latent_sequences_of,
)
from rlir_agents.policies.latent_steps import LatentSteps
from rlir_agents.policies.value import LatentValue
from rlir_agents.world_models import ActionEncoder, FrameReader, LatentWorldModel, NFDGroups, as_context
from rlir_env.layout import LatentLayout
from rlir_env.noise import INITIAL_NOISE, STEP_SELECTION, step_normal, step_uniform
from rlir_env.schedules import StepTable, Variant, gaussian_log_prob, select_steps, step_table, window


class DenoisingPolicy(TensorDictModuleBase):
    """The world model is the agent: it denoises frames step by step; game actions are part of what it reads.

    Noise is a function of its place: every frame starts from that of (prompt seed, frame), finished frames are seen
    with context noise of (prompt seed, frame), and step s adds that of (episode seed, frame, s). So siblings share what
    they start from and differ in their steps, whatever TorchRL's exploration type says.

    Not every step counts in a loss. Deterministic ones, such as the last of every frame, have no density; of the others
    a random part is selected (the paper's timestep selection), as a function of (episode seed, frame), drawn anew for
    every rollout. ``loss_mask`` says which count; the log-prob of the others is 0 in both modes.

    Attributes:
        world_model: Holds all parameters.
        layout: Of the videos.
        steps_per_action: k.
        table: What each denoising step does.
        action_encoder: From game actions to vectors.
    """

    # Where TorchRL's losses look for what to read from a rollout.
    dist_sample_keys = ["action"]
    log_prob_keys = ["action_log_prob"]
    _distribution: type[LatentSteps] = LatentSteps

    def __init__(
        self,
        world_model: LatentWorldModel,
        layout: LatentLayout,
        steps_per_action: int | str = 1,
        *,
        action_encoder: ActionEncoder | None = None,
        variant: Variant = "dance",
        noise_level: float = 0.75,
        mean: Literal["euler", "exact_variance"] = "euler",
        sde_window: tuple[int, int] | None = None,
        selected_fraction: float = 0.6,
        select_per: Literal["frame", "video"] = "frame",
        log_prob_reduction: Literal["mean", "sum"] = "mean",
        context_timestep: float = 0.0,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        """Wrap a world model.

        Args:
            world_model: Of the layout's latents, for at least its frames.
            layout: That of the env.
            steps_per_action: k, a divisor of N, or ``"frame"``; that of the env.
            action_encoder: From game actions to the model's vectors; `NFDGroups` of Minecraft where None.
            variant: Which SDE, see `step_table`; the paper's is most likely DanceGRPO's.
            noise_level: Size of its kicks; the paper's epsilon_t is 0.75.
            mean: See `step_table`.
            sde_window: First step and number of steps that sample, as in MixGRPO; None samples in all but the last.
            selected_fraction: The paper's tau: the share of a frame's sampling steps that count in a loss.
            select_per: ``"frame"`` draws a subset for every frame, ``"video"`` one for all its frames, as DanceGRPO's
                code does; both cost the same, and the first varies less.
            log_prob_reduction: ``"mean"`` over a latent's dimensions, as in DanceGRPO's code, or ``"sum"``, the
                log-density; a clip made for one does not fit the other.
            context_timestep: Share of noise with which finished frames are seen, by the model's own training.
            autocast_dtype: Precision of the network in both modes; None leaves it to the weights and to the caller.

        Raises:
            ValueError: if layout, model and encoder do not fit, or a setting is out of range.
        """
        super().__init__()
        action_encoder = NFDGroups() if action_encoder is None else action_encoder
        check_fit(world_model, layout, action_encoder)
        self.world_model, self.layout = world_model, layout
        if select_per not in ("frame", "video"):
            raise ValueError(f"select_per={select_per!r}: choose 'frame' or 'video'")
        num_steps = layout.num_denoising_steps
        mask = None if sde_window is None else window(num_steps, *sde_window)
        self.table: StepTable = step_table(layout.grid, variant, noise_level, mean=mean, stochastic_steps=mask)
        if len(self.counted_steps) == 0:
            raise ValueError(f"variant={variant!r} on {num_steps} denoising steps samples nowhere: there is no policy")
        gaussian_log_prob(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.ones(()), log_prob_reduction)  # checks it
        self.in_keys = [
            "latent",
            "frame_index",
            "denoising_step",
            "game_action",
            "prompt_seed",
            "episode_seed",
            "action",
        ]
        self.out_keys = ["action", "action_log_prob", "loss_mask"]
        self.steps_per_action = layout.steps_per_action(steps_per_action)
        self.action_encoder = action_encoder
        self.selected_fraction, self.select_per = selected_fraction, select_per
        self.log_prob_reduction: Literal["mean", "sum"] = log_prob_reduction
        self.autocast_dtype = autocast_dtype
        self._reader = FrameReader(context_timestep, autocast_dtype)
        self._selected(torch.zeros(1, dtype=torch.long))  # checks the fraction

    @property
    def num_steps(self) -> int:
        """T, env steps of a whole video."""
        return self.layout.num_steps(self.steps_per_action)

    @property
    def counted_steps(self) -> Tensor:
        """The denoising steps that may count in a loss, in order, long ``[at most N]``."""
        return self.table.trainable_steps

    @property
    def num_forwards_per_frame(self) -> int:
        """How often a rollout asks the model about a frame before that is finished."""
        return self.layout.num_denoising_steps

    @property
    def context_timestep(self) -> float:
        """Share of noise with which finished frames are seen."""
        return self._reader.context_timestep

    @property
    def cache_bytes(self) -> int:
        """Memory that the cache holds between calls of ``forward``."""
        return self._reader.cache_bytes

    def without_noise(self) -> DenoisingPolicy:
        """The same weights and grid with the steps of the ODE: what the SDE's noise is compared with."""
        policy = copy.copy(self)  # shares the world model
        policy.table = step_table(self.layout.grid, "ode")
        policy._reader = FrameReader(self.context_timestep, self.autocast_dtype)
        return policy

    def make_critic(self) -> LatentValue:
        """A critic on a copy of the world model, so that the two learn apart."""
        return LatentValue(
            copy.deepcopy(self.world_model),
            self.layout,
            action_encoder=self.action_encoder,
            context_timestep=self.context_timestep,
            autocast_dtype=self.autocast_dtype,
        )

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Take one env step.

        Writes ``action`` float32 ``[B, k, c, h, w]``, ``action_log_prob`` float32 ``[B, k]`` and ``loss_mask`` bool
        ``[B, k]``. The cache goes on from the last call if the finished frames do; otherwise they are read again.

        Raises:
            ValueError: if the tensordict is not a flat batch, or its rows stand at different steps.
        """
        frame, step = common_place(tensordict)
        vector = self.action_encoder.of_frames(tensordict["game_action"])
        latent = tensordict["latent"]
        return tensordict.update(self._denoise(tensordict, latent[:, :frame], latent[:, frame], vector, step))

    @torch.no_grad()
    def generate(self, tensordict: TensorDictBase) -> TensorDict:
        """Make whole videos, those that ``forward`` would make step by step.

        Args:
            tensordict: A freshly reset state ``[B]``.

        Returns:
            What ``forward`` writes, for all env steps, ``[B, T]``.

        Raises:
            ValueError: if a video has begun already.
        """
        if common_place(tensordict) != (1, 0):
            raise ValueError("generate makes whole videos: pass a state that the env has just reset")
        vector = self.action_encoder.of_frames(tensordict["game_action"])
        prompt_seed = tensordict["prompt_seed"].squeeze(-1)
        frames, taken = tensordict["latent"][:, :1], []
        for index in range(1, self.layout.num_frames):
            latent = step_normal(prompt_seed, self.layout.latent_shape, index, INITIAL_NOISE)
            for step in range(0, self.layout.num_denoising_steps, self.steps_per_action):
                taken.append(self._denoise(tensordict, frames, latent, vector, step))
                latent = taken[-1]["action"][:, -1]
            frames = torch.cat([frames, latent[:, None]], dim=1)
        self._reader.forget()
        return torch.stack(taken, dim=1)

    def get_dist(self, tensordict: TensorDictBase) -> LatentSteps:
        """The distribution of every denoising step that counts, by one forward, differentiable.

        Args:
            tensordict: ``[..., T]``, a trajectory a row, or ``[B]`` single env steps; reads ``in_keys``.

        Returns:
            Batch shape ``[..., T, k]``, event shape ``[c, h, w]``.

        Raises:
            ValueError: if the env steps of a row do not belong to one trajectory.
        """
        items = latent_sequences_of(tensordict)
        prompt_seed, episode_seed = (
            constant_of(tensordict, key).squeeze(-1) for key in ("prompt_seed", "episode_seed")
        )
        game_action = constant_of(tensordict, "game_action", 2)
        rows = torch.arange(len(items.frames), device=items.latent.device)[:, None]
        is_counted = self._selected(episode_seed)[rows, items.frame_index - 1, items.denoising_step]  # [B, I]
        shape = (*tensordict.batch_size, self.steps_per_action)
        if not is_counted.any():
            empty = items.latent.new_zeros(0, *self.layout.latent_shape)
            return self._distribution(empty, empty.new_zeros(0), is_counted.reshape(shape), self.log_prob_reduction)
        place = Arrangement.of(items.frame_index, is_counted)
        last = place.first_frame + place.num_frames - 1
        context = as_context(items.frames[:, :last], prompt_seed, self.context_timestep)
        latent, timestep = self._evaluated(tensordict, items)
        vector = self.action_encoder.of_frames(game_action)[:, : last + 1]
        with autocast(context.device, self.autocast_dtype):
            velocity = self.world_model.velocity_of_steps(
                context,
                torch.full_like(context[:, :, 0, 0, 0], self.context_timestep),
                place.spread(latent),
                place.spread(timestep),
                vector,
            )
        at = (place.row, place.item)
        mean, std = self._gaussian(latent[at], timestep[at], place.collect(velocity), items.denoising_step[at])
        return self._distribution(mean, std, is_counted.reshape(shape), self.log_prob_reduction)

    def _evaluated(self, tensordict: TensorDictBase, items: LatentSequences) -> tuple[Tensor, Tensor]:
        """The latents ``[B, I, c, h, w]`` and timesteps ``[B, I]`` at which sequence mode asks the model."""
        return items.latent, self.layout.grid.float().to(items.latent.device)[items.denoising_step]

    def _gaussian(self, latent: Tensor, timestep: Tensor, velocity: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``[n, c, h, w]`` and standard deviation ``[n]`` of steps that count."""
        table = self.table.to(latent.device)
        return table.mean(latent, velocity, step), table.std[step]

    def _denoise(self, state: TensorDictBase, frames: Tensor, latent: Tensor, vector: Tensor, step: int) -> TensorDict:
        """Take k steps of the frame behind the finished ones, from a latent ``[B, c, h, w]`` at the given step."""
        index, count, episode_seed = frames.shape[1], self.steps_per_action, state["episode_seed"].squeeze(-1)
        is_counted = self._selected(episode_seed)[:, index - 1, step : step + count]
        table = self.table.to(latent.device)
        action, log_prob = [], []
        with autocast(latent.device, self.autocast_dtype):
            cache = self._reader.read(self.world_model, frames, vector, state["prompt_seed"].squeeze(-1))
            for place in range(step, step + count):
                timestep = latent.new_full((len(latent),), self.layout.timesteps[place])
                velocity = self.world_model.next_velocity(latent, timestep, vector[:, index], cache)
                mean = table.mean(latent, velocity, place)
                latent, std = mean, table.std[place]
                if std > 0:
                    latent = mean + std * step_normal(episode_seed, self.layout.latent_shape, index, place)
                    log_prob.append(gaussian_log_prob(latent, mean, std, self.log_prob_reduction))
                else:
                    log_prob.append(latent.new_zeros(len(latent)))
                action.append(latent)
        log_probs = torch.where(is_counted, torch.stack(log_prob, dim=1), 0.0)
        return TensorDict(
            {"action": torch.stack(action, dim=1), "action_log_prob": log_probs, "loss_mask": is_counted},
            batch_size=[len(latent)],
        )

    def _selected(self, episode_seed: Tensor) -> Tensor:
        """Which denoising steps of which generated frame count, bool ``[B, F-1, N]``."""
        trainable = self.counted_steps.to(episode_seed.device)
        if len(trainable) == 0:  # without noise nothing counts
            shape = (len(episode_seed), self.layout.num_generated_frames, self.layout.num_denoising_steps)
            return torch.zeros(shape, dtype=torch.bool, device=episode_seed.device)
        frame = torch.arange(1, self.layout.num_frames, device=episode_seed.device)
        # Frame 0 has no steps of its own: its place serves the whole video.
        frame = torch.zeros_like(frame) if self.select_per == "video" else frame
        noise = step_uniform(episode_seed[:, None], (len(trainable),), frame, STEP_SELECTION)  # [B, F-1, n]
        steps = trainable[select_steps(noise, self.selected_fraction)]
        is_selected = torch.zeros(
            *steps.shape[:2], self.layout.num_denoising_steps, dtype=torch.bool, device=steps.device
        )
        return is_selected.scatter(-1, steps, True)


def flat_step_weights(policy: DenoisingPolicy) -> list[float]:
    """Weights for `StepWeightedCredit` under which every step that samples moves the policy alike.

    Raises:
        ValueError: if the policy does not denoise.
    """
    if not isinstance(policy, DenoisingPolicy):
        raise ValueError(f"a {type(policy).__name__} has no denoising steps to weigh: take credit=framewise")
    return policy.table.flat_weights.tolist()
