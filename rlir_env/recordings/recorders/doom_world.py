"""ViZDoom as a world that Minecraft env actions drive, to the last bit the same from a saved start.

The projection of Minecraft's game actions on Doom's buttons is `DoomWorld.step`. A frame is 160x120 pixels and lasts
`tics_per_action` engine tics (1/35 s).
"""

from __future__ import annotations

import json
import weakref
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np

TICS_PER_SECOND = 35
FRAME_SIZE = (120, 160)  # H, W
JUMP_TICS = 24  # from one jump to the next that the engine grants, on level ground
# Doom's player glides: two thirds of its speed are left for the next frame after the key is released, and in the air
# its keys do nothing, so that a picture shows what was pressed before. The movement keys are bound to a *speed*
# instead, reached and braked as fast as the engine lets a player accelerate at its highest `turbo`, on the ground and
# in the air. Read back from the true displacement, forward_back rose from F1 .77 to .91 by this, to .96 once the
# explorer knew lamps and barrels. Map units per tic.
SPEEDS = {"walk": 6.0, "sprint": 12.0, "sneak": 3.0}

_SETTLE_TICS = 24  # a raised weapon and a player who has landed
_FRICTION = 0.90625  # what the engine leaves of the velocity after each tic, in the air too with `sv_aircontrol 1`
_MAX_PUSH = 127 / 32  # map units per tic and tic, the engine's limit
_PUSH_TO_BUTTON = 32
_KEYS = "sneak use attack jump".split()
_BUTTONS = (
    "CROUCH USE ATTACK JUMP LOOK_UP_DOWN_DELTA TURN_LEFT_RIGHT_DELTA MOVE_FORWARD_BACKWARD_DELTA MOVE_LEFT_RIGHT_DELTA"
).split()
_VARIABLES = "POSITION_X POSITION_Y ANGLE PITCH ON_GROUND VELOCITY_X VELOCITY_Y".split()


