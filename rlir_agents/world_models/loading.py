"""World models from files: our own, MineWorld's published checkpoints, those of NFD's family (LIVE), and Oasis."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlir_agents.world_models.mineworld import MineWorld, MineWorldConfig
from rlir_agents.world_models.nfd import NFD, NFDConfig
from rlir_agents.world_models.oasis import Oasis, OasisConfig
from rlir_env.checkpoints import (
    PublishedKind,
    filled,
    is_own_file,
    load_safetensors,
    num_blocks,
    part_of,
    read_foreign,
    read_published,
)
from rlir_env.sizes import config_of

WORLD_MODELS: dict[str, Callable[[Any], MineWorld | NFD | Oasis]] = {
    "MineWorld": lambda sizes: MineWorld(config_of(MineWorldConfig, sizes)),
    "NFD": lambda sizes: NFD(config_of(NFDConfig, sizes)),
    "Oasis": lambda sizes: Oasis(config_of(OasisConfig, sizes)),
}
"""By the class that is written in our own files, from sizes to an untrained model."""

# Tensors by which a file is known to hold a transformer of MineWorld, of NFD's family, or Oasis'.
_MINEWORLD_LANDMARK = "transformer.model.embed_tokens.weight"
_NFD_LANDMARK = "blocks.0.attention.wqkv.weight"
_OASIS_LANDMARK = "blocks.0.s_attn.to_qkv.weight"

_HEAD_DIM = 64  # in both families; no weight tells
_NUM_WORD_IDS = 70  # MineWorld's vocabulary holds them besides the codes

# Fields of transformers' LlamaConfig with the only value that this class implements.
_FIXED_FIELDS = {
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
}


def load_world_model(path: str | Path, config: Mapping[str, Any] | None = None) -> MineWorld | NFD | Oasis:
    """The world model of a file, whichever it is, in float32.

    Args:
        path: One of our own files, a checkpoint of MineWorld, one of NFD's family with vectors of game actions, or
            Oasis'.
        config: Sizes; None reads them off the weights, and takes the published value where these do not tell
            (``max_position_embeddings``, the size of a latent). For MineWorld fields of transformers' ``LlamaConfig``,
            of which unknown ones are left out with a warning; for the others those of `NFDConfig` or `OasisConfig`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or of another kind, the config does not fit its weights, or one was given for
            a file of our own, which says its sizes itself.
    """
    if is_own_file(path):
        if config is not None:
            raise ValueError(f"{path} is one of our own files and holds its sizes: leave out config")
        return read_world_model(path)
    return read_published(path, WORLD_MODEL_KINDS, "world model", **(config or {}))


def read_world_model(path: str | Path) -> MineWorld | NFD | Oasis:
    """Build and fill the world model of a file of ``rlir pretrain`` or ``rlir train`` or of a shipped one.

    Args:
        path: our own safetensors file; its class and sizes are in it.

    Returns:
        The model in float32, ready to be trained on.

    Raises:
        ValueError: if the file holds something else.
    """
    weights, facts = load_safetensors(path)
    name = facts.get("class")
    if name not in WORLD_MODELS:
        raise ValueError(f"{path} holds a {name}, no world model: give a file of {' or '.join(WORLD_MODELS)}")
    return filled(lambda: WORLD_MODELS[name](facts.get("sizes")), own_weights(weights))


def own_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a file of our own: what a run leaves is a policy, and they are those of its world model."""
    return {key.removeprefix("world_model."): tensor for key, tensor in weights.items()}


def make_mineworld(config: MineWorldConfig, weights: str | Path | None = None) -> MineWorld:
    """A MineWorld of given sizes, fresh or with published weights.

    Args:
        config: sizes.
        weights: a published checkpoint (``.ckpt`` or ``.safetensors``); None leaves the model untrained.

    Raises:
        ValueError: if the weights do not fit the sizes.
    """
    if weights is None:
        return MineWorld(config)
    return read_foreign(weights, mineworld_weights, lambda _: MineWorld(config))


