"""What the readers can read on real video: a policy cannot be rewarded for what its reader does not see.

Coach and judge are shown real clips of maps that neither has seen, the same clips through the tokenizer, and longer
clips cut into pieces, because the paper claims that longer clips are read better (section 5.1). What comes of it is
counted here; the figures are in `rlir_agents.reader_figures`. No world model takes part, and nothing here learns.

Letters: N clips, F frames, L frames of a piece of a clip, S slots, C most classes of any slot.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rlir_agents.hardware import autocast
from rlir_env.game_actions import GameActionSpec
from rlir_env.inverse_dynamics import InverseDynamicsModel
from rlir_env.metrics import ActionFollowing, confusion_matrices
from rlir_env.recordings import ClipBatch, FrameArchive
from rlir_env.tokenizers import Tokenizer

Tables = dict[str, Tensor]
"""By reader: one confusion matrix for every clip and slot, int64 ``[N, S, C, C]``, true class first."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class ReaderTables:
    """Everything that was read, counted.

    Attributes:
        spec: names the slots.
        always_none: of the real clips, what reading "none" everywhere would give, ``[N, S, C, C]``.
        real: of real clips.
        reconstructed: of the same clips through the tokenizer.
        by_length: of other, longer clips cut into pieces of L frames, by L.
    """

    spec: GameActionSpec
    always_none: Tensor
    real: Tables
    reconstructed: Tables
    by_length: dict[int, Tables]


class ReaderStudy:
    """Shows clips to the readers and counts what they read."""

    def __init__(
        self,
        readers: Mapping[str, InverseDynamicsModel],
        tokenizer: Tokenizer,
        device: torch.device | str = "cpu",
        autocast_dtype: torch.dtype | None = None,
        batch_size: int = 16,
    ) -> None:
        """Make a study.

        Args:
            readers: by name, of one game.
            tokenizer: whose frame size the clips have.
            device: where all of them are.
            autocast_dtype: precision of the readers; None leaves it to them.
            batch_size: clips in memory at once.

        Raises:
            ValueError: if there are no readers, or they differ in their slots.
        """
        if len({reader.spec for reader in readers.values()}) != 1:
            raise ValueError("pass at least one reader, and readers of the same game: their slots must be equal")
        self.readers, self.tokenizer = dict(readers), tokenizer
        self.spec = next(iter(self.readers.values())).spec
        self._device, self._autocast_dtype, self._batch_size = torch.device(device), autocast_dtype, batch_size

    def read(self, clips: ClipBatch, windows: ClipBatch, lengths: Sequence[int]) -> ReaderTables:
        """Read everything.

        Args:
            clips: real gameplay, at the tokenizer's frame size.
            windows: longer clips, which are cut.
            lengths: L, frames of the pieces that they are cut into.

        Raises:
            ValueError: if a piece cannot be cut.
        """
        by_video = self._read_clips(clips)
        by_piece = self._read_pieces(windows, lengths)
        nothing = torch.tensor(self.spec.none_classes).expand_as(clips.game_action)
        return ReaderTables(
            self.spec,
            confusion_matrices(nothing, clips.game_action, self.spec),
            real={name: by_video["real", name] for name in self.readers},
            reconstructed={name: by_video["reconstructed", name] for name in self.readers},
            by_length={length: {name: by_piece[length, name] for name in self.readers} for length in lengths},
        )

    def _read_clips(self, clips: ClipBatch) -> dict[tuple[str, str], Tensor]:
        def read(frames: Tensor) -> Iterable[tuple[tuple[str, str], Tensor]]:
            reconstructed = self.tokenizer.decode(self.tokenizer.encode(frames))
            for video, shown in (("real", frames), ("reconstructed", reconstructed)):
                for name, reader in self.readers.items():
                    yield (video, name), self._infer(reader, shown)

        return self._count(clips, read, f"clips of {clips.frames.shape[1]} frames")

    def _read_pieces(self, windows: ClipBatch, lengths: Sequence[int]) -> dict[tuple[int, str], Tensor]:
        def read(frames: Tensor) -> Iterable[tuple[tuple[int, str], Tensor]]:
            for length in lengths:
                for name, reader in self.readers.items():
                    yield (length, name), in_pieces(partial(self._infer, reader), frames, length)

        return self._count(windows, read, f"pieces of {windows.frames.shape[1]} frames")

    @torch.no_grad()
    def _count(
        self, clips: ClipBatch, read: Callable[[Tensor], Iterable[tuple[Key, Tensor]]], title: str
    ) -> dict[Key, Tensor]:
        metrics: dict[Key, ActionFollowing] = {}
        with tqdm(total=len(clips.frames), desc=title, unit=" clips") as bar:
            for frames, true in zip(*(part.split(self._batch_size) for part in clips[:2]), strict=True):
                for key, inferred in read(frames.to(self._device)):
                    metrics.setdefault(key, ActionFollowing(self.spec)).update(inferred, true)
                bar.update(len(frames))
        return {key: metric.per_clip for key, metric in metrics.items()}

    def _infer(self, reader: InverseDynamicsModel, frames: Tensor) -> Tensor:
        """One reading per transition, long ``[..., F-1, S]`` on the CPU."""
        with autocast(self._device, self._autocast_dtype):
            return reader.infer_game_actions(frames).cpu()


