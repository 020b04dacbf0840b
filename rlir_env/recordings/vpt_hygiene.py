"""What VPT's own loader mends in its contractors' recordings, each a switch; MineWorld's code mends nothing.

Recordings were cut from longer sessions, so a button may seem held that was pressed before the cut; the number key of a
new hotbar slot is often not in the line; and the screen recorder left out the mouse cursor of menus.

Letters: H, W frame size, h, w cursor size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_ATTACK_BUTTON = 0
_RECORDED_HEIGHT = 720  # of the window in which mouse positions were counted


@dataclass(frozen=True)
class VPTHygiene:
    """Which of VPT's mendings are done; by default none.

    Attributes:
        release_stuck_attack: Where the first line has attack as its one new button, take it for held since before the
            cut, and leave it out until it is pressed anew.
        press_changed_hotbar: Where the selected hotbar slot differs from the line before (slot 0 before the first),
            press its number key.
        draw_cursor: Draw a cursor into frames of open menus.
    """

    release_stuck_attack: bool = False
    press_changed_hotbar: bool = False
    draw_cursor: bool = False

    def mend(self, events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The lines of a recording as VPT's loader reads them; new dicts where something changes.

        Args:
            events: Raw events, in order. Lines that are env actions stay as they are.

        Raises:
            KeyError: if a needed field is missing: ``mouse.newButtons``, ``hotbar``.
        """
        mended = [dict(event) for event in events]
        raw = [event for event in mended if "ESC" not in event]
        if self.release_stuck_attack:
            _release_stuck_attack(raw)
        if self.press_changed_hotbar:
            _press_changed_hotbar(raw)
        return mended

    def draws_at(self, event: Mapping[str, Any]) -> bool:
        """Whether the frame of this line gets a cursor: a menu is open in it."""
        return self.draw_cursor and bool(event.get("isGuiOpen", False))

    def draw(self, frame: np.ndarray, event: Mapping[str, Any]) -> np.ndarray:
        """A frame ``[H, W, 3]`` with its cursor, if :meth:`draws_at` says that it gets one."""
        if not self.draws_at(event):
            return frame
        scale = frame.shape[0] / _RECORDED_HEIGHT
        return paste_cursor(frame, int(event["mouse"]["x"] * scale), int(event["mouse"]["y"] * scale))


NO_HYGIENE = VPTHygiene()
"""Recordings are read as they are."""


def _release_stuck_attack(events: list[dict[str, Any]]) -> None:
    if not events or events[0]["mouse"]["newButtons"] != [_ATTACK_BUTTON]:
        return
    for index, event in enumerate(events):
        if index and _ATTACK_BUTTON in event["mouse"]["newButtons"]:
            return
        buttons = [button for button in event["mouse"]["buttons"] if button != _ATTACK_BUTTON]
        event["mouse"] = {**event["mouse"], "buttons": buttons}


def _press_changed_hotbar(events: list[dict[str, Any]]) -> None:
    before = 0
    for event in events:
        if event["hotbar"] != before:
            key = f"key.keyboard.{event['hotbar'] + 1}"
            keys = event["keyboard"]["keys"]
            event["keyboard"] = {**event["keyboard"], "keys": keys if key in keys else [*keys, key]}
        before = event["hotbar"]


def paste_cursor(frame: np.ndarray, x: int, y: int, cursor: np.ndarray | None = None) -> np.ndarray:
    """Lay a cursor over a frame, its upper left corner at (x, y); what does not fit is cut off.

    Args:
        frame: uint8 ``[H, W, 3]``; stays as it is.
        x: Column.
        y: Row.
        cursor: uint8 ``[h, w, 4]``, RGBA; None draws an arrow of 16 pixels. VPT's own is a file of its repository.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    cursor = _arrow() if cursor is None else cursor
    height, width = frame.shape[:2]
    rows = slice(max(0, -y), max(0, min(len(cursor), height - y)))
    columns = slice(max(0, -x), max(0, min(cursor.shape[1], width - x)))
    part = cursor[rows, columns].astype(np.float32)
    if part.size == 0:
        return frame
    drawn = frame.copy()
    place = drawn[y + rows.start : y + rows.stop, x + columns.start : x + columns.stop]
    share = part[..., 3:] / 255
    place[:] = (place * (1 - share) + part[..., :3] * share).astype(np.uint8)
    return drawn


def _arrow(size: int = 16) -> np.ndarray:
    """A white arrow with a black rim that points to the upper left, RGBA."""
    row, column = np.mgrid[:size, :size]
    inside = (column <= row * 0.7) & (row + column * 0.6 < size - 3)
    rim = inside & ((column == 0) | (column + 1 > row * 0.7) | (row + column * 0.6 >= size - 4.5))
    arrow = np.zeros((size, size, 4), np.uint8)
    arrow[inside] = 255
    arrow[rim, :3] = 0
    return arrow
