"""The fused collector gives what `env.rollout` defines, bit for bit, without its memory."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from small_policies import grouped_mineworld, small_denoising_policy, small_policy
from tensordict import TensorDict
from torchrl.envs.utils import RandomPolicy

from rlir_agents.policies import DenoisingPolicy, TokenPolicy
from rlir_agents.rollouts import collect, collect_stepwise
from rlir_env.envs import DenoisingEnv, TokenGenerationEnv, VideoGenerationEnv
from rlir_env.gym import GenerationGymEnv
from rlir_env.testing import identity_world

WORLD = identity_world(grid_size=(2, 6), num_frames=4)


def token_env(tokens_per_step: int | str = "frame", num_prompts: int = 3, group_size: int = 4) -> TokenGenerationEnv:
    """12 tokens a frame: six divisors."""
    return WORLD.env(num_prompts=num_prompts, group_size=group_size, tokens_per_step=tokens_per_step)


def denoising_env(steps_per_action: int | str = "frame", num_prompts: int = 3, group_size: int = 4) -> DenoisingEnv:
    """6 denoising steps a frame: four divisors."""
    return WORLD.denoising_env(
        num_prompts=num_prompts, group_size=group_size, num_denoising_steps=6, steps_per_action=steps_per_action
    )


def token_policy(env: TokenGenerationEnv, **settings: object) -> TokenPolicy:
    return small_policy(env, grouped_mineworld, **settings)


class Paradigm(NamedTuple):
    """What differs: the env, a policy for it, how many pieces a step may take, and what a policy can be set to."""

    make_env: Callable[..., VideoGenerationEnv]
    make_policy: Callable[..., TokenPolicy | DenoisingPolicy]
    granularities: tuple[int | str, ...]
    settings: tuple[dict[str, object], ...]
    video: str


AUTOREGRESSIVE = Paradigm(
    token_env,
    token_policy,
    (1, 2, 3, 4, 6, "frame"),
    ({"top_p": 0.6}, {"greedy": True}, {"temperature": 0.5}),
    "token",
)
DIFFUSION = Paradigm(
    denoising_env,
    small_denoising_policy,
    (1, 2, 3, "frame"),
    (
        {"context_timestep": 0.25},
        {"sde_window": (1, 2), "select_per": "video", "selected_fraction": 0.5},
        {"variant": "flow", "mean": "exact_variance", "log_prob_reduction": "sum"},
        {"variant": "cps", "noise_level": 0.8},
    ),
    "latent",
)
PARADIGMS = {"autoregressive": AUTOREGRESSIVE, "diffusion": DIFFUSION}
both = pytest.mark.parametrize("paradigm", PARADIGMS.values(), ids=PARADIGMS)


def name_of(value: object) -> str:
    return value.video if isinstance(value, Paradigm) else str(value)


def assert_identical(first: TensorDict, second: TensorDict) -> None:
    assert first.batch_size == second.batch_size
    assert set(first.keys(True, True)) == set(second.keys(True, True))
    for key in first.keys(True, True):
        assert first[key].dtype == second[key].dtype, key
        assert torch.equal(first[key], second[key]), key


@pytest.mark.parametrize(
    ("paradigm", "granularity", "autocast_dtype"),
    [(one, k, None) for one in PARADIGMS.values() for k in one.granularities]
    + [(one, k, torch.bfloat16) for one in PARADIGMS.values() for k in (1, "frame")],
    ids=name_of,
)
def test_fused_is_stepwise_bitwise(
    paradigm: Paradigm, granularity: int | str, autocast_dtype: torch.dtype | None
) -> None:
    env = paradigm.make_env(granularity)
    policy = paradigm.make_policy(env, autocast_dtype=autocast_dtype)
    for _ in range(2):  # the second time the cache's memory is in use
        state = env.reset()
        fused = collect(env, policy, state.clone())
        # A policy object of its own: nothing may leak from the fused collector through the cache.
        other = paradigm.make_policy(env, autocast_dtype=autocast_dtype)
        assert_identical(fused, collect_stepwise(env, other, state.clone()))
        assert_identical(fused, collect_stepwise(env, policy, state.clone()))


@pytest.mark.parametrize(
    ("paradigm", "settings"), [(one, settings) for one in PARADIGMS.values() for settings in one.settings], ids=name_of
)
def test_fused_is_stepwise_for_every_sampler(paradigm: Paradigm, settings: dict[str, object]) -> None:
    env = paradigm.make_env(2)
    policy, state = paradigm.make_policy(env, **settings), env.reset()
    assert_identical(collect(env, policy, state.clone()), collect_stepwise(env, policy, state.clone()))


@both
def test_parts_of_a_batch_give_the_batch(paradigm: Paradigm, monkeypatch: pytest.MonkeyPatch) -> None:
    env = paradigm.make_env()
    policy, state = paradigm.make_policy(env), env.reset()
    whole = collect(env, policy, state.clone())
    sizes: dict[str, list[int]] = {"generate": [], "_score": []}

    def count_rows(owner: type, name: str) -> None:
        method = getattr(owner, name)

        def counting(self: object, rows: TensorDict) -> TensorDict:
            sizes[name].append(len(rows))
            return method(self, rows)

        monkeypatch.setattr(owner, name, counting)

    count_rows(type(policy), "generate")
    count_rows(VideoGenerationEnv, "_score")
    height, width = env.tokenizer.frame_size
    monkeypatch.setattr("rlir_env.envs.base._DECODED_NUMBERS", 5 * 4 * 3 * height * width)
    parts = collect(env, policy, state.clone(), batch_size=7)  # not whole groups
    assert sizes == {"generate": [7, 5], "_score": [5, 5, 2]}
    assert set(parts.keys(True, True)) == set(whole.keys(True, True))
    for key in whole.keys(True, True):
        torch.testing.assert_close(parts[key], whole[key], msg=str(key))


@both
def test_granularities_sample_the_same_video(paradigm: Paradigm) -> None:
    videos = []
    for granularity in (1, 3, "frame"):
        env = paradigm.make_env(granularity)
        rollout = collect(env, paradigm.make_policy(env))
        videos.append([rollout[key].flatten(2, 3) for key in ("action", "action_log_prob")])
    for actions, log_probs in videos[1:]:
        assert torch.equal(actions, videos[0][0]) and torch.equal(log_probs, videos[0][1])


CONSTANTS = {"game_action": (3, 2), "prompt_index": (1,), "prompt_seed": (1,), "episode_seed": (1,), "group_id": (1,)}
OUTCOME = {
    ("next", "reward"): (1,),
    ("next", "terminated"): (1,),
    ("next", "done"): (1,),
    ("next", "frame_reward"): (3,),
    ("next", "frame_match"): (3, 2),
    ("next", "inferred_game_action"): (3, 2),
}
LENGTH = 4 * 12 + 3 * 2  # L: four frames of 12 tokens, three words of 2
SHAPES = {
    "autoregressive": {
        "token": (LENGTH,),
        "position": (1,),
        "frame_index": (1,),
        "game_action_word": (3, 2),
        "action": (12,),
        "action_log_prob": (12,),
    },
    "diffusion": {
        "latent": (4, 1, 2, 6),
        "frame_index": (1,),
        "denoising_step": (1,),
        "timestep": (1,),
        "next_timestep": (1,),
        "action": (6, 1, 2, 6),
        "action_log_prob": (6,),
        "loss_mask": (6,),
    },
}


@pytest.mark.parametrize("name", PARADIGMS)
def test_layout(name: str) -> None:
    env = PARADIGMS[name].make_env("frame", num_prompts=3, group_size=4)
    rollout = collect(env, PARADIGMS[name].make_policy(env))
    shapes = SHAPES[name] | CONSTANTS | OUTCOME
    for key, shape in shapes.items():
        assert rollout[key].shape == (3, 4, 3, *shape), key
    assert {key for key in rollout.keys() if key != "next"} - {"done", "terminated"} == set(SHAPES[name] | CONSTANTS)
    assert rollout["frame_index"][0, 0].flatten().tolist() == [1, 2, 3]
    assert (rollout["group_id"] == rollout["group_id"][:, :1, :1]).all()
    assert rollout["next", "reward"][:, :, :-1].eq(0).all()
    assert rollout["next", "terminated"][0, 0].flatten().tolist() == [False, False, True]


def test_positions_are_where_tokens_end() -> None:
    env = token_env()
    rollout = collect(env, token_policy(env))
    assert rollout["position"][0, 0].flatten().tolist() == [14, 28, 42]  # K + A, then a block of 14 further each
    assert rollout["next", "position"][0, 0].flatten().tolist() == [28, 42, LENGTH]
    assert (rollout["token"] >= 0).sum(-1).equal(rollout["position"].squeeze(-1))


@both
def test_states_share_memory_and_constants_are_views(paradigm: Paradigm) -> None:
    env = paradigm.make_env(1)
    rollout = collect(env, paradigm.make_policy(env))
    for key in env.state_spec.keys():
        assert rollout[key].stride(2) == 0, key
    state, following = rollout[paradigm.video], rollout["next", paradigm.video]
    assert state.untyped_storage().data_ptr() == following.untyped_storage().data_ptr()


@both
def test_evaluation_chooses_prompts_and_seeds(paradigm: Paradigm) -> None:
    env = paradigm.make_env(num_prompts=3, group_size=1)
    policy = paradigm.make_policy(env)
    index, seed = torch.tensor([5, 5, 2]), torch.tensor([1, 2, 1])
    rollout = collect(env, policy, env.initial_state(index, seed))
    again = collect(env, policy, env.initial_state(index.flip(0), seed.flip(0)))
    assert torch.equal(rollout["action"], again["action"].flip(0))
    assert rollout["prompt_index"][:, 0, 0, 0].tolist() == [5, 5, 2]
    assert not torch.equal(rollout["action"][0], rollout["action"][1])  # one prompt, two seeds


@both
def test_a_policy_plays_through_gymnasium_what_it_plays_through_torchrl(paradigm: Paradigm) -> None:
    """Observation and info are all that a policy needs: the observation is Markov, the seeds are its noise."""
    core = paradigm.make_env(6, num_prompts=1, group_size=1)
    policy = paradigm.make_policy(core)
    env = GenerationGymEnv(core)
    observation, info = env.reset(options={"prompt_index": 7, "episode_seed": 3})
    video = collect(core, policy, core.initial_state(torch.tensor([7]), torch.tensor([3])))
    for step in range(core.num_steps):
        seen = {key: torch.as_tensor(value)[None] for key, value in observation.items()}
        seeds = {key: torch.tensor([[info[key]]]) for key in ("prompt_seed", "episode_seed")}
        action = policy(TensorDict(seen | seeds, batch_size=[1]))["action"]
        assert torch.equal(action[0], video["action"][0, 0, step])
        observation, reward, terminated, _, info = env.step(action.reshape(env.action_space.shape).numpy())
    assert terminated and reward == pytest.approx(video["next", "reward"][0, 0, -1].item())


@both
def test_any_policy_can_be_collected_stepwise(paradigm: Paradigm) -> None:
    env = paradigm.make_env(6)
    assert collect_stepwise(env, RandomPolicy(env.action_spec)).batch_size == (3, 4, env.num_steps)


@both
def test_policy_and_env_must_fit(paradigm: Paradigm) -> None:
    coarse, fine = paradigm.make_env("frame"), paradigm.make_env(1)
    with pytest.raises(ValueError, match=f"in 3 steps, the env .* in {fine.num_steps}"):
        collect(fine, paradigm.make_policy(coarse))


def test_the_grid_is_part_of_the_layout() -> None:
    policy = small_denoising_policy(denoising_env())
    with pytest.raises(ValueError, match=r"make the policy from env\.interface"):
        collect(WORLD.denoising_env(num_denoising_steps=5, steps_per_action="frame"), policy)
