"""Teaching a VQ tokenizer to keep what matters of a frame: pixels, edges, and what an inverse dynamics model looks at.

L1 on pixels and on differences of neighbouring pixels (edges carry motion, and a plain L1 blurs them away), plus the
commitment of the encoder to its codes. The adversarial and LPIPS terms of the published tokenizer are left out: the one
needs more training than a CPU gives, the other weights that cannot be shipped.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlir_agents.pretraining.augmentation import mirror_frames
from rlir_agents.pretraining.loop import PretrainingTask
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
        self._updater = CodebookUpdater(tokenizer.quantize.embedding)
        self.module = nn.ModuleDict({"tokenizer": tokenizer, "updater": self._updater})
        self._training, self._frames_per_batch = training, frames_per_batch
        self._edge_coeff, self._commitment_coeff = edge_coeff, commitment_coeff
        self._continuous_steps = continuous_steps
        starts = validation.clip_starts(1)
        every = max(1, len(starts) // num_validation_frames)
        self._held_out = validation.clips(starts[::every][:num_validation_frames], 1).frames[:, 0]

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean absolute errors in units of the pixel range, plus the commitment."""
        frames = self._training.sample_clips(self._frames_per_batch, 1, generator).frames[:, 0]
        half = len(frames) // 2
        frames = torch.cat([mirror_frames(frames[:half]), frames[half:]]).float() / 255
        is_quantized = step >= self._continuous_steps
        output = self.tokenizer(frames, quantized=is_quantized)
        pixels = F.l1_loss(output.reconstruction, frames)
        edges = _edge_error(output.reconstruction, frames)
        loss = pixels + self._edge_coeff * edges
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
        error = self.tokenizer.decode(codes) - self._held_out.float() / 255
        psnr = -10 * error.square().mean(dim=(1, 2, 3)).clamp_min(1e-10).log10()
        return {
            "psnr": float(psnr.mean()),
            "code_perplexity": code_perplexity(codes, self.tokenizer.num_codes),
        }


def _edge_error(reconstruction: Tensor, frames: Tensor) -> Tensor:
    rows, columns = (F.l1_loss(reconstruction.diff(dim=dim), frames.diff(dim=dim)) for dim in (-2, -1))
    return rows + columns
