"""The recorder: disjoint maps, honest geometry, recordings that the reader takes, and replays to the last bit."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from rlir_env.recordings import Recording, list_recordings
from rlir_env.recordings.recorders.doom import MAP_SETS, DoomStart, DoomWorld, draw_starts, play, record, replay
from rlir_env.recordings.recorders.doom_map import DoomMap

pytest.importorskip("vizdoom")


@pytest.fixture(scope="module")
def world():
    world = DoomWorld("freedoom2")
    yield world
    world.close()


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
