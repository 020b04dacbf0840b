"""Recorded gameplay by the name of its map set: recorded where it is missing, decoded once."""

from __future__ import annotations

from pathlib import Path

from rlir_agents.commands.composition import Config
from rlir_env.recordings import FrameArchive, list_recordings
from rlir_env.recordings.recording import read_options

_UNFINISHED = "recording.unfinished"


def recorded(config: Config, name: str) -> Path:
    """The folder of a map set's recordings; plays and records if there is none, or an unfinished one.

    Args:
        config: with ``recordings``.
        name: of the set.

    Raises:
        ValueError: if there is no such set.
    """
    settings = config["recordings"]
    if name not in settings["sets"]:
        raise ValueError(f"no set of recordings {name!r}: use one of {', '.join(settings['sets'])}")
    folder = Path(settings["folder"]) / name
    marker = folder / _UNFINISHED
    if folder.is_dir() and not marker.is_file():
        _check_tics(folder, settings["tics_per_action"])
        return folder
    from rlir_env.recordings.recorders.doom import MAP_SETS, record

    if name not in MAP_SETS:
        raise ValueError(f"recordings.sets.{name}: {folder} has none, and Doom's sets are {', '.join(MAP_SETS)}")
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()
    record(
        folder,
        MAP_SETS[name],
        settings["sets"][name]["num_frames"],
        settings["sets"][name]["seed"],
        settings["frames_per_recording"],
        settings["tics_per_action"],
    )
    marker.unlink()
    return folder


def _check_tics(folder: Path, tics_per_action: int) -> None:
    """Refuse recordings of another frame duration; those that are not the recorder's do not tell."""
    for video in list_recordings(folder):
        found = read_options(video).get("tics_per_action", tics_per_action)
        if found != tics_per_action:
            raise ValueError(
                f"{folder} was recorded with tics_per_action={found}, not {tics_per_action}: give another "
                "recordings.folder, or delete this one"
            )


def archive(config: Config, name: str) -> FrameArchive:
    """The decoded frames of a map set, see `recorded`; other folders of recordings do as well."""
    folder = recorded(config, name)
    return FrameArchive.build(list_recordings(folder), tuple(config["frame_size"]), config["archives"])
