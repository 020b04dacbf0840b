"""Teaching MineWorld to continue recorded gameplay token by token (paper, section 4.2, Eq. 4).

Cross-entropy of the visual tokens of the frames that it will have to generate. Action words come from outside and are
not predicted, as in post-training (the published recipe's treatment of them is not known).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rlir_agents.pretraining.encoded_gameplay import EncodedGameplay
from rlir_agents.pretraining.loop import PretrainingTask
from rlir_agents.world_models import MineWorld
from rlir_env.layout import TokenLayout
from rlir_env.recordings import FrameArchive
from rlir_env.tokenizers import Tokenizer


class TokenizedGameplay(EncodedGameplay):
    """An archive's clips as token sequences.

    Args:
        archive: recorded gameplay.
        tokenizer: frozen, to ids.
        layout: of the sequences.
        autocast_dtype: for encoding.

    Raises:
        ValueError: if the tokenizer makes latents.
    """

    def __init__(
        self,
        archive: FrameArchive,
        tokenizer: Tokenizer,
        layout: TokenLayout,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        if len(tokenizer.code_shape) != 1:
            raise ValueError(f"a {type(tokenizer).__name__} makes latents, no tokens; give a VQ tokenizer")
        super().__init__(archive, tokenizer, layout.num_frames, autocast_dtype)
        self._layout, self._num_codes = layout, tokenizer.num_codes

    def sequences(self, starts: np.ndarray) -> Tensor:
        """Token sequences of the clips that begin at the given frames, long ``[B, L]``."""
        frames = self._frame_indices(starts)
        token = torch.empty(len(starts), self._layout.sequence_length, dtype=torch.long)
        token[:, self._layout.frame_positions.flatten()] = torch.from_numpy(
            self._codes[frames].reshape(len(starts), -1).astype(np.int64)
        )
        words = torch.from_numpy(self._archive.words[frames[:, :-1]]) + self._num_codes
        token[:, self._layout.word_positions.flatten()] = words.flatten(1)
        return token


class WorldModelTask(PretrainingTask):
    """Predicts the visual tokens of frames 1 to F-1 from all tokens and words before them.

    Args:
        module: the world model.
        training, validation: tokenised gameplay of disjoint maps.
        layout: of the sequences.
        clips_per_batch: sequences of a training batch.
        num_validation_clips: held-out sequences, evenly spread.
    """

    def __init__(
        self,
        module: MineWorld,
        training: TokenizedGameplay,
        validation: TokenizedGameplay,
        layout: TokenLayout,
        clips_per_batch: int = 16,
        num_validation_clips: int = 128,
    ) -> None:
        self.module, self._training, self._layout = module, training, layout
        self._clips_per_batch = clips_per_batch
        self._held_out = validation.sequences(validation.spread_starts(num_validation_clips)).to(self.device)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Nats per token."""
        starts = self._training.draw_starts(self._clips_per_batch, generator)
        return self._cross_entropy(self._training.sequences(starts).to(self.device)), {}

    def validate(self) -> dict[str, float]:
        """Held-out nats per token, and under game actions of other clips: the gap is what the words tell."""
        shuffled = self._held_out.clone()
        positions = self._layout.word_positions.flatten()
        shuffled[:, positions] = shuffled[:, positions].roll(1, dims=0)
        return {
            "nats_per_token": self._mean_over(self._held_out),
            "nats_per_token_shuffled_actions": self._mean_over(shuffled),
        }

    def _mean_over(self, sequences: Tensor) -> float:
        chunks = sequences.split(self._clips_per_batch)
        total = sum(float(self._cross_entropy(chunk)) * len(chunk) for chunk in chunks)
        return total / len(sequences)

    def _cross_entropy(self, token: Tensor) -> Tensor:
        targets = self._layout.action_positions
        logits = self.module(token, targets - 1)  # [B, (F-1) K, V]
        # Training may also raise the logits of action ids; sampling never looks at them.
        return F.cross_entropy(logits.flatten(0, 1).float(), token[:, targets].flatten())
