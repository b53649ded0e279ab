"""When did a metric change over past sessions, and by how much?

Change points by Apache Otava (E-divisive, Matteson & James 2014, as changed by Hunter, Fleming et
al. 2023: sliding windows of 50, Student's t at p <= 0.001), at its defaults; the extra ``trend``
installs it, with older numpy and scipy: better not where one measures. Counts (graphs, recompiles)
carry no noise: every step of theirs is a change.

A series holds one metric of one case, definition, machine, dtype and, where it was timed, workload;
stopped sessions and disturbed numbers are left out. It says when something changed: it is no gate.
"""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perfline.errors import PerflineError, printable
from perfline.gates.verdict import signed
from perfline.metrics import Direction
from perfline.report.history import History, Row, commit, moment
from perfline.report.text import WIDTH, context_change, number

WINDOW, P_VALUE = 50, 0.001  # Otava's defaults
LEAST = 5  # sessions of a series: with fewer, only huge steps can reach the p-value
_INSTALL = "pip install apache-otava"  # what the extra ``trend`` installs

# Simulated with Otava 0.8.0 at these defaults, 150 to 400 normal series a figure. Nothing changed:
# marked 2.5, 2.3, 1.3 and 7.3 % of series of 10, 20, 50 and 100. A step of 2 % after 30 sessions,
# seen 1, 2, 3, 5 or 8 sessions later: in 62, 96, 99, 98, 100 % where sessions differ by 0.5 %, and
# in 5, 27, 44, 72, 89 % where they differ by 1 %.
CAVEAT = (
    "Read with care: Otava tests the split that fits best as if it had been named beforehand. Of "
    "series in which nothing changed it marks about 2 % at 10 to 50 sessions and 7 % at 100. "
    "A step of 2 % shows after one or two sessions where sessions differ by 0.5 %, and after five "
    "to eight where they differ by 1 %. The date is that of the best split, which can be a session "
    "or two off. What changed at the same time need not be the cause: `perfline compare` settles "
    "it. This is no gate."
)


@dataclass(frozen=True)
class Change:
    """The level of a series changed at ``row``.

    Attributes:
        before: mean of the sessions since the change before, in the metric's unit.
        after: mean of the sessions until the next change.
        sessions: how many these are, before and after.
        p_value: of Student's t; None for counts, which need no test.
        previous: the last session before the change.
    """

    metric: str
    unit: str
    direction: Direction
    before: float
    after: float
    sessions: tuple[int, int]
    p_value: float | None
    previous: Row
    row: Row

    @property
    def size(self) -> str:
        """Return the change: pp for fractions, a number for counts, else per cent."""
        difference = self.after - self.before
        if self.unit == "fraction":
            return signed(100 * difference, "pp")
        if self.unit == "count" or self.before == 0:
            return f"{difference:+g}"
        return signed(100 * difference / self.before, "%")

    @property
    def word(self) -> str:
        """Return ``better`` or ``worse``; ``changed`` where neither way is."""
        if self.direction == "info":
            return "changed"
        return "better" if (self.after > self.before) == (self.direction == "higher") else "worse"


@dataclass(frozen=True)
class Trend:
    """What was found, in how many series.

    Attributes:
        series: how many were long enough to look at.
        short: how many were not.
    """

    changes: tuple[Change, ...]
    series: int
    short: int


def trend(history: History, metrics: Sequence[str] = ()) -> Trend:
    """Look for changes in the named metrics, or in all judged ones.

    PerflineError where Otava is not installed.
    """
    otava = _otava()
    changes: list[Change] = []
    looked = short = 0
    for rows in history.groups.values():
        complete = [row for row in rows if not row.partial]
        for metric in sorted({name for row in complete for name in row.metrics}):
            for series in _series(complete, metric, metrics):
                if len(series) < LEAST:
                    short += 1
                    continue
                looked += 1
                changes += _changes(otava, metric, series)
    return Trend(tuple(changes), looked, short)


def text(found: Trend) -> str:
    """Return what changed when, in words, and how far to trust it; 80 columns."""
    lines = [line for change in found.changes for line in _wrapped(_sentence(change))]
    if not found.series:
        lines.append(f"trend: no series of at least {LEAST} sessions, so none was looked at")
    elif not found.changes:
        lines.append(f"trend: no change found in {found.series} series")
    else:
        lines.insert(0, f"trend: {len(found.changes)} found in {found.series} series")
    if found.short:
        lines.append(f"  {found.short} series of fewer than {LEAST} sessions not looked at")
    if found.series:
        lines += ["", *_wrapped(CAVEAT, "")]
    return "\n".join(lines)


