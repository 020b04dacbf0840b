"""The tokenizer in a file of others, whichever it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from rlir_env.checkpoints import filled, load_foreign
from rlir_env.tokenizers.base import Tokenizer
from rlir_env.tokenizers.kl import KLConfig, KLTokenizer, kl_weights
from rlir_env.tokenizers.vit import ViTConfig, ViTTokenizer, vit_weights
from rlir_env.tokenizers.vq import VQConfig, VQTokenizer, vq_weights

_ANYTHING = ("",)  # beside the tokenizer: its world model

Build = Callable[[Mapping[str, Tensor], tuple[int, int]], Tokenizer]

_KINDS: dict[Callable[..., dict[str, Tensor]], Build] = {
    vq_weights: lambda weights, size: VQTokenizer(VQConfig.from_weights(weights, frame_size=size)),
    kl_weights: lambda weights, size: KLTokenizer(KLConfig.from_weights(weights, frame_size=size)),
    vit_weights: lambda weights, size: ViTTokenizer(ViTConfig.from_weights(weights, frame_size=size)),
}


def load_tokenizer(path: str | Path, frame_size: tuple[int, int]) -> Tokenizer:
    """MineWorld's VQ tokenizer, the KL tokenizer of NFD's family, or Oasis' ViT tokenizer, in float32.

    Args:
        path: A file of its own, or a checkpoint of a world model that holds it, too.
        frame_size: (H, W), which no weight tells.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is none of them in the file, or its weights do not fit.
    """
    state_dict = load_foreign(path)
    for select, build in _KINDS.items():
        try:
            weights = select(state_dict, beside=_ANYTHING)
        except ValueError:  # another kind
            continue
        return filled(partial(build, weights, frame_size), weights)
    raise ValueError(f"{path} holds no tokenizer that is known here: `rlir inspect {path}` says what it holds")
