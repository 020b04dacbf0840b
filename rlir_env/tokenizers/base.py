"""The tokenizer: frames to the codes that an autoregressive world model predicts, and back.

In the paper it is MineWorld's VQ-VAE. It is frozen during RL and belongs to the environment: the
policy samples codes, the tokenizer turns them into the frames that the reward looks at. It is *not*
a video model: every frame is coded by itself.

Letters: N frames, K codes of a frame, H, W frame size, h, w size of the grid of codes (K = h * w,
    row by row).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

# Frames are coded in chunks of this size, so that memory does not grow with the batch.
_FRAMES_PER_CHUNK = 256


class Tokenizer(nn.Module, ABC):
    """Base of all discrete tokenizers: leading dimensions, ranges and batching; no gradients.

    The differentiable path that pre-training uses is ``forward`` of the subclass.

    Attributes:
        num_codes: Size of the codebook.
        frame_size: (H, W) of the frames.
        grid_size: (h, w) of the codes of a frame.
    """

    num_codes: int
    frame_size: tuple[int, int]
    grid_size: tuple[int, int]

    @property
    def tokens_per_frame(self) -> int:
        """K."""
        return self.grid_size[0] * self.grid_size[1]

    @abstractmethod
    def encode_frames(self, frames: Tensor) -> Tensor:
        """Maps float frames ``[N, 3, H, W]`` in [0, 1] to codes ``[N, K]`` int64."""

    @abstractmethod
    def decode_codes(self, codes: Tensor) -> Tensor:
        """Maps codes ``[N, K]`` to float32 frames ``[N, 3, H, W]`` in [0, 1]."""

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Codes of frames.

        Args:
            frames: ``[..., 3, H, W]``, float in [0, 1] or uint8.

        Returns:
            ``[..., K]`` int64 in 0 to ``num_codes`` - 1.

        Raises:
            ValueError: If the frames are not of ``frame_size``.
        """
        if tuple(frames.shape[-3:]) != (3, *self.frame_size):
            raise ValueError(
                f"frames must be [..., 3, {self.frame_size[0]}, {self.frame_size[1]}], got "
                f"{list(frames.shape)}; resize them first"
            )
        chunks = frames.reshape(-1, *frames.shape[-3:]).split(_FRAMES_PER_CHUNK)
        codes = torch.cat([self.encode_frames(as_unit_floats(chunk)) for chunk in chunks])
        return codes.reshape(*frames.shape[:-3], -1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Frames of codes.

        Args:
            codes: ``[..., K]`` integers in 0 to ``num_codes`` - 1.

        Returns:
            ``[..., 3, H, W]`` float32 in [0, 1].

        Raises:
            ValueError: If there are not K codes per frame.
        """
        if codes.shape[-1] != self.tokens_per_frame:
            raise ValueError(f"a frame has {self.tokens_per_frame} codes, got {codes.shape[-1]} in the last dim")
        chunks = codes.reshape(-1, codes.shape[-1]).split(_FRAMES_PER_CHUNK)
        frames = torch.cat([self.decode_codes(chunk.long()) for chunk in chunks])
        return frames.reshape(*codes.shape[:-1], *frames.shape[1:])


def as_unit_floats(frames: Tensor) -> Tensor:
    """Frames as floats in [0, 1]: uint8 is divided by 255, floats pass unchanged."""
    return frames if frames.is_floating_point() else frames.float() / 255
