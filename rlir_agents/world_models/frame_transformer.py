"""A transformer over frames that have no more to do with one another than that each sees the finished ones before it.

What its layers are is its own business; how frames stand in a sequence, are read into a cache, or are evaluated all at
once, is the same for all and stands here.

Letters: B rows, F frames, M generated ones, K denoising steps, U frames or copies of frames, S tokens of a frame, d
hidden, A width of a game-action vector; c, h, w a latent's channels, height and width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rlir_agents.world_models.activation_checkpointing import run_layer
from rlir_agents.world_models.frame_attention import Attend, FrameLayout, frame_attention
from rlir_agents.world_models.frame_cache import FrameCache
from rlir_agents.world_models.latent import LatentWorldModel, SelectedSteps, check_frames
from rlir_env.sizes import settle_sizes


@dataclass(frozen=True)
class FrameTransformerConfig:
    """The sizes that all of them have.

    Attributes:
        latent_shape: (c, h, w) of a frame's latent.
        patch_size: Side of the square of latent positions that makes a token.
        hidden_size: d.
        num_layers: Layers.
        num_heads: Heads; a head has ``hidden_size / num_heads`` dimensions.
        action_dim: A.
        max_frames: Longest video.
        norm_eps: Of the norms.
        timestep_label: What the network sees of a timestep: an ``"integer"``, as published models are trained, or a
            ``"continuous"`` number.
    """

    latent_shape: tuple[int, int, int]
    patch_size: int = 2
    hidden_size: int = 1024
    num_layers: int = 16
    num_heads: int = 16
    action_dim: int = 39
    max_frames: int = 32
    norm_eps: float = 1e-6
    timestep_label: Literal["integer", "continuous"] = "integer"

    def __post_init__(self) -> None:
        """Accept lists, as they come from JSON and YAML, and check the sizes."""
        settle_sizes(self, may_be_zero=("context_label",))
        if self.hidden_size % (4 * self.num_heads):
            raise ValueError(
                f"hidden_size={self.hidden_size} must be {self.num_heads} heads of a multiple of 4 dimensions"
            )
        if any(size % self.patch_size for size in self.latent_shape[1:]):
            raise ValueError(
                f"patch_size={self.patch_size} must divide a latent of {self.latent_shape[1:]} positions; 1 always does"
            )
        if self.timestep_label not in ("integer", "continuous"):
            raise ValueError(f"timestep_label={self.timestep_label!r}: choose 'integer' or 'continuous'")

    @property
    def head_dim(self) -> int:
        """Dimensions of a head."""
        return self.hidden_size // self.num_heads

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a frame's tokens."""
        return self.latent_shape[1] // self.patch_size, self.latent_shape[2] // self.patch_size

    @property
    def tokens_per_frame(self) -> int:
        """S."""
        return self.grid[0] * self.grid[1]


