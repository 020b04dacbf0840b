"""Videos sampled frame by frame along diagonals, with their log-probabilities: `Decoder` for MineWorld's fast decoding.

Letters: B rows, K tokens of a frame, L sequence length.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from rlir_agents.world_models.base import DecodingWeights
from rlir_agents.world_models.decoding import Decoder, Reading
from rlir_agents.world_models.diagonal_decoding import check_window, frame_schedule, run_schedule
from rlir_agents.world_models.kv_cache import KVCache
from rlir_agents.world_models.mineworld import MineWorldDecoding
from rlir_agents.world_models.positioned_cache import PositionedCache
from rlir_agents.world_models.sampling import TokenSampler
from rlir_env.layout import TokenLayout


class DiagonalDecoder(Decoder):
    """Samples whole frames by ``"image_diagonal"``, see `diagonal_decoding`; every sibling reads its prompt itself.

    Attributes:
        layout: Where frames and words stand.
        grid_size: Rows and columns of a frame's codes.
        window: By how many columns a row trails the one above.
    """

    def __init__(
        self,
        sampler: TokenSampler,
        dtype: torch.dtype | None,
        layout: TokenLayout,
        grid_size: tuple[int, int],
        window: int,
    ) -> None:
        """Start with nothing read.

        Raises:
            ValueError: if grid or window do not fit the layout.
        """
        super().__init__(sampler, dtype)
        check_window(layout, grid_size, window)
        self.layout, self.grid_size, self.window = layout, grid_size, window

    def __reduce__(self) -> tuple[Any, ...]:
        return DiagonalDecoder, (self.sampler, self.dtype, self.layout, self.grid_size, self.window)

    @torch.no_grad()
    def sample(self, first: int, count: int, seed: Tensor) -> tuple[Tensor, Tensor]:
        """Sample the frame at ``first``, of ``count`` tokens; see the base class."""
        assert self._reading is not None, "start or resume comes first"
        log_prob = self._run(self._reading, first // self.layout.block_length, seed)
        places = slice(first, first + count)
        return self._reading.token[:, places].long(), log_prob[:, places]

    def _read(self, reading: Reading, num_known: int) -> None:
        # What a frame leaves in the cache depends on how it was made: earlier ones are made again, without drawing.
        for frame in range(1, num_known // self.layout.block_length):
            self._run(reading, frame, seed=None)

    def _run(self, reading: Reading, frame: int, seed: Tensor | None) -> Tensor:
        """Make a frame, or without a seed read it as if it was made; log-probabilities ``[B, L]``."""
        weights, cache = cast(MineWorldDecoding, reading.weights), cast(PositionedCache, reading.cache)
        schedule = frame_schedule(self.layout, frame, self.grid_size, self.window)
        if seed is None:
            seed = torch.zeros(len(reading.token), dtype=torch.long)
            schedule = (replace(one, wanted=(), targets=()) for one in schedule)
        log_prob = run_schedule(weights, reading.token, schedule, self.sampler, seed, cache)
        cache.length = int(self.layout.frame_starts[frame]) + self.layout.tokens_per_frame
        return log_prob

    def _new_cache(self, weights: DecodingWeights, num_rows: int, max_length: int) -> KVCache:
        cache = cast(MineWorldDecoding, weights).new_positioned_cache(num_rows, max_length)
        return cast(KVCache, cache)
