"""The record of one evaluation: what was pressed, what was read back, and how the picture fared.

It is what the tables of the paper's section 5 are made from. Everything is kept per clip, so that
the bootstrap can draw clips. How videos are made is in `rlir_agents.evaluator`; what the figures
are, in `rlir_env.metrics`.

Letters: N clips, M clips kept with frames, F frames, S slots, C most classes of any slot, D draws
of clips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlir_env.atomic_files import replacing
from rlir_env.game_actions import GameActionSpec
from rlir_env.metrics import (
    action_following_scores,
    classification_scores,
    confusion_matrices,
    slots_with_contrast,
    weighted_sum,
)

_READ_BY = "inferred_game_action."  # prefix of the readers' entries in a file


@dataclass(frozen=True)
class Evaluation:
    """What the readers saw in one video per prompt.

    Attributes:
        spec: names the slots and their classes.
        game_action: long [N, F-1, S], what was pressed.
        inferred_game_action: by reader, long [N, F-1, S], what it read back.
        psnr: float64 [N], dB against the real continuation, mean over the generated frames.
        frames: uint8 [M, F, 3, H, W], the first clips' videos, the given frame first.
    """

    spec: GameActionSpec
    game_action: Tensor
    inferred_game_action: dict[str, Tensor]
    psnr: Tensor
    frames: Tensor

    @property
    def num_clips(self) -> int:
        """N."""
        return len(self.game_action)

    @property
    def button_slots(self) -> tuple[str, ...]:
        """The slots that are no camera, in which the paper scores."""
        return tuple(slot.name for slot in self.spec.slots if not slot.is_ordered)

    def confusion(self, reader: str) -> Tensor:
        """Confusion matrices of every clip, long [N, S, C, C].

        Raises:
            ValueError: if there is no such reader.
        """
        if reader not in self.inferred_game_action:
            known = ", ".join(self.inferred_game_action)
            raise ValueError(f"no reader {reader!r} in this evaluation; it has {known}")
        return confusion_matrices(self.inferred_game_action[reader], self.game_action, self.spec)

    def quoted_slots(self, slots: Sequence[str] | None = None) -> Tensor:
        """Over which slots the quoted figures average, bool [S].

        Args:
            slots: the slots that may count, by name (the visible ones); default all button slots.
                Of these count the ones in which at least two classes occur in the labels.

        Raises:
            ValueError: if there is no such slot.
        """
        counts = confusion_matrices(self.game_action, self.game_action, self.spec).sum(0)
        is_chosen = torch.zeros(self.spec.num_slots, dtype=torch.bool)
        is_chosen[[self.spec.index(name) for name in slots or self.button_slots]] = True
        return is_chosen & slots_with_contrast(counts, self.spec)

    def scores(self, reader: str, slots: Sequence[str] | None = None) -> dict[str, float]:
        """All figures of `action_following_scores`; the quoted ones over `slots`."""
        counts, quoted = self.confusion(reader).sum(0), self.quoted_slots(slots)
        scores = action_following_scores(counts, self.spec, quoted)
        return {name: value.item() for name, value in scores.items()}

    def f1(self, reader: str, slots: Sequence[str] | None = None) -> float:
        """The quoted figure: mean of macro F1 over slots with at least two classes in the labels.

        Args:
            reader: name of the IDM.
            slots: the slots that may count, by name; default all button slots.

        Raises:
            ValueError: if no slot has two classes.
        """
        value = self.scores(reader, slots)["f1"]
        if math.isnan(value):
            names = ", ".join(slots or self.button_slots)
            raise ValueError(f"in none of {names} do two classes occur in the labels: use more clips")
        return value

    def f1_draws(self, reader: str, weights: Tensor, slots: Sequence[str] | None = None) -> Tensor:
        """The quoted figure in every draw of clips, float64 [D].

        Args:
            reader: name of the IDM.
            weights: [D, N], from `rlir_env.metrics.draw_weights`.
            slots: as in `f1`; which of them have two classes is found over all clips.
        """
        quoted = self.quoted_slots(slots)
        # Cut to the classes of these slots: the camera's eleven would be most of the work.
        most = max(compress(self.spec.num_classes, quoted.tolist()), default=0)
        confusion = self.confusion(reader)[:, quoted, :most, :most]
        counts = weighted_sum(confusion, weights)  # [D, S', C', C']
        return classification_scores(counts)["f1"].mean(-1)

    def slot_figures(self, reader: str) -> dict[str, float]:
        """By slot: macro F1 of a button slot, accuracy of an ordered one."""
        scores = classification_scores(self.confusion(reader).sum(0))
        return {
            slot.name: scores["accuracy" if slot.is_ordered else "f1"][index].item()
            for index, slot in enumerate(self.spec.slots)
        }

    def pressed_shares(self) -> dict[str, float]:
        """By slot: the share of transitions in which something is pressed (or the camera moves)."""
        none = torch.tensor(self.spec.none_classes)
        shares = (self.game_action != none).double().mean((0, 1))
        return dict(zip(self.spec.names, shares.tolist(), strict=True))

    def log_entries(self, reader: str, slots: Sequence[str] | None = None) -> dict[str, float]:
        """A flat dict for the logger: `action_following/...` of one reader and `video/psnr`."""
        scores = {f"action_following/{name}": value for name, value in self.scores(reader, slots).items()}
        return scores | {"video/psnr": self.psnr.double().mean().item()}

    def save(self, path: str | Path) -> None:
        """Write the record as one safetensors file, atomically; the spec is not in it."""
        entries = {"game_action": self.game_action, "psnr": self.psnr, "frames": self.frames}
        entries |= {_READ_BY + name: read for name, read in self.inferred_game_action.items()}
        with replacing(path) as unfinished:
            save_file({name: entry.contiguous() for name, entry in entries.items()}, unfinished)

    @classmethod
    def load(cls, path: str | Path, spec: GameActionSpec) -> Evaluation:
        """Read what `save` wrote.

        Args:
            path: the file.
            spec: of the game that it is about.

        Raises:
            ValueError: if the file has another number of slots.
        """
        entries = load_file(path)
        num_slots = entries["game_action"].shape[-1]
        if num_slots != spec.num_slots:
            raise ValueError(f"{path} has {num_slots} slots, the spec {spec.num_slots}: pass its own game's spec")
        read = {name.removeprefix(_READ_BY): entry for name, entry in entries.items() if name.startswith(_READ_BY)}
        return cls(spec, entries["game_action"], read, entries["psnr"], entries["frames"])
