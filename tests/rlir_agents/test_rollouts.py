"""The fused collector gives what `env.rollout` defines, bit for bit, without its memory."""

import pytest
import torch
from small_policies import grouped_mineworld, small_policy
from tensordict import TensorDict

from rlir_agents.policies import TokenPolicy
from rlir_agents.rollouts import collect, collect_stepwise
from rlir_env.envs import TokenGenerationEnv
from rlir_env.testing import RandomTokenPolicy, identity_world

WORLD = identity_world(grid_size=(2, 6), num_frames=4)  # 12 tokens a frame: six divisors


def make_env(tokens_per_step: int | str = "frame", num_prompts: int = 3, group_size: int = 4) -> TokenGenerationEnv:
    return WORLD.env(num_prompts=num_prompts, group_size=group_size, tokens_per_step=tokens_per_step)


def make_policy(env: TokenGenerationEnv, **settings: object) -> TokenPolicy:
    return small_policy(env, grouped_mineworld, **settings)


def assert_identical(first: TensorDict, second: TensorDict) -> None:
    assert first.batch_size == second.batch_size
    assert set(first.keys(True, True)) == set(second.keys(True, True))
    for key in first.keys(True, True):
        assert first[key].dtype == second[key].dtype, key
        assert torch.equal(first[key], second[key]), key


@pytest.mark.parametrize(
    ("tokens_per_step", "autocast_dtype"),
    [(k, None) for k in (1, 2, 3, 4, 6, "frame")] + [(k, torch.bfloat16) for k in (1, "frame")],
)
def test_fused_is_stepwise_bitwise(tokens_per_step: int | str, autocast_dtype: torch.dtype | None) -> None:
    env = make_env(tokens_per_step)
    policy = make_policy(env, autocast_dtype=autocast_dtype)
    for _ in range(2):  # the second time the cache's memory is in use
        state = env.reset()
        fused = collect(env, policy, state.clone())
        # A policy object of its own: nothing may leak from the fused collector through the cache.
        stepwise = collect_stepwise(env, make_policy(env, autocast_dtype=autocast_dtype), state.clone())
        assert_identical(fused, stepwise)
        assert_identical(fused, collect_stepwise(env, policy, state.clone()))


@pytest.mark.parametrize("settings", [{"top_p": 0.6}, {"deterministic": True}, {"temperature": 0.5}], ids=str)
def test_fused_is_stepwise_for_every_sampler(settings: dict[str, object]) -> None:
    env = make_env(4)
    policy, state = make_policy(env, **settings), env.reset()
    assert_identical(collect(env, policy, state.clone()), collect_stepwise(env, policy, state.clone()))


def test_granularities_sample_the_same_video() -> None:
    videos = []
    for tokens_per_step in (1, 3, "frame"):
        env = make_env(tokens_per_step)
        rollout = collect(env, make_policy(env))
        videos.append((rollout["action"].flatten(2), rollout["action_log_prob"].flatten(2)))
    for codes, log_probs in videos[1:]:
        assert torch.equal(codes, videos[0][0]) and torch.equal(log_probs, videos[0][1])


def test_layout() -> None:
    env = make_env("frame", num_prompts=3, group_size=4)
    rollout = collect(env, make_policy(env))
    length = 4 * 12 + 3 * 2  # L: four frames of 12 tokens, three words of 2
    shapes = {
        "token": (length,),
        "position": (1,),
        "frame_index": (1,),
        "game_action": (3, 2),
        "game_action_word": (3, 2),
        "prompt_seed": (1,),
        "episode_seed": (1,),
        "group_id": (1,),
        "action": (12,),
        "action_log_prob": (12,),
        ("next", "reward"): (1,),
        ("next", "terminated"): (1,),
        ("next", "done"): (1,),
        ("next", "frame_reward"): (3,),
        ("next", "frame_match"): (3, 2),
    }
    for key, shape in shapes.items():
        assert rollout[key].shape == (3, 4, 3, *shape), key
    assert rollout["position"][0, 0].flatten().tolist() == [14, 28, 42]  # K + A, then a block of 14 further each
    assert rollout["next", "position"][0, 0].flatten().tolist() == [28, 42, 54]
    assert (rollout["token"] >= 0).sum(-1).equal(rollout["position"].squeeze(-1))
    assert (rollout["group_id"] == rollout["group_id"][:, :1, :1]).all()
    assert rollout["next", "reward"][:, :, :-1].eq(0).all()
    assert rollout["next", "terminated"][0, 0].flatten().tolist() == [False, False, True]


def test_states_share_memory_and_constants_are_views() -> None:
    env = make_env(1)
    rollout = collect(env, make_policy(env))
    for key in ("game_action", "game_action_word", "episode_seed", "group_id"):
        assert rollout[key].stride(2) == 0, key
    state, following = rollout["token"], rollout["next", "token"]
    assert state.untyped_storage().data_ptr() == following.untyped_storage().data_ptr()


def test_evaluation_chooses_prompts_and_seeds() -> None:
    env = make_env(num_prompts=3, group_size=1)
    policy = make_policy(env)
    index, seed = torch.tensor([5, 5, 2]), torch.tensor([1, 2, 1])
    rollout = collect(env, policy, env.initial_state(index, seed))
    again = collect(env, policy, env.initial_state(index.flip(0), seed.flip(0)))
    assert torch.equal(rollout["action"], again["action"].flip(0))
    assert rollout["prompt_index"][:, 0, 0, 0].tolist() == [5, 5, 2]
    assert not torch.equal(rollout["action"][0], rollout["action"][1])  # one prompt, two seeds


def test_any_policy_can_be_collected_stepwise() -> None:
    env = make_env(6)
    assert collect_stepwise(env, RandomTokenPolicy(6, tokens_per_step=6)).batch_size == (3, 4, 6)


def test_policy_and_env_must_fit() -> None:
    with pytest.raises(ValueError, match="in 3 steps, the env .* in 36"):
        collect(make_env(1), make_policy(make_env("frame")))
