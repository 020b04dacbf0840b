"""Writes recordings in VPT's format, frame by frame, so that a killed writer leaves no half one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from rlir_env.recordings.recording import import_av, recording_files


class RecordingWriter:
    """Streams frames and events to ``<name>.mp4`` (H.264, yuv420p) and ``<name>.jsonl``.

    Both files grow under the suffix ``.part`` and get their names in :meth:`close`, the video
    last: where a video has its name, the recording is whole. Leaving the ``with`` block by an
    exception removes the parts.

    Example:
        >>> with RecordingWriter("map01_0.mp4", fps=9, size=(120, 160)) as writer:  # doctest: +SKIP
        ...     writer.write(frame, env_action_to_event(env_action))
    """

    def __init__(
        self,
        path: str | Path,
        fps: float | Fraction,
        size: tuple[int, int],
        crf: int = 16,
        preset: str = "ultrafast",
    ) -> None:
        """Open the two files.

        Args:
            path: the video to write; an older recording of that name is replaced at the end.
            fps: frames per second.
            size: (H, W) of every frame, both even.
            crf: x264's quality, lower is better; 16 is hard to tell from the original.
            preset: x264's effort. At 160x120 ultrafast costs 40 % more bytes than veryfast at the
                same quality, and writes three times and decodes twice as fast.

        Raises:
            ValueError: if the size is odd, which yuv420p cannot store.
        """
        height, width = size
        if height % 2 or width % 2:
            raise ValueError(f"frame size {size}: H.264 in yuv420p needs an even height and width")
        self.video_path, self.events_path = recording_files(path)
        self.num_frames = 0
        self._shape = (height, width, 3)
        self.video_path.parent.mkdir(parents=True, exist_ok=True)
        self._av = import_av()
        self._container = self._av.open(str(_part(self.video_path)), "w", format="mp4")
        # One thread: recorders run one process a core. No B-frames: nothing to gain at few pixels.
        options = {"crf": str(crf), "preset": preset, "bf": "0", "threads": "1"}
        rate = Fraction(fps).limit_denominator(1001)  # 30000/1001 and the like
        self._stream = self._container.add_stream("libx264", rate=rate, options=options)
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
        self._events = _part(self.events_path).open("w", encoding="utf-8")

    def write(self, frame: np.ndarray, event: Mapping[str, Any]) -> None:
        """Append one frame and what was done after seeing it.

        Args:
            frame: uint8 ``[H, W, 3]``, RGB.
            event: a JSON-able line, see :func:`~rlir_env.game_actions.env_action_to_event`.

        Raises:
            ValueError: if the frame has another shape or type.
        """
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise ValueError(f"frame is {frame.dtype} {frame.shape}; this recording takes uint8 {self._shape}")
        picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        self._container.mux(self._stream.encode(picture))
        self._events.write(json.dumps(event) + "\n")
        self.num_frames += 1

    def close(self) -> None:
        """Finish both files and give them their names; a writer without frames leaves nothing.

        Called again it does nothing.
        """
        if self._events.closed:
            return
        if self.num_frames == 0:
            self.abort()
            return
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self._events.close()
        # An older video must not stand beside the new events, not even for a moment.
        self.video_path.unlink(missing_ok=True)
        _part(self.events_path).replace(self.events_path)
        _part(self.video_path).replace(self.video_path)

    def abort(self) -> None:
        """Drop what has been written."""
        self._container.close()
        self._events.close()
        for path in (self.video_path, self.events_path):
            _part(path).unlink(missing_ok=True)

    def __enter__(self) -> RecordingWriter:
        """Return the writer."""
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close, or abort after an exception."""
        self.close() if error_type is None else self.abort()


def write_recording(
    path: str | Path,
    frames: Iterable[np.ndarray],
    events: Iterable[Mapping[str, Any]],
    fps: float | Fraction,
    **options: Any,
) -> None:
    """Write a whole recording at once.

    Args:
        path: the video to write.
        frames: uint8 ``[H, W, 3]`` each, at least one.
        events: one for each frame.
        fps: frames per second.
        **options: see :class:`RecordingWriter`.

    Raises:
        ValueError: if there are no frames, or not as many events as frames.
    """
    frames = list(frames)
    if not frames:
        raise ValueError(f"{path}: a recording needs at least one frame")
    with RecordingWriter(path, fps, frames[0].shape[:2], **options) as writer:
        for frame, event in zip(frames, events, strict=True):
            writer.write(frame, event)


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")
