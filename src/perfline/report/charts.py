"""Which charts does a case get, over which values, what is drawn in each, and what is said of it?

Those that draw take plain values and return the SVG of one chart; what its marks mean is said in
the caption and the keys. Nothing is judged here: words come with the values.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from perfline.baselines.baseline import Baseline
from perfline.cases.case import Case
from perfline.gates.statistics import prediction_interval
from perfline.gates.verdict import Verdict, Word
from perfline.metrics import Metric
from perfline.report.page_inputs import CaseInputs, Past, scoring_of
from perfline.report.svg import Axis, Chart, linear, named, rounded
from perfline.report.table import engine_kinds, number, on_baseline, own_engines, unit_shown

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
        chart.level(baseline, "baseline", f"baseline {rounded(baseline, _step(y))} {unit}")
    for each in series:
        points = [(i + 1.0, value) for i, value in enumerate(each.samples)]
        chart.line(points, f"line {each.kind}")
        for place, value in points:
            title = f"{each.name}, round {place:.0f}: {rounded(value, _step(y))} {unit}"
            chart.dot(place, value, f"point {each.kind}", title)
    return chart.svg()


def token_times(series: Sequence[Series]) -> str:
    """Seconds a token by its position in the text; ``samples[0]`` is the second token's."""
    longest = max(len(each.samples) for each in series)
    x = linear([2, longest + 1], "token", 8, whole=True)
    y = linear([1000 * value for each in series for value in each.samples], "ms", zero=True)
    chart = Chart("time of each token, ms", x, y)
    for each in series:
        points = [(i + 2.0, 1000 * value) for i, value in enumerate(each.samples)]
        chart.line(points, f"line {each.kind}")
        for place, value in points:
            title = f"{each.name}, token {place:.0f}: {rounded(value, _step(y) / 10)} ms"
            chart.dot(place, value, f"point {each.kind}", title, radius=1.5)
    return chart.svg()


def drift_fraction(samples: Sequence[float]) -> float | None:
    """Return the change from first to last round on a straight line, as a share of the median.

    Least squares; None for fewer than three rounds.
    """
    if len(samples) < 3 or statistics.median(samples) == 0:
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
    _draw_baselines(chart, points)
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
        title = f"accepted {date[:10]}: {rounded(value, _step(y))} {unit}"
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
        shown = rounded(row.value, step / 10)
        stored = "" if row.baseline is None else f", accepted {rounded(row.baseline, step / 10)}"
        chart.bar(0, row.value, place, "bar", f"{row.name}: {shown}{stored} {unit}")
        if row.baseline is not None:
            chart.upright(row.baseline, "mark", low=place + 0.42, high=place - 0.42)
        end = max(row.value, row.baseline or 0.0)
        chart.text(end, place, shown, "value")
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
            chart.upright(step.pairs, kind, _estimate_told(step), low=step.low, high=step.high)
        chart.dot(step.pairs, step.pair, "point b", f"pair {step.pairs}: {step.pair:+.2f} %", 2)
    chart.line([(step.pairs, step.estimate) for step in steps], "line a")
    for step in steps:
        chart.dot(
            step.pairs,
            step.estimate,
            "point a",
            _estimate_told(step),
            radius=4 if step.look else 2.5,
        )
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


def _draw_baselines(chart: Chart, points: Sequence[HistoryPoint]) -> None:
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


def _estimate_told(step: Estimate) -> str:
    shown = f"after {step.pairs} pairs: {step.estimate:+.2f} %"
    if step.low is not None and step.high is not None:
        shown += f", {step.low:+.2f} to {step.high:+.2f} %"
    return f"{shown}, a look" if step.look else shown


def _step(axis: Axis) -> float:
    """A tenth of the distance of two ticks: how finely a title should tell a value."""
    if len(axis.ticks) < 2:
        return (axis.high - axis.low) / 10
    return (axis.ticks[1][0] - axis.ticks[0][0]) / 10


