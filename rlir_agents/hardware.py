"""What the machine offers: the device to run on, and the precision that is fast there."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn


def choose_device(name: str = "auto") -> torch.device:
    """The named device; ``"auto"`` takes the GPU where there is one.

    Raises:
        ValueError: if there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"{device.type} is not supported")
    except (RuntimeError, AssertionError) as error:  # the latter: torch was built without CUDA
        raise ValueError(f"device={name!r}: use auto, cpu or cuda ({str(error).splitlines()[0]})") from error
    return device


def default_autocast_dtype(device: torch.device | str) -> torch.dtype | None:
    """bfloat16 where the hardware multiplies it, else None for the weights' own precision.

    A CPU needs AVX512-BF16 (measured: four times float32); without it bfloat16 is emulated, and slower.
    """
    if torch.device(device).type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if has_bf16 else None


def choose_autocast_dtype(name: str, device: torch.device | str) -> torch.dtype | None:
    """The precision named in a config.

    Args:
        name: ``"auto"``, ``"bfloat16"``, or ``"float32"`` for none. (float16 would need its losses scaled.)
        device: where networks run.

    Raises:
        ValueError: if the name is none of these.
    """
    if name == "auto":
        return default_autocast_dtype(device)
    choices = {"bfloat16": torch.bfloat16, "float32": None}
    if name not in choices:
        raise ValueError(f"autocast={name!r}: use auto, {', '.join(choices)}")
    return choices[name]


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Autocast to ``dtype``; None leaves the caller's setting as it is (and does not switch it off)."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are."""
    return next(module.parameters()).device
