"""Curves as one SVG, written by hand: a picture for a README needs no plotting library.

Its grey is readable on white and on black: which of the two a page is, a picture inside it cannot ask (a style sheet's
``prefers-color-scheme`` tells the reader's system, not the page).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 62, 610, 44, 366
"""Edges of the plot; the legend is to the right of it."""
COLOURS = ("#d1495b", "#2a7fb8", "#3c9d5d", "#8e6bbf", "#c98a1b", "#3aa6a0", "#b5608f", "#7d8a2e", "#7f7f7f")
TICKS_X = {x: f"{x:.0%}" for x in (0.08, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)}
TICKS_Y = {y: f"{y:.0%}" for y in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)}
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#767676}.title{font-size:15px;font-weight:600}"
    ".grid{stroke:#8886;stroke-width:.6}.line{fill:none;stroke-width:1.4}.first{stroke-width:3}"
)


@dataclass(frozen=True)
class Curve:
    """``y`` over ``x``; the first curve of a picture is drawn bold, with the band from ``low`` to ``high``."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Axes:
    """Text by place: x runs from the first to the last on a logarithmic axis, y from 0 to a little above the last."""

    ticks_x: Mapping[float, str]
    ticks_y: Mapping[float, str]

    def x(self, value: float) -> float:
        """In the picture."""
        first, last = min(self.ticks_x), max(self.ticks_x)
        return round(LEFT + math.log(value / first) / math.log(last / first) * (RIGHT - LEFT), 1)

    def y(self, value: float) -> float:
        """In the picture."""
        return round(BOTTOM - value / max(self.ticks_y) / 1.05 * (BOTTOM - TOP), 1)

    def path(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        """Points of a line."""
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y in zip(xs, ys, strict=True))


SHARES = Axes(TICKS_X, TICKS_Y)


def picture(curves: Sequence[Curve], *, title: str, x_label: str, y_label: str, axes: Axes = SHARES) -> str:
    """The SVG document."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        _text(LEFT, 24, title, kind="title"),
        *(_tick_x(axes, *tick) for tick in axes.ticks_x.items()),
        *(_tick_y(axes, *tick) for tick in axes.ticks_y.items()),
        _text((LEFT + RIGHT) / 2, HEIGHT - 14, x_label, anchor="middle"),
        f'<g transform="translate(16 {(TOP + BOTTOM) / 2}) rotate(-90)">{_text(0, 0, y_label, anchor="middle")}</g>',
    ]
    for number, curve in reversed(list(enumerate(curves))):  # the first on top
        parts += _drawn(axes, curve, COLOURS[number % len(COLOURS)], is_first=number == 0)
    for number, curve in enumerate(curves):
        parts.append(_legend(number, curve.name))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _drawn(axes: Axes, curve: Curve, colour: str, *, is_first: bool) -> list[str]:
    kind, points = "line first" if is_first else "line", axes.path(curve.x, curve.y)
    line = f'<polyline class="{kind}" stroke="{colour}" points="{points}"/>'
    if not is_first:
        return [line]
    around = f"{axes.path(curve.x, curve.high)} {axes.path(curve.x[::-1], curve.low[::-1])}"
    places = [(axes.x(x), axes.y(y)) for x, y in zip(curve.x, curve.y, strict=True)]
    dots = [f'<circle cx="{x}" cy="{y}" r="3.2" fill="{colour}"/>' for x, y in places]
    return [f'<polygon points="{around}" fill="{colour}" opacity=".22"/>', line, *dots]


def _legend(number: int, name: str) -> str:
    y, colour = TOP + 14 + 21 * number, COLOURS[number % len(COLOURS)]
    kind = "line first" if number == 0 else "line"
    stroke = f'<path class="{kind}" stroke="{colour}" d="M{RIGHT + 16} {y}h22"/>'
    return stroke + _text(RIGHT + 46, y + 4, name)


def _tick_x(axes: Axes, value: float, text: str) -> str:
    line = f'<path class="grid" d="M{axes.x(value)} {TOP}V{BOTTOM}"/>'
    return line + _text(axes.x(value), BOTTOM + 18, text, anchor="middle")


def _tick_y(axes: Axes, value: float, text: str) -> str:
    line = f'<path class="grid" d="M{LEFT} {axes.y(value)}H{RIGHT}"/>'
    return line + _text(LEFT - 8, axes.y(value) + 4, text, anchor="end")


def _text(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
