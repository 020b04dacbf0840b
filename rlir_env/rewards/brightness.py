"""A reward that must rise: with it one sees that the machinery learns, whatever the reader is worth."""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from rlir_env.rewards.base import RewardFn


class BrightnessReward(RewardFn):
    """Mean brightness of every generated frame, in [0, 1]."""

    def frame_rewards(self, generation: TensorDictBase) -> dict[str, Tensor]:
        """Look at the pictures only."""
        return {"frame_reward": generation["frames"][:, 1:].mean((-3, -2, -1))}
