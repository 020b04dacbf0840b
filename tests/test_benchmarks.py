"""What the benchmarks count is right. No test asserts a time: times belong to a machine."""

from functools import partial

import pytest
import torch
from small_policies import small_mineworld, small_policy
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.generation import sample_without_cache
from benchmarks.peaks import Peaks
from benchmarks.rollout_work import RolloutWork
from benchmarks.work import ProductCounter, Work, limit, total
from rlir_agents.policies import TokenPolicy
from rlir_agents.rollouts import collect
from rlir_agents.world_models import mineworld
from rlir_agents.world_models.kv_cache import KVCache, PlainLayerCache
from rlir_env.envs import TokenGenerationEnv
from rlir_env.testing import identity_world

P, G = 2, 3


def make_env() -> TokenGenerationEnv:
    world = identity_world(grid_size=(2, 4), num_frames=4)
    return world.env(num_prompts=P, group_size=G, tokens_per_step="frame")


def make_policy(env: TokenGenerationEnv, num_key_value_heads: int = 1) -> TokenPolicy:
    return small_policy(env, partial(small_mineworld, num_key_value_heads=num_key_value_heads))


def plain_cache(num_layers: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> KVCache:
    """What accelerators use: torch knows the FLOPs of its attention, and it pads nothing."""
    return KVCache([PlainLayerCache(shape, dtype, device) for _ in range(num_layers)])


@pytest.mark.parametrize("num_key_value_heads", [1, 2])
def test_closed_form_of_the_rollout_agrees_with_torch(
    monkeypatch: pytest.MonkeyPatch, num_key_value_heads: int
) -> None:
    monkeypatch.setattr(mineworld, "new_cache", plain_cache)
    env = make_env()
    policy = make_policy(env, num_key_value_heads)
    state = env.reset()
    with FlopCounterMode(display=False) as torch_counter:
        policy.generate(state)
    work = RolloutWork(policy.world_model.config, env.layout, P, P * G, torch.float32)
    parts = work.parts()
    counted = total([work for part in parts.values() for work in part])[0]
    assert counted == torch_counter.get_total_flops()
    # 2 FLOPs x 6 rows x 32 wide x the codes, for each of 3 frames' 8 tokens
    assert total(parts["head"])[0] == 2 * 6 * 32 * env.num_codes * 24


def test_counter_agrees_with_torch_forward_and_backward() -> None:
    model = make_policy(make_env()).world_model
    token = torch.zeros(3, 20, dtype=torch.long)

    def step() -> None:
        model(token).sum().backward()

    with FlopCounterMode(display=False) as torch_counter:
        step()
    with ProductCounter() as counter:
        step()
    assert total(counter.works)[0] == torch_counter.get_total_flops() > 0


def test_counter_knows_bytes_and_types() -> None:
    left, right = torch.zeros(4, 8, dtype=torch.bfloat16), torch.zeros(8, 2, dtype=torch.bfloat16)
    with ProductCounter() as counter:
        (left @ right).relu()
    # 2 x 4 x 8 x 2 FLOPs; 32 + 16 + 8 elements of two bytes; what is not a product counts nothing
    assert counter.works == [Work(128, 112, torch.bfloat16)]


def test_limit_is_a_sum_of_maxima() -> None:
    peaks = Peaks({torch.float32: 100.0, torch.bfloat16: 400.0}, copy=10.0)
    busy, moving = Work(200, 10, torch.float32), Work(400, 30, torch.bfloat16)
    # max(200/100, 10/10) + max(400/400, 30/10); of the sums it would be max(2 + 1, 4) = 4
    assert limit([busy, moving], peaks) == 2 + 3
    assert limit([busy.times(3)], peaks) == 6


def test_generation_without_a_cache_samples_the_same() -> None:
    env = make_env()
    policy, state = make_policy(env), env.reset()
    rollout = collect(env, policy, state).flatten(0, 1)
    video = rollout["next", "token"][:, -1]
    for position in env.layout.action_positions.tolist():
        code, _ = sample_without_cache(policy, video, position, state["episode_seed"].squeeze(-1))
        assert torch.equal(code, video[:, position].long())
