"""What a diffusion world model is to everything that uses one: velocities of frames, and nothing of RL (section 4.2).

Frames come one after another, each by denoising. A frame under way sees the finished frames before it; these never
change, so they are read once and their keys and values kept. What was generated can be evaluated again all at once:
given the finished frames, every denoising step of every frame is independent of the others.

Prompts, rewards, schedules and log-probabilities are *not* here: a policy wraps a world model for those, `samplers.py`
generates without one.

Letters: B rows, F frames, n some of them, M generated ones (the last), K denoising steps, A width of a game-action
vector; c, h, w a latent's channels, height and width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from rlir_agents.world_models.frame_cache import FrameCache

Form = Literal["A", "A2", "B", "C"]


class SelectedSteps(NamedTuple):
    """Frames at selected denoising steps, and what they see; shapes as in `LatentWorldModel.velocity_of_steps`."""

    context: Tensor
    context_timestep: Tensor
    latent: Tensor
    timestep: Tensor
    game_action_vector: Tensor | None


class LatentWorldModel(nn.Module, ABC):
    """A causal model over sequences of latent frames that predicts their velocity, ``noise - data``.

    A latent at timestep t in [0, 1] is ``(1 - t) data + t noise``. Every frame has its own timestep (diffusion forcing)
    and the vector of the game action that leads to it (`action_encoders`). Velocities are float32, also under autocast.

    Attributes:
        latent_shape: (c, h, w).
        max_frames: Longest video the model is made for.
        action_dim: A.
        checkpoints_activations: Make the layers' activations again in the backward pass, which takes one more forward
            pass and much less memory; numbers are the same.
    """

    checkpoints_activations: bool = False
    latent_shape: tuple[int, int, int]
    max_frames: int
    action_dim: int

    @property
    @abstractmethod
    def hidden_size(self) -> int:
        """Width of a frame's hidden state, for whoever puts a head on the model."""

    @abstractmethod
    def forward(self, latent: Tensor, timestep: Tensor, game_action_vector: Tensor | None) -> Tensor:
        """Velocities of all frames; each sees itself and those before it, as they are given.

        Args:
            latent: ``[B, F, c, h, w]``.
            timestep: ``[B, F]`` in [0, 1], float32 or float64.
            game_action_vector: ``[B, F, A]``; None leaves the condition out.

        Returns:
            ``[B, F, c, h, w]``.

        Raises:
            ValueError: if shapes fit neither the model nor one another, or the video is too long.
        """

    @abstractmethod
    def new_cache(self, num_rows: int, num_frames: int, dtype: torch.dtype) -> FrameCache:
        """An empty cache for B videos of F frames.

        Args:
            num_rows: B.
            num_frames: F; the frame under way needs its place, too.
            dtype: Of keys and values: autocast's where that is on, else the weights'.
        """

    @abstractmethod
    def append(self, latent: Tensor, timestep: Tensor, game_action_vector: Tensor | None, cache: FrameCache) -> None:
        """Read n finished frames, in order, behind what the cache holds; without gradients.

        Args:
            latent: ``[B, n, c, h, w]``, with their context noise if they have any.
            timestep: That of the context noise, ``[B, n]``.
            game_action_vector: ``[B, n, A]`` or None.
            cache: Is written to.

        Raises:
            ValueError: if shapes do not fit or the cache is full.
        """

    @abstractmethod
    def next_velocity(
        self, latent: Tensor, timestep: Tensor, game_action_vector: Tensor | None, cache: FrameCache
    ) -> Tensor:
        """Velocity of the frame under way; the finished ones are in the cache. Without gradients.

        Args:
            latent: ``[B, c, h, w]``.
            timestep: ``[B]``.
            game_action_vector: ``[B, A]`` or None.
            cache: Goes on holding the finished frames only.

        Returns:
            ``[B, c, h, w]``.

        Raises:
            ValueError: if shapes do not fit or the cache is full.
        """

    @abstractmethod
    def _joint_hidden(self, steps: SelectedSteps) -> tuple[Tensor, Tensor]:
        """Frames at selected denoising steps, which were checked, by one pass.

        Returns:
            Hidden states ``[B, M K, S, d]`` of their S tokens before the head, and conditions ``[B, M K, d]``.
        """

    @abstractmethod
    def _velocity(self, hidden: Tensor, condition: Tensor, latent: Tensor, timestep: Tensor) -> Tensor:
        """Velocities of what was read.

        Args:
            hidden: ``[B, U, S, d]``.
            condition: ``[B, U, d]``.
            latent: Whose hidden states these are, ``[B, U, c, h, w]``.
            timestep: Theirs, ``[B, U]``.

        Returns:
            ``[B, U, c, h, w]``.
        """

    def hidden_of_steps(
        self,
        context: Tensor,
        context_timestep: Tensor,
        latent: Tensor,
        timestep: Tensor,
        game_action_vector: Tensor | None,
    ) -> Tensor:
        """What the model makes of frames at selected denoising steps, before its head: means over their tokens.

        Args:
            context: As in :meth:`velocity_of_steps`, and so are the others.
            context_timestep: See there.
            latent: See there.
            timestep: See there.
            game_action_vector: See there.

        Returns:
            float32 ``[B, M, K, hidden_size]``.

        Raises:
            ValueError: if shapes do not fit, or the video is too long.
        """
        selected = SelectedSteps(context, context_timestep, latent, timestep, game_action_vector)
        _check_steps(self, selected)
        hidden, _ = self._joint_hidden(selected)
        return hidden.mean(2).unflatten(1, latent.shape[1:3])

    def velocity_of_steps(
        self,
        context: Tensor,
        context_timestep: Tensor,
        latent: Tensor,
        timestep: Tensor,
        game_action_vector: Tensor | None,
        form: Form = "C",
    ) -> Tensor:
        """Velocities at selected denoising steps of all generated frames, as a rollout had them; differentiable.

        The forms give the same numbers (1e-5 in float32) at different cost (reference page, section 4.3):

        - ``"A"``: every frame and step reads its context again, as a sampler without a cache does.
        - ``"A2"``: every frame reads its context once.
        - ``"B"``: one forward per step, of all frames.
        - ``"C"``: one forward for everything; the cheapest.

        Args:
            context: Frames 0 .. F-2 as later frames saw them, with their context noise, ``[B, F-1, c, h, w]``. Nothing
                sees the last frame.
            context_timestep: That of the context noise, ``[B, F-1]``.
            latent: The last M frames, each at K of its steps, ``[B, M, K, c, h, w]``.
            timestep: Theirs, ``[B, M, K]``; the steps may differ by row and frame.
            game_action_vector: ``[B, F, A]`` or None.
            form: How it is computed.

        Returns:
            ``[B, M, K, c, h, w]``.

        Raises:
            ValueError: if shapes do not fit, the video is too long, or there is no such form.
        """
        if form not in get_args(Form):
            raise ValueError(f"form={form!r}: choose one of {', '.join(get_args(Form))}; 'C' is the cheapest")
        _check_steps(self, SelectedSteps(context, context_timestep, latent, timestep, game_action_vector))
        num_generated, num_steps = latent.shape[1:3]
        num_given = context.shape[1] + 1 - num_generated
        frames = [slice(i, i + 1) for i in range(num_generated)] if form in ("A", "A2") else [slice(0, num_generated)]
        steps = [slice(k, k + 1) for k in range(num_steps)] if form in ("A", "B") else [slice(0, num_steps)]

        def evaluate(frame: slice, step: slice) -> Tensor:
            end = num_given + frame.stop
            selected = SelectedSteps(
                context[:, : end - 1],
                context_timestep[:, : end - 1],
                latent[:, frame, step],
                timestep[:, frame, step],
                None if game_action_vector is None else game_action_vector[:, :end],
            )
            latents, timesteps = selected.latent.flatten(1, 2), selected.timestep.flatten(1)
            velocity = self._velocity(*self._joint_hidden(selected), latents, timesteps)
            return velocity.unflatten(1, selected.latent.shape[1:3])

        by_frame = [torch.cat([evaluate(frame, step) for step in steps], dim=2) for frame in frames]
        return torch.cat(by_frame, dim=1)

    def read(
        self,
        context: Tensor,
        timestep: Tensor,
        game_action_vector: Tensor | None,
        num_frames: int,
        dtype: torch.dtype,
    ) -> FrameCache:
        """A cache that holds the given frames of videos; equal ones are read once, because siblings share a prompt.

        Args:
            context: With context noise, ``[B, n, c, h, w]``.
            timestep: That of the context noise, ``[B, n]``.
            game_action_vector: ``[B, n, A]`` or None.
            num_frames: F, so that the generated frames fit, too.
            dtype: As in :meth:`new_cache`.

        Raises:
            ValueError: if shapes do not fit.
        """
        check_frames(self, context, timestep, game_action_vector)
        parts = [part.flatten(1).double() for part in (context, timestep, game_action_vector) if part is not None]
        distinct, source = torch.cat(parts, dim=1).unique(dim=0, return_inverse=True)
        row = torch.arange(len(source), device=source.device)
        first = row.new_full((len(distinct),), len(row)).scatter_reduce(0, source, row, "amin")
        shared = self.new_cache(len(first), context.shape[1], dtype)
        vector = None if game_action_vector is None else game_action_vector[first]
        self.append(context[first], timestep[first], vector, shared)
        cache = self.new_cache(len(row), num_frames, dtype)
        cache.copy_rows(shared, source)
        return cache


