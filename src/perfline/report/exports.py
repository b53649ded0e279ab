"""What of a record may other services read, and in which form?

Benchmark dashboards: github-action-benchmark (``customBiggerIsBetter``, ``customSmallerIsBetter``)
and Bencher (Bencher Metric Format). Decode by the names that vLLM's and TensorRT-LLM's own
benchmarks give it. The files of lm-evaluation-harness stand in ``export_lm_eval``.

Apache Otava reads the history of a case from one CSV, one row a session, append-only. Its rules
(``otava/importer.py``, CsvImporter, version 0.8): every row has as many columns as the header; the
time column is a date; every cell of a metric is a number (an empty one is an error, and NaN would
spoil the statistics of the whole series); with a ``branch`` column, one branch at a time is
analysed. It neither sorts rows nor knows machines. So a file holds one case on one machine, in the
order of time, always with the same metrics; whatever does not fit is refused, with the file
unchanged.

What was not measured, or was disturbed while it was measured (verdict ``invalid``), is left out of
every export: never 0, never NaN. A record of a stopped session is refused as a whole. Bounds are
one standard deviation or one standard error, as Bencher's own adapters have them: they show spread
within one session, and are not the gate's limits.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import yaml

from perfline import jsonfile
from perfline.baselines.baseline import DUMMY_SUFFIX
from perfline.engines.environment import Environment
from perfline.errors import RecordError, printable
from perfline.gates.verdict import WORST_FIRST, Word
from perfline.measure.record import CaseRecord, Record
from perfline.metrics import Direction, Metric
from perfline.report.table import own_engines

# An engine's timed region is disturbed as a whole, and its verdict stands on the first metric. Not
# of that region: what was measured before it, and the counts of what was asked.
_UNTIMED = ("load_", "compile_", "warmup_", "tokens", "questions", "acc_")
_CASE = re.compile(r"[a-z0-9][a-z0-9-]*")
_SIGNIFICANT = 6  # digits: beyond any clock's, and short enough for a chart's tooltip


@dataclass(frozen=True)
class Export:
    """One case of a complete record, without what was disturbed."""

    name: str  # the case's id, ``-dummy`` behind it under --dummy-weights
    case: CaseRecord
    environment: Environment
    created: str
    metrics: Mapping[str, Metric]

    def judged(self, direction: Direction) -> list[Metric]:
        """Return the metrics that are better in ``direction``, by name."""
        return [m for _, m in sorted(self.metrics.items()) if m.direction == direction]

    def word(self, metric: str) -> Word | None:
        """Return the gravest verdict on ``metric``; None where it is not judged."""
        words = [verdict.word for verdict in self.case.verdicts if verdict.metric == metric]
        return min(words, key=WORST_FIRST.index, default=None)

    def spread(self, metric: Metric) -> tuple[float, str] | None:
        """Return one standard deviation or error, in the metric's unit, and of what it is."""
        if len(metric.samples) > 1:
            what = f"standard deviation of {len(metric.samples)} rounds in one session"
            return statistics.stdev(metric.samples), what
        asked = self.metrics.get(f"{metric.name}_questions")
        if asked is None or asked.value < 1 or not 0 <= metric.value <= 1:
            return None
        n = int(asked.value)
        return math.sqrt(metric.value * (1 - metric.value) / n), f"standard error, {n} questions"


def exports(path: Path, record: Record, names: Iterable[str] = ()) -> list[Export]:
    """Return what of ``record`` may be exported, of the named cases or of all.

    RecordError where the session was stopped, a name is unknown, or nothing is left.
    """
    if record.partial:
        raise RecordError(
            f"{path}: is partial (its session was stopped): other services would take it for a "
            "whole run; run pytest again"
        )
    try:
        datetime.fromisoformat(record.created.replace("Z", "+00:00"))
    except ValueError as problem:
        raise RecordError(
            f"{path}: key 'created' is {record.created[:40]!r} (expected a date such as "
            "2026-11-22T10:00:00Z); run pytest again"
        ) from problem
    names = list(dict.fromkeys(names)) or list(record.cases)
    for name in names:
        if name not in record.cases:
            there = ", ".join(record.cases) or "none"
            raise RecordError(f"{path}: holds no case '{name}' (there: {there})")
        if not _CASE.fullmatch(name):  # names of files and of charts come from it
            raise RecordError(f"{path}: case is {name[:60]!r} (expected {_CASE.pattern})")
    found = [_export(record, record.cases[name]) for name in names]
    if not any(export.metrics for export in found):
        raise RecordError(
            f"{path}: holds no metric that could be exported (nothing was measured, or all of it "
            "is invalid); run pytest again"
        )
    return found


