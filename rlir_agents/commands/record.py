"""rlir record: play a game and record it in VPT's format, check a folder of recordings, or label videos.

    rlir record doom                          # the five map sets, into runs/recordings (extra: doom)
    rlir record doom only=[dev] recordings.sets.dev.num_frames=1000
    rlir record validate runs/recordings/dev  # statistics and problems of a folder, yours too
    rlir record label a.mp4 b.mp4             # write a.jsonl and b.jsonl, as an IDM reads the videos
    rlir record label a.mp4 idm.model=4x_idm.model idm.weights=4x_idm.weights

An interrupted recording goes on with the same command; a finished set is left as it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from rlir_agents.commands.chosen_reader import chosen_reader
from rlir_agents.commands.composition import compose_config, describe
from rlir_agents.commands.gameplay import recorded
from rlir_env.atomic_files import write_text
from rlir_env.inverse_dynamics import label_frames
from rlir_env.recordings import RecordingError, validate_folder, video_frames


def run(arguments: Sequence[str]) -> None:
    """Record, validate or label.

    Raises:
        ValueError: if none of these is asked for, the validated folder has problems, or labels are there already.
    """
    match list(arguments):
        case ["doom", *overrides]:
            _record(overrides)
        case ["validate", folder]:
            _validate(folder)
        case ["label", *words]:
            _label([word for word in words if "=" not in word], [word for word in words if "=" in word])
        case _:
            raise ValueError(
                "write `rlir record doom [key=value ...]`, `rlir record validate DIR` or `rlir record label VIDEO ...`"
            )


def help_text() -> str:
    """What ``rlir record --help`` prints."""
    return f"{__doc__}\n{describe('record')}\n\nOf `rlir record label`:\n{describe('label')}"


def _record(overrides: Sequence[str]) -> None:
    config = compose_config("record", overrides)
    for name in config["only"] or config["recordings"]["sets"]:
        print(f"{name}: {recorded(config, name)}")


def _validate(folder: str) -> None:
    report = validate_folder(folder)
    print(report.to_text())
    if report.problems:
        raise RecordingError(f"{folder}: {len(report.problems)} problems, listed above")


def _label(videos: Sequence[str], overrides: Sequence[str]) -> None:
    config = compose_config("label", overrides)
    if not videos:
        raise ValueError("no videos: write `rlir record label VIDEO ... [key=value ...]`")
    if config["num_threads"] is not None:
        torch.set_num_threads(config["num_threads"])
    files = {video: _labels_of(Path(video), config["folder"]) for video in videos}
    there = [str(file) for file in files.values() if file.exists()]
    if there:
        raise ValueError(f"labels are there already: {', '.join(there)}; move them, or give another folder=")
    idm = chosen_reader(config, "coach")
    for video, file in tqdm(files.items(), desc="labelling", unit="video"):
        lines = [json.dumps(event) for event in label_frames(video_frames(video), idm)]
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, "".join(f"{line}\n" for line in lines))
        tqdm.write(f"{file}: {len(lines)} lines")


def _labels_of(video: Path, folder: str | None) -> Path:
    return (video.parent if folder is None else Path(folder)) / f"{video.stem}.jsonl"
