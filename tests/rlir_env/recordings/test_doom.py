"""The recorder: disjoint maps, honest geometry, recordings that the reader takes, and replays to the last bit."""

import struct
import subprocess
import sys
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from sklearn.metrics import f1_score

from rlir_env.recordings import Recording, list_recordings
from rlir_env.recordings.recorders.doom import MAP_SETS, draw_starts, play, record, replay
from rlir_env.recordings.recorders.doom_explorer import Explorer, ExplorerConfig
from rlir_env.recordings.recorders.doom_map import DoomMap
from rlir_env.recordings.recorders.doom_world import SPEEDS, DoomStart, DoomWorld
from rlir_env.recordings.recording import options_file

pytest.importorskip("vizdoom")


@pytest.fixture(scope="module")
def world():
    with DoomWorld("freedoom2") as world:
        yield world


@pytest.fixture(scope="module")
def steps(world):
    """Some 600 played frames: (view before, env action, view after)."""
    played = []
    for start in islice(draw_starts(freedoom2("coach"), seed=3), 10):
        view = world.reset(start)
        doom_map = DoomMap.from_wad(world.wad_path, start.map_name)
        explorer = Explorer(doom_map, start.tics_per_action, np.random.default_rng(start.seed), ExplorerConfig())
        for _ in range(60):
            env_action = explorer.act(view)
            before, view = view, world.step(env_action)
            if view.is_finished:
                break
            played.append((before, env_action, view))
    return played


def freedoom2(name):
    return [entry for entry in MAP_SETS[name] if entry[0] == "freedoom2"]


def test_map_sets_are_disjoint_and_complete():
    counts = Counter(entry for maps in MAP_SETS.values() for entry in maps)
    assert len(counts) == 68 and set(counts.values()) == {1}  # 4 x 9 and 32 maps


def test_walls_stop_a_player():
    # A square room of 256 with the player in its middle: 128 to the wall, less the player's radius of 16.
    corners = np.array([[0, 0], [256, 0], [256, 256], [0, 256], [0, 0]], np.float32)
    room = DoomMap(walls=np.concatenate([corners[:-1], corners[1:]], axis=1), things=corners[:1])
    for heading in (0, 90, 180, 270):
        assert room.clear_distance(np.array([128.0, 128.0]), heading) == pytest.approx(112)
    assert room.clear_distance(np.array([128.0, 128.0]), 0, reach=50) == 50


def write_room(path, things):
    """A WAD whose MAP01 is a square room of 256 with ``things``: (x, y, type)."""
    corners = [(0, 0), (256, 0), (256, 256), (0, 256)]
    lumps = {
        "MAP01": b"",
        "THINGS": b"".join(struct.pack("<5h", x, y, 0, kind, 7) for x, y, kind in things),
        "LINEDEFS": b"".join(struct.pack("<7H", i, (i + 1) % 4, 1, 0, 0, 0, 0xFFFF) for i in range(4)),
        "SIDEDEFS": struct.pack("<2h8s8s8sH", 0, 0, b"-", b"-", b"WALL", 0),
        "VERTEXES": b"".join(struct.pack("<2h", *corner) for corner in corners),
        "SECTORS": struct.pack("<2h8s8s3h", 0, 128, b"FLOOR", b"CEILING", 160, 0, 0),
    }
    directory, offset = b"", 12
    for name, data in lumps.items():
        directory += struct.pack("<2i8s", offset, len(data), name.encode())
        offset += len(data)
    path.write_bytes(struct.pack("<4s2i", b"PWAD", len(lumps), offset) + b"".join(lumps.values()) + directory)


@pytest.mark.parametrize("kind", [2028, 2035])  # a lamp, a barrel
def test_solid_things_stop_a_player_and_are_no_place_to_stand(tmp_path, kind):
    medikit = 2012
    write_room(tmp_path / "room.wad", [(48, 128, medikit), (128, 128, kind)])
    room = DoomMap.from_wad(tmp_path / "room.wad", "MAP01")
    assert room.things.tolist() == [[48, 128]]
    place = room.things[0]
    # 80 to the middle of the thing, less its radius and the player's, 16 each; past it only the wall stops.
    assert room.clear_distance(place, heading=0) == pytest.approx(48)
    assert room.clear_distance(place - [0, 40], heading=0) == pytest.approx(192)


