"""Prompts as a small recording: clips of real gameplay one after the other, at the size of the model.

It is VPT's format again, so the reader of recordings reads it; the lines are bare env actions, which the reader takes
too and which are a fifth as long.

Letters: F frames of a clip.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from rlir_env.recordings import Clip, ClipFilter, ClipSource, Recording, RecordingWriter, list_recordings
from rlir_env.recordings.recording import options_file

_CRF = 20  # about 40 dB at this size: the tokenizer loses far more


def write_prompts(
    recordings: str | Path,
    path: str | Path,
    frame_size: tuple[int, int],
    num_clips: int,
    num_frames: int = 16,
    seed: int = 0,
    clip_filter: ClipFilter | None = None,
) -> int:
    """Choose clips of recorded gameplay at random, as many of each recording, and write them as one recording.

    The options file beside the video holds F, so that nobody cuts the row of clips elsewhere than it was joined.

    Args:
        recordings: folder of gameplay.
        path: the video to write; its folder is made if it is missing.
        frame_size: (H, W) of the model.
        num_clips: at most so many, disjoint.
        num_frames: F.
        seed: of the choice.
        clip_filter: which windows are clips; the default one where None.

    Returns:
        The number of clips.

    Raises:
        ValueError: if no clip passes the filter.
    """
    videos = list_recordings(recordings)
    rng = random.Random(seed)
    rng.shuffle(videos)
    per_recording = -(-num_clips // len(videos))
    chosen: list[Clip] = []
    spare: list[Clip] = []
    for video in videos:
        clips = list(ClipSource([video], frame_size, num_frames, clip_filter=clip_filter).iterate())
        rng.shuffle(clips)
        chosen += clips[:per_recording]
        spare += clips[per_recording:]
        if len(chosen) >= num_clips:  # thousands of recordings need not be read for a few clips
            break
    chosen = (chosen + rng.sample(spare, len(spare)))[:num_clips]
    if not chosen:
        raise ValueError(f"{recordings}: no clip of {num_frames} frames passes the filter")
    fps = Recording(videos[0]).fps
    options = options_file(path)
    options.parent.mkdir(parents=True, exist_ok=True)
    options.write_text(json.dumps({"num_frames": num_frames}) + "\n", encoding="utf-8")  # before the video is whole
    with RecordingWriter(path, fps, frame_size, crf=_CRF, preset="medium") as writer:
        for clip in chosen:
            _write_clip(writer, clip, Recording(Path(recordings) / f"{clip.recording}.mp4"))
    return len(chosen)


def _write_clip(writer: RecordingWriter, clip: Clip, recording: Recording) -> None:
    frames = clip.frames.permute(0, 2, 3, 1).numpy()
    env_actions, _ = recording.env_actions()
    for frame, env_action in zip(frames, env_actions[clip.start :], strict=False):
        pressed = {name: value for name, value in env_action.items() if name == "camera" or value}
        writer.write(frame, {"ESC": 0, **pressed})  # this key tells the reader that it is an env action
