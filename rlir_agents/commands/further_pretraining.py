"""The control of the results table: what would the same minutes of further pre-training have brought?"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from rlir_agents.commands.building import build
from rlir_agents.commands.composition import compose_config
from rlir_agents.commands.gameplay import archive
from rlir_agents.commands.pretrain import make_task
from rlir_agents.commands.training_run import TrainingRun
from rlir_agents.hardware import autocast
from rlir_agents.pretraining import Pretrainer, PretrainingTask
from rlir_agents.run_folder import RunFolder

_TIMED_STEPS = 20  # enough that the first, slower ones do not count much


_OVERRIDES = "further_pretraining"  # a record of the run


class FurtherPretraining:
    """Continues pre-training from the base model for a given time."""

    def __init__(self, overrides: Mapping[str, Sequence[str]], seconds: float) -> None:
        """Choose the time.

        Args:
            overrides: of `rlir pretrain model=...`, by the name of the model.
            seconds: that the training of the other arm took.
        """
        self._overrides, self._seconds = overrides, seconds

    def __call__(self, run: TrainingRun) -> None:
        """Train the policy's world model; leaves the result in it."""
        run.records.value(_OVERRIDES, lambda: _plain(self._overrides))
        check_overrides(run.folder, self._overrides)
        assembly = run.assembly
        name = run.config["world"]["world_model"]
        config = compose_config("pretrain", [f"model={name}", f"seed={run.config['seed']}", *self._overrides[name]])
        config["frame_size"] = list(assembly.parts["frame_size"])
        # The tokenizer is the world's: sequences must be those that the base model was trained on.
        parts = assembly.parts | {role: archive(config, config[role]) for role in ("training", "validation")}
        model, dtype = assembly.policy.world_model, assembly.parts["autocast_dtype"]
        task = make_task(config, parts, model)
        seconds = run.records.value("seconds_per_step", lambda: seconds_per_step(task, dtype))
        num_steps = max(1, round(self._seconds / seconds))
        numbers = build(config["pretraining"] | {"num_steps": num_steps}, {}, "pretraining")
        Pretrainer(task, numbers, RunFolder(run.folder), dtype).train()


def check_overrides(folder: Path, overrides: Mapping[str, Sequence[str]]) -> None:
    """Refuse a folder whose run was pre-trained further with other overrides.

    Raises:
        ValueError: if it was.
    """
    file = folder / f"{_OVERRIDES}.json"
    if file.is_file() and json.loads(file.read_text()) != _plain(overrides):
        raise ValueError(
            f"{folder} holds a run with other settings (more_pretraining): give another folder, or delete it"
        )


def _plain(overrides: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {model: list(keys) for model, keys in overrides.items()}


def seconds_per_step(task: PretrainingTask, autocast_dtype: torch.dtype | None) -> float:
    """Wall time of a training step, without leaving a trace in the model."""
    before = copy.deepcopy(task.module.state_dict())
    optimizer = torch.optim.AdamW(task.module.parameters(), lr=0.0)
    started = time.monotonic()
    for step in range(_TIMED_STEPS):
        with autocast(task.device, autocast_dtype):
            loss, _ = task.loss(step, torch.Generator().manual_seed(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    task.module.load_state_dict(before)
    return (time.monotonic() - started) / _TIMED_STEPS
