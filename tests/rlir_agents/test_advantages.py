"""The group-relative advantage of Eq. 1 and its variants, against numbers worked out by hand."""

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule

from rlir_agents.advantages import (
    AsymmetricCredit,
    FramewiseCredit,
    SequenceCredit,
    frames_to_steps,
    framewise_credit,
    group_relative,
)
from rlir_agents.generalized_advantage import GeneralizedAdvantage
from rlir_env.layout import TokenLayout


def make_rollout(frame_reward: torch.Tensor, num_steps: int) -> TensorDict:
    """Rollout [P, G, T] whose reward is the mean of `frame_reward` [P, G, F-1], paid at the end."""
    num_prompts, group_size, num_frames = frame_reward.shape
    shape = (num_prompts, group_size, num_steps)
    reward = torch.zeros(*shape, 1)
    reward[:, :, -1, 0] = frame_reward.mean(-1)
    breakdown = torch.zeros(*shape, num_frames)
    breakdown[:, :, -1] = frame_reward
    done = torch.zeros(*shape, 1, dtype=torch.bool)
    done[:, :, -1] = True
    outcome = {"reward": reward, "frame_reward": breakdown, "done": done, "terminated": done}
    return TensorDict({"next": outcome}, [*shape])


def test_group_relative_by_hand():
    # First group: mean 3, deviations -2 -1 0 3, squares 4 1 0 9 = 14, sample variance 14/3.
    # Second group: mean 0.5, deviations +-0.5, squares sum to 1, sample variance 1/3.
    reward = torch.tensor([[1.0, 2.0, 3.0, 6.0], [0.0, 1.0, 1.0, 0.0]])
    first, second = math.sqrt(14 / 3), math.sqrt(1 / 3)
    expected = [
        [-2 / first, -1 / first, 0.0, 3 / first],
        [-0.5 / second, 0.5 / second, 0.5 / second, -0.5 / second],
    ]
    torch.testing.assert_close(group_relative(reward), torch.tensor(expected))


def test_without_division_by_the_spread_only_the_mean_is_taken_away():
    # Means 0.5 and 5: the second group keeps its ten times larger differences.
    reward = torch.tensor([[0.0, 1.0], [0.0, 10.0]])
    expected = torch.tensor([[-0.5, 0.5], [-5.0, 5.0]])
    torch.testing.assert_close(group_relative(reward, normalize_std=False), expected)


@pytest.mark.parametrize("normalize_std", [True, False])
def test_a_group_without_spread_gets_exactly_zero(normalize_std):
    # 0.1 has no exact float32: 24 equal rewards have a mean off by rounding, which must not be
    # blown up to an advantage of order one.
    reward = torch.full((1, 24), 0.1)
    advantage = group_relative(reward, normalize_std=normalize_std)
    assert torch.equal(advantage, torch.zeros(1, 24))


def test_a_reward_that_is_not_a_number_is_not_swallowed():
    advantage = group_relative(torch.tensor([[0.0, float("nan")], [0.0, 1.0]]))
    assert advantage[0].isnan().all() and advantage[1].isfinite().all()


def test_a_single_generation_cannot_be_compared():
    with pytest.raises(ValueError, match="group_size at least 2"):
        group_relative(torch.ones(3, 1))


def test_framewise_credit_by_hand():
    # r_j + r_{j+1} / 2: 1 + 0, 0 + 1/2, 1 + 2/2, and the last frame has only itself.
    frame_reward = torch.tensor([[[1.0, 0.0, 1.0, 2.0]]])
    expected = torch.tensor([[[1.0, 0.5, 2.0, 2.0]]])
    torch.testing.assert_close(framewise_credit(frame_reward, 0.5), expected)
    assert torch.equal(framewise_credit(frame_reward, 0.0), frame_reward)


