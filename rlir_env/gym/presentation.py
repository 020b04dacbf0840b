"""How a state looks from Gymnasium: spaces, observations, infos and pictures of both adapters.

Spaces are what the core's specs say, without the dimension of rows; nothing in here knows which paradigm it shows.

Letters: B rows, k pieces (tokens or denoising steps) per step, n finished frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.core import RenderFrame
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Bounded

from rlir_env.envs import VideoGenerationEnv
from rlir_env.envs.base import EPISODE_KEYS

# Generated videos play at MineWorld's pace when somebody records them with RecordVideo.
RENDER_METADATA: dict[str, Any] = {"render_modes": ["rgb_array", "rgb_array_list"], "render_fps": 20}

_PROMPT_INFO = ("prompt_index", "prompt_seed", "episode_seed")


def check_render_mode(render_mode: str | None) -> None:
    """Raise ValueError for a mode that does not exist."""
    modes = RENDER_METADATA["render_modes"]
    if render_mode is not None and render_mode not in modes:
        raise ValueError(f"render_mode={render_mode!r}: use one of {modes} or None")


def check_reset_options(options: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise ValueError for options of a reset that mean nothing: unknown keys, a seed without its prompt."""
    unknown = sorted(options.keys() - set(known))
    if unknown:
        raise ValueError(f"reset knows no option {', '.join(map(repr, unknown))}: use {', '.join(known)}")
    if "episode_seed" in options and "prompt_index" not in options:
        raise ValueError("episode_seed goes with a chosen prompt: give prompt_index too, or reset(seed=...)")


def core_seed(np_random: np.random.Generator) -> int:
    """Draw the core's seed from Gymnasium's generator."""
    return int(np_random.integers(2**62))


def observation_space(core: VideoGenerationEnv) -> spaces.Dict:
    """Space of one row's observation: its state, and the constants that say what the video is to show."""
    specs = {**core.observation_spec, **core.state_spec}
    boxes = {key: _bounds(spec) for key, spec in specs.items() if key not in EPISODE_KEYS}
    return spaces.Dict({key: spaces.Box(low, high, dtype=low.dtype.type) for key, (low, high) in boxes.items()})


def action_space(core: VideoGenerationEnv) -> spaces.Space:
    """Space of one row's action, k pieces: ``MultiDiscrete`` or ``Box``; for k = 1 ``Discrete``, or without k."""
    low, high = (bound[0] if len(bound) == 1 else bound for bound in _bounds(core.action_spec))
    if np.issubdtype(low.dtype, np.floating):
        return spaces.Box(low, high, dtype=low.dtype.type)
    return spaces.Discrete(int(high) + 1) if high.ndim == 0 else spaces.MultiDiscrete(high + 1)


def _bounds(spec: Bounded) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest values of one row."""
    return spec.space.low[0].cpu().numpy(), spec.space.high[0].cpu().numpy()


def core_action(core: VideoGenerationEnv, space: spaces.Space, action: Any) -> Tensor:
    """The core's ``[B, k, ...]`` of what Gymnasium's space holds.

    Raises:
        ValueError: if the shape is not the space's; what else is wrong the core says.
    """
    given = torch.tensor(np.asarray(action))
    if tuple(given.shape) != space.shape:
        raise ValueError(f"action has shape {list(given.shape)}, expected {list(space.shape or ())}")
    return given.reshape(core.action_spec.shape)


def observe(space: spaces.Dict, state: TensorDictBase, row: int | None = None) -> dict[str, np.ndarray]:
    """Fresh arrays on every call, constants too: users keep what they are given."""
    rows = slice(None) if row is None else row
    return {key: state[key][rows].cpu().numpy().copy() for key in space.keys()}


def prompt_info(state: TensorDictBase, row: int) -> dict[str, int]:
    """Which prompt a row plays, and its seeds."""
    return {key: int(state[key][row]) for key in _PROMPT_INFO}


def final_info(core: VideoGenerationEnv, outcome: TensorDictBase, row: int) -> dict[str, Any]:
    """The breakdown of a finished row's reward, fresh arrays."""
    keys = [key for key in core.reward_keys if key != "reward"]
    return {key: outcome[key][row].cpu().numpy().copy() for key in keys}


def render(
    core: VideoGenerationEnv, state: TensorDictBase, render_mode: str | None
) -> RenderFrame | list[RenderFrame] | None:
    """Decode the finished frames of a state of one row, as one sheet or as a list of pictures."""
    if render_mode is None:
        return None
    num_finished = int(core.num_finished_frames(state))
    frames = (core.frames_of(state, num_finished)[0] * 255).round().to(torch.uint8)
    pictures = frames.permute(0, 2, 3, 1).cpu().numpy()  # [n, H, W, 3]
    if render_mode == "rgb_array_list":
        return list(pictures)
    return _tile(pictures, core.layout.num_frames)


def _tile(pictures: np.ndarray, num_places: int) -> np.ndarray:
    """Lay pictures ``[n, H, W, 3]`` on a near-square sheet of ``num_places``, the rest black."""
    num_columns = math.ceil(math.sqrt(num_places))
    num_lines = math.ceil(num_places / num_columns)
    height, width = pictures.shape[1:3]
    sheet = np.zeros((num_lines, num_columns, height, width, 3), np.uint8)
    for place, picture in enumerate(pictures):
        sheet[divmod(place, num_columns)] = picture
    return sheet.transpose(0, 2, 1, 3, 4).reshape(num_lines * height, num_columns * width, 3)
