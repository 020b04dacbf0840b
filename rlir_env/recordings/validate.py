"""Checks a folder of recordings and counts what is in it (``rlir record validate DIR``)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rlir_env.game_actions import MINECRAFT
from rlir_env.recordings.recording import Recording, RecordingError, list_recordings


@dataclass
class FolderReport:
    """Statistics of a folder of recordings.

    Attributes:
        folder: what was checked.
        num_recordings: recordings without a problem; the other counts are over these.
        num_frames: of all of them.
        seconds: their playing time.
        num_gui: frames with an open menu.
        num_null: lines with a null action.
        formats: how many recordings have each (fps, H, W).
        class_counts: for each slot, lines of each class.
        problems: one line for each thing that is wrong, naming the file.
    """

    folder: Path
    num_recordings: int = 0
    num_frames: int = 0
    seconds: float = 0.0
    num_gui: int = 0
    num_null: int = 0
    formats: Counter[tuple[float, int, int]] = field(default_factory=Counter)
    class_counts: dict[str, np.ndarray] = field(
        default_factory=lambda: {slot.name: np.zeros(len(slot.classes), np.int64) for slot in MINECRAFT.slots}
    )
    problems: list[str] = field(default_factory=list)

    @property
    def class_shares(self) -> dict[str, np.ndarray]:
        """For each slot, the share of each class in all lines."""
        return {name: n / max(self.num_frames, 1) for name, n in self.class_counts.items()}

    def add(self, recording: Recording) -> None:
        """Read one recording to its end and count it.

        Raises:
            RecordingError: if it is broken; then nothing is counted.
        """
        track = recording.actions()
        for _ in recording.frames():  # only decoding finds a damaged picture
            pass
        self.num_recordings += 1
        self.num_frames += len(track.slots)
        self.seconds += len(track.slots) / recording.fps
        self.num_gui += int(track.is_gui.sum())
        self.num_null += int(track.is_null.sum())
        height, width = recording.frame_size
        self.formats[recording.fps, height, width] += 1
        for slot, classes in zip(MINECRAFT.slots, track.slots.T, strict=True):
            self.class_counts[slot.name] += np.bincount(classes, minlength=len(slot.classes))

    def to_text(self) -> str:
        """The report as a table."""
        frames = max(self.num_frames, 1)
        formats = ", ".join(
            f"{count} x {fps:g} fps {width}x{height}" for (fps, height, width), count in sorted(self.formats.items())
        )
        rows = [
            ("folder", str(self.folder)),
            ("recordings", str(self.num_recordings)),
            ("frames", f"{self.num_frames} ({self.seconds / 3600:.2f} hours)"),
            ("format", formats or "-"),
            ("menu open", f"{self.num_gui / frames:.1%} of frames"),
            ("null actions", f"{self.num_null / frames:.1%} of frames"),
        ]
        for slot in MINECRAFT.slots:
            shares = zip(slot.classes, self.class_shares[slot.name], strict=True)
            rows.append((slot.name, "  ".join(f"{name} {share:.1%}" for name, share in shares)))
        rows.append(("problems", str(len(self.problems))))
        lines = [f"{name:<14} {value}" for name, value in rows]
        return "\n".join([*lines, *(f"  {problem}" for problem in self.problems)])


def validate_folder(folder: str | Path) -> FolderReport:
    """Read every recording of a folder to its end.

    Args:
        folder: holds ``<name>.mp4`` and ``<name>.jsonl``.

    Returns:
        Counts over the recordings that are whole, and the problems of the others.

    Raises:
        RecordingError: if there are no recordings at all.
    """
    folder = Path(folder)
    report = FolderReport(folder)
    paths = list_recordings(folder)
    for path in paths:
        try:
            report.add(Recording(path))
        except RecordingError as error:
            report.problems.append(str(error))
    for place in sorted({path.parent for path in paths}):
        for path in sorted(place.glob("*.jsonl")):
            if not path.with_suffix(".mp4").exists():
                report.problems.append(f"{path}: no video beside it")
        for path in sorted(place.glob("*.part")):
            report.problems.append(f"{path}: left by a writer that was stopped; delete it")
    return report
