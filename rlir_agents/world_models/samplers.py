"""Videos from a diffusion world model without randomness of its own: DPM-Solver++, frame by frame (section 5, Table 7).

This is what evaluation generates with; the stochastic steps that RL needs are the MDP's (`rlir_env.schedules`). The
paper has 18 steps of DPM-Solver++ (2M). What a prompt is, and what a video is worth, is *not* known here.

Letters: B rows, F frames, n given ones, N denoising steps, A width of a game-action vector; c, h, w a latent's
channels, height and width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlir_agents.world_models.frame_cache import FrameCache
from rlir_agents.world_models.frame_reader import FrameReader
from rlir_agents.world_models.latent import LatentWorldModel
from rlir_env.noise import INITIAL_NOISE, step_normal
from rlir_env.schedules import dpm_solver_coefficients, shifted_grid


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
        FrameReader(self.context_timestep)  # checks it
        self.coefficients()  # checks the grid

    def coefficients(self) -> Tensor:
        """Weights of the latent, of the data predicted from it, and of the data predicted before; ``[N, 3]``."""
        latent, data, before = dpm_solver_coefficients(self.timestep).unbind(-1)
        if self.order == 1:
            data, before = data + before, torch.zeros_like(before)
        return torch.stack([latent, data, before], dim=-1)

    def sample_frame(
        self, world_model: LatentWorldModel, game_action_vector: Tensor | None, noise: Tensor, cache: FrameCache
    ) -> Tensor:
        """The frame that follows those in the cache, ``[B, c, h, w]`` float32: the last of `latents`."""
        return self.latents(world_model, game_action_vector, noise, cache)[:, -1]

    @torch.no_grad()
    def latents(
        self, world_model: LatentWorldModel, game_action_vector: Tensor | None, noise: Tensor, cache: FrameCache
    ) -> Tensor:
        """Denoise the frame that follows those in the cache, step by step.

        Args:
            world_model: The generator.
            game_action_vector: ``[B, A]`` or None.
            noise: ``[B, c, h, w]``; where the grid does not start at 1 it is taken for the latent there, as LIVE does.
            cache: The frames before it; stays as it is.

        Returns:
            The latent after every step, ``[B, N, c, h, w]`` float32.
        """
        latent, latents = noise.float(), []
        data_before = torch.zeros_like(latent)
        grid = self.timestep[:-1].tolist()
        for timestep, (a, b, c) in zip(grid, self.coefficients().tolist(), strict=True):
            timesteps = torch.full((len(latent),), timestep, device=latent.device)
            data = latent - timestep * world_model.next_velocity(latent, timesteps, game_action_vector, cache)
            latent, data_before = a * latent + b * data + c * data_before, data
            latents.append(latent)
        return torch.stack(latents, dim=1)

    @torch.no_grad()
    def sample(
        self,
        world_model: LatentWorldModel,
        context: Tensor,
        game_action_vector: Tensor,
        seed: Tensor,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Generate the frames that follow the given ones.

        Args:
            world_model: The generator.
            context: The given frames, clean, ``[B, n, c, h, w]``.
            game_action_vector: Of all frames, ``[B, F, A]``.
            seed: Of the noise that frames start from, and of context noise, long ``[B]``.
            dtype: Of the cache: that of autocast where it is on; None takes the weights' own.

        Returns:
            All frames, clean, ``[B, F, c, h, w]`` float32.

        Raises:
            ValueError: if shapes do not fit.
        """
        reader, frames = FrameReader(self.context_timestep, dtype), context.float()
        for index in range(context.shape[1], game_action_vector.shape[1]):
            cache = reader.read(world_model, frames, game_action_vector, seed)
            noise = step_normal(seed, frames.shape[2:], index, INITIAL_NOISE)
            frame = self.sample_frame(world_model, game_action_vector[:, index], noise, cache)
            frames = torch.cat([frames, frame[:, None]], dim=1)
        return frames
