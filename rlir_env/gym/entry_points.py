"""What ``gymnasium.make`` and ``make_vec`` call: from JSON-able keywords to an env of a world."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from gymnasium.vector import AutoresetMode

from rlir_env.envs import DenoisingEnv, TokenGenerationEnv, VideoGenerationEnv
from rlir_env.gym.generation_env import GenerationGymEnv
from rlir_env.gym.generation_vector_env import GenerationGymVectorEnv
from rlir_env.inverse_dynamics import InverseDynamicsModel
from rlir_env.prompts import PromptSource
from rlir_env.rewards import InverseDynamicsReward
from rlir_env.schedules import shifted_grid
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


def make_env(
    paradigm: str, world: str = "doom", render_mode: str | None = "rgb_array", **kwargs: Any
) -> GenerationGymEnv:
    """Entry point of ``gymnasium.make``; the id sets the paradigm, further keywords are those of :func:`make_core`."""
    return GenerationGymEnv(make_core(paradigm, world, num_rows=1, **kwargs), render_mode)


def make_vector_env(
    num_envs: int,
    paradigm: str,
    world: str = "doom",
    autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    render_mode: str | None = "rgb_array",
    **kwargs: Any,
) -> GenerationGymVectorEnv:
    """Entry point of ``gymnasium.make_vec``; as :func:`make_env`."""
    core = make_core(paradigm, world, num_rows=num_envs, **kwargs)
    return GenerationGymVectorEnv(core, autoreset_mode, render_mode)


def make_core(
    paradigm: str,
    world: str,
    num_rows: int = 1,
    split: str = "dev",
    match: str = "per_slot",
    slots: Sequence[str] | None = None,
    device: str = "cpu",
    **settings: Any,
) -> VideoGenerationEnv:
    """Put a named world behind the env of a paradigm.

    Args:
        paradigm: ``"autoregressive"`` (MineWorld's) or ``"diffusion"`` (NFD's).
        world: Name of a shipped asset set, or ``"identity"`` for the world of the tests.
        num_rows: Videos generated side by side.
        split: ``"train"``, ``"dev"`` or ``"test"`` prompts.
        match: How a reading becomes a number, see :class:`~rlir_env.rewards.InverseDynamicsReward`.
        slots: Slots that count, None for those that the world's pictures reveal, as in ``rlir train``.
        device: Where everything lives.
        **settings: For tokens ``tokens_per_step`` (k, by default 1, or ``"frame"``). For denoising
            ``num_denoising_steps`` (N, 10) and ``shift`` (3.0) of the grid of timesteps, ``steps_per_action`` (k, by
            default 1, or ``"frame"``) and ``is_initial_noise_shared`` (true).

    Raises:
        ValueError: if paradigm, world, tokenizer or split does not exist, or a setting does not fit.
    """
    if paradigm not in _PARADIGMS:
        raise ValueError(f"paradigm={paradigm!r}: use one of {sorted(_PARADIGMS)}")
    env_of, tokenizer = _PARADIGMS[paradigm]
    loaded = _load(world, tokenizer)
    if split not in loaded.prompts:
        raise ValueError(f"world {world!r} has no split {split!r}; use one of {sorted(loaded.prompts)}")
    counted = loaded.visible_slots if slots is None else slots
    reward_fn = InverseDynamicsReward(loaded.coach, match, counted, loaded.class_frequency)
    frozen = (loaded.prompts[split], loaded.tokenizer, reward_fn)
    return env_of(loaded, frozen, {"num_prompts": num_rows, "device": device}, **settings)


_Frozen = tuple[PromptSource, Tokenizer, InverseDynamicsReward]


def _token_env(
    world: World, frozen: _Frozen, rows: dict[str, Any], tokens_per_step: int | str = 1
) -> TokenGenerationEnv:
    return TokenGenerationEnv(*frozen, tokens_per_step=tokens_per_step, num_word_ids=world.num_word_ids, **rows)


def _denoising_env(
    world: World,
    frozen: _Frozen,
    rows: dict[str, Any],
    num_denoising_steps: int = 10,
    shift: float = 3.0,
    steps_per_action: int | str = 1,
    is_initial_noise_shared: bool = True,
) -> DenoisingEnv:
    return DenoisingEnv(
        *frozen,
        shifted_grid(num_denoising_steps, shift),
        steps_per_action=steps_per_action,
        is_initial_noise_shared=is_initial_noise_shared,
        **rows,
    )


# Of each paradigm its env, and the tokenizer of a world that gives it codes.
_PARADIGMS: dict[str, tuple[Callable[..., VideoGenerationEnv], str]] = {
    "autoregressive": (_token_env, "tokenizer"),
    "diffusion": (_denoising_env, "kl_tokenizer"),
}


def _load(world: str, tokenizer: str) -> World:
    # Imported here: the assets are heavy, and the testing world has no business in a training run.
    if world == "identity":
        from rlir_env.testing import identity_world

        return identity_world(tokenizer=tokenizer)
    from rlir_env.assets import load_world

    return load_world(world, tokenizer)
