"""MineWorld's tokenizer: a VQ-VAE, diffusers' ``VQModel`` without attention (aMUSEd's).

The same class is the published tokenizer (224x384 frames, 14x24 codes out of 8192) and the small
ones that ship with this package. Keys and config fields are those of diffusers, which itself is not
needed. The convolutions are in ``vq_layers.py``; what keeps a codebook from collapsing during
pre-training is in ``codebook.py``.

Letters: N frames, K codes of a frame, D code dimension, H, W frame size, h, w size of the grid.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlir_env.checkpoints import num_blocks, part_of, read_foreign
from rlir_env.sizes import settle_sizes
from rlir_env.tokenizers.base import Tokenizer, as_unit_floats
from rlir_env.tokenizers.vq_layers import Decoder, Encoder

# Fields of a diffusers config with the only value that this class implements.
_FIXED_FIELDS = {
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": "silu",
    "norm_type": "group",
    "mid_block_add_attention": False,
}
# Fields that do not change what is computed here; block types follow from the widths, and codes are
# always looked up from the codebook.
_IGNORED_FIELDS = {
    *("down_block_types", "up_block_types", "sample_size", "scaling_factor"),
    *("lookup_from_codebook", "force_upcast"),
}


@dataclass(frozen=True)
class VQConfig:
    """Sizes, named as in diffusers' config.json; the defaults are the published tokenizer's.

    Attributes:
        frame_size: (H, W) of the frames (not in diffusers' config); a multiple of the stride.
        block_out_channels: Width of each level; every level but the last halves the resolution.
        layers_per_block: Residual blocks per level of the encoder (the decoder has one more).
        latent_channels: Channels between encoder and codebook.
        num_vq_embeddings: Number of codes.
        vq_embed_dim: Dimension of a code; ``None`` means ``latent_channels``.
        norm_num_groups: Of the group norms; must divide every width.
    """

    frame_size: tuple[int, int] = (224, 384)
    block_out_channels: tuple[int, ...] = (128, 256, 256, 512, 768)
    layers_per_block: int = 2
    latent_channels: int = 64
    num_vq_embeddings: int = 8192
    vq_embed_dim: int | None = None
    norm_num_groups: int = 32

    def __post_init__(self) -> None:
        """Accepts lists, as they come from JSON and YAML, and checks the sizes."""
        settle_sizes(self)
        if any(width % self.norm_num_groups for width in self.block_out_channels):
            raise ValueError(f"norm_num_groups={self.norm_num_groups} must divide {self.block_out_channels}")
        if any(size % self.stride for size in self.frame_size):
            raise ValueError(f"frame_size {self.frame_size} must be a multiple of the stride {self.stride}")

    @property
    def stride(self) -> int:
        """Pixels of a frame per code, in each direction."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def code_dim(self) -> int:
        """D."""
        return self.latent_channels if self.vq_embed_dim is None else self.vq_embed_dim

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> VQConfig:
        """Reads our own or a diffusers config; fields not named take the published values.

        Raises:
            ValueError: If a field is unknown or asks for an architecture other than this one.
        """
        for key, value in _FIXED_FIELDS.items():
            if config.get(key, value) != value:
                raise ValueError(f"VQTokenizer supports {key}={value!r} only, not {config[key]!r}")
        names = {field.name for field in fields(cls)}
        public = {key for key in config if not key.startswith("_")}  # _class_name and the like
        unknown = public - names - _FIXED_FIELDS.keys() - _IGNORED_FIELDS
        if unknown:
            raise ValueError(f"unknown fields {sorted(unknown)}; VQConfig has {sorted(names)}")
        return cls(**{key: config[key] for key in public & names})

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor], **settings: Any) -> VQConfig:
        """Sizes of the tokenizer whose weights these are.

        Args:
            weights: Under their own names.
            **settings: Fields that no weight tells: ``frame_size`` and ``norm_num_groups``.
        """
        blocks = "encoder.down_blocks"
        levels = range(num_blocks(weights, blocks))
        sizes = {
            "block_out_channels": tuple(weights[f"{blocks}.{n}.resnets.0.conv2.weight"].shape[0] for n in levels),
            "layers_per_block": num_blocks(weights, f"{blocks}.0.resnets"),
            "latent_channels": weights["quant_conv.weight"].shape[1],
            "num_vq_embeddings": weights["quantize.embedding.weight"].shape[0],
            "vq_embed_dim": weights["quantize.embedding.weight"].shape[1],
        }
        return cls(**{**sizes, **settings})


class VQOutput(NamedTuple):
    """What the differentiable pass returns.

    Attributes:
        reconstruction: ``[N, 3, H, W]`` float32, about in [0, 1] but not clamped, so that its loss
            has a gradient.
        commitment_loss: Scalar; mean squared distance of latents to their codes, gradient to the
            encoder only.
        codebook_loss: Scalar of the same value, gradient to the codes only; leave it out of the
            objective when a :class:`~rlir_env.tokenizers.codebook.CodebookUpdater` moves the codes.
        codes: ``[N, K]`` int64.
        latents: ``[N * K, D]`` float32 encoder outputs, detached; what the codebook updater needs.
    """

    reconstruction: Tensor
    commitment_loss: Tensor
    codebook_loss: Tensor
    codes: Tensor
    latents: Tensor


