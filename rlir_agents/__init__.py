"""Everything that learns: world models, policies, advantages, losses, and the training loop.

The world model is the agent. `rlir_env` holds everything frozen and never imports from here.

Names are loaded on first use: a world model alone needs torch, and should not wait for TorchRL.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "FramewiseCredit": "advantages",
    "SequenceCredit": "advantages",
    "framewise_credit": "advantages",
    "group_relative": "advantages",
    "GeneralizedAdvantage": "generalized_advantage",
    "GRPOLoss": "losses",
    "StepWeightedCredit": "advantages",
    "DenoisingPolicy": "policies",
    "FlowMatchingPolicy": "policies",
    "LatentValue": "policies",
    "SolverPolicy": "policies",
    "MineWorld": "world_models",
    "MineWorldConfig": "world_models",
    "NFD": "world_models",
    "NFDConfig": "world_models",
    "NFDGroups": "world_models",
    "TokenPolicy": "policies",
    "TokenValue": "policies",
    "Trainer": "trainer",
    "TrainerConfig": "trainer_config",
    "collect": "rollouts",
    "cosine_with_warmup": "learning_rate",
    "policy_from_assets": "policies.from_assets",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Load a public name from its module (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """Public names, for completion."""
    return __all__
