"""Recordings of gameplay in VPT's format: read, write, check, filter, cut into clips."""

from rlir_env.recordings.archive import ClipBatch, FrameArchive
from rlir_env.recordings.clips import Clip, ClipFilter, ClipReport, ClipSource, split_recordings
from rlir_env.recordings.recording import (
    ActionTrack,
    Recording,
    RecordingError,
    env_actions_of,
    first_frames,
    in_order_of_numbers,
    list_recordings,
    read_events,
    video_frames,
)
from rlir_env.recordings.validate import FolderReport, validate_folder
from rlir_env.recordings.validation_clips import (
    truncate_pixels,
    validation_clips,
    write_generated_clip,
    write_validation_clips,
)
from rlir_env.recordings.vpt_hygiene import VPTHygiene, paste_cursor
from rlir_env.recordings.vpt_index import VPTIndex
from rlir_env.recordings.writer import RecordingWriter, write_recording

__all__ = [
    "ActionTrack",
    "Clip",
    "ClipBatch",
    "ClipFilter",
    "ClipReport",
    "ClipSource",
    "FolderReport",
    "FrameArchive",
    "Recording",
    "RecordingError",
    "RecordingWriter",
    "VPTHygiene",
    "VPTIndex",
    "env_actions_of",
    "first_frames",
    "in_order_of_numbers",
    "list_recordings",
    "paste_cursor",
    "read_events",
    "split_recordings",
    "truncate_pixels",
    "validate_folder",
    "validation_clips",
    "video_frames",
    "write_generated_clip",
    "write_recording",
    "write_validation_clips",
]
