"""World models: generators of video pieces in plain torch, without RL."""

from rlir_agents.world_models.action_encoders import ActionEncoder, NFDGroups, Oasis25
from rlir_agents.world_models.base import DecodingWeights, TokenWorldModel, hidden_at
from rlir_agents.world_models.decoding import Decoder
from rlir_agents.world_models.frame_cache import FrameCache
from rlir_agents.world_models.frame_reader import FrameReader, as_context
from rlir_agents.world_models.kv_cache import KVCache
from rlir_agents.world_models.latent import LatentWorldModel
from rlir_agents.world_models.loading import load_world_model
from rlir_agents.world_models.mineworld import MineWorld, MineWorldConfig
from rlir_agents.world_models.nfd import NFD, NFDConfig
from rlir_agents.world_models.oasis import Oasis, OasisConfig
from rlir_agents.world_models.samplers import LatentSampler
from rlir_agents.world_models.sampling import TokenSampler, nucleus

__all__ = [
    "NFD",
    "ActionEncoder",
    "Decoder",
    "DecodingWeights",
    "FrameCache",
    "FrameReader",
    "KVCache",
    "LatentSampler",
    "LatentWorldModel",
    "MineWorld",
    "MineWorldConfig",
    "NFDConfig",
    "NFDGroups",
    "Oasis",
    "Oasis25",
    "OasisConfig",
    "TokenSampler",
    "TokenWorldModel",
    "as_context",
    "hidden_at",
    "load_world_model",
    "nucleus",
]
