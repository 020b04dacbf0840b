"""Metrics: figures about generated videos that no policy is trained on."""

from rlir_env.metrics.action_following import (
    ActionFollowing,
    action_following_scores,
    classification_scores,
    confusion_matrices,
    mineworld_scores,
    score_folder,
    slots_with_contrast,
)
from rlir_env.metrics.base import Metric
from rlir_env.metrics.bootstrap import draw_weights, weighted_sum
from rlir_env.metrics.video_quality import PSNR, compare_folder, psnr, ssim

__all__ = [
    "PSNR",
    "ActionFollowing",
    "Metric",
    "action_following_scores",
    "classification_scores",
    "compare_folder",
    "confusion_matrices",
    "draw_weights",
    "mineworld_scores",
    "psnr",
    "score_folder",
    "slots_with_contrast",
    "ssim",
    "weighted_sum",
]
