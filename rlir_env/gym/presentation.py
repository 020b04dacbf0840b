"""How a state looks from Gymnasium: spaces, observations, infos and pictures of both adapters.

Letters: k tokens per step, A word length, F frames, S slots, L sequence length, n finished frames.
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

from rlir_env.envs import TokenGenerationEnv

# Generated videos play at MineWorld's pace when somebody records them with RecordVideo.
RENDER_METADATA: dict[str, Any] = {"render_modes": ["rgb_array", "rgb_array_list"], "render_fps": 20}

_OBSERVATION = ("token", "position", "frame_index", "game_action", "game_action_word")
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


def observation_space(core: TokenGenerationEnv) -> spaces.Dict:
    """Space of one row's observation."""
    layout, num_ids = core.layout, core.num_codes + core.num_word_ids
    words = (layout.num_generated_frames, layout.word_length)
    slots = tuple(core.state_spec["game_action"].shape[1:])
    # Bounds: the env does not know how many classes the game has, so any class index is allowed;
    # ids of words start at num_codes, but TorchRL's vector wrapper pads with zeros and wants them
    # in the space.
    return spaces.Dict(
        {
            "token": spaces.Box(-1, num_ids - 1, (layout.sequence_length,), np.int32),
            "position": spaces.Box(0, layout.sequence_length, (1,), np.int64),
            "frame_index": spaces.Box(0, layout.num_frames - 1, (1,), np.int64),
            "game_action": spaces.Box(0, np.iinfo(np.int32).max, slots, np.int64),
            "game_action_word": spaces.Box(0, num_ids - 1, words, np.int64),
        }
    )


def action_space(core: TokenGenerationEnv) -> spaces.Discrete | spaces.MultiDiscrete:
    """Space of one row's action: one code, or k."""
    if core.tokens_per_step == 1:
        return spaces.Discrete(core.num_codes)
    return spaces.MultiDiscrete([core.num_codes] * core.tokens_per_step)


def observe(state: TensorDictBase, row: int | None = None) -> dict[str, np.ndarray]:
    """Fresh arrays on every call, constants too: users keep what they are given."""
    rows = slice(None) if row is None else row
    return {key: state[key][rows].cpu().numpy().copy() for key in _OBSERVATION}


def prompt_info(state: TensorDictBase, row: int) -> dict[str, int]:
    """Which prompt a row plays, and its seeds."""
    return {key: int(state[key][row]) for key in _PROMPT_INFO}


def final_info(core: TokenGenerationEnv, outcome: TensorDictBase, row: int) -> dict[str, Any]:
    """The breakdown of a finished row's reward, fresh arrays."""
    keys = [key for key in core.reward_keys if key != "reward"]
    return {key: outcome[key][row].cpu().numpy().copy() for key in keys}


def render(
    core: TokenGenerationEnv, state: TensorDictBase, render_mode: str | None
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
