"""Videos from a diffusion world model without randomness of its own: DPM-Solver++, frame by frame (section 5, Table 7).

This is what evaluation generates with; the stochastic steps that RL needs are the MDP's (`rlir_env.schedules`). The
paper has 18 steps of DPM-Solver++ (2M). What a prompt is, and what a video is worth, is *not* known here.

Letters: B rows, F frames, n given ones, N denoising steps, A width of a game-action vector; c, h, w a latent's
channels, height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlir_agents.world_models.frame_cache import FrameCache
from rlir_agents.world_models.latent import LatentWorldModel
from rlir_env.schedules import dpm_solver_coefficients, shifted_grid

# Noise [B, c, h, w] of a frame, by its index in the video.
FrameNoise = Callable[[int], Tensor]


@dataclass(frozen=True, eq=False)  # eq: a comparison of tensors is not one bool
class LatentSampler:
    """A deterministic solver of the denoising ODE.

    A step is linear in the latent and in the data predicted now and one step before; the numbers are a table.

    Attributes:
        timestep: t_0 > ... > t_N = 0, ``[N+1]``, as from `shifted_grid`.
        order: 2 is DPM-Solver++ (2M), 1 is Euler.
        context_timestep: Finished frames are seen with this share of noise. LIVE takes its grid's last timestep before
            0, which would be 0.15 at 18 steps and 0.25 at 10; a model sees best what it was trained on.

    Raises:
        ValueError: if an attribute is out of range.
    """

    timestep: Tensor = field(default_factory=lambda: shifted_grid(18))
    order: int = 2
    context_timestep: float = 0.0

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"order={self.order}: choose 2 (DPM-Solver++ 2M) or 1 (Euler)")
        if not 0 <= self.context_timestep < 1:
            raise ValueError(f"context_timestep={self.context_timestep}: give a timestep from 0 (clean) to below 1")
        self.coefficients()  # checks the grid

    def coefficients(self) -> Tensor:
        """Weights of the latent, of the data predicted from it, and of the data predicted before; ``[N, 3]``."""
        latent, data, before = dpm_solver_coefficients(self.timestep).unbind(-1)
        if self.order == 1:
            data, before = data + before, torch.zeros_like(before)
        return torch.stack([latent, data, before], dim=-1)

    @torch.no_grad()
    def sample_frame(
        self, world_model: LatentWorldModel, game_action_vector: Tensor | None, noise: Tensor, cache: FrameCache
    ) -> Tensor:
        """Denoise the frame that follows those in the cache.

        Args:
            world_model: The generator.
            game_action_vector: ``[B, A]`` or None.
            noise: ``[B, c, h, w]``; where the grid does not start at 1 it is taken for the latent there, as LIVE does.
            cache: The frames before it; stays as it is.

        Returns:
            ``[B, c, h, w]`` float32.
        """
        latent = noise.float()
        data_before = torch.zeros_like(latent)
        grid = self.timestep[:-1].tolist()
        for timestep, (a, b, c) in zip(grid, self.coefficients().tolist(), strict=True):
            timesteps = torch.full((len(latent),), timestep, device=latent.device)
            data = latent - timestep * world_model.next_velocity(latent, timesteps, game_action_vector, cache)
            latent, data_before = a * latent + b * data + c * data_before, data
        return latent

    @torch.no_grad()
    def sample(
        self,
        world_model: LatentWorldModel,
        context: Tensor,
        game_action_vector: Tensor,
        noise: FrameNoise,
        context_noise: FrameNoise | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Generate the frames that follow the given ones.

        Args:
            world_model: The generator.
            context: The given frames, clean, ``[B, n, c, h, w]``.
            game_action_vector: Of all frames, ``[B, F, A]``.
            noise: What generated frames start from.
            context_noise: What is mixed into finished and given frames, once, before later frames see them. Needed if
                ``context_timestep`` is not 0.
            dtype: Of the cache: that of autocast where it is on.

        Returns:
            All frames, clean, ``[B, F, c, h, w]`` float32.

        Raises:
            ValueError: if context noise is missing, or shapes do not fit.
        """
        if context_noise is None and self.context_timestep:
            raise ValueError(f"context_timestep={self.context_timestep} needs context_noise; or set it to 0")
        num_given, num_frames = context.shape[1], game_action_vector.shape[1]
        frames = list(context.float().unbind(1))
        seen = torch.stack([self._as_seen(frame, index, context_noise) for index, frame in enumerate(frames)], dim=1)
        timestep = seen.new_full((len(seen), num_frames), self.context_timestep)
        vectors = game_action_vector[:, :num_given]
        cache = world_model.read(seen, timestep[:, :num_given], vectors, num_frames, dtype)
        for index in range(num_given, num_frames):
            frames.append(self.sample_frame(world_model, game_action_vector[:, index], noise(index), cache))
            if index + 1 < num_frames:
                last = self._as_seen(frames[-1], index, context_noise)[:, None]
                vector = game_action_vector[:, index : index + 1]
                world_model.append(last, timestep[:, :1], vector, cache)
        return torch.stack(frames, dim=1)

    def _as_seen(self, frame: Tensor, index: int, context_noise: FrameNoise | None) -> Tensor:
        """A finished frame ``[B, c, h, w]`` with its context noise."""
        if context_noise is None or self.context_timestep == 0:
            return frame
        return torch.lerp(frame, context_noise(index).float(), self.context_timestep)
