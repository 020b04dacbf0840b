"""The Gymnasium face of video generation: ``RLIR-MineWorld-v0`` (tokens) and ``RLIR-NFD-v0`` (denoising).

Thin adapters around the TorchRL core: :class:`GenerationGymEnv` for one episode,
:class:`GenerationGymVectorEnv` for many. TorchRL's own ``register_gym`` is *not* used, its envs fail
Gymnasium's checker. All keyword arguments of ``make`` are JSON-able names and numbers, so that an
env can be written down.
"""

from rlir_env.gym.entry_points import World, make_core, make_env, make_vector_env
from rlir_env.gym.generation_env import GenerationGymEnv
from rlir_env.gym.generation_vector_env import GenerationGymVectorEnv

__all__ = [
    "GenerationGymEnv",
    "GenerationGymVectorEnv",
    "World",
    "make_core",
    "make_env",
    "make_vector_env",
]
