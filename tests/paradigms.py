"""Both paradigms of the identity world, so that one test serves tokens and latents.

Two pieces make a frame in both, tokens or denoising steps, and three frames are generated: an episode has six pieces.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium
import torch
from torch import Tensor

import rlir_env
from rlir_env.envs import VideoGenerationEnv
from rlir_env.testing import IdentityLatents, identity_world, right_codes

WORLD = identity_world()


@dataclass(frozen=True)
class Paradigm:
    """What differs.

    Attributes:
        id: Of Gymnasium.
        granularity: Keyword for the pieces of a step.
        video: Key of the video as it is made, whose last entry is the last piece.
        core: Makes the env.
        pieces: Actions ``[..., 2, ...]`` that paint frames ``[..., 3, H, W]``, piece by piece.
        settings: Of ``gymnasium.make``.
    """

    id: str
    granularity: str
    video: str
    core: Callable[..., VideoGenerationEnv]
    pieces: Callable[[Tensor], Tensor]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def keywords(self) -> dict[str, Any]:
        return {"world": "identity", **self.settings}

    @property
    def frame(self) -> dict[str, str]:
        """A frame a step."""
        return {self.granularity: "frame"}

    def make(self, **keywords: Any) -> gymnasium.Env:
        return gymnasium.make(self.id, **self.keywords, **keywords)

    def make_vec(self, num_envs: int, **keywords: Any) -> gymnasium.vector.VectorEnv:
        return gymnasium.make_vec(self.id, num_envs=num_envs, **self.keywords, **keywords)


def frames_that_show(game_action: Tensor) -> Tensor:
    """Frames ``[..., 3, H, W]`` from which the coach reads game actions ``[..., S]``."""
    return WORLD.tokenizer.decode(right_codes(game_action, WORLD.tokenizer))


def _latents_of_steps(frames: Tensor) -> Tensor:
    """What a frame's two denoising steps lead to: grey, then the frame."""
    latent = IdentityLatents(WORLD.tokenizer).encode(frames)
    return torch.stack([torch.zeros_like(latent), latent], dim=-4)


AUTOREGRESSIVE = Paradigm(rlir_env.MINEWORLD_ID, "tokens_per_step", "token", WORLD.env, WORLD.tokenizer.encode)
DIFFUSION = Paradigm(
    rlir_env.NFD_ID,
    "steps_per_action",
    "latent",
    partial(WORLD.denoising_env, num_denoising_steps=2),
    _latents_of_steps,
    {"num_denoising_steps": 2},
)
PARADIGMS = {"autoregressive": AUTOREGRESSIVE, "diffusion": DIFFUSION}
