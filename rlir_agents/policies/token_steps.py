"""Sampled tokens as a distribution whose logits are never all in memory at once.

A frame of the published models has 336 codes out of 8,192: the logits of one video are 165 MB in float32, their softmax
as much again, and a graph keeps both. Log-probabilities need them for one stretch of positions at a time, and make them
again in the backward pass.

Letters: M positions of all rows, V codes; h hidden; ``[...]`` the shape of all actions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution
from torch.distributions.constraints import Constraint

from rlir_agents.world_models.activation_checkpointing import run_layer


class TokenSteps(Distribution):
    """Categoricals over codes, computed from hidden states when they are asked for.

    Attributes:
        hidden: States before the head, ``[M, h]``.
        score: From hidden states ``[m, h]`` and the codes that were taken there ``[m]`` to logits ``[m, V]``.
        action: The codes that were taken, ``[...]`` of M elements: with a truncated sampler they belong to the support.
        positions_per_chunk: How many positions have logits at a time.
    """

    arg_constraints: dict[str, Constraint] = {}
    has_rsample = False

    def __init__(
        self, hidden: Tensor, score: Callable[[Tensor, Tensor], Tensor], action: Tensor, positions_per_chunk: int
    ) -> None:
        """Hold the parameters."""
        self.hidden, self.score, self.action = hidden, score, action
        self.positions_per_chunk = positions_per_chunk
        super().__init__(action.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of codes ``[...]``, float32; differentiable in the hidden states and the head."""
        return self._by_chunk(lambda categorical, codes: categorical.log_prob(codes), value)

    def entropy(self) -> Tensor:
        """Entropy in nats, ``[...]``."""
        return self._by_chunk(lambda categorical, _: categorical.entropy(), self.action)

    def _by_chunk(self, figure: Callable[[Categorical, Tensor], Tensor], value: Tensor) -> Tensor:
        def of_chunk(hidden: Tensor, action: Tensor, codes: Tensor) -> Tensor:
            return figure(Categorical(logits=self.score(hidden, action), validate_args=False), codes)

        parts = (part.split(self.positions_per_chunk) for part in (self.hidden, self.action.flatten(), value.flatten()))
        chunks = [run_layer(of_chunk, True, *chunk) for chunk in zip(*parts, strict=True)]
        return torch.cat(chunks).reshape(self.batch_shape)
