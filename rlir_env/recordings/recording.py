"""One recording in VPT's format: ``<name>.mp4`` and ``<name>.jsonl``, one event a frame.

Line t of the events is what the player did after seeing frame t; its effect is visible in frame
t+1. The same reader serves VPT's contractor data, MineWorld's validation clips (whose lines are
env actions, and may go on behind the last frame) and our own recorded gameplay. Nothing is repaired
here: a recording that is not whole raises :class:`RecordingError`; filters live in :mod:`rlir_env.recordings.clips`.

Letters: N frames, S slots, A word length, H and W the frame size.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
import torch

from rlir_env.game_actions import (
    ActionWord,
    EnvAction,
    check_env_action,
    env_actions_to_slots,
    event_to_env_action,
    is_null_action,
)
from rlir_env.recordings.vpt_hygiene import NO_HYGIENE, VPTHygiene
from rlir_env.resize import resize_like_opencv

Resampling = Literal["area", "bilinear"]
"""How frames are resized: by averaging over areas, or as OpenCV's bilinear does, bit for bit, which models of others
have seen: it skips pixels where it makes small pictures of large ones."""


class RecordingError(ValueError):
    """A recording that is broken; the message names the file and, where there is one, the line."""


def check_resampling(resampling: str) -> None:
    """Raise ValueError for what is not a :data:`Resampling`."""
    if resampling not in get_args(Resampling):
        raise ValueError(f"resampling={resampling!r}: use 'area' or 'bilinear'")


def import_av() -> ModuleType:
    """PyAV, or an error that says how to get it."""
    try:
        import av
    except ImportError as error:
        raise ImportError("reading and writing videos needs PyAV: pip install 'rlir[video]'") from error
    return av


def recording_files(path: str | Path) -> tuple[Path, Path]:
    """The video and the events of a recording named by its video, or without a suffix."""
    path = Path(path)
    video = path if path.suffix == ".mp4" else path.with_name(path.name + ".mp4")
    return video, video.with_suffix(".jsonl")


def options_file(path: str | Path) -> Path:
    """``<name>-options.json`` beside a recording: how it was made, where its maker says so."""
    video, _ = recording_files(path)
    return video.with_name(f"{video.stem}-options.json")


def read_options(path: str | Path) -> dict[str, Any]:
    """What the options file beside a recording says; empty where there is none.

    Raises:
        RecordingError: if the file is not a JSON object.
    """
    file = options_file(path)
    if not file.is_file():
        return {}
    try:
        options = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not even text
        raise RecordingError(f"{file}: not JSON ({error})") from error
    if not isinstance(options, dict):
        raise RecordingError(f"{file}: not a JSON object")
    return options


def list_recordings(folder: str | Path, suffix: str = ".mp4") -> list[Path]:
    """The videos of a folder in the order of their names; where it has none, those of the folders below it.

    Args:
        folder: Of recordings.
        suffix: Of the files that are listed; ``.jsonl`` lists labels.

    Raises:
        RecordingError: if there are none, or two of one name.
    """
    paths = sorted(Path(folder).glob(f"*{suffix}")) or sorted(Path(folder).rglob(f"*{suffix}"))
    if not paths:
        what = "recordings here (<name>.mp4 with <name>.jsonl)" if suffix == ".mp4" else f"*{suffix} here"
        raise RecordingError(f"{folder}: no {what if Path(folder).is_dir() else 'such folder'}")
    twice = next((stem for stem, count in Counter(path.stem for path in paths).items() if count > 1), None)
    if twice is not None:
        raise RecordingError(f"{folder}: several recordings are named {twice}; give one of the folders below it")
    return paths


def in_order_of_numbers(videos: Sequence[Path]) -> list[Path]:
    """Videos by the number at the end of their names, as MineWorld's scripts count; before all those without one.

    Example:
        >>> [video.stem for video in in_order_of_numbers([Path("clip_10.mp4"), Path("clip_7.mp4")])]
        ['clip_7', 'clip_10']
    """

    def number(video: Path) -> tuple[int, str]:
        digits = re.search(r"\d*$", video.stem)
        return (int(digits[0]) if digits and digits[0] else -1), video.stem

    return sorted(videos, key=number)


@dataclass(frozen=True)
class ActionTrack:
    """What was pressed at every frame of a recording.

    Attributes:
        slots: int64 ``[N, S]``, the classes of :data:`~rlir_env.game_actions.MINECRAFT`.
        words: int64 ``[N, A]``, local ids of MineWorld's action word.
        is_null: bool ``[N]``, nothing was pressed or moved, or a menu key was.
        is_gui: bool ``[N]``, a menu was open.
    """

    slots: np.ndarray
    words: np.ndarray
    is_null: np.ndarray
    is_gui: np.ndarray


class Recording:
    """Reads one recording.

    Example:
        >>> recording = Recording("runs/doom/map01_0.mp4")  # doctest: +SKIP
        >>> for frame in recording.frames(size=(60, 80)): ...  # doctest: +SKIP
    """

    def __init__(self, path: str | Path, hygiene: VPTHygiene = NO_HYGIENE) -> None:
        """Name the pair of files.

        Args:
            path: the video; the events lie beside it with the suffix ``.jsonl``.
            hygiene: what is mended while reading; for VPT's own recordings.

        Raises:
            RecordingError: if one of the two files is missing.
        """
        self.video_path, self.events_path = recording_files(path)
        for file in (self.video_path, self.events_path):
            if not file.is_file():
                raise RecordingError(f"{file}: missing; a recording is <name>.mp4 and <name>.jsonl")
        self._hygiene = hygiene
        self._header: tuple[int, float, tuple[int, int]] | None = None

    @property
    def name(self) -> str:
        """The file name without its suffix."""
        return self.video_path.stem

    @property
    def num_frames(self) -> int:
        """N, as the video's header says; :meth:`frames` checks it."""
        return self._read_header()[0]

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self._read_header()[1]

    @property
    def frame_size(self) -> tuple[int, int]:
        """The size (H, W) of the video as stored."""
        return self._read_header()[2]

    def frames(self, size: tuple[int, int] | None = None, resampling: Resampling = "area") -> Iterator[np.ndarray]:
        """Decode the frames in order.

        Args:
            size: (H, W) to resize to; as stored where None.
            resampling: how.

        Yields:
            uint8 ``[H, W, 3]``, RGB.

        Raises:
            RecordingError: if the video is broken or ends before its header says.
        """
        av = import_av()
        height, width = size or self.frame_size
        reformatter = av.video.reformatter.VideoReformatter()
        num_decoded = 0
        events = iter(self.events() if self._hygiene.draw_cursor else [])
        try:
            with av.open(str(self.video_path)) as container:
                container.streams.video[0].thread_type = "AUTO"
                for frame in container.decode(video=0):
                    event = next(events, {})
                    if self._hygiene.draws_at(event):
                        drawn = self._with_cursor(frame.to_ndarray(format="rgb24"), event)
                        frame = av.VideoFrame.from_ndarray(drawn, format="rgb24")
                    num_decoded += 1
                    if resampling == "bilinear":
                        yield _resized_like_opencv(frame.to_ndarray(format="rgb24"), (height, width))
                    else:
                        rgb = reformatter.reformat(frame, width, height, format="rgb24", interpolation="AREA")
                        yield rgb.to_ndarray()
        except av.FFmpegError as error:
            raise self._broken_video(f"frame {num_decoded}: {error.strerror}") from error
        if num_decoded != self.num_frames:
            raise self._broken_video(f"{num_decoded} of {self.num_frames} frames")

    def events(self) -> list[dict[str, Any]]:
        """The lines of the events file as they are; of a file of env actions no more than there are frames.

        MineWorld's validation clips may have lines of what came behind their last frame.

        Raises:
            RecordingError: if a line is not a JSON object or if there is not one line a frame.
        """
        events = read_events(self.events_path)
        if all("ESC" in event for event in events):
            events = events[: self.num_frames]
        if len(events) != self.num_frames:
            raise RecordingError(
                f"{self.events_path}: {len(events)} lines for the {self.num_frames} frames of "
                f"{self.video_path.name}; there must be one line a frame"
            )
        try:
            return self._hygiene.mend(events)
        except (KeyError, TypeError) as error:
            raise RecordingError(f"{self.events_path}: not lines of VPT, which hygiene needs ({error!r})") from error

    def env_actions(self, cancel_conflicts: bool = True) -> tuple[list[EnvAction], np.ndarray]:
        """The env action of every line, and which are null (bool ``[N]``).

        Args:
            cancel_conflicts: see :func:`~rlir_env.game_actions.event_to_env_action`. Lines that
                are env actions already (they have the key ``ESC``) are taken as they are.

        Raises:
            RecordingError: if a line lacks a key.
        """
        return env_actions_of(self.events(), self.events_path, cancel_conflicts)

    def actions(self, cancel_conflicts: bool = True) -> ActionTrack:
        """Slots, words and flags of every line.

        Raises:
            RecordingError: as :meth:`env_actions`.
        """
        events = self.events()
        env_actions, is_null = env_actions_of(events, self.events_path, cancel_conflicts)
        is_gui = np.array([event.get("isGuiOpen", False) for event in events], bool)
        words = ActionWord(num_codes=0).encode(env_actions)
        return ActionTrack(env_actions_to_slots(env_actions), words, is_null, is_gui)

    def _with_cursor(self, frame: np.ndarray, event: dict[str, Any]) -> np.ndarray:
        try:
            return self._hygiene.draw(frame, event)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RecordingError(f"{self.events_path}: no place of a cursor in an open menu ({error!r})") from error

    def _read_header(self) -> tuple[int, float, tuple[int, int]]:
        if self._header is None:
            av = import_av()
            try:
                with av.open(str(self.video_path)) as container:
                    if not container.streams.video:
                        raise self._broken_video("no video stream")
                    stream = container.streams.video[0]
                    # Fragmented files do not count their frames; then their packets are counted.
                    num_frames = stream.frames or sum(bool(p.size) for p in container.demux(stream))
                    rate = float(stream.average_rate or 0)
                    self._header = num_frames, rate, (stream.height, stream.width)
            except av.FFmpegError as error:
                raise self._broken_video(str(error.strerror)) from error
        return self._header

    def _broken_video(self, what: str) -> RecordingError:
        return RecordingError(f"{self.video_path}: truncated or broken video ({what})")


