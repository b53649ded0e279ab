"""What did past sessions measure, and when did it change? A table over a folder of records.

A record is one file; ``results/run.json`` is replaced by every session, so that a history grows
only where records are kept (``pytest --results=results/2026-11-22.json``, or a CI's artifacts). A
file that is no readable record is named and left out, comparisons and exports are counted, and a
session that lies there twice counts once.

The trend: change points by Apache Otava (E-divisive, Matteson & James 2014, as changed by Hunter,
Fleming et al. 2023: sliding windows of 50, Student's t at p <= 0.001), at its defaults; the extra
``trend`` installs it, with older numpy and scipy: better not where one measures. Counts (graphs,
recompiles) carry no noise: every step of theirs is a change. A series holds one metric of one case,
definition, machine, dtype and, where it was timed, workload; stopped sessions and disturbed numbers
are left out. It says when something changed: it is no gate.
"""

from __future__ import annotations

import importlib
import json
import statistics
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from perfline.errors import PerflineError, RecordError, printable
from perfline.fields import Scalar
from perfline.gates.verdict import worst
from perfline.jsonfile import kind
from perfline.measure import record as records
from perfline.measure.record import CaseRecord, Record
from perfline.metrics import Direction, Metric
from perfline.report.exports import undisturbed
from perfline.report.table import WIDTH, change_shown, number, unit_shown
from perfline.report.text import context_change, paragraph

KEY_METRICS = ("p_infer_core", "decode", "acc_infer", "mem")
_GAP = "  "  # between columns


@dataclass(frozen=True)
class Row:
    """One case of one session."""

    file: Path
    created: str  # ISO 8601, UTC
    machine: str
    case: CaseRecord
    context: Mapping[str, Scalar]
    partial: bool

    @cached_property
    def metrics(self) -> Mapping[str, Metric]:
        """Return what was measured undisturbed."""
        return undisturbed(self.case)

    @property
    def verdict(self) -> str:
        """Return the session's state in one word; the gravest verdict where it is complete."""
        if self.partial:
            return "partial"
        return "error" if self.case.errors else worst(self.case.verdicts)

    @property
    def group(self) -> tuple[str, str, str, str, str]:
        """Return what must be equal for numbers to stand in one table."""
        case = self.case
        return (case.case, case.weights, self.machine, case.dtype, case.digest)


@dataclass(frozen=True)
class History:
    """All rows of a folder, oldest first, and what could not be read.

    Attributes:
        broken: one line for each file that is no readable record.
        comparisons: how many records of ``perfline compare`` were passed over.
        others: how many other JSON files were passed over, such as exports.
        copies: how many files hold a session that another file holds.
    """

    rows: tuple[Row, ...]
    broken: tuple[str, ...] = ()
    comparisons: int = 0
    others: int = 0
    copies: int = 0

    @property
    def groups(self) -> dict[tuple[str, ...], list[Row]]:
        """Return the rows by what may be compared, groups by name."""
        found: dict[tuple[str, ...], list[Row]] = {}
        for row in sorted(self.rows, key=lambda row: (row.group, row.created)):
            found.setdefault(row.group, []).append(row)
        return found


def scan(directory: Path) -> History:
    """Read every ``*.json`` below ``directory``; RecordError where that is no directory."""
    if not directory.is_dir():
        shown = printable(str(directory))
        raise RecordError(f"{shown}: is no directory of records; name one, or run pytest first")
    rows: dict[tuple[object, ...], Row] = {}
    broken: list[str] = []
    kinds = Counter[str]()
    for file in sorted(directory.rglob("*.json")):
        if file.name.startswith(".") or not file.is_file():
            continue
        kind = _kind(file)
        kinds[kind] += 1
        if kind != "record":
            continue
        try:
            record = records.load(file)
        except RecordError as problem:
            broken.append(str(problem))
            continue
        for row in _rows(file, record):
            session = (row.created, *row.group, tuple(sorted(_values(row).items())))
            kinds["copy"] += session in rows
            rows.setdefault(session, row)
    ordered = sorted(rows.values(), key=lambda row: (row.created, row.case.case, str(row.file)))
    counts = (kinds["comparison"], kinds["other"], kinds["copy"])
    return History(tuple(ordered), tuple(broken), *counts)