@dataclass(frozen=True)
class DoomStart:
    """A saved start: from here the same env actions give bitwise the same frames.

    Attributes:
        wad: ``freedoom1`` or ``freedoom2``.
        map_name: for instance ``MAP01``.
        position: map units, x and y.
        heading: degrees, 0 is east, counter-clockwise.
        seed: of the engine's random numbers.
        tics_per_action: engine tics that one action lasts.
    """

    wad: str
    map_name: str
    position: tuple[float, float]
    heading: float
    seed: int
    tics_per_action: int = 6

    def to_json(self) -> str:
        """The line that `from_json` reads back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> DoomStart:
        """Inverse of `to_json`; what the options of a recording tell besides its start is left aside."""
        options = json.loads(text)
        start = {field.name: options[field.name] for field in fields(cls)}
        return cls(**{**start, "position": tuple(start["position"])})


@dataclass(frozen=True)
class DoomView:
    """What the player sees and where it stands after an action."""

    frame: np.ndarray  # uint8 [120, 160, 3]
    position: np.ndarray  # float64 [2], map units
    heading: float
    pitch: float  # degrees, positive looks down as in VPT
    is_on_ground: bool
    is_finished: bool


class DoomWorld:
    """ViZDoom driven by Minecraft env actions.

    One engine process serves one WAD; `reset` loads the map of a `DoomStart`. Monsters are left out (they would
    kill the explorer), ammunition is endless, and an infrared visor lights the scene, because Freedoom's dark
    corridors hide at small resolutions what the player does. The engine process ends with `close`, at the end of a
    ``with`` block, or when the world is no longer referred to, at the latest before the interpreter exits: an engine
    whose player is gone complains, and sometimes crashes and leaves a log where it was started.

    Args:
        wad: ``freedoom1`` or ``freedoom2``.
    """

    _tics: int
    _last_view: DoomView

    def __init__(self, wad: str) -> None:
        try:
            import vizdoom
        except ImportError as error:
            raise ImportError("recording Doom needs ViZDoom: pip install 'rlir[doom]'") from error
        self._wad = wad
        self.wad_path = Path(vizdoom.__file__).parent / f"{wad}.wad"
        if not self.wad_path.is_file():
            raise ValueError(f"ViZDoom ships no {wad}.wad; use freedoom1 or freedoom2")
        folder = TemporaryDirectory(prefix="rlir_doom_")  # the engine wants to write its settings
        self._game = _open_game(vizdoom, self.wad_path, Path(folder.name))
        self._end = weakref.finalize(self, _close, self._game, folder)

    def __enter__(self) -> DoomWorld:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reset(self, start: DoomStart) -> DoomView:
        """Begin at a saved start.

        Raises:
            ValueError: if the start belongs to another WAD.
        """
        if start.wad != self._wad:
            raise ValueError(f"this world plays {self._wad}, the start belongs to {start.wad}")
        game = self._game
        game.set_seed(start.seed)
        game.set_doom_map(start.map_name)
        game.new_episode()
        self._tics = start.tics_per_action
        x, y = start.position
        for command in ("god", "give chaingun", "give infrared", f"warp {x:g} {y:g}"):
            game.send_game_command(command)
        idle = [0.0] * len(_BUTTONS)
        self._draw(idle, 2)
        turn = list(idle)
        turn[_BUTTONS.index("TURN_LEFT_RIGHT_DELTA")] = self.view().heading - start.heading
        game.make_action(turn, 1)
        game.send_game_command("weapon chaingun")
        self._draw(idle, _SETTLE_TICS)
        return self.view()

    def _draw(self, buttons: list[float], num_tics: int) -> None:
        """Hold ``buttons`` and draw every tic: the last level's swaying of the weapon wears down only when drawn."""
        for _ in range(num_tics):
            self._game.make_action(buttons, 1)

    def step(self, env_action: dict) -> DoomView:
        """Press the keys of ``env_action`` for one frame; the camera turns evenly over its tics."""
        *_, vx, vy = self._variables()
        velocity = complex(vx, vy) * np.exp(-1j * np.deg2rad(self._last_view.heading))  # ahead, left
        pitch, yaw = env_action["camera"]
        turn = np.exp(1j * np.deg2rad(yaw / self._tics))  # headings grow counter-clockwise, yaw clockwise
        keys = [float(env_action.get(key, 0)) for key in _KEYS]
        wanted = _wanted_velocity(env_action)
        for tic in range(self._tics):
            velocity *= turn
            push = _clipped(wanted - velocity)
            velocity = (velocity + push) * _FRICTION
            # Delta buttons act once per tic; VPT's pitch grows downwards, Doom's LOOK_UP upwards.
            self._game.set_action(
                [*keys, -pitch / self._tics, yaw / self._tics]
                + [push.real * _PUSH_TO_BUTTON, -push.imag * _PUSH_TO_BUTTON]
            )
            self._game.advance_action(1, tic == self._tics - 1)
        return self.view()

    def _variables(self) -> np.ndarray:
        state = self._game.get_state()
        return np.zeros(len(_VARIABLES)) if state is None else state.game_variables

    def view(self) -> DoomView:
        """The present frame and the player's whereabouts; the last ones again once the level has ended."""
        state = self._game.get_state()
        if state is None:
            return replace(self._last_view, is_finished=True)
        x, y, heading, pitch, on_ground, *_ = state.game_variables
        frame = state.screen_buffer.copy()
        self._last_view = DoomView(frame, np.array([x, y]), heading, pitch, bool(on_ground), False)
        return self._last_view

    def close(self) -> None:
        """End the engine process; a closed world cannot be used again, closing it again does nothing."""
        self._end()


def _wanted_velocity(env_action: dict) -> complex:
    """The bound speed in map units per tic; the real part is ahead, the imaginary part to the left."""
    ahead = env_action.get("forward", 0) - env_action.get("back", 0)
    left = env_action.get("left", 0) - env_action.get("right", 0)
    gait = "sprint" if env_action.get("sprint") else "sneak" if env_action.get("sneak") else "walk"
    return complex(ahead, left) * SPEEDS[gait]


def _clipped(push: complex) -> complex:
    return complex(np.clip(push.real, -_MAX_PUSH, _MAX_PUSH), np.clip(push.imag, -_MAX_PUSH, _MAX_PUSH))


def _open_game(vizdoom: ModuleType, wad: Path, folder: Path) -> Any:
    game = vizdoom.DoomGame()
    game.set_doom_config_path(str(folder / "vizdoom.ini"))
    game.set_doom_game_path(str(wad))
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_window_visible(False)
    game.set_sound_enabled(False)
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_render_hud(False)
    game.set_render_crosshair(False)
    game.set_render_messages(False)
    game.set_available_buttons([getattr(vizdoom.Button, name) for name in _BUTTONS])
    game.set_available_game_variables([getattr(vizdoom.GameVariable, name) for name in _VARIABLES])
    game.add_game_args(
        "-nomonsters +sv_cheats 1 +sv_infiniteammo 1 +freelook 1 "
        "+neverswitchonpickup 1 +sv_aircontrol 1 +turbo 255 +cl_showsecretmessage 0 +gl_cachenodes 0"
    )
    game.init()
    with suppress(OSError):  # the engine makes this empty folder where it starts; another's is not ours to remove
        Path("_vizdoom").rmdir()
    return game


def _close(game: Any, folder: TemporaryDirectory[str]) -> None:
    game.close()  # before its folder goes: the engine writes its settings when it ends
    folder.cleanup()
