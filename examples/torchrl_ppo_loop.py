"""RLIR as a plain TorchRL loop: a world model learns to obey, by TorchRL's own `ClipPPOLoss`, in one file.

The agent is the world model: its action is the visual tokens of the next frame, its observation holds the game actions.
What this shows: RLIR is a rollout, a comparison of siblings (Eq. 1) and a clipped loss (Eq. 2), with nothing hidden in
a trainer. How it differs from the paper: no KL, no learning rate schedule, one minibatch, the reward is the mean over
slots (or balanced over classes, for Doom) instead of Eq. 3 to the letter, nothing is evaluated or stored, and the
default world is a toy that is learnt in seconds. `rlir train` has the rest.

    python examples/torchrl_ppo_loop.py                # the identity world, a transformer of 21,000 weights
    python examples/torchrl_ppo_loop.py --world doom   # the shipped world and its base model
"""

import argparse

import torch
from torchrl.objectives import ClipPPOLoss

from rlir_agents import group_relative
from rlir_agents.policies import TokenPolicy
from rlir_agents.world_models import MineWorld, MineWorldConfig
from rlir_env.envs import TokenGenerationEnv
from rlir_env.rewards import InverseDynamicsReward
from rlir_env.testing import identity_world


def identity(num_prompts: int, group_size: int) -> tuple[TokenGenerationEnv, TokenPolicy, float]:
    """A world whose right answer is the game action itself, and an untrained transformer."""
    rows = {"num_prompts": num_prompts, "group_size": group_size, "tokens_per_step": "frame"}
    env = identity_world().env("train", **rows)
    config = MineWorldConfig(
        num_codes=env.num_codes,
        vocab_size=env.num_codes + env.num_word_ids,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=env.layout.sequence_length,
        initializer_range=0.1,
    )
    return env, TokenPolicy(MineWorld(config), env.layout, "frame"), 3e-3


def doom(num_prompts: int, group_size: int) -> tuple[TokenGenerationEnv, TokenPolicy, float]:
    """Gameplay of Freedoom, and the shipped base model. The coach pays; the judge stays out of training."""
    from rlir_agents import policy_from_assets
    from rlir_env.assets import load_world

    world = load_world("doom")
    reward = InverseDynamicsReward(world.coach, "balanced", world.visible_slots, world.class_frequency)
    env = TokenGenerationEnv(
        world.prompts["train"],
        world.tokenizer,
        reward,
        num_prompts=num_prompts,
        group_size=group_size,
        tokens_per_step="frame",
    )
    return env, policy_from_assets(tokens_per_step="frame"), 1e-4


def main(arguments: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", choices=("identity", "doom"), default="identity")
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--prompts", type=int, default=8, help="P, prompts an iteration")
    parser.add_argument("--group", type=int, default=8, help="G, siblings of a prompt")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    make = {"identity": identity, "doom": doom}[options.world]
    env, policy, learning_rate = make(options.prompts, options.group)
    loss = ClipPPOLoss(policy, None, critic_coeff=None, clip_epsilon=0.2, entropy_bonus=False, functional=False)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=learning_rate)

    rewards = []
    for iteration in range(1, options.iterations + 1):
        rollout = env.rollout(env.num_steps, policy)  # [B, T]; `rlir_agents.collect` makes the same one faster
        reward = rollout["next", "reward"].sum(dim=1)  # [B, 1], paid at the last step
        siblings = reward.unflatten(0, (options.prompts, options.group))  # [P, G, 1]: siblings are adjacent rows
        advantage = group_relative(siblings).flatten(0, 1)  # [B, 1]
        rollout["advantage"] = advantage[:, None].expand(-1, env.num_steps, -1)  # one for the whole video
        for _ in range(2):  # two updates a batch; from the second on the clip has something to do
            optimizer.zero_grad()
            loss(rollout)["loss_objective"].backward()
            torch.nn.utils.clip_grad_norm_(loss.parameters(), 1.0)
            optimizer.step()
        rewards.append(reward.mean().item())
        print(f"iteration {iteration:>3}   mean reward {rewards[-1]:.3f}")
    return rewards


if __name__ == "__main__":
    main()
