"""Real first-person gameplay without a download: an explorer plays Freedoom maps in ViZDoom and writes VPT recordings.

ViZDoom ships the engine and Freedoom (BSD licence) in its wheel. The game is in `doom_world`, the player in
`doom_explorer`, where walls are in `doom_map`; here is which maps are played, from where, and what is written. `use`
shows only at doors and switches, and dropping works once in Doom, so it is never pressed: both slots are recorded
honestly and read by nobody.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from functools import lru_cache
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from rlir_env.game_actions import env_action_to_event
from rlir_env.recordings import RecordingWriter
from rlir_env.recordings.recorders.doom_explorer import Explorer, ExplorerConfig
from rlir_env.recordings.recorders.doom_map import DoomMap
from rlir_env.recordings.recorders.doom_world import FRAME_SIZE, TICS_PER_SECOND, DoomStart, DoomWorld
from rlir_env.recordings.recording import options_file, read_options, recording_files

_FRAMES_PER_RECORDING = 240  # what a recording has whose options file, an older one, does not tell
_CRF = 20  # frames are read at less than half their size, where its loss is gone
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
    doom_map = _load_map(start.wad, start.map_name)
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
    """Play from ``start`` and write one recording, and beside it the start and ``num_frames`` as its options file.

    Args:
        folder: where the recording goes, made if it is missing.
        world: of the start's WAD.
        start: where the player begins.
        num_frames: at most so many, fewer where the level's exit is reached.

    Returns:
        The number of frames.
    """
    video, _ = recording_files(folder / _name_of(start))
    folder.mkdir(parents=True, exist_ok=True)
    options = json.dumps(_options(start, num_frames))
    options_file(video).write_text(options + "\n", encoding="utf-8")  # first: a whole video has its start beside it
    with RecordingWriter(video, Fraction(TICS_PER_SECOND, start.tics_per_action), FRAME_SIZE, crf=_CRF) as writer:
        for frame, env_action in play(world, start, num_frames):
            writer.write(frame, env_action_to_event(env_action, tick=writer.num_frames))
    return writer.num_frames


def _name_of(start: DoomStart) -> str:
    return f"{start.wad}-{start.map_name.lower()}-{start.seed}"


def _options(start: DoomStart, frames_per_recording: int) -> dict[str, Any]:
    """What stands in the options file of a recording, as JSON gives it back."""
    return {**json.loads(start.to_json()), "frames_per_recording": frames_per_recording}


def _recorded_frames(folder: Path, start: DoomStart, frames_per_recording: int) -> int | None:
    """Frames of the whole recording that this start already has, None without one.

    Raises:
        ValueError: if it was made with other settings.
    """
    video, events = recording_files(folder / _name_of(start))
    if not video.is_file():
        return None
    wanted = _options(start, frames_per_recording)
    found = {"frames_per_recording": _FRAMES_PER_RECORDING, **read_options(video)}
    different = [f"{key}={found.get(key)}, not {value}" for key, value in wanted.items() if found.get(key) != value]
    if different:
        raise ValueError(
            f"{folder} holds {video.name}, recorded with {', '.join(different)}: record into another folder, or delete "
            "this one to record it anew"
        )
    with events.open("rb") as lines:
        return sum(1 for _ in lines)


def record(
    folder: Path,
    maps: Sequence[tuple[str, str]],
    num_frames: int,
    seed: int,
    frames_per_recording: int = _FRAMES_PER_RECORDING,
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

    Raises:
        ValueError: if the folder holds a recording from one of these starts that was made with other settings.
    """
    from tqdm import tqdm

    worlds: dict[str, DoomWorld] = {}
    frames = 0
    starts = draw_starts(maps, seed, tics_per_action)
    with ExitStack() as engines, tqdm(total=num_frames, unit="frame", desc=f"recording {folder.name}") as bar:
        while frames < num_frames:
            start = next(starts)
            written = _recorded_frames(folder, start, frames_per_recording)
            if written is None:
                if start.wad not in worlds:
                    worlds[start.wad] = engines.enter_context(DoomWorld(start.wad))
                written = record_episode(folder, worlds[start.wad], start, frames_per_recording)
            frames += written
            bar.update(written)
    return frames
