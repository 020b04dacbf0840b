"""World models from files: our own, and MineWorld's published checkpoints."""

from __future__ import annotations

from pathlib import Path

from rlir_agents.world_models.mineworld import MineWorld, MineWorldConfig
from rlir_env.checkpoints import load_foreign, load_safetensors, load_strict

_TRUNK = "transformer."  # published files hold the tokenizer beside it, which lives in rlir_env.tokenizers


def read_world_model(path: str | Path) -> MineWorld:
    """Build and fill the world model of a file of ``rlir pretrain`` or of a shipped one.

    Args:
        path: our own safetensors file; its sizes are in it.

    Returns:
        The model in float32, ready to be trained on.

    Raises:
        ValueError: if the file holds something else.
    """
    weights, facts = load_safetensors(path)
    if facts.get("class") != MineWorld.__name__:
        raise ValueError(f"{path} holds a {facts.get('class')}, not a {MineWorld.__name__}")
    model = MineWorld(MineWorldConfig(**facts["sizes"]))
    load_strict(model, weights)
    return model


def make_mineworld(config: MineWorldConfig, weights: str | Path | None = None) -> MineWorld:
    """A MineWorld of given sizes, fresh or with published weights.

    Args:
        config: sizes.
        weights: a published checkpoint (``.ckpt`` or ``.safetensors``); None leaves the model untrained.

    Raises:
        ValueError: if the weights do not fit the sizes.
    """
    model = MineWorld(config)
    if weights is not None:
        published = load_foreign(weights)
        load_strict(model, {key: value for key, value in published.items() if key.startswith(_TRUNK)})
    return model
