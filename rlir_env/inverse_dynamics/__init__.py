"""Inverse dynamics models: readers of game actions from video, frozen during RL."""

from rlir_env.inverse_dynamics.base import Alignment, GameActionReading, InverseDynamicsModel
from rlir_env.inverse_dynamics.labelling import label_frames
from rlir_env.inverse_dynamics.vpt import LEAST_SHARE, VPTConfig, VPTInverseDynamics

__all__ = [
    "LEAST_SHARE",
    "Alignment",
    "GameActionReading",
    "InverseDynamicsModel",
    "VPTConfig",
    "VPTInverseDynamics",
    "label_frames",
]
