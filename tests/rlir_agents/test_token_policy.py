"""The token policy and its critic: two modes, one distribution, inside TorchRL's own losses."""

import copy
import weakref

import pytest
import torch
from small_policies import grouped_mineworld, small_policy
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import set_recurrent_mode
from torchrl.objectives import A2CLoss, ClipPPOLoss
from torchrl.objectives.value import GAE

from rlir_agents.losses import GRPOLoss
from rlir_agents.policies import TokenPolicy, TokenValue
from rlir_agents.policies.token_steps import TokenSteps
from rlir_agents.rollouts import collect
from rlir_agents.world_models import DecodingWeights, MineWorld
from rlir_env.envs import TokenGenerationEnv
from rlir_env.testing import identity_world

NUM_CODES, NUM_IDS = 6, 11


def make_env(tokens_per_step: int | str = "frame", num_prompts: int = 2, group_size: int = 3) -> TokenGenerationEnv:
    world = identity_world(grid_size=(2, 2))  # 4 tokens a frame, words of 2, 3 generated frames: L = 4*4 + 3*2 = 22
    return world.env(num_prompts=num_prompts, group_size=group_size, tokens_per_step=tokens_per_step)


def make_model(seed: int = 0) -> MineWorld:
    torch.manual_seed(seed)
    return grouped_mineworld(NUM_CODES, NUM_IDS, max_length=22)


def make_policy(env: TokenGenerationEnv, **settings: object) -> TokenPolicy:
    return small_policy(env, grouped_mineworld, **settings)


def perturb(policy: TokenPolicy) -> None:
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.05 * torch.randn_like(weight)


@pytest.mark.parametrize("tokens_per_step", [1, 2, "frame"])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7}, {"temperature": 1.5, "top_p": 0.8}])
def test_step_and_sequence_mode_agree(tokens_per_step: int | str, sampling: dict[str, float]) -> None:
    env = make_env(tokens_per_step)
    policy = make_policy(env, **sampling)
    rollout = collect(env, policy)
    dist = policy.get_dist(rollout)
    log_prob = dist.log_prob(rollout["action"])
    assert log_prob.dtype == torch.float32 and log_prob.shape == rollout["action"].shape
    torch.testing.assert_close(log_prob, rollout["action_log_prob"], atol=1e-5, rtol=0)
    # A flat batch of single steps, in any order, is the same policy again.
    steps = rollout.flatten()[torch.randperm(rollout.numel())]
    flat = policy.get_dist(steps).log_prob(steps["action"])
    torch.testing.assert_close(flat, steps["action_log_prob"], atol=1e-5, rtol=0)


def test_top_p_truncates_in_both_modes() -> None:
    env = make_env()
    policy = make_policy(env, top_p=0.5)
    rollout = collect(env, policy)
    probs = policy.get_dist(rollout).probs
    full = make_policy(env).get_dist(rollout).probs
    before = torch.where(full[..., None, :] > full[..., :, None], full[..., None, :], 0.0).sum(-1)
    assert torch.equal(probs > 0, before <= 0.5)
    assert (probs > 0).sum(-1).float().mean() < NUM_CODES - 1  # it does truncate
    perturb(policy)  # the nucleus moves on; what was sampled keeps a finite log-prob
    assert policy.get_dist(rollout).log_prob(rollout["action"]).isfinite().all()


@pytest.mark.parametrize("entropy_coeff", [0.0, 0.1])
@pytest.mark.parametrize("settings", [{}, {"top_p": 0.7}, {"autocast_dtype": torch.bfloat16}])
def test_logits_in_chunks_change_nothing_but_the_memory(settings: dict, entropy_coeff: float) -> None:
    env = make_env()
    rollout = collect(env, make_policy(env, **settings))
    rollout["advantage"] = torch.randn(*rollout.shape, 1)
    found = {}
    for chunk in (None, 7, 10_000):  # 7 divides nothing here
        policy = make_policy(env, **settings, positions_per_chunk=chunk)
        perturb(policy)
        losses = GRPOLoss(policy, entropy_coeff=entropy_coeff)(rollout.clone())
        sum(value for key, value in losses.items() if key.startswith("loss_")).backward()
        gradients = [p.grad for p in policy.parameters()]
        found[chunk] = policy.get_dist(rollout).log_prob(rollout["action"]), losses["entropy"], gradients
    tolerance = 1e-6 if settings.get("autocast_dtype") is None else 1e-3  # products in other shapes
    expected = found.pop(None)
    for log_prob, entropy, gradients in found.values():
        torch.testing.assert_close(log_prob, expected[0], atol=tolerance, rtol=0)
        torch.testing.assert_close(entropy, expected[1], atol=tolerance, rtol=0)
        for gradient, other in zip(gradients, expected[2], strict=True):
            assert (gradient - other).norm() <= 10 * tolerance * other.norm()
    with pytest.raises(ValueError, match="positions_per_chunk=0"):
        make_policy(env, positions_per_chunk=0)


