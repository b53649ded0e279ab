"""What does a page need besides the record itself, and what of it is at hand?

Baseline, published figures, the case's YAML, the questions' texts and past records are looked for;
what is absent, broken or of another run is left out with a sentence that says so, never guessed.
Past records give their numbers and words only: 200 of them, with 14,042 answers each, take seconds.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from perfline import jsonfile
from perfline.baselines import baseline, suggestions
from perfline.baselines.baseline import Baseline, Published
from perfline.baselines.suggestions import Refused
from perfline.cases.case import Case, Scoring, load_cases
from perfline.compare.record import Comparison
from perfline.compare.record import load as load_comparison
from perfline.errors import PerflineError, RecordError, printable
from perfline.fields import Node, Scalar
from perfline.gates.verdict import WORST_FIRST, Verdict, Word
from perfline.measure import record
from perfline.measure.record import CaseRecord, Record
from perfline.metrics import Metric, task_of
from perfline.tasks import prompts
from perfline.tasks import task as tasks
from perfline.tasks.prompts import Question
from perfline.tasks.task import scoring

Questions = Mapping[tuple[str, str], Question]  # by task and id: two tasks may share one
_MOST_PAST = 400  # records in one history: more than a year of nights
_FIX = "run pytest again"


@dataclass(frozen=True)
class Past:
    """One case in one past record.

    Attributes:
        values: of every metric; baselines and words: of those judged against a baseline.
    """

    created: str
    context: Mapping[str, str]
    word: Word | None
    values: Mapping[str, float]
    baselines: Mapping[str, float]
    words: Mapping[str, Word]


@dataclass(frozen=True)
class CaseInputs:
    """One case and what was found to show beside it; ``absent`` says what was not, and why."""

    measured: CaseRecord
    published: Published | None = None
    stored: Baseline | None = None
    case: Case | None = None
    questions: Questions = field(default_factory=dict)
    past: tuple[Past, ...] = ()
    absent: tuple[str, ...] = ()


@dataclass(frozen=True)
class CompareInputs:
    """One comparison, and by case the texts of its flipped questions and what is absent."""

    path: Path
    comparison: Comparison
    questions: Mapping[str, Questions] = field(default_factory=dict)
    absent: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Inputs:
    """All that a page is made of.

    Attributes:
        path, record: of the session that the page is about; None where only comparisons are shown.
        flags: with which ``perfline baselines update`` finds the same files.
        refused: why it would refuse a case of the record, for the cases whose YAML is at hand.
        left_out: past records that could not be used, one line each.
    """

    path: Path | None
    record: Record | None
    cases: Mapping[str, CaseInputs]
    comparisons: tuple[CompareInputs, ...] = ()
    flags: str = ""
    refused: Mapping[str, Refused] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Places:
    """Where to look."""

    baselines: Path
    case_dirs: tuple[Path, ...] = ()
    data_dir: Path | None = None


def scoring_of(inputs: CaseInputs, metric: str) -> Scoring | None:
    """The case's scoring; without its YAML, the one that gives the measured accuracy."""
    if inputs.case is not None:
        return scoring(inputs.case, metric.removeprefix("acc_"))
    values = {name: each.value for name, each in inputs.measured.metrics.items()}
    if f"{metric}_norm" in values:
        return "letters"  # so are continuations: ``tasks.task.scoring``
    options: tuple[tuple[Scoring, str], ...] = (
        ("full-vocab", f"{metric}_full_vocab"),
        ("letters", f"{metric}_letters"),
    )
    for found, name in options:
        if metric in values and values.get(name) == values[metric]:
            return found
    return None


