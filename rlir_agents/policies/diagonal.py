"""MineWorld's parallel decoding as a policy: rollouts in a fraction of the passes, log-probabilities of what sampled.

Diagonal decoding draws from an approximation of the model's own distribution. There are two ways to learn from such
rollouts: weigh them by the ratio of the two distributions, which over hundreds of codes is far from one; or make the
approximation the policy. It is a distribution like any other: in each pass codes are independent given all earlier
passes, so their log-probabilities add up; and as every place is fed once, one forward with the passes' mask gives them
all. So nothing has to be corrected, and what learns is what a user of diagonal decoding samples from afterwards. The
model's own distribution changes with it, since the weights are the same, but is not what is paid.

Letters: B rows, T steps, K tokens of a frame.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlir_agents.policies.token import TokenPolicy
from rlir_agents.world_models import MineWorld, TokenWorldModel
from rlir_agents.world_models.diagonal_decoder import DiagonalDecoder
from rlir_agents.world_models.diagonal_decoding import diagonal_schedule, teacher_forced
from rlir_env.layout import TokenLayout


class DiagonalTokenPolicy(TokenPolicy):
    """A MineWorld that samples frames by ``"image_diagonal"``; an env step is a frame.

    Attributes:
        grid_size: Rows and columns of a frame's codes.
        window: w, by how many columns a row trails the one above.
    """

    world_model: MineWorld

    def __init__(
        self,
        world_model: TokenWorldModel,
        layout: TokenLayout,
        tokens_per_step: int | str = "frame",
        *,
        grid_size: tuple[int, int],
        window: int = 2,
        autocast_dtype: torch.dtype | None = None,
        **settings: Any,
    ) -> None:
        """Wrap a world model.

        Args:
            world_model: A `MineWorld`.
            layout: That of the env.
            tokens_per_step: ``"frame"``, or K.
            grid_size: That of the tokenizer.
            window: A frame takes (rows - 1) w + columns passes instead of K.
            autocast_dtype: As in `TokenPolicy`.
            **settings: Further keywords of `TokenPolicy`.

        Raises:
            ValueError: as there; or if model, grid or window do not fit, or an env step is not a frame.
        """
        if not isinstance(world_model, MineWorld):
            raise ValueError(f"diagonal decoding of a {type(world_model).__name__}: take a MineWorld, or policy=token")
        super().__init__(world_model, layout, tokens_per_step, autocast_dtype=autocast_dtype, **settings)
        if self.tokens_per_step != layout.tokens_per_frame:
            raise ValueError(
                f"tokens_per_step={tokens_per_step}: the codes of a diagonal come from many places of a frame, so an "
                'env step is a frame; take tokens_per_step="frame"'
            )
        self.grid_size, self.window = (int(grid_size[0]), int(grid_size[1])), window
        self._decoder = DiagonalDecoder(self.sampler, autocast_dtype, layout, self.grid_size, window)
        schedule = list(diagonal_schedule(layout, self.grid_size, window, "image_diagonal"))
        self._num_passes = len(schedule)
        self._teacher_forced = teacher_forced(schedule, layout.sequence_length)

    @property
    def num_passes(self) -> int:
        """See the base class."""
        return self._num_passes

    def _hidden(self, token: Tensor) -> Tensor:
        """What each place has read when it is fed; see the base class."""
        length = token.shape[1]
        sources = self._teacher_forced.sources[:length].to(token.device)
        return self.world_model.hidden(token[:, sources], self._teacher_forced.attention(length))
