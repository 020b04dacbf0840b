"""Cuts recordings into clips of F frames that an inverse dynamics model can read (paper 5.1).

The paper removes "frames recorded during GUI interactions or those in which the scene is static";
MineWorld marks null actions. No frame is taken out of the middle of a clip, because game action j
must lead from frame j to frame j+1; instead a window that holds too much of them is dropped.

Letters: N frames of a recording, F frames of a clip, S slots, A word length, H and W frame size.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch

from rlir_env.recordings.recording import Recording, RecordingError, Resampling, check_resampling
from rlir_env.recordings.vpt_hygiene import NO_HYGIENE, VPTHygiene

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]


def check_on_error(on_error: str) -> None:
    """Raise ValueError for what is not an :data:`OnError`."""
    if on_error not in get_args(OnError):
        raise ValueError(f"on_error={on_error!r}: use 'raise' or 'skip'")


class Clip(NamedTuple):
    """A window of a recording; game action j acts between frames j and j+1: its line j, unless the source says else.

    Attributes:
        frames: uint8 ``[F, 3, H, W]``.
        game_action: int64 ``[F-1, S]``, slots.
        game_action_word: int64 ``[F-1, A]``, local ids.
        recording: the name of the recording.
        start: the window's first frame in it.
    """

    frames: torch.Tensor
    game_action: torch.Tensor
    game_action_word: torch.Tensor
    recording: str
    start: int


@dataclass(frozen=True)
class ClipFilter:
    """Which windows to drop; every rule has its switch.

    Attributes:
        drop_gui: drop a window if a menu is open in one of its frames.
        max_static_run: drop it if the picture stands still over more transitions in a row than
            this; None keeps all. The default is half of a 16-frame clip.
        max_null_run: the same for null actions.
        static_threshold: a transition is static if its pixels change by less than this on
            average, of 255; video compression alone changes less.
    """

    drop_gui: bool = True
    max_static_run: int | None = 7
    max_null_run: int | None = 7
    static_threshold: float = 0.5

    def __post_init__(self) -> None:
        for name in ("max_static_run", "max_null_run", "static_threshold"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int | float) or value < 0):
                raise ValueError(f"{name}={value!r}: give 0 or more")

    @classmethod
    def keep_all(cls) -> ClipFilter:
        """A filter that drops nothing."""
        return cls(drop_gui=False, max_static_run=None, max_null_run=None)

    def reject(
        self, is_gui: np.ndarray, is_null: np.ndarray, change: np.ndarray, num_frames: int
    ) -> dict[str, np.ndarray]:
        """Judge all windows of one recording.

        Args:
            is_gui: bool ``[N]``, of each frame.
            is_null: bool ``[N]``, of each frame's line.
            change: float ``[N]``, :func:`mean_change` from each frame to the next; the last
                entry is not looked at.
            num_frames: F, at most N.

        Returns:
            For each rule, bool ``[N-F+1]``: the windows, by first frame, that break it.
        """
        is_static, transitions = change < self.static_threshold, num_frames - 1
        return {
            "gui": _has_long_run(is_gui, num_frames, 0 if self.drop_gui else None),
            "static": _has_long_run(is_static[:-1], transitions, self.max_static_run),
            "null": _has_long_run(is_null[:-1], transitions, self.max_null_run),
        }


@dataclass
class ClipReport:
    """What one pass over a :class:`ClipSource` met."""

    num_recordings: int = 0
    num_clips: int = 0
    num_dropped: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def add(self, other: ClipReport) -> None:
        """Add what another pass, or a part of this one, met."""
        self.num_recordings += other.num_recordings
        self.num_clips += other.num_clips
        self.num_dropped.update(other.num_dropped)
        self.problems += other.problems

    def to_text(self) -> str:
        """A line of counts, then one for each recording that was skipped."""
        dropped = ", ".join(f"{count} {rule}" for rule, count in sorted(self.num_dropped.items()))
        counts = (
            f"{self.num_clips} clips of {self.num_recordings} recordings; "
            f"dropped windows: {dropped or 'none'}; skipped recordings: {len(self.problems)}"
        )
        return "\n".join([counts, *(f"  {problem}" for problem in self.problems)])


class ClipSource:
    """Streams clips from recordings in constant memory.

    Where broken recordings are skipped, the memory is that of the clips of one recording: what is wrong with it may be
    found at its last frame only. None of its clips is handed out then, as a
    :class:`~rlir_env.recordings.archive.FrameArchive` keeps none of its frames.

    Example:
        >>> source = ClipSource(list_recordings("runs/doom"), (60, 80))  # doctest: +SKIP
        >>> for clip in source.iterate(shuffle_seed=0): ...  # doctest: +SKIP
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        frame_size: tuple[int, int],
        num_frames: int = 16,
        stride: int | None = None,
        clip_filter: ClipFilter | None = None,
        cancel_conflicts: bool = True,
        on_error: OnError = "raise",
        hygiene: VPTHygiene = NO_HYGIENE,
        action_offset: int = 0,
        clips_per_recording: int | None = None,
        resampling: Resampling = "area",
    ) -> None:
        """Describe the clips.

        Args:
            paths: videos of recordings.
            frame_size: (H, W) to resize to.
            num_frames: F.
            stride: frames between the starts of windows; F where None.
            clip_filter: the default one where None.
            cancel_conflicts: see :func:`~rlir_env.game_actions.event_to_env_action`.
            on_error: ``"skip"`` leaves broken recordings out, as a whole, and lists them in ``report``.
            hygiene: what is mended while reading; for VPT's own recordings.
            action_offset: the line that leads from frame j to frame j+1 is ``j + action_offset``: 0 in recordings of
                VPT, 1 in MineWorld's benchmark, which makes frame j from line j.
            clips_per_recording: at most so many of a recording, drawn from all of its clips by the seed of the pass;
                None takes all. A few clips of many recordings show more than all of a few.
            resampling: how frames are resized.

        Raises:
            ValueError: for a size that is none, a window of less than two frames, a stride or number of clips below 1,
                another offset, on_error or resampling, or several recordings of one name.
        """
        if action_offset not in (0, 1):
            raise ValueError(f"action_offset={action_offset}: use 0 (VPT's recordings) or 1 (MineWorld's benchmark)")
        if clips_per_recording is not None and clips_per_recording < 1:
            raise ValueError(f"clips_per_recording={clips_per_recording}: use at least 1, or None for all")
        if len(frame_size) != 2 or not all(type(side) is int and side > 0 for side in frame_size):
            raise ValueError(f"frame_size={frame_size}: use [height, width], two positive integers")
        if num_frames < 2 or (stride is not None and stride < 1):
            raise ValueError(f"num_frames={num_frames}, stride={stride}: use at least 2 and 1")
        check_on_error(on_error)
        check_resampling(resampling)
        self.paths = [Path(path) for path in paths]
        twice = [name for name, count in Counter(path.stem for path in self.paths).items() if count > 1]
        if twice:  # a clip knows its recording by name
            raise ValueError(f"several recordings are named {', '.join(twice[:3])}: give them names of their own")
        self.frame_size = frame_size
        self.num_frames = num_frames
        self.stride = stride or num_frames
        self.clip_filter = clip_filter or ClipFilter()
        self.cancel_conflicts = cancel_conflicts
        self.on_error = on_error
        self.hygiene = hygiene
        self.action_offset = action_offset
        self.clips_per_recording = clips_per_recording
        self.resampling = resampling
        self.report = ClipReport()

    def iterate(self, shuffle_seed: int | None = None, buffer: int = 256) -> Iterator[Clip]:
        """Yield every clip once; afterwards ``report`` is complete and logged.

        Args:
            shuffle_seed: shuffles the recordings, and clips through a buffer; the same seed gives
                the same order. None keeps the order of the paths.
            buffer: clips held for shuffling.

        Raises:
            RecordingError: for a broken recording, unless ``on_error="skip"``.
        """
        self.report = ClipReport()
        paths = list(self.paths)
        if shuffle_seed is None:
            yield from self._clips(paths, seed=0)
        else:
            rng = random.Random(shuffle_seed)
            rng.shuffle(paths)
            yield from _shuffled(self._clips(paths, shuffle_seed), rng, buffer)
        level = logging.WARNING if self.report.problems else logging.INFO
        logger.log(level, "%s", self.report.to_text())

    def _clips(self, paths: Iterable[Path], seed: int) -> Iterator[Clip]:
        for path in paths:
            yield from self._sound(path, seed) if self.on_error == "skip" else self._some_of(path, seed, self.report)

    def _sound(self, path: Path, seed: int) -> list[Clip]:
        """All clips of a recording; none, and a problem in the report, if it is broken anywhere."""
        part = ClipReport()
        try:
            clips = list(self._some_of(path, seed, part))
        except RecordingError as error:
            self.report.problems.append(str(error))
            return []
        self.report.add(part)
        return clips

    def _some_of(self, path: Path, seed: int, report: ClipReport) -> Iterable[Clip]:
        """The clips of a recording, or some of them."""
        if self.clips_per_recording is None:
            return self._clips_of(path, report)
        part = ClipReport()
        drawn = _drawn(self._clips_of(path, part), self.clips_per_recording, random.Random(f"{seed}:{path.stem}"))
        part.num_clips = len(drawn)
        report.add(part)
        return drawn

    def _clips_of(self, path: Path, report: ClipReport) -> Iterator[Clip]:
        recording = Recording(path, self.hygiene)
        track = recording.actions(self.cancel_conflicts)
        window: deque[np.ndarray] = deque(maxlen=self.num_frames)
        change: deque[float] = deque(maxlen=self.num_frames)
        for index, frame in enumerate(recording.frames(self.frame_size, self.resampling)):
            # change[i] belongs to window[i] and the frame after it: known one frame late.
            if window:
                change[-1] = mean_change(window[-1], frame)
            window.append(frame)
            change.append(0.0)
            start = index - self.num_frames + 1
            if start < 0 or start % self.stride:
                continue
            lines = slice(start, index + 1)
            actions = slice(start + self.action_offset, index + self.action_offset)
            is_null = np.append(track.is_null[actions], False)  # of the line behind the last action nothing is asked
            broken = self.clip_filter.reject(track.is_gui[lines], is_null, np.array(change), self.num_frames)
            rules = [rule for rule, windows in broken.items() if windows[0]]
            if rules:
                report.num_dropped[rules[0]] += 1
                continue
            report.num_clips += 1
            yield Clip(
                torch.from_numpy(np.stack(window)).permute(0, 3, 1, 2).contiguous(),
                torch.from_numpy(track.slots[actions]),
                torch.from_numpy(track.words[actions]),
                recording.name,
                start,
            )
        report.num_recordings += 1


