"""What stands on the page about one case? Texts, rows and charts, from a record and what it needs.

The templates only lay out what is made here; nothing here judges, and nothing here knows HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perfline.gates.verdict import WORST_FIRST, Verdict, Word, worst
from perfline.measure.record import CaseRecord, Record
from perfline.metrics import Metric
from perfline.report import text as report
from perfline.report.charts import Figure, figures
from perfline.report.page_accuracy import (
    FlipList,
    SubjectTable,
    flip_lists,
    labels_of,
    subject_tables,
)
from perfline.report.page_inputs import CaseInputs

_ENGINE_OF = {"p_val": "eager", "acc_val": "eager", "e2e_time": "both"}  # else inductor
_CLOCKS = {"sm_clock": "lowest", "temperature": "highest", "power": "mean"}


@dataclass(frozen=True)
class MetricRow:
    """A row of the published table; empty text is what there is not."""

    title: str
    engine: str
    unit: str
    measured: str
    published: str
    baseline: str
    change: str
    limit: str
    word: str


@dataclass(frozen=True)
class Finding:
    """Verdicts with one story: what a person must know first."""

    word: str
    title: str
    reason: str


@dataclass(frozen=True)
class Difference:
    """One thing that differs from then; ``absent`` where one side does not have it."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Context:
    """What differs from the context of the baseline, or else of the record before."""

    against: str  # what the comparison is with; empty where there is nothing
    differences: tuple[Difference, ...]
    clocks: tuple[str, ...]


@dataclass(frozen=True)
class CaseView:
    """All that the page shows of a case."""

    name: str
    title: str
    dtype: str
    weights: str
    word: Word
    errors: tuple[str, ...]
    findings: tuple[Finding, ...]
    ranks: tuple[str, ...]
    published_on: str
    published_source: str
    rows: tuple[MetricRow, ...]
    beside: tuple[MetricRow, ...]
    verdicts: tuple[Verdict, ...]
    context: Context
    figures: Mapping[str, tuple[Figure, ...]]
    subjects: tuple[SubjectTable, ...]
    flips: tuple[FlipList, ...]
    notes: tuple[tuple[str, str], ...]
    absent: tuple[str, ...]
    past: int


def case_view(inputs: CaseInputs, record: Record, most_flips: int, every_plot: bool) -> CaseView:
    """Return what the page shows of one case."""
    measured, published = inputs.measured, inputs.published
    drawn, absent = figures(inputs, record.created, every_plot)
    shown = {name for name, _ in report.PUBLISHED_TABLE}
    return CaseView(
        name=measured.case,
        title=measured.title,
        dtype=measured.dtype,
        weights=measured.weights,
        word=worst(measured.verdicts),
        errors=measured.errors,
        findings=tuple(findings(measured.verdicts)),
        ranks=(*report.rank_lines(measured), *report.stragglers(measured)),
        published_on=(published.device or "") if published else "",
        published_source=published.source if published else "",
        rows=tuple(_row(name, title, inputs) for name, title in report.PUBLISHED_TABLE),
        beside=tuple(_row(n, n, inputs) for n in sorted(measured.metrics) if n not in shown),
        verdicts=measured.verdicts,
        context=context(inputs, record),
        figures=drawn,
        subjects=tuple(subject_tables(inputs)),
        flips=tuple(
            flip_lists(measured.verdicts, labels_of(measured), inputs.questions, most_flips)
        ),
        notes=_notes(measured),
        absent=(*inputs.absent, *absent),
        past=len(inputs.past),
    )


