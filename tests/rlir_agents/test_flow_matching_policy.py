"""Flow matching in the place of an SDE's log-probs: what it is by definition, and that rollout and losses agree."""

import pytest
import torch
from small_policies import small_denoising_policy
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives import ClipPPOLoss

from rlir_agents.losses import GRPOLoss
from rlir_agents.policies import DenoisingPolicy, FlowMatchingPolicy
from rlir_agents.rollouts import collect, collect_stepwise
from rlir_agents.scoring import reference_entries
from rlir_agents.world_models import LatentSampler
from rlir_env.envs import DenoisingEnv
from rlir_env.noise import CONTEXT_NOISE, step_normal, step_uniform
from rlir_env.testing import identity_world

P, G, F, N = 2, 3, 4, 4  # prompts, siblings, frames, denoising steps of a frame
SHAPE = (1, 2, 2)
WORLD = identity_world(grid_size=SHAPE[1:], num_frames=F)


def make_env(steps_per_action: int | str = "frame") -> DenoisingEnv:
    return WORLD.denoising_env(
        num_prompts=P,
        group_size=G,
        steps_per_action=steps_per_action,
        num_denoising_steps=N,
        is_initial_noise_shared=False,
    )


def make_policy(env: DenoisingEnv, **settings) -> DenoisingPolicy:
    return small_denoising_policy(env, make=FlowMatchingPolicy, **settings)


@pytest.mark.parametrize("context_timestep", [0.0, 0.25])
@pytest.mark.parametrize(
    "settings", [{}, {"order": 2}, {"variant": "dance", "selected_fraction": 1.0, "log_prob_reduction": "sum"}]
)
def test_rollout_and_loss_agree(context_timestep: float, settings: dict) -> None:
    env = make_env()
    policy = make_policy(env, context_timestep=context_timestep, **settings)
    rollout = collect(env, policy)
    assert (rollout["loss_mask"].sum(-1) == int(settings.get("selected_fraction", 0.6) * N)).all()
    log_prob = policy.get_dist(rollout).log_prob(rollout["action"])
    assert log_prob.shape == (P, G, F - 1, N) and log_prob[rollout["loss_mask"]].std() > 0.01
    torch.testing.assert_close(log_prob, rollout["action_log_prob"], atol=1e-5, rtol=0)
    stepwise = collect_stepwise(env, policy, env.initial_state(*(rollout[key][:, :, 0].flatten() for key in SEEDS)))
    assert all((stepwise[key] == rollout[key]).all() for key in ("action", "action_log_prob", "loss_mask"))


SEEDS = ("prompt_index", "episode_seed", "group_id")


def errors_by_definition(policy: DenoisingPolicy, rollout: TensorDictBase) -> Tensor:
    """Errors of velocities ``[B, F-1, N, c, h, w]``, by whole forwards of the model."""
    rows = rollout.flatten(0, 1)
    seed, own, grid = rows["prompt_seed"][:, 0, 0], rows["episode_seed"][:, 0, 0], policy.layout.grid.float()
    frames = torch.cat([rows["latent"][:, 0, :1], rows["action"][:, :, -1]], dim=1)  # [B, F, c, h, w]
    noise = torch.stack([step_normal(seed, SHAPE, j, CONTEXT_NOISE) for j in range(F)], dim=1)
    seen = torch.lerp(frames, noise, policy.context_timestep)
    vector = policy.action_encoder.of_frames(rows["game_action"][:, 0])
    errors = torch.zeros(len(rows), F - 1, N, *SHAPE)
    for frame in range(1, F):
        for step in range(N):
            t = torch.lerp(grid[step], grid[step + 1], step_uniform(own, (1,), frame, N + step)[:, 0]).clamp(min=0.02)
            start = step_normal(own, SHAPE, frame, 2 * N + step)
            now = (1 - t[:, None, None, None]) * frames[:, frame] + t[:, None, None, None] * start
            times = torch.full((len(rows), frame + 1), policy.context_timestep)
            times[:, -1] = t
            video = torch.cat([seen[:, :frame], now[:, None]], dim=1)
            velocity = policy.world_model(video, times, vector[:, : frame + 1])[:, -1]
            errors[:, frame - 1, step] = velocity - (start - frames[:, frame])
    return errors


@pytest.mark.parametrize("context_timestep", [0.0, 0.25])
def test_gradients_are_those_of_flow_matching_weighted_by_advantages(context_timestep: float) -> None:
    env = make_env()
    policy = make_policy(env, context_timestep=context_timestep, selected_fraction=1.0)
    rollout = collect(env, policy)
    rollout["advantage"] = torch.randn(P, G, F - 1, 1)
    loss = ClipPPOLoss(policy, None, clip_epsilon=0.2, entropy_bonus=False, functional=False)
    loss(rollout)["loss_objective"].backward()
    found = {name: weight.grad.clone() for name, weight in policy.named_parameters()}
    policy.zero_grad()
    # At ratio 1 the clipped loss has the gradient of -mean(advantage * log-prob); log-probs are minus half the loss.
    half_squares = errors_by_definition(policy, rollout).square().mean((-3, -2, -1)) / 2
    (rollout["advantage"].flatten(0, 1) * half_squares).mean().backward()
    for name, weight in policy.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert max(gradient.abs().max() for gradient in found.values()) > 1e-3