# As in the gate: the lower end rules a slowdown out (ok), the upper end proves one (regressed).
_LOWER, _UPPER = 0.975, 0.99
_KEY_HISTORY = (
    *("p_infer_core", "p_infer_whole", "p_val_core", "p_val_whole"),
    *("decode", "decode_val", "ttft", "ttft_val", "acc_infer", "acc_val"),
    *("mem", "mem_val", "compile_time"),
)
_ROUNDS = (
    ("inductor", "p_infer_core", "p_infer_whole"),
    ("eager", "p_val_core", "p_val_whole"),
    ("decode, inductor", "decode", ""),
    ("decode, eager", "decode_val", ""),
    ("SM clock, inductor", "sm_clock", ""),
    ("SM clock, eager", "sm_clock_val", ""),
)
_PHASES = (
    ("load_time", "load"),
    ("compile_time", "compile"),
    ("warmup_time_val", "warm-up, eager"),
    ("warmup_time", "warm-up, inductor"),
    ("timed_time_val", "timed, eager"),
    ("timed_time", "timed, inductor"),
    ("acc_val_time", "accuracy, eager"),
    ("acc_infer_time", "accuracy, inductor"),
)
_MEMORY = (
    *(("load_peak", "load"), ("mem_val", "eager"), ("mem", "inductor")),
    *(("mem_decode_val", "decode, eager"), ("mem_decode", "decode, inductor")),
)


@dataclass(frozen=True)
class Figure:
    """One chart with its title and caption; ``keys`` are (CSS class, meaning) of its marks."""

    title: str
    svg: str
    caption: str
    keys: tuple[tuple[str, str], ...] = ()


def figures(
    inputs: CaseInputs, created: str, every_plot: bool
) -> tuple[dict[str, tuple[Figure, ...]], list[str]]:
    """Return the charts by section, and what could not be drawn, and why.

    ``created`` is the date of the record; without ``every_plot`` only the key metrics have a
    history.
    """
    absent: list[str] = []
    key, rest = _histories(inputs, created)
    found = {
        "speed": (*_intervals(inputs, absent), *_rounds(inputs), *_token_times(inputs)),
        "history": tuple(key),
        "more_history": tuple(rest) if every_plot else (),
        "cost": tuple(_costs(inputs)),
    }
    if rest and not every_plot:
        absent.append(f"The history of {len(rest)} more metrics is left out: the page has a limit.")
    return found, absent


def _intervals(inputs: CaseInputs, absent: list[str]) -> list[Figure]:
    rows, moved = [], []
    for verdict in inputs.measured.verdicts:
        metric = inputs.measured.metrics.get(verdict.metric)
        own = metric is not None and metric.own
        timed = (own or verdict.metric.startswith("p_")) and verdict.gate == "baseline"
        if (verdict.change_fraction or 0) <= -1:
            continue  # a record that was edited: there is no such change
        if timed and verdict.change_fraction is not None and verdict.baseline:
            values = _judged_by(verdict.metric, verdict.baseline, inputs.stored)
            if inputs.stored is not None and not values:
                moved.append(verdict.metric)
            turned = own and metric is not None and metric.direction == "lower"
            rows.append(_interval(verdict, verdict.change_fraction, values, inputs.case, turned))
    if moved:
        absent.append(
            f"The interval of decision of {', '.join(moved)} is not drawn: another baseline has "
            "been accepted since this run was judged."
        )
    if not rows:
        return []
    if any(row.low is not None for row in rows):
        caption = (
            "The bar is where the change may lie, given the spread between sessions. It is ok when "
            "the whole bar lies right of the margin, and regressed when it lies left of 0 without "
            "that."
        )
    else:
        lacking = "baseline that judged this run" if moved else "baseline and the case's YAML"
        caption = f"The interval of decision cannot be drawn without the {lacking}."
    keys = [("now", "this run, in its verdict's colour")]
    keys += [("limit", "margin")] if any(row.limit is not None for row in rows) else []
    keys += [("accepted", "accepted sessions")] if any(row.sessions for row in rows) else []
    return [Figure("Throughput against its baseline", intervals(rows), caption, tuple(keys))]


def _interval(
    verdict: Verdict,
    change: float,
    values: Sequence[float],
    case: Case | None,
    turned: bool = False,
) -> Interval:
    """One row; ``turned`` where lower is better, so that right is better in all of them."""
    sign = -1 if turned else 1
    middle = sign * math.log1p(change)
    low = high = limit = None
    if case is not None:
        limit = _percent_of(verdict.limit, sign)
        if values:
            prior, logs = case.gates.throughput_session_sd_fraction, list(map(math.log, values))
            near, far = (prediction_interval(logs, prior, c).half_width for c in (_LOWER, _UPPER))
            low, high = 100 * math.expm1(middle - near), 100 * math.expm1(middle + far)
    sessions = tuple(100 * ((value / _mean(values)) ** sign - 1) for value in values)
    name = f"{verdict.metric} (turned)" if turned else verdict.metric
    return Interval(name, 100 * math.expm1(middle), low, high, limit, verdict.word, sessions)


