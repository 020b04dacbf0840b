"""VPT's own recordings: hygiene of its loader, index files, and MineWorld's layout of a validation set."""

import ast
import json

import numpy as np
import pytest

from rlir_env.game_actions import env_action_to_event
from rlir_env.recordings import (
    ClipFilter,
    ClipSource,
    Recording,
    RecordingError,
    VPTHygiene,
    VPTIndex,
    first_frames,
    list_recordings,
    paste_cursor,
    write_validation_clips,
)


def line(buttons=(), new_buttons=(), keys=(), hotbar=0, is_gui=False, x=0.0, y=0.0) -> dict:
    """An event as VPT's recorder writes it."""
    return {
        "mouse": {"x": x, "y": y, "dx": 3.0, "dy": 0.0, "buttons": list(buttons), "newButtons": list(new_buttons)},
        "keyboard": {"keys": [f"key.keyboard.{key}" for key in keys], "newKeys": [], "chars": ""},
        "isGuiOpen": is_gui,
        "hotbar": hotbar,
    }


def pressed(recording: Recording, button: str) -> list[int]:
    return [action[button] for action in recording.env_actions()[0]]


STUCK = [line([0], [0]), line([0]), line([0, 1], [1]), line([]), line([0], [0]), line([0])]


def test_attack_that_was_held_before_the_cut_is_left_out_until_it_is_pressed_anew(record):
    path = record(levels=range(0, 60, 10), events=STUCK)
    assert pressed(Recording(path), "attack") == [1, 1, 0, 0, 1, 1]  # MineWorld mends nothing; attack and use cancel
    mended = Recording(path, VPTHygiene(release_stuck_attack=True))
    assert pressed(mended, "attack") == [0, 0, 0, 0, 1, 1]
    assert mended.env_actions()[1].tolist()[1] is False  # the mouse moves still
    assert pressed(mended, "use") == [0, 0, 1, 0, 0, 0]  # what else was held stays


@pytest.mark.parametrize("first", [line([0], []), line([0, 1], [0, 1]), line([1], [1])])
def test_attack_that_begins_otherwise_is_not_stuck(record, first):
    path = record(levels=(0, 10), events=[first, line([0])])
    both = [pressed(Recording(path, VPTHygiene(release_stuck_attack=on)), "attack") for on in (False, True)]
    assert both[0] == both[1]


def test_a_new_hotbar_slot_presses_its_key(record):
    events = [line(hotbar=2), line(hotbar=2), line(hotbar=8, keys=["9"]), line(hotbar=0), line(hotbar=0)]
    path = record(levels=range(0, 50, 10), events=events)
    mended = Recording(path, VPTHygiene(press_changed_hotbar=True))
    for slot, expected in {3: [1, 0, 0, 0, 0], 9: [0, 0, 1, 0, 0], 1: [0, 0, 0, 1, 0]}.items():
        assert pressed(mended, f"hotbar.{slot}") == expected, slot
    assert pressed(Recording(path), "hotbar.3") == [0] * 5
    # The word that MineWorld reads has the hotbar in it.
    mendings = (VPTHygiene(), VPTHygiene(press_changed_hotbar=True))
    words = [Recording(path, hygiene).actions().words for hygiene in mendings]
    assert (words[0] != words[1]).any(1).tolist() == [True, False, False, True, False]


def test_a_cursor_is_drawn_where_a_menu_is_open(record):
    events = [line(), line(is_gui=True, x=640, y=360), line(is_gui=True, x=2000, y=2000)]
    path = record(levels=(100, 100, 100), events=events)  # 48 pixels high: a fifteenth of 720
    plain, drawn = (list(Recording(path, VPTHygiene(draw_cursor=on)).frames()) for on in (False, True))
    assert np.array_equal(plain[0], drawn[0]) and np.array_equal(plain[2], drawn[2])  # no menu; outside of the frame
    rows, columns = np.nonzero((plain[1] != drawn[1]).any(-1))
    assert rows.min() == 360 // 15 and columns.min() == 640 // 15  # its tip
    assert rows.max() < 360 // 15 + 16 and drawn[1].max() > 250


