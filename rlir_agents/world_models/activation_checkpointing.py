"""Activations of layers kept for the backward pass, or made again in it: memory against time.

A layer then keeps its input alone. Numbers do not change: it runs twice on the same inputs, in the same precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def run_layer(layer: Callable[..., Tensor], is_checkpointed: bool, *inputs: Any) -> Tensor:
    """Run a layer, or any function of tensors.

    Args:
        layer: Without randomness, so that the second run is the first.
        is_checkpointed: Make its activations again in the backward pass.
        *inputs: Of the layer.
    """
    if is_checkpointed and torch.is_grad_enabled():
        output: Tensor = checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
        return output
    return layer(*inputs)
