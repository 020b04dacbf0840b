"""Decoded frames of many recordings on disk, for training that reads the same frames many times.

Decoding costs more than a training step at preset size, so a folder of recordings is decoded once
at the size of the model. What this is not: a format to keep or to share; the recordings are.

Letters: N frames of all recordings together, R recordings, B clips, F frames of a clip, S slots,
A word length, H and W the frame size.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from tqdm import tqdm

from rlir_env.game_actions import MINECRAFT, GameActionSpec
from rlir_env.recordings.clips import ClipFilter, OnError, check_on_error, mean_change
from rlir_env.recordings.recording import Recording, RecordingError, recording_files

logger = logging.getLogger(__name__)

_VERSION = 1  # part of the cache key: raise it when the files or their meaning change


class ClipBatch(NamedTuple):
    """Clips of one length; game action j acts between frames j and j+1.

    Attributes:
        frames: uint8 ``[B, F, 3, H, W]``.
        game_action: int64 ``[B, F-1, S]``.
        game_action_word: int64 ``[B, F-1, A]``, local ids.
    """

    frames: torch.Tensor
    game_action: torch.Tensor
    game_action_word: torch.Tensor


class FrameArchive:
    """Random access to the clips of many recordings.

    Example:
        >>> archive = FrameArchive.build(list_recordings("runs/doom"), (60, 80))  # doctest: +SKIP
        >>> batch = archive.sample_clips(32, 16, torch.Generator())  # doctest: +SKIP
        >>> starts = archive.clip_starts(16, stride=16)  # doctest: +SKIP
        >>> first = archive.clips(starts[:32], 16)  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path, clip_filter: ClipFilter | None = None) -> None:
        """Open an archive that :meth:`build` has written.

        Args:
            folder: of the archive.
            clip_filter: which windows are clips; the default one where None.
        """
        self.folder = Path(folder)  # its name tells the content; what is derived from the frames is cached in it
        description = json.loads((Path(folder) / "archive.json").read_text())
        self.frame_size: tuple[int, int] = tuple(description["settings"]["frame_size"])
        self.recordings: list[str] = description["recordings"]
        self.problems: list[str] = description["problems"]
        self.clip_filter = clip_filter or ClipFilter()
        with np.load(Path(folder) / "lines.npz") as lines:
            self.slots, self.words = lines["slots"], lines["words"]  # int64 [N, S], [N, A]
            self._is_gui, self._is_null = lines["is_gui"], lines["is_null"]  # bool [N]
            self._change = lines["change"]  # float32 [N]
            self.bounds = lines["bounds"]  # int64 [R+1]: recording r is frames bounds[r:r+2]
        shape = (len(self.slots), 3, *self.frame_size)
        self._frames = np.memmap(Path(folder) / "frames.u8", np.uint8, mode="r", shape=shape)
        self._starts: dict[tuple[int, int], np.ndarray] = {}

    @classmethod
    def build(
        cls,
        paths: Sequence[str | Path],
        frame_size: tuple[int, int],
        cache_folder: str | Path | None = None,
        clip_filter: ClipFilter | None = None,
        cancel_conflicts: bool = True,
        on_error: OnError = "raise",
    ) -> FrameArchive:
        """Decode recordings, or reuse what was decoded from the same files with these settings.

        Args:
            paths: videos of recordings.
            frame_size: (H, W) to resize to; N * 3 * H * W bytes of disk are taken.
            cache_folder: where archives live; ``$XDG_CACHE_HOME/rlir`` where None.
            clip_filter: which windows are clips; not part of what is stored.
            cancel_conflicts: see :func:`~rlir_env.game_actions.event_to_env_action`.
            on_error: ``"skip"`` leaves broken recordings out, as a whole, lists them in ``problems`` and warns.

        Raises:
            ValueError: for another on_error.
            RecordingError: for a broken recording, unless ``on_error="skip"``; or if none is left.
        """
        check_on_error(on_error)
        default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rlir"
        cache = Path(cache_folder or default)
        cache.mkdir(parents=True, exist_ok=True)
        settings = {
            "version": _VERSION,
            "frame_size": list(frame_size),
            "cancel_conflicts": cancel_conflicts,
            "on_error": on_error,
            "sources": [stamp for path in paths for stamp in _stamps(Path(path))],
        }
        folder = cache / hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
        # Ranks of one training ask at the same time: one decodes, the others wait.
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                part = folder.with_suffix(".part")
                shutil.rmtree(part, ignore_errors=True)  # of a build that was killed
                part.mkdir()
                _decode_all([Path(path) for path in paths], settings, part)
                part.rename(folder)
        archive = cls(folder, clip_filter)
        if archive.problems:  # on every build, also where it reuses what another one decoded
            skipped = "".join(f"\n  {problem}" for problem in archive.problems)
            logger.warning("skipped recordings: %d%s", len(archive.problems), skipped)
        return archive

    @property
    def num_frames(self) -> int:
        """N."""
        return len(self.slots)

    def class_shares(self, spec: GameActionSpec = MINECRAFT) -> list[list[float]]:
        """For every slot the share of each of its classes among all lines."""
        return [shares.round(6).tolist() for shares in spec.class_shares(self.slots)]

    def clip_starts(self, num_frames: int, stride: int = 1) -> np.ndarray:
        """The first frames of all windows that the filter keeps, ascending.

        Args:
            num_frames: F.
            stride: frames between windows, counted from the first frame of each recording.

        Returns:
            int64 ``[number of clips]``, indices into the N frames.
        """
        if (num_frames, stride) not in self._starts:
            starts = [np.empty(0, np.int64)]
            for first, end in zip(self.bounds[:-1], self.bounds[1:], strict=True):
                if end - first >= num_frames:
                    lines = slice(first, end)
                    flags = (self._is_gui[lines], self._is_null[lines], self._change[lines])
                    rejected = self.clip_filter.reject(*flags, num_frames)
                    kept = ~np.any(list(rejected.values()), axis=0)
                    starts.append(first + np.flatnonzero(kept[::stride]) * stride)
            self._starts[num_frames, stride] = np.concatenate(starts)
        return self._starts[num_frames, stride]

    def clips(self, starts: Any, num_frames: int) -> ClipBatch:
        """Read the clips that begin at the given frames (int64 ``[B]``, of :meth:`clip_starts`)."""
        frames = np.asarray(starts)[:, None] + np.arange(num_frames)  # [B, F]
        actions = frames[:, :-1]
        return ClipBatch(
            torch.from_numpy(self._frames[frames]),
            torch.from_numpy(self.slots[actions]),
            torch.from_numpy(self.words[actions]),
        )

    def spread_starts(self, num_clips: int, num_frames: int) -> np.ndarray:
        """Pick clips evenly, always the same: their first frames, int64 ``[B]``, fewer if there are no more clips."""
        starts = self.clip_starts(num_frames)
        every = max(1, len(starts) // num_clips)
        return starts[::every][:num_clips]

    def draw_starts(self, num_clips: int, num_frames: int, generator: torch.Generator) -> np.ndarray:
        """Draw clips uniformly, with replacement: their first frames, int64 ``[B]``.

        Raises:
            ValueError: if the filter keeps no window of this length.
        """
        starts = self.clip_starts(num_frames)
        if not len(starts):
            raise ValueError(
                f"no clip of {num_frames} frames in {len(self.recordings)} recordings; record "
                f"longer ones or relax the filter {self.clip_filter}"
            )
        return starts[torch.randint(len(starts), (num_clips,), generator=generator).numpy()]

    def sample_clips(self, num_clips: int, num_frames: int, generator: torch.Generator) -> ClipBatch:
        """Draw B clips; see :meth:`draw_starts`."""
        return self.clips(self.draw_starts(num_clips, num_frames, generator), num_frames)


def _stamps(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of the files of a recording; a missing one is found when decoding."""
    files = [file.resolve() for file in recording_files(path) if file.exists()]
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _decode_all(paths: Sequence[Path], settings: dict[str, Any], folder: Path) -> None:
    tables, bounds, names, problems = [], [0], [], []
    with (
        (folder / "frames.u8").open("wb") as file,
        tqdm(unit=" frames", desc="decoding recordings") as bar,
    ):
        for number, path in enumerate(paths, start=1):
            bar.set_postfix_str(f"recording {number} of {len(paths)}", refresh=False)
            offset = file.tell()
            try:
                table = _decode(Recording(path), settings, file, bar)
            except RecordingError as error:
                if settings["on_error"] == "raise":
                    raise
                problems.append(str(error))
                file.seek(offset)
                file.truncate()
                continue
            tables.append(table)
            names.append(path.stem)
            bounds.append(bounds[-1] + len(table["slots"]))
    if not tables:
        raise RecordingError("no readable recording:\n" + "\n".join(problems))
    columns: dict[str, Any] = {key: np.concatenate([table[key] for table in tables]) for key in tables[0]}
    np.savez(folder / "lines.npz", bounds=np.array(bounds, np.int64), **columns)
    description = {"settings": settings, "recordings": names, "problems": problems}
    (folder / "archive.json").write_text(json.dumps(description, indent=1))


def _decode(recording: Recording, settings: dict[str, Any], file: BinaryIO, bar: tqdm) -> dict[str, np.ndarray]:
    track = recording.actions(settings["cancel_conflicts"])
    change = np.zeros(len(track.slots), np.float32)
    previous = None
    for index, frame in enumerate(recording.frames(tuple(settings["frame_size"]))):
        if previous is not None:
            change[index - 1] = mean_change(previous, frame)
        file.write(frame.transpose(2, 0, 1).tobytes())
        previous = frame
        bar.update()
    flags = {"is_gui": track.is_gui, "is_null": track.is_null, "change": change}
    return {"slots": track.slots, "words": track.words, **flags}
