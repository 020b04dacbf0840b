"""A run's folder belongs to one config and one set of starting weights; what would mix two runs is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlir_env.atomic_files import write_text
from rlir_env.checkpoints import fingerprint

_NAME = "run.json"
# What changes nothing that a run computes but the rounding of sums over threads.
_FREE = ("install_seconds", "run_dir", "num_threads")


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
    settings = {key: value for key, value in config.items() if key not in _FREE}
    settings |= {"device": device.type, "autocast": str(autocast_dtype)}
    now = {"config": settings, "weights": fingerprint(modules)}
    path = folder / _NAME
    if path.is_file():
        _compare(folder, json.loads(path.read_text()), json.loads(json.dumps(now)))
        return
    write_text(path, json.dumps(now, indent=1) + "\n")


def _compare(folder: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    before, after = dict(_flat(then["config"])), dict(_flat(now["config"]))
    changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    if then["weights"] != now["weights"]:
        changed.append("the weights it starts from")
    if changed:
        raise ValueError(
            f"{folder} holds a run with other settings ({', '.join(changed)}): give run_dir=..., or delete the folder"
        )


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict):
        yield prefix, node
        return
    for key, value in node.items():
        yield from _flat(value, f"{prefix}.{key}" if prefix else key)
