"""Which subjects changed, and which questions flipped?

The change per subject comes from the verdict's own flips: it is that of the baseline which the run
was judged by, whatever has been accepted since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from perfline.cases.case import Scoring
from perfline.gates.verdict import Flip, Verdict
from perfline.measure.record import CaseRecord
from perfline.report import plots
from perfline.report import text as report
from perfline.report.page_inputs import CaseInputs
from perfline.tasks.answers import StoredAnswers
from perfline.tasks.mmlu import Question

ENGINES = {"inductor": "acc_infer", "eager": "acc_val"}
_LETTERS = "ABCD"
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


def engines(measured: CaseRecord) -> dict[str, str]:
    """{engine: its accuracy} of all that may have answered."""
    return ENGINES | {name: f"acc_{name}" for name in report.own_engines(measured)}


def subject_tables(inputs: CaseInputs) -> list[SubjectTable]:
    """One table an engine that answered."""
    measured, found = inputs.measured, []
    for engine, metric in engines(measured).items():
        answers = measured.accuracy.get(engine)
        scoring = scoring_of(inputs, metric)
        if answers is not None and scoring is not None:
            judged = _judged(measured, metric)
            found.append(_subject_table(engine, metric, answers, scoring, judged))
    return found


def scoring_of(inputs: CaseInputs, metric: str) -> Scoring | None:
    """The case's scoring; without its YAML, the one that gives the measured accuracy."""
    if inputs.case is not None:
        return inputs.case.mmlu.scoring
    values = {name: found.value for name, found in inputs.measured.metrics.items()}
    options: tuple[tuple[Scoring, str], ...] = (
        ("full-vocab", f"{metric}_full_vocab"),
        ("letters", f"{metric}_letters"),
    )
    for scoring, name in options:
        if metric in values and values.get(name) == values[metric]:
            return scoring
    return None


def flip_lists(
    verdicts: Sequence[Verdict],
    labels: Mapping[str, str],
    questions: Mapping[str, Question],
    most: int,
    against: str = "",
) -> list[FlipList]:
    """The flips of every verdict that has some, at most ``most`` of each.

    ``labels`` are by id; ``against`` says what two things differ, where not the gate does.
    """
    return [
        FlipList(
            metric=verdict.metric,
            word=verdict.word,
            against=against or _AGAINST[verdict.gate],
            counts=_counts(verdict.flips, verdict.gate),
            rows=tuple(
                _flip_row(flip, verdict.gate, labels, questions)
                for flip in sorted(verdict.flips, key=_surest_loss_first)[:most]
            ),
            more=max(0, len(verdict.flips) - most),
        )
        for verdict in verdicts
        if verdict.flips
    ]


def labels_of(measured: CaseRecord) -> dict[str, str]:
    """The right letters of all questions that any engine was asked."""
    return {
        name: label
        for answers in measured.accuracy.values()
        for name, label in zip(answers.ids, answers.labels, strict=True)
    }


_AGAINST = {
    "baseline": "the stored answers → this run's",
    "paired": "the eager engine's answers → the compiled engine's, in this run",
    "published": "published → this run's",
}


def _judged(measured: CaseRecord, metric: str) -> Verdict | None:
    for verdict in measured.verdicts:
        if (verdict.metric, verdict.gate) == (metric, "baseline") and verdict.change_pp is not None:
            return verdict
    return None


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
        bar = plots.fraction_bar(now)
        if judged is not None:
            bar = plots.share_bar(changes[name], largest)
        rows.append(
            SubjectRow(
                name=name.replace("_", " "),
                questions=count,
                now=report.number(now, "fraction"),
                before=report.number((right + lost - gained) / (count or 1), "fraction"),
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


def _counts(flips: Sequence[Flip], gate: str) -> str:
    if gate == "paired":  # eager's answer stands in for the label: nothing is right or wrong
        return f"{len(flips)} differ"
    kinds: tuple[Literal["right -> wrong", "wrong -> right", "wrong -> wrong"], ...]
    kinds = ("right -> wrong", "wrong -> right", "wrong -> wrong")
    counted = ((sum(flip.kind == kind for flip in flips), kind) for kind in kinds)
    return ", ".join(f"{count} {kind}" for count, kind in counted if count)


def _flip_row(
    flip: Flip, gate: str, labels: Mapping[str, str], questions: Mapping[str, Question]
) -> FlipRow:
    question = questions.get(flip.id)
    gold = flip.label if gate != "paired" else labels.get(flip.id, "")
    if not gold and question is not None:
        gold = question.label
    kind = flip.kind if gate != "paired" else "differs"
    choices: tuple[Choice, ...] = ()
    if question is not None:
        roles = (("gold", gold), ("before", flip.before), ("after", flip.after))
        choices = tuple(
            Choice(letter, _clipped(text), tuple(mark for mark, of in roles if of == letter))
            for letter, text in zip(_LETTERS, question.choices, strict=True)
        )
    return FlipRow(
        id=flip.id,
        kind=kind,
        before=flip.before,
        after=flip.after,
        gold=gold or "not known",
        margin="not stored" if flip.margin is None else f"{flip.margin:.3g} logits",
        text="" if question is None else _clipped(question.text),
        choices=choices,
    )


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ... (cut)"
