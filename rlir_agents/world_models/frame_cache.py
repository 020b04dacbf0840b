"""Keys and values of frames that are finished, and of the one under way, so that a denoising step costs one frame.

Preallocated for the longest video. The frame under way is written behind the finished ones and attends to one stretch
of memory; the next denoising step overwrites it, until it is finished and counts. Nothing is ever rebuilt: the context
noise of a finished frame is drawn once (the reference draws it anew for every frame, at 1.6 times the cost; reference
page, section 1.6).

Letters: B rows, H heads, F frames, S tokens of a frame, D head dimension, n queries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlir_agents.world_models.frame_attention import attend


class FrameCache:
    """Keys and values of B videos, all layers.

    Attributes:
        num_frames: Finished frames.
        max_frames: How many fit, the one under way among them.
    """

    def __init__(
        self,
        num_layers: int,
        shape: tuple[int, int, int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        rows_per_video: int = 1,
    ) -> None:
        """Allocate memory.

        Args:
            num_layers: Layers that attend across frames.
            shape: (B, H, F, S, D) of each.
            dtype: Of keys and values.
            device: Where they are.
            rows_per_video: More than one where places of a frame do not see one another and are rows of their own, S
                being 1; B counts all of them here.
        """
        num_rows, num_heads, self.max_frames, self._tokens_per_frame, head_dim = shape
        self._rows_per_video = rows_per_video
        length = self.max_frames * self._tokens_per_frame
        self.num_frames = 0

        def allocate(*inner: int) -> Tensor:
            return torch.zeros(num_rows, num_heads, *inner, dtype=dtype, device=device)

        self.values = [allocate(length, head_dim) for _ in range(num_layers)]
        # A CPU multiplies by transposed keys, and transposing them for every denoising step would take longer.
        is_cpu = torch.device(device).type == "cpu"
        self.keys = [allocate(head_dim, length).mT if is_cpu else torch.zeros_like(v) for v in self.values]

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.values[0]) // self._rows_per_video

    @property
    def num_bytes(self) -> int:
        """Memory allocated: 2 x layers x B x H x F x S x D elements."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def clear(self) -> None:
        """Forget everything and keep the memory."""
        self.num_frames = 0

    def copy_rows(self, source: FrameCache, rows: Tensor) -> None:
        """Take video i from video ``rows[i]`` of ``source``: siblings share one reading of their prompt."""
        places = torch.arange(self._rows_per_video, device=rows.device)
        rows = (rows[:, None] * self._rows_per_video + places).flatten()
        self.num_frames = source.num_frames
        filled = self.num_frames * self._tokens_per_frame
        for mine, theirs in zip((*self.keys, *self.values), (*source.keys, *source.values), strict=True):
            mine[:, :, :filled] = theirs[rows, :, :filled]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend with a frame under way to the finished frames and to itself.

        Args:
            layer: Index of the layer.
            query: ``[B, H, 1, S, D]``, rotated and scaled.
            key: ``[B, H, 1, S, D]``, rotated.
            value: ``[B, H, 1, S, D]``.

        Returns:
            ``[B, H, 1, S, D]``.
        """
        start = self.num_frames * self._tokens_per_frame
        end = start + self._tokens_per_frame
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, start:end], values[:, :, start:end] = key[:, :, 0], value[:, :, 0]
        return attend(query[:, :, 0], keys[:, :, :end], values[:, :, :end])[:, :, None]

    def finish_frame(self) -> None:
        """Keep the frame under way as it was last read."""
        self.num_frames += 1
