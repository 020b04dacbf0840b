"""Keys and values of tokens already read, so that a token costs one pass instead of a whole sequence (Eq. 4's loop).

Preallocated for the longest sequence, filled in order, one tensor pair a layer. How a layer stores and reads them is
chosen by device: plain here, blocked for the CPU in `cpu_cache.py`.

Letters: B rows, H query heads, KV key/value heads, r = H / KV, n new positions, l filled length, d head dimension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from rlir_agents.world_models.layers import causal_attention


class LayerCache(ABC):
    """Keys and values of one layer.

    Attributes:
        keys: ``[B, KV, slots, ...]``, in the subclass's layout.
        values: ``[B, KV, L, d]``.
        length: Positions filled so far.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        """Start empty on this memory."""
        self.keys = keys
        self.values = values
        self.length = 0

    @property
    def num_bytes(self) -> int:
        """Memory allocated."""
        return self.keys.nbytes + self.values.nbytes

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Append n positions and let their queries attend to everything up to themselves.

        Args:
            query: ``[B, H, n, d]``.
            key: ``[B, KV, n, d]``.
            value: ``[B, KV, n, d]``.

        Returns:
            ``[B, H, n, d]``.
        """
        is_empty = self.length == 0
        self._append(key, value)
        self.length += key.shape[2]
        # The first tokens see only one another: nothing has to be read back.
        return causal_attention(query, key, value) if is_empty else self._read(query)

    def copy_rows(self, source: LayerCache, rows: Tensor) -> None:
        """Become a copy of ``source``, of the same class, with row i taken from its row ``rows[i]``."""
        self.length = source.length
        slots = self._key_slots()
        self.keys[:, :, :slots] = source.keys[rows, :, :slots]
        self.values[:, :, : self.length] = source.values[rows, :, : self.length]

    @abstractmethod
    def _key_slots(self) -> int:
        """How far ``keys`` is in use."""

    @abstractmethod
    def _append(self, key: Tensor, value: Tensor) -> None:
        """Store positions ``length .. length + n - 1``."""

    @abstractmethod
    def _read(self, query: Tensor) -> Tensor:
        """Attend with the queries of the last n positions, which are stored already."""


class PlainLayerCache(LayerCache):
    """Keys as attention reads them, ``[B, KV, L, d]``; for accelerators."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        """Allocate ``shape = (B, KV, L, d)``."""
        keys = torch.zeros(shape, dtype=dtype, device=device)
        super().__init__(keys, torch.zeros_like(keys))

    def _key_slots(self) -> int:
        return self.length

    def _append(self, key: Tensor, value: Tensor) -> None:
        end = self.length + key.shape[2]
        self.keys[:, :, self.length : end] = key
        self.values[:, :, self.length : end] = value

    def _read(self, query: Tensor) -> Tensor:
        num_new = query.shape[2]
        packed = pack_heads(query, self.keys.shape[1])
        mask = None
        if num_new > 1:
            is_visible = visible(self.length, num_new, query.device)
            mask = is_visible.repeat(packed.shape[2] // num_new, 1)
        keys, values = self.keys[:, :, : self.length], self.values[:, :, : self.length]
        attended = F.scaled_dot_product_attention(packed, keys, values, attn_mask=mask)
        return unpack_heads(attended, num_new)


class KVCache:
    """The caches of all layers, for B sequences of equal length."""

    def __init__(self, layers: list[LayerCache]) -> None:
        """Hold one cache a layer, all empty and of one shape."""
        self.layers = layers

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return self.layers[0].length

    @property
    def num_bytes(self) -> int:
        """Memory allocated: 2 x layers x B x KV x L x d elements."""
        return sum(layer.num_bytes for layer in self.layers)

    def clear(self) -> None:
        """Forget everything and keep the memory: fresh pages cost more than the first tokens."""
        for layer in self.layers:
            layer.length = 0

    def copy_rows(self, source: KVCache, rows: Tensor) -> None:
        """Take row i from row ``rows[i]`` of ``source``: siblings share one reading of their prompt."""
        for layer, other in zip(self.layers, source.layers, strict=True):
            layer.copy_rows(other, rows)


def pack_heads(query: Tensor, num_kv_heads: int) -> Tensor:
    """Lay out the r query heads of a KV head as further queries of it, ``[B, H, n, d]`` to ``[B, KV, r n, d]``.

    So grouped-query attention repeats nothing in memory.
    """
    return query.unflatten(1, (num_kv_heads, -1)).flatten(2, 3)


def unpack_heads(attended: Tensor, num_new: int) -> Tensor:
    """Undo :func:`pack_heads`, ``[B, KV, r n, d]`` to ``[B, H, n, d]``."""
    return attended.unflatten(2, (-1, num_new)).flatten(1, 2)


def visible(length: int, num_new: int, device: torch.device) -> Tensor:
    """Which of l positions the last n may see, bool ``[n, l]``: all up to themselves."""
    positions = torch.arange(length, device=device)
    return positions <= positions[length - num_new :, None]
