"""Real first-person gameplay without a download: an explorer plays Freedoom maps in ViZDoom and writes VPT recordings.

ViZDoom ships the engine and Freedoom (BSD licence) in its wheel. What is recorded is a projection of Minecraft's game
actions on Doom's buttons (`DoomWorld.step`), 160x120 pixels, `tics_per_action` engine tics (1/35 s) a frame. The
explorer is not a good player and is not meant to be: it makes every action happen often and *visibly*, since an action
that no picture reveals cannot be read back, hence cannot be rewarded. `use` shows only at doors and switches, and
dropping works once in Doom, so it is never pressed: both slots are recorded honestly and read by nobody.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from rlir_env.game_actions import env_action_to_event
from rlir_env.recordings import RecordingWriter
from rlir_env.recordings.recorders.doom_map import DoomMap
from rlir_env.recordings.recording import recording_files

TICS_PER_SECOND = 35
FRAME_SIZE = (120, 160)  # H, W
_CRF = 20  # frames are read at less than half their size, where its loss is gone
_SETTLE_TICS = 24  # a raised weapon and a player who has landed
_MAPS = tuple(("freedoom1", f"E{e}M{m}") for e in range(1, 5) for m in range(1, 10)) + tuple(
    ("freedoom2", f"MAP{m:02}") for m in range(1, 33)
)
# One letter a map, repeated: world model, coach, judge, dev prompts, test prompts (design: the judge is not the coach).
_SPLIT_PATTERN = "WCJWTWCJWDWCJWTCJ"
_SPLIT_NAMES = {"W": "world_model", "C": "coach", "J": "judge", "D": "dev", "T": "test"}

MAP_SETS: dict[str, tuple[tuple[str, str], ...]] = {
    name: tuple(m for i, m in enumerate(_MAPS) if _SPLIT_PATTERN[i % len(_SPLIT_PATTERN)] == letter)
    for letter, name in _SPLIT_NAMES.items()
}


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
        """Inverse of `to_json`."""
        fields = json.loads(text)
        return cls(**{**fields, "position": tuple(fields["position"])})


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
    corridors hide at small resolutions what the player does.
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
        self._folder = TemporaryDirectory(prefix="rlir_doom_")  # the engine wants to write its settings
        self._game = _open_game(vizdoom, self.wad_path, Path(self._folder.name))

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
        game.make_action(idle, 2)
        turn = list(idle)
        turn[_BUTTONS.index("TURN_LEFT_RIGHT_DELTA")] = self.view().heading - start.heading
        game.make_action(turn, 1)
        game.send_game_command("weapon chaingun")
        game.make_action(idle, _SETTLE_TICS)
        return self.view()

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
        """End the engine process."""
        self._game.close()
        self._folder.cleanup()


_KEYS = "sneak use attack jump".split()
_BUTTONS = (
    "CROUCH USE ATTACK JUMP LOOK_UP_DOWN_DELTA TURN_LEFT_RIGHT_DELTA MOVE_FORWARD_BACKWARD_DELTA MOVE_LEFT_RIGHT_DELTA"
).split()
_VARIABLES = "POSITION_X POSITION_Y ANGLE PITCH ON_GROUND VELOCITY_X VELOCITY_Y".split()

# Doom's player glides: two thirds of its speed are left for the next frame after the key is released, so that a picture
# shows what was pressed before. The movement keys are bound to a *speed* instead, reached as fast as the engine lets
# a player accelerate and braked as fast when they are released. Map units per tic.
SPEEDS = {"walk": 6.0, "sprint": 12.0, "sneak": 3.0}
_FRICTION = 0.90625  # what the engine leaves of the velocity after each tic
_MAX_PUSH = 1.5625  # map units per tic and tic, the engine's limit for a running player
_PUSH_TO_BUTTON = 50 / _MAX_PUSH


def _wanted_velocity(env_action: dict) -> complex:
    """The bound speed in map units per tic; the real part is ahead, the imaginary part to the left."""
    ahead = env_action.get("forward", 0) - env_action.get("back", 0)
    left = env_action.get("left", 0) - env_action.get("right", 0)
    gait = "sprint" if env_action.get("sprint") else "sneak" if env_action.get("sneak") else "walk"
    return complex(ahead, left) * SPEEDS[gait]


def _clipped(push: complex) -> complex:
    return complex(np.clip(push.real, -_MAX_PUSH, _MAX_PUSH), np.clip(push.imag, -_MAX_PUSH, _MAX_PUSH))


def _open_game(vizdoom, wad: Path, folder: Path):
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
        "+neverswitchonpickup 1 +cl_showsecretmessage 0 +gl_cachenodes 0"
    )
    game.init()
    with suppress(OSError):  # the engine makes this empty folder where it starts; another's is not ours to remove
        Path("_vizdoom").rmdir()
    return game


@dataclass(frozen=True)
class ExplorerConfig:
    """How the explorer plays; probabilities are per decision, holds in frames."""

    forward_back: tuple[float, float, float] = (0.30, 0.42, 0.28)  # none, forward, back
    left_right: tuple[float, float, float] = (0.50, 0.25, 0.25)
    sprint_sneak: tuple[float, float, float] = (0.40, 0.34, 0.26)  # sprint only while moving
    attack: float = 0.28
    jump: float = 0.22
    use: float = 0.05
    move_hold: tuple[int, int] = (1, 4)
    camera_hold: tuple[int, int] = (1, 3)
    attack_hold: tuple[int, int] = (1, 3)
    yaw_degrees: tuple[int, ...] = (0, 0, 0, 4, 7, 10, -4, -7, -10)
    pitch_degrees: tuple[int, ...] = (0, 0, 0, 0, 0, 4, 7, 10, -4, -7, -10)
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
        self._holds = {"move": 0, "camera": 0, "attack": 0}

    def act(self, view: DoomView) -> dict:
        """The env action for the next frame, seeing ``view``."""
        config, rng = self._config, self._rng
        if self._expired("move", config.move_hold) or self._room(view, self._move) < self._travel(self._move):
            self._move = self._draw_move(view)
        if self._expired("camera", config.camera_hold):
            self._camera = self._draw_camera(view)
        if self._expired("attack", config.attack_hold):
            self._attack = rng.random() < config.attack
        forward_back, left_right, sprint_sneak = self._move
        sneaks = sprint_sneak == 2
        # A jump is pressed where it shows: on the ground, and standing (the engine ignores it while one rises).
        can_jump = view.is_on_ground and not (sneaks or self._sneaked)
        jumps = can_jump and rng.random() < config.jump
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
            if self._room(view, move) >= 1.5 * self._travel(move):
                return move
        return (0, 0, 0)

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

    def _room(self, view: DoomView, move: tuple[int, int, int]) -> float:
        """Free way in the direction of ``move``, map units."""
        forward_back, left_right, _ = move
        if not (forward_back or left_right):
            return np.inf
        ahead = (0, 1, -1)[forward_back]
        sideways = (0, 1, -1)[left_right]  # left is counter-clockwise
        offset = np.rad2deg(np.arctan2(sideways, ahead))
        return self._map.clear_distance(view.position, view.heading + offset)


def draw_starts(maps: Sequence[tuple[str, str]], seed: int, tics_per_action: int = 6) -> Iterator[DoomStart]:
    """Yield endless starts that take turns on ``maps``, each where the map puts a thing, facing anywhere."""
    rng = np.random.default_rng(seed)
    for wad, map_name in cycle(maps):
        x, y = _open_place(_load_map(wad, map_name), rng)
        yield DoomStart(
            wad=wad,
            map_name=map_name,
            position=(x, y),
            heading=float(rng.integers(0, 360)),
            seed=int(rng.integers(1, 2**31)),
            tics_per_action=tics_per_action,
        )


@lru_cache(maxsize=len(_MAPS))
def _load_map(wad: str, map_name: str) -> DoomMap:
    import vizdoom

    return DoomMap.from_wad(Path(vizdoom.__file__).parent / f"{wad}.wad", map_name)


def _open_place(doom_map: DoomMap, rng: np.random.Generator) -> list[float]:
    """A thing's place with room to walk in at least half of eight directions; else the last one tried."""
    for _ in range(20):
        place = doom_map.things[rng.integers(len(doom_map.things))]
        room = [doom_map.clear_distance(place, heading) for heading in range(0, 360, 45)]
        if np.median(room) >= 160:
            break
    return [float(value) for value in place]


