"""Action following: how well the game actions are read back from videos.

The paper scores seven groups of buttons (its Table 3) with macro precision, recall and F1, as
scikit-learn computes them, and averages over the groups; MineWorld's benchmark adds the camera in
bins. A group of which only one class ever occurs scores 1.0 there, so the figure we quote averages
over the groups in which at least two classes occur in the labels. This is *not* the reward: it is
computed over all clips at once, usually with another reader (the judge).

What is MineWorld's in the figures under ``mineworld/`` is the averaging, over the classes of a slot and then
over all seven groups. Which frames the reader sees and which line each reading is compared with is the
evaluator's choice (``align`` of the IDM): the same averaging serves the readings of either alignment.

Everything follows from one confusion matrix per clip and slot, so that clips can be drawn anew.

Letters: N clips, n readings per clip, S slots, C most classes of any slot, ... draws of clips.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlir_env.game_actions import MINECRAFT, GameActionSpec
from rlir_env.metrics.base import Metric

MEASURES = ("precision", "recall", "f1")


class ActionFollowing(Metric):
    """Counts readings against labels and computes the figures.

    Example:
        >>> import torch
        >>> true = torch.randint(2, (4, 15, 9))
        >>> metric = ActionFollowing()
        >>> metric.update(true, true)
        >>> metric.compute()["action_following/f1"]
        1.0
    """

    def __init__(self, spec: GameActionSpec = MINECRAFT) -> None:
        """Count the slots of this game."""
        super().__init__()
        self.spec = spec

    def table(self, generated: Tensor, reference: Tensor) -> Tensor:
        """Confusion matrices of inferred (generated) and true (reference) slots, ``[N, n, S]``."""
        return confusion_matrices(generated, reference, self.spec)

    def compute(self) -> dict[str, float]:
        """All figures by log key; the README beside this file explains each."""
        scores = action_following_scores(self.per_clip.sum(0), self.spec)
        return {f"action_following/{key}": float(value) for key, value in scores.items()}


def confusion_matrices(inferred: Tensor, true: Tensor, spec: GameActionSpec = MINECRAFT) -> Tensor:
    """Count readings of every clip.

    Args:
        inferred: Classes read, long ``[N, n, S]``.
        true: Classes played, long ``[N, n, S]``.
        spec: What the slots are.

    Returns:
        int64 ``[N, S, C, C]``; entry (i, j) counts readings of class j where i was played.

    Raises:
        ValueError: if the shapes do not fit or a class does not exist.
    """
    num_slots, widest = spec.num_slots, max(spec.num_classes)
    if inferred.shape != true.shape or true.ndim != 3 or true.shape[-1] != num_slots:
        raise ValueError(
            f"inferred {tuple(inferred.shape)} and true {tuple(true.shape)} must both be [N, n, {num_slots}]"
        )
    limit = torch.tensor(spec.num_classes, device=true.device)
    for name, classes in (("inferred", inferred), ("true", true)):
        if ((classes < 0) | (classes >= limit)).any():
            raise ValueError(f"{name} has classes outside of the spec's {spec.num_classes}")
    clip = torch.arange(len(true), device=true.device)[:, None, None]
    slot = torch.arange(num_slots, device=true.device)
    cell = ((clip * num_slots + slot) * widest + true) * widest + inferred
    counts = torch.bincount(cell.flatten(), minlength=len(true) * num_slots * widest**2)
    return counts.reshape(len(true), num_slots, widest, widest)


def classification_scores(confusion: Tensor) -> dict[str, Tensor]:
    """Macro precision, recall and F1, and accuracy, as scikit-learn computes them.

    Macro means run over the classes that occur in labels or readings; a class that is never read
    has precision 0, one that is never played recall 0 (``zero_division=0``). Micro precision,
    recall and F1 of single-label classification all equal the accuracy.

    Args:
        confusion: Counts ``[..., C, C]``, true class first.

    Returns:
        ``precision``, ``recall``, ``f1``, ``accuracy``, each float64 ``[...]``.
    """
    counts = confusion.double()
    hits = counts.diagonal(dim1=-2, dim2=-1)
    num_true, num_read = counts.sum(-1), counts.sum(-2)
    is_present = (num_true + num_read) > 0
    by_class = {
        "precision": hits / num_read.clamp(min=1),
        "recall": hits / num_true.clamp(min=1),
        "f1": 2 * hits / (num_true + num_read).clamp(min=1),
    }
    scores = {name: (value * is_present).sum(-1) / is_present.sum(-1) for name, value in by_class.items()}
    return {**scores, "accuracy": hits.sum(-1) / counts.sum((-2, -1))}


def slots_with_contrast(confusion: Tensor, spec: GameActionSpec = MINECRAFT) -> Tensor:
    """Button slots in which at least two classes occur in the labels, bool ``[..., S]``."""
    is_button = torch.tensor([not slot.is_ordered for slot in spec.slots])
    return ((confusion.sum(-1) > 0).sum(-1) >= 2) & is_button.to(confusion.device)


def action_following_scores(
    confusion: Tensor, spec: GameActionSpec = MINECRAFT, quoted_slots: Tensor | None = None
) -> dict[str, Tensor]:
    """All figures from summed confusion matrices, for one set of clips or many draws at once.

    Args:
        confusion: ``[..., S, C, C]``, summed over clips.
        spec: What the slots are.
        quoted_slots: Which slots the quoted figures average over, bool ``[S]``; None finds those
            with contrast. Give those of the whole set to draws of it.

    Returns:
        By name, each float64 ``[...]``: ``precision``, ``recall``, ``f1`` (quoted), ``f1/<slot>``,
        ``mineworld/<measure>_macro`` and ``_micro``, and for games with ordered slots
        ``camera_accuracy``, ``camera_loss``. NaN where there is nothing to average.
    """
    scores = classification_scores(confusion)
    is_camera = torch.tensor([slot.is_ordered for slot in spec.slots]).to(confusion.device)
    quoted = slots_with_contrast(confusion, spec) if quoted_slots is None else quoted_slots
    figures = {name: _mean_over(scores[name], quoted) for name in MEASURES}
    figures |= {f"f1/{name}": scores["f1"][..., s] for s, name in enumerate(spec.names)}
    for name in MEASURES:
        figures[f"mineworld/{name}_macro"] = _mean_over(scores[name], ~is_camera)
        figures[f"mineworld/{name}_micro"] = _mean_over(scores["accuracy"], ~is_camera)
    if is_camera.any():
        figures["camera_accuracy"] = _mean_over(scores["accuracy"], is_camera)
        figures["camera_loss"] = _mean_over(_bin_distance(confusion), is_camera)
    return figures


def _mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of ``values [..., S]`` over the chosen slots; 0 / 0 is NaN."""
    return torch.where(chosen, values, 0.0).sum(-1) / chosen.expand_as(values).sum(-1)


def _bin_distance(confusion: Tensor) -> Tensor:
    """Mean number of bins between reading and truth, ``[..., S]`` (MineWorld's ``camera_loss``)."""
    bins = torch.arange(confusion.shape[-1], device=confusion.device)
    distance = (bins[:, None] - bins).abs()
    return (confusion * distance).sum((-2, -1)).double() / confusion.sum((-2, -1))
