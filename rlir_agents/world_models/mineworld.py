"""MineWorld (paper, section 4.2, Eq. 4): a Llama that continues ``image, action word, image, ...`` token by token.

Parameter names, shapes and arithmetic are the published ones, so that its checkpoints load strictly; the tokenizer
that those files also hold lives in `rlir_env.tokenizers`. Sampling is *not* here, nor anything of RL.

Letters: B rows, L sequence length, n positions, h hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlir_agents.world_models.activation_checkpointing import run_layer
from rlir_agents.world_models.base import DecodingWeights, TokenWorldModel
from rlir_agents.world_models.cpu_cache import new_cache
from rlir_agents.world_models.kernels import product_dtype
from rlir_agents.world_models.kv_cache import KVCache
from rlir_agents.world_models.layers import (
    Attend,
    LayerWeights,
    Rotary,
    causal_attention,
    layer_forward,
    rms_norm,
    rotary_table,
)
from rlir_agents.world_models.positioned_cache import PositionedCache
from rlir_env.sizes import settle_sizes


@dataclass(frozen=True)
class MineWorldConfig:
    """Sizes, under the names of transformers' ``LlamaConfig``; the defaults are the published 300M model's.

    Attributes:
        num_codes: Visual codes; ids from there to ``vocab_size`` belong to action words.
        vocab_size: All ids.
        hidden_size: h.
        intermediate_size: Width of the SwiGLU.
        num_hidden_layers: Layers.
        num_attention_heads: Query heads; a head has ``hidden_size / num_attention_heads`` dimensions.
        num_key_value_heads: Key/value heads, each read by several query heads. Decoding reads the cache once a token,
            so fewer of them make rollouts faster almost in proportion.
        max_position_embeddings: Longest sequence.
        rope_theta: Base of the rotary angles.
        rms_norm_eps: Of the norms.
        initializer_range: Standard deviation of fresh weights (the published training's is not known).
    """

    num_codes: int = 8192
    vocab_size: int = 8262
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 20
    num_attention_heads: int = 16
    num_key_value_heads: int = 4
    max_position_embeddings: int = 5552
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        settle_sizes(self, may_be_zero=("rms_norm_eps", "initializer_range"))
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size={self.hidden_size} must be {self.num_attention_heads} heads of an even dimension"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.vocab_size < self.num_codes:
            raise ValueError(f"vocab_size={self.vocab_size} must hold num_codes={self.num_codes} and the words")

    @property
    def head_dim(self) -> int:
        """Dimensions of a head."""
        return self.hidden_size // self.num_attention_heads


class MineWorld(TokenWorldModel):
    """The transformer of MineWorld.

    Under autocast matrix products and attention run in the autocast dtype, norms and the residual stream in float32.

    Example:
        >>> config = MineWorldConfig(num_codes=8, vocab_size=12, hidden_size=16, intermediate_size=32,
        ...     num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32)
        >>> MineWorld(config)(torch.zeros(3, 20, dtype=torch.long), positions=torch.tensor([5, 19])).shape
        torch.Size([3, 2, 12])
    """

    def __init__(self, config: MineWorldConfig) -> None:
        """Make a freshly initialised model; weights come from torch's global generator."""
        super().__init__()
        self.config = config
        self.num_codes, self.vocab_size = config.num_codes, config.vocab_size
        self.hidden_size, self.max_length = config.hidden_size, config.max_position_embeddings
        self.transformer = _Llama(config)
        self.apply(self._initialize)

    def hidden(self, token: Tensor, attend: Attend = causal_attention) -> Tensor:
        """Final hidden states ``[B, L, h]``; see the base class.

        Args:
            token: Ids ``[B, L]``.
            attend: What a place sees; up to itself, unless tokens were not read in order (`diagonal_decoding`).
        """
        _check_length(token.shape[1], self.max_length)
        config, trunk = self.config, self.transformer.model
        rotary = rotary_table(token.shape[1], config.head_dim, config.rope_theta, token.device)
        x = trunk.embed_tokens(token.long())
        for layer in trunk.layers:
            x = run_layer(layer, self.checkpoints_activations, x, rotary, attend)
        return rms_norm(x, trunk.norm.weight, config.rms_norm_eps).to(product_dtype(x))

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores ``[..., V]``; see the base class."""
        return self.transformer.lm_head(hidden)

    def decoding_weights(self, dtype: torch.dtype) -> MineWorldDecoding:
        """A frozen copy of the weights; see the base class."""
        return MineWorldDecoding(self, dtype)

    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)


class MineWorldDecoding(DecodingWeights):
    """The weights, cast and stacked once: a step of a small model is bound by overhead, not by arithmetic."""

    @torch.no_grad()
    def __init__(self, model: MineWorld, dtype: torch.dtype) -> None:
        """Copy the weights; matrices in ``dtype``, the embedding and the norms as they are."""
        trunk = model.transformer.model
        self.config = model.config
        self.dtype = dtype
        self.device = trunk.embed_tokens.weight.device
        self.embedding = trunk.embed_tokens.weight.detach().clone()
        self.layers = [_cast(cast(_Layer, layer).weights(), dtype) for layer in trunk.layers]
        self.norm = trunk.norm.weight.detach().clone()
        # Ids of action words are never sampled: their scores are not even computed.
        self.head = model.transformer.lm_head.weight.detach()[: model.num_codes].to(dtype, copy=True)
        table = rotary_table(model.max_length, model.config.head_dim, model.config.rope_theta, self.device)
        self.rotary = Rotary(*(entry.to(dtype) for entry in table))

    @property
    def cache_key(self) -> Hashable:
        """Sizes, dtype and device; see the base class."""
        return type(self), self.config, self.dtype, self.device

    def new_cache(self, num_rows: int, max_length: int) -> KVCache:
        """An empty cache; see the base class."""
        config = self.config
        shape = (num_rows, config.num_key_value_heads, max_length, config.head_dim)
        return new_cache(config.num_hidden_layers, shape, self.dtype, self.device)

    def new_positioned_cache(self, num_rows: int, max_length: int) -> PositionedCache:
        """An empty cache for tokens that are not read in order."""
        config = self.config
        shape = (num_rows, config.num_key_value_heads, max_length, config.head_dim)
        return PositionedCache(config.num_hidden_layers, shape, self.dtype, self.device)

    @torch.no_grad()
    def feed(self, token: Tensor, cache: KVCache) -> Tensor:
        """Append tokens and score the codes that may follow, ``[B, num_codes]``; see the base class."""
        start, end = cache.length, cache.length + token.shape[1]
        _check_length(end, self.config.max_position_embeddings)
        rotary = Rotary(self.rotary.cos[start:end], self.rotary.sin[start:end])
        return self._logits(self._hidden(token, rotary, [layer.attend for layer in cache.layers])[:, -1])

    @torch.no_grad()
    def feed_at(self, token: Tensor, positions: Tensor, attend: Sequence[Attend], wanted: Sequence[int]) -> Tensor:
        """Read tokens anywhere in a sequence.

        Args:
            token: Ids ``[B, n]``.
            positions: Theirs, long ``[n]``.
            attend: Of every layer; writes keys and values, and decides what is seen.
            wanted: Where logits are wanted, m indices into ``positions``.

        Returns:
            Logits ``[B, m, num_codes]`` of what follows.
        """
        rotary = Rotary(self.rotary.cos[positions], self.rotary.sin[positions])
        return self._logits(self._hidden(token, rotary, attend)[:, list(wanted)])

    def _hidden(self, token: Tensor, rotary: Rotary, attend: Sequence[Attend]) -> Tensor:
        x = F.embedding(token, self.embedding)
        for weights, attend_of_layer in zip(self.layers, attend, strict=True):
            x = layer_forward(x, weights, rotary, attend_of_layer, self.dtype, self.config.rms_norm_eps)
        return x

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(rms_norm(x, self.norm, self.config.rms_norm_eps).to(self.dtype), self.head)


class _Llama(nn.Module):
    """Holds parameters under the published names: ``model.*`` and ``lm_head.weight``."""

    def __init__(self, config: MineWorldConfig) -> None:
        super().__init__()
        self.model = _Trunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


class _Trunk(nn.Module):
    def __init__(self, config: MineWorldConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size)


class _Layer(nn.Module):
    def __init__(self, config: MineWorldConfig) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.input_layernorm = nn.RMSNorm(config.hidden_size)
        self.self_attn = _Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size)
        self.mlp = _MLP(config)

    def forward(self, x: Tensor, rotary: Rotary, attend: Attend) -> Tensor:
        return layer_forward(x, self.weights(), rotary, attend, product_dtype(x), self.eps)

    def weights(self) -> LayerWeights:
        """The parameters, stacked; differentiable."""
        attention, mlp = self.self_attn, self.mlp
        qkv = (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
        return LayerWeights(
            input_norm=self.input_layernorm.weight,
            qkv=torch.cat(qkv),
            out=attention.o_proj.weight,
            post_attention_norm=self.post_attention_layernorm.weight,
            gate_up=torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
            down=mlp.down_proj.weight,
        )


class _Attention(nn.Module):
    def __init__(self, config: MineWorldConfig) -> None:
        super().__init__()
        h, d = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(h, config.num_attention_heads * d, bias=False)
        self.k_proj = nn.Linear(h, config.num_key_value_heads * d, bias=False)
        self.v_proj = nn.Linear(h, config.num_key_value_heads * d, bias=False)
        self.o_proj = nn.Linear(h, h, bias=False)


class _MLP(nn.Module):
    def __init__(self, config: MineWorldConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)


def _cast(weights: LayerWeights, dtype: torch.dtype) -> LayerWeights:
    """A detached copy: matrices in ``dtype``, norms as they are."""
    return LayerWeights(*(w.detach().to(dtype if w.ndim == 2 else w.dtype, copy=True) for w in weights))


def _check_length(length: int, max_length: int) -> None:
    if length > max_length:
        raise ValueError(
            f"a sequence of {length} tokens is longer than max_position_embeddings={max_length}; "
            "use fewer frames or a model made for longer videos"
        )
