"""How does Apache Otava read the history of a case? One CSV, one row a session, append-only.

Otava's rules (``otava/importer.py``, CsvImporter, version 0.8): every row has as many columns as
the header; the time column is a date; every cell of a metric is a number (an empty one is an
error, and NaN would spoil the statistics of the whole series); with a ``branch`` column, one branch
at a time is analysed. It neither sorts rows nor knows machines. So a file holds one case on one
machine, in the order of time, always with the same metrics; whatever does not fit is refused, with
the file unchanged.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from perfline import jsonfile
from perfline.errors import RecordError, printable
from perfline.metrics import Metric
from perfline.report.exports import Export, key

# What must not change within a file, or rows do not compare.
_IDENTITY = ("case", "machine", "dtype", "weights", "digest", "workload")
_CONTEXT = ("torch", "driver")
_ANOTHER = "use another file for it (-o)"


@dataclass(frozen=True)
class Row:
    """One session: attributes are text, metrics are numbers with their unit in the name."""

    attributes: dict[str, str]  # "time" first
    metrics: dict[str, float]
    directions: dict[str, int]  # by metric: 1 where higher is better, -1 where lower is

    @property
    def header(self) -> list[str]:
        """Return the file's first line."""
        return [*self.attributes, *self.metrics]

    @property
    def cells(self) -> list[str]:
        """Return the row's text, numbers in full."""
        return [*self.attributes.values(), *(repr(value) for value in self.metrics.values())]


def row(export: Export, metrics: Sequence[str] = (), branch: str | None = None) -> Row:
    """Return one session's row: the named metrics, or all that are judged.

    RecordError where a metric was not measured: Otava has no way to say that.
    """
    chosen = [_metric(export, name) for name in metrics] or [
        *export.judged("higher"),
        *export.judged("lower"),
    ]
    if not chosen:
        raise RecordError(f"case {export.name}: no judged metric was measured; run pytest again")
    context, case = export.environment.context, export.case
    attributes = {"time": export.created, "commit": context.get("commit", "")}
    if branch is not None:
        attributes["branch"] = branch
    attributes |= {
        "case": case.case,
        "machine": export.environment.machine,
        "dtype": case.dtype,
        "weights": case.weights,
        "digest": case.digest,
        "workload": " ".join(f"{name}={value}" for name, value in sorted(case.workload.items())),
        **{name: context.get(name, "") for name in _CONTEXT},
    }
    return Row(
        {name: _one_line(text) for name, text in attributes.items()},
        {key(metric): float(metric.value) for metric in chosen},
        {key(metric): {"higher": 1, "lower": -1}.get(metric.direction, 1) for metric in chosen},
    )


def append(path: Path, new: Row) -> int:
    """Add a row to the file, or make the file; return how many rows it has now.

    Another append waits, a reader sees the old file or the new one. RecordError where the row does
    not belong into the file, which then stays as it is.
    """
    with jsonfile.locked(path, RecordError):
        header, rows = _read(path)
        if header:
            _check(path, header, rows, new)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([new.header, *rows, new.cells])
        jsonfile.write_text(path, text.getvalue(), RecordError)
    return len(rows) + 1


def config(path: Path, new: Row) -> str:
    """Return the ``otava.yaml`` with which Otava reads the file."""
    test = {
        "type": "csv",
        "file": str(path),
        "time_column": "time",
        "attributes": [name for name in new.attributes if name not in ("time", *_IDENTITY)],
        "metrics": {
            name: {"column": name, "direction": direction, "scale": 1}
            for name, direction in new.directions.items()
        },
    }
    name = f"{new.attributes['case']}-{new.attributes['machine']}"
    return yaml.safe_dump({"tests": {name: test}}, sort_keys=False)


def _one_line(text: str) -> str:
    return printable(text, " ")


def _metric(export: Export, name: str) -> Metric:
    if name in export.metrics:
        return export.metrics[name]
    if name in export.case.metrics:
        raise RecordError(
            f"case {export.name}: {name} is invalid (the run was disturbed), and Otava reads no "
            "empty cell; run pytest again"
        )
    there = ", ".join(sorted(export.metrics))
    raise RecordError(f"case {export.name}: {name} was not measured (there: {there})")


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    if jsonfile.is_special(path):  # a FIFO would wait for its writer for ever
        shown = printable(str(path))
        raise RecordError(f"{shown}: is no regular file, and rows cannot be appended to it")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except FileNotFoundError:
        return [], []
    except OSError as failure:
        raise RecordError(f"{path}: cannot be read: {failure.strerror}") from failure
    except (UnicodeDecodeError, csv.Error) as failure:
        raise RecordError(f"{path}: is no CSV ({failure}); restore the file") from failure
    if not rows:
        return [], []
    for number, cells in enumerate(rows[1:], start=2):
        if len(cells) != len(rows[0]):
            raise RecordError(
                f"{path}: line {number} has {len(cells)} columns (expected {len(rows[0])}, as the "
                "header); restore the file"
            )
    return rows[0], rows[1:]


def _check(path: Path, header: list[str], rows: list[list[str]], new: Row) -> None:
    if header != new.header:
        changes = [f"without {name}" for name in header if name not in new.header]
        changes += [f"with {name}" for name in new.header if name not in header]
        raise RecordError(
            f"{path}: its columns are not those of this run ({', '.join(changes) or 'reordered'}); "
            f"Otava reads no empty cell: name the same metrics with --metric, or {_ANOTHER}"
        )
    if not rows:
        return
    last = dict(zip(header, rows[-1], strict=True))
    for name in _IDENTITY:
        if last[name] != new.attributes[name]:
            raise RecordError(
                f"{path}: holds {name} '{last[name]}', this run is of '{new.attributes[name]}': a "
                f"change of that is no change of performance; {_ANOTHER}"
            )
    same_branch = [cells for cells in rows if _of_branch(header, cells, new)]
    if same_branch and (newest := same_branch[-1][0]) >= new.attributes["time"]:
        what = "holds this session already" if newest == new.attributes["time"] else "is newer"
        raise RecordError(
            f"{path}: {what} (its last row is of {newest}, this run of {new.attributes['time']}); "
            "append sessions once, in the order of time"
        )


def _of_branch(header: list[str], cells: list[str], new: Row) -> bool:
    return "branch" not in header or cells[header.index("branch")] == new.attributes["branch"]
