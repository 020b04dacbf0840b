"""Which precision a network inside a policy runs in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Autocast to ``dtype``; None leaves the caller's setting as it is (and does not switch it off)."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
