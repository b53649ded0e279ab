"""What did past sessions measure? A table over a folder of records.

A record is one file; ``results/run.json`` is replaced by every session, so that a history grows
only where records are kept (``pytest --results=results/2026-11-22.json``, or a CI's artifacts). A
file that is no readable record is named and left out, comparisons and exports are counted, and a
session that lies there twice counts once.
"""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from perfline.errors import RecordError, printable
from perfline.fields import Scalar
from perfline.filetypes import kind
from perfline.gates.verdict import worst
from perfline.measure import record as records
from perfline.measure.record import CaseRecord, Record
from perfline.metrics import Metric
from perfline.report.exports import undisturbed
from perfline.report.text import WIDTH, number

KEY_METRICS = ("p_infer_core", "acc_infer", "mem")
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
    lines = [name, "%" if unit == "fraction" else unit, *cells]
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