def only(history: History, cases: Sequence[str]) -> History:
    """Return the rows of the named cases; RecordError where one was never measured."""
    there = sorted({row.case.case for row in history.rows})
    for name in cases:
        if name not in there:
            raise RecordError(
                printable(f"no record holds case '{name}' (there: {', '.join(there) or 'none'})")
            )
    chosen = tuple(row for row in history.rows if not cases or row.case.case in cases)
    return replace(history, rows=chosen)


def check_metrics(history: History, names: Iterable[str]) -> None:
    """RecordError for a metric that no record holds."""
    there = sorted({name for row in history.rows for name in row.case.metrics})
    for name in names:
        if history.rows and name not in there:
            raise RecordError(
                printable(f"no record holds metric '{name}' (there: {', '.join(there)})")
            )


def text(history: History, metrics: Sequence[str] = KEY_METRICS) -> str:
    """Return one table per case, machine and definition, in 80 columns."""
    groups = history.groups
    parts = []
    for group, rows in groups.items():
        name, weights, machine, dtype, digest = group
        redefined = sum(other[:-1] == group[:-1] for other in groups) > 1
        heading = f"{name} on {machine} ({dtype}, {weights} weights)"
        parts.append(printable(heading))
        parts += [printable(f"  definition {digest}")] if redefined else []
        parts += [*_tables(rows, metrics), ""]
    if not history.rows:
        parts.append("no record here yet; pytest writes one, and --results=FILE says where")
    parts += [_wrapped(f"broken, left out: {line}") for line in history.broken]
    if history.comparisons:
        parts.append(f"{_count(history.comparisons, 'record')} of perfline compare left out")
    if history.others:
        parts.append(f"{_count(history.others, 'other JSON file')} left out")
    if history.copies:
        parts.append(f"{_count(history.copies, 'copy', 'copies')} of a session left out")
    return "\n".join(parts).rstrip("\n")


def as_json(history: History, metrics: Sequence[str] = ()) -> dict[str, object]:
    """Return the rows with the named metrics, or with all."""
    return {
        "rows": [_row_json(row, metrics) for row in history.rows],
        "broken": list(history.broken),
        "comparisons": history.comparisons,
        "others": history.others,
        "copies": history.copies,
    }


def dump(data: Mapping[str, object]) -> str:
    """Return JSON text, in ASCII: what a terminal would obey is escaped."""
    return json.dumps(data, indent=1, allow_nan=False)


def moment(row: Row) -> str:
    """Return the session's start in UTC, to the minute."""
    return row.created[:16].replace("T", " ")


def commit(row: Row) -> str:
    """Return seven digits of the commit, ``*`` behind it where files differed from it."""
    whole = str(row.context.get("commit") or "")
    return whole[:7] + ("*" if whole.endswith("-dirty") else "")


def _kind(file: Path) -> Literal["record", "comparison", "other"]:
    """What a file holds; a torn one may have been a record."""
    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return "record"
    if not isinstance(data, dict) or "schema" not in data:
        return "other"
    return "comparison" if kind(data) == "comparison" else "record"


def _rows(file: Path, record: Record) -> list[Row]:
    environment = record.environment
    return [
        Row(
            file=file,
            created=record.created,
            machine=environment.machine,
            case=case,
            context={**environment.context, **case.facts},
            partial=record.partial,
        )
        for case in record.cases.values()
    ]


def _values(row: Row) -> dict[str, float]:
    return {name: metric.value for name, metric in row.case.metrics.items()}


