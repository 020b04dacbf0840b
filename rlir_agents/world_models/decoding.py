"""The one loop that samples visual tokens from a world model (Eq. 4), with a cache, for policies and for evaluation.

Tokens are read once each; siblings share one reading of their prompt. What a video's prompt and words are, and what a
video is worth, is *not* known here. :func:`generate` is MineWorld's offline inference, its parallel decoding included.

Letters: B rows, L sequence length, K tokens of a frame, A word length, F frames, n known tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from rlir_agents.world_models.base import DecodingWeights, TokenWorldModel
from rlir_agents.world_models.diagonal_decoding import diagonal_schedule, run_schedule
from rlir_agents.world_models.kv_cache import KVCache
from rlir_agents.world_models.mineworld import MineWorld
from rlir_agents.world_models.positioned_cache import PositionedCache
from rlir_agents.world_models.sampling import TokenSampler
from rlir_agents.world_models.weights_version import weights_version
from rlir_env.layout import TokenLayout
from rlir_env.noise import counter_uniform

PUBLISHED_SAMPLER = TokenSampler(top_p=0.8)
"""MineWorld's own choice, in its paper and where its code is told nothing."""


@dataclass
class Reading:
    """Videos under way: the weights they are read by, the cache, and the tokens, which are written as they come."""

    weights: DecodingWeights
    weights_version: tuple[tuple[int, int], ...]
    cache: KVCache
    token: Tensor


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
        self._reading: Reading | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Decoder, (self.sampler, self.dtype)

    @property
    def cache_bytes(self) -> int:
        """Memory of the cache as it stands."""
        return 0 if self._reading is None else self._reading.cache.num_bytes

    def start(self, world_model: TokenWorldModel, token: Tensor, num_known: int) -> None:
        """Read the beginning of videos, equal beginnings once.

        Args:
            world_model: Read from now on, as its weights are at this moment.
            token: Integer ``[B, L]``; kept, and read as it fills.
            num_known: n of it are known. The last is not read yet: the next :meth:`sample` does.
        """
        kept, self._reading = self._reading, None
        last = None if kept is None else ((kept.weights.cache_key, kept.token.shape), kept.cache)
        del kept  # the last copy of the weights goes before the next is made: they may fill most of a memory
        dtype = next(world_model.parameters()).dtype if self.dtype is None else self.dtype
        weights = world_model.decoding_weights(dtype)
        if last is not None and last[0] == (weights.cache_key, token.shape):
            cache = last[1]
            cache.clear()
        else:
            last = None  # frees its memory before as much is asked for
            cache = self._new_cache(weights, *token.shape)
        self._reading = Reading(weights, weights_version(world_model), cache, token)
        self._read(self._reading, num_known)

    def resume(self, world_model: TokenWorldModel, token: Tensor, num_known: int) -> None:
        """Go on where the last :meth:`sample` stopped, or start anew if that is not where ``token`` stands.

        It is a new start when rows, known tokens or weights differ from what was read.
        """
        reading = self._reading
        if reading is None or not _continues(reading, world_model, token, num_known):
            self.start(world_model, token, num_known)
        else:
            reading.token = token

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
        assert self._reading is not None, "start or resume comes first"
        weights, cache, token = self._reading.weights, self._reading.cache, self._reading.token
        positions = torch.arange(first, first + count, device=seed.device)
        uniform = counter_uniform(seed[:, None], positions)
        codes = torch.empty(len(seed), count, dtype=torch.long, device=seed.device)
        log_probs = torch.empty(len(seed), count, device=seed.device)
        for i in range(count):
            logits = weights.feed(token[:, cache.length : first + i], cache)
            codes[:, i], log_probs[:, i] = self.sampler.draw(logits, uniform[:, i])
            token[:, first + i] = codes[:, i]
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

    def _read(self, reading: Reading, num_known: int) -> None:
        """Read what is known of videos that begin, but for the last token."""
        if num_known > 1:
            beginnings, rows = reading.token[:, : num_known - 1].unique(dim=0, return_inverse=True)
            shared = reading.weights.new_cache(*beginnings.shape)
            reading.weights.feed(beginnings, shared)
            reading.cache.copy_rows(shared, rows)

    def _new_cache(self, weights: DecodingWeights, num_rows: int, max_length: int) -> KVCache:
        return weights.new_cache(num_rows, max_length)


