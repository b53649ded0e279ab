"""What of a record may other services read, and in which form?

Benchmark dashboards: github-action-benchmark (``customBiggerIsBetter``, ``customSmallerIsBetter``)
and Bencher (Bencher Metric Format). Apache Otava's CSV stands in ``export_otava``, the files of
lm-evaluation-harness in ``export_lm_eval``.

What was not measured, or was disturbed while it was measured (verdict ``invalid``), is left out of
every export: never 0, never NaN. A record of a stopped session is refused as a whole. Bounds are
one standard deviation or one standard error, as Bencher's own adapters have them: they show spread
within one session, and are not the gate's limits.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from perfline.baselines.baseline import DUMMY_SUFFIX
from perfline.engines.environment import Environment
from perfline.errors import RecordError
from perfline.gates.verdict import WORST_FIRST, Word
from perfline.measure.record import CaseRecord, Record
from perfline.metrics import Direction, Metric
from perfline.report.text import keyed_by_unit, own_engines

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


def key(metric: Metric) -> str:
    """Return the metric's name with its unit behind it, such as ``p_infer_core_tok_per_s``."""
    (name,) = keyed_by_unit([metric])
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
    if not invalid.startswith("p_"):
        return False
    timed = not name.startswith(_UNTIMED) or name.startswith("tokens_per")
    return timed and (name == "e2e_time" or _pass(name, own) == _pass(invalid, own))


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
