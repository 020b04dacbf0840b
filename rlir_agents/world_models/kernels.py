"""How products are made: attention in blocks that suit a CPU's caches or by torch's fused kernels, and their dtype."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_is_as_on_gpu: ContextVar[bool] = ContextVar("is_as_on_gpu", default=False)


def suits_cpu(tensor: Tensor) -> bool:
    """Whether what is computed with this tensor is to be cut into blocks for a CPU's caches."""
    return tensor.device.type == "cpu" and not _is_as_on_gpu.get()


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Take a GPU's way on a CPU, too: for an account of what a GPU would do."""
    token = _is_as_on_gpu.set(True)
    try:
        yield
    finally:
        _is_as_on_gpu.reset(token)


def product_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of matrix products with a tensor: that of autocast where it is on, else the tensor's own."""
    device_type = tensor.device.type
    is_autocast = torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if is_autocast else tensor.dtype