def test_a_cursor_is_cut_at_the_edges():
    frame = np.full((10, 12, 3), 100, np.uint8)
    cursor = np.zeros((4, 4, 4), np.uint8)
    cursor[..., 0], cursor[..., 3] = 255, 255
    cursor[0, 0, 3] = 51  # a fifth
    drawn = paste_cursor(frame, 10, 8, cursor)
    assert drawn[8, 10].tolist() == [131, 80, 80]  # 100 * .8 + 255 * .2, 100 * .8
    assert drawn[9, 11].tolist() == [255, 0, 0] and (drawn != frame).any(-1).sum() == 4
    assert (paste_cursor(frame, -3, -3, cursor) != frame).any(-1).sum() == 1
    assert paste_cursor(frame, 12, 0, cursor) is frame
    assert (frame == 100).all()


def test_hygiene_of_other_lines(record):
    whole = VPTHygiene(True, True, True)
    actions = [{"ESC": 0, "forward": 1, "camera": [0, 0]}] * 3
    assert pressed(Recording(record("env", (0, 10, 20), actions), whole), "forward") == [1, 1, 1]
    events = [env_action_to_event({"camera": (0, 0)})]
    del events[0]["hotbar"]
    with pytest.raises(RecordingError, match="not lines of VPT, which hygiene needs .*hotbar"):
        Recording(record("bare", (0,), events), whole).events()


def write_index(path, relpaths, basedir="https://example.org/data/"):
    path.write_text(json.dumps({"basedir": basedir, "relpaths": relpaths}))
    return path


@pytest.mark.parametrize("suffix", ["", ".mp4", ".jsonl"])
def test_index_files(tmp_path, suffix, caplog):
    names = ["6.x/a-1", "6.x/b-2", "10.0/c-3"]
    index = VPTIndex.read(write_index(tmp_path / "index.json", [name + suffix for name in names]))
    assert index.names == tuple(names)
    assert index.urls()[:2] == ["https://example.org/data/6.x/a-1.mp4", "https://example.org/data/6.x/a-1.jsonl"]
    with pytest.raises(RecordingError, match="none of the 3 recordings"):
        index.local(tmp_path)
    (tmp_path / "6.x").mkdir()
    for file in ("6.x/a-1.mp4", "6.x/a-1.jsonl", "b-2.mp4", "c-3.mp4", "c-3.jsonl"):  # of b-2 a half
        (tmp_path / file).touch()
    assert index.local(tmp_path) == [tmp_path / "6.x" / "a-1.mp4", tmp_path / "c-3.mp4"]
    assert "1 recordings of the index are not in" in caplog.text and "6.x/b-2" in caplog.text


@pytest.mark.parametrize("content", ["no json", "[]", '{"basedir": "x"}', '{"basedir": 1, "relpaths": ["a"]}'])
def test_other_files_are_no_index(tmp_path, content):
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(RecordingError, match=r"index\.json: no index of VPT recordings"):
        VPTIndex.read(tmp_path / "index.json")
    with pytest.raises(RecordingError, match="missing"):
        VPTIndex.read(tmp_path / "none.json")


def test_validation_clips_are_laid_out_as_mineworld_reads_them(record, tmp_path):
    events = [env_action_to_event({"forward": t % 2, "jump": 1, "sneak": 1, "camera": (0, t)}, t) for t in range(20)]
    path = record("one", range(0, 200, 10), events)
    source = ClipSource([path], (24, 32), num_frames=4, clip_filter=ClipFilter.keep_all())
    folder = tmp_path / "validation"
    assert write_validation_clips(source, folder, num_clips=3, seed=1) == 3
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        f"clip_{k}{suffix}" for k in range(3) for suffix in (".mp4", ".jsonl")
    )
    for video in list_recordings(folder):
        lines = video.with_suffix(".jsonl").read_text().splitlines()
        actions = [json.loads(text) for text in lines]
        assert len(actions) == 4 and actions == [ast.literal_eval(text) for text in lines]
        assert all(value in (0, 1) for action in actions for key, value in action.items() if key != "camera")
        start = actions[0]["camera"][1]  # degrees count the frames
        assert [action["camera"][1] for action in actions] == [start + k for k in range(4)]
        assert all(action["jump"] == 0 and "ESC" in action for action in actions)  # jump and sneak cancel
        frames = first_frames(video, 4)
        assert frames.shape == (4, 24, 32, 3)
        assert np.abs(frames.mean((1, 2, 3)) - 10 * (start + np.arange(4))).max() < 5  # compressed twice
        assert Recording(video).env_actions()[0] == actions
    with pytest.raises(ValueError, match="holds clips already"):
        write_validation_clips(source, folder)
    with pytest.raises(RecordingError, match="no clip of 99 frames"):
        write_validation_clips(ClipSource([path], (24, 32), num_frames=99), tmp_path / "other")
