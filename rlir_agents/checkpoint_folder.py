"""Checkpoints that a killed process cannot spoil: written aside, made durable, then renamed.

A checkpoint is a folder with ``tensors.safetensors`` and ``state.json``: nested dicts and lists
whose tensors went to the one file and whose rest went to the other. Nothing is pickled, so nothing
is executed on reading. What *belongs* into a checkpoint is in ``rlir_agents/training_state.py``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from rlir_env.atomic_files import replacing, sync

_PREFIX = "iteration_"
_TENSOR, _ITEMS = "__tensor__", "__items__"


class CheckpointFolder:
    """The newest checkpoints of one run."""

    def __init__(self, path: Path | str, num_kept: int = 2) -> None:
        """Name the folder.

        Args:
            path: folder; made if missing.
            num_kept: older ones are deleted. Two, so that one survives whatever happens to the
                other.
        """
        if num_kept < 1:
            raise ValueError(f"num_kept={num_kept}: keep at least one checkpoint")
        self.path = Path(path)
        self.num_kept = num_kept

    def save(self, iteration: int, state: dict[str, Any]) -> Path:
        """Write a checkpoint so that it is either complete or absent, and delete the oldest.

        Args:
            iteration: its number.
            state: nested dicts and lists of tensors and JSON values.

        Returns:
            Its folder.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._remove_unfinished()
        target = self.path / f"{_PREFIX}{iteration:08d}"
        unfinished = self.path / f".unfinished_{target.name}"
        unfinished.mkdir()
        write_tree(unfinished, state)
        if target.exists():
            shutil.rmtree(target)
        unfinished.rename(target)
        sync(self.path)
        for old in self.complete()[: -self.num_kept]:
            # Renamed first: half deleted, it must not pass for a complete one.
            shutil.rmtree(old.rename(self.path / f".unfinished_{old.name}"))
        return target

    def complete(self) -> list[Path]:
        """Folders of all complete checkpoints, oldest first."""
        return sorted(self.path.glob(f"{_PREFIX}*"))

    def newest(self) -> Path | None:
        """Folder of the newest complete checkpoint, None if there is none."""
        return next(reversed(self.complete()), None)

    def _remove_unfinished(self) -> None:
        for leftover in self.path.glob(".unfinished_*"):
            shutil.rmtree(leftover)


def write_tree(folder: Path, tree: Any) -> None:
    """Write nested dicts and lists of tensors and JSON values; wait for the disk."""
    tensors: dict[str, torch.Tensor] = {}
    structure = _encode(tree, tensors)
    save_file(tensors, folder / "tensors.safetensors")
    (folder / "state.json").write_text(json.dumps(structure))
    for path in (folder / "tensors.safetensors", folder / "state.json", folder):
        sync(path)


def read_tree(folder: Path) -> Any:
    """Read what `write_tree` wrote, on the CPU; tuples come back as lists."""
    tensors = load_file(folder / "tensors.safetensors")
    return _decode(json.loads((folder / "state.json").read_text()), tensors)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write one safetensors file so that it is complete or as it was."""
    with replacing(path) as unfinished:
        save_file({key: _own_copy(value) for key, value in tensors.items()}, unfinished)


def _encode(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(node, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = _own_copy(node)
        return {_TENSOR: name}
    if isinstance(node, dict):
        # Pairs, because JSON turns the integer keys of an optimiser's state into strings.
        return {_ITEMS: [[key, _encode(value, tensors)] for key, value in node.items()]}
    if isinstance(node, (list, tuple)):
        return [_encode(value, tensors) for value in node]
    return node


def _decode(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(node, list):
        return [_decode(value, tensors) for value in node]
    if not isinstance(node, dict):
        return node
    if _TENSOR in node:
        return tensors[node[_TENSOR]]
    return {key: _decode(value, tensors) for key, value in node[_ITEMS]}


def _own_copy(tensor: torch.Tensor) -> torch.Tensor:
    # safetensors refuses views and tensors that share memory, such as tied weights.
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
