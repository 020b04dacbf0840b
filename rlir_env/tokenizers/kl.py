"""NFD's tokenizer: the KL autoencoder of latent diffusion (Rombach et al. 2022), frames to continuous latents.

The same class is the published tokenizer (224x384 frames, latents of 16x14x24) and the small one for
this package's own worlds. Keys and sizes are named as in LDM. The convolutions and the attention are
in ``kl_layers.py``. There is no codebook: a frame becomes a Gaussian, and the world model denoises
its mean.

Letters: N frames, H, W frame size, c channels of a latent, h, w size of the grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rlir_env.checkpoints import num_blocks, part_of, read_foreign
from rlir_env.sizes import settle_sizes
from rlir_env.tokenizers.kl_layers import Decoder, Encoder
from rlir_env.tokenizers.latent import LatentTokenizer


@dataclass(frozen=True)
class KLConfig:
    """Sizes, named as in LDM's configs; the defaults are the published tokenizer's.

    Attributes:
        frame_size: (H, W) of the frames (not in LDM's configs); a multiple of the stride.
        ch: Width of the first convolution.
        ch_mult: Width of each level in units of ``ch``; every level but the last halves the resolution.
        num_res_blocks: Residual blocks per level of the encoder (the decoder has one more).
        embed_dim: Channels c of a latent.
        norm_num_groups: Of the group norms; must divide every width.
        scale_factor: What latents are multiplied by, so that a flow model sees unit variance. It belongs to
            the weights: pre-training measures it (:meth:`KLTokenizer.fit_scale`).
    """

    frame_size: tuple[int, int] = (224, 384)
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    embed_dim: int = 16
    norm_num_groups: int = 32
    scale_factor: float = 0.2325

    def __post_init__(self) -> None:
        """Accepts lists, as they come from JSON and YAML, and checks the sizes."""
        settle_sizes(self)
        if any(width % self.norm_num_groups for width in self.widths):
            raise ValueError(f"norm_num_groups={self.norm_num_groups} must divide all widths {self.widths}")
        if any(size % self.stride for size in self.frame_size):
            raise ValueError(f"frame_size {self.frame_size} must be a multiple of the stride {self.stride}")

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor], **settings: Any) -> KLConfig:
        """Sizes of the tokenizer whose weights these are.

        Args:
            weights: Under their own names.
            **settings: Fields that no weight tells: ``frame_size``, ``norm_num_groups`` and ``scale_factor``.
        """
        ch, levels = weights["encoder.conv_in.weight"].shape[0], range(num_blocks(weights, "encoder.down"))
        widths = (weights[f"encoder.down.{n}.block.0.conv2.weight"].shape[0] for n in levels)
        sizes = {
            "ch": ch,
            "ch_mult": tuple(width // ch for width in widths),
            "num_res_blocks": num_blocks(weights, "encoder.down.0.block"),
            "embed_dim": weights["post_quant_conv.weight"].shape[1],
        }
        return cls(**{**sizes, **settings})

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels before the first level and after each."""
        return (self.ch, *(self.ch * factor for factor in self.ch_mult))

    @property
    def stride(self) -> int:
        """Pixels of a frame per position of the latent, in each direction."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, h, w)."""
        height, width = self.frame_size
        return self.embed_dim, height // self.stride, width // self.stride


KL_LANDMARK = "encoder.down.0.block.0.conv1.weight"
"""The tensor by which a file is known to hold one."""


def kl_weights(state_dict: Mapping[str, Tensor], beside: Sequence[str] = ("model.", "loss.")) -> dict[str, Tensor]:
    """The tokenizer's part of a file, under its own names.

    Args:
        state_dict: Of the file.
        beside: What else may be in it: a world model of NFD's family, and the loss of the tokenizer's training.

    Raises:
        ValueError: If there is no such tokenizer, or something else beside it.
    """
    roots = ("encoder.", "quant_conv.", "post_quant_conv.", "decoder.")
    return part_of(state_dict, KL_LANDMARK, roots, beside)


class KLTokenizer(LatentTokenizer):
    """A KL autoencoder with the key names of LDM (and so of NFD's and LIVE's ``vae-kl16``).

    Attributes:
        config: The sizes and the scale.

    Example:
        >>> import torch
        >>> config = KLConfig((16, 24), ch=8, ch_mult=(1, 2), num_res_blocks=1, embed_dim=4, norm_num_groups=4)
        >>> tokenizer = KLTokenizer(config)
        >>> latents = tokenizer.encode(torch.rand(2, 5, 3, 16, 24))
        >>> tuple(latents.shape), tuple(tokenizer.decode(latents).shape)
        ((2, 5, 4, 8, 12), (2, 5, 3, 16, 24))
    """

    def __init__(self, config: KLConfig):
        super().__init__()
        self.config = config
        self.frame_size = config.frame_size
        self.latent_shape = config.latent_shape
        self.grid_size = config.latent_shape[1:]
        sizes = (config.widths, config.num_res_blocks)
        num_moments = 2 * config.embed_dim
        self.encoder = Encoder(*sizes, num_moments, config.norm_num_groups)
        self.quant_conv = nn.Conv2d(num_moments, num_moments, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.embed_dim, 1)
        self.decoder = Decoder(*sizes, config.embed_dim, config.norm_num_groups)

    @classmethod
    def from_pretrained(
        cls, weights: str | Path, frame_size: tuple[int, int] = (224, 384), **settings: Any
    ) -> KLTokenizer:
        """Builds and fills a published tokenizer, in float32; its sizes are read off its weights.

        Args:
            weights: A file of the tokenizer (``vae-kl16.ckpt``), or a checkpoint of NFD's family, which holds it, too.
            frame_size: (H, W).
            **settings: Further fields of `KLConfig` that no weight tells: ``scale_factor``, ``norm_num_groups``.

        Raises:
            ValueError: If there is no such tokenizer in the file, or its weights do not fit.
        """

        def build(found: dict[str, Tensor]) -> KLTokenizer:
            return cls(KLConfig.from_weights(found, frame_size=frame_size, **settings))

        return read_foreign(weights, kl_weights, build)

    def _moments(self, images: Tensor) -> Tensor:
        """Of images in [-1, 1]; see the base class."""
        return self.quant_conv(self.encoder(images))

    def _images(self, latents: Tensor) -> Tensor:
        """Of latents that are not scaled; see the base class."""
        # Contiguous: group norms of bfloat16 cost 25 times as much in channels-last memory on a CPU.
        return self.decoder(self.post_quant_conv(latents.contiguous()))
