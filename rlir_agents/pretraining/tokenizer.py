"""Teaching a VQ tokenizer to keep what matters of a frame: pixels, edges, and what an inverse dynamics model looks at.

The errors of ``reconstruction.py`` plus the commitment of the encoder to its codes. The adversarial and LPIPS terms of
the published tokenizer are left out: the one needs more training than a CPU gives, the other weights that cannot be
shipped.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlir_agents.hardware import device_of
from rlir_agents.pretraining.loop import PretrainingTask
from rlir_agents.pretraining.reconstruction import draw_frames, edge_error, mean_psnr, pixel_error, spread_frames
from rlir_env.recordings import FrameArchive
from rlir_env.tokenizers import VQTokenizer
from rlir_env.tokenizers.codebook import CodebookUpdater, code_perplexity


class TokenizerTask(PretrainingTask):
    """Reconstructs single frames through the codebook.

    Args:
        tokenizer: the model; its codebook is moved by a `CodebookUpdater`, not by gradients.
        training, validation: recorded gameplay of disjoint maps.
        frames_per_batch: frames of a training batch, each from a different place.
        edge_coeff: weight of the L1 between differences of neighbouring pixels.
        commitment_coeff: weight of the commitment loss (van den Oord et al. 2017 use 0.25).
        continuous_steps: first steps without a codebook. Quantised from the start, latents that say nothing yet get
            codes that say nothing, and the codebook collapses (to 15 of 1,024 codes when we tried).
        num_validation_frames: frames of held-out maps, evenly spread.
    """

    def __init__(
        self,
        tokenizer: VQTokenizer,
        training: FrameArchive,
        validation: FrameArchive,
        frames_per_batch: int = 64,
        edge_coeff: float = 1.0,
        commitment_coeff: float = 0.25,
        continuous_steps: int = 300,
        num_validation_frames: int = 512,
    ) -> None:
        self.tokenizer = tokenizer
        self._updater = CodebookUpdater(tokenizer.quantize.embedding).to(device_of(tokenizer))
        self.module = nn.ModuleDict({"tokenizer": tokenizer, "updater": self._updater})
        self._training, self._frames_per_batch = training, frames_per_batch
        self._edge_coeff, self._commitment_coeff = edge_coeff, commitment_coeff
        self._continuous_steps = continuous_steps
        self._held_out = spread_frames(validation, num_validation_frames).to(self.device)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean absolute errors in units of the pixel range, plus the commitment."""
        frames = draw_frames(self._training, self._frames_per_batch, generator).to(self.device)
        is_quantized = step >= self._continuous_steps
        output = self.tokenizer(frames, quantized=is_quantized)
        pixels = pixel_error(output.reconstruction, frames)
        loss = pixels + self._edge_coeff * edge_error(output.reconstruction, frames)
        if is_quantized:
            loss = loss + self._commitment_coeff * output.commitment_loss
        self._to_update = (output.latents, output.codes, generator) if is_quantized else None
        return loss, {"pixels": pixels.detach(), "commitment": output.commitment_loss.detach()}

    def after_step(self) -> None:
        """Move the codebook towards the latents of the batch."""
        if self._to_update is not None:
            self._updater.update(*self._to_update)

    def validate(self) -> dict[str, float]:
        """PSNR (dB) of held-out frames, and how many codes are effectively in use."""
        codes = self.tokenizer.encode(self._held_out)
        return {
            "psnr": mean_psnr(self.tokenizer.decode(codes), self._held_out),
            "code_perplexity": code_perplexity(codes, self.tokenizer.num_codes),
        }