def _percent_of(limit: str, sign: int) -> float | None:
    """The limit of a verdict, such as ``-5.7 %``, as the chart has it; None where it is none."""
    number, _, unit = limit.partition(" ")
    try:
        found = float(number) if unit == "%" else math.nan
    except ValueError:
        return None
    return 100 * ((1 + found / 100) ** sign - 1) if -100 < found < 1e6 else None


def _judged_by(metric: str, mean: float, stored: Baseline | None) -> tuple[float, ...]:
    """The sessions of that mean; none where the baseline has moved on.

    They are the latest, the first of these (sessions were added since, maybe this one), or those of
    the anchor.
    """
    if stored is None:
        return ()
    values = stored.values(metric)
    held = [*(values[:count] for count in range(len(values), 0, -1)), stored.anchor(metric)[0]]
    return next((v for v in held if v and math.isclose(_mean(v), mean, rel_tol=1e-9)), ())


def _mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def _rounds(inputs: CaseInputs) -> list[Figure]:
    metrics, found = inputs.measured.metrics, []
    own = [(name, f"p_{name}_core", f"p_{name}_whole") for name in own_engines(inputs.measured)]
    recorded = [(name, name, "") for name, metric in metrics.items() if metric.own]
    for title, first, second in (*_ROUNDS, *own, *recorded):
        shown = [
            metrics[n] for n in (first, second) if n in metrics and len(metrics[n].samples) > 1
        ]
        if not shown:
            continue
        strong = shown[0]
        series = [Series(m.name, tuple(m.samples), "a" if m is strong else "b") for m in shown]
        judged = on_baseline(inputs.measured, strong.name)
        held = None if judged is None else judged.baseline
        drift = drift_fraction(strong.samples)
        caption = f"{strong.name}: {len(strong.samples)} rounds"
        if drift is not None:
            caption += f"; a straight line through them changes by {100 * drift:+.1f} %"
        keys = [(f"line {s.kind}", s.name) for s in series]
        keys += [("baseline", "baseline")] if held is not None else []
        chart = rounds(series, strong.unit, held)
        found.append(Figure(f"Rounds over time: {title}", chart, f"{caption}.", tuple(keys)))
    return found


def _token_times(inputs: CaseInputs) -> list[Figure]:
    """Steps of both engines; the first token, which the prompt takes, is told and not drawn."""
    known = inputs.measured.token_times
    series = [
        Series(engine, times[1:], kind)
        for engine, kind in (("inductor", "a"), ("eager", "b"))
        if len(times := known.get(engine, ())) > 1
    ]
    if not series:
        return []
    first = (f"{each.name} {1000 * known[each.name][0]:.3g} ms" for each in series)
    caption = (
        "The median over prompts and rounds, batch 1. Level lines: a token takes as long far into "
        f"the text as at its start. The first token, behind the prompt: {', '.join(first)}."
    )
    keys = tuple((f"line {each.kind}", each.name) for each in series)
    return [Figure("Time of each token", token_times(series), caption, keys)]


def _histories(inputs: CaseInputs, created: str) -> tuple[list[Figure], list[Figure]]:
    """Charts of the key metrics, and of all others, over past records and this one."""
    if not inputs.past:
        return [], []
    key: list[Figure] = []
    rest: list[Figure] = []
    names = sorted(inputs.measured.metrics, key=_history_order)
    for name in names:
        metric = inputs.measured.metrics[name]
        points = _points(metric, inputs, created)
        if len(points) < 2:
            continue
        accepted = _accepted(name, metric.unit, inputs)
        chart = history(name, unit_shown(metric.unit), points, accepted)
        keys = [("now", "this run, in its verdict's colour")]
        if any(point.baseline is not None for point in points):
            keys.append(("baseline", "baseline then"))
        keys += [("accepted", "accepted sessions")] if accepted else []
        (key if name in _KEY_HISTORY else rest).append(Figure(name, chart, "", tuple(keys)))
    return key, rest


