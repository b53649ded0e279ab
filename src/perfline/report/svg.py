"""How does a chart become SVG text that a page can restyle? Axes, ticks and marks, nothing else.

Own code instead of a plotting library, on purpose: colours are CSS classes, so that one file serves
light, dark and print; text stays text, to select and to search, and every mark tells its value; a
chart takes 1 to 6 kB and half a millisecond, one of 200 records 40 kB and ten; and nothing has to
be installed. matplotlib with ``svg.fonttype none`` would halve the lines. It lost on colours (they
are literals in its output), on what a mark tells (nothing), and on time: over 200 ms a chart, and
seconds to import it.

Charts are ``WIDTH`` units wide and as wide as a phone: a page lays them out as small multiples, so
that their text never shrinks below what can be read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 360
_CHARACTER = 6.1  # width of one at the 11 units that the style sheet sets
_RIGHT, _BOTTOM = 14, 38

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """A range of values, its ticks (value, text) and its name with the unit."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    label: str


def linear(
    values: Iterable[float], label: str, count: int = 5, *, zero: bool = False, whole: bool = False
) -> Axis:
    """Return an axis around the values with about ``count`` ticks at round numbers.

    ``zero`` starts it at 0, as bars need; ``whole`` has ticks at whole numbers only.
    """
    known = [_tame(value) for value in values] or [0.0]
    low, high = min(known), max(known)
    if zero:
        low, high = min(0.0, low), max(0.0, high)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        pad = max(1.0 if whole or high == 0 else 0.0, 0.02 * abs(high))
        low, high = (min(0.0, low), high + pad) if zero else (low - pad, high + pad)
    else:
        pad = 0.06 * (high - low)
        low = low if zero and low == 0 else low - pad
        high = high if zero and high == 0 else high + pad
    step = _step((high - low) / count)
    if whole:
        step = max(1.0, float(math.ceil(step)))
    first, last = math.ceil(low / step), math.floor(high / step)
    ticks = tuple((i * step, rounded(i * step, step)) for i in range(first, last + 1))
    return Axis(low, high, ticks, label)


def named(names: Sequence[str]) -> Axis:
    """Return an axis with one row a name, the first at the top."""
    ticks = tuple((float(i), name) for i, name in enumerate(names))
    return Axis(len(names) - 0.5, -0.5, ticks, "")


def rounded(value: float, step: float) -> str:
    """Return a value with the decimals that a step needs: ``12,500``, ``0.25``."""
    if value and (abs(value) >= 1e9 or step < 1e-6):
        return f"{value:.3g}"
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if not math.isclose(step, round(step, decimals), rel_tol=1e-6):
        decimals += 1  # a step of 2.5 of its power of ten
    return f"{value + 0.0:,.{decimals}f}"


