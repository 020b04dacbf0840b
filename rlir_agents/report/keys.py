"""A player's keys as a drawing: pressed, and read back rightly or wrongly.

Keys are the classes of the button slots; ordered slots (the camera) are lines of bins. It draws
game actions, not frames: those are in `rlir_agents.report.videos`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import ImageDraw, ImageFont

from rlir_env.game_actions import GameActionSpec, Slot

INK, DIM, FAINT = "#f2f4f7", "#8b93a1", "#39404b"
RIGHT, WRONG, ON_FILL = "#3fb950", "#f85149", "#0b0d10"

_CAP_HEIGHT, _GAP = 22, 5
_MOST_CAPS_PER_ROW = 5  # more would not leave room for "forward" in 320 pixels
_WIDEST_CAP, _SLIDER_WIDTH = 92, 104

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Cap:
    """A key: the class of a slot that means it is pressed."""

    slot: int
    game_class: int
    label: str


class Keyboard:
    """Draws the keys of some slots on a Pillow canvas.

    Attributes:
        slots: indices of the slots that are drawn.
        reading_height: pixels that `draw_reading` takes.
    """

    def __init__(self, spec: GameActionSpec, slots: Sequence[str]) -> None:
        """Choose the slots by name.

        Raises:
            ValueError: if there is no such slot.
        """
        self.slots = [spec.index(name) for name in slots]
        self._spec = spec
        self._caps = [cap for slot in self.slots for cap in _caps(slot, spec.slots[slot])]
        self._ordered = [slot for slot in self.slots if spec.slots[slot].is_ordered]
        self._num_rows = -(-len(self._caps) // _MOST_CAPS_PER_ROW)
        self._caps_per_row = -(-len(self._caps) // max(1, self._num_rows))
        self._font = ImageFont.load_default(12)
        self.reading_height = (self._num_rows + bool(self._ordered)) * (_CAP_HEIGHT + _GAP)

    def draw_pressed(self, canvas: ImageDraw.ImageDraw, pressed: np.ndarray | None, x: int, y: int, width: int) -> None:
        """One row of keys, the pressed ones white.

        Args:
            canvas: to draw on.
            pressed: long [S]; None before the first game action.
            x: left end, pixels.
            y: upper end.
            width: room for the row.
        """
        room = width - _SLIDER_WIDTH * len(self._ordered)
        cap_width = min(_WIDEST_CAP, room // max(1, len(self._caps)) - _GAP)
        for cap in self._caps:
            is_on = pressed is not None and pressed[cap.slot] == cap.game_class
            self._draw_cap(canvas, _box(x, y, cap_width), cap.label, fill=INK if is_on else None)
            x += cap_width + _GAP
        for slot in self._ordered:
            marks = [] if pressed is None else [(int(pressed[slot]), INK, True)]
            self._draw_slider(canvas, _box(x + 8, y, _SLIDER_WIDTH - 12), slot, marks)
            x += _SLIDER_WIDTH

    def draw_reading(
        self,
        canvas: ImageDraw.ImageDraw,
        pressed: np.ndarray | None,
        read: np.ndarray | None,
        x: int,
        y: int,
        width: int,
    ) -> None:
        """Rows of keys, green where read rightly, red where wrongly.

        Args:
            canvas: to draw on.
            pressed: long [S]; None before the first game action.
            read: long [S], what was read back; None with `pressed`.
            x: left end, pixels.
            y: upper end.
            width: room for a row.
        """
        cap_width = (width + _GAP) // max(1, self._caps_per_row) - _GAP
        for number, cap in enumerate(self._caps):
            row, column = divmod(number, self._caps_per_row)
            box = _box(x + column * (cap_width + _GAP), y + row * (_CAP_HEIGHT + _GAP), cap_width)
            self._draw_read_cap(canvas, box, cap, pressed, read)
        y += self._num_rows * (_CAP_HEIGHT + _GAP)
        slider_width = (width + _GAP) // max(1, len(self._ordered)) - _GAP
        for slot in self._ordered:
            marks = []
            if pressed is not None and read is not None:
                colour = RIGHT if read[slot] == pressed[slot] else WRONG
                marks = [(int(pressed[slot]), INK, False), (int(read[slot]), colour, True)]
            self._draw_slider(canvas, _box(x, y, slider_width), slot, marks)
            x += slider_width + _GAP

    def _draw_read_cap(
        self,
        canvas: ImageDraw.ImageDraw,
        box: Box,
        cap: _Cap,
        pressed: np.ndarray | None,
        read: np.ndarray | None,
    ) -> None:
        """Green: read and pressed. Red: read, not pressed. Struck out: pressed, not read."""
        is_pressed = pressed is not None and pressed[cap.slot] == cap.game_class
        is_read = read is not None and read[cap.slot] == cap.game_class
        if is_read:
            self._draw_cap(canvas, box, cap.label, fill=RIGHT if is_pressed else WRONG)
        elif is_pressed:
            self._draw_cap(canvas, box, cap.label, outline=WRONG)
            middle = (box[1] + box[3]) // 2
            canvas.line((box[0] + 5, middle, box[2] - 5, middle), fill=WRONG, width=1)
        else:
            self._draw_cap(canvas, box, cap.label)

    def _draw_cap(
        self,
        canvas: ImageDraw.ImageDraw,
        box: Box,
        label: str,
        fill: str | None = None,
        outline: str = FAINT,
    ) -> None:
        ink = ON_FILL if fill else (DIM if outline == FAINT else outline)
        canvas.rounded_rectangle(box, radius=4, fill=fill, outline=fill or outline)
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        canvas.text(middle, label, fill=ink, font=self._font, anchor="mm")

    def _draw_slider(
        self,
        canvas: ImageDraw.ImageDraw,
        box: Box,
        slot: int,
        marks: Sequence[tuple[int, str, bool]],
    ) -> None:
        """An ordered slot as a line of bins; marks are (class, colour, filled or hollow)."""
        left, right, y = box[0] + 40, box[2] - 6, (box[1] + box[3]) // 2
        name = self._spec.slots[slot].name
        canvas.text((box[0], y), name, fill=DIM, font=self._font, anchor="lm")
        canvas.line((left, y, right, y), fill=FAINT, width=2)
        centre = (left + right) // 2
        canvas.line((centre, y - 5, centre, y + 5), fill=FAINT, width=2)
        last = len(self._spec.slots[slot].classes) - 1
        for game_class, colour, is_filled in marks:
            x, radius = left + (right - left) * game_class / last, 4 if is_filled else 6
            disc = (x - radius, y - radius, x + radius, y + radius)
            canvas.ellipse(disc, fill=colour if is_filled else None, outline=colour)


def _caps(index: int, slot: Slot) -> list[_Cap]:
    """The keys of a slot: one per class but "none"; a slot with one key goes by the slot's name."""
    if slot.is_ordered:
        return []
    names = slot.classes[1:] if len(slot.classes) > 2 else (slot.name,)
    return [_Cap(index, game_class, name) for game_class, name in enumerate(names, start=1)]


def _box(x: int, y: int, width: int) -> Box:
    return x, y, x + width, y + _CAP_HEIGHT
