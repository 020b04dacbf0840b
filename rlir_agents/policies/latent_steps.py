"""Denoising steps as a distribution: independent Gaussians, of which a loss may count only some.

Letters: n steps that count; c, h, w a latent's channels, height and width; ``[...]`` the shape of all steps.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from rlir_env.schedules import gaussian_log_prob


class LatentSteps(Distribution):
    """Where denoising steps lead: ``N(mean, std^2)`` for those that count, nothing for the others.

    Log-probabilities and entropies of the others are 0, and no gradient flows through them: their place in a rollout is
    masked (``loss_mask``). With ``reduction="mean"`` both are means over a latent's dimensions, as in DanceGRPO's code,
    not densities.

    Attributes:
        mean_latent: Of the steps that count, ``[n, c, h, w]``.
        std: Theirs, ``[n]``.
        is_counted: Which these are, bool ``[...]``.
        reduction: ``"mean"`` or ``"sum"`` over c, h, w.
    """

    arg_constraints: dict[str, Constraint] = {}
    has_rsample = False

    def __init__(
        self, mean_latent: Tensor, std: Tensor, is_counted: Tensor, reduction: Literal["mean", "sum"] = "mean"
    ) -> None:
        """Hold the parameters; n is how many of ``is_counted`` are true."""
        self.mean_latent, self.std, self.is_counted = mean_latent, std, is_counted
        self.reduction: Literal["mean", "sum"] = reduction
        super().__init__(is_counted.shape, mean_latent.shape[1:], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of latents ``[..., c, h, w]``, float32 ``[...]``; differentiable in the mean."""
        taken = value[self.is_counted].detach()
        return self._spread(gaussian_log_prob(taken, self.mean_latent, self.std, self.reduction))

    @property
    def mean(self) -> Tensor:
        """Means ``[..., c, h, w]``; 0 where a step does not count."""
        means = self.mean_latent.new_zeros(*self.batch_shape, *self.event_shape)
        means[self.is_counted] = self.mean_latent
        return means

    def kl_to(self, ref_mean: Tensor) -> Tensor:
        """KL(this || the same steps with other means ``[..., c, h, w]``), ``[...]``, reduced as log-probs are."""
        z = (self.mean_latent - ref_mean[self.is_counted]) / self.std[:, None, None, None]
        squares = 0.5 * z.square().flatten(1)
        return self._spread(squares.mean(1) if self.reduction == "mean" else squares.sum(1))

    def entropy(self) -> Tensor:
        """Entropy in nats, ``[...]``: of a dimension, or with ``"sum"`` of the latent."""
        entropy = self.std.log() + 0.5 * math.log(2 * math.pi * math.e)
        return self._spread(entropy * (1 if self.reduction == "mean" else math.prod(self.event_shape)))

    def _spread(self, values: Tensor) -> Tensor:
        return values.new_zeros(self.batch_shape).masked_scatter(self.is_counted, values)
