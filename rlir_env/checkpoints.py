"""Weight files: our own are safetensors with their config; foreign ones are read strictly.

The paper's models come from several groups and formats. Two rules hold for all of them: reading a
file never runs code from it, and every key is accounted for (a silently skipped weight would be a
different model). Training checkpoints, with optimiser and counters, are not made here.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import pickletools
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rlir_env.atomic_files import replacing

Module = TypeVar("Module", bound=nn.Module)

_CONFIG_KEY = "config"
_KEYS_SHOWN = 10  # per kind of mismatch in an error; a wrong architecture mismatches in hundreds

# Under which key training code puts the state dict, besides optimisers, counters and the like.
_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "module")
# What torch.compile and DistributedDataParallel write before the names of weights.
_COMPILED, _PARALLEL = "_orig_mod.", "module."

_ZIP_MAGIC = b"PK\x03\x04"
_LARGEST_PLAIN_PICKLE = 2**20  # VPT's settings have a few kilobytes


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
    with _open_safetensors(path) as file:
        metadata = file.metadata() or {}
        if _CONFIG_KEY not in metadata:
            raise ValueError(f"{path} holds no config; write it with rlir_env.checkpoints.save_safetensors")
        return _mapped_tensors(file), json.loads(metadata[_CONFIG_KEY])


def is_own_file(path: str | Path) -> bool:
    """Whether :func:`save_safetensors` wrote this file, which then holds its config."""
    if Path(path).suffix != ".safetensors":
        return False
    with _open_safetensors(path) as file:
        return _CONFIG_KEY in (file.metadata() or {})


def load_foreign(path: str | Path) -> dict[str, Tensor]:
    """Reads the state dict of a file that others wrote, without running code from it.

    Tensors are mapped from the file where its format allows that (safetensors, and what torch writes since 1.6), so
    that a large one is not in memory as a whole. Names are those of the model alone: what ``torch.compile`` and
    ``DistributedDataParallel`` write before them is taken away.

    Args:
        path: ``.safetensors``, or anything that ``torch.load`` reads: a bare state dict, or one beside other things
            under the key ``state_dict``, ``model_state_dict``, ``model`` or ``module``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, holds pickled code, which is not run, or no state dict.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder: name the file in it")
    if Path(path).suffix == ".safetensors":
        with _open_safetensors(path) as file:
            return _own_names(_mapped_tensors(file))
    content = _read_torch_file(path)
    if isinstance(content, Mapping) and not _is_state_dict(content):
        content = next((content[key] for key in _STATE_DICT_KEYS if _is_state_dict(content.get(key))), content)
    if not _is_state_dict(content):
        keys = ", ".join(map(repr, _STATE_DICT_KEYS))
        raise ValueError(f"{path} is neither a state dict nor has one under one of {keys}")
    return _own_names(content)


def load_plain_pickle(path: str | Path) -> Any:
    """Reads a small pickle of numbers, strings and containers, as VPT's ``.model`` files are, and nothing else.

    Args:
        path: The file, of at most a megabyte.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is larger, damaged, or names code, which is not run.
    """
    if Path(path).stat().st_size > _LARGEST_PLAIN_PICKLE:
        raise ValueError(f"{path} is too large for a file of settings; weights are read by load_foreign")
    data = Path(path).read_bytes()
    try:
        # A look without running it: a few bytes can make the unpickler allocate a memo of gigabytes.
        memo = [argument for opcode, argument, _ in pickletools.genops(data) if "PUT" in opcode.name]
        if any(isinstance(place, int) and place > len(data) for place in memo):
            raise ValueError("a memo larger than the file")
        return _PlainUnpickler(io.BytesIO(data)).load()
    except Exception as error:  # bytes that are no pickle end in any of Python's errors; none has run anything
        raise ValueError(f"{path} is no pickle of plain containers: {error}") from error


class _PlainUnpickler(pickle.Unpickler):
    """Makes what pickle has opcodes for; every class and function is refused."""

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}; nothing was run")


