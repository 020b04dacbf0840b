"""Game actions as a diffusion world model reads them: one vector a frame, added to its condition.

NFD (arXiv 2506.01380) gives its model quantised camera angles and exclusive groups of buttons; how wide its vector is,
and in what order, is not published. Oasis's layout is, and models trained on its data have it. Both are pure functions
of the slots; MineWorld's words are another projection (`rlir_env.game_actions`).

Letters: S slots, F frames, A width of the vector; ``[...]`` any leading dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rlir_env.game_actions import MINECRAFT, CameraQuantizer, GameActionSpec, Slot


@dataclass(frozen=True)
class ActionEncoder(ABC):
    """A frozen function from the slots of a game action to a vector.

    Attributes:
        spec: The game's slots.
    """

    spec: GameActionSpec = MINECRAFT

    @property
    @abstractmethod
    def dim(self) -> int:
        """A."""

    @abstractmethod
    def __call__(self, slots: Tensor) -> Tensor:
        """Vectors, float32 ``[..., A]``, of slots, long ``[..., S]``.

        Raises:
            ValueError: if S is not the spec's.
        """

    def of_frames(self, slots: Tensor) -> Tensor:
        """Line the actions up with the frames they lead to: frame j has action j - 1, frame 0 the vector of zeros.

        Args:
            slots: Of the transitions between F frames, long ``[..., F-1, S]``.

        Returns:
            float32 ``[..., F, A]``.
        """
        return F.pad(self(slots), (0, 0, 1, 0))

    def _check(self, slots: Tensor) -> None:
        if slots.shape[-1] != self.spec.num_slots:
            raise ValueError(f"slots of shape {tuple(slots.shape)}: this game has {self.spec.num_slots} slots")


@dataclass(frozen=True)
class NFDGroups(ActionEncoder):
    """One-hot groups of buttons and camera bins, one behind the other, 39 numbers for Minecraft.

    The class that means "nothing" has its place, too: pressing nothing is a game action, and differs from the zeros of
    frame 0, to which no action leads.

    Example:
        >>> spec = GameActionSpec((Slot("jump", ("none", "pressed")), Slot("pitch", ("-1", "0", "+1"), True)))
        >>> NFDGroups(spec)(torch.tensor([1, 0])).tolist()
        [0.0, 1.0, 1.0, 0.0, 0.0]
    """

    @property
    def dim(self) -> int:
        """A, the number of all classes."""
        return sum(self.spec.num_classes)

    def __call__(self, slots: Tensor) -> Tensor:
        """Vectors ``[..., A]``; see the base class."""
        self._check(slots)
        parts = zip(slots.unbind(-1), self.spec.num_classes, strict=True)
        return torch.cat([F.one_hot(slot.long(), count) for slot, count in parts], dim=-1).float()


OASIS_NAMES = (
    *("inventory", "ESC", *(f"hotbar.{k}" for k in range(1, 10))),
    *("forward", "back", "left", "right", "cameraX", "cameraY", "jump", "sneak", "sprint"),
    *("swapHands", "attack", "use", "pickItem", "drop"),
)
"""The numbers of an Oasis action, in order."""

# Oasis calls the first number cameraX, but was trained with pitch there: etched-ai/open-oasis, issue 35.
_OASIS_CAMERA = {"pitch": "cameraX", "yaw": "cameraY"}
_OASIS_QUANTIZER = CameraQuantizer(max_degrees=20, bin_size=0.5, mu=2.7)  # issue 9 there


@dataclass(frozen=True)
class Oasis25(ActionEncoder):
    """The 25 numbers of Oasis (etched-ai/open-oasis): buttons 0 or 1, camera bins from -1 to 1.

    What slots cannot tell, such as the hotbar, is 0. Camera motion is that of the centre of its bin, which is at most
    VPT's 10 degrees, 0.65 here.

    Raises:
        ValueError: if the game has a button or a camera axis that Oasis has not.

    Example:
        >>> action = torch.tensor([1, 0, 0, 0, 0, 1, 0, 5, 10])  # forward, jump, the largest yaw
        >>> vector = Oasis25()(action)
        >>> {name: round(x, 3) for name, x in zip(OASIS_NAMES, vector.tolist(), strict=True) if x}
        {'forward': 1.0, 'cameraY': 0.65, 'jump': 1.0}
    """

    def __post_init__(self) -> None:
        for slot in self.spec.slots:
            self._numbers(slot)

    @property
    def dim(self) -> int:
        """A, 25."""
        return len(OASIS_NAMES)

    def __call__(self, slots: Tensor) -> Tensor:
        """Vectors ``[..., A]``; see the base class."""
        self._check(slots)
        rows = [self._rows(slot).to(slots.device) for slot in self.spec.slots]
        return torch.stack([table[slots[..., i].long()] for i, table in enumerate(rows)]).sum(0)

    def _rows(self, slot: Slot) -> Tensor:
        """What each class of a slot adds to the vector, ``[classes, A]``."""
        rows = torch.zeros(len(slot.classes), self.dim)
        for index, (name, value) in self._numbers(slot).items():
            rows[index, OASIS_NAMES.index(name)] = value
        return rows

    def _numbers(self, slot: Slot) -> dict[int, tuple[str, float]]:
        """By class of a slot the number that it sets, and to what."""
        if slot.is_ordered:
            if slot.name not in _OASIS_CAMERA:
                raise ValueError(f"Oasis has no camera axis {slot.name}; use NFDGroups for this game")
            half = _OASIS_QUANTIZER.num_bins // 2
            bins = _OASIS_QUANTIZER.encode([float(degrees) for degrees in slot.classes]).tolist()
            return {index: (_OASIS_CAMERA[slot.name], (b - half) / half) for index, b in enumerate(bins)}
        buttons = slot.classes[1:] if len(slot.classes) > 2 else (slot.name,)
        unknown = sorted(set(buttons) - set(OASIS_NAMES))
        if unknown:
            raise ValueError(f"Oasis has no button {', '.join(unknown)}; use NFDGroups for this game")
        return {index: (button, 1.0) for index, button in enumerate(buttons, start=1)}
