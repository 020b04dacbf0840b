"""rlir record: play a game and record it in VPT's format; check, cut and label recordings of your own.

    rlir record doom                          # the five map sets, into runs/recordings (extra: doom)
    rlir record doom only=[dev] recordings.sets.dev.num_frames=1000
    rlir record validate runs/recordings/dev  # statistics and problems of a folder, yours too
    rlir record cut my/recordings folder=runs/validation   # a validation set in MineWorld's layout
    rlir record label a.mp4 b.mp4             # write a.jsonl and b.jsonl, as an IDM reads the videos
    rlir record label a.mp4 idm=idm/

An interrupted recording goes on with the same command; a finished set is left as it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from rlir_agents.commands.chosen_reader import chosen_reader
from rlir_agents.commands.composition import compose_config, describe
from rlir_agents.commands.gameplay import recorded
from rlir_agents.commands.machine import set_up_machine
from rlir_agents.hardware import autocast
from rlir_env.atomic_files import write_text
from rlir_env.inverse_dynamics import label_frames
from rlir_env.recordings import (
    ClipFilter,
    ClipSource,
    RecordingError,
    VPTHygiene,
    VPTIndex,
    list_recordings,
    validate_folder,
    video_frames,
    write_validation_clips,
)

_CONFIGS = {"doom": "record", "cut": "cut", "label": "label"}


def run(arguments: Sequence[str]) -> None:
    """Record, validate, cut or label.

    Raises:
        ValueError: if none of these is asked for, the validated folder has problems, or files are there already.
    """
    match list(arguments):
        case ["doom", *overrides]:
            _record(overrides)
        case ["validate", folder]:
            _validate(folder)
        case ["cut", folder, *overrides] if "=" not in folder or Path(folder).is_dir():
            _cut(folder, overrides)
        case ["label", *words]:
            _label([word for word in words if "=" not in word], [word for word in words if "=" in word])
        case _:
            raise ValueError(
                "write `rlir record doom [key=value ...]`, `rlir record validate DIR`, `rlir record cut DIR` or "
                "`rlir record label VIDEO ...`"
            )


def help_text() -> str:
    """What ``rlir record --help`` prints."""
    parts = [f"Of `rlir record {name}`:\n{describe(config)}" for name, config in _CONFIGS.items()]
    return "\n\n".join([__doc__, *parts])


def _record(overrides: Sequence[str]) -> None:
    config = compose_config(_CONFIGS["doom"], overrides)
    for name in config["only"] or config["recordings"]["sets"]:
        print(f"{name}: {recorded(config, name)}")


def _validate(folder: str) -> None:
    report = validate_folder(folder)
    print(report.to_text())
    if report.problems:
        raise RecordingError(f"{folder}: {len(report.problems)} problems, listed above")


def _cut(recordings: str, overrides: Sequence[str]) -> None:
    config = compose_config(_CONFIGS["cut"], overrides)
    index = config["index"]
    source = ClipSource(
        list_recordings(recordings) if index is None else VPTIndex.read(index).local(recordings),
        tuple(config["frame_size"]),
        config["num_frames"],
        config["stride"],
        ClipFilter(**config["clip_filter"]),
        on_error=config["on_error"],
        hygiene=VPTHygiene(**config["hygiene"]),
        resampling=config["resampling"],
    )
    count = write_validation_clips(source, config["folder"], config["num_clips"], config["seed"])
    print(f"{config['folder']}: {count} clips\n{source.report.to_text()}")


def _label(videos: Sequence[str], overrides: Sequence[str]) -> None:
    config = compose_config(_CONFIGS["label"], overrides)
    if not videos:
        raise ValueError("no videos: write `rlir record label VIDEO ... [key=value ...]`")
    _check_videos(videos)
    machine = set_up_machine(config)
    files = {video: _labels_of(Path(video), config["folder"]) for video in videos}
    if len(set(files.values())) < len(files):
        raise ValueError(
            "several videos have one name, and their labels one file: label them into folders of their own"
        )
    there = [str(file) for file in files.values() if file.exists()]
    if there:
        raise ValueError(f"labels are there already: {', '.join(there)}; move them, or give another folder=")
    idm = chosen_reader(config, machine["device"], "coach")
    for video, file in tqdm(files.items(), desc="labelling", unit="video"):
        with autocast(machine["device"], machine["autocast_dtype"]):
            lines = [json.dumps(event) for event in label_frames(video_frames(video), idm)]
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, "".join(f"{line}\n" for line in lines))
        tqdm.write(f"{file}: {len(lines)} lines")


def _check_videos(videos: Sequence[str]) -> None:
    for video in videos:
        if Path(video).is_dir():
            raise ValueError(f"{video} is a folder: name its videos, as in {video.rstrip('/')}/*.mp4")
        if not Path(video).is_file():
            raise FileNotFoundError(f"there is no video {video}")
        if Path(video).suffix == ".jsonl":
            raise ValueError(f"{video} holds labels: name the videos that are to be labelled")


def _labels_of(video: Path, folder: str | None) -> Path:
    return (video.parent if folder is None else Path(folder)) / f"{video.stem}.jsonl"
