"""The reader that a command is told to use: VPT's published files, or one that ships with a world."""

from __future__ import annotations

from rlir_agents.commands.composition import Config
from rlir_agents.hardware import choose_device
from rlir_env.assets import asset_folder, published_idm, read_idm
from rlir_env.inverse_dynamics import VPTInverseDynamics


def chosen_reader(config: Config, shipped: str) -> VPTInverseDynamics:
    """Read the IDM that ``idm=PATH`` names, or else one of ``world.name``.

    Args:
        config: with ``files``, ``world`` and ``device``.
        shipped: ``"coach"``, or ``"judge"`` for final figures.

    Raises:
        ValueError: if a file cannot be read.
    """
    device, world = choose_device(config["device"]), config["world"]["name"]
    if config["files"]["idm"] is not None:
        return published_idm(config["files"]["idm"]).to(device)
    idm = read_idm(asset_folder(world).model_file(shipped))
    if not isinstance(idm, VPTInverseDynamics):
        raise ValueError(f"the {shipped} of {world} is a {type(idm).__name__}, a VPTInverseDynamics is needed")
    return idm.to(device)
