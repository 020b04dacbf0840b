"""From logits to tokens and back to log-probabilities: temperature, top-p, and a draw that is given its noise.

One truncation and one draw for step mode, sequence mode and evaluation. With `rlir_env.noise` token i of an episode is
a function of (episode seed, i) and the logits, whatever else is in the batch and however many tokens a step has.

Letters: V codes; ``[...]`` any leading dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Candidates looked at first when truncating: a peaked distribution has its mass in few codes, and sorting thousands
# would cost more than the model.
_FIRST_CANDIDATES = 64


@dataclass(frozen=True)
class TokenSampler:
    """How a code is chosen from logits ``[..., V]``.

    With ``top_p < 1`` log-probabilities are those of the truncated, renormalised distribution: it is what was sampled
    from.

    Attributes:
        temperature: Divides the logits.
        top_p: Keep a code iff the mass strictly before it, in descending order, is at most this; so the crossing code
            stays, and at least one does (MineWorld's rule).
        greedy: Take the most probable code instead of drawing.
        top_k: Keep the codes whose logit is not below the k-th largest, so with ties more than k; None keeps every
            code. Not together with ``top_p``.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    greedy: bool = False
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(
                f"temperature={self.temperature} must be positive; for the most probable token set greedy=True"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be in (0, 1]; 1 keeps every code")
        if self.top_k is not None and (self.top_k < 1 or self.top_p < 1):
            raise ValueError(f"top_k={self.top_k} with top_p={self.top_p}: give a number from 1 on, or top_p, not both")

    def draw(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Choose a code by the inverse of the cumulative distribution.

        Args:
            logits: ``[..., V]``, any float dtype.
            uniform: ``[...]`` float32 in (0, 1); not read if greedy.

        Returns:
            Code ``[...]`` int64 and its log-probability ``[...]`` float32.
        """
        logits = logits.float() / self.temperature
        probs = torch.softmax(logits, dim=-1)
        if self._truncates:
            probs = torch.where(self._is_kept(logits, probs), probs, 0.0)
        cumulative = probs.cumsum(-1)
        total = cumulative[..., -1:]
        if self.greedy:
            code = probs.argmax(-1, keepdim=True)
        else:
            # uniform < 1 strictly, so a code is found, and right=True never finds one of zero probability.
            code = torch.searchsorted(cumulative, uniform[..., None] * total, right=True)
        return code.squeeze(-1), (probs.gather(-1, code) / total).log().squeeze(-1)

    def truncate(self, logits: Tensor, taken: Tensor | None = None) -> Tensor:
        """Logits whose softmax is the distribution that is sampled from, differentiable.

        Args:
            logits: ``[..., V]``.
            taken: Codes ``[...]`` that were sampled. They stay in the support: they were in it, and rounding, or the
                update since, may have put them just outside, where their log-probability would be minus infinity.

        Returns:
            float32 ``[..., V]``, ``-inf`` where truncated.
        """
        logits = logits.float() / self.temperature
        if not self._truncates:
            return logits
        is_kept = self._is_kept(logits.detach(), logits.detach().softmax(-1))
        if taken is not None:
            is_kept = is_kept.scatter(-1, taken[..., None], True)
        return logits.masked_fill(~is_kept, -torch.inf)

    @property
    def _truncates(self) -> bool:
        return self.top_p < 1 or self.top_k is not None

    def _is_kept(self, logits: Tensor, probs: Tensor) -> Tensor:
        """Which codes may be drawn, bool ``[..., V]``."""
        if self.top_k is None:
            return nucleus(probs, self.top_p)
        return logits >= logits.topk(min(self.top_k, logits.shape[-1])).values[..., -1:]


def nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Which codes top-p keeps: those with at most ``top_p`` of the mass strictly before them.

    Args:
        probs: ``[..., V]``, sums to one.
        top_p: In (0, 1).

    Returns:
        bool ``[..., V]``.

    Example:
        >>> nucleus(torch.tensor([0.1, 0.5, 0.4]), 0.5)  # .5 has 0 before it, .4 has .5, .1 has .9
        tensor([False,  True,  True])
    """
    count = min(_FIRST_CANDIDATES, probs.shape[-1])
    while True:
        largest, codes = probs.topk(count, dim=-1)
        before = largest.cumsum(-1) - largest
        if count == probs.shape[-1] or bool((before[..., -1] > top_p).all()):
            return torch.zeros_like(probs, dtype=torch.bool).scatter(-1, codes, before <= top_p)
        count = min(4 * count, probs.shape[-1])
