"""Video without labels becomes a recording: an IDM says what was pressed (VPT's way to learn from the internet).

Letters: T frames of a stretch, H, W frame size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch

from rlir_env.game_actions import VPT_BUTTONS, VPT_CAMERA, env_action_to_event
from rlir_env.inverse_dynamics.vpt import FRAMES_PER_STRETCH, VPTInverseDynamics


def label_frames(frames: Iterable[np.ndarray], idm: VPTInverseDynamics) -> Iterator[dict[str, Any]]:
    """Read the events of a video, stretch by stretch, in constant memory.

    A button is pressed where that is the likelier of the two, whatever the others are; VPT releases none of two
    opposites. The camera turns by the whole degrees that fall into the likeliest bin, because an event holds no others:
    so read again, an event gives the bin that was read.

    Args:
        frames: uint8 ``[H, W, 3]`` each, RGB, of any size.
        idm: The reader.

    Yields:
        One event a frame, in VPT's format; that of the last one is guessed without a next frame to look at.
    """
    device, frames = next(idm.parameters()).device, iter(frames)
    tick = 0
    while stretch := list(islice(frames, FRAMES_PER_STRETCH)):
        outputs = idm.log_probs(torch.from_numpy(np.stack(stretch)).to(device))
        pressed = outputs["buttons"][0].argmax(-1).tolist()  # [T, 20]
        degrees = VPT_CAMERA.decode(outputs["camera"][0].argmax(-1).cpu().numpy()).round().astype(int)  # [T, 2]
        for buttons, camera in zip(pressed, degrees.tolist(), strict=True):
            env_action = dict(zip(VPT_BUTTONS, buttons, strict=True))
            yield env_action_to_event(env_action | {"camera": camera}, tick)
            tick += 1
