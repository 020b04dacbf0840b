"""What ``gymnasium.make`` and ``make_vec`` call: from JSON-able keywords to an env of a world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from gymnasium.vector import AutoresetMode

from rlir_env.envs import TokenGenerationEnv
from rlir_env.gym.token_env import TokenGymEnv
from rlir_env.gym.token_vector_env import TokenGymVectorEnv
from rlir_env.inverse_dynamics import InverseDynamicsModel
from rlir_env.prompts import PromptSource
from rlir_env.rewards import InverseDynamicsReward
from rlir_env.tokenizers import Tokenizer


class World(Protocol):
    """What a named set of frozen components offers, shipped or made for tests."""

    @property
    def tokenizer(self) -> Tokenizer:
        """From frames to codes and back."""

    @property
    def coach(self) -> InverseDynamicsModel:
        """The reader that rewards."""

    @property
    def prompts(self) -> Mapping[str, PromptSource]:
        """Prompts by split."""

    @property
    def class_frequency(self) -> Sequence[Sequence[float]]:
        """Share of every class of every slot in recorded play."""

    @property
    def visible_slots(self) -> Sequence[str] | None:
        """Slots that pictures reveal; None means all."""

    @property
    def num_word_ids(self) -> int:
        """Ids of the action words."""


def make_token_env(world: str = "doom", render_mode: str | None = "rgb_array", **kwargs: Any) -> TokenGymEnv:
    """Entry point of ``gymnasium.make``; further keywords are those of :func:`make_core`."""
    return TokenGymEnv(make_core(world, num_rows=1, **kwargs), render_mode)


def make_token_vector_env(
    num_envs: int,
    world: str = "doom",
    autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    render_mode: str | None = "rgb_array",
    **kwargs: Any,
) -> TokenGymVectorEnv:
    """Entry point of ``gymnasium.make_vec``; further keywords are those of :func:`make_core`."""
    core = make_core(world, num_rows=num_envs, **kwargs)
    return TokenGymVectorEnv(core, autoreset_mode, render_mode)


def make_core(
    world: str,
    num_rows: int = 1,
    split: str = "dev",
    tokens_per_step: int | str = 1,
    match: str = "per_slot",
    slots: Sequence[str] | None = None,
    device: str = "cpu",
) -> TokenGenerationEnv:
    """Put a named world behind a token env.

    Args:
        world: Name of a shipped asset set, or ``"identity"`` for the world of the tests.
        num_rows: Videos generated side by side.
        split: ``"train"``, ``"dev"`` or ``"test"`` prompts.
        tokens_per_step: k, or ``"frame"``.
        match: How a reading becomes a number, see :class:`~rlir_env.rewards.InverseDynamicsReward`.
        slots: Slots that count, None for those that the world's pictures reveal, as in ``rlir train``.
        device: Where everything lives.

    Raises:
        ValueError: if the split does not exist.
    """
    loaded = _load(world)
    if split not in loaded.prompts:
        raise ValueError(f"world {world!r} has no split {split!r}; use one of {sorted(loaded.prompts)}")
    counted = loaded.visible_slots if slots is None else slots
    reward_fn = InverseDynamicsReward(loaded.coach, match, counted, loaded.class_frequency)
    return TokenGenerationEnv(
        loaded.prompts[split],
        loaded.tokenizer,
        reward_fn,
        num_prompts=num_rows,
        tokens_per_step=tokens_per_step,
        num_word_ids=loaded.num_word_ids,
        device=device,
    )


def _load(world: str) -> World:
    # Imported here: the assets are heavy, and the testing world has no business in a training run.
    if world == "identity":
        from rlir_env.testing import identity_world

        return identity_world()
    from rlir_env.assets import load_world

    return load_world(world)
