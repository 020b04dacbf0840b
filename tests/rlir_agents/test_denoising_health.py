"""Figures noise level by noise level, and weights of steps, against what the definitions say."""

import pytest
import torch
from small_policies import small_denoising_policy
from tensordict import TensorDict
from torchrl.envs import EnvBase

from rlir_agents.advantages import FramewiseCredit, StepWeightedCredit
from rlir_agents.commands.composition import compose_config
from rlir_agents.denoising_health import DenoisingHealth
from rlir_agents.policies import DenoisingPolicy
from rlir_agents.policies.denoising import flat_step_weights
from rlir_agents.rollouts import collect
from rlir_env.envs import DenoisingEnv
from rlir_env.testing import identity_world

GRANULARITIES = pytest.mark.parametrize("steps_per_action", [1, 2, "frame"])


def make_env(steps_per_action: int | str = "frame") -> DenoisingEnv:
    return identity_world().denoising_env(num_prompts=2, group_size=4, steps_per_action=steps_per_action)


def scored(env: EnvBase, policy: DenoisingPolicy) -> TensorDict:
    """A batch as the trainer hands it over."""
    rollout = FramewiseCredit()(collect(env, policy))
    rollout["collection_log_prob"] = rollout["action_log_prob"].clone()
    return rollout


def places(rollout: TensorDict) -> torch.Tensor:
    """Denoising step of every action, [P, G, T, k]."""
    return rollout["denoising_step"] + torch.arange(rollout["action"].shape[3])


@GRANULARITIES
def test_gradient_of_every_noise_level(steps_per_action):
    env = make_env(steps_per_action)
    policy = small_denoising_policy(env, selected_fraction=1.0)
    rollout = scored(env, policy)
    figures = DenoisingHealth(env, policy)(rollout)
    names = [f"denoising/grad_norm/{t:.3f}" for t in policy.table.timestep[:3]]
    assert names == [name for name in figures if "grad_norm" in name]  # the last step does not sample
    for step, name in enumerate(names):
        policy.zero_grad()
        log_prob = policy.get_dist(rollout).log_prob(rollout["action"])
        ((rollout["advantage"] * log_prob)[places(rollout) == step]).mean().backward()
        expected = torch.stack([p.grad.norm() for p in policy.parameters() if p.grad is not None]).norm()
        assert figures[name] == pytest.approx(expected.item(), rel=1e-4)
        assert expected > 0


def test_drift_shows_the_noise_level_that_drifted():
    env = make_env()
    policy = small_denoising_policy(env, selected_fraction=1.0)
    rollout = scored(env, policy)
    rollout["collection_log_prob"][..., 1] += 0.25
    figures = DenoisingHealth(env, policy)(rollout)
    drift = [figures[f"denoising/log_prob_drift/{t:.3f}"] for t in policy.table.timestep[:3]]
    assert drift == pytest.approx([0.0, 0.25, 0.0], abs=1e-6)


def test_reward_gap_is_that_of_the_same_videos_without_noise():
    env = make_env()
    policy = small_denoising_policy(env)
    rollout = scored(env, policy)
    rows = rollout[:, :, 0].flatten()
    state = env.initial_state(*(rows[key].flatten() for key in ("prompt_index", "episode_seed", "group_id")))
    solved = collect(env, policy.without_noise(), state)
    # Siblings share the noise they start from, and nothing else is random.
    assert torch.equal(solved["action"][:, 0], solved["action"][:, 3])
    assert not torch.equal(rollout["action"][:, 0], rollout["action"][:, 3])
    expected = solved["next", "reward"].sum(2).mean() - rollout["next", "reward"].sum(2).mean()
    figures = DenoisingHealth(env, policy)(rollout)
    assert figures["denoising/ode_minus_sde_reward"] == pytest.approx(expected.item(), abs=1e-6)


def test_reward_gap_is_measured_on_as_many_videos_at_once_as_a_rollout(monkeypatch):
    env = make_env()
    policy = small_denoising_policy(env)
    rollout, generate, sizes = scored(env, policy), DenoisingPolicy.generate, []
    whole = DenoisingHealth(env, policy)(rollout)

    def measured(self, state):
        sizes.append(len(state))
        return generate(self, state)

    monkeypatch.setattr(DenoisingPolicy, "generate", measured)
    parts = DenoisingHealth(env, policy, batch_size=3)(rollout)
    assert sizes == [3, 3, 2]
    gap = "denoising/ode_minus_sde_reward"
    assert parts[gap] == pytest.approx(whole[gap], abs=1e-5)
    settings = compose_config("train", ["experiment=identity_nfd", "trainer.rollout_batch_size=3"])
    assert settings["diagnose"]["batch_size"] == 3


@GRANULARITIES
def test_every_step_has_its_weight(steps_per_action):
    env = make_env(steps_per_action)
    policy = small_denoising_policy(env)
    rollout, weights = scored(env, policy), [0.5, 1.0, 2.0, 3.0]
    plain = rollout["advantage"].clone()
    StepWeightedCredit(FramewiseCredit(), weights)(rollout)
    expected = plain * torch.tensor(weights)[places(rollout)]
    assert torch.equal(rollout["advantage"], expected[..., None])
    with pytest.raises(ValueError, match="3 weights for 4 denoising steps"):
        StepWeightedCredit(FramewiseCredit(), [1.0, 1.0, 1.0])(rollout)
    with pytest.raises(ValueError, match="give a positive number"):
        StepWeightedCredit(FramewiseCredit(), [1.0, 0.0])
    flat = torch.tensor(flat_step_weights(policy))
    torch.testing.assert_close((flat * policy.table.sensitivity)[:3].diff(), torch.zeros(2), atol=1e-6, rtol=0)
