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

from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from rlir_env.game_actions import MINECRAFT, GameActionSpec, env_actions_to_slots
from rlir_env.inverse_dynamics import InverseDynamicsModel
from rlir_env.metrics.base import Metric
from rlir_env.recordings import (
    RecordingError,
    env_actions_of,
    first_frames,
    list_recordings,
    read_events,
    video_frames,
)

MEASURES = ("precision", "recall", "f1")

# MineWorld's tasks, by our slots: the buttons in the order of its script, whose file names tasks by this tuple.
_TASKS = {
    "forward_back": ("back", "forward"),
    "left_right": ("left", "right"),
    "sprint_sneak": ("sneak", "sprint"),
    "use": ("use",),
    "attack": ("attack",),
    "jump": ("jump",),
    "drop": ("drop",),
}


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


def mineworld_scores(confusion: Tensor) -> dict[str, dict[str, float]]:
    """The figures of MineWorld's script under its own names.

    Args:
        confusion: ``[S, C, C]`` of Minecraft's slots, summed over clips.

    Returns:
        For each of the seven tasks ``precision_micro`` ... ``f1_macro`` and ``class_num``; and under
        ``metric_mean_on_task`` their means over the tasks and ``camera_loss`` in bins.
    """
    scores, spec = classification_scores(confusion), MINECRAFT
    tasks: dict[str, dict[str, float]] = {}
    for slot, buttons in _TASKS.items():
        index = spec.index(slot)
        task: dict[str, float] = {}
        for name in MEASURES:
            task[f"{name}_micro"] = scores["accuracy"][index].item()  # of single-label classification all three
            task[f"{name}_macro"] = scores[name][index].item()
        tasks[str(buttons)] = task | {"class_num": spec.num_classes[index]}
    figures = action_following_scores(confusion, spec)
    kinds = [f"{name}_{average}" for average in ("micro", "macro") for name in MEASURES]
    means = {kind: figures[f"mineworld/{kind}"].item() for kind in kinds}
    return {**tasks, "metric_mean_on_task": means | {"camera_loss": figures["camera_loss"].item()}}


@torch.no_grad()
def score_folder(
    videos: str | Path,
    labels: str | Path,
    idm: InverseDynamicsModel,
    *,
    num_frames: int = 15,
    first_line: int = 1,
    max_clips: int = 500,
) -> dict[str, dict[str, float]]:
    """MineWorld's protocol for action following on files (its script's name: IDM evaluation).

    The first frames of each video are read, with ``align="mineworld"``; frame j is compared with line
    ``first_line + j`` of ``<labels>/<name>.jsonl``. What is read at a frame is what was pressed after it, VPT's line of
    that frame. So 1 is right for videos of generated frames, which begin with frame 1 of their clip, and 0 for whole
    recordings.

    Args:
        videos: Folder of ``.mp4`` files of generated frames.
        labels: Folder of files of the same names, or of folders of them; VPT's events or env actions.
        idm: Reader of Minecraft's slots.
        num_frames: Read of each video.
        first_line: Of the labels that is compared.
        max_clips: The first so many videos, by name.

    Returns:
        As :func:`mineworld_scores`.

    Raises:
        ValueError: if there are no videos, labels are missing or too short, a file is broken, the reader is of another
            game, or videos are whole recordings and ``first_line`` is not 0.
    """
    if idm.spec != MINECRAFT:
        raise ValueError("MineWorld's tasks are Minecraft's slots: give a reader of these")
    counts = torch.zeros(MINECRAFT.num_slots, *[max(MINECRAFT.num_classes)] * 2, dtype=torch.long)
    lines, device = slice(first_line, first_line + num_frames), next(idm.parameters()).device
    labels_of = {file.stem: file for file in list_recordings(labels, ".jsonl")}
    for video in tqdm(list_recordings(videos)[:max_clips], desc="reading videos", unit="clip", leave=False):
        if video.stem not in labels_of:
            raise RecordingError(f"{labels}: {video.stem}.jsonl is missing")
        file = labels_of[video.stem]
        # As the script: what was pressed at once stays pressed, unlike in the words that MineWorld reads.
        events = read_events(file)
        compared = events[lines]
        env_actions, _ = env_actions_of(compared, file, cancel_conflicts=False, first_number=first_line + 1)
        if len(env_actions) < num_frames:
            raise RecordingError(f"{file}: lines {lines.start} to {lines.stop - 1} are needed, counted from 0")
        _check_start(video, len(events) - first_line, first_line)
        played = torch.from_numpy(env_actions_to_slots(env_actions))
        frames = torch.from_numpy(first_frames(video, num_frames)).permute(0, 3, 1, 2)
        read = idm.infer_game_actions(frames.to(device), align="mineworld").cpu()
        counts += confusion_matrices(read[None], played[None])[0]
    return mineworld_scores(counts)


def _check_start(video: Path, num_lines: int, first_line: int) -> None:
    """Refuse videos with more frames than there are lines for them: they begin before that line."""
    if first_line and next(islice(video_frames(video), num_lines, None), None) is not None:
        raise RecordingError(
            f"{video}: more frames than the {num_lines} labels from line {first_line} on; whole recordings, which hold "
            "the given frame, have first_line=0"
        )


def _mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of ``values [..., S]`` over the chosen slots; 0 / 0 is NaN."""
    return torch.where(chosen, values, 0.0).sum(-1) / chosen.expand_as(values).sum(-1)


def _bin_distance(confusion: Tensor) -> Tensor:
    """Mean number of bins between reading and truth, ``[..., S]`` (MineWorld's ``camera_loss``)."""
    bins = torch.arange(confusion.shape[-1], device=confusion.device)
    distance = (bins[:, None] - bins).abs()
    return (confusion * distance).sum((-2, -1)).double() / confusion.sum((-2, -1))
