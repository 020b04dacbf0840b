"""A critic of the world model's own architecture, for algorithms that need one; the paper's GRPO does not."""

from __future__ import annotations

import copy

import torch

from rlir_agents.policies.value import TokenValue
from rlir_agents.world_models import TokenWorldModel


def critic_like(world_model: TokenWorldModel, *, autocast_dtype: torch.dtype | None = None) -> TokenValue:
    """A critic on a copy of the world model, so that the two learn apart.

    Args:
        world_model: copied with its weights.
        autocast_dtype: see `TokenValue`.
    """
    return TokenValue(copy.deepcopy(world_model), autocast_dtype=autocast_dtype)
