"""World models: generators of video pieces in plain torch, without RL."""

from rlir_agents.world_models.base import DecodingWeights, TokenWorldModel, hidden_at
from rlir_agents.world_models.decoding import Decoder
from rlir_agents.world_models.kv_cache import KVCache
from rlir_agents.world_models.mineworld import MineWorld, MineWorldConfig
from rlir_agents.world_models.sampling import TokenSampler, counter_uniform, nucleus

__all__ = [
    "Decoder",
    "DecodingWeights",
    "KVCache",
    "MineWorld",
    "MineWorldConfig",
    "TokenSampler",
    "TokenWorldModel",
    "counter_uniform",
    "hidden_at",
    "nucleus",
]