@contextmanager
def _open_safetensors(path: str | Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is no complete safetensors file: {error}") from error


def _mapped_tensors(file: Any) -> dict[str, Tensor]:
    return {name: file.get_tensor(name) for name in file.keys()}


def _read_torch_file(path: str | Path) -> Any:
    with open(path, "rb") as file:
        start = file.read(len(_ZIP_MAGIC))
    if not start:
        raise ValueError(f"{path} is empty")
    is_zip = start == _ZIP_MAGIC
    if is_zip and not zipfile.is_zipfile(path):  # its directory stands at the end
        raise ValueError(f"{path} is no complete file of torch.save: its end is missing")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)  # older files are one stream
    except Exception as error:  # whatever the bytes of a file that is none make the unpickler stumble over
        # Of torch's words only what it stumbled over: it goes on to recommend a way to run what the file holds.
        found = re.search(r"GLOBAL ([\w.]+)|Unsupported class ([\w.]+)", str(error))
        reason = f": it asks for {found[1] or found[2]}" if found else ""
        raise ValueError(f"{path} cannot be read as tensors and plain containers; nothing was run{reason}") from error


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, Mapping) and bool(content) and all(isinstance(v, Tensor) for v in content.values())


def _own_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {key.replace(_COMPILED, ""): tensor for key, tensor in state_dict.items()}
    if len(named) < len(state_dict):
        twice = Counter(key.replace(_COMPILED, "") for key in state_dict).most_common(1)[0][0]
        raise ValueError(f"{twice} is there twice, with {_COMPILED} of torch.compile and without: keep one")
    prefix = _PARALLEL if all(key.startswith(_PARALLEL) for key in named) else ""
    return {key.removeprefix(prefix): tensor for key, tensor in named.items()}


def filled(build: Callable[[], Module], weights: Mapping[str, Tensor]) -> Module:
    """A module with these weights. Fresh ones are never made, which at 1.2 billion takes longer than reading.

    Args:
        build: Makes the module; it is called under ``torch.device("meta")``.
        weights: Of all its parameters and buffers.

    Returns:
        The module on the CPU, in its own types.

    Raises:
        ValueError: Lists what is missing, unexpected or of another shape.
    """
    with torch.device("meta"):
        module = build()
    load_strict(module, weights)
    return module


