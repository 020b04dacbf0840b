"""A reward in one file: quiet videos, whose frames differ little from one to the next. Not in the paper.

Alone it teaches a world model to stand still; as a small part of a `WeightedSum` beside the inverse reward (Eq. 3) it
works against flicker. `README.md` beside this file is the recipe, and `smoothness.yaml` makes it selectable.

Letters: B generations, F frames.
"""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from rlir_env.rewards import RewardFn


class Smoothness(RewardFn):
    """One minus the mean absolute change of the picture, frame by frame: 1 where it stands still."""

    def __init__(self, scale: float = 1.0) -> None:
        """Choose how fast the reward falls.

        Args:
            scale: reward lost per unit of change; pixels are in [0, 1].
        """
        super().__init__()
        self.scale = scale

    def frame_rewards(self, generation: TensorDictBase) -> dict[str, Tensor]:
        """Compare each frame with the one before it; ``frame_reward [B, F-1]``."""
        frames = generation["frames"]  # [B, F, 3, H, W]
        change = (frames[:, 1:] - frames[:, :-1]).abs().mean((-3, -2, -1))
        return {"frame_reward": 1 - self.scale * change}
