"""GRPO's objective against TorchRL's: equal where they mean the same, and the KL term by hand."""

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch.distributions import Categorical
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.llm import GRPOLoss as LanguageModelGRPOLoss

from rlir_agents.losses import GRPOLoss, k3

NUM_CODES = 5


class TablePolicy(TensorDictModuleBase):
    """Logits looked up by position; counts its forwards."""

    in_keys = ["position"]
    out_keys = ["action", "action_log_prob"]

    def __init__(self, num_steps: int, num_codes: int = NUM_CODES) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.randn(num_steps, num_codes))
        self.num_forwards = 0

    def get_dist(self, tensordict, **kwargs):
        """[B, T] in, a categorical over codes for each of the k tokens out."""
        self.num_forwards += 1
        logits = self.logits[tensordict["position"].squeeze(-1)]  # [B, T, V]
        return Categorical(logits=logits.unsqueeze(-2).expand(*tensordict["action"].shape, -1))


class LanguageModelAdapter(torch.nn.Module):
    """What TorchRL's GRPOLoss asks of an actor: one token per step, a mask on the distribution."""

    def __init__(self, policy: TablePolicy, mask: torch.Tensor) -> None:
        super().__init__()
        self.policy = policy
        self.mask = mask

    def get_dist(self, tensordict, logits_key):
        """Flatten the k tokens of a step into the time dimension."""
        logits = self.policy.logits[tensordict["position"].squeeze(-1)]
        logits = logits.repeat_interleave(tensordict["action"].shape[1] // logits.shape[1], dim=1)
        dist = Categorical(logits=logits)
        dist.mask = self.mask
        return dist


def make_batch(batch_size: int = 6, num_steps: int = 4, tokens_per_step: int = 3) -> TensorDict:
    """Off-policy data [B, T]: ratios on both sides of the clip range, some tokens masked."""
    shape = (batch_size, num_steps)
    tokens = (*shape, tokens_per_step)
    return TensorDict(
        {
            "position": torch.arange(num_steps).view(1, -1, 1).expand(*shape, 1),
            "action": torch.randint(NUM_CODES, tokens),
            "action_log_prob": math.log(1 / NUM_CODES) + 0.3 * torch.randn(tokens),
            "ref_log_prob": math.log(1 / NUM_CODES) + 0.3 * torch.randn(tokens),
            "advantage": torch.randn(*shape, 1),
            "loss_mask": torch.rand(tokens) > 0.3,
        },
        [*shape],
    )


def gradient(losses: TensorDict, policy: TablePolicy) -> torch.Tensor:
    """Gradient of the sum of all ``loss_*`` entries with respect to the table."""
    total = sum(value for key, value in losses.items() if key.startswith("loss_"))
    return torch.autograd.grad(total, policy.logits)[0]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("entropy_coeff", [0.0, 0.01])
@pytest.mark.parametrize("clip_epsilon", [0.2, (0.2, 0.28)])
def test_without_kl_it_is_the_clipped_loss_number_for_number(entropy_coeff, clip_epsilon):
    policy, batch = TablePolicy(num_steps=4), make_batch()
    kwargs = {"clip_epsilon": clip_epsilon, "entropy_coeff": entropy_coeff}
    ours = GRPOLoss(policy, kl_coeff=0.0, **kwargs)
    stock = ClipPPOLoss(policy, critic_network=None, critic_coeff=None, functional=False, **kwargs)
    stock.loss_mask_key = "loss_mask"
    expected, actual = stock(batch), ours(batch)
    assert set(actual.keys()) == set(expected.keys())
    # Figures are of the actions that count; TorchRL's are of all.
    over_counted = {"entropy", "clip_fraction", "kl_approx", "max_ratio", "mean_ratio"}
    for key, value in expected.items():
        assert key in over_counted or torch.equal(actual[key], value), key
    everything = ours(batch.exclude("loss_mask"))
    assert all(torch.allclose(everything[key], expected[key]) for key in over_counted)
    assert torch.equal(gradient(actual, policy), gradient(expected, policy))
    assert 0 < actual["clip_fraction"] < 1  # or the clipping would not have been compared


@pytest.mark.parametrize("kl_coeff", [0.0, 0.05])
def test_it_agrees_with_the_language_model_grpo_of_torchrl(kl_coeff):
    policy, batch = TablePolicy(num_steps=4), make_batch()
    if kl_coeff:  # TorchRL divides its KL by masked positions too: compare where none is masked
        batch["loss_mask"] = torch.ones_like(batch["loss_mask"])
    ours = GRPOLoss(policy, kl_coeff=kl_coeff, entropy_bonus=False)(batch)

    tokens = TensorDict(
        {
            "position": batch["position"],
            "action": batch["action"].flatten(1),
            "action_log_prob": batch["action_log_prob"].flatten(1),
            "ref_log_prob": batch["ref_log_prob"].flatten(1),
            "advantage": batch["advantage"].repeat_interleave(3, dim=1),
        },
        [6],
    )
    theirs = LanguageModelGRPOLoss(
        LanguageModelAdapter(policy, batch["loss_mask"].flatten(1)),
        clip_epsilon=0.2,
        entropy_bonus=False,
        kl_to_ref_coeff=kl_coeff,
        masking_strategy="generic",
    )
    theirs.set_keys(action="action", sample_log_prob="action_log_prob", ref_log_probs="ref_log_prob")
    output = theirs(tokens)
    expected = output.loss_objective + (output.loss_kl_to_ref if kl_coeff else 0.0)
    total = ours["loss_objective"] + (ours["loss_kl_to_ref"] if kl_coeff else 0.0)
    torch.testing.assert_close(total, expected, atol=1e-6, rtol=0)
    expected_gradient = torch.autograd.grad(expected, policy.logits)[0]
    torch.testing.assert_close(gradient(ours, policy), expected_gradient, atol=1e-6, rtol=0)


def test_k3_by_hand():
    # p = 1/2, q = 1/4: q/p - 1 - log(q/p) = 1/2 - 1 + log 2; equal probabilities give zero.
    log_prob = torch.tensor([0.5, 0.5]).log()
    ref_log_prob = torch.tensor([0.25, 0.5]).log()
    torch.testing.assert_close(k3(log_prob, ref_log_prob), torch.tensor([math.log(2) - 0.5, 0.0]))


def test_k3_is_unbiased():
    # Averaged over the policy's own samples it is KL(p || q), here in closed form.
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    expected = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * k3(p.log(), q.log())).sum(), expected)


