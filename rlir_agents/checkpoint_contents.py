"""What a weight file is: whose models it holds, of which sizes, whether every tensor fits, and what reads it.

Nothing is built: models stand on the meta device, and tensors stay in the file.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlir_agents.world_models.loading import WORLD_MODEL_KINDS, WORLD_MODELS, own_weights
from rlir_env.assets.models import IDMS, TOKENIZERS
from rlir_env.checkpoints import ANYTHING, PublishedKind, check_weights, is_own_file, load_foreign, load_safetensors
from rlir_env.inverse_dynamics.vpt import IDM_KIND, VPTConfig
from rlir_env.tokenizers.loading import TOKENIZER_KINDS

_KINDS: tuple[PublishedKind[Any], ...] = (*WORLD_MODEL_KINDS, *TOKENIZER_KINDS, IDM_KIND)
_MODELS = ("transformer.", "tokenizer.", "model.", "net.")  # under which published files hold models

# By the class that is written in our own files: what builds it from its sizes, and what reads it.
_OWN: dict[str, tuple[Callable[[dict[str, Any]], nn.Module], str]] = {
    **{
        name: (build, "world_model=checkpoint world_model.path={path}, or `rlir ship` of the folder it was made in")
        for name, build in WORLD_MODELS.items()
    },
    **{name: (build, "rlir_env.assets.models.read_tokenizer('{path}')") for name, build in TOKENIZERS.items()},
    **{name: (build, "rlir_env.assets.models.read_idm('{path}')") for name, build in IDMS.items()},
}


@dataclass(frozen=True)
class Part:
    """One model of a file.

    Attributes:
        name: Which.
        sizes: That build it, by name.
        num_tensors: In the file.
        num_parameters: Numbers in these.
        dtypes: In which they are stored.
        reader: What reads it; None for settings and for what does not fit.
        problem: Why it cannot be read; None if every tensor fits.
        untold: Of the sizes those that are not in the file.
    """

    name: str
    sizes: dict[str, Any]
    num_tensors: int
    num_parameters: int
    dtypes: tuple[str, ...]
    reader: str | None
    problem: str | None = None
    untold: tuple[str, ...] = ()


@dataclass(frozen=True)
class FileContents:
    """Everything in a file.

    Attributes:
        path: The file.
        parts: The models in it.
        unread: Tensors that belong to none of them.
    """

    path: Path
    parts: tuple[Part, ...]
    unread: tuple[str, ...] = ()

    @property
    def is_readable(self) -> bool:
        """Whether there is a model, every model fits, and none is there that is not known."""
        is_lost = any(key.startswith(_MODELS) for key in self.unread)
        return bool(self.parts) and not is_lost and all(part.problem is None for part in self.parts)

    def to_text(self) -> str:
        """For the console."""
        lines = [f"{self.path}: {self.path.stat().st_size / 1e6:,.1f} MB"]
        for part in self.parts:
            lines += ["", part.name]
            if part.num_tensors:
                types = ", ".join(part.dtypes)
                lines.append(f"  {part.num_tensors} tensors, {part.num_parameters:,} parameters in {types}")
            for key, value in part.sizes.items():
                lines.append(f"  {key}: {value}{' (as published; no weight tells)' if key in part.untold else ''}")
            if part.problem is None and part.num_tensors:
                lines.append("  every tensor of the model is in the file, and has its shape")
            lines.append(f"  does not fit: {part.problem}" if part.problem else f"  read it with {part.reader}")
        if self.unread:
            shown = ", ".join(self.unread[:10]) + (", ..." if len(self.unread) > 10 else "")
            lines += ["", f"{len(self.unread)} tensors belong to no model that is known here: {shown}"]
        return "\n".join(lines)


def read_contents(path: str | Path) -> FileContents:
    """Look into a file.

    Args:
        path: Weights in any of the formats of `rlir_env.checkpoints`, or settings of VPT's IDM (``.model``).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is a folder, or damaged, or neither weights nor settings.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix == ".model":
        return FileContents(path, (_settings(path),))
    if is_own_file(path):
        return FileContents(path, (_own(path),))
    state_dict = load_foreign(path)
    parts, claimed = [], set()  # by where they lie
    for kind in _KINDS:
        if kind.is_in(state_dict):
            part, weights = _part(kind, state_dict, path)
            parts.append(part)
            claimed |= {tensor.data_ptr() for tensor in weights.values()}
    # Some files name one tensor several times; and what lies among a model's weights, its reader has accounted for.
    roots = {key.split(".")[0] for key, tensor in state_dict.items() if tensor.data_ptr() in claimed}
    return FileContents(path, tuple(parts), tuple(sorted(key for key in state_dict if key.split(".")[0] not in roots)))


def _part(kind: PublishedKind[Any], state_dict: Mapping[str, Tensor], path: Path) -> tuple[Part, dict[str, Tensor]]:
    """What is to be said of one model, and its weights."""
    weights: dict[str, Tensor] = {}
    sizes: dict[str, Any] = {}
    told: dict[str, Any] = {}
    problem = None
    try:
        weights = kind.select(state_dict, beside=ANYTHING)
        told = _told_beside(kind, path)
        with torch.device("meta"):
            model = kind.build(weights, **told)
        sizes = asdict(model.config)
        check_weights(model, weights)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is left out is listed
            kind.select(state_dict)  # what its own reader lets stand beside it
    except (ValueError, KeyError) as error:
        problem = f"there is no tensor {error}" if isinstance(error, KeyError) else str(error)
    reader = None if problem else kind.reader.format(path=path, stem=path.with_suffix(""))
    untold = tuple(set(kind.untold) - told.keys())
    return Part(kind.name, sizes, *_counts(weights), reader, problem, untold), weights


def _told_beside(kind: PublishedKind[Any], path: Path) -> dict[str, Any]:
    """What VPT's settings beside its weights tell of sizes that the weights do not."""
    settings = path.with_suffix(".model")
    if kind is not IDM_KIND or not settings.is_file():
        return {}
    config = asdict(VPTConfig.from_file(settings))
    return {name: config[name] for name in kind.untold}


def _own(path: Path) -> Part:
    weights, facts = load_safetensors(path)
    kind, sizes = facts.get("class", "weights"), facts.get("sizes", {})
    name, counts = f"{kind} of this package", _counts(weights)
    if kind not in _OWN:
        known = ", ".join(_OWN)
        return Part(name, sizes, *counts, reader=None, problem=f"its class is none of {known}")
    build, reader = _OWN[kind]
    try:
        with torch.device("meta"):
            check_weights(build(sizes), own_weights(weights))
    except (ValueError, TypeError) as error:  # the latter: sizes that the class does not have
        return Part(name, sizes, *counts, reader=None, problem=str(error))
    return Part(name, sizes, *counts, reader=reader.format(path=path))


def _settings(path: Path) -> Part:
    config = VPTConfig.from_file(path)
    weights = path.with_suffix(".weights")
    reader = f"rlir_env.inverse_dynamics.VPTInverseDynamics.from_files('{path}', '{weights}')"
    return Part("settings of VPT's inverse dynamics model", asdict(config), 0, 0, (), reader)


def _counts(weights: Mapping[str, Tensor]) -> tuple[int, int, tuple[str, ...]]:
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()}
    return len(weights), sum(tensor.numel() for tensor in weights.values()), tuple(sorted(dtypes))
