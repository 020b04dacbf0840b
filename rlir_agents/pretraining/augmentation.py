"""Views of the same gameplay that change pixels but not what was played, for training an inverse dynamics model.

Letters: B clips, F frames, S slots.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rlir_env.game_actions import GameActionSpec


def mirror_frames(frames: Tensor) -> Tensor:
    """Flip frames ``[..., H, W]`` left to right."""
    return frames.flip(-1)


def mirror(frames: Tensor, game_action: Tensor, spec: GameActionSpec) -> tuple[Tensor, Tensor]:
    """Flip clips left to right: who stepped left steps right, and the camera turns the other way.

    Args:
        frames: ``[B, F, 3, H, W]``.
        game_action: long ``[B, F-1, S]``.
        spec: needs the slots ``left_right`` and ``yaw``.

    Returns:
        Both, mirrored.
    """
    mirrored = game_action.clone()
    sideways, yaw = spec.index("left_right"), spec.index("yaw")
    opposite = torch.tensor([0, 2, 1], device=game_action.device)
    mirrored[..., sideways] = opposite[game_action[..., sideways]]
    mirrored[..., yaw] = spec.num_classes[yaw] - 1 - game_action[..., yaw]
    return mirror_frames(frames), mirrored


def jitter(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Change colours and sharpness of whole clips: float ``[B, F, 3, H, W]`` in [0, 1] in and out.

    Gain and offset per clip and channel; a quarter of the clips lose detail by a detour through fewer pixels and gain
    noise, because what the reader will see are decoded tokens, which are blurred and flicker.
    """
    num_clips, device = frames.shape[0], frames.device  # the generator draws on the CPU, the same for every device
    shape = (num_clips, 1, 3, 1, 1)
    gain = 1 + 0.25 * (2 * torch.rand(shape, generator=generator) - 1)
    offset = 0.1 * (2 * torch.rand(shape, generator=generator) - 1)
    frames = frames * gain.to(device) + offset.to(device)
    degraded = (torch.rand(num_clips, generator=generator) < 0.25).to(device)
    if degraded.any():
        scale = 0.6 + 0.35 * float(torch.rand((), generator=generator))
        noise = 0.02 * torch.randn(frames[degraded].shape, generator=generator)
        frames[degraded] = _blur(frames[degraded], scale) + noise.to(device)
    return frames.clamp(0, 1)


def _blur(frames: Tensor, scale: float) -> Tensor:
    images = frames.flatten(0, 1)
    height, width = images.shape[-2:]
    size = (round(height * scale), round(width * scale))
    small = interpolate(images, size, mode="bilinear", antialias=True)
    return interpolate(small, (height, width), mode="bilinear").unflatten(0, frames.shape[:2])
