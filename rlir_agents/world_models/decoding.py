"""The one loop that samples visual tokens from a world model (Eq. 4), with a cache, for policies and for evaluation.

Tokens are read once each; siblings share one reading of their prompt. What a video's prompt and words are, and what a
video is worth, is *not* known here.

Letters: B rows, L sequence length, K tokens of a frame, A word length, F frames, n known tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlir_agents.world_models.base import DecodingWeights, TokenWorldModel
from rlir_agents.world_models.kv_cache import KVCache
from rlir_agents.world_models.sampling import TokenSampler, counter_uniform
from rlir_env.layout import TokenLayout


class Decoder:
    """What has been read so far of B videos, and the sampling of what comes next.

    It keeps a copy of the weights in the decoding dtype, made anew at every start, and the cache's memory. Both are
    dropped when the decoder is pickled or deep-copied.

    Attributes:
        sampler: How a code is chosen.
        dtype: Of matrix products and the cache; None takes the weights' own.
    """

    def __init__(self, sampler: TokenSampler, dtype: torch.dtype | None = None) -> None:
        """Start with nothing read."""
        self.sampler = sampler
        self.dtype = dtype
        self._weights: DecodingWeights | None = None
        self._weights_version: tuple[tuple[int, int], ...] = ()
        self._cache: KVCache | None = None
        self._cache_case: tuple[int, int] = (0, 0)
        self._read: Tensor | None = None

    def __getstate__(self) -> dict[str, object]:
        """Settings only."""
        return {"sampler": self.sampler, "dtype": self.dtype}

    def __setstate__(self, state: dict[str, object]) -> None:
        """A decoder of the same settings that has read nothing."""
        self.__init__(**state)

    @property
    def cache_bytes(self) -> int:
        """Memory of the cache as it stands."""
        return 0 if self._cache is None else self._cache.num_bytes

    def start(self, world_model: TokenWorldModel, token: Tensor, num_known: int) -> None:
        """Read the beginning of videos, equal beginnings once.

        Args:
            world_model: Read from now on, as its weights are at this moment.
            token: Integer ``[B, L]``; kept, and read as it fills.
            num_known: n of it are known. The last is not read yet: the next :meth:`sample` does.
        """
        dtype = next(world_model.parameters()).dtype if self.dtype is None else self.dtype
        self._weights = world_model.decoding_weights(dtype)
        self._weights_version = _version(world_model)
        self._prepare_cache(*token.shape)
        self._read = token
        if num_known > 1:
            beginnings, rows = token[:, : num_known - 1].unique(dim=0, return_inverse=True)
            shared = self._weights.new_cache(*beginnings.shape)
            self._weights.feed(beginnings, shared)
            self._cache.copy_rows(shared, rows)

    def resume(self, world_model: TokenWorldModel, token: Tensor, num_known: int) -> None:
        """Go on where the last :meth:`sample` stopped, or start anew if that is not where ``token`` stands.

        It is a new start when rows, known tokens or weights differ from what was read.
        """
        if not self._has_read(token, num_known) or self._weights_version != _version(world_model):
            self.start(world_model, token, num_known)
        self._read = token

    @torch.no_grad()
    def sample(self, first: int, count: int, seed: Tensor) -> tuple[Tensor, Tensor]:
        """Sample the tokens at ``first .. first + count - 1``, all before being known, and write them.

        Args:
            first: Index in the sequence.
            count: How many.
            seed: Episode seeds, long ``[B]``.

        Returns:
            Codes, long ``[B, count]``, and their log-probabilities, float32 ``[B, count]``.
        """
        positions = torch.arange(first, first + count, device=seed.device)
        uniform = counter_uniform(seed[:, None], positions)
        codes = torch.empty(len(seed), count, dtype=torch.long, device=seed.device)
        log_probs = torch.empty(len(seed), count, device=seed.device)
        for i in range(count):
            unread = self._read[:, self._cache.length : first + i]
            logits = self._weights.feed(unread, self._cache)
            codes[:, i], log_probs[:, i] = self.sampler.draw(logits, uniform[:, i])
            self._read[:, first + i] = codes[:, i]
        return codes, log_probs

    def generate(
        self, world_model: TokenWorldModel, token: Tensor, word: Tensor, layout: TokenLayout, seed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sample whole videos: frame by frame, each followed by the next action word.

        Args:
            world_model: The generator.
            token: Integer ``[B, L]`` with the prompt in front; filled in place.
            word: Ids of the action words, integer ``[B, F-1, A]``; the first is in the prompt.
            layout: Where frames and words stand.
            seed: Episode seeds, long ``[B]``.

        Returns:
            ``token``, complete, and the log-probabilities of the sampled ones, float32 ``[B, (F-1) K]``.
        """
        self.start(world_model, token, layout.prompt_length)
        log_probs = []
        for frame, first in enumerate(layout.frame_starts.tolist()[1:], start=1):
            log_probs.append(self.sample(first, layout.tokens_per_frame, seed)[1])
            if frame < layout.num_generated_frames:
                token[:, layout.word_positions[frame]] = word[:, frame].to(token.dtype)
        return token, torch.cat(log_probs, dim=1)

    def _has_read(self, token: Tensor, num_known: int) -> bool:
        if self._read is None or self._read.shape != token.shape:
            return False
        length = self._cache.length
        return length < num_known and torch.equal(self._read[:, :length], token[:, :length])

    def _prepare_cache(self, num_rows: int, max_length: int) -> None:
        if self._cache is None or self._cache_case != (num_rows, max_length):
            self._cache = None  # free the old one first
            self._cache = self._weights.new_cache(num_rows, max_length)
            self._cache_case = num_rows, max_length
        self._cache.clear()


def _version(world_model: TokenWorldModel) -> tuple[tuple[int, int], ...]:
    """Changes whenever a weight is replaced or written in place, as an optimiser does."""
    return tuple((id(weight), weight._version) for weight in world_model.parameters())