def mean_change(frame: np.ndarray, next_frame: np.ndarray) -> float:
    """Mean absolute difference of two uint8 frames of one shape."""
    return float(np.abs(frame.astype(np.int16) - next_frame).mean())


def split_recordings(
    paths: Iterable[str | Path], fractions: Mapping[str, float], seed: int = 0
) -> dict[str, list[Path]]:
    """Assign whole recordings to parts by a hash of their names.

    A recording keeps its part when others are added or removed.

    Args:
        paths: videos of recordings.
        fractions: the share of each part; they sum to 1.
        seed: another seed is another split.

    Raises:
        ValueError: if the fractions do not sum to 1.

    Example:
        >>> parts = split_recordings(["a.mp4", "b.mp4"], {"train": 0.9, "validation": 0.1})
        >>> sum(len(part) for part in parts.values())
        2
    """
    if abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"fractions {dict(fractions)} sum to {sum(fractions.values())}, not to 1")
    limits = np.cumsum(list(fractions.values()))
    parts: dict[str, list[Path]] = {name: [] for name in fractions}
    for path in map(Path, paths):
        digest = hashlib.sha256(f"{seed}:{path.stem}".encode()).digest()
        share = int.from_bytes(digest[:6], "big") / 2**48
        part = int(np.searchsorted(limits[:-1], share, side="right"))
        list(parts.values())[part].append(path)
    return parts


