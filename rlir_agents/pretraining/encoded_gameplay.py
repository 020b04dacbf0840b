"""Recorded gameplay as a frozen tokenizer codes it: ids or latents, every frame encoded once.

The codes stay in the archive's folder, for the next training on the same frames with the same tokenizer. What a world
model makes of them is the business of each kind (``world_model.py``, ``flow.py``).

Letters: N frames of the archive, B clips, F frames of a clip, K ids of a frame; c, h, w a latent's channels, height and
width.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from tqdm import tqdm

from rlir_agents.hardware import autocast, device_of
from rlir_env.atomic_files import replacing
from rlir_env.checkpoints import fingerprint
from rlir_env.recordings import FrameArchive
from rlir_env.tokenizers import Tokenizer

_VERSION = 1  # part of the key of stored codes: raise it when their meaning changes
_FRAMES_PER_BLOCK = 512


class EncodedGameplay:
    """An archive's clips of one length, as codes.

    Args:
        archive: recorded gameplay.
        tokenizer: frozen.
        num_frames: F.
        autocast_dtype: for encoding.

    Attributes:
        num_frames: F.
    """

    def __init__(
        self,
        archive: FrameArchive,
        tokenizer: Tokenizer,
        num_frames: int,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self._archive, self.num_frames = archive, num_frames
        self._codes = _stored_codes(archive, tokenizer, autocast_dtype)

    @property
    def starts(self) -> np.ndarray:
        """First frames of all clips, ascending, int64 ``[number of clips]``."""
        return self._archive.clip_starts(self.num_frames)

    def draw_starts(self, num_clips: int, generator: torch.Generator) -> np.ndarray:
        """Draw clips, see `FrameArchive.draw_starts`: their first frames, int64 ``[B]``."""
        return self._archive.draw_starts(num_clips, self.num_frames, generator)

    def spread_starts(self, num_clips: int) -> np.ndarray:
        """Pick clips, see `FrameArchive.spread_starts`: their first frames, int64 ``[B]``."""
        return self._archive.spread_starts(num_clips, self.num_frames)

    def _frame_indices(self, starts: np.ndarray) -> np.ndarray:
        """Where the frames of clips are in the archive, int64 ``[B, F]``."""
        return starts[:, None] + np.arange(self.num_frames)


def _stored_codes(archive: FrameArchive, tokenizer: Tokenizer, autocast_dtype: torch.dtype | None) -> np.ndarray:
    """Codes of all frames, memory-mapped, int16 ``[N, K]`` or float16 ``[N, c, h, w]``; encoded if they are not there.

    Rounded to float16, latents of unit variance are 2e-4 off.
    """
    # Everything that decides the codes of given frames: the modules with their settings, the weights, the precision.
    key = f"{_VERSION} {tokenizer!r} {fingerprint([tokenizer])} {autocast_dtype}"
    path: Path = archive.folder / f"codes-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    # Ranks of one training ask at the same time: one encodes, the others wait.
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            with replacing(path) as unfinished:
                _encode_all(archive, tokenizer, autocast_dtype, unfinished)
    codes: np.ndarray = np.load(path, mmap_mode="r")
    return codes


def _encode_all(archive: FrameArchive, tokenizer: Tokenizer, autocast_dtype: torch.dtype | None, path: Path) -> None:
    """Write the codes block by block: those of published tokenizers would fill the memory."""
    is_latent = len(tokenizer.code_shape) > 1
    dtype = np.dtype(np.float16 if is_latent else np.int16)
    shape = (archive.num_frames, *tokenizer.code_shape)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    device = device_of(tokenizer)
    blocks = np.array_split(np.arange(archive.num_frames), -(-archive.num_frames // _FRAMES_PER_BLOCK))
    with path.open("wb") as file, autocast(device, autocast_dtype):
        np.lib.format.write_array_header_1_0(file, header)
        for block in tqdm(blocks, desc="encoding frames", unit="block"):
            frames = archive.clips(block, 1).frames[:, 0]
            codes = tokenizer.encode(frames.to(device)).cpu().numpy()
            file.write(codes.astype(dtype).tobytes())
