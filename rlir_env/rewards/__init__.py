"""Rewards: from finished generations to one number each, with a breakdown by frame."""

from rlir_env.rewards.base import RewardFn
from rlir_env.rewards.brightness import BrightnessReward
from rlir_env.rewards.inverse_dynamics import MATCHES, InverseDynamicsReward
from rlir_env.rewards.pixel import PixelReward
from rlir_env.rewards.weighted_sum import WeightedSum

__all__ = ["MATCHES", "BrightnessReward", "InverseDynamicsReward", "PixelReward", "RewardFn", "WeightedSum"]
