"""From VPT's buttons and camera bins to the slots that the reward compares (paper, Table 3, Eq. 3).

Two opposed buttons are one slot of three classes; none and both are the same class. This is
arithmetic on log-probabilities without parameters; which buttons make up which slot is read off the
slots' names.

Letters: S slots, C most classes of any slot; ``...`` are clips and frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rlir_env.game_actions import VPT_BUTTONS, VPT_CAMERA, GameActionSpec, Slot

CAMERA_AXES = ("pitch", "yaw")
NUM_CAMERA_BINS = VPT_CAMERA.num_bins


class SlotProjection:
    """Buttons ``[..., 20, 2]`` and camera ``[..., 2, 11]`` to slots ``[..., S, C]`` or decisions.

    Works on groups of slots (pairs of opposed buttons, single buttons, camera axes) and reorders
    once at the end.
    """

    def __init__(self, spec: GameActionSpec):
        """Sorts the slots of ``spec`` into groups.

        Raises:
            ValueError: If VPT does not read what a slot asks for.
        """
        pairs, singles, axes = {}, {}, {}
        for index, slot in enumerate(spec.slots):
            if slot.is_ordered:
                axes[index] = _axis(slot)
            elif len(slot.classes) == 2:
                singles[index] = _button(slot, slot.name)
            elif len(slot.classes) == 3:
                pairs[index] = (_button(slot, slot.classes[1]), _button(slot, slot.classes[2]))
            else:
                raise ValueError(
                    f"slot {slot.name!r} has {len(slot.classes)} classes; VPT reads buttons, and a slot is one of them "
                    "(2 classes) or two opposed ones (3 classes)"
                )
        self._button_classes = [(slot, pair[i], i + 1) for slot, pair in pairs.items() for i in range(2)]
        self._button_classes += [(slot, button, 1) for slot, button in singles.items()]
        self._camera_slots = list(axes.items())
        self._firsts, self._seconds = ([pair[i] for pair in pairs.values()] for i in range(2))
        self._singles, self._axes = list(singles.values()), list(axes.values())
        grouped = [*pairs, *singles, *axes]
        self._order = sorted(range(len(grouped)), key=grouped.__getitem__)
        self._num_classes = spec.num_classes

    def head_shares(self, shares: Sequence[Sequence[float]]) -> tuple[Tensor, Tensor]:
        """How often each button is pressed and each camera bin occurs, from the shares of slot classes.

        Args:
            shares: For every slot the share of each of its classes.

        Returns:
            Pressed shares ``[20]`` and bin shares ``[2, 11]``, 0 for buttons and axes that are in no slot.

        Raises:
            ValueError: If there is not one share for each class.
        """
        if tuple(map(len, shares)) != self._num_classes:
            raise ValueError(f"the slots have {self._num_classes} classes, the shares are of {[*map(len, shares)]}")
        pressed, bins = torch.zeros(len(VPT_BUTTONS)), torch.zeros(len(CAMERA_AXES), NUM_CAMERA_BINS)
        for slot, button, button_class in self._button_classes:
            pressed[button] = shares[slot][button_class]
        for slot, axis in self._camera_slots:
            bins[axis] = torch.tensor(shares[slot])
        return pressed, bins

    def log_probs(self, buttons: Tensor, camera: Tensor) -> Tensor:
        """Slot log-probabilities from the log-probabilities of buttons and camera bins."""
        first, second = buttons[..., self._firsts, :], buttons[..., self._seconds, :]
        (up1, down1), (up2, down2) = first.unbind(-1), second.unbind(-1)
        none_or_both = torch.logaddexp(up1 + up2, down1 + down2)
        pairs = torch.stack([none_or_both, down1 + up2, up1 + down2], dim=-1)
        groups = (pairs, buttons[..., self._singles, :], camera[..., self._axes, :])
        return torch.cat([self._pad(group) for group in groups], dim=-2)[..., self._order, :]

    def decide(self, buttons: Tensor, camera: Tensor) -> Tensor:
        """VPT's decision rule: the mode of every button and axis, then none-or-both is class 0."""
        is_pressed = buttons.argmax(-1)
        first, second = is_pressed[..., self._firsts], is_pressed[..., self._seconds]
        pairs = torch.where(first == second, 0, first + 2 * second)
        groups = (pairs, is_pressed[..., self._singles], camera.argmax(-1)[..., self._axes])
        return torch.cat(groups, dim=-1)[..., self._order]

    def _pad(self, log_probs: Tensor) -> Tensor:
        # Below 0 only for a group without slots, whose width is its head's.
        missing = max(self._num_classes) - log_probs.shape[-1]
        return F.pad(log_probs, (0, missing), value=-torch.inf)


def _button(slot: Slot, name: str) -> int:
    if name not in VPT_BUTTONS:
        raise ValueError(f"slot {slot.name!r} asks for {name!r}, no button of VPT; it reads {', '.join(VPT_BUTTONS)}")
    return VPT_BUTTONS.index(name)


def _axis(slot: Slot) -> int:
    if slot.name not in CAMERA_AXES or len(slot.classes) != NUM_CAMERA_BINS:
        raise ValueError(
            f"ordered slot {slot.name!r} has {len(slot.classes)} bins; VPT's camera has {NUM_CAMERA_BINS} of each of "
            f"{' and '.join(CAMERA_AXES)}"
        )
    return CAMERA_AXES.index(slot.name)
