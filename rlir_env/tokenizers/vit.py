"""Oasis' tokenizer: a variational autoencoder of two vision transformers, frames to continuous latents.

The published one (``vit-l-20``) codes 360x640 frames as latents of 16x18x32. Keys are those of etched-ai/open-oasis, of
which this was checked against the code; sizes are named as there.

Letters: N frames, H, W frame size, c channels of a latent, h, w size of the grid of patches, S patches of a frame, d
width, D dimensions of a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rlir_env.checkpoints import num_blocks, part_of, read_foreign
from rlir_env.sizes import settle_sizes
from rlir_env.tokenizers.latent import LatentTokenizer

_EPS = 1e-6


@dataclass(frozen=True)
class ViTConfig:
    """Sizes, named as in open-oasis; the defaults are the published tokenizer's.

    Attributes:
        frame_size: (H, W) of the frames; a multiple of the patch size.
        patch_size: Side of the square of pixels that makes a place of the latent.
        latent_dim: Channels c of a latent.
        enc_dim: Width of the encoder.
        enc_depth: Its blocks.
        enc_heads: Its heads.
        dec_dim: Width of the decoder.
        dec_depth: Its blocks.
        dec_heads: Its heads.
        scale_factor: What latents are multiplied by, so that a diffusion model sees about unit variance.
    """

    frame_size: tuple[int, int] = (360, 640)
    patch_size: int = 20
    latent_dim: int = 16
    enc_dim: int = 1024
    enc_depth: int = 6
    enc_heads: int = 16
    dec_dim: int = 1024
    dec_depth: int = 12
    dec_heads: int = 16
    scale_factor: float = 0.07843137255

    def __post_init__(self) -> None:
        """Accepts lists, as they come from JSON and YAML, and checks the sizes."""
        settle_sizes(self)
        if any(size % self.patch_size for size in self.frame_size):
            raise ValueError(f"frame_size {self.frame_size} must be a multiple of patch_size={self.patch_size}")
        for width, heads in ((self.enc_dim, self.enc_heads), (self.dec_dim, self.dec_heads)):
            if width % (8 * heads):
                raise ValueError(f"a width of {width} must be {heads} heads of a multiple of 8 dimensions")

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor], **settings: Any) -> ViTConfig:
        """Sizes of the tokenizer whose weights these are; heads have 64 dimensions.

        Args:
            weights: Under their own names.
            **settings: Fields that no weight tells: ``frame_size``, ``enc_heads``, ``dec_heads``, ``scale_factor``.
        """
        enc_dim, _, patch_size, _ = weights["patch_embed.proj.weight"].shape
        dec_dim, latent_dim = weights["post_quant_conv.weight"].shape
        sizes = {
            "patch_size": patch_size,
            "latent_dim": latent_dim,
            "enc_dim": enc_dim,
            "enc_depth": num_blocks(weights, "encoder"),
            "enc_heads": enc_dim // 64,
            "dec_dim": dec_dim,
            "dec_depth": num_blocks(weights, "decoder"),
            "dec_heads": dec_dim // 64,
        }
        return cls(**{**sizes, **settings})

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)."""
        return self.frame_size[0] // self.patch_size, self.frame_size[1] // self.patch_size

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w)."""
        return self.latent_dim, *self.grid


VIT_LANDMARK = "patch_embed.proj.weight"
"""The tensor by which a file is known to hold one."""


def vit_weights(state_dict: Mapping[str, Tensor], beside: Sequence[str] = ()) -> dict[str, Tensor]:
    """The tokenizer's part of a file, under its own names.

    Args:
        state_dict: Of the file.
        beside: What else may be in it.

    Raises:
        ValueError: If there is no such tokenizer, or something else beside it.
    """
    ends = ("patch_embed.", "enc_norm.", "quant_conv.", "post_quant_conv.", "dec_norm.", "predictor.")
    return part_of(state_dict, VIT_LANDMARK, ("encoder.", "decoder.", *ends), beside)


class ViTTokenizer(LatentTokenizer):
    """Oasis' autoencoder, with its key names.

    Attributes:
        config: The sizes and the scale.

    Example:
        >>> config = ViTConfig((8, 12), patch_size=4, latent_dim=3, enc_dim=16, enc_depth=1, enc_heads=2, dec_dim=16,
        ...     dec_depth=1, dec_heads=2)
        >>> tokenizer = ViTTokenizer(config)
        >>> latents = tokenizer.encode(torch.rand(2, 5, 3, 8, 12))
        >>> tuple(latents.shape), tuple(tokenizer.decode(latents).shape)
        ((2, 5, 3, 2, 3), (2, 5, 3, 8, 12))
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        self.frame_size = config.frame_size
        self.latent_shape = config.latent_shape
        self.grid_size = config.grid
        self.patch_embed = _PatchEmbed(config.patch_size, config.enc_dim)
        self.encoder = _blocks(config.enc_depth, config.enc_dim, config.enc_heads, config.grid)
        self.enc_norm = nn.LayerNorm(config.enc_dim, _EPS)
        self.quant_conv = nn.Linear(config.enc_dim, 2 * config.latent_dim)
        self.post_quant_conv = nn.Linear(config.latent_dim, config.dec_dim)
        self.decoder = _blocks(config.dec_depth, config.dec_dim, config.dec_heads, config.grid)
        self.dec_norm = nn.LayerNorm(config.dec_dim, _EPS)
        self.predictor = nn.Linear(config.dec_dim, 3 * config.patch_size**2)

    @classmethod
    def from_pretrained(
        cls, weights: str | Path, frame_size: tuple[int, int] = (360, 640), **settings: Any
    ) -> ViTTokenizer:
        """Builds and fills a published tokenizer, in float32; its sizes are read off its weights.

        Args:
            weights: ``vit-l-20.safetensors`` or ``.pt``.
            frame_size: (H, W).
            **settings: Further fields of `ViTConfig` that no weight tells.

        Raises:
            ValueError: If there is no such tokenizer in the file, or its weights do not fit.
        """

        def build(found: dict[str, Tensor]) -> ViTTokenizer:
            return cls(ViTConfig.from_weights(found, frame_size=frame_size, **settings))

        return read_foreign(weights, vit_weights, build)

    def _moments(self, images: Tensor) -> Tensor:
        """Of images in [-1, 1]; see the base class."""
        tokens = self.quant_conv(self.enc_norm(self.encoder(self.patch_embed(images))))
        return rearrange(tokens, "n (y x) c -> n c y x", y=self.grid_size[0])

    def _images(self, latents: Tensor) -> Tensor:
        """Of latents that are not scaled; see the base class."""
        tokens = self.post_quant_conv(rearrange(latents, "n c y x -> n (y x) c"))
        patches = self.predictor(self.dec_norm(self.decoder(tokens)))
        p, rows = self.config.patch_size, self.grid_size[0]
        return rearrange(patches, "n (y x) (c p q) -> n c (y p) (x q)", y=rows, p=p, q=p)