def generate(
    model: MineWorld,
    prompt_token: Tensor,
    action_token: Tensor,
    decoding: Literal["naive", "image_diagonal", "video_diagonal"] = "naive",
    window: int = 2,
    greedy: bool = False,
    *,
    sampler: TokenSampler = PUBLISHED_SAMPLER,
    grid_size: tuple[int, int] = (14, 24),
    seed: Tensor | None = None,
    dtype: torch.dtype | None = None,
    cache: PositionedCache | None = None,
) -> Tensor:
    """Continue videos as MineWorld's own code does (its sections 4.4, 4.5 and 4.7 on the reference page).

    Word j of ``action_token`` stands between frames j and j + 1, whichever line of a recording it was made from:
    between frame and line there is an offset of one between MineWorld's benchmark and VPT's recordings
    (`rlir_env.recordings`).

    Args:
        model: The generator.
        prompt_token: Codes of the given frame, integer ``[B, K]``.
        action_token: Ids of the action words, integer ``[B, F, A]``: one for each frame to be made.
        decoding: ``"naive"`` samples one code after another from the model's own distribution, the others many at a
            time from an approximation of it, see `diagonal_decoding`.
        window: Of the latter two: by how many columns a row trails the one above.
        greedy: Take the most probable code every time.
        sampler: How a code is chosen otherwise; by default MineWorld's top-p of 0.8.
        grid_size: Rows and columns of a frame's codes.
        seed: Of the noise, long ``[B]``; None takes 0 .. B - 1.
        dtype: Of matrix products and cache; None takes the weights' own.
        cache: Of the last call, for diagonal decoding that sees its remains, as the published script does from its
            second video on; None starts with an empty one.

    Returns:
        Codes, long ``[B, F K]``, in raster order.

    Raises:
        ValueError: if shapes, window or kind of decoding do not fit, or the video is too long for the model.
    """
    if prompt_token.ndim != 2 or action_token.ndim != 3 or len(prompt_token) != len(action_token):
        raise ValueError(
            f"prompt_token is {tuple(prompt_token.shape)}, action_token {tuple(action_token.shape)}: give codes [B, K] "
            "and words [B, frames, A], for the same B videos"
        )
    check_ids("prompt_token", prompt_token, 0, model.num_codes)
    check_ids("action_token", action_token, model.num_codes, model.vocab_size)
    (num_rows, num_codes), (num_frames, word_length) = prompt_token.shape, action_token.shape[1:]
    layout = TokenLayout(num_codes, num_frames + 1, word_length)
    if layout.sequence_length > model.max_length:
        raise ValueError(
            f"{num_frames} frames are {layout.sequence_length} tokens, more than max_position_embeddings="
            f"{model.max_length}: generate fewer, or take a model made for longer videos"
        )
    device = prompt_token.device
    seed = torch.arange(num_rows, device=device) if seed is None else seed
    sampler = replace(sampler, greedy=greedy or sampler.greedy)
    token = torch.zeros(num_rows, layout.sequence_length, dtype=torch.long, device=device)
    token[:, :num_codes] = prompt_token
    token[:, layout.word_positions.to(device)] = action_token.long()
    if decoding == "naive":
        Decoder(sampler, dtype).generate(model, token, action_token, layout, seed)
    else:
        weights = model.decoding_weights(next(model.parameters()).dtype if dtype is None else dtype)
        schedule = diagonal_schedule(layout, grid_size, window, decoding)
        cache = weights.new_positioned_cache(num_rows, layout.sequence_length) if cache is None else cache
        run_schedule(weights, token, schedule, sampler, seed, cache)
    return token[:, layout.action_positions.to(device)]


def check_ids(name: str, ids: Tensor, least: int, limit: int) -> None:
    """Raise ValueError where ids are not ``least .. limit - 1``: words have the codes' number added to their own."""
    if ids.numel() == 0:
        raise ValueError(f"{name} is {tuple(ids.shape)}: there is nothing in it")
    if ids.min() < least or ids.max() >= limit:
        raise ValueError(f"{name} has ids {int(ids.min())} to {int(ids.max())}: they are {least} to {limit - 1}")


def _continues(reading: Reading, world_model: TokenWorldModel, token: Tensor, num_known: int) -> bool:
    """Whether ``token`` goes on from what was read, by the same weights."""
    length = reading.cache.length
    if reading.token.shape != token.shape or reading.token.device != token.device or length >= num_known:
        return False
    is_same_beginning = torch.equal(reading.token[:, :length], token[:, :length])
    return is_same_beginning and reading.weights_version == weights_version(world_model)
