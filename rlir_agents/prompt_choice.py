"""Which prompts a run trains on: the shipped ones, fewer of them, or the control with other rewards.

Prompts from a folder of recordings are `rlir_env.prompts.ClipPrompts.from_folder`, without help from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlir_agents.controls import ShuffledGameActions
from rlir_env.prompts import GenerationPrompt, PromptSource


class FirstPrompts(PromptSource):
    """The first prompts of a source."""

    def __init__(self, prompts: PromptSource, num_prompts: int) -> None:
        """Wrap a source.

        Raises:
            ValueError: if it has not so many.
        """
        if not 1 <= num_prompts <= prompts.num_prompts:
            raise ValueError(f"num_prompts={num_prompts}: choose 1 to {prompts.num_prompts}, or null for all")
        self._prompts, self._num_prompts = prompts, num_prompts

    @property
    def num_prompts(self) -> int:
        """As many as were asked for."""
        return self._num_prompts

    def get(self, indices: torch.Tensor | Sequence[int]) -> GenerationPrompt:
        """The prompts with these indices, long ``[P]``."""
        return self._prompts.get(indices)


def first_prompts(prompts: PromptSource, num_prompts: int | None) -> PromptSource:
    """The first prompts of a source; None takes all."""
    return prompts if num_prompts is None else FirstPrompts(prompts, num_prompts)


def shipped_prompts(world: Any, split: str = "train", num_prompts: int | None = None) -> PromptSource:
    """Prompts that come with a world.

    Args:
        world: frozen components, with ``prompts`` by split.
        split: ``train``, ``dev`` or ``test``.
        num_prompts: only the first ones; None takes all.

    Raises:
        ValueError: if there is no such split.
    """
    if split not in world.prompts:
        raise ValueError(f"this world has no prompts {split!r}; use one of {', '.join(world.prompts)}")
    return first_prompts(world.prompts[split], num_prompts)


def misrewarded_prompts(
    world: Any, split: str = "train", num_prompts: int | None = None, seed: int = 0
) -> PromptSource:
    """The control arm: the model is told the true game actions and rewarded on those of another prompt.

    Args:
        world: frozen components.
        split: see `shipped_prompts`.
        num_prompts: see `shipped_prompts`.
        seed: of the shuffle.
    """
    return ShuffledGameActions(shipped_prompts(world, split, num_prompts), seed, is_reward_only=True)
