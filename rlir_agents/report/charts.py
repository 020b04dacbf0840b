"""Line and dot charts as inline SVG: small, self-contained, legible in light and dark.

Colours are the page's CSS variables (`template.html`), so that one drawing serves both themes; no
plotting library, no script. Not a general plotting tool: exactly the two drawings the report needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

Curve = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 34  # room for tick labels and the axis name


def nice_ticks(low: float, high: float, target: int = 5) -> list[float]:
    """About `target` round numbers (1, 2 or 5 times a power of ten apart) inside [low, high].

    Example:
        >>> nice_ticks(0.0, 1.0)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    raw = (high - low) / target
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * min((1, 2, 5, 10), key=lambda factor: abs(factor * power - raw))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def line_chart(curve: Curve, title: str, x_label: str = "iteration") -> str:
    """One curve with axes, as an ``<svg>`` string.

    Args:
        curve: (step, value) pairs in order; non-finite values break the line.
        title: read by screen readers and shown on hover.
        x_label: name of the horizontal axis.

    Raises:
        ValueError: if no value is finite.
    """
    finite = [(x, y) for x, y in curve if math.isfinite(y)]
    if not finite:
        raise ValueError(f"curve {title!r} has no finite value to draw")
    x_scale = _Scale(*_span(x for x, _ in finite), _LEFT, _WIDTH - _RIGHT)
    y_scale = _Scale(*_padded(*_span(y for _, y in finite)), _HEIGHT - _BOTTOM, _TOP)
    lines = "".join(
        f'<polyline class="curve" points="{_points(run, x_scale, y_scale)}"/>'
        for run in _unbroken(curve)
        if len(run) > 1
    )
    last_x, last_y = finite[-1]
    end = f'<circle class="end" cx="{x_scale(last_x):.1f}" cy="{y_scale(last_y):.1f}" r="3"/>'
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">'
        f"<title>{escape(title)}</title>{_axes(x_scale, y_scale, x_label)}{lines}{end}</svg>"
    )


def dot_chart(rows: Mapping[str, Sequence[tuple[str, str, float, Sequence[float] | None]]]) -> str:
    """Rows of labelled dots on one axis: where before, after and the ceilings lie.

    Args:
        rows: row name -> dots (CSS class, label, value, optional interval [lo, hi] drawn as a
            whisker).
    """
    width, row_height, left = 860, 62, 84
    values = [number for dots in rows.values() for _, _, value, bounds in dots for number in (value, *(bounds or ()))]
    scale = _Scale(*_padded(*_span(values), share=0.12), left, width - 40)
    height = row_height * len(rows) + 34
    parts = [f'<svg class="dots" viewBox="0 0 {width} {height}" role="img">']
    for tick in nice_ticks(scale.low, scale.high, 8):
        x = scale(tick)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="6" y2="{height - 28}"/>'
            f'<text class="tick" x="{x:.1f}" y="{height - 12}" text-anchor="middle">{tick:g}</text>'
        )
    for index, (name, dots) in enumerate(rows.items()):
        y = row_height * index + 38
        parts.append(f'<text class="row" x="{left - 14}" y="{y + 5}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<line class="axis" x1="{left}" x2="{width - 40}" y1="{y}" y2="{y}"/>')
        parts.extend(_dots(dots, scale, y))
    return "".join([*parts, "</svg>"])


def _dots(dots: Sequence[tuple], scale: _Scale, y: float) -> list[str]:
    """Whiskers, dots, and labels: above the line, or below where the one before is too near."""
    parts, end_above = [], -math.inf
    for css, label, value, bounds in sorted(dots, key=lambda dot: dot[2]):
        text = f"{escape(label)} {value:.3f}"
        x, half = scale(value), 3.3 * len(text)  # 3.3: half of a character's width at 11 px
        is_above = x - half > end_above
        end_above = x + half if is_above else end_above
        if bounds:
            parts.append(
                f'<line class="whisker {css}" x1="{scale(bounds[0]):.1f}" '
                f'x2="{scale(bounds[1]):.1f}" y1="{y}" y2="{y}"/>'
            )
        parts.append(f'<circle class="dot {css}" cx="{x:.1f}" cy="{y}" r="6"/>')
        parts.append(
            f'<text class="label {css}" x="{x:.1f}" y="{y - 13 if is_above else y + 22}" '
            f'text-anchor="middle">{text}</text>'
        )
    return parts


class _Scale:
    """A linear map from data [low, high] to pixels [start, stop]."""

    def __init__(self, low: float, high: float, start: float, stop: float) -> None:
        self.low, self.high, self.start, self.stop = low, high, start, stop

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def _span(values: Iterable[float]) -> tuple[float, float]:
    """Smallest and largest value, widened where they coincide, so that a scale exists."""
    values = list(values)
    low, high = min(values), max(values)
    if low == high:
        margin = abs(low) * 0.05 or 0.5
        return low - margin, high + margin
    return low, high


def _padded(low: float, high: float, share: float = 0.06) -> tuple[float, float]:
    margin = (high - low) * share
    return low - margin, high + margin


def _points(curve: Curve, x_scale: _Scale, y_scale: _Scale) -> str:
    return " ".join(f"{x_scale(x):.1f},{y_scale(y):.1f}" for x, y in curve)


def _unbroken(curve: Curve) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in curve:
        if math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return runs


def _axes(x_scale: _Scale, y_scale: _Scale, x_label: str) -> str:
    base, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{base}" y2="{base}"/>']
    for tick in nice_ticks(y_scale.low, y_scale.high, 4):
        y = y_scale(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_tick(_LEFT - 6, y + 3.5, f"{tick:g}", "end"))
    for tick in nice_ticks(x_scale.low, x_scale.high, 5):
        x = x_scale(tick)
        parts.append(_tick(x, base + 14, f"{tick:g}"))
    parts.append(_tick((_LEFT + right) / 2, _HEIGHT - 5, escape(x_label)))
    return "".join(parts)


def _tick(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
