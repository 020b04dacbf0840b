"""Teaching MineWorld to continue recorded gameplay token by token (paper, section 4.2, Eq. 4).

Cross-entropy of the visual tokens of the frames that it will have to generate. Action words come from outside and are
not predicted, as in post-training (the published recipe's treatment of them is not known).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from rlir_agents.hardware import autocast, device_of
from rlir_agents.pretraining.loop import PretrainingTask
from rlir_agents.world_models import MineWorld
from rlir_env.atomic_files import replacing
from rlir_env.checkpoints import fingerprint
from rlir_env.layout import TokenLayout
from rlir_env.recordings import FrameArchive
from rlir_env.tokenizers import Tokenizer

_VERSION = 1  # part of the key of stored codes: raise it when their meaning changes


class TokenizedGameplay:
    """An archive's clips as token sequences: every frame is encoded once.

    The codes stay in the archive's folder, for the next training on the same frames with the same tokenizer.

    Args:
        archive: recorded gameplay.
        tokenizer: frozen.
        layout: of the sequences.
        autocast_dtype: for encoding.
    """

    def __init__(
        self,
        archive: FrameArchive,
        tokenizer: Tokenizer,
        layout: TokenLayout,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self._archive, self._layout = archive, layout
        self._num_codes = tokenizer.num_codes
        self._codes = _cached_codes(archive, tokenizer, autocast_dtype)  # int16 [N, K]
        self.starts = archive.clip_starts(layout.num_frames)

    def sequences(self, starts: np.ndarray) -> Tensor:
        """Token sequences of the clips that begin at the given frames, long ``[B, L]``."""
        frames = starts[:, None] + np.arange(self._layout.num_frames)  # [B, F]
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
        every = max(1, len(validation.starts) // num_validation_clips)
        self._held_out = validation.sequences(validation.starts[::every][:num_validation_clips]).to(self.device)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Nats per token."""
        starts = self._training.starts
        chosen = torch.randint(len(starts), (self._clips_per_batch,), generator=generator)
        return self._cross_entropy(self._training.sequences(starts[chosen.numpy()]).to(self.device)), {}

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


def _cached_codes(archive: FrameArchive, tokenizer: Tokenizer, autocast_dtype: torch.dtype | None) -> np.ndarray:
    """Codes of all frames, int16 ``[N, K]``: encoded, or read where they have been encoded before."""
    # Everything that decides the codes of given frames: the modules with their settings, the weights, the precision.
    key = f"{_VERSION} {tokenizer!r} {fingerprint([tokenizer])} {autocast_dtype}"
    path: Path = archive.folder / f"codes-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    # Ranks of one training ask at the same time: one encodes, the others wait.
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            with replacing(path) as unfinished, unfinished.open("wb") as file:
                np.save(file, _encode_all(archive, tokenizer, autocast_dtype))
    codes: np.ndarray = np.load(path)
    return codes


def _encode_all(archive: FrameArchive, tokenizer: Tokenizer, autocast_dtype: torch.dtype | None) -> np.ndarray:
    codes = np.empty((archive.num_frames, tokenizer.tokens_per_frame), np.int16)
    blocks = np.array_split(np.arange(archive.num_frames), -(-archive.num_frames // 512))
    device = device_of(tokenizer)
    with autocast(device, autocast_dtype):
        for block in tqdm(blocks, desc="encoding frames", unit="block"):
            frames = archive.clips(block, 1).frames[:, 0]
            codes[block] = tokenizer.encode(frames.to(device)).cpu().numpy()
    return codes
