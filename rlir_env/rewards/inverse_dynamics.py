"""The inverse reward (Eq. 3): the share of game actions that the IDM reads back from the video.

Eq. 3 compares whole game actions, ``r = 1 if a_hat_i = a_i else 0``. Nine slots seldom match all at
once, and most of them are "nothing pressed" most of the time, so the same reading can be turned
into a number in other ways too:

- ``all_slots``: Eq. 3 to the letter: 1 if every chosen slot was read back, else 0.
- ``per_slot``: the share of the chosen slots read back.
- ``balanced``: as ``per_slot``, each slot weighted by the inverse frequency of its true class.
- ``log_prob``: the IDM's log-probability of the true class, floored and mapped to [0, 1], mean over
  slots.
- ``balanced_log_prob``: as ``log_prob`` with the weights of ``balanced``.

**Weights.** ``w_s(c)`` is proportional to ``1 / max(frequency, min_frequency)`` and scaled per slot
so that ``sum_c frequency(c) w_s(c) = 1``: a perfect reader of a perfect video is paid 1 on average,
whatever the slot, and without the floor the expected reward is the mean over slots of the recall
averaged over classes. The floor keeps one pressed key in a thousand frames from outweighing all
else. Siblings share their game actions, hence their weights.

**Log-probabilities** have no lower end: one transition at -15 would decide the spread of a whole
group, and what lies below 1 % is the reader's calibration, not the video. So ``score = 1 + max(log
p, floor) / |floor|`` with a floor of log 0.01: 1 where the IDM is certain and right, 0 where it
gives the truth 1 % or less. The map is linear above the floor, so the group advantage does not
depend on its scale, and sums with other rewards stay comparable.

Letters: B generations, F frames, S slots, C most classes of any slot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor

from rlir_env.game_actions import GameActionSpec
from rlir_env.inverse_dynamics.base import GameActionReading, InverseDynamicsModel
from rlir_env.rewards.base import RewardFn

MATCHES = ("all_slots", "per_slot", "balanced", "log_prob", "balanced_log_prob")


class InverseDynamicsReward(RewardFn):
    """Pays a generation for the game actions that the coach reads back from it.

    Whatever the match, the breakdown has ``frame_match`` float ``[B, F-1, S]`` (1 where the slot
    was read back, for all slots, chosen or not) and ``inferred_game_action`` long ``[B, F-1, S]``.
    """

    chosen: Tensor
    class_weight: Tensor

    def __init__(
        self,
        idm: InverseDynamicsModel,
        match: str = "all_slots",
        slots: Sequence[str] | None = None,
        class_frequency: Sequence[Sequence[float]] | None = None,
        min_frequency: float = 0.01,
        log_prob_floor: float = math.log(0.01),
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        """Set up the comparison.

        Args:
            idm: The coach.
            match: One of the matches above.
            slots: Names of the slots that count; None means all.
            class_frequency: For the balanced matches, how often every class of every slot occurs in
                real play: S rows of that slot's number of classes, counts or shares.
            min_frequency: Shares below this are weighted as if they were this.
            log_prob_floor: Log-probability from which on a reading is worth nothing.
            autocast_dtype: Precision of the IDM's network, None for its own.

        Raises:
            ValueError: if the match or a slot is unknown, the frequencies are missing or of the
                wrong shape, or a limit is out of range.
        """
        super().__init__()
        if match not in MATCHES:
            raise ValueError(f"match={match!r}: use one of {', '.join(MATCHES)}")
        if log_prob_floor >= 0 or not 0 < min_frequency <= 1:
            raise ValueError("log_prob_floor must be below 0 and min_frequency in (0, 1]")
        names = idm.spec.names if slots is None else tuple(slots)
        if not names:
            raise ValueError("slots=[]: name at least one slot, or None for all")
        self.idm = idm.eval().requires_grad_(False)
        self.match = match
        self.log_prob_floor = log_prob_floor
        self.autocast_dtype = autocast_dtype
        chosen = torch.tensor([idm.spec.index(name) for name in names])
        self.register_buffer("chosen", chosen, persistent=False)
        weight = torch.ones(idm.spec.num_slots, max(idm.spec.num_classes))
        if match.startswith("balanced"):
            weight = _class_weights(idm.spec, class_frequency, min_frequency)
        self.register_buffer("class_weight", weight, persistent=False)

    def breakdown(self, num_transitions: int, num_slots: int) -> dict[str, Tensor]:
        """Declare ``frame_match`` and ``inferred_game_action``."""
        shape = (num_transitions, num_slots)
        return {
            "frame_match": torch.zeros(shape),
            "inferred_game_action": torch.zeros(shape, dtype=torch.long),
        }

    def frame_rewards(self, generation: TensorDictBase) -> dict[str, Tensor]:
        """Read the video and compare with the game actions, transition by transition."""
        game_action = generation["game_action"]
        reading = self._read(generation["frames"])
        frame_match = (reading.inferred_game_action == game_action).float()
        return {
            "frame_reward": self._frame_reward(reading, frame_match, game_action),
            "frame_match": frame_match,
            "inferred_game_action": reading.inferred_game_action,
        }

    def _read(self, frames: Tensor) -> GameActionReading:
        is_autocast = self.autocast_dtype is not None
        with torch.autocast(frames.device.type, dtype=self.autocast_dtype, enabled=is_autocast):
            return self.idm.read(frames, align="transition")

    def _frame_reward(self, reading: GameActionReading, frame_match: Tensor, game_action: Tensor) -> Tensor:
        if self.match == "all_slots":
            return frame_match[..., self.chosen].prod(-1)
        slot_score = frame_match
        if self.match.endswith("log_prob"):
            log_prob = reading.log_probs.gather(-1, game_action[..., None]).squeeze(-1)
            slot_score = 1 + log_prob.clamp(min=self.log_prob_floor) / -self.log_prob_floor
        slots = torch.arange(len(self.class_weight), device=game_action.device)
        weight = self.class_weight[slots, game_action]  # [B, F-1, S]
        return (weight * slot_score)[..., self.chosen].mean(-1)


def _class_weights(
    spec: GameActionSpec, class_frequency: Sequence[Sequence[float]] | None, min_frequency: float
) -> Tensor:
    """``w_s(c)`` of the module docstring, float ``[S, C]``, zero where a slot has fewer classes."""
    if class_frequency is None:
        raise ValueError("the balanced matches need class_frequency, the shares of classes in real play")
    if tuple(len(row) for row in class_frequency) != spec.num_classes:
        raise ValueError(f"class_frequency must have rows of {spec.num_classes} entries, one per slot")
    weight = torch.zeros(spec.num_slots, max(spec.num_classes))
    for slot, row in enumerate(class_frequency):
        counts = torch.tensor(row, dtype=torch.float64)
        if (counts < 0).any() or counts.sum() <= 0:
            raise ValueError(f"class_frequency of slot {spec.names[slot]!r} must be shares or counts")
        share = counts / counts.sum()
        inverse = 1 / share.clamp(min=min_frequency)
        weight[slot, : len(row)] = (inverse / (share * inverse).sum()).float()
    return weight
