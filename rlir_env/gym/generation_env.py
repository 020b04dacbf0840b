"""One video as a Gymnasium env: a thin adapter around a TorchRL core of one row.

Letters: k tokens or denoising steps per step, A word length, F frames, S slots, L = F K + (F-1) A for K tokens a frame;
c, h, w a latent's channels, height and width.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.core import RenderFrame
from tensordict import TensorDictBase
from torchrl.envs.utils import step_mdp

from rlir_env.envs import VideoGenerationEnv
from rlir_env.gym.presentation import (
    RENDER_METADATA,
    action_space,
    check_render_mode,
    check_reset_options,
    core_action,
    core_seed,
    final_info,
    observation_space,
    observe,
    prompt_info,
    render,
)


class GenerationGymEnv(gymnasium.Env):
    """The agent is the world model: its action is the next piece of the video.

    What the player pressed, the game action, is part of the observation and never the action.

    Tokens (``RLIR-MineWorld-v0``): the action is ``Discrete(num_codes)`` for one token a step, else ``MultiDiscrete``
    of k; observed are ``token [L]`` (-1 = not yet), ``position [1]``, ``frame_index [1]``, ``game_action [F-1, S]`` and
    ``game_action_word [F-1, A]``. Denoising (``RLIR-NFD-v0``): the action is the latent after one denoising step,
    ``Box(-20, 20, [c, h, w])``, or after each of k, ``[k, c, h, w]``; observed are ``latent [F, c, h, w]``,
    ``frame_index``, ``denoising_step``, ``timestep``, ``next_timestep`` (``[1]`` each) and ``game_action``. Both are
    Markov, and both are what the core's class says.

    Reward: zero until the video is complete, then what the coach reads back from it. The last ``info`` holds
    ``inferred_game_action``, ``frame_match`` and ``frame_reward``, and every one ``prompt_index`` and seeds.

    ``render()`` gives the frames decoded so far: tiled in one picture of constant size
    (``"rgb_array"``, the default), or as a list (``"rgb_array_list"``).
    """

    metadata = RENDER_METADATA
    observation_space: spaces.Dict

    def __init__(self, core: VideoGenerationEnv, render_mode: str | None = "rgb_array") -> None:
        """Adapt an env of one row.

        Raises:
            ValueError: if the core has several rows or the render mode does not exist.
        """
        if core.batch_size != torch.Size([1]):
            raise ValueError(f"core has {core.batch_size[0]} rows; use GenerationGymVectorEnv for several")
        check_render_mode(render_mode)
        self.core = core
        self.render_mode = render_mode
        self.observation_space = observation_space(core)
        self.action_space = action_space(core)
        self._state: TensorDictBase | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start the next prompt of the shuffled order, or ``options={"prompt_index": i}``.

        Args:
            seed: Restarts the order of prompts and of noise seeds.
            options: ``prompt_index`` to choose the prompt, and ``episode_seed`` beside it (0 by
                default).

        Raises:
            ValueError: if there is no such prompt or option.
        """
        options = options or {}
        check_reset_options(options, ("prompt_index", "episode_seed"))
        super().reset(seed=seed)
        if seed is not None or self._state is None:
            self.core.set_seed(core_seed(self.np_random))
        if "prompt_index" in options:
            chosen = (options["prompt_index"], options.get("episode_seed", 0))
            self._state = self.core.initial_state(*(torch.tensor([value]) for value in chosen))
        else:
            self._state = self.core.reset()
        return observe(self.observation_space, self._state, row=0), prompt_info(self._state, row=0)

    def step(self, action: int | np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Take the next k pieces of the video.

        Raises:
            gymnasium.error.ResetNeeded: before the first reset.
            ValueError: if the action is not in the action space (it is never clipped), or the video is complete.
        """
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        self._state["action"] = core_action(self.core, self.action_space, action)
        after = self.core.step(self._state)
        outcome = after["next"]
        self._state = step_mdp(after)
        is_over = bool(outcome["terminated"])
        info = prompt_info(self._state, row=0)
        info |= final_info(self.core, outcome, row=0) if is_over else {}
        return observe(self.observation_space, self._state, row=0), float(outcome["reward"]), is_over, False, info

    def render(self) -> RenderFrame | list[RenderFrame] | None:
        """The frames decoded so far, as one tiled picture or as a list."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset() before render()")
        return render(self.core, self._state, self.render_mode)
