"""Videos side by side with the keys that were pressed and the keys that the IDM read back.

What one looks at to see whether the world model obeys: above, the game action the player gave;
below each video, what a reader reads from its frames, green where it is right and red where it is
wrong. Not a metric: the figures come from `rlir_agents.evaluator`.

Letters: F frames, S slots, H and W of a frame, in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rlir_agents.report.keys import DIM, INK, Keyboard
from rlir_env.game_actions import GameActionSpec

BACKGROUND = "#14171c"

_MARGIN = 14
_HEADER, _TITLE, _LEGEND = 66, 28, 24  # heights above all panels, above and below each frame
_LEAST_WIDTH, _LEAST_PANEL = 860, 320  # so that the keys' names fit, however small the frames


@dataclass(frozen=True)
class Panel:
    """One of the videos side by side.

    Attributes:
        title: "real", "before", "after", ...
        frames: uint8 [F, 3, H, W], the given frame first.
        inferred_game_action: long [F-1, S], what the IDM read from `frames`.
    """

    title: str
    frames: np.ndarray
    inferred_game_action: np.ndarray


def draw_comparison(
    panels: Sequence[Panel],
    game_action: np.ndarray,
    spec: GameActionSpec,
    reader: str,
    slots: Sequence[str] | None = None,
    scale: int | None = None,
) -> np.ndarray:
    """Draw videos of the same prompt beside each other.

    Args:
        panels: the videos, equally long and large.
        game_action: long [F-1, S]; line t leads from frame t to frame t+1 and is drawn on frame
            t+1.
        spec: names the slots and classes.
        reader: who read the game actions back, "judge" or "coach".
        slots: the slots to draw (default: all); pass the visible ones.
        scale: enlargement by nearest neighbour; by default 4 to 6, whatever first makes a frame 320
            pixels wide.

    Returns:
        uint8 [F, H', W', 3] with even H' and W', which H.264 asks for.

    Raises:
        ValueError: if the panels differ in shape or do not fit the game actions.
    """
    _check(panels, game_action)
    scale = scale or min(6, max(4, -(-320 // panels[0].frames.shape[-1])))
    keyboard = Keyboard(spec, tuple(slots or spec.names))
    drawer = _Drawer(keyboard, reader, panels[0].frames.shape[-2:], scale, len(panels))
    indices = range(len(panels[0].frames))
    return np.stack([drawer.draw(panels, game_action, index) for index in indices])


def _check(panels: Sequence[Panel], game_action: np.ndarray) -> None:
    if not panels:
        raise ValueError("no panel to draw: pass at least one video")
    shape = panels[0].frames.shape
    for panel in panels:
        if panel.frames.dtype != np.uint8 or panel.frames.shape != shape:
            raise ValueError(
                f"panel {panel.title!r} has {panel.frames.dtype} frames {panel.frames.shape}; "
                f"all panels must be uint8 {shape}"
            )
        if panel.inferred_game_action.shape != game_action.shape or len(game_action) != shape[0] - 1:
            raise ValueError(
                f"panel {panel.title!r}: {shape[0]} frames need game actions and readings of "
                f"{shape[0] - 1} lines, got {game_action.shape} and "
                f"{panel.inferred_game_action.shape}"
            )


class _Drawer:
    """The geometry of one comparison, and the drawing of each of its frames."""

    def __init__(
        self, keyboard: Keyboard, reader: str, frame_size: tuple[int, int], scale: int, num_panels: int
    ) -> None:
        self.keyboard, self.reader = keyboard, reader
        self.height, self.width = frame_size[0] * scale, frame_size[1] * scale
        self.panel_width = max(self.width, _LEAST_PANEL)
        panels_width = num_panels * self.panel_width + (num_panels + 1) * _MARGIN
        self.total_width = _even(max(panels_width, _LEAST_WIDTH))
        heights = (_HEADER, _TITLE, self.height, _LEGEND, keyboard.reading_height, _MARGIN)
        self.total_height = _even(sum(heights))
        self.font, self.small = ImageFont.load_default(13), ImageFont.load_default(12)

    def draw(self, panels: Sequence[Panel], game_action: np.ndarray, index: int) -> np.ndarray:
        """Frame `index` of the comparison, uint8 [H', W', 3]."""
        image = Image.new("RGB", (self.total_width, self.total_height), BACKGROUND)
        self._draw_header(ImageDraw.Draw(image), game_action, index)
        for number, panel in enumerate(panels):
            x = _MARGIN + number * (self.panel_width + _MARGIN)
            self._draw_panel(image, panel, game_action, index, x)
        return np.asarray(image)

    def _draw_header(self, canvas: ImageDraw.ImageDraw, game_action: np.ndarray, index: int) -> None:
        moment = f"frame {index} of {len(game_action)}" if index else "given frame"
        canvas.text((_MARGIN, 12), f"{moment}   ·   keys pressed", fill=DIM, font=self.font)
        width = self.total_width - 2 * _MARGIN
        self.keyboard.draw_pressed(canvas, _line(game_action, index), _MARGIN, 34, width)

    def _draw_panel(self, image: Image.Image, panel: Panel, game_action: np.ndarray, index: int, x: int) -> None:
        canvas = ImageDraw.Draw(image)
        canvas.text((x, _HEADER + 8), panel.title, fill=INK, font=self.font)
        corner = (x + self.panel_width, _HEADER + 8)
        tally = self._tally(panel, game_action, index)
        canvas.text(corner, tally, fill=DIM, font=self.font, anchor="ra")
        frame = Image.fromarray(np.ascontiguousarray(panel.frames[index].transpose(1, 2, 0)))
        enlarged = frame.resize((self.width, self.height), Image.Resampling.NEAREST)
        image.paste(enlarged, (x, _HEADER + _TITLE))
        y = _HEADER + _TITLE + self.height
        canvas.text((x, y + 6), f"keys read back by the {self.reader}", fill=DIM, font=self.small)
        lines = _line(game_action, index), _line(panel.inferred_game_action, index)
        self.keyboard.draw_reading(canvas, *lines, x, y + _LEGEND, self.panel_width)

    def _tally(self, panel: Panel, game_action: np.ndarray, index: int) -> str:
        """Read right so far, over the drawn slots and the frames up to this one."""
        if not index:
            return ""
        match = panel.inferred_game_action[:index] == game_action[:index]
        match = match[:, self.keyboard.slots]
        return f"read right {match.sum()} / {match.size}"


def _line(game_actions: np.ndarray, index: int) -> np.ndarray | None:
    """The game action that led to a frame, [S]; none led to the given one."""
    return game_actions[index - 1] if index else None


def _even(number: int) -> int:
    return number + number % 2
