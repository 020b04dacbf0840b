"""A world model in one file: a recurrent network, the oldest kind (Ha and Schmidhuber, 2018), in MineWorld's place.

It reads the same sequence, ``image, action word, image, ...`` (Eq. 4), and predicts the next visual code. What it knows
of the past is one vector, so its cache does not grow; a real video needs more memory than that. Nothing of RL is in
here. `README.md` beside this file is the recipe.

Letters: B rows, L sequence length, n new tokens, h hidden, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlir_agents.world_models import DecodingWeights, KVCache, TokenWorldModel


@dataclass(frozen=True)
class GRUConfig:
    """Sizes; the names that MineWorld has too are the same.

    Attributes:
        num_codes: Visual codes; ids from there to ``vocab_size`` belong to action words.
        vocab_size: All ids.
        hidden_size: h.
        max_position_embeddings: Longest sequence.
    """

    num_codes: int
    vocab_size: int
    hidden_size: int = 64
    max_position_embeddings: int = 1024


class GRUWorldModel(TokenWorldModel):
    """Embedding, one gated recurrent layer, linear head."""

    def __init__(self, config: GRUConfig) -> None:
        """Make an untrained model; weights come from torch's global generator."""
        super().__init__()
        self.config = config
        self.num_codes, self.vocab_size = config.num_codes, config.vocab_size
        self.hidden_size, self.max_length = config.hidden_size, config.max_position_embeddings
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.gru = nn.GRU(config.hidden_size, config.hidden_size, batch_first=True)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)

    def hidden(self, token: Tensor) -> Tensor:
        """States ``[B, L, h]``: sequence mode, which losses use."""
        return self.gru(self.embedding(token.long()))[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores ``[..., V]``."""
        return self.head(hidden)

    def decoding_weights(self, dtype: torch.dtype) -> GRUDecoding:
        """A frozen copy of the weights: step mode, which collection uses."""
        return GRUDecoding(copy.deepcopy(self).to(dtype).requires_grad_(False))


class GRUDecoding(DecodingWeights):
    """Reads a few tokens at a time."""

    def __init__(self, model: GRUWorldModel) -> None:
        """Keep a copy that nobody trains."""
        self._model = model

    @property
    def cache_key(self) -> Hashable:
        """Caches of equal keys serve each other."""
        weight = self._model.head.weight
        return GRUDecoding, weight.shape, weight.dtype, weight.device

    def new_cache(self, num_rows: int, max_length: int) -> RecurrentCache:
        """An empty cache."""
        weight = self._model.head.weight
        return RecurrentCache(weight.new_zeros(1, num_rows, self._model.hidden_size))

    @torch.no_grad()
    def feed(self, token: Tensor, cache: RecurrentCache) -> Tensor:
        """Append tokens ``[B, n]``; scores ``[B, num_codes]`` of the code that follows."""
        hidden, state = self._model.gru(self._model.embedding(token.long()), cache.state)
        cache.append(state, token.shape[1])
        return self._model.logits(hidden[:, -1])[:, : self._model.num_codes]


class RecurrentCache(KVCache):
    """All that was read, as one vector a row, under the interface that decoding asks of a cache.

    Attributes:
        state: ``[1, B, h]``.
    """

    def __init__(self, state: Tensor) -> None:
        """Start from this state, with nothing read."""
        super().__init__(layers=[])
        self.state = state
        self._length = 0

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return self._length

    @property
    def num_bytes(self) -> int:
        """Memory of the state."""
        return self.state.nbytes

    def append(self, state: Tensor, num_tokens: int) -> None:
        """Take the state after ``num_tokens`` more tokens."""
        self.state = state
        self._length += num_tokens

    def clear(self) -> None:
        """Forget everything."""
        self.state = torch.zeros_like(self.state)
        self._length = 0

    def copy_rows(self, source: RecurrentCache, rows: Tensor) -> None:
        """Take row i from row ``rows[i]`` of ``source``: siblings share one reading of their prompt."""
        self.state = source.state[:, rows]
        self._length = source.length
