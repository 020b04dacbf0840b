"""rlir score: MineWorld's evaluation protocol on folders of videos and labels.

    rlir score videos=outputs/300M labels=validation idm=idm/
    rlir score videos=my_recordings labels=my_labels first_line=0   # whole recordings; the judge of world.name reads

Videos are <name>.mp4 of the generated frames alone; labels <name>.jsonl, and the real videos <name>.mp4 lie beside them
or in `references`. It leaves what the original scripts leave: idm_<run>.json, fvd_<run>.json and latest_metrics.csv of
all runs in the folder. FVD and LPIPS need networks of others and are not computed here: their cells stay empty.
settings_<run>.json says which frames of which folders were read by whom: scores of one name and other settings are
refused.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rlir_agents.commands.chosen_reader import chosen_reader
from rlir_agents.commands.composition import Config, compose_config, describe
from rlir_agents.commands.machine import set_up_machine
from rlir_agents.hardware import autocast
from rlir_agents.report.tables import align, number
from rlir_env.atomic_files import write_text
from rlir_env.metrics import compare_folder, score_folder
from rlir_env.recordings import list_recordings

_VISUAL = ("fvd", "lpips", "ssim", "psnr")
_FOLLOWING = tuple(f"{name}_{average}" for average in ("micro", "macro") for name in ("precision", "recall", "f1"))
_COLUMNS = ("experiment", *_VISUAL, *_FOLLOWING, "camera_loss")


def run(arguments: Sequence[str]) -> None:
    """Score a folder, and tabulate all that were scored."""
    config = compose_config("score", arguments)
    machine = set_up_machine(config)
    limits = {"num_frames": 1, "max_clips": 1, "first_line": 0}
    too_small = [
        f"{key} at least {least}"
        for key, least in limits.items()
        if not isinstance(config[key], int) or config[key] < least
    ]
    if too_small:
        raise ValueError(f"give {', '.join(too_small)}")
    name, folder = config["run"] or Path(config["videos"]).resolve().name, Path(config["metrics"])
    references = Path(config["references"] or config["labels"])
    names = [video.stem for video in list_recordings(config["videos"])]
    are_there = set(names) <= {video.stem for video in references.rglob("*.mp4")}
    if not are_there and config["references"] is not None:
        raise ValueError(f"references={references}: there are not all of {', '.join(names[:3])}, ...")
    idm = chosen_reader(config, machine["device"], "judge")
    settings = _settings(config, str(machine["autocast_dtype"]))
    _check_settings(folder / f"settings_{name}.json", settings)
    reader = config["files"]["idm"] or f"the judge of {config['world']['name']}"
    print(f"read by {reader}: {config['num_frames']} frames a video, from line {config['first_line']} on", flush=True)
    with autocast(machine["device"], machine["autocast_dtype"]):
        following = score_folder(
            config["videos"],
            config["labels"],
            idm,
            num_frames=config["num_frames"],
            first_line=config["first_line"],
            max_clips=config["max_clips"],
        )
    visual: dict[str, Any] = {}
    if are_there:
        counts = config["num_frames"], config["max_clips"], config["first_line"]
        visual = compare_folder(config["videos"], references, *counts)
    content = dict.fromkeys(_VISUAL) | visual
    means = {key: figures and mean(figures["value"]) for key, figures in content.items()}
    scores_by_kind = {"idm": following, "fvd": content | {"mean": {"exp_name": name, **means}}, "settings": settings}
    for kind, scores in scores_by_kind.items():
        write_text(folder / f"{kind}_{name}.json", json.dumps(scores, indent=1) + "\n")
    rows = _rows(folder)
    write_text(folder / "latest_metrics.csv", _as_csv(rows))
    shown = [[row[key] if key == "experiment" else number(row[key]) for key in _COLUMNS] for row in rows]
    print(align([list(_COLUMNS), *shown]))
    if not are_there:
        print(f"ssim and psnr compare with real videos, and {references} has not all of them: give references=DIR")
    print("fvd and lpips need networks of others (I3D, AlexNet), which are not read here yet: their cells are empty")
    print(folder / "latest_metrics.csv")


def help_text() -> str:
    """What ``rlir score --help`` prints."""
    return f"{__doc__}\n{describe('score', ['videos=DIR', 'labels=DIR'])}"


def _settings(config: Config, autocast_dtype: str) -> dict[str, Any]:
    """What scores are of, and who read them."""
    keys = ("num_frames", "first_line", "max_clips")
    paths = {key: config[key] and str(Path(config[key]).resolve()) for key in ("videos", "labels", "references")}
    reader = {"world": config["world"]["name"]} if config["files"]["idm"] is None else {"idm": config["files"]["idm"]}
    return paths | {key: config[key] for key in keys} | reader | {"autocast": autocast_dtype}


def _check_settings(file: Path, now: Mapping[str, Any]) -> None:
    """Refuse to put scores in the place of others."""
    then = json.loads(file.read_text()) if file.is_file() else now
    changed = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    if changed:
        raise ValueError(f"{file}: its scores are of other {', '.join(changed)}; give another run=NAME, or delete them")


def _rows(folder: Path) -> list[dict[str, Any]]:
    """Every run that has both files, by name."""
    rows = []
    for file in sorted(folder.glob("idm_*.json")):
        visual = folder / f"fvd_{file.stem.removeprefix('idm_')}.json"
        if visual.is_file():
            means: Mapping[str, Any] = json.loads(visual.read_text())["mean"]
            following = json.loads(file.read_text())["metric_mean_on_task"]
            values = {**means, **following, "experiment": file.stem.removeprefix("idm_")}
            rows.append({column: values.get(column) for column in _COLUMNS})
    return rows


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)  # None becomes an empty cell
    return text.getvalue()
