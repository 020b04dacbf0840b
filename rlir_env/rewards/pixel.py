"""The pixel reward that the paper compares with (Eq. 6): minus the distance to the real frames.

It needs the real frames, which an inverse reward does not, and it punishes any other future that
obeys the game actions as well. Eq. 6 sums over the n generated frames; here, as in all rewards, the
number is the mean of the frames, which a group-relative advantage cannot tell apart.
"""

from __future__ import annotations

from collections.abc import Callable

from tensordict import TensorDictBase
from torch import Tensor

from rlir_env.rewards.base import RewardFn


class PixelReward(RewardFn):
    """``-[L1 + LPIPS]`` of every generated frame against the real one (Eq. 6)."""

    uses_target_frames = True

    def __init__(self, perceptual_fn: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        """Choose the perceptual term.

        Args:
            perceptual_fn: LPIPS or the like: two batches ``[N, 3, H, W]`` in [0, 1] to a distance
                ``[N]``; its weights are the caller's business. None leaves the L1 term alone.
        """
        super().__init__()
        self.perceptual_fn = perceptual_fn

    def frame_rewards(self, generation: TensorDictBase) -> dict[str, Tensor]:
        """Compare the generated frames with the real ones."""
        generated, target = generation["frames"][:, 1:], generation["target_frames"]
        distance = (generated - target).abs().mean((-3, -2, -1))
        if self.perceptual_fn is not None:
            perceptual = self.perceptual_fn(generated.flatten(0, 1), target.flatten(0, 1))
            distance = distance + perceptual.reshape(distance.shape)
        return {"frame_reward": -distance}
