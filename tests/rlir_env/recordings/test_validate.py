"""The folder check counts whole recordings and names what is wrong with the others."""

import numpy as np
import pytest

from rlir_env.recordings import RecordingError, validate_folder


def test_statistics_of_a_folder(record, event, tmp_path):
    record("a", levels=range(4), events=[event(forward=1)] * 3 + [event(is_gui=True)])
    record("b", levels=range(6), events=[event(back=1, attack=1)] * 6, fps=10)
    report = validate_folder(tmp_path)
    assert (report.num_recordings, report.num_frames) == (2, 10)
    assert report.seconds == pytest.approx(4 / 20 + 6 / 10)
    assert (report.num_gui, report.num_null) == (1, 1)
    # none, forward, back: 1, 3 and 6 of 10 lines
    np.testing.assert_allclose(report.class_shares["forward_back"], [0.1, 0.3, 0.6])
    np.testing.assert_allclose(report.class_shares["attack"], [0.4, 0.6])
    assert report.problems == []
    text = report.to_text()
    assert "none 10.0%  forward 30.0%  back 60.0%" in text
    assert "1 x 10 fps 64x48, 1 x 20 fps 64x48" in text
    assert "menu open      10.0% of frames" in text


def test_problems_are_named(record, tmp_path):
    record("whole")
    record("bad_line").with_suffix(".jsonl").write_text("{\n" * 20)
    cut = record("cut")
    cut.write_bytes(cut.read_bytes()[:500])
    record("no_video").unlink()
    record("no_events").with_suffix(".jsonl").unlink()
    (tmp_path / "x.mp4.part").touch()
    report = validate_folder(tmp_path)
    assert (report.num_recordings, report.num_frames) == (1, 20)
    text = report.to_text()
    for name in ("bad_line.jsonl:1", "cut.mp4", "no_video.jsonl", "no_events.jsonl", "x.mp4.part"):
        assert name in text
    assert len(report.problems) == 5


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(RecordingError, match="no recordings"):
        validate_folder(tmp_path)
