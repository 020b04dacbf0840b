"""Playing with MineWorld: frame after frame, each from a game action that was not known before (its demo's loops).

The given frames are real play with its actions, and every frame that is made becomes context for the next. When the
context is full, the oldest frames are dropped and the rest is read again, so play goes on for as long as anyone likes.
MineWorld's benchmark, where all actions are known, is `decoding.generate`; diagonal decoding differs from that of there
in the substitutes: here a row reads the newest code of the row above for its last one.

Letters: B rows, K tokens of a frame, A word length, n frames in the context, w window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from rlir_agents.world_models.decoding import PUBLISHED_SAMPLER, check_ids
from rlir_agents.world_models.diagonal_decoding import Pass, check_window, front, run_schedule
from rlir_agents.world_models.mineworld import MineWorld
from rlir_agents.world_models.sampling import TokenSampler
from rlir_env.layout import TokenLayout

_DEMO_WINDOW = 4


class InteractiveDecoder:
    """B videos under way that grow by a frame at every :meth:`step`.

    The noise of a code is a function of the video's seed and of its place in the whole video, whatever the context has
    dropped.

    Attributes:
        num_made: Frames made so far.
        max_context: Frames that fit, with a word behind each; with so many the oldest are dropped.
    """

    def __init__(
        self,
        model: MineWorld,
        frame_token: Tensor,
        action_token: Tensor,
        decoding: Literal["naive", "image_diagonal"] = "image_diagonal",
        window: int = _DEMO_WINDOW,
        greedy: bool = False,
        *,
        num_kept: int = 8,
        sampler: TokenSampler = PUBLISHED_SAMPLER,
        grid_size: tuple[int, int] = (14, 24),
        seed: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Read the given frames.

        Args:
            model: The generator; its weights as they are now.
            frame_token: Codes of real frames, integer ``[B, n, K]``; the demo has 8.
            action_token: Words between them, integer ``[B, n - 1, A]``.
            decoding: ``"naive"`` samples one code after another, with K + 1 passes for a frame, ``"image_diagonal"``
                many at a time, with (rows - 1) w + columns + 1.
            window: Of the latter: by how many columns a row trails the one above; the demo's is 4.
            greedy: Take the most probable code every time.
            num_kept: Frames that stay when the context is full; the demo has 8.
            sampler: How a code is chosen otherwise.
            grid_size: Rows and columns of a frame's codes.
            seed: Of the noise, long ``[B]``; None takes 0 .. B - 1.
            dtype: Of matrix products and cache; None takes the weights' own.

        Raises:
            ValueError: if shapes, ids, window or kind of decoding do not fit, or the context is too short for them.
        """
        num_rows, num_frames, num_codes = frame_token.shape
        word_length = action_token.shape[-1]
        self._layout = TokenLayout(num_codes, max(2, model.max_length // (num_codes + word_length)), word_length)
        self.max_context = model.max_length // self._layout.block_length
        check_window(self._layout, grid_size, window)
        if action_token.shape[:2] != (num_rows, num_frames - 1):
            raise ValueError(
                f"{num_frames} frames with words of shape {tuple(action_token.shape)}: give one word between each two, "
                f"[{num_rows}, {num_frames - 1}, A]"
            )
        if decoding not in ("naive", "image_diagonal"):
            raise ValueError(f"decoding={decoding!r}: choose 'naive' or 'image_diagonal'")
        if not 1 <= num_kept < self.max_context or num_frames > self.max_context:
            raise ValueError(
                f"the context holds {self.max_context} frames: give at most as many, not {num_frames}, and keep fewer, "
                f"not num_kept={num_kept}"
            )
        self._num_codes, self._vocab_size = model.num_codes, model.vocab_size
        check_ids("frame_token", frame_token, 0, model.num_codes)
        if num_frames > 1:
            check_ids("action_token", action_token, model.num_codes, model.vocab_size)
        self._weights = model.decoding_weights(next(model.parameters()).dtype if dtype is None else dtype)
        self._decoding, self._window, self._num_kept, self._grid_size = decoding, window, num_kept, grid_size
        self._sampler = replace(sampler, greedy=greedy or sampler.greedy)
        self._seed = torch.arange(num_rows, device=frame_token.device) if seed is None else seed
        self.num_made = self._num_dropped = 0
        self._read(frame_token.long(), action_token.long())

    @property
    def num_context(self) -> int:
        """N: frames that the next one sees."""
        return self._num_context

    def step(self, action_token: Tensor) -> Tensor:
        """Make the frame that a game action leads to.

        Args:
            action_token: Its word, integer ``[B, A]``.

        Returns:
            Codes, long ``[B, K]``, in raster order.

        Raises:
            ValueError: if the word is not of this shape, or its ids are none of words.
        """
        if action_token.shape != (len(self._token), self._layout.word_length):
            raise ValueError(
                f"a word of shape {tuple(action_token.shape)}: give [{len(self._token)}, {self._layout.word_length}]"
            )
        check_ids("action_token", action_token, self._num_codes, self._vocab_size)
        if self._num_context == self.max_context:
            frames, words = self._context()
            first = self._num_context - self._num_kept
            self._num_dropped += first
            self._read(frames[:, first:], words[:, first:])
        start = self._num_context * self._layout.block_length
        word = slice(start - self._layout.word_length, start)
        self._token[:, word] = action_token.long()
        dropped = self._num_dropped * self._layout.block_length
        run_schedule(
            self._weights, self._token, self._frame_schedule(start), self._sampler, self._seed, self._cache, dropped
        )
        self._num_context += 1
        self.num_made += 1
        return self._token[:, start : start + self._layout.tokens_per_frame].clone()

    def _frame_schedule(self, start: int) -> Iterator[Pass]:
        """All passes of the frame that begins at ``start``: its word, its codes, and the last of them read."""
        layout = self._layout
        last = start + layout.tokens_per_frame - 1
        word = tuple(range(start - layout.word_length, start))
        yield Pass(word, word, (len(word) - 1,), (start,))
        if self._decoding == "image_diagonal":
            yield from front(layout, [start], self._grid_size, self._window, substitute="newest")
        else:
            yield from (Pass((place,), (place,), (0,), (place + 1,)) for place in range(start, last))
        yield Pass((last,), (last,), (), ())

    def _read(self, frames: Tensor, words: Tensor) -> None:
        """Begin a context anew."""
        layout, num_rows = self._layout, len(frames)
        self._num_context = frames.shape[1]
        self._token = torch.zeros(
            num_rows, layout.block_length * self.max_context, dtype=torch.long, device=frames.device
        )
        places = layout.frame_positions[: self._num_context].flatten().to(frames.device)
        self._token[:, places] = frames.flatten(1)
        self._token[:, layout.word_positions[: self._num_context - 1].to(frames.device)] = words
        self._cache = self._weights.new_positioned_cache(num_rows, self._token.shape[1])
        length = self._num_context * layout.block_length - layout.word_length
        everything = Pass(tuple(range(length)), tuple(range(length)), (), ())
        run_schedule(self._weights, self._token, iter([everything]), self._sampler, self._seed, self._cache)

    def _context(self) -> tuple[Tensor, Tensor]:
        """Frames ``[B, n, K]`` and words ``[B, n - 1, A]`` as they stand."""
        layout, num = self._layout, self._num_context
        return self._token[:, layout.frame_positions[:num]], self._token[:, layout.word_positions[: num - 1]]
