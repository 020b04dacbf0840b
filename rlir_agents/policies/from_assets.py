"""The shipped base model as a policy, for those who want to play something better than noise."""

from __future__ import annotations

import torch

from rlir_agents.hardware import default_autocast_dtype
from rlir_agents.policies.token import TokenPolicy
from rlir_agents.world_models.loading import read_world_model
from rlir_agents.world_models.mineworld import MineWorld
from rlir_agents.world_models.nfd import NFD
from rlir_agents.world_models.oasis import Oasis
from rlir_env.assets import asset_folder, read_tokenizer
from rlir_env.layout import TokenLayout


def shipped_world_model(world: str = "doom", name: str = "mineworld") -> MineWorld | NFD | Oasis:
    """A base model of a shipped world, in float32, ready to be trained on.

    Args:
        world: name of the asset set.
        name: ``"mineworld"``, or ``"nfd"`` for the one that denoises latents.

    Raises:
        ValueError: if there is no such world or it has no such base model.
    """
    return read_world_model(asset_folder(world).model_file(name))


def policy_from_assets(
    world: str = "doom",
    tokens_per_step: int | str = "frame",
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    device: torch.device | str = "cpu",
) -> TokenPolicy:
    """The shipped base model as a policy for 16-frame videos.

    Args:
        world: name of the asset set.
        tokens_per_step: k, or ``"frame"``; that of the env.
        temperature: divides the logits.
        top_p: see `TokenSampler`.
        device: where it runs; its precision is what is fast there.

    Raises:
        ValueError: if there is no such world or it has no base model.

    Example:
        >>> env = gymnasium.make("RLIR-MineWorld-v0", tokens_per_step="frame")  # doctest: +SKIP
        >>> core, policy = env.unwrapped.core, policy_from_assets()  # doctest: +SKIP
        >>> core.rollout(core.num_steps, policy)["next", "reward"][:, -1]  # doctest: +SKIP
    """
    tokenizer = read_tokenizer(asset_folder(world).model_file("tokenizer"))
    world_model = shipped_world_model(world)
    if not isinstance(world_model, MineWorld):
        raise ValueError(f"the file mineworld of {world} holds a {type(world_model).__name__}: ship it as=nfd")
    return TokenPolicy(
        world_model.to(device),
        TokenLayout(tokenizer.tokens_per_frame),
        tokens_per_step,
        temperature=temperature,
        top_p=top_p,
        autocast_dtype=default_autocast_dtype(device),
    )
