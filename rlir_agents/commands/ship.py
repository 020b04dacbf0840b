"""rlir ship: put what was made among the assets that come with the package.

Weights are stored in float16, prompts as a small recording; each file gets its entry in manifest.json (checksum, making
command, map set, figures on held-out maps, licence of the game data) and a model card, written from the entry.

    rlir ship runs/pretraining/coach          # the run's own name says what it is
    rlir ship runs/pretraining/other as=coach into=my/assets
    rlir ship runs/recordings/test as=test num_clips=256
    rlir ship visible_slots=[forward_back,left_right,attack,jump,pitch,yaw]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import rlir_env.assets
from rlir_agents.commands.composition import Config, compose_config, describe
from rlir_env.assets import AssetFolder, asset_folder, read_tokenizer, write_prompts
from rlir_env.assets.cards import write_cards
from rlir_env.assets.folder import MODELS, RECORDINGS_OF_SPLIT, SPLITS, TOKENIZER_OF, making_commands
from rlir_env.checkpoints import fingerprint, load_safetensors, save_safetensors

# What may come from the same maps; the coach, the judge and each split for tuning or testing stand alone.
_OF_WORLD_MODEL = ("tokenizer", "kl_tokenizer", "mineworld", "nfd", "train")
LICENCES = {"weights": "MIT", "game_data": "Freedoom, BSD-3-Clause"}


def run(arguments: Sequence[str]) -> None:
    """Ship a run, a folder of recordings, or facts about the world.

    Raises:
        ValueError: if what is to be shipped is not there.
    """
    sources = [argument for argument in arguments if "=" not in argument]
    config = compose_config("ship", [argument for argument in arguments if "=" in argument])
    folder = _open(config["into"])
    if config["visible_slots"] is not None:
        folder.manifest.state(visible_slots=config["visible_slots"])
    for source in map(Path, sources):
        name = ship(folder, source, config)
        print(f"{source} -> {name} ({folder.manifest.files[name]['bytes'] / 1e6:.2f} MB)")
    write_cards(folder)


def help_text() -> str:
    """What ``rlir ship --help`` prints."""
    return f"{__doc__}\n{describe('ship')}"


def _open(world: str) -> AssetFolder:
    if "/" in world:
        Path(world).mkdir(parents=True, exist_ok=True)
        return AssetFolder(world)
    (Path(rlir_env.assets.__file__).parent / world).mkdir(exist_ok=True)
    return asset_folder(world)


def ship(folder: AssetFolder, source: Path, config: Config) -> str:
    """Copy one thing among the assets and enter it; returns its main file's name."""
    facts = _facts(source)
    name = config["as"] or facts.get("name")
    if name in MODELS:
        if not facts:
            raise ValueError(f"{source} has no model.json: give the folder of a finished `rlir pretrain`")
        _check_disjoint(folder, source, name, facts["recordings"])
        return _ship_model(folder, source, name, facts)
    if name in SPLITS:
        _check_disjoint(folder, source, name, source.name)
        return _ship_prompts(folder, source, name, config)
    raise ValueError(f"{source}: say what it is with as=..., one of {', '.join((*MODELS, *SPLITS))}")


def _check_disjoint(folder: AssetFolder, source: Path, name: str, recordings: str) -> None:
    """Coach, judge, world model, dev and test prompts come from different maps, or results mean nothing.

    Raises:
        ValueError: if something else was made from the same recordings.
    """
    # A set of prompts is three files in a folder of its name.
    names = ((Path(file), entry) for file, entry in folder.manifest.files.items())
    others = {path.parent.name or path.stem: entry["recordings"] for path, entry in names}
    for other, theirs in others.items():
        may_share = other == name or {other, name} <= set(_OF_WORLD_MODEL)
        if theirs == recordings and not may_share:
            raise ValueError(
                f"{source} comes from the recordings {recordings!r}, and so does the shipped {other}: make one of them "
                "from other maps"
            )


def _facts(source: Path) -> dict[str, Any]:
    """What `rlir pretrain` wrote beside a model; empty for a folder of recordings."""
    path = source / "model.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _ship_model(folder: AssetFolder, source: Path, name: str, facts: dict[str, Any]) -> str:
    if name in TOKENIZER_OF:
        _check_tokenizer(folder, source, TOKENIZER_OF[name], facts.get("tokenizer"))
    weights, metadata = load_safetensors(source / "model.safetensors")
    target = f"{name}.safetensors"
    save_safetensors(folder.path / target, weights, metadata, torch.float16)
    facts = {key: value for key, value in facts.items() if key not in ("name", "tokenizer")}
    folder.manifest.add(target, **facts, licence=LICENCES)
    return target


def _check_tokenizer(folder: AssetFolder, source: Path, tokenizer: str, trained_on: str | None) -> None:
    """A world model knows the codes of one tokenizer; with another one beside it, it would generate noise."""
    shipped = read_tokenizer(folder.model_file(tokenizer))
    if fingerprint([shipped], torch.float16) != trained_on:
        raise ValueError(f"{source} was not trained on the shipped {tokenizer}: ship that of its training first")


def _ship_prompts(folder: AssetFolder, source: Path, split: str, config: Config) -> str:
    tokenizer = read_tokenizer(folder.model_file("tokenizer"))
    video = folder.path / "prompts" / split / f"{split}.mp4"
    num_clips = write_prompts(source, video, tokenizer.frame_size, config["num_clips"], seed=config["seed"])
    is_recorded_here = source == Path("runs/recordings", RECORDINGS_OF_SPLIT[split])
    command = making_commands(split) if is_recorded_here else f"rlir ship {source} as={split}"
    for suffix in (".mp4", ".jsonl", "-options.json"):
        folder.manifest.add(
            f"prompts/{split}/{split}{suffix}",
            making_command=f"{command} num_clips={config['num_clips']} seed={config['seed']}",
            recordings=source.name,
            num_clips=num_clips,
            licence=LICENCES,
        )
    return f"prompts/{split}/{split}.mp4"
