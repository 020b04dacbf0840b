"""Inverse dynamics models: readers of game actions from video, frozen during RL."""

from rlir_env.inverse_dynamics.base import Alignment, GameActionReading, InverseDynamicsModel
from rlir_env.inverse_dynamics.vpt import VPTConfig, VPTInverseDynamics

__all__ = [
    "Alignment",
    "GameActionReading",
    "InverseDynamicsModel",
    "VPTConfig",
    "VPTInverseDynamics",
]
