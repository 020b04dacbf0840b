"""Writing and reading back; every kind of broken recording names its file (and line)."""

import json

import numpy as np
import pytest

from rlir_env.recordings import (
    Recording,
    RecordingError,
    RecordingWriter,
    first_frames,
    list_recordings,
    write_generated_clip,
    write_recording,
)
from rlir_env.recordings.recording import options_file, read_options

MOUSE = '{"dx": %s, "dy": 0, "buttons": []}'


def rewrite_line(path, number, text):
    events = path.with_suffix(".jsonl")
    lines = events.read_text().splitlines()
    lines[number - 1] = text
    events.write_text("\n".join(lines) + "\n")


def test_frames_and_header_come_back(record):
    recording = Recording(record(levels=[0, 100, 200, 40]))
    assert (recording.num_frames, recording.fps, recording.frame_size) == (4, 20.0, (48, 64))
    frames = np.stack(list(recording.frames()))
    assert frames.dtype == np.uint8
    assert frames.shape == (4, 48, 64, 3)
    # A gray survives yuv420p's limited range (219 of 255 levels) and x264 within a few levels.
    for frame, level in zip(frames, [0, 100, 200, 40], strict=True):
        assert np.abs(frame.astype(int) - level).max() <= 3


def test_frames_are_resized_by_area(tmp_path, gray, event):
    frame = gray(0)
    frame[:, 32:] = 200  # left half black, right half gray
    write_recording(tmp_path / "a.mp4", [frame], [event()], fps=10)
    (small,) = Recording(tmp_path / "a.mp4").frames(size=(12, 16))
    assert small.shape == (12, 16, 3)
    # 4x4 areas, so the edge at column 32 of 64 is column 8 of 16 and stays sharp.
    np.testing.assert_allclose(small[:, :7], 0, atol=4)
    np.testing.assert_allclose(small[:, 9:], 200, atol=4)


def test_frames_are_resized_as_opencv_reads_and_resizes_them(tmp_path, event):
    cv2 = pytest.importorskip("cv2", reason="the independent implementation")
    noise = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), np.uint8)
    write_recording(tmp_path / "a.mp4", noise, [event()] * 3, fps=10)
    video = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    expected = [cv2.resize(video.read()[1], (37, 21))[..., ::-1] for _ in range(3)]
    recording = Recording(tmp_path / "a.mp4")
    np.testing.assert_array_equal(list(recording.frames((21, 37), "bilinear")), expected)
    assert not np.array_equal(list(recording.frames((21, 37))), expected)


def test_colours_are_rgb(tmp_path, gray, event):
    red = gray(0)
    red[..., 0] = 200
    write_recording(tmp_path / "a.mp4", [red], [event()], fps=10)
    (frame,) = Recording(tmp_path / "a.mp4").frames()
    np.testing.assert_allclose(frame.mean((0, 1)), [200, 0, 0], atol=6)


def test_actions_of_every_line(record, event):
    events = [event(forward=1), event(), event(is_gui=True, camera=(0, 9)), event(inventory=1)]
    track = Recording(record(levels=range(4), events=events)).actions()
    assert track.slots[:, 0].tolist() == [1, 0, 0, 0]
    assert track.slots[:, 8].tolist() == [5, 5, 10, 5]  # yaw 9 is VPT's last bin
    assert track.words.shape == (4, 11)
    assert track.words[0, 4] == 2  # local id of forward
    assert track.is_null.tolist() == [False, True, False, True]  # a menu key is null
    assert track.is_gui.tolist() == [False, False, True, False]


def test_conflicts_are_cancelled_or_kept(record, event):
    recording = Recording(record(levels=[0], events=[event(attack=1, use=1)]))
    assert recording.actions().slots[0, 3:5].tolist() == [0, 0]
    assert recording.actions(cancel_conflicts=False).slots[0, 3:5].tolist() == [1, 1]


def test_lines_may_be_env_actions(record):
    # MineWorld's validation clips: recognised by the key ESC, taken as they are.
    lines = [
        {"ESC": 0, "forward": 1, "attack": 1, "use": 1, "camera": [0.0, -9.5]},
        {"ESC": 0, "camera": [0, 0]},
    ]
    track = Recording(record(levels=[0, 9], events=lines)).actions()
    assert track.slots.tolist() == [[1, 0, 0, 1, 1, 0, 0, 5, 0], [0, 0, 0, 0, 0, 0, 0, 5, 5]]
    assert track.is_null.tolist() == [False, True]


