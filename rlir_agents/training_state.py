"""What a run must remember to go on exactly: weights and random numbers, as plain dicts of tensors.

The counters that complete the state (iteration, prompts drawn) are the trainer's; how it gets onto
the disk is in ``rlir_agents/checkpoint_folder.py``.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn


def modules_state(policy: nn.Module, loss: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    """Weights of everything that learns, each stored once.

    Args:
        policy: stored whole.
        loss: stored without what it shares with the policy; what remains is its critic and buffers.

    Returns:
        ``{"policy": ..., "loss": ...}``.
    """
    shared = {entry.data_ptr() for entry in policy.state_dict().values() if entry.numel()}
    of_loss = {
        key: entry
        for key, entry in loss.state_dict().items()
        if isinstance(entry, torch.Tensor) and entry.data_ptr() not in shared
    }
    return {"policy": policy.state_dict(), "loss": of_loss}


def load_modules_state(policy: nn.Module, loss: nn.Module, state: dict[str, dict[str, torch.Tensor]]) -> None:
    """Load what `modules_state` gave, strictly: every key accounted for.

    Raises:
        RuntimeError: from torch, naming keys that are missing, unexpected or of another shape.
    """
    policy.load_state_dict(state["policy"])
    loss.load_state_dict({**loss.state_dict(), **state["loss"]})


def random_state() -> dict[str, Any]:
    """States of the global random generators of python, numpy and torch (with CUDA, if in use).

    Our own code draws from seeds that it is handed; this covers code that does not.
    """
    of_numpy = np.random.get_state()
    assert isinstance(of_numpy, tuple)  # a dict only if asked for
    algorithm, keys, position, has_gauss, cached_gaussian = of_numpy
    return {
        "python": random.getstate(),
        "numpy": [algorithm, torch.from_numpy(keys.copy()), position, has_gauss, cached_gaussian],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Set what `random_state` gave."""
    version, internal, next_gaussian = state["python"]
    random.setstate((version, tuple(internal), next_gaussian))
    algorithm, keys, *rest = state["numpy"]
    np.random.set_state((algorithm, keys.numpy(), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
