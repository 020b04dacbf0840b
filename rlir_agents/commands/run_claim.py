"""A run's folder belongs to one config and one set of starting weights; what would mix two runs is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from rlir_env.checkpoints import fingerprint

_NAME = "run.json"
# What does not change what the run computes.
_FREE = ("install_seconds", "run_dir", "num_threads")


def claim(folder: Path, config: Mapping[str, Any], modules: Iterable[nn.Module]) -> None:
    """Write down what a run is made of, or compare with what a run left there.

    Args:
        folder: of the run.
        config: of the run.
        modules: whose weights it starts from, the frozen ones too.

    Raises:
        ValueError: if the folder holds a run of another config or other weights.
    """
    settings = {key: value for key, value in config.items() if key not in _FREE}
    now = {"config": settings, "weights": fingerprint(modules)}
    path = folder / _NAME
    if path.is_file():
        _compare(folder, json.loads(path.read_text()), json.loads(json.dumps(now)))
        return
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(now, indent=1) + "\n")
    part.replace(path)


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