def test_starts_are_where_a_player_can_stand(world):
    for start in islice(draw_starts(freedoom2("coach"), seed=0), 30):
        things = DoomMap.from_wad(world.wad_path, start.map_name).things
        assert (things == start.position).all(1).any()  # solid things are not among them


def test_keys_can_be_read_back_from_the_way_a_player_went(steps):
    # The way in the body frame, turned as at half of the frame; half of a sneaking frame's way is the threshold.
    ways = []
    for before, env_action, after in steps:
        heading = before.heading - env_action["camera"][1] / 2
        way = complex(*(after.position - before.position)) * np.exp(-1j * np.deg2rad(heading))
        ways.append([way.real, -way.imag])
    read = np.digitize(ways, [-SPEEDS["sneak"] * 3, SPEEDS["sneak"] * 3]) - 1  # [N, 2] of -1, 0, 1
    pressed = np.array([[a["forward"] - a["back"], a["right"] - a["left"]] for _, a, _ in steps])
    for axis in (0, 1):
        assert f1_score(pressed[:, axis], read[:, axis], average="macro") >= 0.9


def test_jumps_lift_off(steps):
    jumps = [after.is_on_ground for _, env_action, after in steps if env_action["jump"]]
    assert len(jumps) > 50 and np.mean(jumps) <= 0.05


def test_an_unclosed_world_ends_in_silence(tmp_path):
    program = "from rlir_env.recordings.recorders.doom_world import DoomWorld; world = DoomWorld('freedoom2'); 1 / 0"
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert ended.stderr.strip().endswith("ZeroDivisionError: division by zero") and not ended.stdout
    assert not list(tmp_path.iterdir())  # no log of a crash


def test_replays_are_bitwise(world):
    for start in islice(draw_starts(freedoom2("dev"), seed=7), 20):
        played = list(play(world, start, 12))
        frames = replay(world, start, [env_action for _, env_action in played[:-1]])
        np.testing.assert_array_equal(frames, np.stack([frame for frame, _ in played]))


def test_another_action_leads_elsewhere(world):
    start = next(draw_starts(freedoom2("dev"), seed=7))
    turned = {"camera": [0, 10]}
    frames = replay(world, start, [turned]), replay(world, start, [{"camera": [0, -10]}])
    np.testing.assert_array_equal(frames[0][0], frames[1][0])
    assert (frames[0][1] != frames[1][1]).any()


def test_a_start_survives_json():
    start = next(draw_starts(freedoom2("dev"), seed=1))
    assert DoomStart.from_json(start.to_json()) == start


def test_the_explorer_shows_every_visible_class(world):
    actions = [a for s in islice(draw_starts(freedoom2("coach"), seed=3), 12) for _, a in play(world, s, 60)]
    for key in ("forward", "back", "left", "right", "sprint", "sneak", "attack", "jump"):
        assert np.mean([action[key] for action in actions]) >= 0.05, key
    assert not any(action.get("drop") for action in actions)


def test_recordings_are_readable_and_go_on(tmp_path):
    arguments = (freedoom2("dev"), 50)
    assert record(tmp_path, *arguments, seed=5, frames_per_recording=25) >= 50
    videos = list_recordings(tmp_path)
    assert Recording(videos[0]).num_frames == 25
    before = videos[0].stat().st_mtime_ns
    record(tmp_path, freedoom2("dev"), 75, seed=5, frames_per_recording=25)
    assert len(list_recordings(tmp_path)) == 3
    assert videos[0].stat().st_mtime_ns == before  # whole recordings are kept


def test_recordings_of_other_settings_are_not_taken_for_the_same(tmp_path):
    settings = {"num_frames": 25, "seed": 5, "frames_per_recording": 25, "tics_per_action": 6}
    record(tmp_path, freedoom2("dev"), **settings)
    for name, value in {"tics_per_action": 4, "frames_per_recording": 50}.items():
        message = rf"{tmp_path} holds freedoom2-.*\.mp4, recorded with {name}={settings[name]}, not {value}: .*delete"
        with pytest.raises(ValueError, match=message):
            record(tmp_path, freedoom2("dev"), **{**settings, name: value})
    # An older options file tells the start only; its recording has the default length.
    (video,) = list_recordings(tmp_path)
    start = DoomStart.from_json(options_file(video).read_text())
    assert start.tics_per_action == 6
    options_file(video).write_text(start.to_json() + "\n")
    before = video.stat().st_mtime_ns
    assert record(tmp_path, freedoom2("dev"), num_frames=25, seed=5) == 25
    assert video.stat().st_mtime_ns == before
