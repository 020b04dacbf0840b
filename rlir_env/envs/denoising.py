"""Denoising as an MDP: the world model takes a frame from noise to data step by step, frame after frame (section 4.3).

One transition is one denoising step of one frame, as in the paper, or for training all steps of a frame at once. The
env says where a step starts and ends; the noise added on the way is the policy's. Nothing in here samples or learns.

Letters: B rows, k denoising steps per env step, N denoising steps of a frame, F frames, S slots; c, h, w a latent's
channels, height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Composite

from rlir_env.envs.base import VideoGenerationEnv
from rlir_env.layout import LatentLayout
from rlir_env.noise import INITIAL_NOISE, step_normal
from rlir_env.rewards import RewardFn

if TYPE_CHECKING:  # the env asks nothing of them but their interface
    from rlir_env.prompts import GenerationPrompt, PromptSource
    from rlir_env.tokenizers import Tokenizer

LATENT_LIMIT = 20.0
"""Latents lie in +-20: noise does so by far, and what a model sends beyond is an error, never clipped in silence."""


class DenoisingEnv(VideoGenerationEnv):
    """The agent is the world model: its action is where the next k denoising steps take the latent of a frame.

    State: ``latent`` float32 ``[B, F, c, h, w]`` (finished frames clean, then the one under way, then zeros),
    ``frame_index`` long ``[B, 1]`` (the frame under way, 1 at the reset), ``denoising_step`` long ``[B, 1]`` (of the
    next one, 0 .. N-1; N at the end), ``timestep`` and ``next_timestep`` float32 ``[B, 1]`` (where the env step starts
    and ends), and the constants ``game_action`` long ``[B, F-1, S]`` and the seeds of :class:`VideoGenerationEnv`.
    Action: ``action`` float32 ``[B, k, c, h, w]``, the latent after each of the k steps, also for k = 1.

    A reset encodes the given frame and starts frame 1 from noise; the step that completes a frame starts the next one.
    Every frame starts from a noise of its own, a function of (prompt seed, frame): siblings share it, because initial
    noise of their own would let a reward choose noise instead of steps (DanceGRPO, section 3.3). Where siblings are not
    to share it, their prompt seed is their episode seed.

    Attributes:
        steps_per_action: k.
        is_initial_noise_shared: Whether siblings start frames from the same noise.
    """

    layout: LatentLayout

    def __init__(
        self,
        prompts: PromptSource,
        tokenizer: Tokenizer,
        reward_fn: RewardFn,
        timesteps: Sequence[float] | Tensor,
        *,
        num_prompts: int = 1,
        group_size: int = 1,
        steps_per_action: int | str = 1,
        is_initial_noise_shared: bool = True,
        seed: int = 0,
        device: torch.device | str = "cpu",
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        """Make an env of ``num_prompts * group_size`` rows.

        Args:
            prompts: Clips with one context frame.
            tokenizer: Maps frames to latents and back; frozen here.
            reward_fn: What a finished generation is worth.
            timesteps: N + 1 numbers that fall from 1 to 0, as from `rlir_env.schedules.shifted_grid`.
            num_prompts: P.
            group_size: G.
            steps_per_action: k, a divisor of N, or ``"frame"``.
            is_initial_noise_shared: See above.
            seed: Of the order of prompts and of the noise seeds.
            device: Where states live; the frozen networks are moved there.
            autocast_dtype: Precision of decoding, None for the tokenizer's own. Encoding is never autocast: a prompt's
                latent must not depend on it.

        Raises:
            ValueError: if the granularity does not divide N, the timesteps do not fall to 0, the tokenizer has no
                continuous latents, or as the base class says.
        """
        super().__init__(
            prompts,
            tokenizer,
            reward_fn,
            num_prompts=num_prompts,
            group_size=group_size,
            seed=seed,
            device=device,
            autocast_dtype=autocast_dtype,
        )
        if len(tokenizer.code_shape) != 3:
            raise ValueError("denoising needs a tokenizer with continuous latents, such as KLTokenizer")
        grid = torch.as_tensor(timesteps).tolist()
        self.layout = LatentLayout(tokenizer.code_shape, tuple(grid), self._action_shape[0] + 1)
        self.steps_per_action = self.layout.steps_per_action(steps_per_action)
        self.is_initial_noise_shared = is_initial_noise_shared
        self._set_specs(*self._latent_specs())

    @property
    def num_steps(self) -> int:
        """T, the env steps of a whole episode."""
        return self.layout.num_steps(self.steps_per_action)

    @property
    def interface(self) -> dict[str, Any]:
        """Layout and k; see the base class."""
        return {"layout": self.layout, "steps_per_action": self.steps_per_action}

    def num_finished_frames(self, tensordict: TensorDictBase) -> Tensor:
        """See the base class."""
        return tensordict["frame_index"] + (tensordict["denoising_step"] == self.layout.num_denoising_steps)

    def states_along(self, state: TensorDictBase, action: Tensor) -> TensorDict:
        """See the base class."""
        _check_range(action, "action")  # as a step does
        num_frames, num_denoising_steps = self.layout.num_frames, self.layout.num_denoising_steps
        after = action.flatten(1, 2).unflatten(1, (-1, num_denoising_steps))  # [B, F-1, N, c, h, w]
        start = self.initial_noise(state, torch.arange(1, num_frames, device=action.device))  # [B, F-1, c, h, w]
        taken = torch.arange(self.num_steps + 1, device=action.device) * self.steps_per_action  # [T + 1]
        frame_index = (taken // num_denoising_steps + 1).clamp(max=num_frames - 1)
        denoising_step = taken - (frame_index - 1) * num_denoising_steps
        latent = state["latent"][:, None].repeat(1, len(taken), 1, 1, 1, 1)
        for index, (frame, step) in enumerate(zip(frame_index.tolist(), denoising_step.tolist(), strict=True)):
            latent[:, index, 1:frame] = after[:, : frame - 1, -1]
            latent[:, index, frame] = after[:, frame - 1, step - 1] if step else start[:, frame - 1]
        clock = self._clock(denoising_step[:, None]) | {"frame_index": frame_index[:, None]}
        clock = {key: value.expand(len(latent), -1, 1) for key, value in clock.items()}
        return TensorDict({"latent": latent, **clock}, batch_size=latent.shape[:2])

    def initial_noise(self, tensordict: TensorDictBase, frame: Tensor) -> Tensor:
        """What frames start from, a function of the prompt seed of every row.

        Args:
            tensordict: Holds the seeds of N rows.
            frame: Index of frames, long ``[n]``, or ``[N, 1]`` if every row is to have its own.

        Returns:
            float32 ``[N, n, c, h, w]``.
        """
        return step_normal(tensordict["prompt_seed"], self.layout.latent_shape, frame, INITIAL_NOISE)

    def _latent_specs(self) -> tuple[Composite, Bounded]:
        rows, device = self.batch_size, self.device

        def box(*shape: int) -> Bounded:
            return Bounded(-LATENT_LIMIT, LATENT_LIMIT, (*rows, *shape), dtype=torch.float32, device=device)

        index = {"shape": (*rows, 1), "dtype": torch.long, "device": device}
        share = Bounded(0.0, 1.0, (*rows, 1), dtype=torch.float32, device=device)
        observation = Composite(
            latent=box(self.layout.num_frames, *self.layout.latent_shape),
            frame_index=Bounded(low=0, high=self.layout.num_frames - 1, **index),
            denoising_step=Bounded(low=0, high=self.layout.num_denoising_steps, **index),
            timestep=share,
            next_timestep=share.clone(),
            shape=rows,
            device=device,
        )
        return observation, box(self.steps_per_action, *self.layout.latent_shape)

    def _start(self, prompt: GenerationPrompt) -> dict[str, Tensor]:
        first = self.tokenizer.encode(prompt.context_frames[:, 0].to(self.device)).cpu()
        _check_range(first, "the latent of a context frame")
        latent = first.new_zeros(len(first), self.layout.num_frames, *self.layout.latent_shape)
        latent[:, 0] = first
        frame_index = torch.ones(len(first), 1, dtype=torch.long)
        return {"latent": latent, "frame_index": frame_index, **self._clock(torch.zeros_like(frame_index))}

    def _state(self, prompt_index: Tensor, episode_seed: Tensor, group_id: Tensor) -> TensorDict:
        state = super()._state(prompt_index, episode_seed, group_id)
        if not self.is_initial_noise_shared:
            state["prompt_seed"] = state["episode_seed"].clone()
        state["latent"][:, 1:2] = self.initial_noise(state, state["frame_index"])  # the seeds are in it now
        return state

    def _clock(self, denoising_step: Tensor) -> dict[str, Tensor]:
        """Where the next env step starts and ends; a finished video stands at 0."""
        grid = self.layout.grid.float().to(denoising_step.device)
        after = (denoising_step + self.steps_per_action).clamp(max=self.layout.num_denoising_steps)
        return {"denoising_step": denoising_step, "timestep": grid[denoising_step], "next_timestep": grid[after]}

    def _codes_of(self, tensordict: TensorDictBase) -> Tensor:
        return tensordict["latent"]

    @torch.no_grad()
    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        action = self._checked_action(tensordict)
        frame_index, step = tensordict["frame_index"], tensordict["denoising_step"] + self.steps_per_action
        latent, rows = tensordict["latent"].clone(), torch.arange(len(action), device=self.device)
        latent[rows, frame_index.squeeze(-1)] = action[:, -1]
        is_complete = step == self.layout.num_denoising_steps
        is_over = is_complete & (frame_index == self.layout.num_frames - 1)
        starts_next = is_complete & ~is_over
        frame_index = frame_index + starts_next
        chosen = starts_next.squeeze(-1)
        if chosen.any():
            start = self.initial_noise(tensordict[chosen], frame_index[chosen]).squeeze(1)
            latent[rows[chosen], frame_index[chosen].squeeze(-1)] = start
        state = TensorDict(
            {
                "latent": latent,
                "frame_index": frame_index,
                **self._clock(torch.where(starts_next, 0, step)),
                "done": is_over,
                "terminated": is_over.clone(),
            },
            batch_size=self.batch_size,
            device=self.device,
        )
        return state.update(self._pay(state, tensordict))

    def _checked_action(self, tensordict: TensorDictBase) -> Tensor:
        action = tensordict["action"]
        expected = (*self.batch_size, self.steps_per_action, *self.layout.latent_shape)
        if tuple(action.shape) != expected or not action.is_floating_point():
            found = f"{action.dtype} {tuple(action.shape)}"
            raise ValueError(f"action is {found}, expected float [B, k, c, h, w] = {expected}")
        _check_range(action, "action")
        if (tensordict["denoising_step"] >= self.layout.num_denoising_steps).any():
            raise ValueError("a video is already complete: reset the env before stepping it again")
        return action.float()


def _check_range(latent: Tensor, name: str) -> None:
    if not (latent.abs() <= LATENT_LIMIT).all():  # also where it is NaN
        worst = latent.abs().nan_to_num(nan=torch.inf).max().item()
        raise ValueError(
            f"{name} reaches {worst:g}, beyond {LATENT_LIMIT:g}: latents have about unit variance (the tokenizer's "
            "scale_factor sees to it); a model that leaves this range has diverged"
        )
