"""Many videos as one Gymnasium vector env: a thin adapter around a TorchRL core of n rows.

Letters: n rows, k tokens or denoising steps per step; c, h, w a latent's channels, height and width.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
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


class GenerationGymVectorEnv(VectorEnv):
    """The agent is the world model: it continues n videos at a time.

    Spaces and infos are those of :class:`~rlir_env.gym.GenerationGymEnv`, batched.

    ``autoreset_mode`` is ``SAME_STEP`` (the last observation and info stand in ``final_obs`` and
    ``final_info``) or ``DISABLED`` (``reset(options={"reset_mask": mask})`` starts the rows of the
    mask anew).
    """

    single_observation_space: spaces.Dict

    def __init__(
        self,
        core: VideoGenerationEnv,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        render_mode: str | None = "rgb_array",
    ) -> None:
        """Adapt an env of n rows without groups.

        Raises:
            ValueError: if rows are grouped, or the mode of resetting or rendering is not supported.
        """
        if core.group_size != 1:
            raise ValueError("rows of a vector env are independent: use a core with group_size=1")
        mode = AutoresetMode(autoreset_mode)
        if mode is AutoresetMode.NEXT_STEP:
            raise ValueError("autoreset_mode: use SAME_STEP or DISABLED, TorchRL reads no other")
        check_render_mode(render_mode)
        self.core = core
        self.render_mode = render_mode
        self.autoreset_mode = mode
        self.metadata = {**RENDER_METADATA, "autoreset_mode": mode}
        self.num_envs = core.batch_size[0]
        self.single_observation_space = observation_space(core)
        self.single_action_space = action_space(core)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._state: TensorDictBase | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start all rows on the next prompts of the shuffled order, or as the options say.

        Args:
            seed: Restarts the order of prompts and of noise seeds.
            options: ``reset_mask`` (bool ``[n]``) to start only these rows; or ``prompt_index`` (integers ``[n]``) to
                choose the prompt of every row, and ``episode_seed`` ``[n]`` beside it (0 by default).

        Raises:
            ValueError: if there is no such prompt or option, or an option has another shape.
            gymnasium.error.ResetNeeded: if the first reset has a mask.
        """
        options = options or {}
        check_reset_options(options, ("reset_mask", "prompt_index", "episode_seed"))
        given = {key: self._one_per_row(key, value) for key, value in options.items()}
        mask = given.get("reset_mask", np.ones(self.num_envs)).astype(bool)
        if "reset_mask" in given and "prompt_index" in given:
            raise ValueError("give reset_mask, which draws the next prompts, or prompt_index for all rows, not both")
        if "reset_mask" in given and self._state is None:
            raise gymnasium.error.ResetNeeded("no row has been started: call reset() without reset_mask first")
        super().reset(seed=seed)
        if seed is not None or self._state is None:
            self.core.set_seed(core_seed(self.np_random))
        if "prompt_index" in given:
            chosen = (given["prompt_index"], given.get("episode_seed", np.zeros(self.num_envs)))
            self._state = self.core.initial_state(*map(torch.as_tensor, chosen))
        elif "reset_mask" in given:
            self._restart(mask)
        else:
            self._state = self.core.reset()
        return observe(self.single_observation_space, self._state), self._prompt_info(mask)

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take the next k pieces of every video.

        Args:
            actions: Codes ``[n]`` (k = 1) or ``[n, k]``; or latents ``[n, c, h, w]`` or ``[n, k, c, h, w]``.

        Raises:
            gymnasium.error.ResetNeeded: before the first reset.
            ValueError: if the actions are not in the action space (nothing is clipped), or a video is complete.
        """
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        self._state["action"] = core_action(self.core, self.action_space, actions)
        after = self.core.step(self._state)
        outcome = after["next"]
        self._state = step_mdp(after)
        is_over = outcome["terminated"].squeeze(-1).cpu().numpy()
        reward = outcome["reward"].squeeze(-1).double().cpu().numpy()
        info = self._end(outcome, is_over)
        return observe(self.single_observation_space, self._state), reward, is_over.copy(), np.zeros_like(is_over), info

    def render(self) -> tuple[Any, ...]:
        """For every row the frames decoded so far, as one tiled picture or as a list."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset() before render()")
        rows = range(self.num_envs)
        return tuple(render(self.core, self._state[r : r + 1], self.render_mode) for r in rows)

    def _one_per_row(self, name: str, values: Any) -> np.ndarray:
        array = np.asarray(values)
        if array.shape != (self.num_envs,):
            raise ValueError(f"{name} has shape {list(array.shape)}: give one value for each of {self.num_envs} rows")
        return array

    def _restart(self, mask: np.ndarray) -> None:
        assert self._state is not None  # a masked reset sets it first
        self._state["_reset"] = torch.as_tensor(mask, device=self.core.device)[:, None]
        self._state = self.core.reset(self._state)

    def _prompt_info(self, mask: np.ndarray) -> dict[str, Any]:
        """Prompts and seeds of the rows of the mask."""
        info: dict[str, Any] = {}
        for row in mask.nonzero()[0].tolist():
            info = self._add_info(info, prompt_info(self._state, row), row)
        return info

    def _end(self, outcome: TensorDictBase, is_over: np.ndarray) -> dict[str, Any]:
        """Collect what the finished rows have to say, and start them anew if that is the mode."""
        is_same_step = self.autoreset_mode is AutoresetMode.SAME_STEP
        info: dict[str, Any] = {}
        for row in is_over.nonzero()[0].tolist():
            final = final_info(self.core, outcome, row)
            if is_same_step:
                last = observe(self.single_observation_space, self._state, row)
                # TorchRL 0.14 looks for the entries of a dict observation in final_info, else it
                # reads zeros.
                final |= prompt_info(self._state, row) | last
                final = {"final_obs": last, "final_info": final}
            info = self._add_info(info, final, row)
        if is_same_step and is_over.any():
            self._restart(is_over)
        # On every step, not only after a reset: TorchRL's reader of vector infos wants the same
        # keys always.
        return info | self._prompt_info(np.ones(self.num_envs, dtype=bool))