class FrameTransformer(LatentWorldModel):
    """Everything that a `LatentWorldModel` promises, from one pass over copies of frames.

    Attributes:
        config: Its sizes.
        blocks: Its layers, which a subclass makes; called with the residual stream, conditions, rotations of queries
            and keys, and the layer's attention across frames.
    """

    blocks: nn.ModuleList

    def __init__(self, config: FrameTransformerConfig) -> None:
        """Take over the sizes; a subclass makes the layers."""
        super().__init__()
        self.config = config
        self.latent_shape, self.max_frames, self.action_dim = config.latent_shape, config.max_frames, config.action_dim

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.config.hidden_size

    @abstractmethod
    def _hidden(
        self,
        latent: Tensor,
        timestep: Tensor,
        vector: Tensor | None,
        frame_index: list[int],
        attend_of_layer: Callable[[int], Attend],
    ) -> tuple[Tensor, Tensor]:
        """The network before its head.

        Args:
            latent: Copies of frames, ``[B, U, c, h, w]``.
            timestep: Theirs, ``[B, U]``.
            vector: Theirs, ``[B, U, A]``, or None.
            frame_index: Which frame each is a copy of, U numbers.
            attend_of_layer: For the number of a layer, its attention across frames.

        Returns:
            Hidden states ``[B, U, S, d]`` and conditions ``[B, U, d]``.
        """

    def _run_blocks(
        self, x: Tensor, condition: Tensor, rotary: Any, attend_of_layer: Callable[[int], Attend]
    ) -> Tensor:
        """All layers on the residual stream ``[B, U, S, d]``, which is float32 at least."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        for layer, block in enumerate(self.blocks):
            x = run_layer(block, self.checkpoints_activations, x, condition, rotary, attend_of_layer(layer))
        return x

    def forward(self, latent: Tensor, timestep: Tensor, game_action_vector: Tensor | None) -> Tensor:
        """Velocities of all frames; see the base class."""
        check_frames(self, latent, timestep, game_action_vector)
        layout = FrameLayout(latent.shape[1], num_clean=latent.shape[1])
        attend = partial(frame_attention, layout=layout)
        hidden = self._hidden(latent, timestep, game_action_vector, layout.frame_index, lambda layer: attend)
        return self._velocity(*hidden, latent, timestep)

    @torch.no_grad()
    def append(self, latent: Tensor, timestep: Tensor, game_action_vector: Tensor | None, cache: FrameCache) -> None:
        """Read finished frames; see the base class."""
        check_frames(self, latent, timestep, game_action_vector, cache.num_frames)
        for index in range(latent.shape[1]):
            frame = slice(index, index + 1)
            vector = None if game_action_vector is None else game_action_vector[:, frame]
            self._hidden_behind(cache, latent[:, frame], timestep[:, frame], vector)
            cache.finish_frame()

    @torch.no_grad()
    def next_velocity(
        self, latent: Tensor, timestep: Tensor, game_action_vector: Tensor | None, cache: FrameCache
    ) -> Tensor:
        """Velocity of the frame under way; see the base class."""
        latent, timestep = latent[:, None], timestep[:, None]
        vector = None if game_action_vector is None else game_action_vector[:, None]
        check_frames(self, latent, timestep, vector, cache.num_frames)
        return self._velocity(*self._hidden_behind(cache, latent, timestep, vector), latent, timestep).squeeze(1)

    def _hidden_behind(
        self, cache: FrameCache, latent: Tensor, timestep: Tensor, vector: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What `_hidden` gives of one frame, ``[B, 1, c, h, w]``, that sees those in the cache."""
        if cache.num_frames == cache.max_frames:
            raise ValueError(f"the cache holds {cache.num_frames} frames, and no more fit; make it for longer videos")
        return self._hidden(latent, timestep, vector, [cache.num_frames], lambda layer: partial(cache.attend, layer))

    def _joint_hidden(self, steps: SelectedSteps) -> tuple[Tensor, Tensor]:
        """One pass over the clean frames and K copies of the last M; see the base class."""
        context, context_timestep, latent, timestep, game_action_vector = steps
        num_clean, (num_generated, num_steps) = context.shape[1], latent.shape[1:3]
        num_frames = num_clean + 1
        layout = FrameLayout(num_frames, num_clean, num_steps, num_frames - num_generated)
        attend = partial(frame_attention, layout=layout)
        # Clean and noisy copies take their places in the sequence.
        source = torch.empty(len(layout.frame_index), dtype=torch.long)
        source[layout.clean_copies + layout.noisy_copies] = torch.arange(len(source))
        source = source.to(latent.device)
        copies = torch.cat([context, latent.flatten(1, 2)], dim=1)[:, source]
        timesteps = torch.cat([context_timestep, timestep.flatten(1)], dim=1)[:, source]
        vectors = None if game_action_vector is None else game_action_vector[:, layout.frame_index]
        hidden, condition = self._hidden(copies, timesteps, vectors, layout.frame_index, lambda layer: attend)
        return hidden[:, layout.noisy_copies], condition[:, layout.noisy_copies]
