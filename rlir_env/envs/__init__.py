"""Video generation as TorchRL environments: the world model is the agent."""

from rlir_env.envs.base import VideoGenerationEnv
from rlir_env.envs.denoising import DenoisingEnv
from rlir_env.envs.prompt_order import PromptOrder
from rlir_env.envs.token import TokenGenerationEnv

__all__ = ["DenoisingEnv", "PromptOrder", "TokenGenerationEnv", "VideoGenerationEnv"]
