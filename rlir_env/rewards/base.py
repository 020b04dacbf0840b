"""What a finished generation is worth: the interface of all rewards (the r of Eq. 3 and Eq. 6).

A reward is a function of pictures and game actions alone. It never sees the policy, and it is *not*
an advantage: comparing siblings is the algorithm's business.

Letters: B generations, F frames, F-1 transitions (generated frames), S slots.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn


class RewardFn(nn.Module, ABC):
    """From finished generations to one number each, higher is better, with a breakdown by frame.

    A subclass implements :meth:`frame_rewards` and, if it has more to tell than the reward of each
    frame, :meth:`breakdown`. Example of a whole reward, with which machinery can be tested because
    it must rise:

        >>> class Brightness(RewardFn):
        ...     def frame_rewards(self, generation):
        ...         return {"frame_reward": generation["frames"][:, 1:].mean((-3, -2, -1))}

    Attributes:
        uses_target_frames: Whether generations must have the real continuation, ``target_frames``.
    """

    uses_target_frames: bool = False

    @abstractmethod
    def frame_rewards(self, generation: TensorDictBase) -> dict[str, Tensor]:
        """Score every generated frame.

        Args:
            generation: ``frames`` float ``[B, F, 3, H, W]`` in [0, 1], ``game_action`` long ``[B,
                F-1, S]``, and where the reward uses them ``target_frames`` float ``[B, F-1, 3, H,
                W]``.

        Returns:
            ``frame_reward`` float ``[B, F-1]`` and the entries that :meth:`breakdown` declares.
        """

    def breakdown(self, num_transitions: int, num_slots: int) -> dict[str, Tensor]:
        """Zeros in the shape and dtype of one generation's further entries; none by default."""
        return {}

    def train(self, mode: bool = True) -> RewardFn:
        """Stay in evaluation mode, whatever ``mode`` says: a reader that goes on counting statistics is not frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, generation: TensorDictBase) -> TensorDict:
        """Score finished generations.

        Args:
            generation: As for :meth:`frame_rewards`.

        Returns:
            ``reward [B, 1]``, the mean of ``frame_reward [B, F-1]``, and the breakdown entries,
            ``[B]``.

        Raises:
            ValueError: if the frames do not belong to the game actions.
        """
        num_frames, num_transitions = (
            generation["frames"].shape[1],
            generation["game_action"].shape[1],
        )
        if num_frames != num_transitions + 1:
            raise ValueError(
                f"{num_frames} frames have {num_frames - 1} transitions, got {num_transitions} game actions"
            )
        entries = self.frame_rewards(generation)
        reward = entries["frame_reward"].mean(-1, keepdim=True)
        return TensorDict({"reward": reward, **entries}, batch_size=generation.batch_size)

    def zeros(
        self,
        batch_size: int,
        num_transitions: int,
        num_slots: int,
        device: torch.device | str | None = None,
    ) -> TensorDict:
        """What :meth:`forward` returns, all zero: what an env pays before the end, and its spec."""
        entries = {
            "reward": torch.zeros(1),
            "frame_reward": torch.zeros(num_transitions),
            **self.breakdown(num_transitions, num_slots),
        }
        shaped = {
            key: torch.zeros(batch_size, *value.shape, dtype=value.dtype, device=device)
            for key, value in entries.items()
        }
        return TensorDict(shaped, batch_size=[batch_size], device=device)
