"""Oasis 500M (Decart and Etched, 2024): a public diffusion transformer of Minecraft, in flow coordinates.

Its layers attend inside a frame and then, place by place, along time; a frame sees the frames before it. It was trained
to predict v on DDPM's noising, ``alpha data + s noise`` with ``alpha**2 + s**2 = 1``. Divided by ``alpha + s`` that is
flow matching's line at the timestep ``s / (alpha + s)``, so every schedule, SDE and sampler of this package applies
unchanged, and a DDIM step is an Euler step there (`oasis_schedule.py`).

Parameter names are those of etched-ai/open-oasis, from which this was checked; modulations are computed once per frame
and not per token. It reads windows of 32 frames; longer videos are *not* made here.

Letters: B rows, U frames or copies of frames, S tokens of a frame, d hidden, D head dimension, A width of a game-action
vector; c, h, w a latent's channels, height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from rlir_agents.world_models.dit_layers import Head, PatchEmbedding, TimestepEmbedding, initialize, precise
from rlir_agents.world_models.frame_attention import Attend
from rlir_agents.world_models.frame_cache import FrameCache
from rlir_agents.world_models.frame_transformer import FrameTransformer, FrameTransformerConfig
from rlir_agents.world_models.oasis_layers import (
    Frequencies,
    SpatioTemporalBlock,
    pixel_frequencies,
    spatial_rotary_table,
    temporal_rotary_table,
    time_frequencies,
)
from rlir_agents.world_models.oasis_schedule import continuous_label, nearest_label


@dataclass(frozen=True)
class OasisConfig(FrameTransformerConfig):
    """Sizes; the defaults are those of Oasis 500M (its 608M parameters are counted with both attentions' MLPs).

    A layer has a spatial and a temporal half. An integer label is the DDPM step next to a timestep.

    Attributes:
        intermediate_size: Width of the perceptrons.
        context_label: DDPM step that finished frames are labelled with, though no noise is added to them
            (``stabilization_level - 1`` of the public code).
    """

    latent_shape: tuple[int, int, int] = (16, 18, 32)
    action_dim: int = 25
    intermediate_size: int = 4096
    context_label: int = 14


class Oasis(FrameTransformer):
    """The transformer of Oasis, as a model of flow-matching velocities.

    Example:
        >>> config = OasisConfig(latent_shape=(4, 4, 6), hidden_size=32, num_layers=2, num_heads=2,
        ...     intermediate_size=64, action_dim=5, max_frames=4)
        >>> latent, timestep = torch.randn(2, 4, 4, 4, 6), torch.rand(2, 4)
        >>> Oasis(config)(latent, timestep, torch.zeros(2, 4, 5)).shape
        torch.Size([2, 4, 4, 4, 6])
    """

    config: OasisConfig

    def __init__(self, config: OasisConfig) -> None:
        """Make a freshly initialised model; weights come from torch's global generator."""
        super().__init__(config)
        d, c, p = config.hidden_size, config.latent_shape[0], config.patch_size
        self.x_embedder = PatchEmbedding(c, p, d, has_time_axis=False)
        self.t_embedder = TimestepEmbedding(d)
        # The frequencies stand in the published files.
        self.spatial_rotary_emb = Frequencies(pixel_frequencies(config.head_dim // 4))
        self.temporal_rotary_emb = Frequencies(time_frequencies(config.head_dim // 2))
        self.external_cond = nn.Linear(config.action_dim, d)
        sizes = (d, config.num_heads, config.intermediate_size, config.norm_eps)
        self.blocks = nn.ModuleList(SpatioTemporalBlock(*sizes) for _ in range(config.num_layers))
        self.final_layer = Head(c, p, d, config.norm_eps, layout="p q c")
        blocks = [cast(SpatioTemporalBlock, block) for block in self.blocks]
        modulations = [half for block in blocks for half in (block.s_adaLN_modulation, block.t_adaLN_modulation)]
        initialize(self, [self.final_layer, *modulations])

    def new_cache(self, num_rows: int, num_frames: int, dtype: torch.dtype) -> FrameCache:
        """An empty cache, of the attention along time; see the base class."""
        config = self.config
        places = config.tokens_per_frame
        shape = (num_rows * places, config.num_heads, num_frames, 1, config.head_dim)
        device = self.final_layer.linear.weight.device
        return FrameCache(config.num_layers, shape, dtype, device, rows_per_video=places)

    def _hidden(
        self,
        latent: Tensor,
        timestep: Tensor,
        vector: Tensor | None,
        frame_index: list[int],
        attend_of_layer: Callable[[int], Attend],
    ) -> tuple[Tensor, Tensor]:
        """The network before its head, on DDPM's latents; see the base class."""
        spatial = spatial_rotary_table(self.spatial_rotary_emb.freqs, self.config.grid)
        temporal = temporal_rotary_table(self.temporal_rotary_emb.freqs, frame_index)
        with precise(latent):
            condition = self.t_embedder(self._label(timestep))
            if vector is not None:
                condition = condition + self.external_cond(vector.to(condition.dtype))
        x = self.x_embedder(latent / _norm(timestep))
        return self._run_blocks(x, condition, (spatial, temporal), attend_of_layer), condition

    def _velocity(self, hidden: Tensor, condition: Tensor, latent: Tensor, timestep: Tensor) -> Tensor:
        """From the head's v; see the base class.

        With ``alpha = (1 - t) / r`` and ``s = t / r`` the latent is x / r in DDPM's coordinates, and noise minus data
        is ``(s - alpha) x / r + (alpha + s) v``.
        """
        v = self.final_layer(hidden, condition, self.config.grid)
        norm, time = _norm(timestep), timestep[:, :, None, None, None]
        return ((2 * time - 1) * (latent / norm) + v) / norm

    def _label(self, timestep: Tensor) -> Tensor:
        label = nearest_label(timestep) if self.config.timestep_label == "integer" else continuous_label(timestep)
        return torch.where(timestep == 0, float(self.config.context_label), label)


def _norm(timestep: Tensor) -> Tensor:
    """``r = sqrt((1 - t)**2 + t**2)`` of timesteps ``[B, U]``, which is ``1 / (alpha + s)``; ``[B, U, 1, 1, 1]``."""
    return ((1 - timestep).square() + timestep.square()).sqrt()[:, :, None, None, None]
