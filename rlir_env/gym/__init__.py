"""The Gymnasium face of video generation: ``gymnasium.make("RLIR-MineWorld-v0")``.

Thin adapters around the TorchRL core: :class:`TokenGymEnv` for one episode,
:class:`TokenGymVectorEnv` for many. TorchRL's own ``register_gym`` is *not* used, its envs fail
Gymnasium's checker. All keyword arguments of ``make`` are JSON-able names and numbers, so that an
env can be written down.
"""

from rlir_env.gym.entry_points import World, make_core, make_token_env, make_token_vector_env
from rlir_env.gym.token_env import TokenGymEnv
from rlir_env.gym.token_vector_env import TokenGymVectorEnv

__all__ = [
    "TokenGymEnv",
    "TokenGymVectorEnv",
    "World",
    "make_core",
    "make_token_env",
    "make_token_vector_env",
]
