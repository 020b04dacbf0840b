"""Teaching a KL tokenizer to keep what matters of a frame in a latent that a flow model can generate.

The errors of ``reconstruction.py`` of a frame decoded from a *draw* of its posterior, plus a small weight on the
divergence of the posterior from the standard normal distribution (Rombach et al. 2022, appendix G; there too the scale
of the latents is measured at the end rather than enforced). The noise of the draw is what makes neighbouring latents
mean similar frames, so a world model's small errors stay small. The adversarial and LPIPS terms are left out as they
are for the VQ tokenizer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlir_agents.pretraining.loop import PretrainingTask
from rlir_agents.pretraining.reconstruction import draw_frames, edge_error, mean_psnr, pixel_error, spread_frames
from rlir_env.recordings import FrameArchive
from rlir_env.tokenizers import KLTokenizer


class KLTokenizerTask(PretrainingTask):
    """Reconstructs single frames through a Gaussian latent.

    Args:
        tokenizer: the model; its scale factor is measured when all steps are done.
        training, validation: recorded gameplay of disjoint maps.
        frames_per_batch: frames of a training batch, each from a different place.
        edge_coeff: weight of the L1 between differences of neighbouring pixels.
        kl_coeff: weight of the divergence per dimension of the latent, in nats.
        num_validation_frames: frames of held-out maps, evenly spread; as many training frames measure the scale.
    """

    def __init__(
        self,
        tokenizer: KLTokenizer,
        training: FrameArchive,
        validation: FrameArchive,
        frames_per_batch: int = 64,
        edge_coeff: float = 1.0,
        kl_coeff: float = 1e-4,
        num_validation_frames: int = 512,
    ) -> None:
        self.tokenizer = self.module = tokenizer
        self._training, self._frames_per_batch = training, frames_per_batch
        self._edge_coeff, self._kl_coeff = edge_coeff, kl_coeff
        self._held_out = spread_frames(validation, num_validation_frames).to(self.device)
        self._to_scale = spread_frames(training, num_validation_frames).to(self.device)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean absolute errors in units of the pixel range, plus the weighted divergence."""
        frames = draw_frames(self._training, self._frames_per_batch, generator).to(self.device)
        output = self.tokenizer(frames, generator)
        pixels = pixel_error(output.reconstruction, frames)
        kl = self._per_dimension(output.kl_divergence)
        loss = pixels + self._edge_coeff * edge_error(output.reconstruction, frames) + self._kl_coeff * kl
        return loss, {"pixels": pixels.detach(), "kl_per_dimension": kl.detach()}

    def finish(self) -> None:
        """Measure the scale on training frames, without mirrored ones: it is what a world model will be trained on."""
        self.tokenizer.fit_scale(self._to_scale)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Of held-out frames the PSNR (dB) of what their means decode to, the divergence (nats), and the spread.

        ``latent_std`` is the standard deviation of the means before scaling, ``scale_factor`` what would make it 1.
        """
        outputs = [self.tokenizer(chunk) for chunk in self._held_out.split(self._frames_per_batch)]
        reconstruction, kl_divergence, latents = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        deviation = float(latents.std()) / self.tokenizer.config.scale_factor
        return {
            "psnr": mean_psnr(reconstruction.clamp(0, 1), self._held_out),
            "kl_per_dimension": float(self._per_dimension(kl_divergence)),
            "latent_std": deviation,
            "scale_factor": 1 / deviation,
        }

    def _per_dimension(self, kl_divergence: Tensor) -> Tensor:
        return kl_divergence.mean() / math.prod(self.tokenizer.latent_shape)
