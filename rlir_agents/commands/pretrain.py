"""rlir pretrain: make a tokenizer, an inverse dynamics model or a world model from recorded gameplay.

Gameplay is recorded first where it is missing, so each command makes its model from nothing; a world model needs a
tokenizer (mineworld the tokenizer, nfd the kl_tokenizer), its own or the shipped one. Stopped runs go on with the same
command.

    rlir pretrain model=tokenizer
    rlir pretrain model=idm                   # the coach
    rlir pretrain model=idm idm=judge
    rlir pretrain model=mineworld
    rlir pretrain model=kl_tokenizer
    rlir pretrain model=nfd
    rlir pretrain model=idm recordings.folder=my/recordings   # yours: <folder>/<set>/<name>.mp4 with .jsonl

It leaves in run_dir: model.safetensors, model.json (how it was made, figures on held-out maps), metrics/, checkpoints/.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rlir_agents.commands.building import build
from rlir_agents.commands.composition import Config, compose_config, describe
from rlir_agents.commands.gameplay import archive
from rlir_agents.commands.machine import set_up_machine
from rlir_agents.commands.run_claim import claim
from rlir_agents.pretraining import Pretrainer
from rlir_agents.run_folder import RunFolder
from rlir_env.assets import write_model
from rlir_env.atomic_files import write_text
from rlir_env.checkpoints import fingerprint
from rlir_env.game_actions import MINECRAFT, ActionWord
from rlir_env.layout import TokenLayout
from rlir_env.recordings import FrameArchive


def run(arguments: Sequence[str]) -> None:
    """Pre-train as the overrides say."""
    config = compose_config("pretrain", arguments)
    figures = pretrain(config, shlex.join(["rlir", "pretrain", *arguments]))
    print("  ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    print(f"{Path(config['run_dir']) / 'model.safetensors'}; ship it with `rlir ship {config['run_dir']}`")


def help_text() -> str:
    """What ``rlir pretrain --help`` prints."""
    return f"{__doc__}\n{describe('pretrain', ['model=idm'])}"


def pretrain(config: Config, command: str) -> dict[str, float]:
    """Train a model to the end, or from where it was, and store it.

    Args:
        config: of `rlir pretrain`.
        command: that makes it, for the model card.

    Returns:
        Figures on held-out recordings.
    """
    machine = set_up_machine(config)
    device, dtype = machine["device"], machine["autocast_dtype"]
    parts = gameplay_parts(config) | machine
    torch.manual_seed(config["seed"])
    model = build(config["network"], parts, "network").to(device)
    folder = Path(config["run_dir"])
    frozen = [parts["tokenizer"].to(device)] if "tokenizer" in parts else []
    claim(folder, config, [model, *frozen], device, dtype)
    task = make_task(config, parts, model)
    pretraining = build(config["pretraining"], {}, "pretraining")
    before = None if config["continue_from"] is None else RunFolder(config["continue_from"])
    figures = Pretrainer(task, pretraining, RunFolder(folder), dtype, before).train()
    training: FrameArchive = parts["training"]
    write_model(folder / "model.safetensors", model, class_frequency=training.class_shares(MINECRAFT))
    facts = {
        "name": config["name"],
        "making_command": command,
        "recordings": config["training"],
        "num_frames": training.num_frames,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "num_steps": pretraining.num_steps,
        "validation_recordings": config["validation"],
        "validation": {name: round(value, 4) for name, value in figures.items()},
    }
    if "tokenizer" in parts:
        facts["tokenizer"] = fingerprint([parts["tokenizer"]], torch.float16)  # as it will be shipped
    write_text(folder / "model.json", json.dumps(facts, indent=1) + "\n")
    return figures


def gameplay_parts(config: Config) -> dict[str, Any]:
    """Archives of training and validation, and what a world model needs beside them: tokenizer and layout."""
    parts: dict[str, Any] = {}
    if config["frozen_tokenizer"] is not None:
        tokenizer = build(config["frozen_tokenizer"], {}, "frozen_tokenizer")
        layout = TokenLayout(tokenizer.tokens_per_frame, word_length=ActionWord.word_length)
        parts |= {"tokenizer": tokenizer, "layout": layout}
    return parts | {role: archive(config, config[role]) for role in ("training", "validation")}


def make_task(config: Config, parts: dict[str, Any], model: torch.nn.Module) -> Any:
    """The task of a model: on frames, or where the config says so on another view of the gameplay."""
    views = dict.fromkeys(("training", "validation"))
    for role in views:
        views[role] = parts[role]
        if config["gameplay"] is not None:
            views[role] = build(config["gameplay"], parts | {"archive": parts[role]}, "gameplay")
    # The task of a tokenizer asks for `tokenizer`, which is then the one that learns.
    learner = {"module": model} if "tokenizer" in parts else {"module": model, "tokenizer": model}
    return build(config["task"], parts | views | learner, "task")
