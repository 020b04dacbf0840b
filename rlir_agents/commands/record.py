"""rlir record: play a game and record it in VPT's format, or check a folder of recordings.

    rlir record doom                          # the five map sets, into runs/recordings (extra: doom)
    rlir record doom only=[dev] recordings.sets.dev.num_frames=1000
    rlir record validate runs/recordings/dev  # statistics and problems of a folder, yours too

An interrupted recording goes on with the same command; a finished set is left as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlir_agents.commands.composition import compose_config, describe
from rlir_agents.commands.gameplay import recorded
from rlir_env.recordings import RecordingError, validate_folder


def run(arguments: Sequence[str]) -> None:
    """Record or validate.

    Raises:
        ValueError: if neither is asked for, or the validated folder has problems.
    """
    match list(arguments):
        case ["doom", *overrides]:
            _record(overrides)
        case ["validate", folder]:
            _validate(folder)
        case _:
            raise ValueError("write `rlir record doom [key=value ...]` or `rlir record validate DIR`")


def help_text() -> str:
    """What ``rlir record --help`` prints."""
    return f"{__doc__}\n{describe('record')}"


def _record(overrides: Sequence[str]) -> None:
    config = compose_config("record", overrides)
    for name in config["only"] or config["recordings"]["sets"]:
        print(f"{name}: {recorded(config, name)}")


def _validate(folder: str) -> None:
    report = validate_folder(folder)
    print(report.to_text())
    if report.problems:
        raise RecordingError(f"{folder}: {len(report.problems)} problems, listed above")
