"""World models as TorchRL policies, and critics: step mode for collection, sequence mode for losses."""

from rlir_agents.policies.denoising import DenoisingPolicy
from rlir_agents.policies.diagonal import DiagonalTokenPolicy
from rlir_agents.policies.flow_matching import FlowMatchingPolicy
from rlir_agents.policies.latent_steps import LatentSteps
from rlir_agents.policies.solver import SolverPolicy
from rlir_agents.policies.token import TokenPolicy
from rlir_agents.policies.value import LatentValue, TokenValue

__all__ = [
    "DenoisingPolicy",
    "DiagonalTokenPolicy",
    "FlowMatchingPolicy",
    "LatentSteps",
    "LatentValue",
    "SolverPolicy",
    "TokenPolicy",
    "TokenValue",
]