def load_strict(module: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Copies weights into a module; every key must be on both sides, with the same shape.

    A module on the meta device gets memory of its own on the CPU, one tensor after the other: so a large model is
    never made twice.

    Args:
        module: Is filled in place, in its own types and on its own devices; unchanged if this
            fails.
        state_dict: The weights.

    Raises:
        ValueError: Lists what is missing, unexpected or of another shape; or weights are not finite.
    """
    check_weights(module, state_dict)
    broken = sorted(key for key, tensor in state_dict.items() if not tensor.isfinite().all())
    if broken:  # of a training that had diverged; every video would be noise, or an error far from here
        raise ValueError(f"weights are not finite: {_shorten(broken)}. Take a checkpoint from before they were")
    expected = module.state_dict()
    is_meta = any(tensor.is_meta for tensor in expected.values())
    if is_meta:
        state_dict = {key: tensor.to(expected[key].dtype, copy=True) for key, tensor in state_dict.items()}
    module.load_state_dict(state_dict, assign=is_meta)


def check_weights(module: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Holds weights against a module, which may be on the meta device.

    Args:
        module: What they are to fit.
        state_dict: The weights.

    Raises:
        ValueError: Lists what is missing, unexpected or of another shape.
    """
    expected = module.state_dict()
    problems = {
        "missing": sorted(expected.keys() - state_dict.keys()),
        "unexpected": sorted(state_dict.keys() - expected.keys()),
        "of another shape": [
            f"{key} (file {list(state_dict[key].shape)}, module {list(expected[key].shape)})"
            for key in sorted(expected.keys() & state_dict.keys())
            if state_dict[key].shape != expected[key].shape
        ],
    }
    if any(problems.values()):
        found = "; ".join(f"{kind}: {_shorten(keys)}" for kind, keys in problems.items() if keys)
        raise ValueError(f"the weights do not fit {type(module).__name__}; {found}. Is it the right config?")


def part_of(
    state_dict: Mapping[str, Tensor], landmark: str, roots: Sequence[str], beside: Sequence[str] = ()
) -> dict[str, Tensor]:
    """The weights of one model in a file that may hold several, under the model's own names.

    What stands before the landmark stands before all of them (``model.``, ``tokenizer.model.`` or nothing). Where
    something does, the file is one of a training: what stands outside of it and is not known (networks of metrics) is
    left out with a warning.

    Args:
        state_dict: Of the file.
        landmark: A tensor that all such models have, by its own name.
        roots: Beginnings of the model's own names.
        beside: Beginnings of what else may be in the file, behind all or some of what stands before the landmark, or
            `ANYTHING`.

    Raises:
        ValueError: If there is no such model, or more than one, or among its weights something that is neither its own
            nor allowed.
    """
    prefixes = _before(landmark, state_dict)
    if len(prefixes) != 1:
        raise ValueError(
            f"{len(prefixes)} tensors are named {landmark}, with or without something before it; expected 1"
        )
    own = tuple(prefixes[0] + root for root in roots)
    words = prefixes[0].split(".")[:-1]
    before = ("".join(f"{word}." for word in words[:count]) for count in range(len(words) + 1))
    others = tuple(start + root for start in before for root in beside)
    unknown = sorted(key for key in state_dict if not key.startswith((*own, *others)))
    outside = sorted({key.split(".")[0] for key in unknown if not key.startswith(prefixes[0])})
    if outside:
        warnings.warn(f"what stands outside of {prefixes[0]} is left out: {', '.join(outside)}", stacklevel=3)
    strange = [key for key in unknown if key.startswith(prefixes[0])]
    if strange:
        raise ValueError(f"{len(strange)} tensors belong to nothing that is known: {_shorten(strange)}")
    return {key.removeprefix(prefixes[0]): tensor for key, tensor in state_dict.items() if key.startswith(own)}


def _before(landmark: str, names: Iterable[str]) -> list[str]:
    """What stands before a tensor's own name, for each that has it."""
    return [name.removesuffix(landmark) for name in names if name == landmark or name.endswith(f".{landmark}")]


ANYTHING = ("",)
"""For `part_of`: whatever stands beside the model is left out."""


@dataclass(frozen=True)
class PublishedKind(Generic[Module]):
    """A kind of published model: how a file that holds one is known, and how it is read.

    Attributes:
        name: What people call it.
        landmark: A tensor that only such models have.
        select: From a state dict, and ``beside`` as in `part_of`, to the model's weights under its own names.
        build: From these weights, and sizes that no weight tells, to the model.
        reader: Code that reads it, with ``{path}`` for the file, and ``{stem}`` for it without its suffix.
        untold: Sizes that no weight tells, by name: unless they are given they are the published ones.
    """

    name: str
    landmark: str
    select: Callable[..., dict[str, Tensor]]
    build: Callable[..., Module]
    reader: str
    untold: tuple[str, ...] = ()

    def is_in(self, state_dict: Mapping[str, Tensor]) -> bool:
        """Whether the file holds one."""
        return bool(_before(self.landmark, state_dict))


def read_foreign(
    path: str | Path,
    select: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    build: Callable[[dict[str, Tensor]], Module],
) -> Module:
    """The model of a file that others wrote, of which it is known what it holds.

    Args:
        path: As in `load_foreign`.
        select: From its state dict to the model's weights under its own names.
        build: From these to the model.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or of another kind, or its weights do not fit; the file is named.
    """
    return _read(path, load_foreign(path), select, build)


def read_published(path: str | Path, kinds: Sequence[PublishedKind[Module]], what: str, **sizes: Any) -> Module:
    """The model of a file that others wrote, whichever of some kinds it is.

    Args:
        path: As in `load_foreign`.
        kinds: Are looked for in this order.
        what: They are, for the message where there is none.
        **sizes: That no weight tells.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or of another kind, or its weights do not fit; the file is named.
    """
    state_dict = load_foreign(path)
    for kind in kinds:
        if kind.is_in(state_dict):
            return _read(path, state_dict, kind.select, partial(kind.build, **sizes))
    raise ValueError(f"{path} holds no {what} that is known here: `rlir inspect {path}` says what it holds")


def _read(path: str | Path, state_dict: Mapping[str, Tensor], select: Callable, build: Callable[..., Module]) -> Module:
    try:
        weights = select(state_dict)
        return filled(lambda: build(weights), weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except KeyError as error:
        raise ValueError(f"{path}: there is no tensor {error}") from error
    except TypeError as error:  # a keyword that a config does not have, or a value that is no number
        raise ValueError(f"{path}: its model does not take these sizes: {error}") from error


def num_blocks(names: Iterable[str], stem: str) -> int:
    """How many numbered blocks stand behind a stem: 2 for ``a.0.w``, ``a.0.v`` and ``a.1.w`` behind ``a``.

    Args:
        names: Of tensors.
        stem: Without its last dot.
    """
    return len({name[len(stem) + 1 :].split(".")[0] for name in names if name.startswith(f"{stem}.")})


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
