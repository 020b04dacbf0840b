"""MineWorld's layout of a validation set: ``clip_<k>.mp4`` of 16 frames at 384x224, and ``clip_<k>.jsonl`` beside it.

Its scripts generate from such a folder and are scored against it (`rlir_env.metrics.score_folder`); so does this
package.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from rlir_env.atomic_files import replacing
from rlir_env.game_actions import EnvAction
from rlir_env.recordings.clips import Clip, ClipFilter, ClipSource
from rlir_env.recordings.recording import (
    Recording,
    RecordingError,
    Resampling,
    import_av,
    in_order_of_numbers,
    list_recordings,
)
from rlir_env.recordings.writer import RecordingWriter

_CRF = 16


def write_validation_clips(source: ClipSource, folder: str | Path, num_clips: int = 500, seed: int = 0) -> int:
    """Write clips of recordings as MineWorld's scripts read them.

    Line j of a clip is the env action of its recording that acts between frames j and j + 1, with 0 and 1 for buttons
    and every key there, so that it reads as JSON and as a Python literal; the line of the last frame is there, too.

    Args:
        source: Of the clips; its size of frames is (224, 384) for the published models.
        folder: Is made; must not hold clips already.
        num_clips: At most so many, shuffled through the source's buffer.
        seed: Of the order.

    Returns:
        The number of clips.

    Raises:
        ValueError: if the folder holds clips already, or no clip passes the filter.
    """
    if num_clips < 1:
        raise ValueError(f"num_clips={num_clips}: give at least 1")
    folder = Path(folder)
    if any(folder.glob("clip_*")):
        raise ValueError(f"{folder} holds clips already: give another folder, or move them")
    paths = {path.stem: path for path in source.paths}
    recordings: dict[str, tuple[float, list[EnvAction]]] = {}  # read once, not for every clip
    written = -1
    clips: Iterable[Clip] = islice(source.iterate(shuffle_seed=seed), num_clips)
    for written, clip in enumerate(clips):
        if clip.recording not in recordings:
            recording = Recording(paths[clip.recording], source.hygiene)
            recordings[clip.recording] = recording.fps, recording.env_actions(source.cancel_conflicts)[0]
        fps, env_actions = recordings[clip.recording]
        lines = env_actions[clip.start : clip.start + source.num_frames]
        with RecordingWriter(folder / f"clip_{written}.mp4", fps, source.frame_size, crf=_CRF) as writer:
            for frame, line in zip(clip.frames.permute(0, 2, 3, 1).numpy(), lines, strict=True):
                writer.write(frame, line)
    if written < 0:
        raise RecordingError(f"no clip of {source.num_frames} frames ({source.report.to_text()})")
    return written + 1


def validation_clips(
    folder: str | Path,
    frame_size: tuple[int, int],
    num_frames: int = 16,
    max_clips: int = 500,
    action_offset: int = 0,
    resampling: Resampling = "bilinear",
) -> list[Clip]:
    """The clips of a folder in MineWorld's layout, one a video, from its first frame.

    Args:
        folder: Of ``<name>.mp4`` and ``<name>.jsonl``.
        frame_size: (H, W) to resize to.
        num_frames: F; of longer videos the first ones.
        max_clips: The first so many, by the number at the end of their names.
        action_offset: As in `ClipSource`.
        resampling: How frames are resized; MineWorld's clips have their size already.

    Raises:
        ValueError: if there are none, or one is broken or too short.
    """
    if max_clips < 1:
        raise ValueError(f"max_clips={max_clips}: give at least 1")
    clips = []
    for path in in_order_of_numbers(list_recordings(folder))[:max_clips]:
        source = ClipSource(
            [path],
            frame_size,
            num_frames,
            clip_filter=ClipFilter.keep_all(),
            action_offset=action_offset,
            resampling=resampling,
        )
        clip = next(source.iterate(), None)
        if clip is None:
            raise RecordingError(f"{path}: fewer than {num_frames} frames; give a smaller validation.num_frames")
        clips.append(clip)
    return clips


def truncate_pixels(videos: torch.Tensor) -> torch.Tensor:
    """Pixels in [0, 1] as bytes, truncated and not rounded, as MineWorld's script does.

    Args:
        videos: Float of any shape; uint8 is returned as it is.

    Example:
        >>> truncate_pixels(torch.tensor([0.999, 1.0, 1.1, -0.1])).tolist()
        [254, 255, 255, 0]
    """
    return videos if videos.dtype == torch.uint8 else (videos.clamp(0, 1) * 255).to(torch.uint8)


def write_generated_clip(path: str | Path, frames: np.ndarray, fps: int = 6) -> None:
    """Write generated frames as MineWorld's script does, with OpenCV's ``mp4v``: what is measured has been through it.

    At MineWorld's size it decodes to the pixels of OpenCV's (tested), on any number of cores.

    Args:
        path: Ends in ``.mp4``; it appears when it is whole.
        frames: uint8 ``[n, H, W, 3]``, RGB, without the given one.
        fps: Frames per second.
    """
    _, height, width, _ = frames.shape
    av = import_av()
    with replacing(path) as unfinished, av.open(str(unfinished), "w", format="mp4") as container:
        # OpenCV's settings, and its order of colours: with another one its library rounds brightness otherwise.
        stream = container.add_stream("mpeg4", rate=fps, options={"qmin": "3"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.bit_rate, stream.gop_size = 3 * fps * height * width // 2, 12
        stream.codec_context.thread_count = 1  # several would cut frames into slices
        for frame in np.ascontiguousarray(frames[..., ::-1]):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
        container.mux(stream.encode(None))
