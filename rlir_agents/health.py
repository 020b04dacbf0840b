"""Is the run well? The figures that answer what users ask, from the rollout and from the update.

Every logged name is explained here once, with its estimator. What is *not* here: metrics of the
videos (``rlir_env/metrics``), which come from the evaluation.

From the rollout (`rollout_health`):
    * ``reward/mean``, and ``reward/group_spread``: the mean over groups of its sample deviation.
    * ``reward/<entry>/<name>``: mean of a breakdown entry by name, such as the match of each slot.
    * ``train/groups_without_spread``: share of (group, step) pairs whose advantage is zero for all
      siblings: they teach nothing. With sequence credit this is the share of groups.
    * ``train/log_prob_mismatch``: mean absolute difference of the log-prob at collection (step mode)
      and as recomputed (sequence mode): rounding only, or something is wrong with the cache.

From the update (`UpdateHealth`), means over all micro-batches of all epochs, weighed by the actions
that the loss saw (not those of rollouts that were dropped):
    * ``train/ratio_at_first_update``: probability ratio before the first optimiser step, the farther
      from one of its mean and its maximum (both are one only if all ratios are). Must be 1.
    * ``train/clip_fraction``: share of ratios outside the clip range.
    * ``train/kl_to_ref``: KL(policy || reference) in nats per action, or per number of a latent where log-probs
      are such means: estimated for tokens, exact for denoising steps (`kl_to_reference`).
    * ``train/kl_to_behaviour``: mean of ``log p_old - log p``, the k1 estimate of KL(old || policy),
      in nats per action; unlike k3 it can fall below zero by chance.
    * ``train/entropy``: mean entropy of the policy's distribution, in nats per action.
    * ``train/grad_norm``: norm of the gradient before clipping, mean over optimiser steps.
    * ``train/loss_*``: the terms of the loss. ``train/max_ratio``, ``train/mean_ratio``: of the probability ratios.

``train/learning_rate`` is the iteration's own. ``seconds/{rollout,reward,score,diagnose,update,evaluate}``
are wall seconds that do not overlap; the reward includes decoding the videos, the score is
log-probs and advantage.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from tensordict import TensorDictBase

# TorchRL's name for the diagnostic -> ours.
_RENAMED = {"kl_approx": "kl_to_behaviour"}
# ESS is a vector over time, taken across unrelated rollouts of one micro-batch: no figure of a run.
_LEFT_OUT = {"ESS"}
# Shown while training; everything else is in the log.
_ON_CONSOLE = {
    "reward/mean": "reward",
    "train/ratio_at_first_update": "ratio",
    "train/kl_to_ref": "kl",
    "train/clip_fraction": "clipped",
    "train/groups_without_spread": "no spread",
    "train/grad_norm": "grad",
    "seconds/rollout": "rollout s",
    "seconds/reward": "reward s",
    "seconds/update": "update s",
}


def rollout_health(rollout: TensorDictBase, breakdown_names: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Figures of one collected batch; see the module docstring.

    Args:
        rollout: [P, G, T] with ``advantage``; ``collection_log_prob`` if log-probs were recomputed.
        breakdown_names: for entries [..., n] that the reward reports at the end, the n names of
            their last dimension.

    Returns:
        Flat dict of floats.
    """
    reward = rollout["next", "reward"].sum(dim=2)  # [P, G, 1]
    advantage = rollout["advantage"]
    figures = {
        "reward/mean": reward.mean(),
        "reward/group_spread": reward.std(dim=1, correction=min(1, reward.shape[1] - 1)).mean(),
        "train/groups_without_spread": (advantage == 0).all(dim=1).float().mean(),
    }
    for entry, names in breakdown_names.items():
        values = rollout["next", entry][:, :, -1].float()
        per_name = values.flatten(0, -2).mean(0)
        figures |= {f"reward/{entry}/{name}": per_name[i] for i, name in enumerate(names)}
    if "collection_log_prob" in rollout.keys():
        difference = (rollout["collection_log_prob"] - rollout["action_log_prob"]).abs()
        mask = rollout.get("loss_mask", None)
        figures["train/log_prob_mismatch"] = difference.mean() if mask is None else difference[mask].mean()
    return {key: float(value) for key, value in figures.items()}


class UpdateHealth:
    """Gathers the diagnostics of all micro-batches of one iteration."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._sums: dict[str, float] = defaultdict(float)
        self._weights: dict[str, float] = defaultdict(float)
        self._first_ratios: list[tuple[float, float]] = []
        self._num_steps = 0

    def add_losses(self, losses: TensorDictBase, weight: float) -> None:
        """Add what the loss returned for one micro-batch of `weight` actions."""
        values = {key: float(value.detach().float().mean()) for key, value in losses.items() if key not in _LEFT_OUT}
        if self._num_steps == 0 and "max_ratio" in values:
            self._first_ratios.append((values["mean_ratio"], values["max_ratio"]))
        for key, value in values.items():
            self._add(_RENAMED.get(key, key), value, weight)

    def add_step(self, grad_norm: float) -> None:
        """Add one optimiser step."""
        self._num_steps += 1
        self._add("grad_norm", grad_norm, 1.0)

    def figures(self) -> dict[str, float]:
        """Means so far, as ``train/<name>``."""
        means = {f"train/{key}": total / self._weights[key] for key, total in self._sums.items()}
        if self._first_ratios:
            ratios = [ratio for pair in self._first_ratios for ratio in pair]
            means["train/ratio_at_first_update"] = max(ratios, key=lambda ratio: abs(ratio - 1.0))
        return means

    def _add(self, key: str, value: float, weight: float) -> None:
        self._sums[key] += value * weight
        self._weights[key] += weight


def console_line(figures: Mapping[str, float]) -> str:
    """The few figures one watches, in one line."""
    return ", ".join(f"{label} {figures[key]:.3g}" for key, label in _ON_CONSOLE.items() if key in figures)
