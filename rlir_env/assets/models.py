"""Frozen models as files: weights with the sizes that build them again, and a few facts about them.

Tokenizers and inverse dynamics models are read here; world models learn, and are read by ``rlir_agents``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from rlir_env.checkpoints import load_safetensors, load_strict, save_safetensors
from rlir_env.inverse_dynamics import InverseDynamicsModel, VPTConfig, VPTInverseDynamics
from rlir_env.sizes import config_of
from rlir_env.tokenizers import KLConfig, KLTokenizer, Tokenizer, ViTConfig, ViTTokenizer, VQConfig, VQTokenizer

Model = TypeVar("Model", bound=nn.Module)
Builders = Mapping[str, Callable[[Any], Model]]

TOKENIZERS: Builders[Tokenizer] = {
    "VQTokenizer": lambda sizes: VQTokenizer(config_of(VQConfig, sizes)),
    "KLTokenizer": lambda sizes: KLTokenizer(config_of(KLConfig, sizes)),
    "ViTTokenizer": lambda sizes: ViTTokenizer(config_of(ViTConfig, sizes)),
}
IDMS: Builders[InverseDynamicsModel] = {
    "VPTInverseDynamics": lambda sizes: VPTInverseDynamics(config_of(VPTConfig, sizes))
}


def write_model(path: str | Path, model: Any, dtype: torch.dtype | None = None, **facts: Any) -> None:
    """Write a model, its class and sizes, and JSON-able facts about it.

    Args:
        path: ends in ``.safetensors``.
        model: a module with a dataclass ``config``.
        dtype: of the stored weights; None keeps theirs.
        **facts: for instance ``class_frequency``.
    """
    save_safetensors(path, model, model_facts(model) | facts, dtype)


def model_facts(model: Any) -> dict[str, Any]:
    """Class and sizes of a module with a dataclass ``config``, from which it is built again."""
    return {"class": type(model).__name__, "sizes": asdict(model.config)}


def read_model(path: str | Path, builders: Builders[Model]) -> tuple[Model, dict[str, Any]]:
    """Build and fill the model of a file of :func:`write_model`.

    Args:
        path: the file.
        builders: by class name, from sizes to an untrained model.

    Returns:
        The frozen model in float32, and the facts stored beside it.

    Raises:
        ValueError: if the class is none of the builders'.
    """
    weights, facts = load_safetensors(path)
    name, sizes = facts.pop("class", None), facts.pop("sizes", None)
    if name not in builders:
        raise ValueError(f"{path} holds a {name}; expected is one of {', '.join(builders)}")
    model = builders[name](sizes)
    load_strict(model, weights)
    return model.eval().requires_grad_(False), facts


def read_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a file, frozen."""
    return read_model(path, TOKENIZERS)[0]


def read_idm(path: str | Path) -> InverseDynamicsModel:
    """The inverse dynamics model of a file, frozen."""
    return read_model(path, IDMS)[0]
