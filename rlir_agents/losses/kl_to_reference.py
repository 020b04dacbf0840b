"""The leash of Eq. 2: KL(policy || reference), estimated on the sampled tokens.

The paper uses it (beta 1e-4) only for the smallest MineWorld. `GRPOLoss` adds it to the clipped loss, averaged over
what the mask counts; TorchRL's own term averages over masked positions too, which scales the coefficient by the
density of the mask.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey


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


def stored_ref_log_prob(tensordict: TensorDictBase, key: NestedKey = "ref_log_prob") -> torch.Tensor:
    """Read the reference policy's log-prob of the stored actions.

    Raises:
        KeyError: if it was not written.
    """
    ref_log_prob = tensordict.get(key, default=None)
    if ref_log_prob is None:
        raise KeyError(
            f"the KL term reads {key!r}, which the rollout does not have: pass reference_policy to the "
            "Trainer, or set kl_coeff=0"
        )
    return ref_log_prob