def make_nfd(config: NFDConfig, weights: str | Path | None = None) -> NFD:
    """An NFD of given sizes, fresh or with published weights.

    Args:
        config: sizes; :func:`nfd_config` reads most of them off the weights.
        weights: a checkpoint with the parameter names of LIVE (``.ckpt`` or ``.safetensors``); None leaves the model
            untrained.

    Raises:
        ValueError: if the weights do not fit the sizes.
    """
    if weights is None:
        return NFD(config)
    return read_foreign(weights, nfd_weights, lambda _: NFD(config))


def make_oasis(config: OasisConfig, weights: str | Path | None = None) -> Oasis:
    """An Oasis of given sizes, fresh or with published weights.

    Args:
        config: sizes; :func:`oasis_config` reads most of them off the weights.
        weights: ``oasis500m.safetensors`` or ``.pt``; None leaves the model untrained.

    Raises:
        ValueError: if the weights do not fit the sizes.
    """
    if weights is None:
        return Oasis(config)
    return read_foreign(weights, oasis_weights, lambda _: Oasis(config))


def mineworld_weights(state_dict: Mapping[str, Tensor], beside: Sequence[str] = ("tokenizer.",)) -> dict[str, Tensor]:
    """The transformer's part of a checkpoint of MineWorld, under its own names.

    Args:
        state_dict: Of the file.
        beside: What else may be in it: MineWorld's files hold the tokenizer, too.

    Raises:
        ValueError: if there is no such transformer, or something else beside it.
    """
    return part_of(state_dict, _MINEWORLD_LANDMARK, ("transformer.",), beside)


def mineworld_config(weights: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> MineWorldConfig:
    """Sizes of the transformer whose weights these are.

    Args:
        weights: as from :func:`mineworld_weights`.
        config: fields of transformers' ``LlamaConfig``, and ``num_codes``, which go before what the weights tell.
            Unknown fields are left out with a warning.

    Raises:
        ValueError: if a field asks for an architecture other than this one.
    """
    vocab_size, hidden_size = weights[_MINEWORLD_LANDMARK].shape
    layer = "transformer.model.layers.0"
    sizes = {
        "num_codes": vocab_size - _NUM_WORD_IDS,
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": weights[f"{layer}.mlp.gate_proj.weight"].shape[0],
        "num_hidden_layers": num_blocks(weights, "transformer.model.layers"),
        "num_attention_heads": hidden_size // _HEAD_DIM,
        "num_key_value_heads": weights[f"{layer}.self_attn.k_proj.weight"].shape[0] // _HEAD_DIM,
    }
    given = dict(config or {})
    for key, value in _FIXED_FIELDS.items():
        if given.pop(key, value) != value:
            raise ValueError(f"MineWorld has {key}={value!r} only, the config asks for {(config or {})[key]!r}")
    known = {field.name for field in fields(MineWorldConfig)}
    unknown = sorted(given.keys() - known)
    if unknown:
        warnings.warn(f"fields without a meaning here are left out: {', '.join(unknown)}", stacklevel=2)
    return MineWorldConfig(**{**sizes, **{key: value for key, value in given.items() if key in known}})


# In files of NFD's family: what may stand beside the transformer, and what is not a weight.
_NFD_TOKENIZER = "tokenizer."
_NFD_MASK = ".attn_mask_"


def nfd_weights(state_dict: Mapping[str, Tensor], beside: Sequence[str] = (_NFD_TOKENIZER,)) -> dict[str, Tensor]:
    """The transformer's part of a checkpoint of NFD's family, under its own names.

    Training files put ``model.`` before them, and hold the tokenizer and attention masks besides. These two are left
    out; see `part_of` for the rest.

    Args:
        state_dict: Of the file.
        beside: What else may be in it.

    Raises:
        ValueError: if there is no such transformer, or something that is neither.
    """
    without_masks = {key: tensor for key, tensor in state_dict.items() if _NFD_MASK not in f".{key}"}
    roots = ("x_embedder.", "t_embedder.", "c_embedder.", "cond_embedder.", "blocks.", "final_layer.")
    return part_of(without_masks, _NFD_LANDMARK, roots, beside)


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
    hidden_size, num_channels, _, patch_size, _ = weights["x_embedder.proj.weight"].shape
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
        "num_layers": num_blocks(weights, "blocks"),
        "num_heads": hidden_size // _HEAD_DIM,
        "intermediate_size": weights["blocks.0.feed_forward.w1.weight"].shape[0],
        "action_dim": weights[found[0]].shape[1],
        "action_embedding": embeddings[found[0]],
    }
    return config_of(NFDConfig, {**sizes, **settings})


