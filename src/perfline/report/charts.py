"""Which charts does a case get, over which values, and what does each caption say?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from perfline.baselines.baseline import Baseline
from perfline.cases.case import Case
from perfline.gates.statistics import prediction_interval
from perfline.gates.verdict import Verdict
from perfline.metrics import Metric
from perfline.report import plots
from perfline.report import text as report
from perfline.report.page_accuracy import engines, scoring_of
from perfline.report.page_inputs import CaseInputs, Past
from perfline.report.plots import Bar, HistoryPoint, Interval, Series
from perfline.report.text import own_engines

# As in the gate: the lower end rules a slowdown out (ok), the upper end proves one (regressed).
_LOWER, _UPPER = 0.975, 0.99
_KEY_HISTORY = (
    *("p_infer_core", "p_infer_whole", "p_val_core", "p_val_whole"),
    *("acc_infer", "acc_val", "mem", "mem_val", "compile_time"),
)
_ROUNDS = (
    ("inductor", "p_infer_core", "p_infer_whole"),
    ("eager", "p_val_core", "p_val_whole"),
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
_MEMORY = (("load_peak", "load"), ("mem_val", "eager"), ("mem", "inductor"))


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
        "speed": (*_intervals(inputs, absent), *_rounds(inputs)),
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
        timed = verdict.metric.startswith("p_") and verdict.gate == "baseline"
        if (verdict.change_fraction or 0) <= -1:
            continue  # a record that was edited: there is no such change
        if timed and verdict.change_fraction is not None and verdict.baseline:
            values = _judged_by(verdict.metric, verdict.baseline, inputs.stored)
            if inputs.stored is not None and not values:
                moved.append(verdict.metric)
            rows.append(_interval(verdict, verdict.change_fraction, values, inputs.case))
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
    return [Figure("Throughput against its baseline", plots.intervals(rows), caption, tuple(keys))]


def _interval(
    verdict: Verdict, change: float, values: Sequence[float], case: Case | None
) -> Interval:
    low = high = limit = None
    if case is not None:
        limit = -100 * case.gates.throughput_margin_fraction
        if values:
            prior, logs = case.gates.throughput_session_sd_fraction, list(map(math.log, values))
            near, far = (prediction_interval(logs, prior, c).half_width for c in (_LOWER, _UPPER))
            middle = math.log1p(change)
            low, high = 100 * math.expm1(middle - near), 100 * math.expm1(middle + far)
    sessions = tuple(100 * (value / _mean(values) - 1) for value in values)
    return Interval(verdict.metric, 100 * change, low, high, limit, verdict.word, sessions)


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
        held = next(
            (
                v.baseline
                for v in inputs.measured.verdicts
                if (v.metric, v.gate) == (strong.name, "baseline")
            ),
            None,
        )
        drift = plots.drift_fraction(strong.samples)
        caption = f"{strong.name}: {len(strong.samples)} rounds"
        if drift is not None:
            caption += f"; a straight line through them changes by {100 * drift:+.1f} %"
        keys = [(f"line {s.kind}", s.name) for s in series]
        keys += [("baseline", "baseline")] if held is not None else []
        chart = plots.rounds(series, strong.unit, held)
        found.append(Figure(f"Rounds over time: {title}", chart, f"{caption}.", tuple(keys)))
    return found


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
        chart = plots.history(name, report.unit_shown(metric.unit), points, accepted)
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
    judged = next(
        (v for v in inputs.measured.verdicts if (v.metric, v.gate) == (metric.name, "baseline")),
        None,
    )
    shown = f"this run: {report.number(metric.value, metric.unit)} {report.unit_shown(metric.unit)}"
    held = None if judged is None or judged.baseline is None else scale(judged.baseline)
    now = HistoryPoint(created, scale(metric.value), shown, judged.word if judged else None, held)
    # This run is the last one, even where a clock was wrong.
    return [*points, now]


def _told(past: Past, metric: Metric) -> str:
    value = report.number(past.values[metric.name], metric.unit)
    told = [f"{past.created[:16]}: {value} {report.unit_shown(metric.unit)}"]
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
    for engine, metric in engines(inputs.measured).items():
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
    return Figure(title, plots.bars(title, axis, unit, rows), caption, tuple(keys))


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
