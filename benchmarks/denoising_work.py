"""The work of NFD in closed form, from its sizes: rollouts, and evaluations of selected denoising steps (section 4.2).

A token passes every layer once, a copy of a frame gets one modulation a layer, and its queries read the keys and values
of the finished frames before it and its own. The sum agrees with section 7 of the reference page on post-training
diffusion models; what that leaves out, embeddings of timesteps and game actions, is counted, too. Products run in the
precision of autocast, but for the thin ones at both ends (`rlir_agents.world_models.dit_layers`).

Letters: B rows, P prompts, F frames, K selected steps, N denoising steps, S tokens of a frame, d hidden; c channels and
p patch size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from benchmarks.work import Work, product
from rlir_agents.world_models import NFDConfig
from rlir_agents.world_models.frame_attention import Frame, FrameLayout
from rlir_agents.world_models.latent import Form

_NUM_TIMESTEP_INPUTS = 256  # sines and cosines


@dataclass(frozen=True)
class DenoisingWork:
    """Counts rollouts of B videos, the first frame of each given, and their evaluation.

    Attributes:
        config: Sizes of the world model.
        num_frames: F.
        num_rows: B.
        dtype: Of products, keys and values.
    """

    config: NFDConfig
    num_frames: int
    num_rows: int
    dtype: torch.dtype

    def evaluation(self, form: Form, num_steps: int, has_backward: bool) -> list[Work]:
        """All generated frames, each at K steps.

        Args:
            form: See `LatentWorldModel.velocity_of_steps`.
            num_steps: K.
            has_backward: Whether the gradients of the weights are counted, too.
        """
        generated = range(1, self.num_frames)
        alone = [FrameLayout(frame + 1, frame, 1, frame) for frame in generated]
        layouts = {
            "A": alone * num_steps,
            "A2": [FrameLayout(frame + 1, frame, num_steps, frame) for frame in generated],
            "B": [FrameLayout(self.num_frames, self.num_frames - 1, 1, 1)] * num_steps,
            "C": [FrameLayout(self.num_frames, self.num_frames - 1, num_steps, 1)],
        }[form]
        passes = (
            self._pass(self.num_rows, layout.frames(), len(layout.noisy_copies), has_backward=has_backward)
            for layout in layouts
        )
        return [work for works in passes for work in works]

    def rollout(self, num_denoising_steps: int, num_prompts: int = 1) -> list[Work]:
        """Whole videos, every finished frame read once.

        Args:
            num_denoising_steps: N.
            num_prompts: P; the siblings of a prompt share one reading of it.
        """
        works = self._pass(num_prompts, [Frame(0, 1, 0)], num_answers=0)
        if num_prompts < self.num_rows:
            works.append(Work(0, (num_prompts + self.num_rows) * self._cache_bytes_of_frame, self.dtype))
        for frame in range(1, self.num_frames):
            one = [Frame(0, 1, frame)]
            works += self._pass(self.num_rows, one, num_answers=1, num_cached=frame) * num_denoising_steps
            if frame + 1 < self.num_frames:  # nobody reads the last one as finished
                works += self._pass(self.num_rows, one, num_answers=0, num_cached=frame)
        return works

    def without_cache(self, frame: int) -> list[Work]:
        """One denoising step of a frame, all frames before it read again."""
        return self._pass(self.num_rows, FrameLayout(frame + 1, num_clean=frame + 1).frames(), num_answers=frame + 1)

    def _pass(
        self, num_rows: int, frames: Sequence[Frame], num_answers: int, num_cached: int = 0, has_backward: bool = False
    ) -> list[Work]:
        """One call of the network.

        Backward, a product is followed by two of the same size, for the gradients of weights and of inputs; each reads
        and writes as much.

        Args:
            num_rows: B.
            frames: What stands in a row.
            num_answers: Copies of a row whose velocity is asked for; the others do without the head.
            num_cached: Frames whose keys and values come from a cache.
            has_backward: Whether gradients are counted.
        """
        num_copies = num_rows * sum(frame.last - frame.first for frame in frames)
        fixed, inner = self._fixed(num_copies), [*self._inner(num_copies), *self._head(num_rows * num_answers)]
        attention = self._attention(num_rows, frames, num_cached)
        works = fixed + inner + [attention] * self.config.num_layers
        if has_backward:
            works += fixed + inner * 2 + [attention.times(2)] * self.config.num_layers
        return works

    def _fixed(self, num_copies: int) -> list[Work]:
        """Products whose inputs are given, so that they need no gradient."""
        c = self.config
        return [
            product(num_copies * c.tokens_per_frame, self._patch_size, c.hidden_size, torch.float32),
            product(num_copies, _NUM_TIMESTEP_INPUTS, c.hidden_size, torch.float32),
            product(num_copies, c.action_dim, c.hidden_size, torch.float32),
        ]

    def _inner(self, num_copies: int) -> Iterator[Work]:
        """All other products with weights, before the head."""
        c, d = self.config, self.config.hidden_size
        num_tokens = num_copies * c.tokens_per_frame
        yield from [product(num_copies, d, d, torch.float32)] * (1 if c.action_embedding == "linear" else 2)
        for _ in range(c.num_layers):
            yield product(num_copies, d, 6 * d, self.dtype)
            yield product(num_tokens, d, 3 * d, self.dtype)
            yield product(num_tokens, d, d, self.dtype)
            yield from [product(num_tokens, d, c.feed_forward_size, self.dtype)] * 2
            yield product(num_tokens, c.feed_forward_size, d, self.dtype)

    def _head(self, num_copies: int) -> list[Work]:
        d = self.config.hidden_size
        if num_copies == 0:
            return []
        return [
            product(num_copies, d, 2 * d, self.dtype),
            product(num_copies * self.config.tokens_per_frame, d, self._patch_size, torch.float32),
        ]

    def _attention(self, num_rows: int, frames: Sequence[Frame], num_cached: int) -> Work:
        """Scores and weighted sums of one layer; queries, keys, values and results pass once, however often reused.

        Backward there are four products where forward there are two, and eight tensors where there are four: queries,
        keys, values, results and the gradients of each. So it is twice the work.
        """
        c = self.config
        num_pairs = sum((frame.last - frame.first) * (frame.num_context + 1) for frame in frames)
        num_copies = sum(frame.last - frame.first for frame in frames)
        flops = 4 * num_rows * num_pairs * c.tokens_per_frame**2 * c.hidden_size
        moved = num_rows * (4 * num_copies + 2 * num_cached) * c.tokens_per_frame * c.hidden_size
        return Work(flops, moved * self.dtype.itemsize, self.dtype)

    @property
    def _patch_size(self) -> int:
        """Numbers of a latent that make a token."""
        return self.config.latent_shape[0] * self.config.patch_size**2

    @property
    def _cache_bytes_of_frame(self) -> int:
        """Keys and values of a frame in all layers."""
        c = self.config
        return 2 * c.num_layers * c.tokens_per_frame * c.hidden_size * self.dtype.itemsize
