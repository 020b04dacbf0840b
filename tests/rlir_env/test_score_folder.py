"""MineWorld's protocol on files, against scikit-learn and against the same figures in memory; and labels by an IDM."""

import json
import math
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from rlir_env.game_actions import (
    MINECRAFT,
    VPT_CAMERA,
    env_action_to_event,
    env_actions_to_slots,
    event_to_env_action,
)
from rlir_env.inverse_dynamics import VPTConfig, VPTInverseDynamics, label_frames
from rlir_env.metrics import compare_folder, psnr, score_folder, ssim
from rlir_env.recordings import RecordingError, first_frames, validation_clips, video_frames, write_recording
from rlir_env.resize import resize_like_opencv

pytest.importorskip("av")

NUM_FRAMES = 6
TASKS = {
    "('back', 'forward')": lambda a: (a["back"] and 1) or (a["forward"] and 2) if a["back"] != a["forward"] else 0,
    "('left', 'right')": lambda a: (a["left"] and 1) or (a["right"] and 2) if a["left"] != a["right"] else 0,
    "('sneak', 'sprint')": lambda a: (a["sneak"] and 1) or (a["sprint"] and 2) if a["sneak"] != a["sprint"] else 0,
    **{f"('{button}',)": (lambda a, button=button: a[button]) for button in ("use", "attack", "jump", "drop")},
}


@pytest.fixture(scope="module")
def idm() -> VPTInverseDynamics:
    torch.manual_seed(0)
    sizes = VPTConfig((12, 20), 8, (8, 16), impala_outsize=32, hidsize=32, num_heads=2, temperature=1.0)
    idm = VPTInverseDynamics(sizes)
    for head in idm.pi_head.values():
        torch.nn.init.normal_(head.linear_layer.weight, std=0.5)
    # Nobody ever reads or presses this one: scikit-learn sees a single class.
    idm.pi_head["buttons"].linear_layer.bias.data[2 * 9] = 100.0
    return idm.eval()


