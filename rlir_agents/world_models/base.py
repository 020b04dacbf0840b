"""What a token world model is to everything that uses one: next-token logits, and nothing of RL (paper, section 4.2).

Prompts, rewards, sampling and log-probabilities of actions are *not* here: a policy wraps a world model for that.

Letters: B rows, L sequence length, n positions, h hidden, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable

import torch
from torch import Tensor, nn

from rlir_agents.world_models.kv_cache import KVCache


class DecodingWeights(ABC):
    """A frozen copy of a world model's weights, made for feeding a few tokens at a time."""

    @property
    @abstractmethod
    def cache_key(self) -> Hashable:
        """What a cache is made for, such as sizes, dtype and device: those of equal keys serve each other."""

    @abstractmethod
    def new_cache(self, num_rows: int, max_length: int) -> KVCache:
        """An empty cache for ``num_rows`` sequences of up to ``max_length`` tokens."""

    @abstractmethod
    def feed(self, token: Tensor, cache: KVCache) -> Tensor:
        """Append tokens ``[B, n]`` to what the cache holds; logits ``[B, num_codes]`` of what follows the last."""


class TokenWorldModel(nn.Module, ABC):
    """A causal model over sequences of visual codes and action-word ids.

    Codes are ids 0 .. num_codes-1; the ids behind them belong to game actions and are read, never generated.

    Attributes:
        num_codes: Visual codes.
        vocab_size: All ids.
        hidden_size: h.
        max_length: Longest sequence the model is made for.
        checkpoints_activations: Make the layers' activations again in the backward pass, which takes one more forward
            pass and much less memory; numbers are the same.
    """

    checkpoints_activations: bool = False
    num_codes: int
    vocab_size: int
    hidden_size: int
    max_length: int

    @abstractmethod
    def hidden(self, token: Tensor) -> Tensor:
        """Final hidden states ``[B, L, h]`` of sequences ``[B, L]``; position i has read tokens 0 .. i."""

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores ``[..., V]`` of the token that follows each hidden state ``[..., h]``."""

    @abstractmethod
    def decoding_weights(self, dtype: torch.dtype) -> DecodingWeights:
        """A frozen copy of the weights for decoding, matrix products in ``dtype``."""

    def forward(self, token: Tensor, positions: Tensor | None = None) -> Tensor:
        """Score the token after each position.

        Args:
            token: Ids ``[B, L]``.
            positions: Where logits are wanted, ``[n]`` or ``[B, n]``; None means everywhere. The head is often the
                largest product of a small model, and action words need no logits.

        Returns:
            ``[B, L, V]`` or ``[B, n, V]``.

        Raises:
            ValueError: if the sequence is longer than ``max_length``.
        """
        hidden = self.hidden(token)
        return self.logits(hidden if positions is None else hidden_at(hidden, positions))


def hidden_at(hidden: Tensor, positions: Tensor) -> Tensor:
    """Hidden states ``[B, L, h]`` at positions ``[n]`` or ``[B, n]``: ``[B, n, h]``."""
    if positions.ndim == 1:
        return hidden[:, positions]
    rows = torch.arange(len(hidden), device=hidden.device)[:, None]
    return hidden[rows, positions]
