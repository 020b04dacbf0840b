"""The contract of video generation envs as a function, like Gymnasium's ``env_checker``.

It plays random episodes and names the first promise that is broken. Rewards and trainers are *not*
checked here.

Letters: B rows, T steps, A word length, F frames, N denoising steps of a frame; c, h, w a latent's channels, height and
width.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase, assert_close
from torchrl.envs.utils import check_env_specs, step_mdp

from rlir_env.envs import DenoisingEnv, TokenGenerationEnv, VideoGenerationEnv


def check_generation_env(env: VideoGenerationEnv) -> None:
    """Check that an env keeps the contract of :class:`~rlir_env.envs.VideoGenerationEnv`.

    The env's order of prompts moves on; check an env that is not in use.

    Args:
        env: The env, of any batch size; groups of two or more also test what siblings share.

    Raises:
        AssertionError: with the name of the broken promise.
    """
    check_env_specs(env)
    _check_frozen(env)
    state = env.reset()
    _check_groups(env, state)
    rollout = env.rollout(env.num_steps, auto_reset=False, tensordict=state.clone())
    _check_horizon(env, rollout)
    _check_reward(rollout)
    _check_pure(env, state, rollout)
    _check_seeding(env)
    if isinstance(env, TokenGenerationEnv):
        _check_tokens(env, rollout)
    if isinstance(env, DenoisingEnv):
        _check_latents(env, rollout)
    _check_states_along(env, state, rollout)


def _check_frozen(env: VideoGenerationEnv) -> None:
    trainable = [name for name, parameter in env.named_parameters() if parameter.requires_grad]
    assert not trainable, f"nothing trainable: the env has trainable parameters {trainable}"
    before = {name: buffer.clone() for name, buffer in env.named_buffers()}
    env.train()  # as a caller's module that holds the env would; a batch norm must not start to count
    env.rollout(env.num_steps)
    changed = [name for name, buffer in env.named_buffers() if not torch.equal(buffer, before[name])]
    assert not changed, f"nothing learns: after train() an episode changed the buffers {changed}"


def _check_groups(env: VideoGenerationEnv, state: TensorDictBase) -> None:
    has_own_noise = isinstance(env, DenoisingEnv) and not env.is_initial_noise_shared
    for key in ("prompt_index", "group_id", "game_action", *(() if has_own_noise else ("prompt_seed",))):
        by_group = state[key].unflatten(0, (env.num_groups, env.group_size))
        shared = (by_group == by_group[:, :1]).all()
        assert shared, f"siblings share a prompt: {key!r} differs inside a group"
    seeds = state["episode_seed"].flatten()
    assert len(seeds.unique()) == len(seeds), "siblings differ: two rows have the same episode_seed"
    groups = state["group_id"].unique()
    assert len(groups) == env.num_groups, "groups are told apart: two groups have the same group_id"


def _check_horizon(env: VideoGenerationEnv, rollout: TensorDictBase) -> None:
    num_steps = rollout.shape[1]
    assert num_steps == env.num_steps, f"an episode has num_steps={env.num_steps} steps: it took {num_steps}"
    terminated, done = rollout["next", "terminated"], rollout["next", "done"]
    assert terminated[:, -1].all(), "the horizon is terminated: the last step does not say so"
    assert not terminated[:, :-1].any(), "the horizon is terminated: a step before the last says so"
    assert (terminated == done).all(), "the horizon is terminated: done and terminated differ"
    truncated = rollout.get(("next", "truncated"), None)
    is_truncated = truncated is not None and bool(truncated.any())
    assert not is_truncated, "the horizon is never truncated: a step says truncated"


def _check_reward(rollout: TensorDictBase) -> None:
    reward, frame_reward = rollout["next", "reward"], rollout["next", "frame_reward"]
    assert reward[:, :-1].eq(0).all(), "the reward is terminal: it is not zero before the last step"
    assert frame_reward[:, :-1].eq(0).all(), "the reward is terminal: frame_reward is not zero before"
    mean = frame_reward[:, -1].mean(-1, keepdim=True)
    assert torch.allclose(reward[:, -1], mean), "the reward is the mean of frame_reward: it is not"
    for value in (reward, frame_reward):
        assert value.isfinite().all(), "the reward is finite: it is not"
        assert not value.requires_grad, "the reward has no gradient: it requires one"


def _check_pure(env: VideoGenerationEnv, state: TensorDictBase, rollout: TensorDictBase) -> None:
    state = state.clone()
    for step in range(rollout.shape[1]):
        state["action"] = rollout["action"][:, step].clone()
        before = state.clone()
        first, after = env.step(state.clone())["next"], env.step(state)
        second = after["next"]
        assert (state.select(*before.keys()) == before).all(), "the step is pure: it changed its input"
        assert_close(first, second, rtol=0, atol=0, msg="the step is deterministic: two differ")
        stored = rollout["next"][:, step].select(*second.keys())
        assert_close(stored, second, rtol=0, atol=0, msg="the step is pure: a replay differs")
        state = step_mdp(after)


def _check_seeding(env: VideoGenerationEnv) -> None:
    env.set_seed(5)
    first, second = env.reset(), env.reset()
    env.set_seed(5)
    assert (env.reset() == first).all(), "a seed fixes the resets: the first reset differs"
    assert (env.reset() == second).all(), "a seed fixes the resets: the second reset differs"
    drawn = env.num_groups_drawn
    chosen = first["prompt_index"].flatten(), first["episode_seed"].flatten()
    given = env.initial_state(*chosen, first["group_id"].flatten())
    assert (given == first.select(*given.keys())).all(), "initial_state is the reset's state: it differs"
    assert env.num_groups_drawn == drawn, "initial_state draws no prompts: it moved the order on"


def _check_tokens(env: TokenGenerationEnv, rollout: TensorDictBase) -> None:
    layout = env.layout
    last = step_mdp(rollout[:, -1], exclude_reward=False)
    words = last["token"][:, layout.word_positions]  # [B, F-1, A]
    assert (words == last["game_action_word"]).all(), "words stand behind their frame: word j is not at its place"
    sampled = last["token"][:, layout.action_positions]
    assert (sampled == rollout["action"].flatten(1)).all(), "actions are tokens: the video has others"
    for step in range(rollout.shape[1]):
        state = rollout[:, step]
        places = torch.arange(layout.sequence_length, device=state["token"].device)
        is_known = state["token"] >= 0
        assert (is_known == (places < state["position"])).all(), (
            "position is the next token's index: what is known does not end there"
        )
        assert (state["frame_index"] == state["position"] // layout.block_length).all(), (
            "frame_index is the frame of the next token: it is not"
        )


def _check_latents(env: DenoisingEnv, rollout: TensorDictBase) -> None:
    num_denoising_steps, k = env.layout.num_denoising_steps, env.steps_per_action
    grid = env.layout.grid.float().to(rollout.device)
    video, starts = rollout["next", "latent"][:, -1], []
    for step in range(rollout.shape[1]):
        state, after = rollout[:, step], rollout["next"][:, step]
        frame, denoising_step = step * k // num_denoising_steps + 1, step * k % num_denoising_steps
        counts = (state["frame_index"] == frame) & (state["denoising_step"] == denoising_step)
        assert counts.all(), "denoising_step counts the steps of frame_index: it does not"
        _check_clock(state, grid[denoising_step], grid[denoising_step + k])
        latent = state["latent"]
        assert (latent[:, :frame] == video[:, :frame]).all(), "finished frames stay: one changes"
        assert latent[:, frame + 1 :].eq(0).all(), "frames to come are zero: one is not"
        assert (after["latent"][:, frame] == state["action"][:, -1]).all(), (
            "actions are latents: after the step the frame under way is another"
        )
        if denoising_step == 0:
            starts.append(latent[:, frame])
    end = rollout["next"][:, -1]
    assert end["denoising_step"].eq(num_denoising_steps).all(), "denoising_step is N at the end: it is not"
    _check_clock(end, grid[-1], grid[-1])
    noise = torch.stack(starts, dim=1).unflatten(0, (env.num_groups, env.group_size))  # [P, G, F-1, c, h, w]
    if env.is_initial_noise_shared:
        assert (noise == noise[:, :1]).all(), "siblings start a frame from the same noise: they do not"
        noise = noise[:, :1]
    noise = noise.flatten(0, 2).flatten(1)
    assert len(noise.unique(dim=0)) == len(noise), "every frame starts from noise of its own: two have the same"


def _check_clock(state: TensorDictBase, start: torch.Tensor, end: torch.Tensor) -> None:
    is_right = (state["timestep"] == start) & (state["next_timestep"] == end)
    assert is_right.all(), "timestep and next_timestep say where the next step starts and ends: they do not"


def _check_states_along(env: VideoGenerationEnv, state: TensorDictBase, rollout: TensorDictBase) -> None:
    along = env.states_along(state, rollout["action"])
    for key in along.keys():
        played = torch.cat([rollout[key], rollout["next", key][:, -1:]], dim=1)
        assert torch.equal(along[key], played), f"states_along is what stepping gives: {key!r} differs"