def test_the_leash_is_half_the_squared_distance_of_velocities() -> None:
    env = make_env()
    policy, reference = make_policy(env), make_policy(env)
    for weight in reference.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    rollout = collect(env, policy)
    rollout.update(reference_entries(reference, rollout.flatten(0, 1), micro_batch_size=4).unflatten(0, (P, G)))
    rollout["advantage"] = torch.zeros(P, G, F - 1, 1)
    losses = GRPOLoss(policy, kl_coeff=0.3)(rollout)
    distance = errors_by_definition(policy, rollout) - errors_by_definition(reference, rollout)
    expected = distance.square().mean((-3, -2, -1))[rollout["loss_mask"].flatten(0, 1)].mean() / 2
    torch.testing.assert_close(losses["kl_to_ref"], expected.detach(), atol=1e-6, rtol=1e-4)
    found = torch.autograd.grad(losses["loss_kl_to_ref"], list(policy.parameters()))
    wanted = torch.autograd.grad(0.3 * expected, list(policy.parameters()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    assert max(gradient.abs().max() for gradient in found) > 1e-4


def test_one_update_needs_no_log_prob_of_the_rollout() -> None:
    env = make_env()
    policy, lazy = make_policy(env), make_policy(env, log_prob_at_collection=False)
    rollout, without = collect(env, policy), collect(make_env(), lazy)
    assert "action_log_prob" not in without.keys() and torch.equal(without["action"], rollout["action"])
    assert lazy.num_forwards_per_frame == N < policy.num_forwards_per_frame
    advantage = torch.randn(P, G, F - 1, 1)
    gradients, figures = [], []
    for one, batch in ((policy, rollout), (lazy, without)):
        losses = GRPOLoss(one)(batch.set("advantage", advantage))
        gradients.append(torch.autograd.grad(losses["loss_objective"], list(one.parameters())))
        figures.append(losses)
    assert figures[1]["max_ratio"] == 1 and figures[1]["clip_fraction"] == 0
    assert "action_log_prob" not in without.keys()  # a loss writes nothing into what it is given
    for found, expected in zip(*reversed(gradients), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_videos_are_those_of_the_ode() -> None:
    env = make_env()
    policy = make_policy(env)
    rollout = collect(env, policy)
    state = env.initial_state(*(rollout[key][:, :, 0].flatten() for key in SEEDS))
    solved = collect(env, small_denoising_policy(env).without_noise(), state)
    torch.testing.assert_close(rollout["action"], solved["action"], atol=1e-6, rtol=0)
    assert (rollout["action"][:, 0] - rollout["action"][:, 1]).abs().amax((1, 2, 3, 4, 5)).min() > 0.1  # siblings


def test_videos_of_second_order_are_those_of_evaluation() -> None:
    env = make_env()
    policy = make_policy(env, order=2)
    rollout = collect(env, policy)
    rows = rollout.flatten(0, 1)
    sampler = LatentSampler(env.layout.grid, order=2)
    vector = policy.action_encoder.of_frames(rows["game_action"][:, 0])
    videos = sampler.sample(policy.world_model, rows["latent"][:, 0, :1], vector, rows["prompt_seed"][:, 0, 0])
    torch.testing.assert_close(rows["action"][:, :, -1], videos[:, 1:], atol=1e-6, rtol=0)
    euler = collect(make_env(), make_policy(env))
    assert (euler["action"][..., -1, :, :, :] - rollout["action"][..., -1, :, :, :]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="order=1"):
        make_policy(env, order=2, variant="dance")


def test_frames_are_looked_at_in_the_window() -> None:
    env = make_env()
    policy = make_policy(env, loss_window=(1, 2), selected_fraction=1.0)
    rollout = collect(env, policy)
    assert (rollout["loss_mask"] == torch.tensor([False, True, True, False])).all()
    assert policy.num_forwards_per_frame == N + 2
    for last in ((N - 1, 1), (0, N)):  # unlike an SDE's, a window may hold the last step
        mask = collect(env, make_policy(env, loss_window=last, selected_fraction=1.0))["loss_mask"]
        assert mask[..., -1].all() and mask.float().mean() == last[1] / N
    for wrong in ((0, N + 1), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="loss_window"):
            make_policy(env, loss_window=wrong)


def test_an_env_step_is_a_frame() -> None:
    with pytest.raises(ValueError, match='take steps_per_action="frame"'):
        make_policy(make_env(2))
