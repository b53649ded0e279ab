"""What stands on the page about one case? Texts, rows and charts, from a record and what it needs.

The templates only lay out what is made here; nothing here judges, and nothing here knows HTML. The
change per subject comes from the verdict's own flips: it is that of the baseline which the run was
judged by, whatever has been accepted since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perfline.baselines.baseline import Published
from perfline.baselines.suggestions import not_asked_lines
from perfline.cases.case import Scoring
from perfline.gates.verdict import Flip, Verdict, Word, worst
from perfline.measure.record import CaseRecord, Record
from perfline.metrics import pass_name, task_of
from perfline.report import charts
from perfline.report.charts import Figure, figures
from perfline.report.page_inputs import CaseInputs, Questions, flipped_task, scoring_of
from perfline.report.table import (
    PUBLISHED_TABLE,
    Finding,
    MetricRow,
    engine_of,
    findings,
    flip_counts,
    flip_kind,
    metric_row,
    number,
    on_baseline,
    own_engines,
)
from perfline.report.text import rank_lines, settled_lines, stragglers
from perfline.tasks.answers import LETTERS, StoredAnswers

_LONGEST = 6_000  # characters of a question: the longest of MMLU has 4,737


@dataclass(frozen=True)
class SubjectRow:
    """One subject: accuracies in per cent, the change in pp; ``bar`` is SVG."""

    name: str
    questions: int
    now: str
    before: str
    change: str
    lost: int
    gained: int
    bar: str


@dataclass(frozen=True)
class SubjectTable:
    """One engine's subjects, those that lost most first; ``compared`` with a baseline or not."""

    engine: str
    metric: str
    compared: bool
    largest: str  # the bars' full length, in pp or %
    rows: tuple[SubjectRow, ...]
    changed: int


@dataclass(frozen=True)
class Choice:
    """One choice of a question, and who took it: ``gold``, ``before``, ``after``."""

    letter: str
    text: str
    marks: tuple[str, ...]


@dataclass(frozen=True)
class FlipRow:
    """One flipped question; no text and no choices where they are not at hand."""

    id: str
    kind: str
    before: str
    after: str
    gold: str
    margin: str
    text: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class FlipList:
    """The flips of one verdict, the surest losses first; ``more`` are not listed."""

    metric: str
    word: str
    against: str
    counts: str
    rows: tuple[FlipRow, ...]
    more: int


def subject_tables(inputs: CaseInputs) -> list[SubjectTable]:
    """One table an engine that answered."""
    measured, found = inputs.measured, []
    for engine in ("inductor", "eager", *own_engines(measured)):
        answers, metric = measured.accuracy.get(engine), f"acc_{pass_name(engine)}"
        scoring = scoring_of(inputs, metric)
        if answers is not None and scoring is not None:
            judged = on_baseline(measured, metric)
            compared = judged if judged is not None and judged.change_pp is not None else None
            found.append(_subject_table(engine, metric, answers, scoring, compared))
    return found


def flip_lists(
    verdicts: Sequence[Verdict],
    labels: Mapping[tuple[str, str], str],
    questions: Questions,
    most: int,
    first: str | None,
    against: str = "",
) -> list[FlipList]:
    """The flips of every verdict that has some, at most ``most`` of each.

    ``labels`` are by task and id; ``first`` is the case's first task, where that is known;
    ``against`` says what two things differ, where not the gate does.
    """
    return [
        FlipList(
            metric=verdict.metric,
            word=verdict.word,
            against=against or _against(verdict),
            counts=flip_counts([verdict]),
            rows=tuple(
                _flip_row(verdict, flip, flipped_task(verdict, first), labels, questions)
                for flip in sorted(verdict.flips, key=_surest_loss_first)[:most]
            ),
            more=max(0, len(verdict.flips) - most),
        )
        for verdict in verdicts
        if verdict.flips
    ]


def labels_of(measured: CaseRecord) -> dict[tuple[str, str], str]:
    """The right letters of all questions that any engine was asked, by task and id."""
    return {
        (task_of(word), name): label
        for word, answers in measured.accuracy.items()
        for name, label in zip(answers.ids, answers.labels, strict=True)
    }


_AGAINST = {
    "baseline": "the stored answers → this run's",
    "paired": "the eager engine's answers → the compiled engine's, in this run",
    "published": "published → this run's",
}


def _against(verdict: Verdict) -> str:
    if verdict.metric.startswith("decode_flips"):
        return "the likeliest tokens by a forward without a cache → those generated, in this run"
    return _AGAINST[verdict.gate]