def _history_order(name: str) -> tuple[int, str]:
    return (_KEY_HISTORY.index(name) if name in _KEY_HISTORY else len(_KEY_HISTORY)), name


def _points(metric: Metric, inputs: CaseInputs, created: str) -> list[HistoryPoint]:
    scale = _scale(metric.unit)
    points = [
        HistoryPoint(
            created=past.created,
            value=scale(past.values[metric.name]),
            title=_told(past, metric),
            word=past.words.get(metric.name),
            baseline=scale(past.baselines[metric.name]) if metric.name in past.baselines else None,
        )
        for past in inputs.past
        if metric.name in past.values
    ]
    judged = on_baseline(inputs.measured, metric.name)
    shown = f"this run: {number(metric.value, metric.unit)} {unit_shown(metric.unit)}"
    held = None if judged is None or judged.baseline is None else scale(judged.baseline)
    now = HistoryPoint(created, scale(metric.value), shown, judged.word if judged else None, held)
    # This run is the last one, even where a clock was wrong.
    return [*points, now]


def _told(past: Past, metric: Metric) -> str:
    value = number(past.values[metric.name], metric.unit)
    told = [f"{past.created[:16]}: {value} {unit_shown(metric.unit)}"]
    told += [f"{key} {past.context[key]}" for key in ("commit", "torch") if key in past.context]
    told += [past.words[metric.name]] if metric.name in past.words else []
    return ", ".join(told)


def _accepted(name: str, unit: str, inputs: CaseInputs) -> list[tuple[str, float]]:
    """(date, value) of what the baseline holds of a metric."""
    stored, scale = inputs.stored, _scale(unit)
    if stored is None:
        return []
    found = [
        (session.date, scale(session.metrics[name].value))
        for session in stored.sessions
        if name in session.metrics
    ]
    if name in stored.anchors:
        found.append((stored.anchors[name].date, scale(stored.anchors[name].metric.value)))
    for word, engine in engine_kinds(inputs.measured).items():
        metric = f"acc_{word}"
        scoring = scoring_of(inputs, metric)
        if name == metric and engine in stored.accuracy and scoring is not None:
            answers = stored.accuracy[engine]
            right = answers.scored(scoring).correct
            found.append((answers.date, 100 * right / len(answers.ids)))
    return found


def _scale(unit: str) -> Callable[[float], float]:
    return (lambda value: 100 * value) if unit == "fraction" else (lambda value: value)


def _costs(inputs: CaseInputs) -> list[Figure]:
    found = []
    own = own_engines(inputs.measured)
    kinds = (("load_time_{}", "load"), ("warmup_time_{}", "warm-up"), ("timed_time_{}", "timed"))
    of_own = [(name.format(e), f"{title}, {e}") for e in own for name, title in kinds]
    of_own += [(f"acc_{engine}_time", f"accuracy, {engine}") for engine in own]
    phases = _bars(inputs, (*_PHASES, *of_own), "s")
    if phases:
        cache = inputs.measured.notes.get("compile_cache")
        caption = f"Compiled with a {cache} cache." if cache else ""
        found.append(_bar_figure("Time by phase", "time", "s", phases, caption))
    memory = _bars(inputs, (*_MEMORY, *((f"mem_{engine}", engine) for engine in own)), "GiB")
    if memory:
        caption = "Peak of each phase; the device's own count, or the process's on a CPU."
        found.append(_bar_figure("Peak memory", "peak memory", "GiB", memory, caption))
    return found


def _bar_figure(title: str, axis: str, unit: str, rows: Sequence[Bar], caption: str) -> Figure:
    keys = [("bar", "this run")]
    keys += [("mark", "accepted")] if any(row.baseline is not None for row in rows) else []
    return Figure(title, bars(title, axis, unit, rows), caption, tuple(keys))


def _bars(inputs: CaseInputs, names: Sequence[tuple[str, str]], unit: str) -> list[Bar]:
    metrics = inputs.measured.metrics
    return [
        Bar(title, metrics[name].value, _held(name, inputs.stored))
        for name, title in names
        if name in metrics and metrics[name].unit == unit
    ]


def _held(name: str, stored: Baseline | None) -> float | None:
    values = stored.values(name) if stored is not None else ()
    if not values:
        return None
    return max(values) if name.startswith("mem") else values[-1]
