"""The tokenizer in a file of others, whichever it is."""

from __future__ import annotations

from pathlib import Path

from rlir_env.checkpoints import PublishedKind, read_published
from rlir_env.tokenizers.base import Tokenizer
from rlir_env.tokenizers.kl import KL_LANDMARK, KLConfig, KLTokenizer, kl_weights
from rlir_env.tokenizers.vit import VIT_LANDMARK, ViTConfig, ViTTokenizer, vit_weights
from rlir_env.tokenizers.vq import VQ_LANDMARK, VQConfig, VQTokenizer, vq_weights

TOKENIZER_KINDS: tuple[PublishedKind[Tokenizer], ...] = (
    PublishedKind(
        "MineWorld's VQ tokenizer",
        VQ_LANDMARK,
        vq_weights,
        lambda weights, **sizes: VQTokenizer(VQConfig.from_weights(weights, **sizes)),
        "rlir_env.tokenizers.VQTokenizer.from_pretrained('config.json', '{path}')",
        untold=("frame_size", "norm_num_groups"),
    ),
    PublishedKind(
        "a KL tokenizer of latent diffusion",
        KL_LANDMARK,
        kl_weights,
        lambda weights, **sizes: KLTokenizer(KLConfig.from_weights(weights, **sizes)),
        "rlir_env.tokenizers.KLTokenizer.from_pretrained('{path}')",
        untold=("frame_size", "norm_num_groups", "scale_factor"),
    ),
    PublishedKind(
        "Oasis' ViT tokenizer",
        VIT_LANDMARK,
        vit_weights,
        lambda weights, **sizes: ViTTokenizer(ViTConfig.from_weights(weights, **sizes)),
        "rlir_env.tokenizers.ViTTokenizer.from_pretrained('{path}')",
        untold=("frame_size", "enc_heads", "dec_heads", "scale_factor"),
    ),
)


def load_tokenizer(path: str | Path, frame_size: tuple[int, int]) -> Tokenizer:
    """MineWorld's VQ tokenizer, the KL tokenizer of NFD's family, or Oasis' ViT tokenizer, in float32.

    Args:
        path: A file of its own, or a checkpoint of a world model that holds it, too.
        frame_size: (H, W), which no weight tells.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is none of them in the file, or its weights do not fit.
    """
    return read_published(path, TOKENIZER_KINDS, "tokenizer", frame_size=frame_size)
