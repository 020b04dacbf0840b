"""The work of the fused rollout in closed form, from the sizes of the world model and the layout of a video (Eq. 4).

This is what *has* to be done: every token passes every layer once, its query reads the keys and values of all earlier
tokens, and visual tokens are scored and drawn. How it is done (stacked weights, blocks of keys) does not enter.

Letters: B rows, P prompts, n new positions, l filled length, H query heads, KV key/value heads, d head dimension,
h hidden, V codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.work import Work, product
from rlir_agents.world_models import MineWorldConfig
from rlir_env.layout import TokenLayout


@dataclass(frozen=True)
class Reading:
    """One call of the model: n new tokens of every row, after which the cache holds l.

    Attributes:
        num_new: n.
        length: l.
    """

    num_new: int
    length: int


def readings(layout: TokenLayout) -> Iterator[Reading]:
    """The readings of a rollout after the prompt's: one for every sampled token.

    A token is read when the next one is wanted; at the border of two frames the last token and the action word come
    together.
    """
    read = layout.prompt_length - 1
    for position in layout.action_positions.tolist():
        yield Reading(position - read, position)
        read = position


@dataclass(frozen=True)
class RolloutWork:
    """Counts the parts of a rollout.

    Attributes:
        config: Sizes of the world model.
        layout: Of the videos.
        num_prompts: P, prompts that differ.
        num_rows: B.
        dtype: Of products and cache.
    """

    config: MineWorldConfig
    layout: TokenLayout
    num_prompts: int
    num_rows: int
    dtype: torch.dtype

    def parts(self) -> dict[str, list[Work]]:
        """All works by part; their limits add up to that of the rollout."""
        rows, after_prompt = self.num_rows, list(readings(self.layout))
        return {
            "prefill": self._prefill(),
            "layer products": [work for one in after_prompt for work in self._layers(rows, one.num_new)],
            "attention": [work for one in after_prompt for work in self._attention(rows, one)],
            "head": [self._head(rows) for _ in after_prompt],
            "sampling": [self._draw(rows) for _ in after_prompt],
        }

    def _prefill(self) -> list[Work]:
        """Every prompt is read once; then its keys and values are copied to its siblings."""
        num_known = self.layout.prompt_length - 1  # the last known token is read with the first sampled one's reading
        prompt = Reading(num_known, num_known)
        rows = self.num_prompts
        spread = (rows + self.num_rows) * self._cache_bytes_of_token * num_known * self.config.num_hidden_layers
        copy = Work(0, spread, self.dtype)
        return [*self._layers(rows, num_known), *self._attention(rows, prompt), self._head(rows), copy]

    def _layers(self, rows: int, num_new: int) -> list[Work]:
        """The four products of every layer."""
        c, tokens = self.config, rows * num_new
        heads = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
        products = [
            self._product(tokens, c.hidden_size, heads),
            self._product(tokens, c.hidden_size, c.hidden_size),
            self._product(tokens, c.hidden_size, 2 * c.intermediate_size),
            self._product(tokens, c.intermediate_size, c.hidden_size),
        ]
        return products * c.num_hidden_layers

    def _attention(self, rows: int, reading: Reading) -> list[Work]:
        """Scores and weighted sums; keys and values are read once, however many query heads share them."""
        c = self.config
        flops = 4 * rows * c.num_attention_heads * reading.num_new * reading.length * c.head_dim
        cache = rows * self._cache_bytes_of_token * (reading.length + reading.num_new)  # read, and the new ones written
        queries = 2 * rows * c.hidden_size * reading.num_new * self.dtype.itemsize  # and their outputs
        return [Work(flops, cache + queries, self.dtype)] * c.num_hidden_layers

    def _head(self, rows: int) -> Work:
        """Scores of all codes, at the last position only."""
        return self._product(rows, self.config.hidden_size, self.config.num_codes)

    def _draw(self, rows: int) -> Work:
        """Reading the scores: the rest of a draw could happen on the way."""
        return Work(0, rows * self.config.num_codes * self.dtype.itemsize, self.dtype)

    def _product(self, rows: int, num_in: int, num_out: int) -> Work:
        return product(rows, num_in, num_out, self.dtype)

    @property
    def _cache_bytes_of_token(self) -> int:
        """Key and value of a token in one layer."""
        return 2 * self.config.num_key_value_heads * self.config.head_dim * self.dtype.itemsize
