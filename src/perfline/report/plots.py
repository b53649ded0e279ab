"""Which pictures does a person want of a session, and what is drawn in each?

Each function takes plain values and returns the SVG of one chart; what the marks mean is said in
the caption that the page's template gives it. Nothing is judged here: words come with the values.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from perfline.gates.verdict import Word
from perfline.report.svg import Axis, Chart, linear, named, number

_ROW = 34  # units that one row of an interval chart takes
_CROWD = 60  # points from which they are drawn smaller
_DOTS = 250  # points of a history that are drawn one by one; beyond, the line alone


@dataclass(frozen=True)
class Interval:
    """One metric against its baseline; all changes in per cent of the baseline.

    Attributes:
        low, high: ends of the interval that the verdict rests on; None where it cannot be had.
        limit: the margin; None where the case is not known.
        sessions: the accepted sessions, as changes from their mean.
    """

    name: str
    change: float
    low: float | None
    high: float | None
    limit: float | None
    word: Word
    sessions: tuple[float, ...] = ()


@dataclass(frozen=True)
class HistoryPoint:
    """One metric in one past record."""

    created: str
    value: float
    title: str
    word: Word | None = None
    baseline: float | None = None  # what it was compared with then


@dataclass(frozen=True)
class Bar:
    """A measured value and, where there is one, the accepted value."""

    name: str
    value: float
    baseline: float | None = None


@dataclass(frozen=True)
class Estimate:
    """What was known of a slowdown after so many launch pairs; all in per cent."""

    pairs: int
    pair: float  # the newest pair's own
    estimate: float
    low: float | None
    high: float | None
    look: bool = False


@dataclass(frozen=True)
class Series:
    """Rounds of one metric."""

    name: str
    samples: tuple[float, ...]
    kind: str = field(default="a")  # "a" is drawn strong, "b" faint


def intervals(rows: Sequence[Interval]) -> str:
    """Throughput against its baseline: change, interval of decision, margin, sessions."""
    values = [0.0]
    for row in rows:
        ends = (end for end in (row.low, row.high) if end is not None)
        values += [row.change, row.limit or 0.0, *ends, *row.sessions]
    x = linear(values, "change against the baseline, %")
    y = named([row.name for row in rows])
    chart = Chart("throughput against its baseline", x, y, height=44 + _ROW * len(rows))
    chart.upright(0, "baseline", "baseline")
    for place, row in enumerate(rows):
        if row.limit is not None:
            edges = {"low": place + 0.5, "high": place - 0.5}
            chart.upright(row.limit, "limit", f"margin {row.limit:+.1f} %", **edges)
        for session in row.sessions:
            chart.diamond(session, place, "accepted", f"accepted session: {session:+.2f} %")
        shown = f"{row.name}: {row.change:+.2f} %, {row.word}"
        if row.low is not None and row.high is not None:
            shown += f"; interval of decision {row.low:+.2f} to {row.high:+.2f} %"
            chart.bar(row.low, row.high, place, f"reach {row.word}", shown, thick=0.2)
        chart.dot(row.change, place, f"now {row.word}", shown, radius=4.5)
    return chart.svg()


def rounds(series: Sequence[Series], unit: str, baseline: float | None) -> str:
    """Rounds in the order of time: throttling shows as a slope."""
    longest = max(len(each.samples) for each in series)
    values = [value for each in series for value in each.samples]
    if baseline is not None:
        values.append(baseline)
    x = linear([1, longest], "round", 8, whole=True)
    y = linear(values, unit)
    chart = Chart(f"rounds over time, {unit}", x, y)
    if baseline is not None:
        chart.level(baseline, "baseline", f"baseline {number(baseline, _step(y))} {unit}")
    for each in series:
        points = [(i + 1.0, value) for i, value in enumerate(each.samples)]
        chart.line(points, f"line {each.kind}")
        for place, value in points:
            title = f"{each.name}, round {place:.0f}: {number(value, _step(y))} {unit}"
            chart.dot(place, value, f"point {each.kind}", title)
    return chart.svg()


def drift_fraction(samples: Sequence[float]) -> float | None:
    """Return the change from first to last round on a straight line, as a share of the median.

    Least squares; None for fewer than three rounds.
    """
    usable = len(samples) >= 3 and abs(statistics.median(samples)) > 0
    if not usable or max(map(abs, samples)) >= 1e100:  # beyond it sums and squares overflow
        return None
    slope, _ = statistics.linear_regression(range(len(samples)), samples)
    return slope * (len(samples) - 1) / statistics.median(samples)


def history(
    name: str, unit: str, points: Sequence[HistoryPoint], accepted: Sequence[tuple[str, float]]
) -> str:
    """One metric over past records, with the baseline of each and the accepted sessions.

    Points stand one step apart, oldest first: gaps between nights take no room.
    """
    dates = [point.created for point in points]
    known = [point.baseline for point in points if point.baseline is not None]
    y = linear([*(point.value for point in points), *known, *(v for _, v in accepted)], unit)
    chart = Chart(f"history of {name}, {unit}", _dated(dates), y, height=190)
    _held(chart, points)
    chart.line([(i, point.value) for i, point in enumerate(points)], "line a")
    for i, point in enumerate(points):
        notable = point.word not in (None, "ok")
        if len(points) <= _DOTS or notable or i == len(points) - 1:
            last, many = i == len(points) - 1, len(points) > _CROWD
            kind = f"now {point.word}" if notable or last else "point a"
            radius = 4.5 if last else (1.2 if many else 2) + 0.8 * notable
            crowd = " crowd" if many and not last else ""
            chart.dot(i, point.value, kind + crowd, point.title, radius=radius)
    for date, value in accepted:
        place = sum(created < date for created in dates)
        title = f"accepted {date[:10]}: {number(value, _step(y))} {unit}"
        chart.diamond(min(place, len(dates) - 1), value, "accepted", title)
    return chart.svg()


def bars(title: str, what: str, unit: str, rows: Sequence[Bar]) -> str:
    """Lengths from 0, with a tick at the accepted value."""
    values = [value for row in rows for value in (row.value, row.baseline) if value is not None]
    x = linear(values, f"{what}, {unit}", 4, zero=True)
    step = _step(x)
    room = Axis(x.low, x.high + 0.22 * (x.high - x.low), x.ticks, x.label)  # for the numbers
    y = named([row.name for row in rows])
    chart = Chart(f"{title}, {unit}", room, y, height=44 + 24 * len(rows))
    for place, row in enumerate(rows):
        shown = number(row.value, step / 10)
        stored = "" if row.baseline is None else f", accepted {number(row.baseline, step / 10)}"
        chart.bar(0, row.value, place, "bar", f"{row.name}: {shown}{stored} {unit}")
        if row.baseline is not None:
            chart.upright(row.baseline, "mark", low=place + 0.42, high=place - 0.42)
        end = max(row.value, row.baseline or 0.0)
        chart.text(end, place, shown, "value", dx=6)
    return chart.svg()


def converging(steps: Sequence[Estimate], margin: float) -> str:
    """The estimate of a slowdown, launch pair by launch pair, with its interval and the looks."""
    ends = [end for step in steps for end in (step.low, step.high) if end is not None]
    values = [0.0, margin, *(s.estimate for s in steps), *(s.pair for s in steps)]
    x = linear([1, max(2, steps[-1].pairs)], "launch pairs", 8, whole=True)
    y = linear([*values, *_trimmed(ends, values)], "slowdown of the candidate, %")
    chart = Chart("estimate of the slowdown after each launch pair", x, y, height=260)
    chart.level(0, "baseline", "no difference")
    chart.level(margin, "limit", f"margin {margin:+.1f} %")
    for step in steps:
        if step.low is not None and step.high is not None:
            kind = "whisker look" if step.look else "whisker"
            chart.upright(step.pairs, kind, _told(step), low=step.low, high=step.high)
        chart.dot(step.pairs, step.pair, "point b", f"pair {step.pairs}: {step.pair:+.2f} %", 2)
    chart.line([(step.pairs, step.estimate) for step in steps], "line a")
    for step in steps:
        chart.dot(step.pairs, step.estimate, "point a", _told(step), radius=4 if step.look else 2.5)
    return chart.svg()


def share_bar(change: float, largest: float) -> str:
    """A bar to the left or right of a middle, for a row of a table; no text, the row says it."""
    width = 0.0 if not largest else 50 * min(abs(change) / largest, 1.0)
    kind = "loss" if change < 0 else "gain"
    start = 50 - width if change < 0 else 50.0
    return (
        '<svg class="share" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="{kind}" x="{start:.2f}" y="1" width="{width:.2f}" height="8"/>'
        '<path class="axis" d="M50 0V10"/></svg>'
    )


def fraction_bar(value: float) -> str:
    """A bar from 0 to 1, for a row of a table."""
    return (
        '<svg class="share" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="bar" x="0" y="1" width="{100 * min(max(value, 0.0), 1.0):.2f}" height="8"/>'
        "</svg>"
    )


def _held(chart: Chart, points: Sequence[HistoryPoint]) -> None:
    """The baseline that each record was compared with; interrupted where there was none."""
    run: list[tuple[float, float]] = []
    for i, point in enumerate(points):
        if point.baseline is not None:
            run.append((i, point.baseline))
        if run and (point.baseline is None or i == len(points) - 1):
            chart.steps(
                run
                if len(run) > 1
                else [(run[0][0] - 0.4, run[0][1]), (run[0][0] + 0.4, run[0][1])],
                "baseline",
            )
            run = []


def _dated(dates: Sequence[str]) -> Axis:
    last = len(dates) - 1
    places = sorted({round(last * share / 3) for share in range(4)})
    ticks = tuple((float(place), dates[place][:10]) for place in places)
    return Axis(-0.5, max(last + 0.5, 0.5), ticks, f"{len(dates)} records, oldest first")


def _trimmed(ends: Sequence[float], values: Sequence[float]) -> list[float]:
    """Early intervals may be huge: they are cut at three times the reach of what they are of."""
    reach = 3 * max(map(abs, values))
    return [min(max(end, -reach), reach) for end in ends]


def _told(step: Estimate) -> str:
    shown = f"after {step.pairs} pairs: {step.estimate:+.2f} %"
    if step.low is not None and step.high is not None:
        shown += f", {step.low:+.2f} to {step.high:+.2f} %"
    return f"{shown}, a look" if step.look else shown


def _step(axis: Axis) -> float:
    """A tenth of the distance of two ticks: how finely a title should tell a value."""
    if len(axis.ticks) < 2:
        return (axis.high - axis.low) / 10
    return (axis.ticks[1][0] - axis.ticks[0][0]) / 10
