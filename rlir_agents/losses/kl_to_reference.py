"""The leash of Eq. 2: beta * KL(policy || reference), estimated on the sampled tokens.

The paper uses it (1e-4) only for the smallest MineWorld. TorchRL's own term averages over masked
positions too, which scales the coefficient by the density of the mask; here the mean runs over what
counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torchrl.objectives import LossModule


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


class KLToReference(LossModule):
    """``kl_coeff`` times the mean k3 divergence between the policy and its frozen start.

    Alone it costs a forward of its own; `GRPOLoss` adds the same term to the clipped loss from one
    forward.
    """

    @dataclass
    class _AcceptedKeys(LossModule._AcceptedKeys):
        """Keys that `set_keys` can rename."""

        action: NestedKey = "action"
        ref_log_prob: NestedKey = "ref_log_prob"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        *,
        kl_coeff: float = 1e-4,
        loss_mask_key: NestedKey = "loss_mask",
    ) -> None:
        """Make the term.

        Args:
            actor_network: policy with ``get_dist``; it is trained.
            kl_coeff: the paper's beta.
            loss_mask_key: entry that is False where an action does not count; absent, all count.
        """
        super().__init__()
        self.actor_network = actor_network
        self.reduction = "mean"
        self.kl_coeff = kl_coeff
        self.loss_mask_key = loss_mask_key
        self.in_keys = [*actor_network.in_keys, "action", "ref_log_prob"]
        self.out_keys = ["loss_kl_to_ref", "kl_to_ref"]

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None:
        """There is no value estimator whose keys would follow."""

    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Return ``loss_kl_to_ref`` (to be minimised) and ``kl_to_ref`` (detached, in nats)."""
        dist = self.actor_network.get_dist(tensordict)
        log_prob = dist.log_prob(tensordict[self.tensor_keys.action])
        divergence = k3(log_prob, stored_ref_log_prob(tensordict, self.tensor_keys.ref_log_prob))
        kl = self._reduce_loss(divergence, tensordict)
        return TensorDict({"loss_kl_to_ref": self.kl_coeff * kl, "kl_to_ref": kl.detach()})
