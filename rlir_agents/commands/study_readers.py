"""rlir study readers: measure what coach and judge can read, before anything is trained by their word.

Which slots do pictures reveal, how well are they read on real clips of maps that the readers have not seen, what is
lost on the tokenizer's reconstructions, and are longer clips read better?

    rlir study readers                        # shipped models, test maps; table, JSON, page, README
    rlir study readers weights.coach=runs/pretraining/coach weights.judge=runs/pretraining/judge
    rlir study readers maps=dev results=runs/study/dev.json readme=null      # which slots are visible, for `rlir ship`
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlir_agents.commands.composition import Config, compose_config, describe
from rlir_agents.commands.gameplay import archive
from rlir_agents.commands.machine import set_up_machine
from rlir_agents.reader_figures import reader_figures
from rlir_agents.reader_study import ReaderStudy, piece_bounds, spread_clips
from rlir_agents.report import check_block, readers_console, readers_markdown, readers_page, replace_block
from rlir_env.assets import asset_folder, read_idm, read_tokenizer
from rlir_env.assets.manifest import sha256
from rlir_env.atomic_files import write_text

READERS = ("coach", "judge")  # each is also the name of the maps that it was trained on


def run(arguments: Sequence[str]) -> None:
    """Measure, and leave table, JSON, page and the README's block."""
    config = compose_config("study_readers", arguments)
    if config["readme"] is not None:
        check_block(config["readme"], "readers")
    figures = _figures(config, shlex.join(["rlir", "study", "readers", *arguments]))
    write_text(config["results"], json.dumps(figures, indent=1, allow_nan=False) + "\n")
    write_text(config["page"], readers_page(figures))
    print(f"\n{readers_console(figures)}\n\n{config['results']}, {config['page']}")
    if config["maps"] != "test":  # test maps are for final figures, and choose nothing
        print(f"enter the visible slots with `rlir ship visible_slots=[{','.join(figures['visible_slots'])}]`")
    if config["readme"] is not None:
        replace_block(config["readme"], "readers", readers_markdown(figures))


def help_text() -> str:
    """What ``rlir study readers --help`` prints."""
    return f"{__doc__}\n{describe('study_readers')}"


def _figures(config: Config, command: str) -> dict[str, Any]:
    if config["maps"] in READERS:
        raise ValueError(f"maps={config['maps']}: a reader was trained on these; use test, or dev to try out")
    lengths = sorted(set(config["lengths"]))
    if not lengths:
        raise ValueError("lengths is empty: give at least one, for instance lengths=[16]")
    for length in lengths:
        piece_bounds(lengths[-1], length)  # complains of what cannot be cut
    weights = {name: _weights(config, name) for name in (*READERS, "tokenizer")}
    machine = set_up_machine(config)
    device = machine["device"]
    tokenizer = read_tokenizer(weights["tokenizer"]).to(device)
    study = ReaderStudy(
        {name: read_idm(weights[name]).to(device) for name in READERS},
        tokenizer,
        device,
        machine["autocast_dtype"],
        config["batch_size"],
    )
    gameplay = archive(config | {"frame_size": tokenizer.frame_size}, config["maps"])
    clips = spread_clips(gameplay, config["num_clips"], config["num_frames"])
    windows = spread_clips(gameplay, config["num_windows"], lengths[-1])
    return {
        "command": command,
        "maps": config["maps"],
        "num_clips": len(clips.frames),
        "num_frames": config["num_frames"],
        "num_windows": len(windows.frames),
        "window_frames": lengths[-1],
        "weights": {
            name: {
                "file": config["weights"][name] or f"shipped with world {config['world']['name']}",
                "sha256": sha256(path),
            }
            for name, path in weights.items()
        },
        **reader_figures(study.read(clips, windows, lengths), seed=config["seed"]),
    }


def _weights(config: Config, name: str) -> Path:
    given = config["weights"][name]
    if given is None:
        return asset_folder(config["world"]["name"]).model_file(name)
    path = Path(given, "model.safetensors") if Path(given).is_dir() else Path(given)
    if not path.is_file():
        raise ValueError(f"weights.{name}={given}: no such file; give the folder of a finished `rlir pretrain`")
    return path
