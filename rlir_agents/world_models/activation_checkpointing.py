"""Activations of layers kept for the backward pass, or made again in it: memory against time.

A layer then keeps its input alone. Numbers do not change: it runs twice on the same inputs, in the same precision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_layer(layer: nn.Module, is_checkpointed: bool, x: Tensor, *others: Any) -> Tensor:
    """Run a layer.

    Args:
        layer: Without randomness, so that the second run is the first.
        is_checkpointed: Make its activations again in the backward pass.
        x: What it transforms.
        *others: Further inputs.
    """
    if is_checkpointed and torch.is_grad_enabled():
        result: Tensor = checkpoint(layer, x, *others, use_reentrant=False, preserve_rng_state=False)
        return result
    output: Tensor = layer(x, *others)
    return output
