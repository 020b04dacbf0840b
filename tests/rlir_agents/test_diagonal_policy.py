"""Diagonal decoding as a policy: a density over frames, the same by passes with a cache and by one masked forward."""

import copy
import itertools
import pickle

import pytest
import torch
from small_policies import grouped_mineworld, small_policy

from rlir_agents.losses import GRPOLoss
from rlir_agents.policies import DiagonalTokenPolicy, TokenPolicy
from rlir_agents.rollouts import collect, collect_stepwise
from rlir_agents.world_models import TokenSampler
from rlir_agents.world_models.decoding import generate
from rlir_env.envs import TokenGenerationEnv
from rlir_env.testing import identity_world

P, G, F = 2, 3, 4


def make_env(grid_size: tuple[int, int] = (2, 3), num_frames: int = F) -> TokenGenerationEnv:
    world = identity_world(grid_size=grid_size, num_frames=num_frames)
    return world.env(num_prompts=P, group_size=G, tokens_per_step="frame")


def make_policy(env: TokenGenerationEnv, grid_size: tuple[int, int] = (2, 3), **settings: object) -> TokenPolicy:
    return small_policy(env, grouped_mineworld, make=DiagonalTokenPolicy, grid_size=grid_size, **settings)


@pytest.mark.parametrize("grid_size, window", [((2, 3), 1), ((2, 3), 2), ((4, 2), 1), ((2, 3), 3)])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "top_p": 0.8}])
def test_passes_and_one_forward_agree(grid_size: tuple[int, int], window: int, sampling: dict) -> None:
    env = make_env(grid_size)
    policy = make_policy(env, grid_size, window=window, **sampling)
    rollout = collect(env, policy)
    log_prob = policy.get_dist(rollout).log_prob(rollout["action"])
    assert rollout["action_log_prob"].std() > 0.1
    torch.testing.assert_close(log_prob, rollout["action_log_prob"], atol=1e-5, rtol=0)
    steps = rollout.flatten()[torch.randperm(rollout.numel())]  # single steps in any order
    flat = policy.get_dist(steps).log_prob(steps["action"])
    torch.testing.assert_close(flat, steps["action_log_prob"], atol=1e-5, rtol=0)
    # The model's own distribution is another one: with its log-probs ratios would be wrong.
    own = small_policy(env, grouped_mineworld, **sampling).get_dist(rollout).log_prob(rollout["action"])
    assert (own - log_prob).abs().max() > 0.01


def test_stepwise_and_fused_are_one() -> None:
    env = make_env()
    policy = make_policy(env)
    rollout = collect(env, policy)
    start = env.initial_state(
        *(rollout[key][:, :, 0].flatten() for key in ("prompt_index", "episode_seed", "group_id"))
    )
    for other in (policy, copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        stepwise = collect_stepwise(env, other, start.clone())
        assert all(torch.equal(stepwise[key], rollout[key]) for key in ("action", "action_log_prob"))


def test_a_video_can_be_gone_on_with_from_its_middle() -> None:
    env = make_env()
    rollout = collect(env, make_policy(env))
    for step in range(1, F - 1):
        state = rollout[:, :, step].flatten().select("token", "position", "episode_seed", "game_action_word")
        taken = make_policy(env)(state)  # which has read nothing so far
        for key in ("action", "action_log_prob"):
            torch.testing.assert_close(taken[key], rollout[key][:, :, step].flatten(0, 1), atol=1e-6, rtol=0)


def test_videos_are_those_of_diagonal_decoding() -> None:
    env = make_env()
    policy = make_policy(env, window=1)
    rollout = collect(env, policy).flatten(0, 1)
    made = generate(
        policy.world_model,
        rollout["token"][:, 0, : env.layout.tokens_per_frame],
        rollout["game_action_word"][:, 0],
        "image_diagonal",
        window=1,
        sampler=TokenSampler(),
        grid_size=(2, 3),
        seed=rollout["episode_seed"][:, 0, 0],
    )
    assert torch.equal(made, rollout["action"].flatten(1))


def test_a_frame_takes_as_many_passes_as_there_are_diagonals() -> None:
    env = make_env((4, 2))
    policy = make_policy(env, (4, 2), window=1)
    assert policy.num_passes == (F - 1) * 5 < small_policy(env).num_passes == (F - 1) * 8


def test_it_is_a_density() -> None:
    """Over all that a frame can be, probabilities add up to one."""
    env = make_env((2, 2), num_frames=2)
    policy = make_policy(env, (2, 2), window=1)
    every = torch.tensor(list(itertools.product(range(env.num_codes), repeat=4)))
    state = env.reset().flatten()[:1].select("token", "position")
    steps = state.expand(len(every)).clone().set("action", every)
    total = policy.get_dist(steps).log_prob(every).sum(-1).exp().sum()
    torch.testing.assert_close(total, torch.ones(()), atol=1e-5, rtol=0)


def test_every_weight_learns_and_the_cache_follows() -> None:
    env = make_env()
    policy = make_policy(env)
    rollout = collect(env, policy)
    rollout["advantage"] = torch.randn(*rollout.shape, 1)
    losses = GRPOLoss(policy)(rollout)
    losses["loss_objective"].backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in policy.parameters())
    torch.testing.assert_close(losses["max_ratio"], torch.ones(()), atol=1e-4, rtol=0)
    torch.optim.SGD(policy.parameters(), lr=1.0).step()
    again = collect(env, policy)
    log_prob = policy.get_dist(again).log_prob(again["action"])
    torch.testing.assert_close(log_prob, again["action_log_prob"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"grid_size": (3, 3)}, "rows and columns of the 6 codes"),
        ({"window": 4}, "trails the one above by 1 to 3 columns"),
        ({"tokens_per_step": 2}, 'take tokens_per_step="frame"'),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict, message: str) -> None:
    env = make_env()
    model = make_policy(env).world_model
    with pytest.raises(ValueError, match=message):
        DiagonalTokenPolicy(model, env.layout, **{"grid_size": (2, 3), **settings})


def test_other_world_models_are_refused() -> None:
    env = make_env()
    with pytest.raises(ValueError, match="take a MineWorld, or policy=token"):
        DiagonalTokenPolicy(torch.nn.Linear(1, 1), env.layout, grid_size=(2, 3))
