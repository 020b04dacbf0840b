"""The tokenizer: frames to the codes that a world model generates, and back.

A code is either of two things: ids out of a codebook, which an autoregressive world model predicts
(in the paper MineWorld's VQ-VAE), or a continuous latent, which a diffusion world model denoises
(NFD's KL-VAE). The tokenizer is frozen during RL and belongs to the environment: the policy samples
codes, the tokenizer turns them into the frames that the reward looks at. It is *not* a video model:
every frame is coded by itself.

Letters: N frames, K ids of a frame, H, W frame size, c channels of a latent, h, w size of the grid
    of codes (K = h * w, row by row).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

# Frames are coded in chunks of about this many pixels, so that memory does not grow with the batch. Counted in frames,
# a chunk of MineWorld's 224x384 would take 38 times the memory of the preset's 40x56, where these are 256 frames.
_PIXELS_PER_CHUNK = 256 * 40 * 56


class Tokenizer(nn.Module, ABC):
    """Base of all tokenizers: leading dimensions, ranges and batching; no gradients.

    The differentiable path that pre-training uses is ``forward`` of the subclass.

    Attributes:
        num_codes: Size of the codebook; a tokenizer to continuous latents has none.
        frame_size: (H, W) of the frames.
        grid_size: (h, w) of the codes of a frame.
    """

    num_codes: int
    frame_size: tuple[int, int]
    grid_size: tuple[int, int]

    @property
    def tokens_per_frame(self) -> int:
        """K, the places of the grid."""
        return self.grid_size[0] * self.grid_size[1]

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Shape of the code of one frame: ids (K,), or where a subclass says so a latent (c, h, w)."""
        return (self.tokens_per_frame,)

    @abstractmethod
    def encode_frames(self, frames: Tensor) -> Tensor:
        """Maps float frames ``[N, 3, H, W]`` in [0, 1] to codes: int64 ``[N, K]`` or float32 ``[N, c, h, w]``."""

    @abstractmethod
    def decode_codes(self, codes: Tensor) -> Tensor:
        """Maps codes, int64 ``[N, K]`` or float ``[N, c, h, w]``, to float32 frames ``[N, 3, H, W]`` in [0, 1]."""

    def encode(self, frames: Tensor) -> Tensor:
        """Codes of frames.

        Args:
            frames: ``[..., 3, H, W]``, float in [0, 1] or uint8.

        Returns:
            ``[..., K]`` int64 in 0 to ``num_codes`` - 1, or latents ``[..., c, h, w]`` float32.

        Raises:
            ValueError: If the frames are not of ``frame_size``.
        """
        return self._encode_with(self.encode_frames, frames)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Frames of codes.

        Args:
            codes: ``[..., K]`` integers in 0 to ``num_codes`` - 1, or latents ``[..., c, h, w]``.

        Returns:
            ``[..., 3, H, W]`` float32 in [0, 1].

        Raises:
            ValueError: If the last dimensions are not ``code_shape``.
        """
        num_dims = len(self.code_shape)
        if tuple(codes.shape[-num_dims:]) != self.code_shape:
            expected = " x ".join(str(size) for size in self.code_shape)
            raise ValueError(f"a frame has {expected} codes in the last dimensions, got {list(codes.shape)}")
        # Ids may come in any integer type, latents are floats and stay so.
        return self._in_chunks(lambda x: self.decode_codes(x if x.is_floating_point() else x.long()), codes, num_dims)

    @torch.no_grad()
    def _encode_with(self, encode_chunk: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
        """What ``encode`` promises, by a function of float frames ``[N, 3, H, W]`` in [0, 1]."""
        if tuple(frames.shape[-3:]) != (3, *self.frame_size):
            raise ValueError(
                f"frames must be [..., 3, {self.frame_size[0]}, {self.frame_size[1]}], got "
                f"{list(frames.shape)}; resize them first"
            )
        return self._in_chunks(lambda chunk: encode_chunk(as_unit_floats(chunk)), frames, 3)

    def _in_chunks(self, function: Callable[[Tensor], Tensor], values: Tensor, num_dims: int) -> Tensor:
        """Applies a function of ``[N, ...]`` whose items have ``num_dims`` dimensions; the leading dimensions stay."""
        leading, item = values.shape[:-num_dims], values.shape[-num_dims:]
        frames_per_chunk = max(1, _PIXELS_PER_CHUNK // (self.frame_size[0] * self.frame_size[1]))
        results = torch.cat([function(chunk) for chunk in values.reshape(-1, *item).split(frames_per_chunk)])
        return results.reshape(*leading, *results.shape[1:])


def as_unit_floats(frames: Tensor) -> Tensor:
    """Frames as floats in [0, 1]: uint8 is divided by 255, floats pass unchanged."""
    return frames if frames.is_floating_point() else frames.float() / 255
