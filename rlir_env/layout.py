"""Where things stand in a video as it is made: arithmetic, without a model or an env.

`LatentLayout` says which denoising step of which frame is next (section 4.3). `TokenLayout` is Eq. 4: the sequence is
``img_0 word_0 img_1 word_1 ... img_{F-1}``, K visual tokens a frame, and between two frames the A ids of the game
action that leads from one to the other. Line j of a recording acts between frames j and j+1, so word j conditions frame
j+1. The published 16-frame models reserve room for one more word at the end; nothing reads it.

Letters: K tokens per frame, A word length, F frames, N denoising steps of a frame, k tokens or denoising steps per env
step, T env steps, L sequence length; c, h, w a latent's channels, height and width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rlir_env.schedules import check_grid


@dataclass(frozen=True)
class TokenLayout:
    """Positions of visual tokens and action words in one video.

    Example:
        >>> layout = TokenLayout(tokens_per_frame=2, num_frames=3, word_length=1)
        >>> layout.sequence_length, layout.prompt_length  # i i w i i w i i
        (8, 3)
        >>> layout.action_positions.tolist()
        [3, 4, 6, 7]
    """

    tokens_per_frame: int
    num_frames: int = 16
    word_length: int = 11

    def __post_init__(self) -> None:
        if self.num_frames < 2:
            raise ValueError(f"num_frames={self.num_frames}: a video needs one given and one generated frame")

    @property
    def num_generated_frames(self) -> int:
        """Frames that the policy makes: all but the given first one."""
        return self.num_frames - 1

    @property
    def block_length(self) -> int:
        """Ids of one frame and its action word, K + A (347 for MineWorld)."""
        return self.tokens_per_frame + self.word_length

    @property
    def prompt_length(self) -> int:
        """Ids known at reset: the first frame and the first word."""
        return self.block_length

    @property
    def sequence_length(self) -> int:
        """L = F K + (F - 1) A."""
        return self.num_frames * self.tokens_per_frame + self.num_generated_frames * self.word_length

    @property
    def frame_starts(self) -> torch.Tensor:
        """Index of every frame's first token, long [F]."""
        return torch.arange(self.num_frames) * self.block_length

    @property
    def frame_positions(self) -> torch.Tensor:
        """Index of every visual token, long [F, K]."""
        return self.frame_starts[:, None] + torch.arange(self.tokens_per_frame)

    @property
    def word_positions(self) -> torch.Tensor:
        """Index of every id of every action word, long [F-1, A]."""
        first = self.frame_starts[:-1] + self.tokens_per_frame
        return first[:, None] + torch.arange(self.word_length)

    @property
    def action_positions(self) -> torch.Tensor:
        """Index of every sampled token in the order of sampling, long [(F-1) K]."""
        return self.frame_positions[1:].flatten()

    def tokens_per_step(self, granularity: int | str) -> int:
        """Resolve ``"frame"`` and check that whole steps make a frame.

        Raises:
            ValueError: if the granularity does not divide the tokens of a frame.
        """
        k = self.tokens_per_frame if granularity == "frame" else granularity
        if not isinstance(k, int) or k < 1 or self.tokens_per_frame % k:
            raise ValueError(
                f"tokens_per_step={granularity!r}: use 'frame' or a divisor of the "
                f"{self.tokens_per_frame} tokens of a frame"
            )
        return k

    def num_steps(self, tokens_per_step: int) -> int:
        """T: steps of a whole episode."""
        return self.num_generated_frames * self.tokens_per_frame // tokens_per_step

    def frame_of_step(self, tokens_per_step: int) -> torch.Tensor:
        """Generated frame (0 .. F-2) that each step belongs to, long [T]."""
        return torch.arange(self.num_steps(tokens_per_step)) * tokens_per_step // self.tokens_per_frame


@dataclass(frozen=True)
class LatentLayout:
    """Denoising steps of one video, frame after frame; the first frame is given.

    Attributes:
        latent_shape: (c, h, w) of a frame.
        timesteps: t_0 > ... > t_N = 0, as from `rlir_env.schedules.shifted_grid`.
        num_frames: F.

    Raises:
        ValueError: if there is nothing to generate, or the timesteps do not fall to 0.

    Example:
        >>> layout = LatentLayout((16, 5, 7), (1.0, 0.9, 0.75, 0.5, 0.0), num_frames=16)
        >>> layout.num_steps(1), layout.num_steps(layout.steps_per_action("frame"))
        (60, 15)
    """

    latent_shape: tuple[int, ...]
    timesteps: tuple[float, ...]
    num_frames: int = 16

    def __post_init__(self) -> None:
        grid = torch.as_tensor(self.timesteps, dtype=torch.float64)
        check_grid(grid)
        if self.num_frames < 2:
            raise ValueError(f"num_frames={self.num_frames}: a video needs one given and one generated frame")
        object.__setattr__(self, "timesteps", tuple(grid.tolist()))
        object.__setattr__(self, "latent_shape", tuple(self.latent_shape))

    @property
    def num_generated_frames(self) -> int:
        """Frames that the policy makes: all but the given first one."""
        return self.num_frames - 1

    @property
    def num_denoising_steps(self) -> int:
        """N, of a frame."""
        return len(self.timesteps) - 1

    @property
    def grid(self) -> torch.Tensor:
        """The timesteps, float64 [N+1]."""
        return torch.tensor(self.timesteps, dtype=torch.float64)

    def steps_per_action(self, granularity: int | str) -> int:
        """Resolve ``"frame"`` and check that whole env steps make a frame.

        Raises:
            ValueError: if the granularity does not divide the denoising steps of a frame.
        """
        k = self.num_denoising_steps if granularity == "frame" else granularity
        if not isinstance(k, int) or k < 1 or self.num_denoising_steps % k:
            raise ValueError(
                f"steps_per_action={granularity!r}: use 'frame' or a divisor of the {self.num_denoising_steps} "
                "denoising steps of a frame"
            )
        return k

    def num_steps(self, steps_per_action: int) -> int:
        """T: env steps of a whole episode."""
        return self.num_generated_frames * self.num_denoising_steps // steps_per_action
