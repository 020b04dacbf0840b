"""What a command runs on, as its keys `device`, `autocast` and `num_threads` say."""

from __future__ import annotations

from typing import Any

import torch

from rlir_agents.commands.composition import Config
from rlir_agents.hardware import choose_autocast_dtype, choose_device


def set_up_machine(config: Config) -> dict[str, Any]:
    """Take as many threads as asked for, and say where and in which precision networks run.

    Returns:
        ``device`` and ``autocast_dtype``.

    Raises:
        ValueError: if there is no such device or precision.
    """
    num_threads = config["num_threads"]
    if num_threads is not None:
        if type(num_threads) is not int or num_threads < 1:
            raise ValueError(f"num_threads={num_threads!r}: give at least 1, or null for all cores")
        torch.set_num_threads(num_threads)
    device = choose_device(config["device"])
    return {"device": device, "autocast_dtype": choose_autocast_dtype(config["autocast"], device)}