def check_frames(
    model: LatentWorldModel,
    latent: Tensor,
    timestep: Tensor,
    game_action_vector: Tensor | None,
    num_before: int = 0,
) -> None:
    """Hold frames ``[B, n, c, h, w]``, timesteps ``[B, n]`` and vectors ``[B, n, A]`` against the model.

    Raises:
        ValueError: if they do not fit, or with ``num_before`` frames before them make too long a video.
    """
    if latent.ndim != 5 or latent.shape[2:] != model.latent_shape:
        raise ValueError(
            f"latents of shape {tuple(latent.shape)}: give [B, F, {', '.join(map(str, model.latent_shape))}]"
        )
    _check_timesteps(timestep, latent.shape[:2])
    _check_vector(model, game_action_vector, latent.shape[:2])
    _check_length(model, num_before + latent.shape[1])


def _check_steps(model: LatentWorldModel, steps: SelectedSteps) -> None:
    """Hold selected steps ``[B, M, K, c, h, w]`` and their context ``[B, F-1, c, h, w]`` against the model."""
    check_frames(model, steps.context, steps.context_timestep, None)
    latent, num_rows, num_frames = steps.latent, steps.context.shape[0], steps.context.shape[1] + 1
    is_latent = latent.ndim == 6 and latent.shape[3:] == model.latent_shape
    if not is_latent or len(latent) != num_rows or not 1 <= latent.shape[1] < num_frames:
        raise ValueError(
            f"latents of shape {tuple(latent.shape)} behind {num_frames - 1} frames of {num_rows} videos: give "
            f"[{num_rows}, M, K, {', '.join(map(str, model.latent_shape))}] with M from 1 to {num_frames - 1}"
        )
    _check_timesteps(steps.timestep, latent.shape[:3])
    _check_vector(model, steps.game_action_vector, (num_rows, num_frames))
    _check_length(model, num_frames)


def _check_length(model: LatentWorldModel, num_frames: int) -> None:
    if num_frames > model.max_frames:
        raise ValueError(
            f"a video of {num_frames} frames is longer than max_frames={model.max_frames}; "
            "use fewer frames or a model made for longer videos"
        )


def _check_timesteps(timestep: Tensor, shape: tuple[int, ...]) -> None:
    if timestep.shape != shape or timestep.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{timestep.dtype} timesteps of shape {tuple(timestep.shape)}: give float32 (halves are too coarse for "
            f"1000 labels) of shape {tuple(shape)}"
        )


def _check_vector(model: LatentWorldModel, game_action_vector: Tensor | None, shape: tuple[int, ...]) -> None:
    expected = (*shape, model.action_dim)
    if game_action_vector is not None and game_action_vector.shape != expected:
        raise ValueError(
            f"game-action vectors of shape {tuple(game_action_vector.shape)}: give {expected}, one for every frame; "
            "frame 0 has zeros"
        )
