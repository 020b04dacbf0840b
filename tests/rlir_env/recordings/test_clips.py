"""Windows, their filters, order, and what happens to broken recordings."""

import logging

import numpy as np
import pytest
import torch

from rlir_env.recordings import (
    ClipFilter,
    ClipSource,
    RecordingError,
    split_recordings,
)
from rlir_env.recordings.clips import mean_change

SIZE = (12, 16)


def starts(source, **options):
    return [(clip.recording, clip.start) for clip in source.iterate(**options)]


def test_a_clip_holds_its_frames_and_the_actions_between_them(record, event):
    # Line t presses jump iff t is even; frame t is gray of 10 t.
    path = record(events=[event(jump=1 - t % 2) for t in range(20)])
    clips = list(ClipSource([path], SIZE, num_frames=4, stride=6).iterate())
    assert [clip.start for clip in clips] == [0, 6, 12]  # 18 has no four frames left
    clip = clips[1]
    assert clip.frames.shape == (4, 3, *SIZE)
    assert clip.frames.dtype == torch.uint8
    levels = clip.frames.float().mean((1, 2, 3))
    np.testing.assert_allclose(levels, [60, 70, 80, 90], atol=3)
    assert clip.game_action[:, 5].tolist() == [1, 0, 1]  # lines 6, 7, 8
    assert clip.game_action_word[:, 8].tolist() == [6, 66, 6]


def test_the_line_behind_a_frame_can_be_the_one_that_makes_it(record, event):
    path = record(events=[event(jump=1 - t % 2) for t in range(20)])
    (clip, *_) = ClipSource([path], SIZE, num_frames=4, action_offset=1).iterate()
    assert clip.game_action[:, 5].tolist() == [0, 1, 0]  # lines 1, 2, 3


def test_null_actions_are_those_of_the_clip(record, event):
    """Of frames 0 to 3, made from lines 1 to 3."""
    options = {"num_frames": 4, "clip_filter": ClipFilter(max_null_run=2), "action_offset": 1}
    path = record(levels=range(0, 40, 10), events=[event(forward=int(t == 0)) for t in range(4)])
    assert starts(ClipSource([path], SIZE, **options)) == []
    path = record(levels=range(0, 40, 10), events=[event(forward=int(t == 3)) for t in range(4)])
    assert starts(ClipSource([path], SIZE, **options)) == [("a", 0)]


def test_recordings_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="several recordings are named a"):
        ClipSource([tmp_path / "1" / "a.mp4", tmp_path / "2" / "a.mp4"], SIZE)


def test_some_clips_of_many_recordings(record):
    source = ClipSource([record(name) for name in "abcd"], SIZE, num_frames=2, clips_per_recording=3)
    drawn = starts(source, shuffle_seed=1)
    assert sorted(name for name, _ in drawn) == sorted("abcd" * 3) and source.report.num_clips == 12
    assert len(set(drawn)) == 12 and drawn == starts(source, shuffle_seed=1) != starts(source, shuffle_seed=2)
    assert {start for _, start in drawn} - {0, 2, 4}  # not the first of each


def test_windows_are_disjoint_by_default(record):
    assert starts(ClipSource([record()], SIZE, num_frames=5)) == [("a", s) for s in (0, 5, 10, 15)]


def test_windows_with_an_open_menu_are_dropped(record, event):
    path = record(events=[event(is_gui=t == 7, forward=1) for t in range(20)])
    source = ClipSource([path], SIZE, num_frames=4)  # windows 0-3, 4-7, 8-11, ...
    assert starts(source) == [("a", s) for s in (0, 8, 12, 16)]
    assert source.report.num_dropped == {"gui": 1}
    keep = ClipSource([path], SIZE, num_frames=4, clip_filter=ClipFilter(drop_gui=False))
    assert len(starts(keep)) == 5


def test_windows_with_a_long_run_of_null_actions_are_dropped(record, event):
    # Null lines 3, 4 and 9-13. Frames 4 s .. 4 s + 4 use lines 4 s .. 4 s + 3:
    # 0-3 holds one null, 4-7 one, 8-11 three in a row, 12-15 two.
    null = {3, 4, 9, 10, 11, 12, 13}
    path = record(events=[event(forward=int(t not in null)) for t in range(20)])
    options = {"num_frames": 5, "stride": 4}
    two = ClipSource([path], SIZE, **options, clip_filter=ClipFilter(max_null_run=2))
    assert starts(two) == [("a", 0), ("a", 4), ("a", 12)]  # 16-20 has no fifth frame
    assert two.report.num_dropped == {"null": 1}
    one = ClipSource([path], SIZE, **options, clip_filter=ClipFilter(max_null_run=1))
    assert starts(one) == [("a", 0), ("a", 4)]
    off = ClipSource([path], SIZE, **options, clip_filter=ClipFilter(max_null_run=None))
    assert len(starts(off)) == 4


def test_the_line_of_the_last_frame_does_not_count(record, event):
    # Window 0-3 uses lines 0-2; line 3 acts after it.
    path = record(levels=[0, 10, 20, 30], events=[*[event(jump=1)] * 3, event()])
    assert len(starts(ClipSource([path], SIZE, 4, clip_filter=ClipFilter(max_null_run=0)))) == 1


