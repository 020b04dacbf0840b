"""NFD (next-frame diffusion, arXiv 2506.01380; RLIR, section 4.2): a transformer that denoises a video frame by frame.

One joint attention over space and time, full inside a frame and causal across frames. No code or weights of NFD are
public: sizes are RLIR's (Table 7), everything else is that of its public descendant LIVE (arXiv 2602.03747), whose
parameter names these are. Schedules, noise and sampling are *not* here, nor anything of RL.

Letters: B rows, F frames, M generated ones, K denoising steps, U frames or copies of frames, S tokens of a frame, d
hidden, A width of a game-action vector; c, h, w a latent's channels, height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from rlir_agents.world_models.dit_layers import Head, PatchEmbedding, TimestepEmbedding, initialize, precise
from rlir_agents.world_models.frame_attention import Attend
from rlir_agents.world_models.frame_cache import FrameCache
from rlir_agents.world_models.frame_transformer import FrameTransformer, FrameTransformerConfig
from rlir_agents.world_models.nfd_layers import Block, VectorEmbedding, frame_rotary_table

_LABELS = 1000
# In float32 1000 * 0.251 is less than 251, in float64 it is not. A label counts as reached a little before, so that it
# is the same wherever a timestep was computed, in a rollout's tables or from a stored tensor.
_LABEL_SLACK = 2.5e-4


@dataclass(frozen=True)
class NFDConfig(FrameTransformerConfig):
    """Sizes; the defaults are those of NFD-310M. An integer label is the whole part of 1000 t.

    Attributes:
        intermediate_size: Width of the SwiGLU; None is 8 d / 3, rounded up to a multiple of 256 (RLIR prints the
            unrounded number, but only the rounded one gives its parameter counts).
        action_embedding: ``"linear"``, as RLIR and NFD write, or ``"mlp"`` of two layers, which 774M parameters need.
        rope_dims: Dimensions of a head that turn with frame, row and column; None is (8, 28, 28) for 64, and alike for
            others.
        rope_theta: Base of the rotary angles.
    """

    latent_shape: tuple[int, int, int] = (16, 14, 24)
    intermediate_size: int | None = None
    action_embedding: Literal["linear", "mlp"] = "linear"
    rope_dims: tuple[int, int, int] | None = None
    rope_theta: float = 256.0

    def __post_init__(self) -> None:
        """Accept lists, as they come from JSON and YAML, and check the sizes."""
        super().__post_init__()
        dims = self.axis_dims
        if len(dims) != 3 or sum(dims) != self.head_dim or any(dim % 2 or dim < 2 for dim in dims):
            raise ValueError(f"rope_dims={dims} must be three even numbers that add up to {self.head_dim}")
        if self.action_embedding not in ("linear", "mlp"):
            raise ValueError(f"action_embedding={self.action_embedding!r}: choose 'linear' or 'mlp'")

    @property
    def axis_dims(self) -> tuple[int, int, int]:
        """Dimensions of a head that turn with frame, row and column."""
        if self.rope_dims is not None:
            return self.rope_dims
        time = -(-self.head_dim // 16) * 2  # an eighth, and even
        time += (self.head_dim - time) % 4  # what remains must be twice an even number
        space = (self.head_dim - time) // 2
        return time, space, space

    @property
    def feed_forward_size(self) -> int:
        """Width of the SwiGLU."""
        return self.intermediate_size or -(-int(8 * self.hidden_size / 3) // 256) * 256


class NFD(FrameTransformer):
    """The transformer of NFD.

    Under autocast the products of the layers and the attention run in its dtype; norms, modulation and the residual
    stream stay in float32, in train and eval mode alike.

    Example:
        >>> config = NFDConfig(latent_shape=(4, 2, 3), patch_size=1, hidden_size=32, num_layers=2, num_heads=2,
        ...     action_dim=5, max_frames=4)
        >>> latent, timestep = torch.randn(2, 4, 4, 2, 3), torch.rand(2, 4)
        >>> NFD(config)(latent, timestep, torch.zeros(2, 4, 5)).shape
        torch.Size([2, 4, 4, 2, 3])
    """

    config: NFDConfig

    def __init__(self, config: NFDConfig) -> None:
        """Make a freshly initialised model; weights come from torch's global generator."""
        super().__init__(config)
        d, c, p = config.hidden_size, config.latent_shape[0], config.patch_size
        self.x_embedder = PatchEmbedding(c, p, d, has_time_axis=True)
        self.t_embedder = TimestepEmbedding(d)
        if config.action_embedding == "linear":
            self.cond_embedder = nn.Linear(config.action_dim, d)
        else:
            self.c_embedder = VectorEmbedding(config.action_dim, d)
        sizes = (d, config.num_heads, config.feed_forward_size, config.norm_eps)
        self.blocks = nn.ModuleList(Block(*sizes) for _ in range(config.num_layers))
        self.final_layer = Head(c, p, d, config.norm_eps, layout="c p q")
        initialize(self, [self.final_layer, *(cast(Block, block).adaLN_modulation for block in self.blocks)])

    def new_cache(self, num_rows: int, num_frames: int, dtype: torch.dtype) -> FrameCache:
        """An empty cache; see the base class."""
        config = self.config
        shape = (num_rows, config.num_heads, num_frames, config.tokens_per_frame, config.head_dim)
        return FrameCache(config.num_layers, shape, dtype, self.final_layer.linear.weight.device)

    def _velocity(self, hidden: Tensor, condition: Tensor, latent: Tensor, timestep: Tensor) -> Tensor:
        """The head predicts it as it is; see the base class."""
        return self.final_layer(hidden, condition, self.config.grid)

    def _hidden(
        self,
        latent: Tensor,
        timestep: Tensor,
        vector: Tensor | None,
        frame_index: list[int],
        attend_of_layer: Callable[[int], Attend],
    ) -> tuple[Tensor, Tensor]:
        """The network before its head; see the base class."""
        config = self.config
        rotary = frame_rotary_table(frame_index, config.grid, config.axis_dims, config.rope_theta, latent.device)
        with precise(latent):
            condition = self.t_embedder(self._label(timestep))
            if vector is not None:
                condition = condition + self._embed_action(vector.to(condition.dtype))
        return self._run_blocks(self.x_embedder(latent), condition, rotary, attend_of_layer), condition

    def _label(self, timestep: Tensor) -> Tensor:
        label = _LABELS * timestep.float()
        return (label + _LABEL_SLACK).floor() if self.config.timestep_label == "integer" else label

    def _embed_action(self, vector: Tensor) -> Tensor:
        return self.cond_embedder(vector) if self.config.action_embedding == "linear" else self.c_embedder(vector)
