"""GRPO's objective (Eq. 2): TorchRL's clipped loss, plus the KL leash from the same forward.

With a group-relative advantage, `ClipPPOLoss` without a critic *is* GRPO without KL, for tokens as
for latents; this file only adds the second half of Eq. 2. TorchRL's own `GRPOLoss` is written for
language models and needs an adapter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch.distributions import Distribution
from torchrl.objectives import ClipPPOLoss

from rlir_agents.losses.kl_to_reference import kl_to_reference


class GRPOLoss(ClipPPOLoss):
    """The clipped loss, and ``kl_coeff`` times the divergence from the reference policy (`kl_to_reference`).

    At ``kl_coeff=0`` it is `ClipPPOLoss`, number for number. One ratio per sampled token or
    denoising step; an advantage [..., T, 1] is shared by those of an env step. ``set_keys`` renames the entries of the
    reference policy, ``ref_log_prob`` and ``ref_mean``, beside the keys of `ClipPPOLoss`.

    Data without log-probs of the actions are taken to be the policy's own, as they are when a batch is learnt from by
    one update: the ratio is 1, and its gradient that of the log-prob.
    """

    @dataclass
    class _AcceptedKeys(ClipPPOLoss._AcceptedKeys):
        """Keys that `set_keys` can rename."""

        ref_log_prob: NestedKey = "ref_log_prob"
        ref_mean: NestedKey = "ref_mean"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        critic_network: TensorDictModuleBase | None = None,
        *,
        clip_epsilon: float | tuple[float, float] = 0.2,
        kl_coeff: float = 0.0,
        entropy_coeff: float = 0.0,
        loss_mask_key: NestedKey = "loss_mask",
        **kwargs: object,
    ) -> None:
        """Make the loss.

        Args:
            actor_network: policy with ``get_dist``.
            critic_network: optional; PPO with a KL leash then.
            clip_epsilon: epsilon of Eq. 2, or (low, high) as in DAPO.
            kl_coeff: beta of Eq. 2; above zero the rollout must hold the entries of a reference.
            entropy_coeff: weight of an entropy bonus, which Eq. 2 does not have. At zero the
                entropy is still reported, without a gradient graph of the size of the logits.
            loss_mask_key: entry that is False where an action does not count; absent, all count.
            **kwargs: further keywords of `ClipPPOLoss`.
        """
        if kl_coeff < 0:
            raise ValueError(f"kl_coeff={kl_coeff}: must be at least 0, or distance from the reference is paid")
        # functional=False keeps the policy an ordinary sub-module, which DDP and FSDP need.
        super().__init__(
            actor_network,
            critic_network,
            clip_epsilon=clip_epsilon,
            entropy_coeff=entropy_coeff,
            functional=False,
            **kwargs,
        )
        self.kl_coeff = kl_coeff
        self.loss_mask_key = loss_mask_key
        self._has_entropy_bonus = entropy_coeff != 0
        self._current: tuple[torch.Tensor, Distribution, bool] | None = None
        self._entropy: torch.Tensor | None = None  # of that distribution, [..., T, k, 1]

    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Return `ClipPPOLoss`'s entries, and ``loss_kl_to_ref``, ``kl_to_ref`` if leashed."""
        tensordict, key = tensordict.copy(), self.tensor_keys.sample_log_prob
        try:
            if tensordict.get(key, default=None) is None:
                tensordict[key] = self._get_cur_log_prob(tensordict)[0].detach()
            losses = super().forward(tensordict)
            losses.update(self._counted_figures(tensordict))
            if self.kl_coeff:
                log_prob, dist, _ = self._get_cur_log_prob(tensordict)
                keys = (self.tensor_keys.ref_log_prob, self.tensor_keys.ref_mean)
                divergence = kl_to_reference(dist, log_prob, tensordict, *keys)
                kl = self._reduce_loss(divergence.unsqueeze(-1), tensordict)  # an objective's shape, [..., T, k, 1]
                losses["loss_kl_to_ref"] = self.kl_coeff * kl
                losses["kl_to_ref"] = kl.detach()
        finally:
            self._current = self._entropy = None  # do not keep the graph alive between calls
        return losses

    def _counted_figures(self, tensordict: TensorDictBase) -> dict[str, torch.Tensor]:
        """TorchRL's figures, over the actions that count: it takes them over all."""
        mask = self._action_mask(tensordict)
        if mask is None or not mask.any():
            return {}
        log_prob = self._get_cur_log_prob(tensordict)[0].detach()
        log_ratio = (log_prob - tensordict[self.tensor_keys.sample_log_prob])[mask]
        low, high = self._clip_bounds
        entropy = {} if self._entropy is None else {"entropy": self._entropy.detach().squeeze(-1)[mask].mean()}
        return entropy | {
            "clip_fraction": ((log_ratio < low) | (log_ratio > high)).float().mean(),
            "kl_approx": -log_ratio.mean(),
            "max_ratio": log_ratio.max().exp(),
            "mean_ratio": log_ratio.exp().mean(),
        }

    def _action_mask(self, tensordict: TensorDictBase) -> torch.Tensor | None:
        """Which actions count, of the log-probs' shape; None if there is no such mask."""
        mask = None if self.loss_mask_key is None else tensordict.get(self.loss_mask_key, default=None)
        is_of_actions = mask is not None and mask.shape == tensordict[self.tensor_keys.sample_log_prob].shape
        return mask if is_of_actions else None

    def _reduce_loss(
        self, loss: torch.Tensor, tensordict: TensorDictBase | None = None, **kwargs: object
    ) -> torch.Tensor:
        # A mask of the log-probs' shape says which actions count; a critic's loss [..., T, 1] is of states, and all of
        # them count. (TorchRL would take the one for the other, or fail.)
        mask = None if tensordict is None else self._action_mask(tensordict)
        if mask is not None and loss.ndim == mask.ndim and loss.shape[-1] == 1:
            tensordict = None
        return super()._reduce_loss(loss, tensordict, **kwargs)

    def _get_cur_log_prob(
        self, tensordict: TensorDictBase, params: TensorDictBase | None = None
    ) -> tuple[torch.Tensor, Distribution, bool]:
        # Everything here asks for the same log-prob: one forward of the world model a call serves all.
        if params is not None:  # another policy's
            return super()._get_cur_log_prob(tensordict, params)
        if self._current is None:
            self._current = super()._get_cur_log_prob(tensordict)
        return self._current

    def _get_entropy(self, dist: Distribution, adv_shape: torch.Size) -> torch.Tensor:
        with torch.set_grad_enabled(self._has_entropy_bonus and torch.is_grad_enabled()):
            self._entropy = super()._get_entropy(dist, adv_shape)
        return self._entropy
