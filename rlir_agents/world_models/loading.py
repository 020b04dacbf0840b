"""World models from files: our own, MineWorld's published checkpoints, and those of NFD's family (LIVE)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rlir_agents.world_models.mineworld import MineWorld, MineWorldConfig
from rlir_agents.world_models.nfd import NFD, NFDConfig
from rlir_env.checkpoints import load_foreign, load_safetensors, load_strict

# By the class that is written in our own files, from sizes to an untrained model.
_BUILDERS: dict[str, Callable[[dict[str, Any]], MineWorld | NFD]] = {
    "MineWorld": lambda sizes: MineWorld(MineWorldConfig(**sizes)),
    "NFD": lambda sizes: NFD(NFDConfig(**sizes)),
}

_TRUNK = "transformer."  # published files hold the tokenizer beside it, which lives in rlir_env.tokenizers

# In files of NFD's family: a tensor that all of them have, whatever stands before its name; and what is not a weight of
# the transformer.
_NFD_LANDMARK = "x_embedder.proj.weight"
_NFD_TOKENIZER = "tokenizer."
_NFD_MASK = ".attn_mask_"
_NFD_HEAD_DIM = 64


def read_world_model(path: str | Path) -> MineWorld | NFD:
    """Build and fill the world model of a file of ``rlir pretrain`` or of a shipped one, whichever it is.

    Args:
        path: our own safetensors file; its class and sizes are in it.

    Returns:
        The model in float32, ready to be trained on.

    Raises:
        ValueError: if the file holds something else.
    """
    weights, facts = load_safetensors(path)
    name = facts.get("class")
    if name not in _BUILDERS:
        raise ValueError(f"{path} holds a {name}, no world model: give a file of {' or '.join(_BUILDERS)}")
    model = _BUILDERS[name](facts["sizes"])
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


def make_nfd(config: NFDConfig, weights: str | Path | None = None) -> NFD:
    """An NFD of given sizes, fresh or with published weights.

    Args:
        config: sizes; :func:`nfd_config` reads most of them off the weights.
        weights: a checkpoint with the parameter names of LIVE (``.ckpt`` or ``.safetensors``); None leaves the model
            untrained.

    Raises:
        ValueError: if the weights do not fit the sizes.
    """
    model = NFD(config)
    if weights is not None:
        load_strict(model, nfd_weights(load_foreign(weights)))
    return model


def nfd_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The transformer's part of a checkpoint of NFD's family, under its own names.

    Training files put ``model.`` before them (``model._orig_mod.`` when compiled), and hold the tokenizer and attention
    masks besides. These two are left out; anything else must be the transformer's.

    Raises:
        ValueError: if there is no such transformer, or something that is neither.
    """
    prefixes = [key.removesuffix(_NFD_LANDMARK) for key in state_dict if key.endswith(_NFD_LANDMARK)]
    if len(prefixes) != 1:
        raise ValueError(f"{len(prefixes)} tensors are named ...{_NFD_LANDMARK}: this is not one model of NFD's family")
    prefix = prefixes[0]
    kept = [key for key in state_dict if not key.startswith(_NFD_TOKENIZER) and _NFD_MASK not in f".{key}"]
    strange = sorted(key for key in kept if not key.startswith(prefix))
    if strange:
        raise ValueError(
            f"{len(strange)} tensors beside {prefix}* are unknown, {strange[0]} for example; "
            "leave them out if they are not the transformer's"
        )
    return {key.removeprefix(prefix): state_dict[key] for key in kept}


def nfd_config(weights: Mapping[str, Tensor], latent_size: tuple[int, int] = (14, 24), **settings: Any) -> NFDConfig:
    """Sizes of the transformer whose weights these are: widths, layers, patch size and how it reads game actions.

    Two of them are not settled by the papers: the width of the SwiGLU and the depth of the action embedding.

    Args:
        weights: as from :func:`nfd_weights`.
        latent_size: (h, w) of a frame's latent, which no weight tells.
        **settings: further keywords of `NFDConfig` that no weight tells, such as ``max_frames``. Heads have 64
            dimensions unless ``num_heads`` says otherwise.

    Raises:
        ValueError: if the model is not conditioned on game actions.
    """
    hidden_size, num_channels, _, patch_size, _ = weights[_NFD_LANDMARK].shape
    embeddings = {"cond_embedder.weight": "linear", "c_embedder.mlp.0.weight": "mlp"}
    found = [key for key in embeddings if key in weights]
    if len(found) != 1:
        raise ValueError(
            f"the weights have {len(found)} of {', '.join(embeddings)}: a model for game actions has one of them "
            "(c_embedder.proj reads camera rays)"
        )
    sizes = {
        "latent_shape": (num_channels, *latent_size),
        "patch_size": patch_size,
        "hidden_size": hidden_size,
        "num_layers": len({key.split(".")[1] for key in weights if key.startswith("blocks.")}),
        "num_heads": hidden_size // _NFD_HEAD_DIM,
        "intermediate_size": weights["blocks.0.feed_forward.w1.weight"].shape[0],
        "action_dim": weights[found[0]].shape[1],
        "action_embedding": embeddings[found[0]],
    }
    return NFDConfig(**{**sizes, **settings})
