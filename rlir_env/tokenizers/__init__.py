"""Tokenizers: frames to codes, ids or continuous latents, and back; frozen during RL."""

from rlir_env.tokenizers.base import Tokenizer
from rlir_env.tokenizers.codebook import CodebookUpdater, code_perplexity
from rlir_env.tokenizers.kl import KLConfig, KLOutput, KLTokenizer, Moments
from rlir_env.tokenizers.vq import VQConfig, VQOutput, VQTokenizer

__all__ = [
    "CodebookUpdater",
    "KLConfig",
    "KLOutput",
    "KLTokenizer",
    "Moments",
    "Tokenizer",
    "VQConfig",
    "VQOutput",
    "VQTokenizer",
    "code_perplexity",
]