def as_json(found: Trend) -> dict[str, object]:
    """Return the changes; sizes in the metric's unit."""
    return {
        "series": found.series,
        "short": found.short,
        "caveat": CAVEAT,
        "changes": [
            {
                "case": change.row.case.case,
                "machine": change.row.machine,
                "metric": change.metric,
                "unit": change.unit,
                "word": change.word,
                "before": change.before,
                "after": change.after,
                "sessions_before": change.sessions[0],
                "sessions_after": change.sessions[1],
                "p_value": change.p_value,
                "last_before": change.previous.created,
                "first_after": change.row.created,
                "commit_before": change.previous.context.get("commit"),
                "commit_after": change.row.context.get("commit"),
            }
            for change in found.changes
        ],
    }


def _otava() -> Any:
    try:
        return importlib.import_module("otava.analysis")
    except ImportError as problem:
        raise PerflineError(
            f"--trend needs Apache Otava, which is not installed here ({problem.name} is missing); "
            "get it, in an environment that measures nothing since it pins older numpy and scipy, "
            f"with: {_INSTALL}"
        ) from problem


def _series(rows: Sequence[Row], metric: str, wanted: Sequence[str]) -> list[list[Row]]:
    """The sessions that measured ``metric``, by workload where it was timed."""
    having = [row for row in rows if metric in row.metrics]
    judged = having[-1].metrics[metric].direction != "info"
    if (wanted and metric not in wanted) or (not wanted and not judged):
        return []
    by_workload: dict[tuple[object, ...], list[Row]] = {}
    for row in having:
        timed: Mapping[str, object] = {} if metric.startswith("acc_") else row.case.workload
        asked = row.metrics.get(f"{metric}_questions")  # accuracy of other questions is another
        key = (*sorted(timed.items()), None if asked is None else asked.value)
        by_workload.setdefault(key, []).append(row)
    return list(by_workload.values())


def _changes(otava: Any, metric: str, rows: Sequence[Row]) -> list[Change]:
    values = [row.metrics[metric].value for row in rows]
    newest = rows[-1].metrics[metric]
    if newest.unit == "count":
        starts = [i for i in range(1, len(values)) if values[i] != values[i - 1]]
        p_values: list[float | None] = [None] * len(starts)
    else:
        points, _ = otava.compute_change_points(values, WINDOW, P_VALUE, 0.0)
        starts = [int(point.index) for point in points]
        p_values = [float(point.stats.pvalue) for point in points]
    edges = [0, *starts, len(values)]
    return [
        Change(
            metric=metric,
            unit=newest.unit,
            direction=newest.direction,
            before=_mean(values[edges[i] : at]),
            after=_mean(values[at : edges[i + 2]]),
            sessions=(at - edges[i], edges[i + 2] - at),
            p_value=p_values[i],
            previous=rows[at - 1],
            row=rows[at],
        )
        for i, at in enumerate(starts)
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _sentence(change: Change) -> str:
    row, previous = change.row, change.previous
    unit = "%" if change.unit == "fraction" else change.unit
    levels = f"{number(change.before, change.unit)} -> {number(change.after, change.unit)} {unit}"
    test = "" if change.p_value is None else f", p {_p_shown(change.p_value)}"
    commits = f"commit {commit(previous) or 'unknown'} -> {commit(row) or 'unknown'}"
    return (
        f"{row.case.case} on {row.machine}: {change.metric} {change.word} {change.size} "
        f"({levels}) from {moment(row)} on, last before {moment(previous)}; "
        f"{change.sessions[0]} sessions before, {change.sessions[1]} after{test}; "
        f"{commits}; {context_change(previous.context, row.context)}"
    )


def _p_shown(p_value: float) -> str:
    return "< 0.0001" if p_value < 0.0001 else f"{p_value:.4f}"


def _wrapped(sentence: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(
        printable(sentence),
        WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}  " if indent else "",
        break_long_words=False,
        break_on_hyphens=False,
    )