def play(seed: int) -> list[dict]:
    """Env actions in which opposites, and jump and sneak, are often pressed at once; nothing is dropped."""
    noise = np.random.default_rng(seed)
    names = ("attack", "back", "forward", "jump", "left", "right", "sneak", "sprint", "use")
    return [
        {**{name: int(noise.random() < 0.5) for name in names}, "drop": 0, "camera": noise.integers(-9, 10, 2).tolist()}
        for _ in range(NUM_FRAMES + 1)
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Videos of noise, and labels: raw events, and in every other file env actions."""
    videos, labels = (tmp_path_factory.mktemp(name) for name in ("videos", "labels"))
    noise = np.random.default_rng(0)
    for clip in range(8):
        frames = noise.integers(0, 256, (NUM_FRAMES + 1, 24, 40, 3), np.uint8)
        played = play(clip)
        lines = [env_action_to_event(a) if clip % 2 else {**a, "ESC": 0, "hotbar.1": 0} for a in played]
        write_recording(videos / f"clip_{clip}.mp4", frames[1:], lines[1:], fps=6)
        write_recording(labels / f"clip_{clip}.mp4", frames, lines, fps=6)
    return videos, labels


def read_as_labels(idm: VPTInverseDynamics, video: Path) -> list[dict]:
    """What the IDM reads of a video, as env actions."""
    return [event_to_env_action(event, cancel_conflicts=False)[0] for event in label_frames(video_frames(video), idm)]


def test_figures_equal_scikit_learn_with_absent_classes(folders, idm):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    videos, labels = folders
    scores = score_folder(videos, labels, idm, num_frames=NUM_FRAMES)
    played = [action for clip in range(8) for action in play(clip)[1:]]
    read = [action for clip in range(8) for action in read_as_labels(idm, videos / f"clip_{clip}.mp4")]
    assert scores.keys() == TASKS.keys() | {"metric_mean_on_task"}
    for task, classify in TASKS.items():
        pair = [[classify(action) for action in actions] for actions in (played, read)]
        for average in ("micro", "macro"):
            expected = sklearn_metrics.precision_recall_fscore_support(*pair, average=average, zero_division=0)[:3]
            found = [scores[task][f"{name}_{average}"] for name in ("precision", "recall", "f1")]
            assert found == pytest.approx(expected, abs=1e-12), (task, average)
        assert scores[task]["class_num"] == (3 if "," in task[:-2] else 2)
    assert scores["('drop',)"]["f1_macro"] == 1.0  # a single class
    bins = [VPT_CAMERA.encode([action["camera"] for action in actions]) for actions in (played, read)]
    mean = scores["metric_mean_on_task"]
    assert mean["camera_loss"] == pytest.approx(np.abs(bins[0] - bins[1]).mean())
    assert mean["f1_macro"] == pytest.approx(np.mean([scores[task]["f1_macro"] for task in TASKS]))


def test_lines_and_clips_are_those_of_the_protocol(folders, idm):
    videos, labels = folders
    by_line = [score_folder(videos, labels, idm, num_frames=NUM_FRAMES, first_line=line) for line in (0, 1)]
    assert by_line[0]["metric_mean_on_task"] != by_line[1]["metric_mean_on_task"]
    one = score_folder(videos, labels, idm, num_frames=NUM_FRAMES, max_clips=1)
    slots = torch.from_numpy(env_actions_to_slots(play(0)[1:]))
    frames = torch.from_numpy(first_frames(videos / "clip_0.mp4", NUM_FRAMES)).permute(0, 3, 1, 2)
    right = (idm.infer_game_actions(frames, align="mineworld") == slots).double().mean(0)
    assert one["('use',)"]["f1_micro"] == pytest.approx(right[MINECRAFT.index("use")].item())
    with pytest.raises(RecordingError, match="lines 2 to 7 are needed, counted from 0"):
        score_folder(videos, labels, idm, num_frames=NUM_FRAMES, first_line=2)
    with pytest.raises(RecordingError, match="6 frames, 7 are needed"):
        score_folder(videos, labels, idm, num_frames=7, first_line=0)
    with pytest.raises(RecordingError, match=r"more frames than the 6 labels from line 1 on; .* first_line=0"):
        score_folder(labels, labels, idm, num_frames=NUM_FRAMES)  # real videos, which hold the given frame


def test_missing_and_broken_files_are_named(folders, idm, tmp_path):
    videos, _ = folders
    with pytest.raises(RecordingError, match=r"no \*\.jsonl here"):
        score_folder(tmp_path, tmp_path, idm)
    with pytest.raises(RecordingError, match=r"no \*\.jsonl here"):
        score_folder(videos, tmp_path, idm, num_frames=NUM_FRAMES)
    (tmp_path / "clip_0.mp4").write_bytes(b"no video")
    (tmp_path / "clip_0.jsonl").write_text("\n".join(json.dumps(env_action_to_event(a)) for a in play(0)))
    with pytest.raises(RecordingError, match="clip_0.mp4: truncated or broken video"):
        score_folder(tmp_path, tmp_path, idm, num_frames=NUM_FRAMES)


def test_a_clip_scored_against_its_own_labels_is_right(folders, idm, tmp_path):
    videos, _ = folders
    for clip in range(8):
        events = label_frames(video_frames(videos / f"clip_{clip}.mp4"), idm)
        (tmp_path / f"clip_{clip}.jsonl").write_text("\n".join(map(json.dumps, events)))
    scores = score_folder(videos, tmp_path, idm, num_frames=NUM_FRAMES, first_line=0)
    assert all(scores[task]["f1_macro"] == scores[task]["f1_micro"] == 1.0 for task in TASKS)
    assert scores["metric_mean_on_task"]["camera_loss"] == 0.0


def test_labels_of_long_videos_need_one_stretch_of_memory(idm):
    frames = np.random.default_rng(0).integers(0, 256, (300, 24, 40, 3), np.uint8)
    taken = 0

    def counted():
        nonlocal taken
        for frame in frames:
            taken += 1
            yield frame

    labels = label_frames(counted(), idm)
    first = list(islice(labels, 1))
    assert taken == 128  # no more than the first stretch has been asked for
    events = first + list(labels)
    assert [event["tick"] for event in events] == list(range(300))
    assert events[130]["keyboard"] == list(label_frames(frames[128:256], idm))[2]["keyboard"]


def test_ssim_by_hand_and_of_equal_frames():
    frames = torch.rand(2, 3, 3, 16, 24)
    torch.testing.assert_close(ssim(frames, frames), torch.ones(2, 3, dtype=torch.float64))
    # Constant pictures have no variance: what is left is the comparison of means.
    dark, light = torch.full((1, 3, 11, 11), 0.2), torch.full((1, 3, 11, 11), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert ssim(dark, light).item() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="window of 11 pixels, frames are 10x24"):
        ssim(frames[..., :10, :], frames[..., :10, :])


def test_ssim_equals_its_definition_window_by_window():
    noise = np.random.default_rng(0)
    first = noise.random((3, 14, 17))
    second = np.clip(first + 0.2 * noise.standard_normal(first.shape), 0, 1)
    place = np.arange(11) - 5
    weight = np.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.5**2))
    weight /= weight.sum()
    values = []
    for channel, row, column in np.ndindex(3, 14 - 10, 17 - 10):
        x, y = (image[channel, row : row + 11, column : column + 11] for image in (first, second))
        mean_x, mean_y = (weight * x).sum(), (weight * y).sum()
        variance_x, variance_y = (weight * (x - mean_x) ** 2).sum(), (weight * (y - mean_y) ** 2).sum()
        covariance = (weight * (x - mean_x) * (y - mean_y)).sum()
        luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
        values.append(luminance * (2 * covariance + 9e-4) / (variance_x + variance_y + 9e-4))
    assert ssim(torch.from_numpy(first), torch.from_numpy(second)).item() == pytest.approx(np.mean(values), abs=1e-12)


def test_pictures_are_compared_with_the_frames_behind_the_given_one(folders):
    videos, labels = folders
    figures = compare_folder(videos, labels, num_frames=NUM_FRAMES, max_clips=3)
    assert {len(figures[name]["value"]) for name in ("psnr", "ssim")} == {NUM_FRAMES}
    # The same pictures, compressed twice.
    assert np.mean(figures["psnr"]["value"]) > 25 and np.mean(figures["ssim"]["value"]) > 0.9
    assert all(math.isfinite(value) for value in figures["psnr"]["value_std"])
    whole = compare_folder(labels, labels, num_frames=NUM_FRAMES, max_clips=3, first_frame=0)
    assert (
        np.mean(whole["ssim"]["value"]) == pytest.approx(1) and np.mean(whole["psnr"]["value"]) == 100
    )  # nothing differs
    shifted = compare_folder(labels, labels, num_frames=NUM_FRAMES, max_clips=3)  # frame j against frame j + 1
    assert np.mean(shifted["psnr"]["value"]) < 15
    one = [first_frames(path / "clip_0.mp4", NUM_FRAMES + at)[at:] for path, at in ((videos, 0), (labels, 1))]
    pixels = [torch.from_numpy(frames).permute(0, 3, 1, 2) for frames in one]
    resized = [resize_like_opencv(frames, (224, 384)).float() / 255 for frames in pixels]
    first = compare_folder(videos, labels, num_frames=NUM_FRAMES, max_clips=1)
    assert first["psnr"]["value"] == pytest.approx(psnr(*resized).tolist())


def test_pictures_are_of_the_first_clips_by_number(tmp_path):
    """As the script, which takes the first clips by name for action following."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 3, 24, 40, 3), np.uint8)
    for number, frames in zip((2, 10), noise, strict=True):
        played = [env_action_to_event(action) for action in play(number)]
        write_recording(tmp_path / "videos" / f"clip_{number}.mp4", frames[1:], played[1:3], fps=6)
        write_recording(tmp_path / "real" / f"clip_{number}.mp4", frames, played[:3], fps=6)
    (tmp_path / "real" / "clip_10.mp4").unlink()
    assert compare_folder(tmp_path / "videos", tmp_path / "real", num_frames=2, max_clips=1)["psnr"]["value"][0] > 15
    # And the first clips by number are those that are generated.
    (clip,) = validation_clips(tmp_path / "videos", (24, 40), num_frames=2, max_clips=1)
    assert clip.recording == "clip_2"


def test_labels_lie_where_the_archive_unpacks_them(folders, idm, tmp_path):
    """MineWorld's zip makes a folder within a folder."""
    videos, labels = folders
    flat = score_folder(videos, labels, idm, num_frames=NUM_FRAMES)
    with_folder = tmp_path / "copied" / "validation"
    shutil.copytree(labels, with_folder)
    assert score_folder(videos, with_folder.parent, idm, num_frames=NUM_FRAMES) == flat
    assert compare_folder(videos, with_folder.parent, NUM_FRAMES, 2) == compare_folder(videos, labels, NUM_FRAMES, 2)
    (with_folder / "clip_3.jsonl").unlink()
    with pytest.raises(RecordingError, match=r"clip_3\.jsonl is missing"):
        score_folder(videos, with_folder.parent, idm, num_frames=NUM_FRAMES)