def _subject_table(
    engine: str, metric: str, answers: StoredAnswers, scoring: Scoring, judged: Verdict | None
) -> SubjectTable:
    asked: dict[str, list[int]] = {}  # questions, right, lost, gained
    scored = answers.scored(scoring)
    for name, answer, label in zip(scored.ids, scored.answers, scored.labels, strict=True):
        row = asked.setdefault(_subject(name), [0, 0, 0, 0])
        row[0] += 1
        row[1] += answer == label
    for flip in judged.flips if judged is not None else ():
        row = asked.setdefault(_subject(flip.id), [0, 0, 0, 0])
        row[2] += flip.kind == "right -> wrong"
        row[3] += flip.kind == "wrong -> right"
    changes = {n: 100 * (gained - lost) / (q or 1) for n, (q, _, lost, gained) in asked.items()}
    largest = max(map(abs, changes.values()), default=0.0)

    def order(name: str) -> tuple[float, float, str]:
        return (changes[name], asked[name][1] / (asked[name][0] or 1), name)

    rows = []
    for name in sorted(asked, key=order):
        count, right, lost, gained = asked[name]
        now = right / (count or 1)
        bar = charts.fraction_bar(now)
        if judged is not None:
            bar = charts.share_bar(changes[name], largest)
        rows.append(
            SubjectRow(
                name=name.replace("_", " "),
                questions=count,
                now=number(now, "fraction"),
                before=number((right + lost - gained) / (count or 1), "fraction"),
                change=f"{changes[name] + 0.0:+.2f}",
                lost=lost,
                gained=gained,
                bar=bar,
            )
        )
    return SubjectTable(
        engine=engine,
        metric=metric,
        compared=judged is not None,
        largest=f"{largest:.2f}" if judged is not None else "100",
        rows=tuple(rows),
        changed=sum(row.lost + row.gained > 0 for row in rows),
    )


def _subject(name: str) -> str:
    return name.rpartition("/")[0]


def _surest_loss_first(flip: Flip) -> tuple[bool, bool, float]:
    return flip.kind != "right -> wrong", flip.kind != "wrong -> right", -(flip.margin or 0.0)


def _first_task(inputs: CaseInputs) -> str | None:
    """The case's; without its YAML, that of the answers where they are of one alone."""
    if inputs.case is not None:
        return inputs.case.task_names[0]
    known = {task_of(word) for word in inputs.measured.accuracy}
    return known.pop() if len(known) == 1 else None


def _flip_row(
    verdict: Verdict,
    flip: Flip,
    task: str | None,
    labels: Mapping[tuple[str, str], str],
    questions: Questions,
) -> FlipRow:
    question = questions.get((task or "", flip.id))
    gold = flip.label if verdict.gate != "paired" else labels.get((task or "", flip.id), "")
    if not gold and question is not None:
        gold = question.label
    choices: tuple[Choice, ...] = ()
    if question is not None:
        roles = (("gold", gold), ("before", flip.before), ("after", flip.after))
        choices = tuple(
            Choice(letter, _clipped(text), tuple(mark for mark, of in roles if of == letter))
            for letter, text in zip(LETTERS, question.choices, strict=False)
        )
    return FlipRow(
        id=flip.id,
        kind=flip_kind(verdict, flip),
        before=flip.before,
        after=flip.after,
        gold=gold or "not known",
        margin="not stored" if flip.margin is None else f"{flip.margin:.3g} logits",
        text="" if question is None else _clipped(question.text),
        choices=choices,
    )


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ... (cut)"


_CLOCKS = {"sm_clock": "lowest", "temperature": "highest", "power": "mean"}


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

    measured: CaseRecord
    published: Published | None
    word: Word
    findings: tuple[Finding, ...]
    lines: tuple[str, ...]
    rows: tuple[MetricRow, ...]
    beside: tuple[MetricRow, ...]
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
    figures_of = {} if published is None else published.metrics
    tasks = (n for n in sorted(measured.metrics) if n in figures_of and n not in PUBLISHED_TABLE)
    above = PUBLISHED_TABLE | {name: name for name in tasks}  # what stands beside what is published
    return CaseView(
        measured=measured,
        published=published,
        word=worst(measured.verdicts),
        findings=tuple(findings(measured.verdicts)),
        lines=(
            *not_asked_lines(measured),
            *settled_lines(measured),
            *rank_lines(measured),
            *stragglers(measured),
        ),
        rows=tuple(metric_row(measured, published, n, t) for n, t in above.items()),
        beside=tuple(
            metric_row(measured, None, name, name)
            for name in sorted(measured.metrics)
            if name not in above
        ),
        context=context(inputs, record),
        figures=drawn,
        subjects=tuple(subject_tables(inputs)),
        flips=tuple(
            flip_lists(
                measured.verdicts,
                labels_of(measured),
                inputs.questions,
                most_flips,
                _first_task(inputs),
            )
        ),
        notes=_notes(measured),
        absent=(*inputs.absent, *absent),
        past=len(inputs.past),
    )


def context(inputs: CaseInputs, record: Record) -> Context:
    """Return what differs from the baseline's context, or else from the record before."""
    after = {**record.environment.context, **inputs.measured.facts}
    stored, past = inputs.stored, inputs.past
    before: Mapping[str, object] | None = None
    against = ""
    newest = None if stored is None else stored.newest
    if newest is not None:
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
        engine = engine_of(name, inputs.measured)
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