def findings(verdicts: Sequence[Verdict]) -> list[Finding]:
    """Every verdict but ``ok``, gravest first; those with the same word and reason share one."""
    shared: dict[tuple[Word, str], list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.word != "ok":
            shared.setdefault((verdict.word, verdict.reason), []).append(verdict)
    found = []
    for (word, reason), each in shared.items():
        title = ", ".join(dict.fromkeys(v.metric for v in each))
        if len(each) == 1 and each[0].change:
            title += f" {each[0].change} (limit {each[0].limit})"
        found.append(Finding(word, title, reason))
    return sorted(found, key=lambda finding: WORST_FIRST.index(finding.word))


def _row(name: str, title: str, inputs: CaseInputs) -> MetricRow:
    metric = inputs.measured.metrics.get(name)
    figure = inputs.published.metrics.get(name) if inputs.published is not None else None
    unit = metric.unit if metric is not None else figure.unit if figure is not None else ""
    judged = [v for v in inputs.measured.verdicts if v.metric == name]
    stored = next((v for v in judged if v.gate == "baseline"), None)
    gravest = min(judged, key=lambda v: WORST_FIRST.index(v.word), default=None)
    told = stored if stored is not None and stored.word == worst(judged) else gravest
    return MetricRow(
        title=title,
        engine="" if metric is not None and metric.own else _engine(name, inputs.measured),
        unit=report.unit_shown(unit),
        measured="not measured" if metric is None else _measured(metric, stored),
        published="" if figure is None else report.number(figure.value, figure.unit),
        baseline="" if stored is None else report.number(stored.baseline, stored.unit),
        change="" if told is None else told.change,
        limit="" if told is None else told.limit,
        word="" if told is None else told.word,
    )


def _measured(metric: Metric, stored: Verdict | None) -> str:
    error = None if stored is None else stored.measured_error
    return report.number(metric.value, metric.unit, error)


def _engine(name: str, measured: CaseRecord) -> str:
    for engine in report.own_engines(measured):
        if engine in name.split("_"):
            return engine
    starts = (engine for start, engine in _ENGINE_OF.items() if name.startswith(start))
    return next(starts, "eager" if name.endswith("_val") else "inductor")


def context(inputs: CaseInputs, record: Record) -> Context:
    """Return what differs from the baseline's context, or else from the record before."""
    after = {**record.environment.context, **inputs.measured.facts}
    stored, past = inputs.stored, inputs.past
    before: Mapping[str, object] | None = None
    against = ""
    if stored is not None and (stored.sessions or stored.accuracy):
        newest = stored.sessions[-1] if stored.sessions else next(iter(stored.accuracy.values()))
        commit = f", commit {newest.commit}" if newest.commit else ""
        against = f"the baseline of {newest.date[:10]}{commit}"
        before = {**newest.context, **({"commit": newest.commit} if newest.commit else {})}
    elif past:
        against = f"the record of {past[-1].created[:10]} (there is no baseline)"
        before = dict(past[-1].context)
    keys = dict.fromkeys((*(before or {}), *after))
    if against.startswith("the record"):
        keys = dict.fromkeys((*(before or {}), *record.environment.context))
    differences = [
        Difference(key, str((before or {}).get(key, "absent")), str(after.get(key, "absent")))
        for key in keys
        if before is not None and before.get(key) != after.get(key)
    ]
    return Context(against, tuple(differences), tuple(_clocks(inputs)))


def _clocks(inputs: CaseInputs) -> list[str]:
    """Clock, temperature and power while it was timed, beside those of the record before."""
    lines = []
    for name, metric in inputs.measured.metrics.items():
        kind = next((k for k in _CLOCKS if name == k or name.startswith(f"{k}_")), None)
        if kind is None:
            continue
        engine = _engine(name, inputs.measured)
        line = (
            f"{kind.replace('_', ' ')}, {_CLOCKS[kind]}, {engine}: {metric.value:g} {metric.unit}"
        )
        before = inputs.past[-1].values.get(name) if inputs.past else None
        if before is not None:
            line += f" (the record before: {before:g} {metric.unit})"
        lines.append(line)
    return lines


def _notes(measured: CaseRecord) -> tuple[tuple[str, str], ...]:
    pairs = {**measured.workload, **measured.notes, **measured.facts}
    return tuple((name, str(value)) for name, value in pairs.items())
