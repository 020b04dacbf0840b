"""Keeping the codebook of a VQ tokenizer alive while it is pre-trained.

A codebook learnt by gradients alone collapses: codes that no latent is near to get no gradient and
stay unused. Two remedies, together: codes are moving averages of the latents assigned to them (van
den Oord et al. 2017, appendix A.1), and codes that fall out of use restart at latents of the
current batch (Dhariwal et al. 2020, Jukebox). A moving average is k-means: it needs no learning
rate, its codes sit where the encoder is now, and the optimiser's moments are not left pointing at a
code's old place when it restarts. The tokenizer itself knows nothing of this.

Letters: N latents, D code dimension, M codes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CodebookUpdater(nn.Module):
    """Moves the codes after every training step.

    The first update puts every code onto a latent of the batch, so no other initialisation is
    needed. The buffers belong in the training checkpoint: without them a resumed run restarts all
    codes.

    Attributes:
        num_restarted: Codes that the last update restarted.

    Example:
        >>> codebook = nn.Embedding(2, 1)
        >>> updater = CodebookUpdater(codebook)
        >>> updater.update(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]), torch.Generator())
        >>> sorted(codebook.weight.flatten().tolist())
        [1.0, 3.0]
    """

    count: Tensor
    total: Tensor

    def __init__(self, codebook: nn.Embedding, decay: float = 0.99, dead_share: float = 0.03):
        """Takes over the codebook: its weight gets no gradient any more.

        Args:
            codebook: The code vectors, ``[M, D]``.
            decay: Of the moving averages; .99 remembers about the last 100 batches.
            dead_share: A code restarts when it is used less than this share of the mean use. After
                a restart it counts as averagely used, so at .99 it has 350 updates to find latents.
        """
        super().__init__()
        self._codebook = [codebook]  # a list, so that it is not registered (and saved) twice
        codebook.weight.requires_grad_(False)
        self.decay, self.dead_share, self.num_restarted = decay, dead_share, 0
        num_codes, code_dim = codebook.weight.shape
        self.register_buffer("count", torch.zeros(num_codes))
        self.register_buffer("total", torch.zeros(num_codes, code_dim))

    @torch.no_grad()
    def update(self, latents: Tensor, codes: Tensor, generator: torch.Generator) -> None:
        """Moves the codes towards their latents and restarts unused ones, in place.

        Args:
            latents: ``[N, D]`` encoder outputs of the step.
            codes: N indices of the codes that they were assigned to, of any shape.
            generator: Draws the latents at which codes restart.
        """
        codes = codes.flatten()
        is_first = not self.count.any()
        batch_count = torch.bincount(codes, minlength=len(self.count)).to(self.count)
        batch_total = torch.zeros_like(self.total).index_add_(0, codes, latents.to(self.total))
        self.count.lerp_(batch_count, 1 - self.decay)
        self.total.lerp_(batch_total, 1 - self.decay)
        mean_count = len(latents) / len(self.count)
        is_dead = self.count < (torch.inf if is_first else self.dead_share * mean_count)
        self._restart(is_dead, latents, mean_count, generator)
        self._codebook[0].weight.copy_(self.total / self.count.unsqueeze(1))

    def _restart(self, is_dead: Tensor, latents: Tensor, mean_count: float, generator: torch.Generator) -> None:
        self.num_restarted = int(is_dead.sum())
        order = torch.randperm(len(latents), generator=generator)
        order = order.repeat(-(-self.num_restarted // len(order)))[: self.num_restarted]
        self.count[is_dead] = mean_count
        self.total[is_dead] = mean_count * latents[order.to(latents.device)].to(self.total)


def code_perplexity(codes: Tensor, num_codes: int) -> float:
    """How many codes are effectively in use: the exponential of the entropy of their frequencies.

    Args:
        codes: Indices of any shape.
        num_codes: Size of the codebook; also the largest value possible.
    """
    share = torch.bincount(codes.flatten(), minlength=num_codes).double() / codes.numel()
    return torch.special.entr(share).sum().exp().item()