def test_logits_in_chunks_are_not_kept() -> None:
    """Neither logits nor their softmax: 8,192 codes at 64 positions would be 2 MB each."""
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 8192)
    hidden, action = torch.randn(64, 16, requires_grad=True), torch.randint(8192, (4, 16))
    largest = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        log_prob = TokenSteps(hidden, lambda h, _: head(h), action, positions_per_chunk=8).log_prob(action)
    assert log_prob.shape == (4, 16) and largest <= hidden.nbytes
    log_prob.sum().backward()
    expected = torch.distributions.Categorical(logits=head(hidden)).log_prob(action.flatten())
    torch.testing.assert_close(log_prob.flatten(), expected)


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_action_ids_are_never_sampled(top_p: float) -> None:
    env = make_env(num_prompts=4, group_size=8)
    policy = make_policy(env, top_p=top_p)
    head = policy.world_model.transformer.lm_head.weight
    with torch.no_grad():  # logits of +-50 or more: with them in the softmax codes would have probability e^-50
        head[NUM_CODES:] = 50 * torch.randn(NUM_IDS - NUM_CODES, 32)
    rollout = collect(env, policy)
    assert rollout["action"].max() < NUM_CODES
    assert rollout["action_log_prob"].min() > -30
    assert policy.get_dist(rollout).probs.shape[-1] == NUM_CODES


def test_siblings_differ_under_every_exploration_type() -> None:
    for exploration in (ExplorationType.DETERMINISTIC, ExplorationType.MODE, ExplorationType.RANDOM):
        env = make_env(num_prompts=1, group_size=8)
        with set_exploration_type(exploration):
            videos = collect(env, make_policy(env))["action"].flatten(2).flatten(0, 1)
        assert len(videos.unique(dim=0)) > 4
    env = make_env(num_prompts=1, group_size=8)
    best = collect(env, make_policy(env, greedy=True))
    assert len(best["action"][0].flatten(1).unique(dim=0)) == 1
    assert torch.equal(make_policy(env).get_dist(best).probs.argmax(-1), best["action"])


def test_tokens_do_not_depend_on_batch_or_granularity() -> None:
    env = make_env(1, num_prompts=4, group_size=4)
    state = env.reset()
    whole = make_policy(env).generate(state.clone())
    torch.manual_seed(99)  # the global generator has no say
    rows = torch.tensor([13, 2, 7])
    part = make_policy(env).generate(state[rows].clone())
    assert torch.equal(part["action"], whole["action"][rows])
    torch.testing.assert_close(part["action_log_prob"], whole["action_log_prob"][rows], atol=1e-5, rtol=0)


def test_cache_follows_the_tokens_and_the_weights() -> None:
    env = make_env(2)
    policy = make_policy(env)
    first, second = env.rollout(3, policy), env.rollout(3, policy)
    # Alternating between two episodes: each call finds another prefix than the one it has read.
    for step in range(3):
        for rollout in (first, second):
            again = policy(rollout[:, step].select("token", "position", "episode_seed").clone())
            assert torch.equal(again["action"], rollout["action"][:, step])
    perturb(policy)  # in the middle of an episode: the rest is sampled by the new weights
    state = first[:, 2].select("token", "position", "episode_seed")
    fresh = copy.deepcopy(policy)  # has read nothing
    assert torch.equal(policy(state.clone())["action_log_prob"], fresh(state.clone())["action_log_prob"])
    assert policy.cache_bytes > 0 and copy.deepcopy(policy).cache_bytes == 0


