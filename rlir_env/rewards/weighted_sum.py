"""Several rewards as one, which the paper leaves open: a reader beside a judge of pictures, say.

Letters: B generations, F frames.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import ItemsView, Mapping
from typing import cast

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from rlir_env.rewards.base import RewardFn


class WeightedSum(RewardFn):
    """``sum_i weight_i reward_i``, frame by frame; the parts stay readable in the breakdown.

    The breakdown has ``<name>_frame_reward [B, F-1]`` for every part, before weighting, and all
    entries of the parts' own breakdowns.
    """

    def __init__(self, rewards: Mapping[str, RewardFn], weights: Mapping[str, float]) -> None:
        """Combine named rewards.

        Args:
            rewards: The parts, by the name that their entries and log lines carry.
            weights: The weight of each part, under the same names.

        Raises:
            ValueError: if the names differ, or two entries of the result would have the same name: of two breakdowns,
                or of a breakdown and ``reward``, ``frame_reward`` or a ``<name>_frame_reward``.
        """
        super().__init__()
        if not rewards or set(rewards) != set(weights):
            raise ValueError(f"rewards {sorted(rewards)} and weights {sorted(weights)} must have equal names")
        self.rewards = nn.ModuleDict(rewards)
        self.weights = dict(weights)
        self.uses_target_frames = any(reward.uses_target_frames for reward in rewards.values())
        entries = Counter(["reward", "frame_reward", *map(_frame_reward_key, rewards)])
        for part in rewards.values():
            entries.update(part.breakdown(1, 1).keys())
        twice = sorted(key for key, count in entries.items() if count > 1)
        if twice:
            raise ValueError(f"two entries have the same name ({', '.join(twice)}): rename a part or its breakdown")

    def breakdown(self, num_transitions: int, num_slots: int) -> dict[str, Tensor]:
        """Declare the parts' frame rewards and their own entries."""
        entries: dict[str, Tensor] = {}
        for name, part in self._parts():
            zeros = part.zeros(1, num_transitions, num_slots)[0]
            entries[_frame_reward_key(name)] = zeros["frame_reward"]
            entries |= part.breakdown(num_transitions, num_slots)
        return entries

    def frame_rewards(self, generation: TensorDictBase) -> dict[str, Tensor]:
        """Score with every part and add up."""
        total = torch.zeros(())  # takes any device and precision
        entries: dict[str, Tensor] = {}
        for name, part in self._parts():
            scored = part.frame_rewards(generation)
            frame_reward = scored.pop("frame_reward")
            total = total + self.weights[name] * frame_reward
            entries |= {_frame_reward_key(name): frame_reward, **scored}
        return {"frame_reward": total, **entries}

    def _parts(self) -> ItemsView[str, RewardFn]:
        return cast("ItemsView[str, RewardFn]", self.rewards.items())


def _frame_reward_key(name: str) -> str:
    return f"{name}_frame_reward"
