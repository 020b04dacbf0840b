"""The denoising policy and its critic: two modes, one distribution, inside TorchRL's own losses."""

import copy
from functools import partial

import pytest
import torch
from dense_attention import dense_attention
from small_policies import small_denoising_policy
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import set_recurrent_mode
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from rlir_agents.losses import GRPOLoss
from rlir_agents.policies import DenoisingPolicy, LatentValue
from rlir_agents.rollouts import collect
from rlir_agents.world_models import frame_transformer
from rlir_env.envs import DenoisingEnv
from rlir_env.noise import CONTEXT_NOISE, step_normal
from rlir_env.testing import identity_world

P, G, F, N = 2, 3, 4, 4  # prompts, siblings, frames, denoising steps of a frame
SHAPE = (1, 2, 2)
GRANULARITIES = [1, 2, "frame"]
WORLD = identity_world(grid_size=SHAPE[1:], num_frames=F)


def make_env(
    steps_per_action: int | str = "frame", num_prompts: int = P, group_size: int = G, **settings
) -> DenoisingEnv:
    settings = {"num_denoising_steps": N, **settings}
    return WORLD.denoising_env(
        num_prompts=num_prompts, group_size=group_size, steps_per_action=steps_per_action, **settings
    )


def perturb(policy: DenoisingPolicy) -> None:
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.1 * torch.randn_like(weight)


def by_frame(entry: Tensor) -> Tensor:
    """``[P, G, T, k, ...]`` as ``[P, G, F-1, N, ...]``."""
    return entry.flatten(2, 3).unflatten(2, (F - 1, -1))


def means(policy: DenoisingPolicy, rollout: TensorDict) -> Tensor:
    """Where the steps that sample lead, all of them being selected, ``[P, G, F-1, N-1, c, h, w]``."""
    assert policy.selected_fraction == 1
    return policy.get_dist(rollout).mean_latent.detach().unflatten(0, (*rollout.shape[:2], F - 1, N - 1))


def drift(policy: DenoisingPolicy, rollout: TensorDict) -> float:
    """How far the log-probs of sequence mode are from those of the rollout, at most."""
    with torch.no_grad():
        found = policy.get_dist(rollout).log_prob(rollout["action"])
    return (found - rollout["action_log_prob"]).abs().max().item()