def test_one_copy_of_the_weights_is_there_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_env()
    policy = make_policy(env)
    model, copies = policy.world_model, []
    copied = model.decoding_weights

    def watched(dtype: torch.dtype) -> DecodingWeights:
        assert all(reference() is None for reference in copies)
        weights = copied(dtype)
        copies.append(weakref.ref(weights))
        return weights

    monkeypatch.setattr(model, "decoding_weights", watched)
    for _ in range(3):
        collect(env, policy)
        perturb(policy)
    assert len(copies) == 3 and copies[-1]() is not None


def test_wrong_batches_are_named() -> None:
    env = make_env(2)
    policy = make_policy(env)
    rollout = collect(env, policy)
    with pytest.raises(ValueError, match="get_dist"):
        policy(rollout.copy())
    mixed = torch.stack([rollout[0, 0, 0], rollout[0, 0, 1]])
    with pytest.raises(ValueError, match="lockstep"):
        policy(mixed)
    with pytest.raises(ValueError, match="just reset"):
        policy.generate(rollout[:, :, 1].flatten())
    with pytest.raises(ValueError, match="one trajectory a row"):
        policy.get_dist(rollout.transpose(0, 2).contiguous())
    with pytest.raises(ValueError, match="fewer frames"):
        TokenPolicy(make_model(), identity_world(num_frames=16).env().layout)
    with pytest.raises(ValueError, match="divisor"):
        TokenPolicy(make_model(), env.layout, 3)


def with_advantage(rollout: TensorDict) -> TensorDict:
    torch.manual_seed(3)
    rollout["advantage"] = torch.randn(*rollout.batch_size, 1)
    return rollout


@pytest.mark.parametrize("tokens_per_step", [1, 2, "frame"])
@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("is_flat", [False, True], ids=["[P,G,T]", "[B,T]"])
def test_stock_clipped_loss(tokens_per_step: int | str, functional: bool, is_flat: bool) -> None:
    env = make_env(tokens_per_step)
    policy = make_policy(env)
    rollout = with_advantage(collect(env, policy))
    rollout = rollout.flatten(0, 1) if is_flat else rollout
    old = policy.get_dist(rollout).log_prob(rollout["action"]).detach()
    rollout["action_log_prob"] = old
    loss = ClipPPOLoss(policy, None, critic_coeff=None, entropy_coeff=0.0, functional=functional)
    output = loss(rollout)
    assert output["max_ratio"] == 1 and output["mean_ratio"] == 1  # the same forward: exactly
    # At ratio 1 the loss is minus the mean advantage, each step counting once a token.
    torch.testing.assert_close(output["loss_objective"], -rollout["advantage"].mean(), atol=1e-6, rtol=1e-5)
    perturb(policy)
    new = policy.get_dist(rollout).log_prob(rollout["action"])
    ratio = (new - old).exp()  # [..., T, k]
    expected = torch.minimum(ratio * rollout["advantage"], ratio.clamp(0.8, 1.2) * rollout["advantage"])
    output = loss(rollout)
    assert output["clip_fraction"] > 0.1
    torch.testing.assert_close(output["loss_objective"], -expected.mean())
    gradients = torch.autograd.grad(-expected.mean(), list(policy.parameters()))
    output["loss_objective"].backward()
    parameters = loss.actor_network_params.values(True, True) if functional else policy.parameters()
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    ours = torch.stack([p.grad.norm() for p in parameters]).norm()
    torch.testing.assert_close(ours, norm, atol=1e-6, rtol=1e-5)


def test_masked_tokens_do_not_count() -> None:
    env = make_env("frame")
    policy = make_policy(env)
    rollout = with_advantage(collect(env, policy))
    perturb(policy)
    loss = ClipPPOLoss(policy, None, critic_coeff=None, entropy_coeff=0.0, functional=False)
    loss.loss_mask_key = "loss_mask"
    rollout["loss_mask"] = torch.rand(rollout["action"].shape) < 0.5  # [P, G, T, k]
    ratio = (policy.get_dist(rollout).log_prob(rollout["action"]) - rollout["action_log_prob"]).exp()
    gain = torch.minimum(ratio * rollout["advantage"], ratio.clamp(0.8, 1.2) * rollout["advantage"])
    torch.testing.assert_close(loss(rollout)["loss_objective"], -gain[rollout["loss_mask"]].mean())