# Every attention of Oasis holds the frequencies of its kind; some files name them once, some everywhere.
_OASIS_FREQUENCIES = {"s_attn.rotary_emb.freqs": "spatial", "t_attn.rotary_emb.freqs": "temporal"}


def oasis_weights(state_dict: Mapping[str, Tensor], beside: Sequence[str] = ()) -> dict[str, Tensor]:
    """The transformer's part of a checkpoint of open-oasis, under its own names.

    Args:
        state_dict: Of the file.
        beside: What else may be in it.

    Raises:
        ValueError: if there is no such transformer, something else beside it, or attentions differ in their
            frequencies.
    """
    roots = ("x_embedder.", "t_embedder.", "spatial_rotary_emb.", "temporal_rotary_emb.", "external_cond.", "blocks.")
    found = part_of(state_dict, _OASIS_LANDMARK, (*roots, "final_layer."), beside)
    weights: dict[str, Tensor] = {}
    for key, tensor in found.items():
        axis = next((axis for end, axis in _OASIS_FREQUENCIES.items() if key.endswith(end)), None)
        name = key if axis is None else f"{axis}_rotary_emb.freqs"
        if not torch.equal(weights.setdefault(name, tensor), tensor):
            raise ValueError(f"{key} differs from other {axis} frequencies: this model has one set for all attentions")
    return weights


def oasis_config(
    weights: Mapping[str, Tensor], latent_size: tuple[int, int] = (18, 32), **settings: Any
) -> OasisConfig:
    """Sizes of the transformer whose weights these are.

    Args:
        weights: as from :func:`oasis_weights`.
        latent_size: (h, w) of a frame's latent, which no weight tells.
        **settings: further keywords of `OasisConfig` that no weight tells, such as ``max_frames``.
    """
    hidden_size, num_channels, patch_size, _ = weights["x_embedder.proj.weight"].shape
    sizes = {
        "latent_shape": (num_channels, *latent_size),
        "patch_size": patch_size,
        "hidden_size": hidden_size,
        "num_layers": num_blocks(weights, "blocks"),
        "num_heads": hidden_size // (2 * len(weights["temporal_rotary_emb.freqs"])),
        "intermediate_size": weights["blocks.0.s_mlp.fc1.weight"].shape[0],
        "action_dim": weights["external_cond.weight"].shape[1],
    }
    return config_of(OasisConfig, {**sizes, **settings})


_UNTOLD_OF_LATENTS = ("latent_shape", "max_frames", "num_heads")  # of the first height and width
_READER = "rlir_agents.world_models.load_world_model('{path}')"

WORLD_MODEL_KINDS: tuple[PublishedKind[MineWorld | NFD | Oasis], ...] = (
    PublishedKind(
        "MineWorld's transformer",
        _MINEWORLD_LANDMARK,
        mineworld_weights,
        lambda weights, **fields: MineWorld(mineworld_config(weights, fields)),
        _READER,
        untold=("num_codes", "num_attention_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta"),
    ),
    PublishedKind(
        "a world model of NFD's family",
        _NFD_LANDMARK,
        nfd_weights,
        lambda weights, **sizes: NFD(nfd_config(weights, **sizes)),
        _READER,
        untold=_UNTOLD_OF_LATENTS,
    ),
    PublishedKind(
        "Oasis' transformer",
        _OASIS_LANDMARK,
        oasis_weights,
        lambda weights, **sizes: Oasis(oasis_config(weights, **sizes)),
        _READER,
        untold=_UNTOLD_OF_LATENTS,
    ),
)
