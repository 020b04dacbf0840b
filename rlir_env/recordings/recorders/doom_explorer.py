"""Who plays Doom for the recordings: not a good player, one who makes every action happen often and visibly.

An action that no picture reveals cannot be read back, hence cannot be rewarded. So the explorer jumps only where it
would lift off, and walks where there is room to walk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rlir_env.recordings.recorders.doom_map import DoomMap
from rlir_env.recordings.recorders.doom_world import JUMP_TICS, SPEEDS, DoomView


@dataclass(frozen=True)
class ExplorerConfig:
    """How the explorer plays; probabilities are per decision, holds in frames."""

    forward_back: tuple[float, float, float] = (0.30, 0.42, 0.28)  # none, forward, back
    left_right: tuple[float, float, float] = (0.50, 0.25, 0.25)
    sprint_sneak: tuple[float, float, float] = (0.40, 0.34, 0.26)  # sprint only while moving
    attack: float = 0.28
    jump: float = 0.30
    use: float = 0.05
    move_hold: tuple[int, int] = (1, 4)
    camera_hold: tuple[int, int] = (1, 3)
    attack_hold: tuple[int, int] = (1, 3)
    yaw_degrees: tuple[int, ...] = (0, 0, 0, 4, 10, -4, -10)
    pitch_degrees: tuple[int, ...] = (0, 0, 0, 0, 4, 10, -4, -10)
    max_pitch: float = 24.0


class Explorer:
    """Chooses env actions that are held for a few frames and lead into open space.

    The memory between frames is what is being held: `act` returns the next action and counts the holds down.
    """

    def __init__(self, doom_map: DoomMap, tics: int, rng: np.random.Generator, config: ExplorerConfig):
        self._map, self._tics, self._rng, self._config = doom_map, tics, rng, config
        self._move = (0, 0, 0)  # classes of forward_back, left_right, sprint_sneak
        self._camera = (0, 0)
        self._attack = False
        self._sneaked = False
        self._frames_to_jump = 0
        self._last_position: np.ndarray | None = None
        self._obstacle: tuple[int, int] | None = None  # the move that something unmapped stopped
        self._holds = {"move": 0, "camera": 0, "attack": 0}

    def act(self, view: DoomView) -> dict:
        """The env action for the next frame, seeing ``view``."""
        config, rng = self._config, self._rng
        is_stopped = self._is_stopped(view)
        if is_stopped:
            self._obstacle = self._move[:2]
        if self._expired("move", config.move_hold) or is_stopped or not self._is_clear(view, self._move, margin=1.0):
            self._move = self._draw_move(view)
            self._obstacle = None
        if self._expired("camera", config.camera_hold):
            self._camera = self._draw_camera(view)
        if self._expired("attack", config.attack_hold):
            self._attack = rng.random() < config.attack
        forward_back, left_right, sprint_sneak = self._move
        sneaks = sprint_sneak == 2
        # A jump is pressed where it shows: on the ground, standing, and rested from the last one.
        can_jump = view.is_on_ground and self._frames_to_jump <= 0 and not (sneaks or self._sneaked)
        jumps = can_jump and rng.random() < config.jump
        self._frames_to_jump = (math.ceil(JUMP_TICS / self._tics) if jumps else self._frames_to_jump) - 1
        self._sneaked = sneaks
        uses = not self._attack and rng.random() < config.use
        pitch, yaw = self._camera
        if abs(view.pitch + pitch) > config.max_pitch:
            pitch = 0
        return {
            "forward": int(forward_back == 1),
            "back": int(forward_back == 2),
            "left": int(left_right == 1),
            "right": int(left_right == 2),
            "sprint": int(sprint_sneak == 1),
            "sneak": int(sneaks),
            "attack": int(self._attack),
            "jump": int(jumps),
            "use": int(uses),
            "camera": [int(pitch), int(yaw)],
        }

    def _expired(self, name: str, hold: tuple[int, int]) -> bool:
        self._holds[name] -= 1
        if self._holds[name] > 0:
            return False
        self._holds[name] = int(self._rng.integers(hold[0], hold[1], endpoint=True))
        return True

    def _draw_move(self, view: DoomView) -> tuple[int, int, int]:
        config, rng = self._config, self._rng
        for _ in range(6):
            forward_back = int(rng.choice(3, p=config.forward_back))
            left_right = int(rng.choice(3, p=config.left_right))
            sprint_sneak = int(rng.choice(3, p=config.sprint_sneak))
            if sprint_sneak == 1 and not (forward_back or left_right):
                sprint_sneak = 0
            move = (forward_back, left_right, sprint_sneak)
            if move[:2] != self._obstacle and self._is_clear(view, move, margin=1.5):
                return move
        return (0, 0, 0)

    def _is_stopped(self, view: DoomView) -> bool:
        """Whether the last move went less than half its way: a lamp, a barrel or a ledge that the map does not tell."""
        last, self._last_position = self._last_position, view.position
        wanted = self._travel(self._move)
        return last is not None and float(np.linalg.norm(view.position - last)) < 0.5 * wanted

    def _draw_camera(self, view: DoomView) -> tuple[int, int]:
        pitch, yaw = int(self._rng.choice(self._config.pitch_degrees)), int(self._rng.choice(self._config.yaw_degrees))
        if pitch * view.pitch > 0 and self._rng.random() < 0.5:
            pitch = -pitch  # drift back towards the horizon
        if self._map.clear_distance(view.position, view.heading) < 96 and yaw == 0:
            yaw = int(self._rng.choice([-10, 10]))  # facing a wall shows nothing of what comes next
        return pitch, yaw

    def _travel(self, move: tuple[int, int, int]) -> float:
        """Map units that ``move`` covers in one frame at full speed."""
        forward_back, left_right, sprint_sneak = move
        if not (forward_back or left_right):
            return 0.0
        return SPEEDS[("walk", "sprint", "sneak")[sprint_sneak]] * self._tics

    def _is_clear(self, view: DoomView, move: tuple[int, int, int], margin: float) -> bool:
        return self._room(view, move) >= margin * self._travel(move)

    def _room(self, view: DoomView, move: tuple[int, int, int]) -> float:
        """Free way in the direction of ``move``, map units."""
        forward_back, left_right, _ = move
        if not (forward_back or left_right):
            return np.inf
        ahead = (0, 1, -1)[forward_back]
        sideways = (0, 1, -1)[left_right]  # left is counter-clockwise
        offset = np.rad2deg(np.arctan2(sideways, ahead))
        return self._map.clear_distance(view.position, view.heading + offset)