class Chart:
    """A chart being drawn: marks are placed in the units of its two axes."""

    def __init__(self, title: str, x: Axis, y: Axis, *, height: int = 210) -> None:
        """Draw frame, grid, ticks and labels. ``title`` is read aloud, not shown."""
        gutter = max((len(text) for _, text in y.ticks), default=0) * _CHARACTER
        self._x, self._y = x, y
        self._left = 12 + min(gutter, WIDTH * 0.5)
        self._height = height
        self._top = 24 if y.label else 6
        self._marks: list[str] = []
        self._title = title
        self._axes()

    def at(self, x: float, y: float) -> Point:
        """Return where a pair of values lies, in units of the drawing."""
        return self._across(x), self._down(y)

    def line(self, points: Sequence[Point], kind: str, title: str = "") -> None:
        """Join points by a line; ``kind`` is its CSS class."""
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (self.at(*point) for point in points))
        self._add(f'<polyline class="{kind}" points="{path}"', "polyline", title)

    def steps(self, points: Sequence[Point], kind: str) -> None:
        """Join points by a line that keeps a value until the next."""
        corners = list(points[:1])
        for (_, before), (x, y) in itertools.pairwise(points):
            corners += [(x, before), (x, y)]
        self.line(corners, kind)

    def dot(self, x: float, y: float, kind: str, title: str = "", radius: float = 3) -> None:
        """Mark a point."""
        a, b = self.at(x, y)
        self._add(
            f'<circle class="{kind}" cx="{a:.1f}" cy="{b:.1f}" r="{radius:g}"', "circle", title
        )

    def diamond(self, x: float, y: float, kind: str, title: str = "") -> None:
        """Mark a point of another kind."""
        a, b = self.at(x, y)
        self._add(f'<path class="{kind}" d="M{a:.1f} {b - 5:.1f}l5 5l-5 5l-5-5z"', "path", title)

    def bar(
        self, low: float, high: float, y: float, kind: str, title: str = "", *, thick: float = 0.6
    ) -> None:
        """Fill from ``low`` to ``high`` in row ``y``; ``thick`` is a share of the row."""
        a, b = sorted((self._across(low), self._across(high)))
        top, bottom = sorted((self._down(y - thick / 2), self._down(y + thick / 2)))
        self._add(
            f'<rect class="{kind}" x="{a:.1f}" y="{top:.1f}" width="{max(b - a, 0.8):.1f}" '
            f'height="{bottom - top:.1f}"',
            "rect",
            title,
        )

    def upright(
        self,
        x: float,
        kind: str,
        text: str = "",
        *,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        """Draw a line at ``x`` over the whole height, or from ``low`` to ``high``."""
        low, high = (self._y.low if low is None else low), (self._y.high if high is None else high)
        self.line([(x, low), (x, high)], kind, text)

    def level(self, y: float, kind: str, title: str = "") -> None:
        """Draw a line at ``y`` over the whole width."""
        self.line([(self._x.low, y), (self._x.high, y)], kind, title)

    def text(self, x: float, y: float, words: str, kind: str) -> None:
        """Write beside a point, to its right or where that is outside the drawing to its left."""
        a, b = self.at(x, y)
        right = a + 6 + len(words) * _CHARACTER <= WIDTH - 2
        place, anchor = (a + 6, "start") if right else (a - 6, "end")
        self._marks.append(_text(place, b + 4, words, kind, anchor))

    def svg(self) -> str:
        """Return the whole drawing."""
        return (
            f'<svg class="plot" viewBox="0 0 {WIDTH} {self._height}" role="img" '
            f'aria-label="{escape(self._title)}">{"".join(self._marks)}</svg>'
        )

    def _add(self, start: str, tag: str, title: str) -> None:
        inner = f"><title>{escape(title)}</title></{tag}>" if title else "/>"
        self._marks.append(start + inner)

    def _across(self, x: float) -> float:
        share = (x - self._x.low) / (self._x.high - self._x.low)
        return self._left + min(max(share, 0.0), 1.0) * (WIDTH - _RIGHT - self._left)

    def _down(self, y: float) -> float:
        share = (y - self._y.low) / (self._y.high - self._y.low)
        return (
            self._height
            - _BOTTOM
            - min(max(share, 0.0), 1.0) * (self._height - _BOTTOM - self._top)
        )

    def _axes(self) -> None:
        floor = self._height - _BOTTOM
        rows = self._y.low > self._y.high  # names, not values
        for value, text in self._y.ticks:
            y = self._down(value)
            if not rows:
                self._marks.append(
                    f'<path class="grid" d="M{self._left:.1f} {y:.1f}H{WIDTH - _RIGHT}"/>'
                )
            self._marks.append(_text(self._left - 5, y + 4, text, "tick", "end"))
        free_from = 0.0
        for value, text in self._x.ticks:
            x, half = self._across(value), len(text) * _CHARACTER / 2
            middle = min(max(x, half + 1), WIDTH - half - 1)
            if rows:
                self._marks.append(f'<path class="grid" d="M{x:.1f} {self._top}V{floor}"/>')
            if middle - half < free_from:
                continue  # no room: the grid still shows where it is
            free_from = middle + half + 6
            self._marks.append(_text(middle, floor + 15, text, "tick", "middle"))
        self._marks.append(f'<path class="axis" d="M{self._left:.1f} {floor}H{WIDTH - _RIGHT}"/>')
        if self._y.label:
            self._marks.append(_text(2, 12, self._y.label, "label", "start"))
        middle = (self._left + WIDTH - _RIGHT) / 2
        half = len(self._x.label) * _CHARACTER / 2
        middle = min(max(middle, half + 1), WIDTH - half - 1)
        self._marks.append(_text(middle, self._height - 6, self._x.label, "label", "middle"))


def _text(x: float, y: float, words: str, kind: str, anchor: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(words)}</text>'


def _tame(value: float) -> float:
    """Keep what no measurement is, yet a hand-edited record may hold, within what floats divide."""
    return 0.0 if abs(value) < 1e-100 else max(-1e100, min(value, 1e100))


def _step(wanted: float) -> float:
    """Return the smallest of 1, 2, 2.5, 5 or 10 times a power of ten that is no less."""
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(power * m for m in (1, 2, 2.5, 5, 10, 20) if power * m >= wanted * (1 - 1e-9))