def gather(paths: Sequence[Path], places: Places) -> Inputs:
    """Read the first session's record, every comparison, and the rest as its history.

    RecordError where the first file, or a comparison, cannot be read, and for any device or FIFO:
    files are read twice, and from a FIFO it would wait for ever.
    """
    for path in paths:
        if jsonfile.is_special(path):
            shown = printable(str(path))
            raise RecordError(f"{shown}: is no regular file; save it to one, and name that")
    comparing = {path for path in paths if _is_comparison(path)}
    sessions = [path for path in paths if path not in comparing]
    known, why_unknown = _known_cases(places.case_dirs)
    comparisons = tuple(_compare_inputs(path, known, places) for path in paths if path in comparing)
    if not sessions:
        return Inputs(None, None, {}, comparisons)
    path, others = sessions[0], sessions[1:]
    current = record.load(path)
    past, left_out = _past(others, current)
    cases = {
        name: _case_inputs(
            measured,
            current,
            known[name].also_asking(measured.tasks) if name in known else None,
            why_unknown,
            places,
            past,
        )
        for name, measured in current.cases.items()
    }
    refused = {
        name: partial(suggestions.refusal, places.baselines, path, current, known[name])
        for name in current.cases
        if name in known
    }
    flags = _flags(path, current, places)
    return Inputs(path, current, cases, comparisons, flags, refused, tuple(left_out))


def _is_comparison(path: Path) -> bool:
    """Whether a file says so itself; what cannot be read is left to the reader of records."""
    try:
        found = jsonfile.read(path, record.SCHEMA, RecordError, _FIX)
    except RecordError:
        return False
    return jsonfile.kind(found.data) == "comparison"


def _flags(path: Path, current: Record, places: Places) -> str:
    flags = [f"--run {shlex.quote(os.fspath(path))}"]
    # Without it here, the directory that pytest was given.
    noted = (case.notes.get("case_dir") for case in current.cases.values())
    told = [printable(name) for name in noted if isinstance(name, str)]
    directories = [os.fspath(place) for place in places.case_dirs] or list(dict.fromkeys(told))
    flags += [f"--case-dir={shlex.quote(name)}" for name in directories]
    if places.baselines != Path("baselines"):
        flags.append(f"--baselines={shlex.quote(os.fspath(places.baselines))}")
    return " ".join(flags)


def _known_cases(directories: Sequence[Path]) -> tuple[dict[str, Case], str]:
    try:
        return {case.id: case for case in load_cases(None, directories)}, ""
    except PerflineError as problem:
        return {}, str(problem)


def _case_inputs(
    measured: CaseRecord,
    current: Record,
    case: Case | None,
    why_unknown: str,
    places: Places,
    past: Mapping[tuple[str, str, str], list[Past]],
) -> CaseInputs:
    absent: list[str] = []
    if case is None:
        absent.append(
            f"The case's YAML is not at hand, so its margins are not drawn: "
            f"{why_unknown or 'name its directory with --case-dir.'}"
        )
    elif case.digest("dummy" if measured.weights == "dummy" else "real") != measured.digest:
        absent.append(
            "The case's YAML has changed since this run, so its margins are not drawn and "
            "questions are shown without their text."
        )
        case = None
    key = (measured.case, measured.weights, measured.digest)
    history = sorted(past.get(key, []), key=lambda p: p.created)
    changed = sum(len(found) for k, found in past.items() if k[:2] == key[:2] and k != key)
    if changed:
        absent.append(f"{changed} past records of other definitions of the case are left out.")
    if len(history) > _MOST_PAST:
        absent.append(f"The history shows the newest {_MOST_PAST} of {len(history)} records.")
    return CaseInputs(
        measured=measured,
        published=_published(measured, places, absent),
        stored=_stored(measured, current, places, absent),
        case=case,
        questions=_questions(measured.verdicts, measured.facts, case, places, absent),
        past=tuple(history[-_MOST_PAST:]),
        absent=tuple(absent),
    )


def _published(measured: CaseRecord, places: Places, absent: list[str]) -> Published | None:
    path = places.baselines / baseline.PUBLISHED / f"{measured.case}.json"
    try:
        return baseline.load_published(path) if path.is_file() else None
    except PerflineError as problem:
        absent.append(f"The published figures are not shown: {problem}")
        return None


def _stored(
    measured: CaseRecord, current: Record, places: Places, absent: list[str]
) -> Baseline | None:
    machine, dummy = current.environment.machine, measured.weights == "dummy"
    try:
        path = baseline.path(places.baselines, machine, measured.case, dummy)
        if not path.is_file():
            absent.append(f"There is no baseline at {path}.")
            return None
        stored = baseline.load(path)
    except PerflineError as problem:
        absent.append(f"The baseline is not shown: {problem}")
        return None
    if (stored.case_digest, stored.dtype) != (measured.digest, measured.dtype):
        absent.append(f"The baseline at {path} is of another definition of the case.")
        return None
    return stored