@pytest.mark.parametrize("steps_per_action", GRANULARITIES)
@pytest.mark.parametrize("context_timestep", [0.0, 0.25])
@pytest.mark.parametrize(
    "settings",
    [{}, {"selected_fraction": 1.0, "log_prob_reduction": "sum", "variant": "flow", "mean": "exact_variance"}],
    ids=["preset", "all steps, summed"],
)
def test_step_and_sequence_mode_agree(steps_per_action: int | str, context_timestep: float, settings: dict) -> None:
    env = make_env(steps_per_action)
    policy = small_denoising_policy(env, context_timestep=context_timestep, **settings)
    rollout = collect(env, policy)
    log_prob = policy.get_dist(rollout).log_prob(rollout["action"])
    assert log_prob.dtype == torch.float32 and log_prob.shape == (P, G, env.num_steps, env.steps_per_action)
    assert log_prob.std() > 0.01
    torch.testing.assert_close(log_prob, rollout["action_log_prob"], atol=1e-5, rtol=0)
    # A flat batch of single steps, in any order, is the same policy again.
    steps = rollout.flatten()[torch.randperm(rollout.numel(), generator=torch.Generator().manual_seed(0))]
    flat = policy.get_dist(steps).log_prob(steps["action"])
    torch.testing.assert_close(flat, steps["action_log_prob"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("context_timestep", [0.0, 0.25])
def test_log_prob_is_what_one_forward_of_the_model_says(context_timestep: float) -> None:
    """By definition: finished frames with noise of (prompt seed, frame), the one under way, actions shifted by one."""
    env = make_env(1)
    policy = small_denoising_policy(env, context_timestep=context_timestep, selected_fraction=1.0)
    rollout = collect(env, policy).flatten(0, 1)
    model, grid = policy.world_model, env.layout.grid.float()
    vector = torch.zeros(len(rollout), F, policy.action_encoder.dim)
    vector[:, 1:] = policy.action_encoder(rollout["game_action"][:, 0])  # frame 0 has no game action
    for index in range(env.num_steps):
        frame, step = index // N + 1, index % N
        state = rollout[:, index]
        if step == N - 1:
            assert state["action_log_prob"].eq(0).all()
            continue
        noise = [step_normal(state["prompt_seed"].squeeze(-1), SHAPE, j, CONTEXT_NOISE) for j in range(frame)]
        finished = torch.lerp(state["latent"][:, :frame], torch.stack(noise, dim=1), context_timestep)
        video = torch.cat([finished, state["latent"][:, frame, None]], dim=1)
        times = torch.full(video.shape[:2], context_timestep)
        times[:, -1] = grid[step]
        with torch.no_grad():
            velocity = model(video, times, vector[:, : frame + 1])[:, -1]
        now, following = grid[step], grid[step + 1]
        std = 0.75 * (now - following).sqrt()  # DanceGRPO's Eq. 11, with the paper's noise level
        latent = state["latent"][:, frame]
        data, pure = latent - now * velocity, latent + (1 - now) * velocity
        mean = (1 - following) * data + (following - std**2 / (2 * now)) * pure
        expected = Normal(mean, std).log_prob(state["action"][:, 0]).mean((1, 2, 3))
        torch.testing.assert_close(state["action_log_prob"][:, 0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("steps_per_action", [1, "frame"])
def test_what_breaks_the_log_probs(steps_per_action: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_env(steps_per_action)
    policy = small_denoising_policy(env, context_timestep=0.25)
    rollout = collect(env, policy)
    assert drift(policy, rollout) < 1e-5
    redrawn = rollout.copy().set("prompt_seed", rollout["prompt_seed"] + 1)
    assert drift(policy, redrawn) > 1e-3
    monkeypatch.setattr(frame_transformer, "frame_attention", dense_attention)
    assert drift(policy, rollout) < 1e-5
    monkeypatch.setattr(frame_transformer, "frame_attention", partial(dense_attention, sees_own_clean_copy=True))
    assert drift(policy, rollout) > 1e-3


def test_clean_context_needs_no_noise() -> None:
    env = make_env()
    policy = small_denoising_policy(env)
    rollout = collect(env, policy)
    before = policy.get_dist(rollout).log_prob(rollout["action"])
    redrawn = rollout.copy().set("prompt_seed", rollout["prompt_seed"] + 1)
    assert torch.equal(policy.get_dist(redrawn).log_prob(rollout["action"]), before)


@pytest.mark.parametrize("frame", [1, 2, 3])
@pytest.mark.parametrize("steps_per_action", [1, "frame"])
def test_a_noisy_latent_is_seen_by_its_own_step_alone(steps_per_action: int | str, frame: int) -> None:
    env = make_env(steps_per_action)
    policy = small_denoising_policy(env, selected_fraction=1.0, context_timestep=0.25)
    rollout = collect(env, policy)
    before, changed = means(policy, rollout), rollout.clone()
    if steps_per_action == 1:  # the latent before step 1 is a state, else the action of the step before
        changed["latent"][:, :, (frame - 1) * N + 1, frame] += 1
    else:
        changed["action"][:, :, frame - 1, 0] += 1
    difference = (means(policy, changed) - before).abs().amax((0, 1, 4, 5, 6))  # [F-1, N-1]
    assert difference[frame - 1, 1] > 1e-2
    difference[frame - 1, 1] = 0
    assert difference.max() == 0


@pytest.mark.parametrize("frame", [0, 1, 2, 3])
@pytest.mark.parametrize("steps_per_action", [1, "frame"])
def test_a_finished_frame_is_seen_by_later_ones_alone(steps_per_action: int | str, frame: int) -> None:
    env = make_env(steps_per_action)
    policy = small_denoising_policy(env, selected_fraction=1.0)
    rollout = collect(env, policy)
    before, changed = means(policy, rollout), rollout.clone()
    is_finished = changed["frame_index"][0, 0, :, 0] > frame
    changed["latent"][:, :, is_finished, frame] += 1
    difference = (means(policy, changed) - before).abs().amax((0, 1, 3, 4, 5, 6))  # [F-1]
    assert (difference[frame:] > 1e-3).all()
    assert difference[:frame].eq(0).all()


def test_siblings_differ_under_every_exploration_type_and_start_alike() -> None:
    for exploration in (ExplorationType.DETERMINISTIC, ExplorationType.MODE, ExplorationType.RANDOM):
        env = make_env(1, num_prompts=2, group_size=8)
        with set_exploration_type(exploration):
            rollout = collect(env, small_denoising_policy(env))
        videos = by_frame(rollout["action"])[:, :, :, -1].flatten(2)  # [P, G, ...]
        assert len(videos.flatten(0, 1).unique(dim=0)) == 16
        assert (videos[:, 1:] - videos[:, :1]).abs().amax(-1).min() > 0.1
        starts = rollout["latent"][:, :, ::N][:, :, torch.arange(F - 1), torch.arange(1, F)]  # [P, G, F-1, c, h, w]
        assert (starts == starts[:, :1]).all()
        assert len(starts[:, 0].flatten(0, 1).flatten(1).unique(dim=0)) == 2 * (F - 1)


def test_noise_is_of_episode_frame_and_step() -> None:
    """What a step adds to its mean is standard normal, and everywhere another."""
    env = make_env(1, num_prompts=4, group_size=8)
    policy = small_denoising_policy(env, selected_fraction=1.0)
    rollout = collect(env, policy)
    std = policy.table.std[:-1].reshape(N - 1, 1, 1, 1)
    kicks = (by_frame(rollout["action"])[:, :, :, :-1] - means(policy, rollout)) / std
    # 4 * 8 * 3 * 3 * 4 = 1152 numbers: the mean's sd is .03, that of the standard deviation .02.
    assert kicks.mean().abs() < 0.12 and kicks.std().item() == pytest.approx(1, abs=0.08)
    assert len(kicks.flatten(0, 3).flatten(1).unique(dim=0)) == 4 * 8 * 3 * 3


def test_videos_do_not_depend_on_the_batch() -> None:
    env = make_env(1, num_prompts=4, group_size=4)
    state = env.reset()
    whole = small_denoising_policy(env).generate(state.clone())
    torch.manual_seed(99)  # the global generator has no say
    rows = torch.tensor([13, 2, 7])
    policy = small_denoising_policy(env)
    torch.manual_seed(100)
    part = policy.generate(state[rows].clone())
    assert torch.equal(part["loss_mask"], whole["loss_mask"][rows])
    torch.testing.assert_close(part["action"], whole["action"][rows], atol=1e-5, rtol=0)
    torch.testing.assert_close(part["action_log_prob"], whole["action_log_prob"][rows], atol=1e-5, rtol=0)


@pytest.mark.parametrize("select_per", ["frame", "video"])
@pytest.mark.parametrize(("fraction", "count"), [(0.6, 5), (1.0, 9), (0.01, 1)])
def test_selected_are_so_many_of_the_steps_that_sample(select_per: str, fraction: float, count: int) -> None:
    env = make_env("frame", num_prompts=2, group_size=16, num_denoising_steps=10)
    policy = small_denoising_policy(env, selected_fraction=fraction, select_per=select_per)
    first, second = collect(env, policy), collect(env, policy)
    mask = by_frame(first["loss_mask"])  # [P, G, F-1, N]
    assert (mask.sum(-1) == count).all()  # the whole part of fraction * 9, at least one
    assert not mask[..., -1].any()  # the last step is deterministic
    assert torch.equal(policy.get_dist(first).is_counted, first["loss_mask"])
    assert torch.equal(first["action_log_prob"] != 0, first["loss_mask"])
    if count == 9:
        return
    assert (mask == mask[:, :, :1]).all() == (select_per == "video")
    assert not torch.equal(first["loss_mask"], second["loss_mask"])  # drawn anew for every rollout
    # 2 * 16 subsets, or three times as many: every step has its turn.
    assert mask[..., :-1].flatten(0, 2).any(0).all()


def test_a_window_leaves_the_other_steps_deterministic() -> None:
    env = make_env(1)
    policy = small_denoising_policy(env, sde_window=(1, 2), selected_fraction=1.0)
    rollout = collect(env, policy)
    mask = by_frame(rollout["loss_mask"])
    assert mask.all(dim=(0, 1, 2)).tolist() == [False, True, True, False] == mask.any(dim=(0, 1, 2)).tolist()
    actions = by_frame(rollout["action"])
    assert (actions[:, :, 0, 0] == actions[:, :1, 0, 0]).all()  # frame 1 is the same for siblings until the window
    assert (actions[:, 0, 0, 1] != actions[:, 1, 0, 1]).any()


def test_cache_follows_the_frames_and_the_weights() -> None:
    env = make_env(2)
    policy = small_denoising_policy(env, context_timestep=0.25)
    first, second = env.rollout(6, policy), env.rollout(6, policy)
    keys = ["latent", "frame_index", "denoising_step", "game_action", "prompt_seed", "episode_seed"]
    # Alternating between two episodes: each call finds other frames than those it has read.
    for step in range(6):
        for rollout in (first, second):
            again = policy(rollout[:, step].select(*keys).clone())
            # Reading frames again, all at once, rounds otherwise than one after the other.
            torch.testing.assert_close(again["action"], rollout["action"][:, step], atol=1e-5, rtol=0)
    # In the middle of an episode, the rest is of the new weights, or of other game actions, or of other frames.
    state = first[:, 5].select(*keys)
    others = state.clone()
    others["latent"][:, 1] += 1
    pressed = state.clone()
    pressed["game_action"][..., 1] = 1 - pressed["game_action"][..., 1]
    for changed in (others, pressed):
        policy(state.clone())
        fresh = copy.deepcopy(policy)  # has read nothing
        action = policy(changed.clone())["action"]
        assert torch.equal(action, fresh(changed.clone())["action"])
        assert (action - first["action"][:, 5]).abs().max() > 1e-2
    policy(state.clone())
    perturb(policy)
    fresh = copy.deepcopy(policy)
    action = policy(state.clone())["action"]
    assert torch.equal(action, fresh(state.clone())["action"])
    assert (action - first["action"][:, 5]).abs().max() > 1e-2
    assert policy.cache_bytes > 0 and copy.deepcopy(policy).cache_bytes == 0


def test_wrong_batches_are_named() -> None:
    env = make_env(2)
    policy = small_denoising_policy(env)
    rollout = collect(env, policy)
    with pytest.raises(ValueError, match="get_dist"):
        policy(rollout.copy())
    for other in (1, 2):  # another step of the frame, another frame
        with pytest.raises(ValueError, match="lockstep"):
            policy(torch.stack([rollout[0, 0, 0], rollout[0, 0, other]]))
    for step in (1, 2):
        with pytest.raises(ValueError, match="just reset"):
            policy.generate(rollout[:, :, step].flatten())
    with pytest.raises(ValueError, match="one trajectory a row"):
        policy.get_dist(rollout.transpose(0, 2).contiguous())
    with pytest.raises(ValueError, match="one trajectory a row"):
        policy.get_dist(rollout.flip(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"select_per": "batch"}, "select_per='batch'"),
        ({"selected_fraction": 0.0}, "fraction=0.0"),
        ({"log_prob_reduction": "max"}, "reduction='max'"),
        ({"context_timestep": 1.0}, "context_timestep=1.0"),
        ({"variant": "ode"}, "samples nowhere"),
        ({"variant": "ddpm"}, "variant='ddpm'"),
        ({"noise_level": 0.0}, "noise_level=0.0"),
        ({"mean": "heun"}, "mean='heun'"),
        ({"sde_window": (3, 1)}, "does not fit 4 denoising steps"),
    ],
)
def test_wrong_settings_are_named(settings: dict, message: str) -> None:
    env = make_env()
    with pytest.raises(ValueError, match=message):
        small_denoising_policy(env, **settings)


def test_model_and_videos_must_fit() -> None:
    env = make_env()
    policy = small_denoising_policy(env)
    longer = identity_world(grid_size=SHAPE[1:], num_frames=F + 1).denoising_env()
    wider = identity_world(grid_size=(2, 3)).denoising_env()
    for other in (longer, wider):
        for make in (DenoisingPolicy, LatentValue):
            with pytest.raises(ValueError, match="the world model is made for at most 4"):
                make(policy.world_model, other.layout, action_encoder=policy.action_encoder)
    with pytest.raises(ValueError, match="39 numbers, the world model reads 5"):  # Minecraft is the default
        DenoisingPolicy(policy.world_model, env.layout)
    with pytest.raises(ValueError, match="divisor of the 4 denoising steps"):
        DenoisingPolicy(policy.world_model, env.layout, 3, action_encoder=policy.action_encoder)


def with_advantage(rollout: TensorDict) -> TensorDict:
    rollout["advantage"] = torch.randn(*rollout.batch_size, 1, generator=torch.Generator().manual_seed(3))
    return rollout


def clipped_loss(policy: DenoisingPolicy, functional: bool = False) -> ClipPPOLoss:
    loss = ClipPPOLoss(policy, None, critic_coeff=None, entropy_bonus=False, functional=functional)
    loss.loss_mask_key = "loss_mask"
    return loss


@pytest.mark.parametrize("autocast_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("steps_per_action", GRANULARITIES)
def test_before_the_first_update_the_ratio_is_one(
    steps_per_action: int | str, autocast_dtype: torch.dtype | None
) -> None:
    env = make_env(steps_per_action)
    policy = small_denoising_policy(env, context_timestep=0.25, autocast_dtype=autocast_dtype)
    rollout = with_advantage(collect(env, policy))
    if autocast_dtype is None:
        log_ratio = policy.get_dist(rollout).log_prob(rollout["action"]) - rollout["action_log_prob"]
        assert (log_ratio.exp() - 1).abs().max() < 1e-6
    rollout["action_log_prob"] = policy.get_dist(rollout).log_prob(rollout["action"]).detach()
    output = clipped_loss(policy)(rollout)
    assert output["max_ratio"] == 1 and output["mean_ratio"] == 1  # the same forward: exactly, in bfloat16 too


@pytest.mark.parametrize("steps_per_action", GRANULARITIES)
@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("is_flat", [False, True], ids=["[P,G,T]", "[B,T]"])
def test_stock_clipped_loss(steps_per_action: int | str, functional: bool, is_flat: bool) -> None:
    env = make_env(steps_per_action)
    policy = small_denoising_policy(env)
    rollout = with_advantage(collect(env, policy))
    rollout = rollout.flatten(0, 1) if is_flat else rollout
    perturb(policy)
    loss = clipped_loss(policy, functional)
    ratio = (policy.get_dist(rollout).log_prob(rollout["action"]) - rollout["action_log_prob"]).exp()  # [..., T, k]
    gain = torch.minimum(ratio * rollout["advantage"], ratio.clamp(0.8, 1.2) * rollout["advantage"])
    expected = -gain[rollout["loss_mask"]].mean()
    output = loss(rollout)
    assert output["clip_fraction"] > 0.02
    torch.testing.assert_close(output["loss_objective"], expected, atol=1e-6, rtol=1e-4)
    gradients = torch.autograd.grad(expected, list(policy.parameters()), allow_unused=True)
    output["loss_objective"].backward()
    parameters = loss.actor_network_params.values(True, True) if functional else policy.parameters()
    norms = [
        torch.stack([gradient.norm() for gradient in some if gradient is not None]).norm()
        for some in (gradients, [parameter.grad for parameter in parameters])
    ]
    assert norms[0] > 1e-3
    torch.testing.assert_close(norms[1], norms[0], atol=1e-6, rtol=1e-4)


def test_an_advantage_of_zero_moves_nothing() -> None:
    env = make_env()
    policy = small_denoising_policy(env)
    rollout = collect(env, policy)
    rollout["advantage"] = torch.zeros(*rollout.batch_size, 1)
    clipped_loss(policy)(rollout)["loss_objective"].backward()
    gradients = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.eq(0).all() for gradient in gradients)


def test_what_is_masked_has_no_part_in_the_loss() -> None:
    env = make_env(1)
    policy = small_denoising_policy(env)
    rollout = with_advantage(collect(env, policy))
    is_masked = ~rollout["loss_mask"]
    assert by_frame(is_masked)[..., -1].all() and by_frame(is_masked)[..., :-1].any()
    # No gradient comes through their log-probs, and they are zero: the loss cannot move them.
    log_prob = policy.get_dist(rollout).log_prob(rollout["action"])
    assert log_prob[is_masked].eq(0).all()
    through = torch.autograd.grad(log_prob[is_masked].sum(), list(policy.parameters()), retain_graph=True)
    assert all(gradient.eq(0).all() for gradient in through)
    counted = torch.autograd.grad(log_prob[rollout["loss_mask"]].sum(), list(policy.parameters()))
    assert max(gradient.abs().max() for gradient in counted) > 1e-2
    # Neither their advantages nor where they led is read.
    results = []
    for noise in (0.0, 5.0):
        changed = rollout.clone()
        changed["advantage"][is_masked] += noise
        changed["action"][is_masked] += noise
        objective = clipped_loss(policy)(changed)["loss_objective"]
        results.append([objective, *torch.autograd.grad(objective, list(policy.parameters()))])
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


def test_a_minibatch_may_have_nothing_that_counts() -> None:
    env = make_env(1)
    policy = small_denoising_policy(env)
    rollout = collect(env, policy)
    steps = rollout[~rollout["loss_mask"].squeeze(-1)]  # [n] single steps
    dist = policy.get_dist(steps)
    assert dist.batch_shape == (len(steps), 1) and dist.event_shape == SHAPE
    assert dist.log_prob(steps["action"]).eq(0).all() and dist.entropy().eq(0).all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_log_prob_entropy_and_divergence_are_those_of_normals(reduction: str) -> None:
    env = make_env("frame")
    policy = small_denoising_policy(env, log_prob_reduction=reduction)
    rollout = collect(env, policy)
    dist, mask = policy.get_dist(rollout), rollout["loss_mask"]
    std = policy.table.std.expand(P, G, F - 1, N)[mask]
    assert torch.equal(dist.std, std)
    normal = Normal(dist.mean_latent, std.reshape(-1, 1, 1, 1).expand_as(dist.mean_latent))
    ref_mean = dist.mean + torch.randn_like(dist.mean)
    reference = Normal(ref_mean[mask], normal.scale)
    reduce = getattr(torch, reduction)
    for found, expected in (
        (dist.log_prob(rollout["action"]), normal.log_prob(rollout["action"][mask])),
        (dist.entropy(), normal.entropy()),
        (dist.kl_to(ref_mean), kl_divergence(normal, reference)),
    ):
        torch.testing.assert_close(found[mask], reduce(expected, dim=(1, 2, 3)))
        assert found[~mask].eq(0).all()
    value = rollout["action"].clone().requires_grad_()  # the gradient is the policy's alone
    assert torch.autograd.grad(dist.log_prob(value).sum(), value, allow_unused=True) == (None,)


def make_critic(env: DenoisingEnv, **settings: float) -> LatentValue:
    critic = small_denoising_policy(env, **settings).make_critic()
    torch.manual_seed(1)
    torch.nn.init.normal_(critic.head.weight)
    return critic


@pytest.mark.parametrize("steps_per_action", [1, "frame"])
@pytest.mark.parametrize("context_timestep", [0.0, 0.25])
def test_value_reads_what_is_known_and_no_more(steps_per_action: int | str, context_timestep: float) -> None:
    env = make_env(steps_per_action)
    policy = small_denoising_policy(env, context_timestep=context_timestep)
    rollout = collect(env, policy).flatten(0, 1)
    critic = make_critic(env, context_timestep=context_timestep)
    values = critic(rollout.copy())["state_value"]
    assert values.shape == (P * G, env.num_steps, 1) and values.std() > 0.01
    for step in range(env.num_steps):  # state by state, nothing of the future at hand
        alone = critic(rollout[:, step].exclude("next", "action"))["state_value"]
        torch.testing.assert_close(values[:, step], alone, atol=1e-5, rtol=0)
    for key, other in (
        ("timestep", 0.5 * rollout["timestep"]),
        ("game_action", 1 - rollout["game_action"].clamp(max=1)),
    ):
        assert (critic(rollout.copy().set(key, other))["state_value"] - values).abs().max() > 1e-3, key
    fresh = policy.make_critic()
    assert fresh(rollout.copy())["state_value"].abs().max() == 0  # starts at zero
    ours = {weight.data_ptr() for weight in policy.parameters()}
    assert not ours & {weight.data_ptr() for weight in fresh.parameters()}  # the two learn apart


@pytest.mark.parametrize("steps_per_action", [1, "frame"])
def test_gae_and_clipped_loss_with_critic(steps_per_action: int | str) -> None:
    env = make_env(steps_per_action)
    policy, critic = small_denoising_policy(env), make_critic(env)
    rollout = collect(env, policy).flatten(0, 1)
    gamma, lmbda = 0.9, 0.7
    advantage = GAE(gamma=gamma, lmbda=lmbda, value_network=critic, shifted=True)
    with set_recurrent_mode(True), torch.no_grad():
        advantage(rollout)
    # By hand: delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lambda A_{t+1}; V = 0 after the end.
    values = critic(rollout.copy())["state_value"].detach()
    after = torch.cat([values[:, 1:], torch.zeros(P * G, 1, 1)], dim=1)
    delta = rollout["next", "reward"] + gamma * after - values
    running, expected = torch.zeros(P * G, 1), []
    for step in reversed(range(env.num_steps)):
        running = delta[:, step] + gamma * lmbda * running
        expected.insert(0, running)
    torch.testing.assert_close(rollout["advantage"], torch.stack(expected, 1), atol=1e-5, rtol=1e-4)
    loss = ClipPPOLoss(policy, critic, critic_coeff=1.0, entropy_bonus=False, functional=False)
    output = loss(rollout)
    target = torch.nn.functional.smooth_l1_loss(values, rollout["value_target"])
    torch.testing.assert_close(output["loss_critic"], target, atol=1e-5, rtol=1e-4)
    output["loss_critic"].backward()
    assert critic.head.weight.grad.abs().max() > 0
    assert max(weight.grad.abs().max() for weight in critic.world_model.parameters() if weight.grad is not None) > 0
    assert all(weight.grad is None for weight in policy.parameters())


@pytest.mark.parametrize("steps_per_action", GRANULARITIES)
def test_a_critic_learns_from_every_state_whatever_the_mask_says(steps_per_action: int | str) -> None:
    env = make_env(steps_per_action)
    policy, critic = small_denoising_policy(env), make_critic(env)
    rollout = collect(env, policy)
    target = torch.randn(rollout["next", "reward"].shape)
    rollout.update({"advantage": torch.zeros_like(target), "value_target": target})
    rollout["state_value"] = critic(rollout.copy())["state_value"].detach()
    with set_recurrent_mode(True):
        losses = GRPOLoss(policy, critic)(rollout)
    error = torch.nn.functional.smooth_l1_loss(rollout["state_value"], target)
    torch.testing.assert_close(losses["loss_critic"], error)
    losses["loss_critic"].backward()
    assert critic.head.bias.grad.abs() > 0


def test_figures_of_the_ratio_are_those_of_what_counts() -> None:
    env = make_env()
    policy = small_denoising_policy(env, selected_fraction=0.4)  # one step of three
    rollout = collect(env, policy)
    mask = rollout["loss_mask"]
    log_ratio = torch.randn(mask.shape)
    rollout["action_log_prob"] = torch.where(mask, rollout["action_log_prob"] - log_ratio, 0.0)
    rollout["advantage"] = torch.ones_like(rollout["next", "reward"])
    losses = GRPOLoss(policy, clip_epsilon=0.2)(rollout)
    ratio = log_ratio[mask].exp()
    tolerance = {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(losses["clip_fraction"], ((ratio < 0.8) | (ratio > 1.2)).float().mean(), **tolerance)
    torch.testing.assert_close(losses["kl_approx"], -log_ratio[mask].mean(), **tolerance)
    torch.testing.assert_close(losses["mean_ratio"], ratio.mean(), **tolerance)
    assert mask.float().mean() == 0.25
