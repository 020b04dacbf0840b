"""A world model plays Gymnasium, step by step, from `reset` to a GIF of the video that it made.

Who is the agent? The world model. Its action is the next visual token of the video; what the player pressed, the game
action, is part of the observation, all of it known from the reset on. (Newcomers expect the opposite.) When the video
is complete, an inverse dynamics model reads the game actions back from it, and what it reads rightly is the reward.

What this shows: the loop that every Gymnasium user knows, played by a random agent and by one that obeys, and the two
videos. How it differs from the paper: nothing learns here, and the reward is the mean over slots instead of Eq. 3 to
the letter (`match="all_slots"`). A step is a single token; training takes a frame a step, `tokens_per_step="frame"`,
which is the same episode in fewer steps.

    python examples/gymnasium_agent.py                # the identity world: grey patches, no assets needed
    python examples/gymnasium_agent.py --world doom   # the shipped world, played by its base model
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import torch
from PIL import Image
from tensordict import TensorDict

import rlir_env

Agent = Callable[[dict, dict], int]  # from observation and info to the next token


def random_agent(env: gymnasium.Env) -> Agent:
    return lambda observation, info: int(env.action_space.sample())


def obedient_agent(env: gymnasium.Env) -> Agent:
    """For the identity world, where token i of a frame has to show slot i of the game action that leads to it."""
    layout = env.unwrapped.core.layout

    def act(observation: dict, info: dict) -> int:
        frame = int(observation["frame_index"][0])
        token = int(observation["position"][0]) - frame * layout.block_length
        return int(observation["game_action"][frame - 1, token])  # line j leads from frame j to frame j + 1

    return act


def world_model_agent() -> Agent:
    """The shipped base model. It reads a batch, and it draws its noise from the episode's seed."""
    from rlir_agents import policy_from_assets

    policy = policy_from_assets(tokens_per_step=1)

    def act(observation: dict, info: dict) -> int:
        state = TensorDict({key: torch.as_tensor(value)[None] for key, value in observation.items()}, batch_size=[1])
        state["episode_seed"] = torch.tensor([[info["episode_seed"]]])
        return int(policy(state)["action"])

    return act


def play(env: gymnasium.Env, agent: Agent, prompt_index: int) -> tuple[float, dict, list[np.ndarray]]:
    """One episode is one video: its reward, what was read back from it, and its frames."""
    observation, info = env.reset(seed=0, options={"prompt_index": prompt_index})
    terminated = False
    while not terminated:  # the horizon is `terminated`; a video is never truncated
        observation, reward, terminated, _, info = env.step(agent(observation, info))
    return reward, info, env.render()


def save_gif(path: Path, frames: list[np.ndarray], side: int = 240) -> None:
    height, width, _ = frames[0].shape
    size = (side, round(side * height / width))
    pictures = [Image.fromarray(frame).resize(size, Image.Resampling.NEAREST) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=170, loop=0)  # milliseconds a frame


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", choices=("identity", "doom"), default="identity")
    parser.add_argument("--prompt", type=int, default=0, help="which clip to continue")
    parser.add_argument("--folder", type=Path, default=Path("runs/examples"), help="where the GIFs go")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)

    env = gymnasium.make(rlir_env.MINEWORLD_ID, world=options.world, render_mode="rgb_array_list")
    env.action_space.seed(1)
    agents = {"random": random_agent(env)}
    if options.world == "identity":
        agents["obedient"] = obedient_agent(env)
    else:
        agents["base_model"] = world_model_agent()

    rewards = {}
    for name, agent in agents.items():
        rewards[name], info, frames = play(env, agent, options.prompt)
        path = options.folder / f"{options.world}_{name}.gif"
        save_gif(path, frames)
        right = ", ".join(f"{share:.2f}" for share in info["frame_match"].mean(0))  # [F-1, S] -> [S]
        print(f"{name:<11} reward {rewards[name]:.3f}   read back rightly, slot by slot: {right}   {path}")
    env.close()
    return rewards


if __name__ == "__main__":
    main()
