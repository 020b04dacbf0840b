"""Tokenizers of the identity world: frames are patches of constant grey, and a code is a grey level.

One for each paradigm, of the same frames: levels as ids, and levels as latents of unit variance.

Letters: N frames, K tokens per frame, h, w grid of patches.
"""

from __future__ import annotations

import math

from einops import reduce, repeat
from torch import Tensor
from torch.nn.functional import avg_pool2d

from rlir_env.tokenizers import Tokenizer

_SCALE = math.sqrt(12)  # 1 / the standard deviation of grey levels that are uniform in [0, 1]


class IdentityTokenizer(Tokenizer):
    """Codes are grey levels: decoding paints one patch per token, encoding reads them exactly."""

    def __init__(self, num_codes: int = 6, grid_size: tuple[int, int] = (1, 2), patch_size: int = 4) -> None:
        """Lay out the patches.

        Args:
            num_codes: Grey levels, 2 to 128 (so that uint8 frames keep them apart).
            grid_size: Patches down and across.
            patch_size: Pixels of a patch's side.

        Raises:
            ValueError: if the levels could not be told apart.
        """
        super().__init__()
        if not 2 <= num_codes <= 128:
            raise ValueError(f"num_codes={num_codes}: use 2..128, uint8 frames hold no more levels")
        self.num_codes = num_codes
        self.grid_size = grid_size
        self.frame_size = (grid_size[0] * patch_size, grid_size[1] * patch_size)
        self.patch_size = patch_size

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Read float frames ``[N, 3, H, W]`` as codes ``[N, K]``."""
        levels = avg_pool2d(frames, self.patch_size).mean(1)  # [N, h, w]
        return (levels * (self.num_codes - 1)).round().long().flatten(1)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Paint codes ``[N, K]`` as frames ``[N, 3, H, W]``."""
        levels = (codes / (self.num_codes - 1)).unflatten(-1, self.grid_size)
        sides = {"h": self.patch_size, "w": self.patch_size}
        return repeat(levels, "n r c -> n 3 (r h) (c w)", **sides)


class IdentityLatents(Tokenizer):
    """Latents are grey levels: decoding paints one patch per position, encoding reads its mean."""

    def __init__(self, codes: IdentityTokenizer) -> None:
        """Lay out the patches as the world of codes does."""
        super().__init__()
        self.grid_size, self.frame_size, self.patch_size = codes.grid_size, codes.frame_size, codes.patch_size

    @property
    def code_shape(self) -> tuple[int, ...]:
        """(1, h, w)."""
        return 1, *self.grid_size

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Read float frames ``[N, 3, H, W]`` in [0, 1] as latents ``[N, 1, h, w]``."""
        p = self.patch_size
        return _SCALE * (reduce(frames, "n c (h p) (w q) -> n 1 h w", "mean", p=p, q=p) - 0.5)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Paint latents ``[N, 1, h, w]`` as frames ``[N, 3, H, W]``; levels beyond black and white are those."""
        p = self.patch_size
        return repeat((codes / _SCALE + 0.5).clamp(0, 1), "n 1 h w -> n 3 (h p) (w q)", p=p, q=p)
