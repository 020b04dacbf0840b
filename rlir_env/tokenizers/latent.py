"""Tokenizers to continuous latents: a frame becomes a Gaussian, and a diffusion world model denoises its mean.

What the networks are is the business of ``kl.py`` (NFD's) and ``vit.py`` (Oasis').

Letters: N frames, H, W frame size, c channels of a latent, h, w size of the grid.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlir_env.tokenizers.base import Tokenizer, as_unit_floats

# LDM's bounds of the log variance: exp of anything beyond them is no useful float32.
_LOG_VARIANCE_RANGE = (-30.0, 20.0)


class Moments(NamedTuple):
    """The posterior, a Gaussian for every frame with independent dimensions; not scaled.

    Attributes:
        mean: ``[N, c, h, w]`` float32.
        log_variance: The same shape, within LDM's bounds -30 and 20.
    """

    mean: Tensor
    log_variance: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """One latent of every frame, ``[N, c, h, w]``, with gradients to both moments."""
        noise = torch.randn(self.mean.shape, generator=generator, device=generator.device)
        return self.mean + (self.log_variance / 2).exp() * noise.to(self.mean.device)

    def kl_divergence(self) -> Tensor:
        """From the standard normal distribution, in nats, summed over the dimensions of a frame: ``[N]``."""
        per_dimension = (self.mean.square() + self.log_variance.exp() - 1 - self.log_variance) / 2
        return per_dimension.sum((1, 2, 3))


class KLOutput(NamedTuple):
    """What the differentiable pass returns.

    Attributes:
        reconstruction: ``[N, 3, H, W]`` float32, about in [0, 1] but not clamped, so that its loss
            has a gradient.
        kl_divergence: ``[N]``, of every frame in nats, summed over its dimensions.
        latents: ``[N, c, h, w]`` float32, what was decoded; scaled as those of ``encode``.
    """

    reconstruction: Tensor
    kl_divergence: Tensor
    latents: Tensor


class LatentTokenizer(Tokenizer):
    """A variational autoencoder of frames.

    ``encode`` and ``decode`` (see the base class) are the frozen tokenizer: a code is a latent
    ``[c, h, w]`` of about unit variance, the scaled *mean* of the posterior, so the same frame has always
    the same latent. ``sample_latents`` draws from the posterior instead, as LIVE does. ``forward`` is for
    pre-training.

    Attributes:
        config: A dataclass of sizes, with the scale: ``scale_factor`` is what latents are multiplied by.
        latent_shape: (c, h, w).
    """

    config: Any
    latent_shape: tuple[int, int, int]

    @abstractmethod
    def _moments(self, images: Tensor) -> Tensor:
        """Means, then log variances, of images ``[N, 3, H, W]`` in [-1, 1], not scaled: ``[N, 2 c, h, w]``."""

    @abstractmethod
    def _images(self, latents: Tensor) -> Tensor:
        """Images ``[N, 3, H, W]``, about in [-1, 1], of latents ``[N, c, h, w]`` that are not scaled."""

    @property
    def code_shape(self) -> tuple[int, ...]:
        """A code is a latent: (c, h, w)."""
        return self.latent_shape

    def extra_repr(self) -> str:
        """Names the scale, which decides the latents as much as the weights do."""
        return f"scale_factor={self.config.scale_factor}"

    def moments(self, frames: Tensor) -> Moments:
        """The posterior of frames ``[N, 3, H, W]``, float in [0, 1] or uint8; with gradients, not scaled."""
        mean, log_variance = self._moments(2 * as_unit_floats(frames) - 1).float().chunk(2, dim=1)
        return Moments(mean, log_variance.clamp(*_LOG_VARIANCE_RANGE))

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Maps float frames ``[N, 3, H, W]`` in [0, 1] to scaled means of their posterior, ``[N, c, h, w]``."""
        return self.config.scale_factor * self.moments(frames).mean

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Maps scaled latents ``[N, c, h, w]`` to frames ``[N, 3, H, W]`` in [0, 1], not rounded to 8 bits."""
        return self._frames(codes.float() / self.config.scale_factor).clamp(0, 1)

    def sample_latents(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Like ``encode``, but a draw from the posterior in place of its mean.

        Args:
            frames: ``[..., 3, H, W]``, float in [0, 1] or uint8.
            generator: Draws the noise, on its own device.

        Returns:
            ``[..., c, h, w]`` float32, scaled.

        Raises:
            ValueError: If the frames are not of ``frame_size``.
        """

        def draw(chunk: Tensor) -> Tensor:
            return self.config.scale_factor * self.moments(chunk).sample(generator)

        return self._encode_with(draw, frames)

    def forward(self, frames: Tensor, generator: torch.Generator | None = None) -> KLOutput:
        """Reconstructs frames from a draw of the posterior, with gradients.

        Args:
            frames: ``[N, 3, H, W]``, float in [0, 1] or uint8.
            generator: Draws the noise, on its own device; without one the mean is decoded.
        """
        moments = self.moments(frames)
        latents = moments.mean if generator is None else moments.sample(generator)
        return KLOutput(
            reconstruction=self._frames(latents),
            kl_divergence=moments.kl_divergence(),
            latents=self.config.scale_factor * latents,
        )

    def fit_scale(self, frames: Tensor) -> None:
        """Sets ``config.scale_factor`` so that the latents of these frames have standard deviation 1.

        Args:
            frames: ``[..., 3, H, W]``, float in [0, 1] or uint8; LDM takes one batch.

        Raises:
            ValueError: If all latents are equal, or not finite.
        """
        deviation = float(self.encode(frames).std()) / self.config.scale_factor
        if not 0 < deviation < math.inf:
            raise ValueError(f"latents have a standard deviation of {deviation}; train the tokenizer first")
        self.config = replace(self.config, scale_factor=1 / deviation)

    def _frames(self, latents: Tensor) -> Tensor:
        """Latents ``[N, c, h, w]``, not scaled, to frames ``[N, 3, H, W]`` float32, not clamped."""
        return (self._images(latents).float() + 1) / 2