def _compare_inputs(path: Path, known: Mapping[str, Case], places: Places) -> CompareInputs:
    comparison = load_comparison(path)
    questions, absent = {}, {}
    for name, compared in comparison.cases.items():
        notes: list[str] = []
        facts = compared.sides["baseline"].facts
        questions[name] = _questions(compared.verdicts, facts, known.get(name), places, notes)
        absent[name] = tuple(notes)
    return CompareInputs(path, comparison, questions, absent)


def _questions(
    verdicts: Sequence[Verdict],
    facts: Mapping[str, Scalar],
    case: Case | None,
    places: Places,
    absent: list[str],
) -> Questions:
    """The texts of the flipped questions, if the rows at hand are those that the run asked."""
    found: dict[tuple[str, str], Question] = {}
    if case is None or not any(verdict.flips for verdict in verdicts):
        return found
    first = case.task_names[0]
    wanted = {(flipped_task(v, first), flip.id) for v in verdicts for flip in v.flips}
    try:
        asked_for = [each for each in tasks.tasks_of(case) if each.name in {n for n, _ in wanted}]
    except PerflineError as problem:
        absent.append(f"Flipped questions are shown without their text: {problem}.")
        return found
    for each in asked_for:
        hidden = f"Flipped questions of {each.name} are shown without their text"
        asked = facts.get(each.name)
        if asked is None:
            absent.append(f"{hidden}: the record does not say which questions were asked.")
            continue
        try:
            place = tasks.find_rows(case, each, places.data_dir)
            subjects = prompts.load_subjects(place, tasks.shots(case, each), each)
        except PerflineError as problem:
            absent.append(f"{hidden}: {problem}.")
            continue
        if (digest := prompts.question_set_digest(subjects)) != asked:
            said = f"{place} holds others ({digest}) than the run asked ({asked})"
            absent.append(f"{hidden}: {said}.")
            continue
        rows = {(each.name, q.id): q for subject in subjects for q in subject.test}
        found |= {key: q for key, q in rows.items() if key in wanted}
    return found


def flipped_task(verdict: Verdict, first: str | None) -> str | None:
    """Whose questions a verdict's flips are; all but accuracy's are of the case's ``first`` task.

    None where that is not known.
    """
    if verdict.metric.startswith("acc_"):
        return task_of(verdict.metric.removeprefix("acc_"))
    return first


def _past(
    paths: Sequence[Path], current: Record
) -> tuple[dict[tuple[str, str, str], list[Past]], list[str]]:
    """{(case, weights, digest): its past on this machine}, and what was left out."""
    found: dict[tuple[str, str, str], list[Past]] = {}
    left_out, elsewhere = [], 0
    seen = {current.created}  # a copy of a record is no second measurement
    for path in paths:
        try:
            node = jsonfile.read(path, record.SCHEMA, RecordError, _FIX, "record")
            created = node.text("created")
            if node.child("environment").text("machine") != current.environment.machine:
                elsewhere += 1
                continue
            if created in seen:
                continue
            seen.add(created)
            cases = list(node.child("cases").children())
            read = [
                ((name, c.text("weights"), c.text("digest")), _past_case(node, c))
                for name, c in cases
            ]
        except RecordError as problem:
            left_out.append(str(problem))
            continue
        for key, past in read:
            if key[0] in current.cases and past.values:
                found.setdefault(key, []).append(past)
    if elsewhere:
        records = "record" if elsewhere == 1 else "records"
        left_out.append(f"{elsewhere} {records} of other machines")
    return found, left_out


def _past_case(node: Node, case: Node) -> Past:
    values, held, words = {}, {}, {}
    for name, metric in case.get("metrics", Mapping[str, Metric]).items():
        values[name] = metric.value
    for verdict in case.get("verdicts", tuple[Verdict, ...]):
        if verdict.gate == "baseline":
            words[verdict.metric] = verdict.word
            if verdict.baseline is not None:
                held[verdict.metric] = verdict.baseline
    return Past(
        created=node.text("created"),
        context=node.child("environment").get("context", Mapping[str, str]),
        word=min(words.values(), key=WORST_FIRST.index, default=None),
        values=values,
        baselines=held,
        words=words,
    )
