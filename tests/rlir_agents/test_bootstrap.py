"""Intervals over draws of clips, and the share of a gap."""

import math

import pytest
import torch

from rlir_agents.bootstrap import interval, share_of_gap
from rlir_env.metrics import draw_weights, weighted_sum


def test_interval_of_a_mean_has_the_width_of_its_standard_error():
    # 400 clips, half 0, half 1: the standard error of the mean is 0.5 / sqrt(400) = 0.025, and the
    # 95 % interval 0.5 +- 1.96 * 0.025 = [0.451, 0.549].
    per_clip = (torch.arange(400) % 2).double()
    low, high = interval(weighted_sum(per_clip, draw_weights(400, 4000)) / 400)
    assert low == pytest.approx(0.451, abs=0.005)
    assert high == pytest.approx(0.549, abs=0.005)


def test_a_paired_interval_sees_a_real_gain_and_no_other():
    # Better in 30 of 100 clips: a gain of 0.3 with a standard error of sqrt(0.3 * 0.7 / 100) = 0.046.
    before = torch.zeros(100).double()
    after = (torch.arange(100) < 30).double()
    weights = draw_weights(100, 4000)
    means = [weighted_sum(values, weights) / 100 for values in (before, after)]
    assert interval(means[1] - means[0]) == pytest.approx([0.3 - 1.96 * 0.046, 0.3 + 1.96 * 0.046], abs=0.015)
    assert interval(means[1] - means[1]) == [0, 0]


def test_what_clips_have_in_common_cancels_in_a_paired_interval():
    # After = before + 0.1 in every clip, however much clips differ: every draw gains exactly 0.1.
    before = torch.rand(100, generator=torch.Generator().manual_seed(0)).double()
    weights = draw_weights(100)
    means = [weighted_sum(values, weights) / 100 for values in (before, before + 0.1)]
    assert interval(means[1] - means[0]) == pytest.approx([0.1, 0.1], abs=1e-6)


def test_share_of_gap():
    # (0.6 - 0.5) / (0.9 - 0.5) = 0.25; no gap, no share.
    before, after, ceiling = (torch.tensor([x, y]) for x, y in ((0.5, 0.5), (0.6, 0.6), (0.9, 0.5)))
    share = share_of_gap(before, after, ceiling)
    assert share[0].item() == pytest.approx(0.25)
    assert math.isnan(share[1].item())
    assert interval(share) is None