def play(
    world: DoomWorld, start: DoomStart, num_frames: int, config: ExplorerConfig = ExplorerConfig()
) -> Iterator[tuple[np.ndarray, dict]]:
    """Yield ``(frame, env_action)`` pairs from ``start``: the action is taken after seeing the frame (VPT's rule)."""
    view = world.reset(start)
    doom_map = DoomMap.from_wad(world.wad_path, start.map_name)
    explorer = Explorer(doom_map, start.tics_per_action, np.random.default_rng(start.seed), config)
    for _ in range(num_frames):
        env_action = explorer.act(view)
        yield view.frame, env_action
        view = world.step(env_action)
        if view.is_finished:  # an exit was reached
            return


def replay(world: DoomWorld, start: DoomStart, env_actions: Sequence[dict]) -> np.ndarray:
    """Frames before each of ``env_actions`` and after the last, uint8 [N+1, 120, 160, 3]: the true continuation."""
    frames = [world.reset(start).frame]
    frames += [world.step(env_action).frame for env_action in env_actions]
    return np.stack(frames)


def record_episode(folder: Path, world: DoomWorld, start: DoomStart, num_frames: int) -> int:
    """Play from ``start`` and write one recording with its ``-options.json``; returns its number of frames."""
    video, _ = recording_files(folder / _name_of(start))
    options = video.with_name(f"{video.stem}-options.json")
    folder.mkdir(parents=True, exist_ok=True)
    options.write_text(start.to_json() + "\n", encoding="utf-8")  # first: a whole video has its start beside it
    with RecordingWriter(video, Fraction(TICS_PER_SECOND, start.tics_per_action), FRAME_SIZE, crf=_CRF) as writer:
        for frame, env_action in play(world, start, num_frames):
            writer.write(frame, env_action_to_event(env_action, tick=writer.num_frames))
    return writer.num_frames


