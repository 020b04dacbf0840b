"""Policies of MineWorld's and of NFD's architecture that are just large enough for the identity world."""

from collections.abc import Callable
from typing import Any

import torch

from rlir_agents.policies import DenoisingPolicy, TokenPolicy
from rlir_agents.world_models import NFD, MineWorld, MineWorldConfig, NFDConfig, NFDGroups, TokenWorldModel
from rlir_env.envs import DenoisingEnv, TokenGenerationEnv
from rlir_env.game_actions import GameActionSpec
from rlir_env.testing import IDENTITY_SPEC


def small_mineworld(num_codes: int, vocab_size: int, max_length: int, **changes: Any) -> MineWorld:
    """30,000 weights, which learn the identity world in seconds."""
    config = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "initializer_range": 0.1,  # 0.02 suits wide models; this one would hardly see its input
    }
    sizes = {"num_codes": num_codes, "vocab_size": vocab_size, "max_position_embeddings": max_length}
    return MineWorld(MineWorldConfig(**(config | sizes | changes)))


def grouped_mineworld(num_codes: int, vocab_size: int, max_length: int) -> MineWorld:
    """Two heads share keys and values, as in MineWorld; larger weights, so that some codes are much likelier."""
    return small_mineworld(num_codes, vocab_size, max_length, num_key_value_heads=2, initializer_range=0.15)


def small_policy(
    env: TokenGenerationEnv,
    make_world_model: Callable[[int, int, int], TokenWorldModel] = small_mineworld,
    make: type[TokenPolicy] = TokenPolicy,
    **settings: Any,
) -> TokenPolicy:
    """A policy for an env, the same at every call.

    Args:
        env: whose codes, ids and length the world model has.
        make_world_model: from (num_codes, vocab_size, max_length).
        make: The class.
        settings: of the policy.
    """
    torch.manual_seed(0)
    sizes = (env.num_codes, env.num_codes + env.num_word_ids, env.layout.sequence_length)
    return make(make_world_model(*sizes), env.layout, env.tokens_per_step, **settings)


def small_denoising_policy(
    env: DenoisingEnv,
    spec: GameActionSpec = IDENTITY_SPEC,
    make: type[DenoisingPolicy] = DenoisingPolicy,
    **settings: Any,
) -> DenoisingPolicy:
    """A policy for an env, the same at every call.

    Args:
        env: whose latents and number of frames the world model has.
        spec: of the env's game actions.
        make: the kind of policy.
        settings: of the policy.
    """
    torch.manual_seed(0)
    action_encoder = NFDGroups(spec)
    config = NFDConfig(
        latent_shape=env.layout.latent_shape,
        patch_size=1,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        intermediate_size=64,
        action_dim=action_encoder.dim,
        max_frames=env.layout.num_frames,
        timestep_label="continuous",
    )
    world_model = NFD(config)
    with torch.no_grad():  # fresh gates are zero: such a model would see nothing and say zero
        for weight in world_model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return make(world_model, env.layout, env.steps_per_action, action_encoder=action_encoder, **settings)


def teach_random_play(policy: DenoisingPolicy, num_codes: int, num_steps: int = 300) -> DenoisingPolicy:
    """Let a policy make frames of the identity world whatever is pressed: a base model that ignores its actions.

    A fresh model makes noise, which the coach reads as one class or the other for good; reinforcement has to start from
    videos in which everything happens.

    Args:
        policy: learns by flow matching, on clips of random grey levels under random game actions.
        num_codes: of the world.
        num_steps: of training.
    """
    noise, layout, encoder = torch.Generator().manual_seed(0), policy.layout, policy.action_encoder
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for _ in range(num_steps):
        levels = torch.randint(num_codes, (64, layout.num_frames, *layout.latent_shape), generator=noise)
        frames = 12**0.5 * (levels / (num_codes - 1) - 0.5)
        pressed = [torch.randint(n, (64, layout.num_frames - 1), generator=noise) for n in encoder.spec.num_classes]
        timestep = torch.rand(64, layout.num_frames - 1, 4, generator=noise)
        start = torch.randn(*timestep.shape, *layout.latent_shape, generator=noise)
        data = frames[:, 1:, None].expand_as(start)
        velocity = policy.world_model.velocity_of_steps(
            frames[:, :-1],
            torch.zeros(64, layout.num_frames - 1),
            torch.lerp(data, start, timestep[..., None, None, None]),
            timestep,
            encoder.of_frames(torch.stack(pressed, dim=-1)),
        )
        optimizer.zero_grad()
        (velocity - (start - data)).square().mean().backward()
        optimizer.step()
    return policy