def spread_clips(archive: FrameArchive, num_clips: int, num_frames: int) -> ClipBatch:
    """Disjoint clips, evenly spread over an archive.

    Args:
        archive: of recordings.
        num_clips: at most so many.
        num_frames: F.

    Raises:
        ValueError: if there is none.
    """
    starts = archive.clip_starts(num_frames, stride=num_frames) if num_frames > 1 else np.empty(0, np.int64)
    number = min(num_clips, len(starts))
    if number < 1:
        raise ValueError(
            f"asked for {num_clips} clips of {num_frames} frames, and {len(archive.recordings)} recordings have "
            f"{len(starts)}: ask for 1 or more, of 2 frames or more, or record longer"
        )
    chosen = np.linspace(0, len(starts) - 1, number).round().astype(np.int64)
    return archive.clips(starts[chosen], num_frames)


def piece_bounds(num_frames: int, length: int) -> list[tuple[int, int]]:
    """Cut a clip into pieces of one length, between which every transition is read once.

    Neighbours share a frame, for a transition needs both of its frames. The last piece must end with the clip, so it
    may begin early and repeat transitions of the one before; these are skipped.

    Args:
        num_frames: F.
        length: L, frames of a piece.

    Returns:
        For each piece its first frame, and how many of its transitions to skip.

    Raises:
        ValueError: if there is no such piece.

    Example:
        >>> piece_bounds(16, 8)  # transitions 0 to 6, 7 to 13, and 14
        [(0, 0), (7, 0), (8, 6)]
    """
    if not 2 <= length <= num_frames:
        raise ValueError(f"a clip of {num_frames} frames has no pieces of {length}: use lengths of 2 to {num_frames}")
    last = num_frames - length
    return [(min(first, last), max(0, first - last)) for first in range(0, num_frames - 1, length - 1)]


def in_pieces(infer: Callable[[Tensor], Tensor], frames: Tensor, length: int) -> Tensor:
    """Read a clip as if each piece of it were all there is: the same transitions, with less around them.

    Args:
        infer: from clips ``[..., L, 3, H, W]`` to readings ``[..., L-1, S]``.
        frames: ``[N, F, 3, H, W]``.
        length: L.

    Returns:
        ``[N, F-1, S]``.

    Raises:
        ValueError: if a clip has no such piece.
    """
    bounds = piece_bounds(frames.shape[1], length)
    pieces = torch.stack([frames[:, first : first + length] for first, _ in bounds], dim=1)  # [N, pieces, L, 3, H, W]
    readings = infer(pieces)
    return torch.cat([readings[:, piece, skipped:] for piece, (_, skipped) in enumerate(bounds)], dim=1)
