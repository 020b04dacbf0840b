"""Where the videos of an evaluation come from: a policy in its env, or a recording.

The seeds of a video depend on its prompt alone, so that two policies are compared under the same
noise and the size of a batch changes nothing. Reading and scoring them is the business of
`rlir_agents.evaluator`.

Letters: n videos, B rows of the env, P prompts, G group size, T steps, F frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from rlir_env.envs import VideoGenerationEnv
from rlir_env.envs.prompt_order import PromptOrder
from rlir_env.prompts import GenerationPrompt
from rlir_env.rewards import RewardFn

Policy = Callable[[TensorDictBase], TensorDictBase]
Collect = Callable[[Any, Any, TensorDictBase], TensorDictBase]
"""From env and policy of one paradigm and an initial state, [B], to a rollout, [P, G, T]."""
MakeVideos = Callable[[Tensor], Tensor]
"""From prompt indices, long [n], to videos, float [n, F, 3, H, W] in [0, 1] or uint8."""


class NoReward(RewardFn):
    """Pays nothing, for an env whose videos are evaluated: the readers look at them afterwards."""

    def frame_rewards(self, generation: TensorDictBase) -> dict[str, Tensor]:
        """Zeros, float [B, F-1]."""
        return {"frame_reward": torch.zeros(generation["game_action"].shape[:2], device=generation.device)}


def generator(env: VideoGenerationEnv, policy: Policy, collect_fn: Collect, seed: int, sibling: int = 0) -> MakeVideos:
    """A function that makes the policy's videos, from seeds that depend on the prompt alone.

    Args:
        env: of group size 1; batches smaller than its batch size are filled up with copies, which
            are thrown away.
        policy: a world model as a policy.
        collect_fn: from (env, policy, initial state) to a rollout [P, G, T].
        seed: of all videos.
        sibling: which of the videos of a prompt.
    """
    order = PromptOrder(env.prompts.num_prompts, seed)
    rows = env.batch_size[0]

    def make_videos(index: Tensor) -> Tensor:
        filled = torch.cat([index, index[-1:].expand(rows - len(index))])
        seeds = order.episode_seeds(filled, torch.full_like(filled, sibling))
        rollout = collect_fn(env, policy, env.initial_state(filled, seeds))
        last = rollout["next"][..., -1].reshape(rows)
        return env.frames_of(last)[: len(index)]

    return make_videos


def real_frames(prompt: GenerationPrompt) -> Tensor:
    """Given frames and real continuation, uint8 [n, F, 3, H, W]."""
    assert prompt.target_frames is not None  # the evaluator asks for prompts that have them
    return torch.cat([prompt.context_frames, prompt.target_frames], dim=1)


def as_uint8(frames: Tensor) -> Tensor:
    """Frames in [0, 1] as uint8; uint8 as they are."""
    return frames if frames.dtype == torch.uint8 else (frames.clamp(0, 1) * 255).round().to(torch.uint8)
