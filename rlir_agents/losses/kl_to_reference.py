"""The leash of Eq. 2: KL(policy || reference), estimated on the sampled tokens, exact for denoising steps.

The paper uses it (beta 1e-4) only for the smallest MineWorld. `GRPOLoss` adds it to the clipped loss, averaged over
what the mask counts; TorchRL's own term averages over masked positions too, which scales the coefficient by the
density of the mask.

A rollout cannot hold all logits of the reference, so tokens have `k3`, from its log-prob of what was taken. Of a
Gaussian whose spread no policy changes it can hold all there is, the mean; there an estimate from one sample would only
add noise. A distribution with a method ``kl_to(ref_mean)`` is compared so (Flow-GRPO, Liu et al. 2025, Eq. 10).
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch.distributions import Distribution


def k3(log_prob: torch.Tensor, ref_log_prob: torch.Tensor) -> torch.Tensor:
    """Estimate KL(policy || reference) from one sample of the policy: ``q/p - 1 - log(q/p)``.

    Schulman's third estimator (http://joschu.net/blog/kl-approx.html), the one GRPO prints (Shao et
    al., 2024, Eq. 4): unbiased, never negative, and with less variance than ``-log(q/p)``.

    Args:
        log_prob: log p of the sampled actions under the policy, any shape, float32.
        ref_log_prob: log q under the reference policy, same shape.

    Returns:
        The estimate per action, same shape, in nats.

    Example:
        >>> k3(torch.tensor(0.5).log(), torch.tensor(0.25).log()).item()  # 0.5 - 1 + log 2
        0.1931471824645996
    """
    log_ratio = ref_log_prob - log_prob
    return log_ratio.expm1() - log_ratio


def entries_of_reference(reference: Distribution, action: torch.Tensor) -> dict[str, torch.Tensor]:
    """What `kl_to_reference` will ask a rollout for.

    Args:
        reference: distribution of the reference policy.
        action: what was taken, of its batch and event shape.

    Returns:
        ``ref_log_prob``, float32 of the batch shape; and ``ref_mean``, of the action's shape, if it is compared by it.
    """
    entries = {"ref_log_prob": reference.log_prob(action).float()}
    return entries | ({"ref_mean": reference.mean} if hasattr(reference, "kl_to") else {})


def kl_to_reference(
    dist: Distribution,
    log_prob: torch.Tensor,
    tensordict: TensorDictBase,
    log_prob_key: NestedKey = "ref_log_prob",
    mean_key: NestedKey = "ref_mean",
) -> torch.Tensor:
    """KL(policy || reference) per action, in nats: exact if the distribution says how, else `k3`.

    Args:
        dist: of the policy.
        log_prob: its log-prob of what was taken.
        tensordict: with the entries of the reference.
        log_prob_key: where its log-prob is.
        mean_key: where its mean is.

    Returns:
        Of the shape of ``log_prob``.

    Raises:
        ValueError: if the entry was not written.
    """
    if hasattr(dist, "kl_to"):
        return dist.kl_to(_stored(tensordict, mean_key))
    return k3(log_prob, _stored(tensordict, log_prob_key))


def _stored(tensordict: TensorDictBase, key: NestedKey) -> torch.Tensor:
    entry = tensordict.get(key, default=None)
    if entry is None:
        raise ValueError(
            f"the KL term reads {key!r}, which the rollout does not have: pass reference_policy to the "
            "Trainer, or set kl_coeff=0"
        )
    return entry
