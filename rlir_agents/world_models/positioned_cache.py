"""Keys and values by their place in the sequence, for tokens that are not read in order (`diagonal_decoding.py`).

Letters: B rows, H query heads, KV key/value heads, L sequence length, n new positions, d head dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rlir_agents.world_models.kv_cache import pack_heads, unpack_heads


class PositionedCache:
    """Keys and values by their place in the sequence; zero where nothing was written, and read even so.

    Attributes:
        keys: By layer, ``[B, KV, L, d]``.
        values: The same.
        length: Places up to which a video has been made; for whoever goes on with it.
    """

    def __init__(
        self, num_layers: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        """Allocate ``shape = (B, KV, L, d)`` for every layer."""
        self.keys, self.values = (
            [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)] for _ in range(2)
        )
        self.length = 0

    @property
    def num_bytes(self) -> int:
        """Memory allocated."""
        return sum(entry.nbytes for entry in (*self.keys, *self.values))

    def clear(self) -> None:
        """Write zeros and keep the memory."""
        for entry in (*self.keys, *self.values):
            entry.zero_()
        self.length = 0

    def attend(self, layer: int, positions: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Write n places and let their queries attend to every place up to their own.

        Args:
            layer: Index of the layer.
            positions: Ascending, long ``[n]``.
            query: ``[B, H, n, d]``.
            key: ``[B, KV, n, d]``.
            value: ``[B, KV, n, d]``.

        Returns:
            ``[B, H, n, d]``.
        """
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, positions], values[:, :, positions] = key, value
        end = int(positions[-1]) + 1
        is_visible = torch.arange(end, device=positions.device) <= positions[:, None]
        packed = pack_heads(query, keys.shape[1])
        mask = is_visible.repeat(packed.shape[2] // len(positions), 1)
        attended = F.scaled_dot_product_attention(packed, keys[:, :, :end], values[:, :, :end], attn_mask=mask)
        return unpack_heads(attended, len(positions))
