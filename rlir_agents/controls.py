"""Controls that say what a figure is worth: shuffled game actions, and the best of many videos.

Not part of the method: each answers an objection. A model whose score does not drop under shuffled
game actions ignores them; a post-trained model that stays below the best of n videos of its base
has a reward that could teach more.

Letters: N clips, F frames, S slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlir_agents.evaluation import Evaluation
from rlir_agents.evaluator import Evaluator
from rlir_agents.video_makers import Policy
from rlir_env.prompts import GenerationPrompt, PromptSource


class ShuffledGameActions(PromptSource):
    """The same prompts, each with the game actions of another one.

    The model is told other actions than those it is scored against. With `is_reward_only` it is told the true ones and
    *rewarded* on others: the control arm of training.
    """

    def __init__(self, prompts: PromptSource, seed: int = 0, is_reward_only: bool = False) -> None:
        """Wrap prompts.

        Args:
            prompts: at least two.
            seed: of the shuffle, which leaves no prompt its own game actions.
            is_reward_only: see above.

        Raises:
            ValueError: if there are fewer than two prompts.
        """
        if prompts.num_prompts < 2:
            raise ValueError("shuffling game actions needs at least two prompts")
        self._prompts, self._is_reward_only = prompts, is_reward_only
        self._other = derangement(prompts.num_prompts, seed)

    @property
    def num_prompts(self) -> int:
        """As many as are wrapped."""
        return self._prompts.num_prompts

    def get(self, indices: Tensor | Sequence[int]) -> GenerationPrompt:
        """The prompts with the game actions of others."""
        own = self._prompts.get(indices)
        other = self._prompts.get(self._other[torch.as_tensor(indices, dtype=torch.long)])
        if self._is_reward_only:
            return replace(own, rewarded_game_action=other.game_action)
        return replace(own, game_action=other.game_action, game_action_word=other.game_action_word)


def derangement(count: int, seed: int) -> Tensor:
    """A permutation without fixed point, long [count]: one step along a shuffled circle."""
    circle = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    other = torch.empty(count, dtype=torch.long)
    other[circle] = circle.roll(-1)
    return other


def best_of(evaluator: Evaluator, policy: Policy, num_videos: int, by: str) -> Evaluation:
    """Oracle: of several videos of every prompt the one that a reader likes best.

    Args:
        evaluator: of the prompts and readers.
        policy: a world model as a policy; the first video is the one of
            `evaluator.evaluate(policy)`.
        num_videos: n, videos per prompt.
        by: name of the reader that chooses; chosen by the coach and scored by the judge, it shows
            how far the coach can be trusted.

    Raises:
        ValueError: if the policy has only one video of a prompt to offer.
    """
    best = evaluator.evaluate(policy)
    best_scores = balanced_match(best, by)
    for sibling in range(1, num_videos):
        other = evaluator.evaluate(policy, sibling)
        if torch.equal(other.psnr, best.psnr):
            raise ValueError(
                "two videos of every prompt are the same, so there is no best of them: sample with noise, or for a "
                "solver set evaluation.env.is_initial_noise_shared=false"
            )
        scores = balanced_match(other, by)
        best = _choose(scores > best_scores, other, best)
        best_scores = torch.maximum(scores, best_scores)
    return best


def balanced_match(evaluation: Evaluation, reader: str) -> Tensor:
    """How well a reader finds the game actions in every clip, rare classes weighing more.

    A match counts the inverse of its class's frequency, float64 [N]: macro F1 counts every class
    alike, however rare; a plain share of matches would choose videos in which nothing seems to be
    pressed.
    """
    places = [evaluation.spec.index(name) for name in evaluation.button_slots]
    game_action = evaluation.game_action[..., places]
    match = game_action == evaluation.inferred_game_action[reader][..., places]
    weight = torch.zeros(game_action.shape, dtype=torch.float64)
    for slot in range(len(places)):
        counts = torch.bincount(game_action[..., slot].flatten())
        weight[..., slot] = 1.0 / counts[game_action[..., slot]]
    return (match * weight).sum((1, 2))


def _choose(is_first: Tensor, first: Evaluation, second: Evaluation) -> Evaluation:
    """Clip by clip one of two evaluations of the same prompts."""

    def where(one: Tensor, other: Tensor) -> Tensor:
        chosen = is_first[: len(one)].reshape(-1, *[1] * (one.ndim - 1))
        return torch.where(chosen, one, other)

    return Evaluation(
        spec=first.spec,
        game_action=first.game_action,
        inferred_game_action={
            name: where(inferred, second.inferred_game_action[name])
            for name, inferred in first.inferred_game_action.items()
        },
        psnr=where(first.psnr, second.psnr),
        frames=where(first.frames, second.frames),
    )