@pytest.mark.parametrize("tokens_per_step", [1, 2, 4])
def test_frames_are_spread_over_steps_as_the_layout_says(tokens_per_step):
    layout = TokenLayout(tokens_per_frame=4, num_frames=4, word_length=3)
    frame_values = torch.randn(2, 3, layout.num_generated_frames)
    steps = frames_to_steps(frame_values, layout.num_steps(tokens_per_step))
    expected = frame_values[:, :, layout.frame_of_step(tokens_per_step)].unsqueeze(-1)
    assert torch.equal(steps, expected)


def test_steps_must_fill_whole_frames():
    with pytest.raises(ValueError, match="whole episodes"):
        frames_to_steps(torch.ones(1, 2, 3), num_steps=7)


def test_sequence_credit_gives_every_step_the_same_advantage():
    # Rewards are the means 0.5 and 1: deviations -+0.25, sample deviation sqrt(0.125).
    rollout = make_rollout(torch.tensor([[[0.0, 1.0], [1.0, 1.0]]]), num_steps=4)
    advantage = SequenceCredit()(rollout)["advantage"]
    assert advantage.shape == (1, 2, 4, 1)
    expected = torch.tensor([-0.25, 0.25]) / math.sqrt(0.125)
    torch.testing.assert_close(advantage, expected.view(1, 2, 1, 1).expand(1, 2, 4, 1))


def test_framewise_credit_compares_each_frame_with_the_same_frame_of_the_siblings():
    # Credits: sibling 0: 0 + 1/2 = 0.5, then 1; sibling 1: 1 + 1/2 = 1.5, then 1.
    # Frame 0 differs by one (deviations -+1/2 over sqrt(1/2)); frame 1 has no spread: zero.
    rollout = make_rollout(torch.tensor([[[0.0, 1.0], [1.0, 1.0]]]), num_steps=4)
    advantage = FramewiseCredit(next_frame_coeff=0.5)(rollout)["advantage"]
    edge = 0.5 / math.sqrt(0.5)
    expected = torch.tensor([[-edge, -edge, 0.0, 0.0], [edge, edge, 0.0, 0.0]])
    torch.testing.assert_close(advantage, expected.view(1, 2, 4, 1))


def test_generalized_advantage_with_a_critic_by_hand():
    # Values 0.5, 0.25 and rewards 0, 1 with gamma = 1, lambda = 0.5:
    # delta_1 = 1 - 0.25 = 0.75, delta_0 = 0 + 0.25 - 0.5 = -0.25, A_0 = -0.25 + 0.5 * 0.75 = 0.125.
    rollout = make_rollout(torch.tensor([[[1.0], [1.0]]]), num_steps=2)
    rollout["position"] = torch.tensor([0.5, 0.25]).view(1, 1, 2, 1).expand(1, 2, 2, 1)
    critic = TensorDictModule(torch.nn.Identity(), in_keys=["position"], out_keys=["state_value"])
    estimate = GeneralizedAdvantage(critic, gamma=1.0, lmbda=0.5, normalize=False)
    estimate(rollout)
    advantage = torch.tensor([0.125, 0.75]).view(1, 1, 2, 1).expand(1, 2, 2, 1)
    torch.testing.assert_close(rollout["advantage"], advantage)
    torch.testing.assert_close(rollout["value_target"], advantage + rollout["position"])


@pytest.mark.parametrize("negative_coeff", [0.0, 0.3, 1.0])
def test_what_is_worse_than_the_siblings_may_count_less(negative_coeff):
    rollout = TensorDict({"next": {"reward": torch.randn(2, 4, 3, 1)}}, batch_size=[2, 4, 3])
    full = SequenceCredit()(rollout.clone())["advantage"]
    found = AsymmetricCredit(SequenceCredit(), negative_coeff)(rollout)["advantage"]
    torch.testing.assert_close(found[full > 0], full[full > 0])
    torch.testing.assert_close(found[full < 0], negative_coeff * full[full < 0])
    assert (full < 0).any()


def test_worse_siblings_are_not_praised():
    with pytest.raises(ValueError, match="negative_coeff=-1"):
        AsymmetricCredit(SequenceCredit(), -1.0)
