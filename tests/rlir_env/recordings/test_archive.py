"""The decoded archive equals the streamed clips, is reused, and is rebuilt when it must be."""

import numpy as np
import pytest
import torch

from rlir_env.recordings import ClipFilter, ClipSource, FrameArchive, RecordingError

SIZE = (12, 16)


@pytest.fixture
def paths(record, event):
    return [
        record("a", levels=range(0, 100, 10), events=[event(jump=t % 2) for t in range(10)]),
        record("b", levels=[7] * 5),
        record("c", levels=range(0, 240, 20), events=[event(camera=(0, t)) for t in range(12)]),
    ]


def test_clips_equal_the_streamed_ones(paths, tmp_path):
    rule = ClipFilter(max_static_run=1, max_null_run=0)
    archive = FrameArchive.build(paths, SIZE, tmp_path / "cache", rule)
    assert archive.num_frames == 27
    streamed = list(ClipSource(paths, SIZE, 4, stride=3, clip_filter=rule).iterate())
    # a: jump on odd lines only, so each window of three lines holds a null line; b: static;
    # c: line 0 is null, so of the windows 0, 3, 6 the first goes. c begins at frame 15.
    assert [(clip.recording, clip.start) for clip in streamed] == [("c", 3), ("c", 6)]
    starts = archive.clip_starts(4, stride=3)
    assert starts.tolist() == [18, 21]
    batch = archive.clips(starts, 4)
    for column in range(3):
        assert torch.equal(batch[column], torch.stack([clip[column] for clip in streamed]))


def test_windows_never_cross_recordings(paths, tmp_path):
    archive = FrameArchive.build(paths, SIZE, tmp_path / "cache", ClipFilter.keep_all())
    # a is 0-9, b 10-14, c 15-26; windows of 6 start in a at 0-4, nowhere in b, in c at 15-21.
    assert archive.clip_starts(6).tolist() == [*range(5), *range(15, 22)]
    assert archive.bounds.tolist() == [0, 10, 15, 27]


def test_sampling_is_by_generator(paths, tmp_path):
    archive = FrameArchive.build(paths, SIZE, tmp_path / "cache", ClipFilter.keep_all())
    first = archive.sample_clips(64, 3, torch.Generator().manual_seed(0))
    again = archive.sample_clips(64, 3, torch.Generator().manual_seed(0))
    assert first.frames.shape == (64, 3, 3, *SIZE)
    assert first.game_action.shape == (64, 2, 9)
    assert first.game_action_word.shape == (64, 2, 11)
    assert torch.equal(first.frames, again.frames)
    other = archive.sample_clips(64, 3, torch.Generator().manual_seed(1))
    assert not torch.equal(first.frames, other.frames)
    with pytest.raises(ValueError, match="no clip of 13 frames"):
        archive.sample_clips(1, 13, torch.Generator())


def test_the_archive_is_reused_until_sources_or_settings_change(paths, record, tmp_path):
    cache = tmp_path / "cache"

    def folders():
        return {path for path in cache.iterdir() if path.is_dir()}

    FrameArchive.build(paths, SIZE, cache)
    first = folders()
    (frames,) = (path / "frames.u8" for path in first)
    written = frames.stat().st_mtime_ns
    FrameArchive.build(paths, SIZE, cache, ClipFilter.keep_all())  # the filter is not stored
    assert folders() == first
    assert frames.stat().st_mtime_ns == written
    FrameArchive.build(paths, (6, 8), cache)
    assert len(folders()) == 2
    record("b", levels=range(0, 160, 20))
    assert FrameArchive.build(paths, SIZE, cache).num_frames == 30
    assert len(folders()) == 3


def test_a_build_that_failed_or_was_killed_leaves_no_archive(paths, tmp_path):
    cache = tmp_path / "cache"
    paths[2].with_suffix(".jsonl").write_text("{\n")
    with pytest.raises(RecordingError, match=r"c\.jsonl"):
        FrameArchive.build(paths, SIZE, cache)
    assert [path.suffix for path in cache.iterdir() if path.is_dir()] == [".part"]
    # The next build of the same files starts anew over the part.
    with pytest.raises(RecordingError, match=r"c\.jsonl"):
        FrameArchive.build(paths, SIZE, cache)


def test_broken_recordings_can_be_skipped(paths, damage, tmp_path, caplog):
    damage(paths[0])  # decodes half-way
    paths[1].with_suffix(".jsonl").unlink()
    for _ in range(2):  # decoded, and found decoded
        caplog.clear()
        archive = FrameArchive.build(paths, SIZE, tmp_path / "cache", on_error="skip")
        assert archive.recordings == ["c"]
        assert "skipped recordings: 2" in caplog.text and "a.mp4" in caplog.text and "b.jsonl" in caplog.text
    source = ClipSource(paths, SIZE, 2, clip_filter=ClipFilter.keep_all(), on_error="skip")
    assert {clip.recording for clip in source.iterate()} == {"c"}  # the two agree
    assert source.report.problems == archive.problems
    whole = FrameArchive.build(paths[2:], SIZE, tmp_path / "cache")
    starts = whole.clip_starts(5)
    np.testing.assert_array_equal(starts, archive.clip_starts(5))
    assert torch.equal(archive.clips(starts, 5).frames, whole.clips(starts, 5).frames)
    with pytest.raises(RecordingError, match="no readable recording"):
        FrameArchive.build(paths[:2], SIZE, tmp_path / "cache", on_error="skip")


def test_a_misspelt_on_error_is_refused(paths, tmp_path):
    with pytest.raises(ValueError, match="on_error='ignore': use 'raise' or 'skip'"):
        FrameArchive.build(paths, SIZE, tmp_path / "cache", on_error="ignore")
