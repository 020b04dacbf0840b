"""Teaching NFD to denoise recorded gameplay frame by frame (paper, section 4.2; reference page, section 1.5).

Rectified flow: a frame at timestep t is ``(1 - t) data + t noise``, and the world model learns its velocity,
``noise - data``. Every frame has a timestep of its own. What it sees of the past is a choice, *forcing*:

- ``"diffusion"``: as NFD and LIVE train, one pass in which the past is as noisy as the frames are. With most timesteps
  near noise, the clean past of a rollout is rare in it.
- ``"teacher"``: as a rollout sees it, the past finished, and K noisy copies of every frame that nobody else sees. A
  copy costs as much as ``1 + 1 / K`` frames, because the past has to be read as well.

Frame 0 is given to every video: it is shown as rollouts show it in both, and since nobody ever asks for its velocity,
it has no loss.

Letters: B clips, F frames of a clip, K noisy copies of a frame, S slots, A width of a game-action vector; c, h, w a
latent's channels, height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from rlir_agents.pretraining.encoded_gameplay import EncodedGameplay
from rlir_agents.pretraining.loop import PretrainingTask
from rlir_agents.world_models import ActionEncoder, LatentWorldModel
from rlir_env.noise import CONTEXT_NOISE, step_normal
from rlir_env.recordings import FrameArchive
from rlir_env.schedules import shifted, shifted_grid
from rlir_env.tokenizers import Tokenizer

Forcing = Literal["diffusion", "teacher"]


class LatentClips(NamedTuple):
    """Clips of one length; game action j acts between frames j and j+1.

    Attributes:
        latent: float32 ``[B, F, c, h, w]``.
        game_action: int64 ``[B, F-1, S]``.
    """

    latent: Tensor
    game_action: Tensor


class LatentGameplay(EncodedGameplay):
    """An archive's clips as latents.

    Args:
        archive: recorded gameplay.
        tokenizer: frozen, to latents.
        num_frames: F.
        autocast_dtype: for encoding.

    Attributes:
        latent_shape: (c, h, w).

    Raises:
        ValueError: if the tokenizer makes ids.
    """

    def __init__(
        self,
        archive: FrameArchive,
        tokenizer: Tokenizer,
        num_frames: int = 16,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        if len(tokenizer.code_shape) != 3:
            raise ValueError(f"a {type(tokenizer).__name__} makes ids, no latents; give a KL tokenizer")
        super().__init__(archive, tokenizer, num_frames, autocast_dtype)
        self.latent_shape = tokenizer.code_shape

    def clips(self, starts: np.ndarray) -> LatentClips:
        """Read the clips that begin at the given frames, int64 ``[B]`` of ``starts``."""
        frames = self._frame_indices(starts)
        latent = torch.from_numpy(self._codes[frames]).float()
        return LatentClips(latent, torch.from_numpy(self._archive.slots[frames[:, :-1]]))


class FlowDraw(NamedTuple):
    """The timesteps and the noise of a batch.

    Attributes:
        timestep: Of K copies of frames 1 to F-1, ``[B, F-1, K]``.
        noise: Theirs, ``[B, F-1, K, c, h, w]``.
        context_noise: Of frames 0 to F-2 where later frames see them finished, ``[B, F-1, c, h, w]``.
    """

    timestep: Tensor
    noise: Tensor
    context_noise: Tensor


def draw_timesteps(shape: tuple[int, ...], shift: float, generator: torch.Generator) -> Tensor:
    """Draw the timesteps to train on: ``t = shift u / (1 + (shift - 1) u)`` of a logit-normal u, as LIVE does.

    LIVE rounds u to a thousandth, which only whole labels need.

    Args:
        shape: Of the draw.
        shift: That of the sampler's grid; above 1 most timesteps are near noise.
        generator: On the CPU.

    Returns:
        float32 in the open interval (0, 1).
    """
    return shifted(torch.randn(shape, generator=generator).sigmoid(), shift)


def teacher_forced_velocity(
    world_model: LatentWorldModel, latent: Tensor, game_action_vector: Tensor, draw: FlowDraw, context_timestep: float
) -> Tensor:
    """Velocities of frames 1 to F-1 behind a finished past: what a rollout would see there.

    Args:
        world_model: The model.
        latent: Clean clips, ``[B, F, c, h, w]``.
        game_action_vector: ``[B, F, A]``.
        draw: Timesteps and noise.
        context_timestep: Finished frames are seen with this share of noise.

    Returns:
        float32 ``[B, F-1, K, c, h, w]``.
    """
    context_timesteps = torch.full_like(draw.timestep[:, :, 0], context_timestep)
    context = _noisy(latent[:, :-1], draw.context_noise, context_timesteps)
    copies = _noisy(latent[:, 1:, None], draw.noise, draw.timestep)
    return world_model.velocity_of_steps(context, context_timesteps, copies, draw.timestep, game_action_vector)


def diffusion_forced_velocity(
    world_model: LatentWorldModel, latent: Tensor, game_action_vector: Tensor, draw: FlowDraw, context_timestep: float
) -> Tensor:
    """Velocities of frames 1 to F-1 in one pass, the noisy frames being the past of those after them.

    Args:
        world_model: As in `teacher_forced_velocity`.
        latent: As there.
        game_action_vector: As there.
        draw: As there, with K = 1.
        context_timestep: Frame 0 is seen with this share of noise.

    Returns:
        float32 ``[B, F-1, 1, c, h, w]``.
    """
    timestep = torch.cat([torch.full_like(draw.timestep[:, :1, 0], context_timestep), draw.timestep[:, :, 0]], dim=1)
    noise = torch.cat([draw.context_noise[:, :1], draw.noise[:, :, 0]], dim=1)
    return world_model(_noisy(latent, noise, timestep), timestep, game_action_vector)[:, 1:, None]


_VELOCITIES: dict[str, Callable[[LatentWorldModel, Tensor, Tensor, FlowDraw, float], Tensor]] = {
    "diffusion": diffusion_forced_velocity,
    "teacher": teacher_forced_velocity,
}


class FlowTask(PretrainingTask):
    """Predicts the velocity of frames 1 to F-1 from the frames and game actions before them.

    Args:
        module: the world model.
        training, validation: gameplay of disjoint maps, as latents.
        action_encoder: from slots to what the world model reads.
        forcing: what a frame sees of the past, see above.
        clips_per_batch: B.
        copies_per_frame: K; more than one only behind a finished past.
        shift: of the timesteps, see `draw_timesteps`.
        context_timestep: finished frames are seen with this share of noise; the same as in rollouts.
        num_validation_clips: held-out clips, evenly spread.
        num_validation_timesteps: at which every frame of theirs is held against its velocity.

    Raises:
        ValueError: if a number or a name is out of range, or the encoder's vectors are not the world model's.
    """

    module: LatentWorldModel

    def __init__(
        self,
        module: LatentWorldModel,
        training: LatentGameplay,
        validation: LatentGameplay,
        action_encoder: ActionEncoder,
        forcing: Forcing = "diffusion",
        clips_per_batch: int = 8,
        copies_per_frame: int = 1,
        shift: float = 3.0,
        context_timestep: float = 0.0,
        num_validation_clips: int = 64,
        num_validation_timesteps: int = 5,
    ) -> None:
        if forcing not in get_args(Forcing):
            raise ValueError(
                f"forcing={forcing!r}: choose 'diffusion' (NFD's, a noisy past) or 'teacher' (a clean one)"
            )
        if copies_per_frame < 1 or (copies_per_frame > 1 and forcing == "diffusion"):
            raise ValueError(
                f"copies_per_frame={copies_per_frame} with forcing={forcing!r}: give 1, or more with "
                "forcing='teacher'; in a noisy past a frame stands once"
            )
        if not 0 <= context_timestep < 1:
            raise ValueError(f"context_timestep={context_timestep}: give a timestep from 0 (clean) to below 1")
        if action_encoder.dim != module.action_dim:
            raise ValueError(
                f"a {type(action_encoder).__name__} makes vectors of {action_encoder.dim} numbers, the world model "
                f"reads {module.action_dim}: make it with action_dim={action_encoder.dim}"
            )
        self.module, self._training, self._action_encoder = module, training, action_encoder
        self._forcing, self._context_timestep, self._shift = forcing, context_timestep, shift
        self._clips_per_batch, self._copies_per_frame = clips_per_batch, copies_per_frame
        self._held_out = validation.clips(validation.spread_starts(num_validation_clips))
        # The middles of equal parts of a sampler's grid, so each timestep stands for as many denoising steps.
        self._timesteps = shifted_grid(2 * num_validation_timesteps, shift)[1::2].float()

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the velocity, per dimension of a latent."""
        clips = self._training.clips(self._training.draw_starts(self._clips_per_batch, generator))
        shape = (*clips.game_action.shape[:2], self._copies_per_frame)  # [B, F-1, K]
        draw = FlowDraw(
            timestep=draw_timesteps(shape, self._shift, generator),
            noise=torch.randn(*shape, *self.module.latent_shape, generator=generator),
            context_noise=torch.randn(*shape[:2], *self.module.latent_shape, generator=generator),
        )
        return self._error(clips, draw, self._forcing).mean(), {}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Held-out errors behind a clean past, whatever the forcing; also by timestep, and under other game actions.

        ``velocity_mse`` of a world model that predicts nothing is about 2. ``velocity_mse_shuffled_actions`` is under
        the game actions of other clips: the gap is what the actions tell. ``velocity_mse/0.75`` is at timestep 0.75.
        """
        latent, game_action = self._held_out
        error = self._held_out_error(self._held_out)  # [clips, F-1, timesteps]
        shuffled = self._held_out_error(LatentClips(latent, game_action.roll(1, dims=0)))
        figures = {"velocity_mse": error.mean(), "velocity_mse_shuffled_actions": shuffled.mean()}
        by_timestep = zip(self._timesteps.tolist(), error.mean((0, 1)), strict=True)
        figures |= {f"velocity_mse/{timestep:.3g}": mean for timestep, mean in by_timestep}
        return {name: float(value) for name, value in figures.items()}

    def _held_out_error(self, clips: LatentClips) -> Tensor:
        """Squared errors ``[clips, F-1, timesteps]``."""
        index = torch.arange(len(clips.latent))
        chunks = zip(*(part.split(self._clips_per_batch) for part in (*clips, index)), strict=True)
        errors = [
            self._error(LatentClips(latent, game_action), self._held_out_draw(clip), "teacher")
            for latent, game_action, clip in chunks
        ]
        return torch.cat(errors)

    def _held_out_draw(self, clip: Tensor) -> FlowDraw:
        """The same timesteps for all frames, and noise that belongs to clip (an index, ``[B]``), frame and timestep."""
        shape, num_frames = self.module.latent_shape, self._held_out.latent.shape[1]
        frame, step = torch.arange(1, num_frames)[:, None], torch.arange(len(self._timesteps))
        return FlowDraw(
            timestep=self._timesteps.expand(len(clip), num_frames - 1, -1),
            noise=step_normal(clip[:, None, None], shape, frame, step),
            context_noise=step_normal(clip[:, None], shape, torch.arange(num_frames - 1), CONTEXT_NOISE),
        )

    def _error(self, clips: LatentClips, draw: FlowDraw, forcing: Forcing) -> Tensor:
        """Mean squared errors of the velocities of frames 1 to F-1, ``[B, F-1, K]``."""
        latent = clips.latent.to(self.device)
        draw = FlowDraw(*(part.to(self.device) for part in draw))
        vector = self._action_encoder.of_frames(clips.game_action.to(self.device))
        velocity = _VELOCITIES[forcing](self.module, latent, vector, draw, self._context_timestep)
        return (velocity - (draw.noise - latent[:, 1:, None])).square().mean((-3, -2, -1))


def _noisy(data: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """Latents at their timesteps ``[...]``, of data and noise ``[..., c, h, w]``."""
    return torch.lerp(data, noise, timestep[..., None, None, None])
