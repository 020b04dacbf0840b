"""Tokenizers: frames to discrete codes and back, frozen during RL."""

from rlir_env.tokenizers.base import Tokenizer
from rlir_env.tokenizers.codebook import CodebookUpdater, code_perplexity
from rlir_env.tokenizers.vq import VQConfig, VQOutput, VQTokenizer

__all__ = ["CodebookUpdater", "Tokenizer", "VQConfig", "VQOutput", "VQTokenizer", "code_perplexity"]
