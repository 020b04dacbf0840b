"""Collecting a batch of videos: ``collect`` in one loop, ``collect_stepwise`` by definition, with one result.

``env.rollout`` is what a rollout *is*. The fused collector samples whole videos, lets the env take only the last step,
the one that pays, and writes down what the states in between must have been. Scoring, advantages and losses are
functions on the result, elsewhere.

The layout, for P prompts, G siblings, T steps (k tokens per step, L tokens of a video, F frames, S slots)::

    token [P,G,T,L] int32, position, frame_index [P,G,T,1]          the state: what the policy saw
    game_action, game_action_word, prompt_seed, group_id, ...       constant along T: stride-0 views
    action [P,G,T,k] int64, action_log_prob [P,G,T,k] float32
    ("next", "token" | "position" | "frame_index")                  the state after: views into the same memory
    ("next", "reward" | "done" | "terminated") [P,G,T,1]            the reward is zero before the last step
    ("next", "frame_reward") [P,G,T,F-1], and the reward's breakdown, such as ("next", "frame_match") [P,G,T,F-1,S]
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from rlir_agents.policies import TokenPolicy
from rlir_env.envs import TokenGenerationEnv, VideoGenerationEnv
from rlir_env.layout import TokenLayout


@torch.no_grad()
def collect(env: TokenGenerationEnv, policy: TokenPolicy, tensordict: TensorDictBase | None = None) -> TensorDict:
    """Collect whole videos, bitwise equal to :func:`collect_stepwise` for the same state.

    One tensordict instead of one a step: the states of all steps share the memory of T + 1 of them, constants that of
    one.

    Args:
        env: Steps once, to pay.
        policy: Of the env's ``tokens_per_step``.
        tensordict: A fresh state ``[B]``, as of ``env.initial_state``; None resets the env.

    Returns:
        The rollout ``[P, G, T]``, see the module docstring.

    Raises:
        ValueError: if policy and env disagree on the layout or the tokens per step.
    """
    if (policy.layout, policy.tokens_per_step) != (env.layout, env.tokens_per_step):
        raise ValueError(
            f"the policy makes {policy.tokens_per_step} tokens a step of {policy.layout}, the env takes "
            f"{env.tokens_per_step} of {env.layout}: make both from the env's layout and tokens_per_step"
        )
    state = env.reset() if tensordict is None else tensordict
    video, log_prob = policy.generate(state)
    states = _states(video, env.layout, env.tokens_per_step)  # T + 1 of them
    codes = video[:, env.layout.action_positions.to(video.device)].long()
    rollout = states[:, :-1].copy()
    rollout["action"] = codes.unflatten(1, (-1, env.tokens_per_step))
    rollout["action_log_prob"] = log_prob.unflatten(1, (-1, env.tokens_per_step))
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


def _states(video: Tensor, layout: TokenLayout, tokens_per_step: int) -> TensorDict:
    """The T + 1 states on the way to finished videos ``[B, L]``: what was known before each step, and at the end."""
    num_rows, device = len(video), video.device
    starts = layout.action_positions[::tokens_per_step]
    end = torch.tensor([layout.sequence_length])
    position = torch.cat([starts, end]).to(device)  # [T + 1]
    is_known = torch.arange(layout.sequence_length, device=device) < position[:, None]
    # The last frame has no successor: its index stays.
    last = layout.num_frames - 1
    frame_index = (position // layout.block_length).clamp(max=last)
    return TensorDict(
        {
            "token": torch.where(is_known, video[:, None], -1),  # [B, T + 1, L]
            "position": position[:, None].expand(num_rows, -1, 1),
            "frame_index": frame_index[:, None].expand(num_rows, -1, 1),
        },
        batch_size=[num_rows, len(position)],
    )


def _outcomes(env: TokenGenerationEnv, last: TensorDict, states: TensorDict) -> TensorDict:
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
