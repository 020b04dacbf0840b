"""MineWorld's transformer and its cache as the reference page describes them, one position at a time, at toy size."""

import math

import torch
from torch import Tensor

from rlir_agents.world_models import MineWorld, MineWorldConfig

ROWS, COLUMNS, WORD = 3, 4, 2
K, BLOCK = ROWS * COLUMNS, ROWS * COLUMNS + WORD
NUM_FRAMES = 3  # to be made
CONFIG = MineWorldConfig(
    num_codes=20,
    vocab_size=26,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=BLOCK * (NUM_FRAMES + 1),
    initializer_range=0.4,  # sharp enough that decodings differ
)


class LiteralModel:
    """The transformer and its cache as the reference page describes them, one position at a time."""

    def __init__(self, model: MineWorld) -> None:
        self.weights = {key.removeprefix("transformer."): value for key, value in model.state_dict().items()}
        shape = (CONFIG.num_hidden_layers, CONFIG.max_position_embeddings, CONFIG.num_key_value_heads, CONFIG.head_dim)
        self.keys, self.values = torch.zeros(shape), torch.zeros(shape)
        self.num_calls = 0

    def __call__(self, ids: list[int], positions: list[int]) -> Tensor:
        """Logits over codes after each of the ids; all see one another's keys, and everything up to their place."""
        self.num_calls += 1
        w = self.weights
        x = w["model.embed_tokens.weight"][ids]
        for layer in range(CONFIG.num_hidden_layers):
            name = f"model.layers.{layer}."
            y = self.norm(x, w[name + "input_layernorm.weight"])
            query, key, value = (
                (y @ w[f"{name}self_attn.{part}_proj.weight"].T).unflatten(-1, (-1, CONFIG.head_dim)) for part in "qkv"
            )
            for i, position in enumerate(positions):
                self.keys[layer, position] = self.turn(key[i], position)
                self.values[layer, position] = value[i]
            attended = torch.stack([self.attend(layer, query[i], p) for i, p in enumerate(positions)])
            x = x + attended @ w[name + "self_attn.o_proj.weight"].T
            y = self.norm(x, w[name + "post_attention_layernorm.weight"])
            gate, up = y @ w[name + "mlp.gate_proj.weight"].T, y @ w[name + "mlp.up_proj.weight"].T
            x = x + (gate * gate.sigmoid() * up) @ w[name + "mlp.down_proj.weight"].T
        return (self.norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T)[:, : CONFIG.num_codes]

    def attend(self, layer: int, query: Tensor, position: int) -> Tensor:
        heads = []
        for head, q in enumerate(self.turn(query, position)):
            group = head // (CONFIG.num_attention_heads // CONFIG.num_key_value_heads)
            scores = self.keys[layer, : position + 1, group] @ q / math.sqrt(CONFIG.head_dim)  # zeros where unwritten
            heads.append(scores.softmax(0) @ self.values[layer, : position + 1, group])
        return torch.cat(heads)

    @staticmethod
    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return weight * x / (x.square().mean(-1, keepdim=True) + CONFIG.rms_norm_eps).sqrt()

    @staticmethod
    def turn(heads: Tensor, position: int) -> Tensor:
        half = CONFIG.head_dim // 2
        angle = position * 10000.0 ** (-torch.arange(half) / half)
        first, second = heads[..., :half], heads[..., half:]
        return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1)