def github_action_benchmark(found: Iterable[Export], direction: Direction) -> str:
    """Return the JSON of ``customBiggerIsBetter`` (``higher``) or ``customSmallerIsBetter``.

    github-action-benchmark's rules (``src/extract.ts``, ``src/write.ts``): an array of ``name``,
    ``unit``, a number as ``value``, and text as ``range`` and ``extra``. An entry is compared with
    the last one of the same name, so that the name says machine and case; what is not judged would
    alert, and is left out.
    """
    entries = [_entry(export, metric) for export in found for metric in export.judged(direction)]
    if not entries:
        raise RecordError(
            f"no metric of the record is better {direction}: there is nothing to export"
        )
    return _json(entries)


def bencher(found: Iterable[Export]) -> str:
    """Return Bencher Metric Format, version 0: ``{case: {measure: {value, lower_value, ...}}}``.

    Its rules (``lib/bencher_adapter/src/adapters/json/v0.rs``, ``lib/bencher_valid``): a measure is
    found by its slug, of at most 64 characters; the unit is its last part. Bencher keeps machines
    apart by itself: ``bencher run --adapter json --testbed MACHINE``.
    """
    return _json(
        {
            export.name: {
                slug(metric): _bounded(export, metric)
                for _, metric in sorted(export.metrics.items())
            }
            for export in found
            if export.metrics
        }
    )


def serving(found: Iterable[Export], style: str) -> str:
    """Return what decode measured by the field names of ``vllm`` or ``trtllm``, as JSON lines.

    A line for each case, engine and form (batch, context), as ``vllm bench serve --append-result``
    writes them (``vllm/benchmarks/serve.py``), or as the report of ``trtllm-bench``
    (``tensorrt_llm/bench/dataclasses/reporting.py``) is nested. Times are ms. There is no server,
    no queue and no text here, and a field that is not measured is not there. The throughput of
    output counts the first token and its time, as theirs do. RecordError where there is no decode.
    """
    shape = {"vllm": _vllm, "trtllm": _trtllm}[style]
    lines = [shape(export, *form) for export in found for form in _decoded(export)]
    if not lines:
        raise RecordError("the record holds no decode; run pytest -m decode first")
    return "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)


_DECODED = re.compile(r"decode((?:_[bc]\d+)?)((?:_val)?)")


def _decoded(export: Export) -> Iterator[tuple[str, int, dict[str, float]]]:
    """Yield (label, concurrency, numbers by our short names) of every form that was timed."""
    for name, metric in sorted(export.metrics.items()):
        match = _DECODED.fullmatch(name)
        if match is None or metric.value <= 0:
            continue
        form, engine = match.groups()
        rows = int(form[2:]) if form.startswith("_b") else 1
        times = {
            short: 1000 * export.metrics[f"{long}{form}{engine}"].value
            for short, long in (("ttft", "ttft"), ("itl50", "itl_p50"), ("itl99", "itl_p99"))
            if f"{long}{form}{engine}" in export.metrics
        }
        numbers = {**times, "speed": metric.value, "tpot": 1000 * rows / metric.value}
        tokens = export.case.notes.get("decode_tokens")
        if isinstance(tokens, int) and tokens > 1 and "ttft" in times:
            whole_ms = times["ttft"] + (tokens - 1) * numbers["tpot"]
            numbers["output"] = 1000 * rows * tokens / whole_ms
        yield f"{'eager' if engine else 'inductor'}{form}", rows, numbers


def _named(numbers: Mapping[str, float], names: Mapping[str, str]) -> dict[str, float]:
    return {name: _rounded(numbers[own]) for name, own in names.items() if own in numbers}


def _vllm(export: Export, label: str, rows: int, numbers: Mapping[str, float]) -> dict[str, object]:
    names = {"output_throughput": "output", "mean_ttft_ms": "ttft", "mean_tpot_ms": "tpot"}
    names |= {"median_itl_ms": "itl50", "p99_itl_ms": "itl99"}
    about = {"date": export.created, "label": label, "model_id": export.name}
    return {**about, "max_concurrency": rows, **_named(numbers, names)}


def _trtllm(
    export: Export, label: str, rows: int, numbers: Mapping[str, float]
) -> dict[str, object]:
    per_user = {name: numbers[name] / rows for name in ("output", "speed") if name in numbers}
    performance = {
        **_named(numbers, {"system_output_throughput_tok_s": "output"}),
        **_named(per_user, {"output_throughput_per_user_tok_s": "output"}),
    }
    streaming = {
        **_named(per_user, {"token_output_speed_tok_s": "speed"}),
        **_named(numbers, {"avg_ttft_ms": "ttft", "avg_tpot_ms": "tpot"}),
    }
    return {
        "engine": {"model": export.name, "backend": label, "dtype": export.case.dtype},
        "machine": {"name": export.environment.device},
        "world_info": {"max_batch_size": rows},
        "performance": performance,
        "streaming_metrics": streaming,
    }


