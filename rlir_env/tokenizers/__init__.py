"""Tokenizers: frames to codes, ids or continuous latents, and back; frozen during RL."""

from rlir_env.tokenizers.base import Tokenizer
from rlir_env.tokenizers.codebook import CodebookUpdater, code_perplexity
from rlir_env.tokenizers.kl import KLConfig, KLTokenizer
from rlir_env.tokenizers.latent import KLOutput, LatentTokenizer, Moments
from rlir_env.tokenizers.loading import load_tokenizer
from rlir_env.tokenizers.vit import ViTConfig, ViTTokenizer
from rlir_env.tokenizers.vq import VQConfig, VQOutput, VQTokenizer

__all__ = [
    "CodebookUpdater",
    "KLConfig",
    "KLOutput",
    "KLTokenizer",
    "LatentTokenizer",
    "Moments",
    "Tokenizer",
    "VQConfig",
    "VQOutput",
    "VQTokenizer",
    "ViTConfig",
    "ViTTokenizer",
    "code_perplexity",
    "load_tokenizer",
]
