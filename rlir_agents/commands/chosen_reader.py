"""The reader that a command is told to use: VPT's published files, or one that ships with a world."""

from __future__ import annotations

import torch

from rlir_agents.commands.composition import Config
from rlir_env.assets import asset_folder, published_idm, read_idm
from rlir_env.inverse_dynamics import VPTInverseDynamics


def chosen_reader(config: Config, device: torch.device, shipped: str) -> VPTInverseDynamics:
    """Read the IDM that ``idm=PATH`` names, or else one of ``world.name``.

    Args:
        config: with ``files`` and ``world``.
        device: that it runs on.
        shipped: ``"coach"``, or ``"judge"`` for final figures.

    Raises:
        ValueError: if a file cannot be read.
    """
    world = config["world"]["name"]
    if config["files"]["idm"] is not None:
        return published_idm(config["files"]["idm"]).to(device)
    idm = read_idm(asset_folder(world).model_file(shipped))
    if not isinstance(idm, VPTInverseDynamics):
        raise ValueError(f"the {shipped} of {world} is a {type(idm).__name__}, a VPTInverseDynamics is needed")
    return idm.to(device)