def _has_long_run(flags: np.ndarray, window: int, longest: int | None) -> np.ndarray:
    """Which windows hold a run of more than ``longest`` flags, bool ``[len(flags)-window+1]``."""
    if longest is None or longest >= window:
        return np.zeros(len(flags) - window + 1, bool)
    run = longest + 1
    is_run = np.lib.stride_tricks.sliding_window_view(flags, run).all(axis=-1)
    return np.asarray(np.lib.stride_tricks.sliding_window_view(is_run, window - run + 1).any(axis=-1))


def _drawn(clips: Iterable[Clip], count: int, rng: random.Random) -> list[Clip]:
    """``count`` of the clips, each as likely as any other, in their order; no more are held at once."""
    held: list[Clip] = []
    for seen, clip in enumerate(clips):
        if len(held) < count:
            held.append(clip)
        elif (place := rng.randrange(seen + 1)) < count:
            held[place] = clip
    return sorted(held, key=lambda clip: clip.start)


def _shuffled(clips: Iterable[Clip], rng: random.Random, buffer: int) -> Iterator[Clip]:
    held: list[Clip] = []
    for clip in clips:
        if len(held) < buffer:
            held.append(clip)
            continue
        index = rng.randrange(buffer)
        yield held[index]
        held[index] = clip
    rng.shuffle(held)
    yield from held
