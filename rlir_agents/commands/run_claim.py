"""A run's folder belongs to one config and one set of starting weights; what would mix two runs is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlir_env.atomic_files import write_text
from rlir_env.checkpoints import fingerprint

_NAME = "run.json"
# What changes nothing that a run learns but the rounding of sums over threads.
_FREE = (
    *("install_seconds", "run_dir", "folder", "num_threads", "diagnose"),
    *("trainer.checkpoint_every", "trainer.num_checkpoints", "validation.max_clips"),
)
_OF_THE_MACHINE = ("device", "autocast")


def claim(
    folder: Path,
    config: Mapping[str, Any],
    modules: Iterable[nn.Module],
    device: torch.device,
    autocast_dtype: torch.dtype | None,
) -> None:
    """Write down what a run is made of, or compare with what a run left there.

    Args:
        folder: of the run.
        config: of the run.
        modules: whose weights it starts from, the frozen ones too.
        device: that it runs on.
        autocast_dtype: of its networks; these two replace the config's "auto", which another machine reads otherwise.

    Raises:
        ValueError: if the folder holds a run of another config or other weights.
    """
    settings = {**config, "device": device.type, "autocast": str(autocast_dtype)}
    now = {"config": settings, "weights": fingerprint(modules)}
    path = folder / _NAME
    if path.is_file() and any(entry != path for entry in folder.iterdir()):  # a run that made something
        then = json.loads(path.read_text())
        changed = _changed(then["config"], settings, _FREE)
        if then["weights"] != now["weights"]:
            changed.append("the weights it starts from")
        _refuse(folder, changed)
        return
    write_text(path, json.dumps(now, indent=1) + "\n")


def check_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Compare a config with that of a run in a folder, but for its weights and for what the machine chose.

    Raises:
        ValueError: if they differ.
    """
    then = json.loads((folder / _NAME).read_text())
    _refuse(folder, _changed(then["config"], config, (*_FREE, *_OF_THE_MACHINE)))


def _changed(then: Mapping[str, Any], now: Mapping[str, Any], free: Sequence[str]) -> list[str]:
    """Keys whose values differ."""
    before, after = dict(_flat(then)), dict(_flat(json.loads(json.dumps(now))))
    counted = {key for key in before.keys() | after.keys() if key not in free and key.partition(".")[0] not in free}
    return sorted(key for key in counted if before.get(key) != after.get(key))


def _refuse(folder: Path, changed: Sequence[str]) -> None:
    if changed:
        raise ValueError(
            f"{folder} holds a run with other settings ({', '.join(changed)}): give another folder, or delete this one"
        )


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict):
        yield prefix, node
        return
    for key, value in node.items():
        yield from _flat(value, f"{prefix}.{key}" if prefix else key)