def read_events(path: str | Path) -> list[dict[str, Any]]:
    """The lines of an events file as they are, whether or not a video lies beside it.

    Raises:
        RecordingError: if the file is missing, or a line is not a JSON object.
    """
    try:
        # Not splitlines: what a player types ("chars") may hold other line separators.
        lines = Path(path).read_text(encoding="utf-8").rstrip("\n").split("\n")
    except FileNotFoundError as error:
        raise RecordingError(f"{path}: missing") from error
    except UnicodeDecodeError as error:
        raise RecordingError(f"{path}: not text ({error})") from error
    return [_parse(path, number, line) for number, line in enumerate(lines, start=1)]


def env_actions_of(
    events: Sequence[dict[str, Any]], path: str | Path, cancel_conflicts: bool = True, first_number: int = 1
) -> tuple[list[EnvAction], np.ndarray]:
    """The env actions of events, and which are null; see :meth:`Recording.env_actions`.

    Args:
        events: from :func:`read_events`.
        path: of their file, for messages.
        cancel_conflicts: see there.
        first_number: of the first event's line, for messages.

    Raises:
        RecordingError: if a line lacks a key.
    """
    pairs = [_env_action(path, number, event, cancel_conflicts) for number, event in enumerate(events, first_number)]
    return [action for action, _ in pairs], np.array([is_null for _, is_null in pairs], bool)


