"""Reading a key/value cache at memory speed on a CPU, without a compiler.

With one query per head, attention is two weighted sums over rows of the cache: output = sum_i p_i v_i, and, with keys
stored transposed, scores = sum_j q_j K^T_j. `embedding_bag` *is* a weighted sum of rows, and its kernel streams rows
nearly at the speed of the memory, where matrix products with so few rows, and the attention kernels made of them,
repack the whole cache for every token. On a two-core Zen 5 in bfloat16 (B = 256, H = 4, l = 480) it is 2 to 10 times as
fast as `scaled_dot_product_attention`, most where KV = H.

Keys are stored in blocks of 128 positions, transposed inside the block, so that one token appends to one block and only
filled blocks are read.

Letters: B rows, H query heads, KV key/value heads, r = H / KV, n new positions, l filled length, d head dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rlir_agents.world_models.kv_cache import (
    KVCache,
    LayerCache,
    PlainLayerCache,
    pack_heads,
    unpack_heads,
    visible,
)

# Positions of a block. A row of 128 bfloat16 keys is four cache lines: long enough to stream (64 takes half as long
# again), short enough to waste little on the last block.
_BLOCK = 128


def new_cache(num_layers: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> KVCache:
    """An empty cache whose layers have ``shape = (B, KV, L, d)``, stored as the device reads it best."""
    if device.type == "cpu":
        bags = BagIndex()
        return KVCache([CPULayerCache(shape, dtype, bags) for _ in range(num_layers)])
    return KVCache([PlainLayerCache(shape, dtype, device) for _ in range(num_layers)])


class CPULayerCache(LayerCache):
    """Keys ``[B, KV, L / 128, d, 128]``, values ``[B, KV, L, d]``."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, bags: BagIndex) -> None:
        """Allocate ``shape = (B, KV, L, d)``, L rounded up to whole blocks.

        Args:
            shape: As above.
            dtype: Of the cache.
            bags: Which rows a query sums over; shared by the layers, which all need the same.
        """
        num_rows, num_kv_heads, max_length, head_dim = shape
        num_blocks = -(-max_length // _BLOCK)
        keys = torch.zeros(num_rows, num_kv_heads, num_blocks, head_dim, _BLOCK, dtype=dtype)
        super().__init__(keys, torch.zeros(num_rows, num_kv_heads, num_blocks * _BLOCK, head_dim, dtype=dtype))
        self._bags = bags

    def _key_slots(self) -> int:
        """Blocks with a key in them."""
        return -(-self.length // _BLOCK)

    def _append(self, key: Tensor, value: Tensor) -> None:
        start, end = self.length, self.length + key.shape[2]
        self.values[:, :, start:end] = value
        first = start
        while first < end:  # block by block; usually a single token
            block, offset = divmod(first, _BLOCK)
            last = min(end, (block + 1) * _BLOCK)
            new = key[:, :, first - start : last - start].transpose(-1, -2)
            self.keys[:, :, block, :, offset : offset + last - first] = new
            first = last

    def _read(self, query: Tensor) -> Tensor:
        return self._read_one(query) if query.shape[2] == 1 else self._read_many(query)

    def _read_many(self, query: Tensor) -> Tensor:
        """At a frame border the last token and the action word come together: few products, but real ones."""
        num_new = query.shape[2]
        packed = pack_heads(query, self.keys.shape[1]) * query.shape[-1] ** -0.5  # [B, KV, r n, d]
        filled = [min(_BLOCK, self.length - _BLOCK * block) for block in range(self._key_slots())]
        blocks = [packed @ self.keys[:, :, block, :, :count] for block, count in enumerate(filled)]
        scores = torch.cat(blocks, dim=-1)  # [B, KV, r n, l]
        is_visible = visible(num_new, num_new, query.device).repeat(packed.shape[2] // num_new, 1)
        # All else is past: masking the new columns in place spares two passes over the scores.
        scores[..., -num_new:].masked_fill_(~is_visible, -torch.inf)
        weights = scores.softmax(-1)
        return unpack_heads(weights @ self.values[:, :, : self.length], num_new)

    def _read_one(self, query: Tensor) -> Tensor:
        num_rows, num_heads, _, head_dim = query.shape
        num_blocks = self._key_slots()
        scaled = query * head_dim**-0.5  # [B, H, 1, d]
        per_block = scaled.expand(num_rows, num_heads, num_blocks, head_dim).reshape(-1)
        index, bounds = self._bags.of_keys(self.keys, num_heads, num_blocks)
        scores = _bag(self.keys.view(-1, _BLOCK), index, bounds, per_block)  # [B H blocks, 128]
        scores = scores.view(num_rows * num_heads, -1)[:, : self.length]
        index, bounds = self._bags.of_values(self.values, num_heads, self.length)
        weights = scores.softmax(-1).view(-1)
        attended = _bag(self.values.view(-1, head_dim), index, bounds, weights)  # [B H, d]
        return attended.view(query.shape)


class BagIndex:
    """Which rows of the flat cache each query sums over; made once per token, used by every layer."""

    def __init__(self) -> None:
        """Start without an index."""
        self._keys: tuple[tuple[int, ...], tuple[Tensor, Tensor]] | None = None
        self._values: tuple[tuple[int, ...], tuple[Tensor, Tensor]] | None = None

    def of_keys(self, keys: Tensor, num_heads: int, num_blocks: int) -> tuple[Tensor, Tensor]:
        """Index and bounds of bags (row, head, block), each the d rows of one block."""
        num_rows, num_kv_heads, all_blocks, head_dim, _ = keys.shape
        case = (num_rows, num_heads, num_blocks)
        if self._keys is None or self._keys[0] != case:
            first_block = _kv_rows(num_rows, num_kv_heads, num_heads) * all_blocks
            blocks = first_block[:, None] + torch.arange(num_blocks, dtype=torch.int32)
            self._keys = case, _bags(blocks.flatten() * head_dim, head_dim)
        return self._keys[1]

    def of_values(self, values: Tensor, num_heads: int, length: int) -> tuple[Tensor, Tensor]:
        """Index and bounds of bags (row, head), each the filled positions."""
        num_rows, num_kv_heads, max_length, _ = values.shape
        case = (num_rows, num_heads, length)
        if self._values is None or self._values[0] != case:
            first = _kv_rows(num_rows, num_kv_heads, num_heads) * max_length
            self._values = case, _bags(first, length)
        return self._values[1]


def _kv_rows(num_rows: int, num_kv_heads: int, num_heads: int) -> Tensor:
    """For every (row, query head) the flat (row, KV head) it reads, int32 ``[B H]``."""
    every = torch.arange(num_rows * num_kv_heads, dtype=torch.int32)
    return every.repeat_interleave(num_heads // num_kv_heads)


def _bags(first: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Bags of ``size`` consecutive rows from each ``first``: flat index and bounds, int32."""
    index = (first[:, None] + torch.arange(size, dtype=torch.int32)).flatten()
    return index, torch.arange(0, len(index) + 1, size, dtype=torch.int32)


def _bag(rows: Tensor, index: Tensor, bounds: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(index, rows, bounds, mode="sum", per_sample_weights=weights, include_last_offset=True)
