"""Metrics: equal to scikit-learn's, worked out by hand, and the bootstrap's intervals."""

import math

import numpy as np
import pytest
import torch

from rlir_env.game_actions import MINECRAFT, GameActionSpec, Slot
from rlir_env.metrics import (
    PSNR,
    ActionFollowing,
    action_following_scores,
    classification_scores,
    confusion_matrices,
    draw_weights,
    psnr,
    slots_with_contrast,
    weighted_sum,
)

SPEC = GameActionSpec(
    (
        Slot("move", ("none", "left", "right")),
        Slot("drop", ("none", "pressed")),
        Slot("yaw", ("-1", "0", "+1"), is_ordered=True),
    )
)


def random_slots(num_clips, seed, num_readings=15):
    noise = torch.Generator().manual_seed(seed)
    columns = [
        # Squaring a uniform number makes low classes frequent and high ones rare or absent.
        (torch.rand(num_clips, num_readings, generator=noise) ** 4 * num_classes).long()
        for num_classes in MINECRAFT.num_classes
    ]
    return torch.stack(columns, dim=-1)


def test_confusion_counts_by_clip_and_slot():
    true = torch.tensor([[[0, 0, 1], [1, 0, 1]], [[2, 1, 0], [2, 0, 2]]])
    read = torch.tensor([[[0, 0, 1], [2, 0, 0]], [[2, 0, 0], [2, 0, 1]]])
    counts = confusion_matrices(read, true, SPEC)
    assert counts.shape == (2, 3, 3, 3) and counts.dtype == torch.int64
    assert counts[0, 0].tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]  # 0 read 0, 1 read 2
    assert counts[1, 0].tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 2]]
    assert counts[1, 1].tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert counts[0, 2].tolist() == [[0, 0, 0], [1, 1, 0], [0, 0, 0]]


def test_scores_by_hand():
    # Class 0: 3 played, all read as 0, and one 1 read as 0 too: P 3/4, R 1, F1 6/7.
    # Class 1: 2 played, one read: P 1, R 1/2, F1 2/3. Class 2 occurs nowhere: left out.
    scores = classification_scores(torch.tensor([[3, 0, 0], [1, 1, 0], [0, 0, 0]]))
    assert scores["precision"].item() == pytest.approx((3 / 4 + 1) / 2)
    assert scores["recall"].item() == pytest.approx((1 + 1 / 2) / 2)
    assert scores["f1"].item() == pytest.approx((6 / 7 + 2 / 3) / 2)
    assert scores["accuracy"].item() == pytest.approx(4 / 5)
    # A class that is only read, never played, counts with zeros: F1 of class 0 is 2/3, of 1 zero.
    scores = classification_scores(torch.tensor([[1, 1], [0, 0]]))
    assert scores["f1"].item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_scikit_learn(seed):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    # Few readings, so that classes are absent from labels, from readings and from both.
    true, read = random_slots(2, seed, 6), random_slots(2, seed + 100, 6)
    scores = classification_scores(confusion_matrices(read, true).sum(0))
    for s in range(9):
        labels = true[..., s].flatten().numpy(), read[..., s].flatten().numpy()
        for average in ("macro", "micro"):
            expected = sklearn_metrics.precision_recall_fscore_support(*labels, average=average, zero_division=0)[:3]
            names = ("precision", "recall", "f1") if average == "macro" else ("accuracy",) * 3
            assert [scores[name][s].item() for name in names] == pytest.approx(expected)


def test_the_protocol_averages_seven_slots_and_we_quote_those_with_contrast():
    true = torch.zeros(1, 4, 9, dtype=torch.long)
    true[..., 7:] = 5  # camera at rest
    read = true.clone()
    true[0, :2, 5] = 1  # jump is pressed twice and read once, nothing else ever is
    read[0, 0, 5] = 1
    metric = ActionFollowing()
    metric.update(read, true)
    figures = metric.compute()
    # Jump: class 0 played 2, read 3, both right: F1 4/5; class 1 played 2, read 1: F1 2/3.
    jump = (4 / 5 + 2 / 3) / 2
    assert figures["action_following/f1/jump"] == pytest.approx(jump)
    assert figures["action_following/f1"] == pytest.approx(jump)
    assert figures["action_following/mineworld/f1_macro"] == pytest.approx((6 + jump) / 7)
    assert figures["action_following/mineworld/recall_micro"] == pytest.approx((6 + 3 / 4) / 7)
    assert figures["action_following/recall"] == pytest.approx(3 / 4)
    assert figures["action_following/precision"] == pytest.approx((2 / 3 + 1) / 2)
    assert figures["action_following/camera_accuracy"] == 1
    assert figures["action_following/camera_loss"] == 0
    assert all(isinstance(value, float) for value in figures.values())


