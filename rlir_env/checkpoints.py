"""Weight files: our own are safetensors with their config; foreign ones are read strictly.

The paper's models come from several groups and formats. Two rules hold for all of them: reading a
file never runs code from it, and every key is accounted for (a silently skipped weight would be a
different model). Training checkpoints, with optimiser and counters, are not made here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rlir_env.atomic_files import replacing

_CONFIG_KEY = "config"
_KEYS_SHOWN = 10  # per kind of mismatch in an error; a wrong architecture mismatches in hundreds


def save_safetensors(
    path: str | Path,
    weights: nn.Module | Mapping[str, Tensor],
    config: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> None:
    """Writes weights and config as one file, atomically: it is the old or the new one, never half.

    Args:
        path: Ends in ``.safetensors``.
        weights: A module or a state dict.
        config: What builds the module again; anything that JSON can hold.
        dtype: Floating-point tensors are stored in this type (``torch.float16`` halves the file);
            default as is.

    Raises:
        ValueError: If a value does not survive ``dtype``, e.g. 1e5 in float16.
    """
    state_dict = weights.state_dict() if isinstance(weights, nn.Module) else weights
    tensors = {name: _as_stored(name, tensor, dtype) for name, tensor in state_dict.items()}
    with replacing(path) as unfinished:
        save_file(tensors, unfinished, metadata={_CONFIG_KEY: json.dumps(dict(config), sort_keys=True)})


def load_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a file of :func:`save_safetensors`.

    Returns:
        The state dict on the CPU, in the stored types, and the config.

    Raises:
        ValueError: If the file holds no config, because somebody else wrote it.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if _CONFIG_KEY not in metadata:
            raise ValueError(f"{path} holds no config; write it with rlir_env.checkpoints.save_safetensors")
        state_dict = {name: file.get_tensor(name) for name in file.keys()}
    return state_dict, json.loads(metadata[_CONFIG_KEY])


def load_foreign(path: str | Path) -> dict[str, Tensor]:
    """Reads the state dict of a file that others wrote, without running code from it.

    Args:
        path: ``.safetensors``, or anything that ``torch.load`` reads: a bare state dict, or one
            under the key ``state_dict``.

    Raises:
        ValueError: If what is in the file is not a state dict.
        pickle.UnpicklingError: If a torch file holds anything but tensors and plain containers.
    """
    if Path(path).suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, Mapping) and "state_dict" in content:
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} is neither a state dict nor has one under 'state_dict'")
    return dict(content)


def load_strict(module: nn.Module, state_dict: Mapping[str, Tensor], strip_prefixes: Sequence[str] = ()) -> None:
    """Copies weights into a module; every key must be on both sides, with the same shape.

    Args:
        module: Is filled in place, in its own types and on its own devices; unchanged if this
            fails.
        state_dict: The weights.
        strip_prefixes: If all keys start with one of these, it is removed; the first that fits
            counts. For MineWorld's tokenizer: ``("tokenizer.model.", "model.")``.

    Raises:
        ValueError: Lists what is missing, unexpected or of another shape.
    """
    prefix = next((p for p in strip_prefixes if all(k.startswith(p) for k in state_dict)), "")
    given = {key.removeprefix(prefix): tensor for key, tensor in state_dict.items()}
    expected = module.state_dict()
    problems = {
        "missing": sorted(expected.keys() - given.keys()),
        "unexpected": sorted(given.keys() - expected.keys()),
        "of another shape": [
            f"{key} (file {list(given[key].shape)}, module {list(expected[key].shape)})"
            for key in sorted(expected.keys() & given.keys())
            if given[key].shape != expected[key].shape
        ],
    }
    if any(problems.values()):
        found = "; ".join(f"{kind}: {_shorten(keys)}" for kind, keys in problems.items() if keys)
        raise ValueError(f"the weights do not fit {type(module).__name__}; {found}. Is it the right config?")
    module.load_state_dict(given)


def fingerprint(modules: Iterable[nn.Module], dtype: torch.dtype | None = None) -> str:
    """A checksum of the names and values of all weights.

    Args:
        modules: Whose weights, in this order.
        dtype: Floating-point weights are rounded to this type first, that in which they are stored;
            default as they are.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            if dtype is not None and tensor.is_floating_point():
                tensor = tensor.to(dtype)
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _as_stored(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    stored = tensor.detach().cpu()
    if dtype is not None and stored.is_floating_point():
        stored = stored.to(dtype)
        if not torch.equal(stored.isfinite(), tensor.isfinite().cpu()):
            raise ValueError(f"{name} has values that {dtype} cannot hold; store it as torch.float32")
    # A copy, because safetensors refuses tensors that share memory (tied weights) or are strided.
    return stored.clone(memory_format=torch.contiguous_format)


def _shorten(keys: Sequence[str]) -> str:
    more = f", and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else ""
    return ", ".join(keys[:_KEYS_SHOWN]) + more