def test_less_than_a_degree_is_not_null(record, event):
    # VPT's yaw bins of 0 and 0.9 degrees are 5 and 6: the line moved, whatever its format.
    lines = [{"ESC": 0, "camera": [0, 0.9]}, {"ESC": 1, "camera": [0, 9]}, {"ESC": 0, "jump": 1, "camera": [0, 0]}]
    track = Recording(record(levels=[0, 9, 0], events=lines)).actions()
    assert track.slots[0, 8] == 6
    assert track.is_null.tolist() == [False, True, False]
    # 6 pixels of 0.15 degrees, and an event's degrees are whole: 0, yet the mouse moved.
    moved = {**event(), "mouse": {"dx": 6.0, "dy": 0.0, "buttons": []}}
    track = Recording(record(levels=[0], events=[moved])).actions()
    assert (track.slots[0, 8], track.is_null[0]) == (5, False)


def test_options_beside_a_recording(record):
    path = record()
    assert read_options(path) == {}
    assert options_file(path).name == "a-options.json"
    options_file(path).write_text('{"num_frames": 4}')
    assert read_options(path.with_suffix("")) == {"num_frames": 4}
    for text, message in (("[1]", "not a JSON object"), ("{", "not JSON")):
        options_file(path).write_text(text)
        with pytest.raises(RecordingError, match=rf"a-options\.json: {message}"):
            read_options(path)


def test_names_may_hold_dots(tmp_path, gray, event):
    write_recording(tmp_path / "map01.seed3", [gray(0)], [event()], fps=10)
    assert [path.name for path in list_recordings(tmp_path)] == ["map01.seed3.mp4"]
    assert Recording(tmp_path / "map01.seed3").events() == [event()]


def test_typed_line_separators_do_not_split_a_line(record, event):
    path = record(levels=[0, 9])
    line = {**event(), "chars": "\u2028\x85"}
    rewrite_line(path, 1, json.dumps(line, ensure_ascii=False))
    assert Recording(path).events()[0] == line


def test_truncated_video(record):
    path = record()
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(RecordingError, match=r"a\.mp4: truncated or broken video"):
        Recording(path).actions()


def test_video_that_ends_before_its_header_says(record, damage):
    path = record(levels=np.random.default_rng(0).integers(0, 255, 20))
    damage(path)
    recording = Recording(path)
    assert recording.num_frames == 20
    with pytest.raises(RecordingError, match=r"a\.mp4: truncated or broken video"):
        list(recording.frames())


def test_not_a_video(record):
    path = record()
    path.write_text("<html>404</html>")
    with pytest.raises(RecordingError, match=r"a\.mp4: truncated or broken video"):
        list(Recording(path).frames())


def test_missing_files(tmp_path, record):
    record().with_suffix(".jsonl").unlink()
    with pytest.raises(RecordingError, match=r"a\.jsonl: missing"):
        Recording(tmp_path / "a.mp4")
    with pytest.raises(RecordingError, match=r"b\.mp4: missing"):
        Recording(tmp_path / "b.mp4")
    with pytest.raises(RecordingError, match="no such folder"):
        list_recordings(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"mouse": {"dx"', r"a\.jsonl:3: not JSON"),
        ("", r"a\.jsonl:3: not JSON"),
        ("[1, 2]", r"a\.jsonl:3: not a JSON object"),
        ('{"isGuiOpen": false, "keyboard": {"keys": []}}', r"a\.jsonl:3: missing key 'mouse'"),
        ('{"mouse": {}, "keyboard": {"keys": []}}', r"a\.jsonl:3: missing key 'isGuiOpen'"),
        ('{"isGuiOpen": false, "mouse": 3, "keyboard": {"keys": []}}', r"a\.jsonl:3: "),
        ('{"ESC": 0, "forward": 1}', r"a\.jsonl:3: .*camera"),
        ('{"ESC": 0, "camera": [0, Infinity]}', r"a\.jsonl:3: camera is \[0, inf\]"),
        ('{"ESC": 0, "camera": [0]}', r"a\.jsonl:3: camera is \[0\]"),
        ('{"ESC": 0, "camera": [0, 0], "fly": 1}', r"a\.jsonl:3: unknown buttons \['fly'\]"),
        (
            f'{{"isGuiOpen": false, "mouse": {MOUSE % "Infinity"}, "keyboard": {{"keys": []}}}}',
            r"a\.jsonl:3: .*infinity",
        ),
        (f'{{"isGuiOpen": false, "mouse": {MOUSE % "NaN"}, "keyboard": {{"keys": []}}}}', r"a\.jsonl:3: .*NaN"),
    ],
)
def test_bad_lines(record, line, message):
    path = record()
    rewrite_line(path, 3, line)
    with pytest.raises(RecordingError, match=message):
        Recording(path).actions()