def test_the_kl_term_shares_the_forward_of_the_clipped_loss():
    policy, batch = TablePolicy(num_steps=4), make_batch()
    losses = GRPOLoss(policy, kl_coeff=0.1)(batch)
    assert policy.num_forwards == 1
    torch.testing.assert_close(losses["loss_kl_to_ref"], 0.1 * losses["kl_to_ref"])


def test_the_key_of_the_reference_can_be_renamed():
    policy, batch = TablePolicy(num_steps=4), make_batch()
    expected = GRPOLoss(policy, kl_coeff=0.1)(batch)["kl_to_ref"]
    loss = GRPOLoss(policy, kl_coeff=0.1)
    loss.set_keys(ref_log_prob="base_log_prob")
    assert torch.equal(loss(batch.rename_key_("ref_log_prob", "base_log_prob"))["kl_to_ref"], expected)


def test_a_kl_without_a_reference_says_what_to_do():
    policy, batch = TablePolicy(num_steps=4), make_batch().exclude("ref_log_prob")
    with pytest.raises(ValueError, match="reference_policy"):
        GRPOLoss(policy, kl_coeff=0.1)(batch)


@pytest.mark.parametrize("tokens_per_step", [1, 3])
def test_the_kl_is_the_mean_over_unmasked_tokens_only(tokens_per_step):
    policy, batch = TablePolicy(num_steps=4), make_batch(tokens_per_step=tokens_per_step)
    log_prob = policy.get_dist(batch).log_prob(batch["action"])
    expected = k3(log_prob, batch["ref_log_prob"])[batch["loss_mask"]].mean()
    losses = GRPOLoss(policy, kl_coeff=1.0)(batch)
    torch.testing.assert_close(losses["kl_to_ref"], expected.detach())
    entropy = policy.get_dist(batch).entropy()[batch["loss_mask"]].mean()
    torch.testing.assert_close(losses["entropy"], entropy.detach())


def test_the_kl_term_pulls_the_policy_back():
    # One gradient step on the KL alone lowers it.
    policy, batch = TablePolicy(num_steps=4), make_batch()
    batch["ref_log_prob"] = torch.full_like(batch["ref_log_prob"], math.log(1 / NUM_CODES))
    batch["advantage"] = torch.zeros_like(batch["advantage"])
    loss = GRPOLoss(policy, kl_coeff=1.0)
    before = loss(batch)
    step = 0.5 * gradient(before, policy)
    with torch.no_grad():
        policy.logits -= step
    assert loss(batch)["kl_to_ref"] < before["kl_to_ref"]


def test_the_entropy_is_taken_once_and_only_where_it_is_asked_for(monkeypatch):
    policy, batch, asked = TablePolicy(num_steps=4), make_batch(), []
    entropy = Categorical.entropy
    monkeypatch.setattr(Categorical, "entropy", lambda dist: asked.append(dist) or entropy(dist))
    GRPOLoss(policy)(batch)
    assert len(asked) == 1
    assert "entropy" not in GRPOLoss(policy, entropy_bonus=False)(batch).keys() and len(asked) == 1


def test_no_entropy_bonus_means_no_gradient_graph_for_the_entropy():
    policy, batch = TablePolicy(num_steps=4), make_batch()
    losses = GRPOLoss(policy, entropy_coeff=0.0)(batch)
    assert not losses["loss_entropy"].requires_grad
    # A table of normal logits over 5 codes is less random than log 5 and more than nothing.
    assert 0 < losses["entropy"] < math.log(NUM_CODES)
