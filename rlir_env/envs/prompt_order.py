"""Which prompt and which seeds the n-th group of a run gets: shuffled epochs, without hidden state.

Everything is a function of (seed, number of the group), so that a run can be resumed from one
integer and a group's noise does not depend on the batch it was drawn in. It is *not* a source of
noise itself: it hands out seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

# Three independent streams of one seed.
_ORDER, _PROMPT, _EPISODE = 0, 1, 2


@dataclass
class PromptOrder:
    """Deterministic shuffled epochs over prompts.

    Attributes:
        num_prompts: How many prompts there are; an epoch shows each once.
        seed: Non-negative seed of the order and of all seeds handed out.
        num_groups_drawn: The number of the next group; setting it resumes a run.

    Example:
        >>> order = PromptOrder(num_prompts=3, seed=0)
        >>> sorted(order.draw(3).tolist()), order.num_groups_drawn
        ([0, 1, 2], 3)
    """

    num_prompts: int
    seed: int = 0
    num_groups_drawn: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be ordered."""
        if self.num_prompts < 1:
            raise ValueError("num_prompts=0: the prompt source is empty, give it at least one clip")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: use a seed of 0 or more")

    def draw(self, num_groups: int) -> torch.Tensor:
        """Number the next groups.

        Returns:
            The prompt of each group, long ``[num_groups]``. Their ids are
            ``num_groups_drawn .. num_groups_drawn + num_groups - 1`` as they stood before the call.
        """
        first = self.num_groups_drawn
        self.num_groups_drawn += num_groups
        groups = np.arange(first, first + num_groups)
        epochs, places = np.divmod(groups, self.num_prompts)
        shuffled = {epoch: self._epoch(epoch) for epoch in np.unique(epochs).tolist()}
        chosen = [shuffled[e][i] for e, i in zip(epochs.tolist(), places.tolist(), strict=True)]
        return torch.tensor(chosen, dtype=torch.long)

    def prompt_seeds(self, group_id: torch.Tensor) -> torch.Tensor:
        """Seeds of noise that siblings share, long like ``group_id``."""
        return torch.tensor([_seed_of(self.seed, _PROMPT, group) for group in group_id.tolist()])

    def episode_seeds(self, group_id: torch.Tensor, sibling: torch.Tensor) -> torch.Tensor:
        """Seeds of noise in which siblings differ, long like ``group_id`` and ``sibling``."""
        pairs = zip(group_id.tolist(), sibling.tolist(), strict=True)
        return torch.tensor([_seed_of(self.seed, _EPISODE, *pair) for pair in pairs])

    def _epoch(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, _ORDER, epoch)).permutation(self.num_prompts)


def _seed_of(*words: int) -> int:
    """A 63-bit hash of the words: it fits an int64 tensor without a sign."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))