def test_camera_loss_is_the_mean_distance_in_bins():
    true, read = random_slots(6, 0), random_slots(6, 1)
    metric = ActionFollowing()
    metric.update(read, true)
    figures = metric.compute()
    distance = (true - read)[..., 7:].abs().double()
    assert figures["action_following/camera_loss"] == pytest.approx(distance.mean().item())
    expected = (distance == 0).double().mean().item()
    assert figures["action_following/camera_accuracy"] == pytest.approx(expected)


def test_batches_add_up_and_reset_forgets():
    true, read = random_slots(6, 0), random_slots(6, 1)
    whole, parts = ActionFollowing(), ActionFollowing()
    whole.update(read, true)
    parts.update(read[:2], true[:2])
    parts.update(read[2:], true[2:])
    assert parts.compute() == whole.compute()
    assert parts.per_clip.shape == (6, 9, 11, 11)
    parts.reset()
    with pytest.raises(ValueError, match="no clips"):
        parts.compute()


def test_an_offset_of_one_lowers_f1():
    true = random_slots(20, 0)
    scores = []
    for offset in (-1, 0, 1):
        metric = ActionFollowing()
        metric.update(true.roll(offset, dims=1), true)
        scores.append(metric.compute()["action_following/f1"])
    assert scores[1] == 1 and max(scores[0], scores[2]) < 0.8


def test_games_without_camera_and_sets_without_contrast():
    spec = GameActionSpec(SPEC.slots[:2])
    still = torch.zeros(1, 3, 2, dtype=torch.long)
    scores = action_following_scores(confusion_matrices(still, still, spec).sum(0), spec)
    assert "camera_loss" not in scores
    assert math.isnan(scores["f1"]) and scores["mineworld/f1_macro"] == 1


def test_wrong_labels_are_refused():
    slots = random_slots(1, 0)
    with pytest.raises(ValueError, match="same shape"):
        ActionFollowing().update(slots, slots[:, :-1])
    with pytest.raises(ValueError, match=r"\[N, n, 9\]"):
        ActionFollowing().update(slots[..., :7], slots[..., :7])
    bad = slots.clone()
    bad[0, 0, 5] = 2  # jump has two classes
    with pytest.raises(ValueError, match="inferred has classes outside"):
        ActionFollowing().update(bad, slots)


def test_draws_equal_recomputation_from_labels():
    true, read = random_slots(12, 0), random_slots(12, 1)
    tables = confusion_matrices(read, true)
    quoted = slots_with_contrast(tables.sum(0))
    weights = draw_weights(12, num_draws=5, seed=3)
    drawn = action_following_scores(weighted_sum(tables, weights), quoted_slots=quoted)["f1"]
    for d in range(5):
        clips = torch.repeat_interleave(torch.arange(12), weights[d].long())
        counts = confusion_matrices(read[clips], true[clips]).sum(0)
        expected = action_following_scores(counts, quoted_slots=quoted)["f1"]
        assert drawn[d].item() == pytest.approx(expected.item())
    assert weights.sum(1).tolist() == [12] * 5


def test_psnr_by_hand():
    reference = torch.full((2, 3, 3, 4, 4), 0.5)
    generated = reference.clone()
    generated[0, 1] += 0.1  # MSE 0.01: 20 dB
    generated[1, 2, 0] += 0.1  # one channel of three: MSE 0.01 / 3, 20 + 10 log10(3) dB
    by_frame = psnr(generated, reference)
    one_channel = 20 + 10 * math.log10(3)
    expected = [[100, 20, 100], [100, 100, one_channel]]
    assert np.allclose(by_frame, expected, atol=1e-4)
    metric = PSNR()
    metric.update(generated, reference)
    assert metric.compute()["video/psnr"] == pytest.approx((4 * 100 + 20 + one_channel) / 6, rel=1e-5)
    assert metric.per_clip.shape == (2, 3)
    with pytest.raises(ValueError, match="divide uint8"):
        metric.update(generated.to(torch.uint8), reference.to(torch.uint8))
