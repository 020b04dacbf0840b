"""Which way attention takes: plain products in blocks, which suit a CPU's caches, or torch's fused kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

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
