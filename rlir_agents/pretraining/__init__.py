"""Supervised pre-training of what RLIR needs before it can begin: tokenizer, inverse dynamics models, world model."""

from rlir_agents.pretraining.flow import FlowTask, LatentGameplay
from rlir_agents.pretraining.inverse_dynamics import InverseDynamicsTask
from rlir_agents.pretraining.kl_tokenizer import KLTokenizerTask
from rlir_agents.pretraining.loop import Pretrainer, PretrainingConfig, PretrainingTask
from rlir_agents.pretraining.tokenizer import TokenizerTask
from rlir_agents.pretraining.world_model import TokenizedGameplay, WorldModelTask

__all__ = [
    "FlowTask",
    "InverseDynamicsTask",
    "KLTokenizerTask",
    "LatentGameplay",
    "Pretrainer",
    "PretrainingConfig",
    "PretrainingTask",
    "TokenizedGameplay",
    "TokenizerTask",
    "WorldModelTask",
]
