"""Whether a model still has the weights that a cache was read with."""

from __future__ import annotations

from torch import nn


def weights_version(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Changes whenever a weight is replaced or written in place, as an optimiser does."""
    return tuple((id(weight), weight._version) for weight in module.parameters())
