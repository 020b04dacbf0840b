"""Ways to generate the same videos: the fused collector, stepping the env, and reading everything again for each token.

Each is measured in a process of its own, so that none finds memory that another has left. Videos are not paid:
decoding and reading them costs the same in every way.

    python -m benchmarks.generation fused           # what the whole benchmark runs for each way; prints JSON
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from benchmarks.demo import assemble_demo
from rlir_agents.hardware import autocast
from rlir_agents.policies import TokenPolicy
from rlir_agents.rollouts import collect, collect_stepwise
from rlir_env.noise import counter_uniform

# Without a cache a token costs a pass over all tokens before it, hours for a batch. These many tokens of every video,
# evenly spread over its length, have the mean cost: it grows with the length, nearly in proportion.
TOKENS_WITHOUT_CACHE = 8


@dataclass(frozen=True)
class Generation:
    """What one way cost.

    Attributes:
        num_tokens: Sampled, in all rows together.
        num_tokens_of_video: Sampled in each row.
        seconds: Wall time.
        peak_bytes: Most memory of the process, beyond what it held before.
    """

    num_tokens: int
    num_tokens_of_video: int
    seconds: float
    peak_bytes: int

    @property
    def tokens_per_second(self) -> float:
        """The rate."""
        return self.num_tokens / self.seconds


def fused(env: Any, policy: TokenPolicy) -> int:
    """``rollouts.collect``; returns the tokens sampled in each row, as all ways do."""
    return _num_sampled(collect(env, policy))


def stepwise(env: Any, policy: TokenPolicy) -> int:
    """``rollouts.collect_stepwise``."""
    return _num_sampled(collect_stepwise(env, policy))


def without_cache(env: Any, policy: TokenPolicy) -> int:
    """A whole pass for every token, for some tokens of the video.

    What stands before them decides nothing about the cost, so it stays what the state has there: unknown.
    """
    state, sampled = env.reset(), policy.layout.action_positions
    chosen = torch.linspace(0, len(sampled) - 1, TOKENS_WITHOUT_CACHE).round().long().unique()
    for position in sampled[chosen].tolist():
        sample_without_cache(policy, state["token"], position, state["episode_seed"].squeeze(-1))
    return len(chosen)


@torch.no_grad()
def sample_without_cache(policy: TokenPolicy, token: Tensor, position: int, seed: Tensor) -> tuple[Tensor, Tensor]:
    """The token that step mode would sample, from one pass over everything before it.

    Args:
        policy: Its world model and sampler are used.
        token: Ids ``[B, L]``, known before ``position``.
        position: Of the token.
        seed: Of the episodes, long ``[B]``.

    Returns:
        Code ``[B]`` and its log-probability ``[B]``.
    """
    world_model = policy.world_model
    with autocast(token.device, policy.autocast_dtype):
        scores = world_model(token[:, :position].clamp(min=0), torch.tensor([position - 1]))
    return policy.sampler.draw(scores[:, 0, : world_model.num_codes], counter_uniform(seed, position))


@dataclass(frozen=True)
class Way:
    """How to generate.

    Attributes:
        title: In the table.
        run: From env and policy to the tokens sampled in each row.
        overrides: Of the demo's config.
    """

    title: str
    run: Callable[[Any, TokenPolicy], int]
    overrides: tuple[str, ...] = ()


WAYS = {
    "fused": Way("fused collector", fused),
    "diagonal": Way("fused collector, `policy=diagonal`", fused, ("policy=diagonal",)),
    "step_frame": Way("stepping, a frame a step", stepwise),
    "step_token": Way("stepping, a token a step", stepwise, ("env.tokens_per_step=1",)),
    "without_cache": Way("without a cache", without_cache),
}


def measure_apart(name: str, overrides: Sequence[str]) -> Generation:
    """Measure a way in a fresh process.

    Args:
        name: One of `WAYS`.
        overrides: Of the demo's config.

    Raises:
        RuntimeError: if the process fails; with what it said.
    """
    command = [sys.executable, "-m", "benchmarks.generation", name, *overrides]
    root = Path(__file__).parents[1]
    process = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{process.stderr}")
    return Generation(**json.loads(process.stdout.splitlines()[-1]))


def measure(name: str, overrides: Sequence[str]) -> Generation:
    """Measure a way in this process, which should be a fresh one: memory at the first time, seconds at the second."""
    way = WAYS[name]
    assembly = assemble_demo([*overrides, *way.overrides])
    env, policy = assembly.parts["env"], assembly.policy
    env.score = lambda state: env.no_reward(len(state))
    before = _peak_bytes()
    way.run(env, policy)  # touches fresh memory, which takes as long as some ways differ
    peak, start = _peak_bytes() - before, time.perf_counter()
    num_tokens = way.run(env, policy)
    seconds = time.perf_counter() - start
    return Generation(num_tokens * env.batch_size[0], num_tokens, seconds, peak)


def _num_sampled(rollout: TensorDictBase) -> int:
    return rollout["action"][0, 0].numel()


def _peak_bytes() -> int:
    """Most memory that this process ever held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    print(json.dumps(asdict(measure(sys.argv[1], sys.argv[2:]))))