def test_entropy_bonus_has_a_gradient() -> None:
    env = make_env()
    policy = make_policy(env)
    rollout = with_advantage(collect(env, policy))
    output = ClipPPOLoss(policy, None, critic_coeff=None, entropy_coeff=0.5, functional=False)(rollout)
    entropy = policy.get_dist(rollout).entropy().mean()
    torch.testing.assert_close(output["loss_entropy"], -0.5 * entropy)
    output["loss_entropy"].backward()
    assert policy.world_model.transformer.lm_head.weight.grad.abs().max() > 0


def make_critic() -> TokenValue:
    critic = TokenValue(make_model(seed=1))
    torch.nn.init.normal_(critic.head.weight)
    return critic


@pytest.mark.parametrize("tokens_per_step", [1, "frame"])
def test_value_reads_what_is_known_and_no_more(tokens_per_step: int | str) -> None:
    env = make_env(tokens_per_step)
    rollout = collect(env, make_policy(env)).flatten(0, 1)
    critic = make_critic()
    values = critic(rollout.copy())["state_value"]
    assert values.shape == (6, env.num_steps, 1)
    for step in range(env.num_steps):  # state by state, nothing of the future at hand
        alone = critic(rollout[:, step].copy())["state_value"]
        torch.testing.assert_close(values[:, step], alone, atol=1e-5, rtol=0)
    assert TokenValue(make_model())(rollout.copy())["state_value"].abs().max() == 0  # starts at zero


@pytest.mark.parametrize("tokens_per_step", [1, "frame"])
def test_gae_and_clipped_loss_with_critic(tokens_per_step: int | str) -> None:
    env = make_env(tokens_per_step)
    policy, critic = make_policy(env), make_critic()
    rollout = collect(env, policy).flatten(0, 1)
    gamma, lmbda = 0.9, 0.7
    advantage = GAE(gamma=gamma, lmbda=lmbda, value_network=critic, shifted=True)
    with set_recurrent_mode(True), torch.no_grad():
        advantage(rollout)
    # By hand: delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lambda A_{t+1}; V = 0 after the end.
    values = critic(rollout.copy())["state_value"].detach()
    after = torch.cat([values[:, 1:], torch.zeros(6, 1, 1)], dim=1)
    delta = rollout["next", "reward"] + gamma * after - values
    running, expected = torch.zeros(6, 1), []
    for step in reversed(range(env.num_steps)):
        running = delta[:, step] + gamma * lmbda * running
        expected.insert(0, running)
    torch.testing.assert_close(rollout["advantage"], torch.stack(expected, 1), atol=1e-5, rtol=1e-4)
    loss = ClipPPOLoss(policy, critic, critic_coeff=1.0, entropy_coeff=0.0, functional=False)
    output = loss(rollout)
    target = torch.nn.functional.smooth_l1_loss(values, rollout["value_target"])
    torch.testing.assert_close(output["loss_critic"], target, atol=1e-5, rtol=1e-4)
    output["loss_critic"].backward()
    assert critic.world_model.transformer.model.embed_tokens.weight.grad.abs().max() > 0


def test_other_torchrl_losses_run_on_sequences() -> None:
    env = make_env()
    policy, critic = make_policy(env), make_critic()
    rollout = collect(env, policy).flatten(0, 1)
    # A2C multiplies log-probs [B, T, k, 1]; unlike the clipped loss it does not spread [B, T, 1] over tokens itself.
    rollout["advantage"], rollout["value_target"] = torch.ones(6, 3, 1, 1), torch.zeros(6, 3, 1)
    loss = A2CLoss(policy, critic, entropy_coeff=0.0, functional=False)
    log_prob = policy.get_dist(rollout).log_prob(rollout["action"])
    torch.testing.assert_close(loss(rollout)["loss_objective"], -log_prob.mean(), atol=1e-5, rtol=1e-5)