def _blocks(depth: int, width: int, num_heads: int, grid: tuple[int, int]) -> nn.Sequential:
    return nn.Sequential(*(_Block(width, num_heads, grid) for _ in range(depth)))


class _PatchEmbed(nn.Module):
    """Pixels to tokens."""

    def __init__(self, patch_size: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """``[N, 3, H, W]`` to ``[N, S, d]``."""
        return self.proj(images).flatten(2).mT


class _Block(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, num_heads: int, grid: tuple[int, int]):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, _EPS)
        self.attn = _Attention(width, num_heads, grid)
        self.norm2 = nn.LayerNorm(width, _EPS)
        self.mlp = _Perceptron(width)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, S, d]`` to the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Attention(nn.Module):
    """Multi-head attention; half of a head's dimensions turn with the place of the patch."""

    def __init__(self, width: int, num_heads: int, grid: tuple[int, int]):
        super().__init__()
        self.num_heads, self.grid = num_heads, grid
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, S, d]`` to the same shape."""
        query, key, value = rearrange(self.qkv(x), "n s (k h d) -> k n h s d", k=3, h=self.num_heads)
        angle = _angles(self.grid, query.shape[-1], x.device)
        attended = F.scaled_dot_product_attention(_turned(query, angle), _turned(key, angle), value)
        return self.proj(rearrange(attended, "n h s d -> n s (h d)"))


class _Perceptron(nn.Module):
    """``fc2(gelu(fc1 x))``."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, S, d]`` to the same shape."""
        return self.fc2(F.gelu(self.fc1(x)))


def _angles(grid: tuple[int, int], head_dim: int, device: torch.device) -> Tensor:
    """Angles of the pairs that turn, ``[S, D/4]``: an eighth of the head with the row, an eighth with the column."""
    frequency = torch.linspace(1.0, grid[0] * grid[1] / 2, head_dim // 8, device=device) * math.pi
    places = torch.cartesian_prod(*(torch.linspace(-1, 1, size, device=device) for size in grid))
    return (places[:, :, None] * frequency).flatten(1)


def _turned(heads: Tensor, angle: Tensor) -> Tensor:
    """``[N, H, S, D]`` with its first D/2 dimensions rotated, neighbours as pairs, in float32 on the way."""
    turning, still = heads.chunk(2, dim=-1)
    pairs = torch.view_as_complex(turning.float().unflatten(-1, (-1, 2)).contiguous())
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)
    return torch.cat([turned.to(heads.dtype), still], dim=-1)