def test_static_scenes_are_dropped(record):
    # Still from frame 4 to frame 9: transitions 4-5 .. 8-9 are static, five in a row.
    levels = [0, 20, 40, 60, *[80] * 6, 100, 120]
    options = {"num_frames": 6, "stride": 6}  # windows 0-5 (one static transition), 6-11 (three)
    path = record(levels=levels)
    source = ClipSource([path], SIZE, **options, clip_filter=ClipFilter(max_static_run=2))
    assert starts(source) == [("a", 0)]
    assert source.report.num_dropped == {"static": 1}
    off = ClipSource([path], SIZE, **options, clip_filter=ClipFilter.keep_all())
    assert len(starts(off)) == 2


def test_all_windows_of_a_recording_are_judged_as_one_by_one():
    rng = np.random.default_rng(0)
    is_gui, is_null = rng.random(60) < 0.03, rng.random(60) < 0.5
    change = np.where(rng.random(60) < 0.5, 0.0, 9.0)
    rule = ClipFilter(max_static_run=2, max_null_run=3)
    together = rule.reject(is_gui, is_null, change, 7)

    def longest(flags):
        runs = "".join("x" if flag else " " for flag in flags).split()
        return max(map(len, runs), default=0)

    for s in range(60 - 7 + 1):
        assert together["gui"][s] == is_gui[s : s + 7].any()
        assert together["null"][s] == (longest(is_null[s : s + 6]) > 3)
        assert together["static"][s] == (longest(change[s : s + 6] < 0.5) > 2)


def test_mean_change_does_not_wrap():
    # uint8 10 - 250 would wrap to 16
    assert mean_change(np.array([10, 0], np.uint8), np.array([250, 0], np.uint8)) == 120.0


def test_shuffling_is_deterministic_and_complete(record):
    paths = [record(name) for name in "abcd"]
    source = ClipSource(paths, SIZE, num_frames=4)
    in_order = starts(source)
    assert in_order == [(name, s) for name in "abcd" for s in range(0, 20, 4)]
    shuffled = starts(source, shuffle_seed=1, buffer=3)
    assert shuffled == starts(source, shuffle_seed=1, buffer=3)
    assert shuffled != in_order
    assert sorted(shuffled) == in_order
    assert starts(source, shuffle_seed=2, buffer=3) != shuffled


def test_a_broken_recording_raises(record):
    paths = [record("a"), record("b")]
    paths[0].with_suffix(".jsonl").write_text("{\n")
    with pytest.raises(RecordingError, match=r"a\.jsonl"):
        list(ClipSource(paths, SIZE, 4).iterate())


def test_broken_recordings_can_be_skipped_and_are_reported(record, tmp_path, caplog):
    paths = [record("a"), record("b"), tmp_path / "c.mp4"]
    paths[0].with_suffix(".jsonl").write_text("{\n")
    source = ClipSource(paths, SIZE, 4, on_error="skip")
    with caplog.at_level(logging.WARNING):
        assert {name for name, _ in starts(source)} == {"b"}
    report = source.report
    assert (report.num_recordings, report.num_clips, len(report.problems)) == (1, 5, 2)
    assert "a.jsonl" in report.problems[0]
    assert "c.mp4" in report.problems[1]
    assert "5 clips of 1 recordings; dropped windows: none; skipped recordings: 2" in caplog.text


@pytest.mark.parametrize("shuffle_seed", [None, 0])
def test_a_recording_that_turns_out_broken_later_gives_no_clip(record, damage, shuffle_seed):
    paths = [record("a", levels=np.random.default_rng(0).integers(0, 255, 40)), record("b")]
    damage(paths[0])
    streamed = []
    with pytest.raises(RecordingError, match=r"a\.mp4: truncated or broken"):
        streamed.extend(ClipSource(paths, SIZE, 2).iterate())
    source = ClipSource(paths, SIZE, 2, on_error="skip")
    names = [name for name, _ in starts(source, shuffle_seed=shuffle_seed)]
    assert names == ["b"] * 10
    report = source.report
    assert (report.num_recordings, report.num_clips, len(report.problems)) == (1, 10, 1)
    assert report.num_dropped == {}


@pytest.mark.parametrize(
    "options",
    [
        {"num_frames": 1},
        {"stride": 0},
        {"on_error": "ignore"},
        {"action_offset": 2},
        {"clips_per_recording": 0},
        {"resampling": "nearest"},
    ],
)
def test_bad_arguments(options):
    with pytest.raises(ValueError, match="use"):
        ClipSource([], SIZE, **options)


@pytest.mark.parametrize("name", ["max_static_run", "max_null_run", "static_threshold"])
def test_a_filter_counts_from_zero(name):
    with pytest.raises(ValueError, match=f"{name}=-1"):
        ClipFilter(**{name: -1})


def test_split_is_by_name_and_stable():
    paths = [f"run_{k}.mp4" for k in range(1000)]
    fractions = {"train": 0.8, "validation": 0.2}
    parts = split_recordings(paths, fractions, seed=3)
    assert sorted(p.name for part in parts.values() for p in part) == sorted(paths)
    # Binomial: 800 +- 13 (one sigma), so five sigma is 65.
    assert abs(len(parts["train"]) - 800) < 65
    fewer = split_recordings(paths[::2], fractions, seed=3)
    assert set(fewer["train"]) < set(parts["train"])
    assert split_recordings(paths, fractions, seed=4) != parts
    with pytest.raises(ValueError, match="sum to"):
        split_recordings(paths, {"train": 0.8})
