"""The reader that a command is told to use: VPT's published files, or one that ships with a world."""

from __future__ import annotations

from rlir_agents.commands.composition import Config
from rlir_agents.hardware import choose_device
from rlir_env.assets import asset_folder, read_idm
from rlir_env.inverse_dynamics import VPTInverseDynamics


def chosen_reader(config: Config, shipped: str) -> VPTInverseDynamics:
    """Read the IDM that ``idm.model`` and ``idm.weights`` name, or else one of ``world.name``.

    Args:
        config: with ``idm``, ``world`` and ``device``.
        shipped: ``"coach"``, or ``"judge"`` for final figures.

    Raises:
        ValueError: if only one of the two files is named, or one cannot be read.
    """
    files = config["idm"]
    if (files["model"] is None) != (files["weights"] is None):
        raise ValueError(f"idm: give both idm.model and idm.weights, or neither for the {shipped} of world.name")
    device, world = choose_device(config["device"]), config["world"]["name"]
    if files["model"] is not None:
        return VPTInverseDynamics.from_files(files["model"], files["weights"]).to(device)
    idm = read_idm(asset_folder(world).model_file(shipped))
    if not isinstance(idm, VPTInverseDynamics):
        raise ValueError(f"the {shipped} of {world} is a {type(idm).__name__}, a VPTInverseDynamics is needed")
    return idm.to(device)