VQ_LANDMARK = "quantize.embedding.weight"
"""The tensor by which a file is known to hold one."""


def vq_weights(
    state_dict: Mapping[str, Tensor], beside: Sequence[str] = ("transformer.", "loss.")
) -> dict[str, Tensor]:
    """The tokenizer's part of a file, under its own names.

    Args:
        state_dict: Of the file.
        beside: What else may be in it: MineWorld's transformer, and the loss of the tokenizer's training.

    Raises:
        ValueError: If there is no such tokenizer, or something else beside it.
    """
    roots = ("encoder.", "quant_conv.", "quantize.", "post_quant_conv.", "decoder.")
    return part_of(state_dict, VQ_LANDMARK, roots, beside)


class VQTokenizer(Tokenizer):
    """A VQ-VAE with the key names of diffusers' ``VQModel``.

    ``encode`` and ``decode`` (see the base class) are the frozen tokenizer; ``forward`` is for
    pre-training.
    """

    def __init__(self, config: VQConfig):
        super().__init__()
        self.config = config
        self.num_codes = config.num_vq_embeddings
        self.frame_size = config.frame_size
        height, width = config.frame_size
        self.grid_size = (height // config.stride, width // config.stride)
        sizes = (config.block_out_channels, config.layers_per_block, config.latent_channels)
        self.encoder = Encoder(*sizes, config.norm_num_groups)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.code_dim, 1)
        self.quantize = Codebook(config.num_vq_embeddings, config.code_dim)
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.latent_channels, 1)
        self.decoder = Decoder(*sizes, config.norm_num_groups)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> VQTokenizer:
        """Builds an untrained model from our own or a diffusers config, as a dict."""
        return cls(VQConfig.from_dict(config))

    @classmethod
    def from_pretrained(cls, config: Mapping[str, Any] | str | Path, weights: str | Path) -> VQTokenizer:
        """Builds and fills a published tokenizer, in float32.

        Args:
            config: A diffusers config as a dict, or the path of its ``config.json``.
            weights: A file of the tokenizer, or one of MineWorld's checkpoints, which hold it, too.

        Raises:
            ValueError: If the config asks for another architecture, or the weights do not fit.
        """
        fields = config if isinstance(config, Mapping) else json.loads(Path(config).read_text())
        return read_foreign(weights, vq_weights, lambda _: cls.from_config(fields))

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Maps float frames ``[N, 3, H, W]`` in [0, 1] to codes ``[N, K]``."""
        return self.quantize.nearest(self._latents(frames)).flatten(1)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Maps codes ``[N, K]`` to frames ``[N, 3, H, W]`` in [0, 1], not rounded to 8 bits."""
        vectors = self.quantize.embedding(codes.unflatten(-1, self.grid_size))
        return self._frames(vectors).clamp(0, 1)

    def forward(self, frames: Tensor, quantized: bool = True) -> VQOutput:
        """Reconstructs frames, with gradients straight through the choice of codes.

        Args:
            frames: ``[N, 3, H, W]``, float in [0, 1] or uint8.
            quantized: Decode the nearest codes. Without it the latents themselves are decoded: a plain autoencoder,
                with which pre-training starts, so that the first codes find latents that already say something.
        """
        latents = self._latents(as_unit_floats(frames))
        codes = self.quantize.nearest(latents)
        vectors = self.quantize.embedding(codes)
        straight_through = latents + (vectors - latents).detach()
        return VQOutput(
            reconstruction=self._frames(straight_through if quantized else latents),
            commitment_loss=F.mse_loss(latents, vectors.detach()),
            codebook_loss=F.mse_loss(vectors, latents.detach()),
            codes=codes.flatten(1),
            latents=latents.detach().flatten(0, 2),
        )

    def _latents(self, frames: Tensor) -> Tensor:
        """Frames in [0, 1] to what is quantised, ``[N, h, w, D]`` float32."""
        return self.quant_conv(self.encoder(2 * frames - 1)).permute(0, 2, 3, 1).float()

    def _frames(self, vectors: Tensor) -> Tensor:
        """Code vectors ``[N, h, w, D]`` to frames ``[N, 3, H, W]`` float32, not clamped."""
        # Contiguous: group norms of bfloat16 cost 25 times as much in channels-last memory on a CPU.
        latents = vectors.permute(0, 3, 1, 2).contiguous()
        images = self.decoder(self.post_quant_conv(latents))
        return (images.float() + 1) / 2


class Codebook(nn.Module):
    """The code vectors and the search for the nearest one."""

    def __init__(self, num_codes: int, code_dim: int):
        """Builds a codebook that starts as in van den Oord et al. 2017."""
        super().__init__()
        self.embedding = nn.Embedding(num_codes, code_dim)
        nn.init.uniform_(self.embedding.weight, -1 / num_codes, 1 / num_codes)

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> Tensor:
        """Index ``[...]`` of the code nearest (Euclidean) to each latent ``[..., D]``."""
        weight = self.embedding.weight.float()
        # In float32 whatever the autocast: bfloat16 would merge neighbouring codes.
        with torch.autocast(latents.device.type, enabled=False):
            # |z - e|^2 without |z|^2, which is the same for all codes.
            scores = torch.addmm(weight.square().sum(1), latents.float().flatten(0, -2), weight.T, alpha=-2)
        return scores.argmin(-1).view(latents.shape[:-1])
