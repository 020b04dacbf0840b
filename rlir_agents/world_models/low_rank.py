"""Low-rank adaptation (LoRA, Hu et al. 2021, arXiv 2106.09685): a model learns by small factors beside frozen weights.

A weight W is read as ``W + alpha / rank * up down``. This is a parametrization of torch's, because world models here
read weights where they need them, stacked for one product or copied for decoding; wrappers around the call of a layer,
as peft has, would go unnoticed. What is left after training is a plain model again.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

TARGETS = frozenset(
    {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),  # MineWorld
        *("wqkv", "wo", "w1", "w2", "w3"),  # NFD
        *("to_qkv", "to_out", "fc1", "fc2"),  # Oasis
    }
)
"""Layers that are adapted, by the last part of their names: all products of attention and of the perceptrons."""


class LowRank(nn.Module):
    """Adds a product of two factors to a weight ``[out, in]``; at first it is zero.

    Attributes:
        down: ``[rank, in]``, random.
        up: ``[out, rank]``, zero.
        scale: ``alpha / rank``.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        """Make factors for a weight."""
        super().__init__()
        num_out, num_in = weight.shape
        self.down = nn.Parameter(weight.new_empty(rank, num_in))
        self.up = nn.Parameter(weight.new_zeros(num_out, rank))
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight, in the precision of the frozen one whatever autocast says: a sum of unequal sizes."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self.scale * (self.up @ self.down)


def add_low_rank(model: nn.Module, rank: int, alpha: float) -> None:
    """Freeze a model and give its layers factors that learn, from torch's global generator.

    Args:
        model: Is changed in place.
        rank: Of the factors.
        alpha: The product is multiplied by ``alpha / rank``, so that a rate suits every rank.

    Raises:
        ValueError: if the rank is not positive, or no layer has one of the names in `TARGETS`.
    """
    if rank < 1:
        raise ValueError(f"lora.rank={rank}: give at least 1, or 0 to train all weights")
    model.requires_grad_(False)
    layers = [layer for name, layer in model.named_modules() if name.rpartition(".")[2] in TARGETS]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layer to adapt; known are {', '.join(sorted(TARGETS))}")
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, alpha))


def merge_low_rank(module: nn.Module) -> None:
    """Make plain weights of adapted ones; a module without any stays as it is, one that was copied ends its copies."""
    for layer in list(module.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight")


def merged_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The state dict that a module has after :func:`merge_low_rank`, which is not done."""
    state_dict = {key: value for key, value in module.state_dict().items() if ".parametrizations." not in key}
    for name, layer in module.named_modules():
        if parametrize.is_parametrized(layer, "weight"):
            state_dict[f"{name}.weight"] = layer.weight.detach()
    return state_dict