def key(metric: Metric) -> str:
    """Return the metric's name with its unit behind it, such as ``p_infer_core_tok_per_s``."""
    suffixes = {"tok/s": "tok_per_s", "GiB": "gib", "tok": "tokens", "tok/J": "tok_per_joule"}
    suffixes |= {"questions/s": "questions_per_s", "MHz": "mhz", "C": "c", "W": "w"}
    suffix = suffixes.get(metric.unit, metric.unit)
    name = metric.name if metric.name.endswith(suffix) else f"{metric.name}_{suffix}"
    return re.sub(r"[^a-z0-9]+", "_", name.replace("/", "_per_").lower()).strip("_")


def slug(metric: Metric) -> str:
    """Return :func:`key` as a slug: ``p-infer-core-tok-per-s``."""
    return key(metric).replace("_", "-")


def undisturbed(case: CaseRecord) -> dict[str, Metric]:
    """Return the case's metrics without those that an ``invalid`` verdict covers."""
    invalid = {verdict.metric for verdict in case.verdicts if verdict.word == "invalid"}
    return {
        name: metric
        for name, metric in case.metrics.items()
        if not any(name == other or _covers(other, name, own_engines(case)) for other in invalid)
        or (metric.own and name not in invalid)
    }


def _covers(invalid: str, name: str, own: Sequence[str]) -> bool:
    """Whether a disturbance of the one metric is one of the other, too."""
    if invalid.startswith("acc_"):
        return name.startswith(f"{invalid}_")
    if _is_decode(invalid) or _is_decode(name):
        return _is_decode(invalid) and _is_decode(name) and _pass(name, own) == _pass(invalid, own)
    if not invalid.startswith("p_"):
        return False
    timed = not name.startswith(_UNTIMED) or name.startswith("tokens_per")
    return timed and (name == "e2e_time" or _pass(name, own) == _pass(invalid, own))


def _is_decode(name: str) -> bool:
    """Whether a metric is one of decode, whose rounds are apart from those of throughput."""
    return "decode" in name.split("_") or name.startswith(("ttft", "itl_", "mbu"))


def _pass(name: str, own: Sequence[str]) -> str:
    """Which engine's pass a metric is of, by its name."""
    return next((word for word in name.split("_") if word in ("val", *own)), "infer")


def _export(record: Record, case: CaseRecord) -> Export:
    dummy = case.weights == "dummy"
    return Export(
        name=f"{case.case}{DUMMY_SUFFIX if dummy else ''}",
        case=case,
        environment=record.environment,
        created=record.created,
        metrics=undisturbed(case),
    )


def _entry(export: Export, metric: Metric) -> dict[str, object]:
    context = export.environment.context
    word, spread = export.word(metric.name), export.spread(metric)
    notes = [f"verdict: {word}"] if word is not None else []
    notes += [
        f"{name} {context[name]}" for name in ("torch", "driver", "commit") if name in context
    ]
    entry: dict[str, object] = {
        "name": f"{export.environment.machine}/{export.name}/{metric.name}",
        "unit": metric.unit,
        "value": _rounded(metric.value),
    }
    if spread is not None:
        entry["range"] = f"± {_rounded(spread[0]):g}"
        notes.insert(0, f"±: {spread[1]}")
    if notes:
        entry["extra"] = "\n".join(notes)
    return entry


def _bounded(export: Export, metric: Metric) -> dict[str, float]:
    spread = export.spread(metric)
    if spread is None:
        return {"value": metric.value}
    low, high = metric.value - spread[0], metric.value + spread[0]
    if metric.unit == "fraction":
        low, high = max(0.0, low), min(1.0, high)
    return {"value": metric.value, "lower_value": low, "upper_value": high}


def _rounded(value: float) -> float:
    return float(f"{value:.{_SIGNIFICANT}g}")


def _json(data: object) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


# What must not change within a file, or rows do not compare.
_IDENTITY = ("case", "machine", "dtype", "weights", "digest", "workload")
_CONTEXT = ("torch", "driver")
_ANOTHER = "use another file for it (-o)"


@dataclass(frozen=True)
class OtavaRow:
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


def otava_row(export: Export, metrics: Sequence[str] = (), branch: str | None = None) -> OtavaRow:
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
    return OtavaRow(
        {name: _one_line(text) for name, text in attributes.items()},
        {key(metric): float(metric.value) for metric in chosen},
        {key(metric): {"higher": 1, "lower": -1}.get(metric.direction, 1) for metric in chosen},
    )


def append_otava(path: Path, new: OtavaRow) -> int:
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


def otava_config(path: Path, new: OtavaRow) -> str:
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


def _check(path: Path, header: list[str], rows: list[list[str]], new: OtavaRow) -> None:
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


def _of_branch(header: list[str], cells: list[str], new: OtavaRow) -> bool:
    return "branch" not in header or cells[header.index("branch")] == new.attributes["branch"]