def test_frame_and_line_counts_must_agree(record):
    path = record()
    with path.with_suffix(".jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(RecordingError, match=r"a\.jsonl: 21 lines for the 20 frames of a\.mp4"):
        Recording(path).actions()


def test_env_actions_may_go_on_behind_the_last_frame(record):
    path = record(events=[{"ESC": 0, "camera": [0, 0], "jump": t % 2} for t in range(20)])
    before = Recording(path).actions().slots
    with path.with_suffix(".jsonl").open("a") as file:
        file.write('{"ESC": 0, "camera": [0, 0]}\n')
    np.testing.assert_array_equal(Recording(path).actions().slots, before)


def test_recordings_lie_in_a_folder_or_below_it(record, tmp_path):
    paths = [record("a"), record("b")]
    assert list_recordings(tmp_path) == paths
    for folder, path in zip(("1", "2"), paths, strict=True):
        (tmp_path / folder).mkdir()
        path.rename(tmp_path / folder / path.name)
    assert [path.name for path in list_recordings(tmp_path)] == ["a.mp4", "b.mp4"]
    (tmp_path / "2" / "b.mp4").rename(tmp_path / "2" / "a.mp4")
    with pytest.raises(RecordingError, match="several recordings are named a"):
        list_recordings(tmp_path)


def test_events_that_are_not_text(record):
    path = record()
    path.with_suffix(".jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordingError, match=r"a\.jsonl: not text"):
        Recording(path).events()


def test_writer_rejects_what_it_cannot_store(tmp_path, gray, event):
    with pytest.raises(ValueError, match="even height and width"):
        RecordingWriter(tmp_path / "a.mp4", fps=20, size=(47, 64))
    with RecordingWriter(tmp_path / "a.mp4", fps=20, size=(48, 64)) as writer:
        with pytest.raises(ValueError, match="uint8"):
            writer.write(gray(0)[:40], event())
    with pytest.raises(ValueError, match="at least one frame"):
        write_recording(tmp_path / "a.mp4", [], [], fps=20)
    with pytest.raises(ValueError, match="shorter"):
        write_recording(tmp_path / "a.mp4", [gray(0)] * 2, [event()], fps=20)
    assert list(tmp_path.iterdir()) == []  # no frames, or an exception: nothing is left


def test_rewriting_replaces_the_old_recording(record):
    record(levels=[0] * 9)
    assert len(Recording(record(levels=[0, 50])).events()) == 2


def test_a_writer_killed_before_close_leaves_no_recording(tmp_path, gray, event):
    # What is on disk before close() is what a kill leaves behind, whenever it comes.
    writer = RecordingWriter(tmp_path / "a.mp4", fps=20, size=(48, 64))
    for level in range(100):
        writer.write(gray(level), event())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl.part", "a.mp4.part"]
    with pytest.raises(RecordingError, match="no recordings"):
        list_recordings(tmp_path)
    writer.close()
    writer.close()  # harmless
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "a.mp4"]
    assert len(list(Recording(tmp_path / "a.mp4").frames())) == 100


def test_generated_clips_are_written_as_opencv_writes_them(tmp_path):
    """At MineWorld's size: the same pixels as of its script, so that what is measured has lost the same."""
    cv2 = pytest.importorskip("cv2", reason="the independent implementation")
    rows, columns = np.mgrid[:224, :384]
    waves = [np.sin(rows / (7 + c) + t / 2) * np.cos(columns / (11 - c) - t / 3) for t in range(15) for c in range(3)]
    frames = (127 + 100 * np.stack(waves)).astype(np.uint8).reshape(15, 3, 224, 384).transpose(0, 2, 3, 1)
    write_generated_clip(tmp_path / "ours.mp4", frames)
    writer = cv2.VideoWriter(str(tmp_path / "theirs.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 6, (384, 224))
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    np.testing.assert_array_equal(first_frames(tmp_path / "ours.mp4", 15), first_frames(tmp_path / "theirs.mp4", 15))