def video_frames(video: str | Path) -> Iterator[np.ndarray]:
    """Decode a video, whether or not events lie beside it.

    Args:
        video: any file that PyAV reads.

    Yields:
        uint8 ``[H, W, 3]``, RGB.

    Raises:
        RecordingError: if the video is missing or broken.
    """
    av = import_av()
    try:
        with av.open(str(video)) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
    except (av.FFmpegError, IndexError) as error:  # the latter: no video stream
        raise RecordingError(f"{video}: truncated or broken video ({error})") from error


def first_frames(video: str | Path, num_frames: int) -> np.ndarray:
    """The beginning of a video, uint8 ``[num_frames, H, W, 3]``, RGB, whatever its header says of its length.

    Raises:
        RecordingError: if the video is missing or broken, or has fewer frames.
    """
    frames = list(islice(video_frames(video), num_frames))
    if len(frames) < num_frames:
        raise RecordingError(f"{video}: {len(frames)} frames, {num_frames} are needed")
    return np.stack(frames)


def _resized_like_opencv(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Of a frame ``[H, W, 3]``."""
    return resize_like_opencv(torch.from_numpy(frame).permute(2, 0, 1), size).permute(1, 2, 0).contiguous().numpy()


def _parse(path: str | Path, number: int, line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except json.JSONDecodeError as error:
        raise RecordingError(f"{path}:{number}: not JSON ({error})") from error
    if not isinstance(event, dict):
        raise RecordingError(f"{path}:{number}: not a JSON object")
    return event


def _env_action(path: str | Path, number: int, event: dict[str, Any], cancel_conflicts: bool) -> tuple[EnvAction, bool]:
    try:
        if "ESC" in event:
            check_env_action(event)
            return event, is_null_action(event, event["camera"])
        if not isinstance(event["isGuiOpen"], bool):
            raise TypeError("isGuiOpen is not true or false")
        return event_to_env_action(event, cancel_conflicts)
    except KeyError as error:
        raise RecordingError(f"{path}:{number}: missing key {error}") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:  # the last: Infinity is JSON to Python
        raise RecordingError(f"{path}:{number}: {error}") from error
