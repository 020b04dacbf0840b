"""RLIR's environment: everything that is frozen. ``import rlir_env`` registers the Gymnasium ids.

The agent is the world model, which samples a video piece by piece; what the player pressed is part
of the observation. Everything that learns is in ``rlir_agents``. This import is light: torch and
the networks are loaded by the submodules that need them.
"""

from gymnasium.envs.registration import register, registry

MINEWORLD_ID = "RLIR-MineWorld-v0"
NFD_ID = "RLIR-NFD-v0"

# Gymnasium has no plug-in entry points: the ids exist after this import, or as
# "rlir_env:RLIR-MineWorld-v0".
for _id, _paradigm in ((MINEWORLD_ID, "autoregressive"), (NFD_ID, "diffusion")):
    if _id not in registry:
        register(
            id=_id,
            entry_point="rlir_env.gym:make_env",
            vector_entry_point="rlir_env.gym:make_vector_env",
            kwargs={"paradigm": _paradigm},
        )

__all__ = ["MINEWORLD_ID", "NFD_ID"]
