"""Prompts from real clips: shapes, alignment, and the shipped format."""

import numpy as np
import pytest
import torch

from rlir_env.assets import write_prompts
from rlir_env.game_actions import env_action_to_event
from rlir_env.prompts import ClipPrompts
from rlir_env.recordings import ClipFilter, RecordingError, write_recording


@pytest.fixture
def folder(tmp_path):
    """One recording of three clips of four frames; frame t is gray 20 t, line t turns by t."""
    frames = [np.full((48, 64, 3), 20 * t, np.uint8) for t in range(12)]
    events = [env_action_to_event({"camera": [0, t], "jump": t % 2}) for t in range(12)]
    write_recording(tmp_path / "prompts.mp4", frames, events, fps=10)
    return tmp_path


def test_consecutive_clips_come_back(folder):
    prompts = ClipPrompts.from_folder(folder, (12, 16), num_frames=4)
    assert (prompts.num_prompts, prompts.num_frames) == (3, 4)
    prompt = prompts.get([2, 0])
    assert prompt.num_prompts == 2
    assert prompt.context_frames.shape == (2, 1, 3, 12, 16)
    assert prompt.target_frames.shape == (2, 3, 3, 12, 16)
    assert prompt.context_frames.dtype == torch.uint8
    levels = torch.cat([prompt.context_frames, prompt.target_frames], 1).float().mean((2, 3, 4))
    np.testing.assert_allclose(levels, [[160, 180, 200, 220], [0, 20, 40, 60]], atol=3)
    # Lines 8, 9, 10 and 0, 1, 2: line j of a clip leads from its frame j to frame j+1.
    assert prompt.game_action[..., 5].tolist() == [[0, 1, 0], [0, 1, 0]]
    assert prompt.game_action[1, :, 8].tolist() == [5, 6, 7]  # VPT's yaw bins of 0, 1, 2 degrees
    assert prompt.game_action_word.shape == (2, 3, 11)
    assert prompt.game_action_word.max() < 70


def test_nothing_is_filtered_unless_asked(folder):
    rule = ClipFilter(max_null_run=0)
    kept = ClipPrompts.from_folder(folder, (12, 16), num_frames=4, clip_filter=rule)
    assert kept.num_prompts == 2  # line 0 is null
    with pytest.raises(ValueError, match="no clip of 13 frames"):
        ClipPrompts.from_folder(folder, (12, 16), num_frames=13)
    with pytest.raises(RecordingError, match="no such folder"):
        ClipPrompts.from_folder(folder / "nowhere", (12, 16))


def test_more_context_and_no_targets(folder):
    prompts = ClipPrompts.from_folder(folder, (12, 16), num_frames=4, num_context_frames=2, has_targets=False)
    prompt = prompts.get(torch.arange(3))
    assert prompt.context_frames.shape[1] == 2
    assert prompt.game_action.shape[1] == 3  # still all actions
    assert prompt.target_frames is None


def test_a_set_of_prompts_is_cut_where_it_was_joined(folder, tmp_path):
    made = tmp_path / "made" / "dev.mp4"
    assert write_prompts(folder, made, (12, 16), num_clips=3, num_frames=4, clip_filter=ClipFilter.keep_all()) == 3
    assert ClipPrompts.from_folder(made.parent, (12, 16), num_frames=4).num_prompts == 3
    assert ClipPrompts.from_folder(made.parent, (12, 16), num_frames=4, stride=8).num_prompts == 2  # every other
    for options in ({"num_frames": 2}, {"num_frames": 6}, {"num_frames": 4, "stride": 2}):
        with pytest.raises(ValueError, match=r"dev\.mp4 is a row of clips of 4 frames; cut it with num_frames=4"):
            ClipPrompts.from_folder(made.parent, (12, 16), **options)


def test_subset_keeps_the_given_order(folder):
    prompts = ClipPrompts.from_folder(folder, (12, 16), num_frames=4)
    subset = prompts.subset([2, 1])
    assert subset.num_prompts == 2
    assert torch.equal(subset.get([0]).context_frames, prompts.get([2]).context_frames)


def test_tensors_that_do_not_fit():
    frames = torch.zeros(2, 4, 3, 8, 8, dtype=torch.uint8)
    slots, words = torch.zeros(2, 3, 9).long(), torch.zeros(2, 3, 11).long()
    with pytest.raises(ValueError, match="game_action_word is"):
        ClipPrompts(frames, slots, words[:, :2])
    with pytest.raises(ValueError, match="uint8"):
        ClipPrompts(frames.float(), slots, words)
    with pytest.raises(ValueError, match="num_context_frames"):
        ClipPrompts(frames, slots, words, num_context_frames=4)
