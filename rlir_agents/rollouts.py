"""Collecting a batch of videos: ``collect`` in one loop, ``collect_stepwise`` by definition, with one result.

``env.rollout`` is what a rollout *is*. The fused collector samples whole videos, lets the env take only the last step,
the one that pays, and writes down what the states in between must have been. Scoring, advantages and losses are
functions on the result, elsewhere.

The layout, for P prompts, G siblings, T steps (k tokens or denoising steps per step, L tokens of a video, F frames, S
slots)::

    token [P,G,T,L] int32, position, frame_index [P,G,T,1]          the state: what the policy saw
    game_action, game_action_word, prompt_seed, group_id, ...       constant along T: stride-0 views
    action [P,G,T,k] int64, action_log_prob [P,G,T,k] float32
    ("next", "token" | "position" | "frame_index")                  the state after: views into the same memory
    ("next", "reward" | "done" | "terminated") [P,G,T,1]            the reward is zero before the last step
    ("next", "frame_reward") [P,G,T,F-1], and the reward's breakdown, such as ("next", "frame_match") [P,G,T,F-1,S]

Denoising has, in the place of token and position, latent [P,G,T,F,c,h,w] float32 (the video so far), denoising_step and
both timesteps [P,G,T,1]; action [P,G,T,k,c,h,w]; and loss_mask [P,G,T,k], the steps that count.
"""

from __future__ import annotations

from typing import Protocol, cast

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase

from rlir_env.envs import VideoGenerationEnv
from rlir_env.layout import LatentLayout, TokenLayout


class GenerativePolicy(Protocol):
    """A policy that can also make whole videos at once."""

    layout: TokenLayout | LatentLayout

    @property
    def num_steps(self) -> int:
        """T, env steps of a whole video."""

    def generate(self, tensordict: TensorDictBase) -> TensorDict:
        """What the policy writes in all steps, ``[B, T]``, from a freshly reset state ``[B]``."""


@torch.no_grad()
def collect(
    env: VideoGenerationEnv,
    policy: GenerativePolicy,
    tensordict: TensorDictBase | None = None,
    batch_size: int | None = None,
) -> TensorDictBase:
    """Collect whole videos, bitwise equal to :func:`collect_stepwise` for the same state.

    One tensordict instead of one a step: the states of all steps share the memory of T + 1 of them, constants that of
    one.

    Args:
        env: Steps once, to pay.
        policy: Made for the env's layout and granularity.
        tensordict: A fresh state ``[B]``, as of ``env.initial_state``; None resets the env.
        batch_size: Videos generated at once, for memory: the key/value cache of the published models has a tenth of a
            gigabyte a video. None takes all B.

    Returns:
        The rollout ``[P, G, T]``, see the module docstring.

    Raises:
        ValueError: if policy and env disagree on the layout or the granularity.
    """
    if (policy.layout, policy.num_steps) != (env.layout, env.num_steps):
        raise ValueError(
            f"the policy makes a video of {policy.layout} in {policy.num_steps} steps, the env {env.layout} in "
            f"{env.num_steps}: make the policy from env.interface"
        )
    state = env.reset() if tensordict is None else tensordict
    parts = [policy.generate(rows) for rows in state.split(batch_size or len(state))]
    taken = cast(TensorDict, torch.cat(parts))
    states = env.states_along(state, taken["action"])  # T + 1 of them
    rollout = states[:, :-1].copy().update(taken)
    for key, constant in state.exclude(*states.keys()).items():
        rollout[key] = constant[:, None].expand(-1, env.num_steps, *constant.shape[1:])
    rollout["next"] = _outcomes(env, rollout[:, -1], states[:, 1:].copy())
    return _by_prompt(rollout, env)


@torch.no_grad()
def collect_stepwise(
    env: VideoGenerationEnv, policy: TensorDictModuleBase, tensordict: TensorDictBase | None = None
) -> TensorDictBase:
    """Collect by ``env.rollout``, with any policy: the definition, and the slow way.

    Args:
        env: Steps T times.
        policy: Writes ``action``.
        tensordict: A fresh state ``[B]``; None resets the env.

    Returns:
        The rollout ``[P, G, T]``.
    """
    state = env.reset() if tensordict is None else tensordict
    rollout = env.rollout(env.num_steps, policy, auto_reset=False, tensordict=state)
    rollout.names = None  # reshaping drops TorchRL's name of the time dimension
    return _by_prompt(rollout, env)


def _outcomes(env: VideoGenerationEnv, last: TensorDict, states: TensorDict) -> TensorDict:
    """What every step led to: the given states, and rewards, which are zero except after the last step."""
    paid = env.step(last)["next"]
    for key in paid.keys():
        if key not in states.keys():
            entry = paid[key].new_zeros(len(last), env.num_steps, *paid[key].shape[1:])
            entry[:, -1] = paid[key]
            states[key] = entry
    return states


def _by_prompt(rollout: TensorDictBase, env: VideoGenerationEnv) -> TensorDictBase:
    """Siblings are adjacent rows: ``[B, T]`` becomes ``[P, G, T]`` without a copy."""
    return rollout.unflatten(0, (env.num_groups, env.group_size))