def _name_of(start: DoomStart) -> str:
    return f"{start.wad}-{start.map_name.lower()}-{start.seed}"


def _recorded_frames(folder: Path, start: DoomStart) -> int | None:
    """Frames of the whole recording that this start already has, None without one."""
    video, events = recording_files(folder / _name_of(start))
    if not video.is_file():
        return None
    with events.open("rb") as lines:
        return sum(1 for _ in lines)


def record(
    folder: Path,
    maps: Sequence[tuple[str, str]],
    num_frames: int,
    seed: int,
    frames_per_recording: int = 240,
    tics_per_action: int = 6,
) -> int:
    """Record about ``num_frames`` frames, taking turns on ``maps``; whole recordings found in ``folder`` are kept.

    The same arguments give the same recordings, so an interrupted call goes on where it stopped.

    Args:
        folder: where the recordings go.
        maps: pairs of WAD and map, for instance ``MAP_SETS["coach"]``.
        num_frames: at least so many are written (the last recording is not cut short).
        seed: of the starts.
        frames_per_recording: shorter only where the level's exit is reached.
        tics_per_action: engine tics (1/35 s) a frame.

    Returns:
        The number of frames in the folder's recordings of this call.
    """
    from tqdm import tqdm

    worlds: dict[str, DoomWorld] = {}
    frames = 0
    starts = draw_starts(maps, seed, tics_per_action)
    with tqdm(total=num_frames, unit="frame", desc=f"recording {folder.name}") as bar:
        while frames < num_frames:
            start = next(starts)
            written = _recorded_frames(folder, start)
            if written is None:
                if start.wad not in worlds:
                    worlds[start.wad] = DoomWorld(start.wad)
                written = record_episode(folder, worlds[start.wad], start, frames_per_recording)
            frames += written
            bar.update(written)
    for world in worlds.values():
        world.close()
    return frames