def _tables(rows: Sequence[Row], metrics: Sequence[str]) -> list[str]:
    """As many columns as 80 take; further metrics follow in tables of their own."""
    dates = ["date (UTC)", "", *_dates(rows)]
    columns = [
        dates,
        ["commit", "", *(commit(row) for row in rows)],
        ["torch", "", *(str(row.context.get("torch", "")) for row in rows)],
    ]
    last = [["verdict", "", *(row.verdict for row in rows)]]
    tables = []
    for name in metrics:
        if not any(name in row.metrics for row in rows):
            continue
        column = _column(rows, name)
        if _width([*columns, column, *last]) > WIDTH and len(columns) > 1:
            tables.append(_table([*columns, *last]))
            columns, last = [dates], []
        columns.append(column)
    return [*tables, _table([*columns, *last])]


def _dates(rows: Sequence[Row]) -> list[str]:
    """The days, with the time where two sessions are of one day."""
    days = [moment(row)[:10] for row in rows]
    return days if len(set(days)) == len(days) else [moment(row) for row in rows]


def _column(rows: Sequence[Row], name: str) -> list[str]:
    """Name, unit and one cell a row, all of one width: numbers stand right."""
    found = [row.metrics.get(name) for row in rows]
    unit = next(metric.unit for metric in found if metric is not None)
    cells = ["" if metric is None else number(metric.value, unit) for metric in found]
    lines = [name, unit_shown(unit), *cells]
    return [line.rjust(max(map(len, lines))) for line in lines]


def _width(columns: Sequence[Sequence[str]]) -> int:
    return sum(max(map(len, column)) for column in columns) + len(_GAP) * (len(columns) - 1)


def _table(columns: Sequence[Sequence[str]]) -> str:
    padded = [
        [printable(cell).ljust(max(map(len, column))) for cell in column] for column in columns
    ]
    lines = [_GAP.join(cells).rstrip() for cells in zip(*padded, strict=True)]
    return "\n".join(line for line in lines if line)


def _wrapped(line: str) -> str:
    wrapped = textwrap.wrap(
        printable(line), WIDTH, subsequent_indent="  ", break_on_hyphens=False
    )  # long names are broken: --json has them whole
    return "\n".join(wrapped)


def _row_json(row: Row, metrics: Sequence[str]) -> dict[str, object]:
    chosen = {n: m for n, m in row.metrics.items() if not metrics or n in metrics}
    return {
        "file": str(row.file),
        "created": row.created,
        "case": row.case.case,
        "weights": row.case.weights,
        "dtype": row.case.dtype,
        "digest": row.case.digest,
        "machine": row.machine,
        "commit": row.context.get("commit"),
        "torch": row.context.get("torch"),
        "partial": row.partial,
        "verdict": row.verdict,
        "metrics": {n: {"value": m.value, "unit": m.unit} for n, m in sorted(chosen.items())},
    }


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


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
        """Return the change from before to after, with its unit."""
        return change_shown(self.before, self.after, self.unit)

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


def trend_text(found: Trend) -> str:
    """Return what changed when, in words, and how far to trust it; 80 columns."""
    lines = [line for change in found.changes for line in paragraph(printable(_sentence(change)))]
    if not found.series:
        lines.append(f"trend: no series of at least {LEAST} sessions, so none was looked at")
    elif not found.changes:
        lines.append(f"trend: no change found in {found.series} series")
    else:
        lines.insert(0, f"trend: {len(found.changes)} found in {found.series} series")
    if found.short:
        lines.append(f"  {found.short} series of fewer than {LEAST} sessions not looked at")
    if found.series:
        lines += ["", *paragraph(CAVEAT, "", "")]
    return "\n".join(lines)


def trend_json(found: Trend) -> dict[str, object]:
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
            before=statistics.fmean(values[edges[i] : at]),
            after=statistics.fmean(values[at : edges[i + 2]]),
            sessions=(at - edges[i], edges[i + 2] - at),
            p_value=p_values[i],
            previous=rows[at - 1],
            row=rows[at],
        )
        for i, at in enumerate(starts)
    ]


def _sentence(change: Change) -> str:
    row, previous = change.row, change.previous
    unit = unit_shown(change.unit)
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
