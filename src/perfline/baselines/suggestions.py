"""What does a session say as a whole, and what should a person type next?

The page and the Markdown both ask here, so that neither can say another thing than pytest did.
Before a command is shown, ``refusal`` asks whether it would work: it reads the same files and rules
as ``perfline baselines update`` itself, so the two cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from perfline.baselines import accept, baseline
from perfline.baselines.baseline import Baseline
from perfline.baselines.proposal import Candidate, Terms, measured_baseline
from perfline.cases.case import Case
from perfline.errors import BaselineError
from perfline.gates.verdict import WORST_FIRST, Verdict, Word, fails, skips, worst
from perfline.measure.record import ABSENT, CaseRecord, Record, absence


def place(root: Path, record: Record, name: str) -> Path:
    """Return the file that the baseline of a record's case is kept in."""
    dummy = record.cases[name].weights == "dummy"
    return baseline.path(root, record.environment.machine, name, dummy)


def candidate(root: Path, run: Path, record: Record, case: Case, terms: Terms) -> Candidate:
    """Return a record's case beside what is stored of it.

    BaselineError for a broken file; it is replaced with ``--accept-regression`` only.
    """
    path = place(root, record, case.id)
    measured = record.cases[case.id]
    published = root / baseline.PUBLISHED / f"{case.id}.json"
    old, broken = None, ""
    try:
        old = baseline.load(path) if path.exists() else None
    except BaselineError as problem:
        if terms.add or not terms.accept_regression:
            raise BaselineError(
                f"{problem}; `update` replaces a broken file with --accept-regression (no --add)"
            ) from problem
        broken = str(problem)
    one_rank = None
    if (alone := record.environment.one_rank) != record.environment.machine:
        beside = baseline.path(root, alone, case.id, measured.weights == "dummy")
        one_rank = baseline.load(beside) if beside.exists() else None
    return Candidate(
        run=run,
        path=path,
        measured=measured,
        case=case.also_asking(measured.tasks),
        old=old,
        new=measured_baseline(record, measured, terms.reason),
        published=baseline.load_published(published) if published.exists() else None,
        broken=broken,
        one_rank=one_rank,
    )


def results(
    root: Path, run: Path, record: Record, cases: list[Case], terms: Terms
) -> list[tuple[Candidate, Baseline]]:
    """Return each case and what its file would hold; BaselineError, one line for each refusal."""
    found = [candidate(root, run, record, case, terms) for case in cases]
    lines = [line for each in found for line in accept.problems(each, terms)]
    if lines:
        raise BaselineError("\n".join(lines))
    return [(each, accept.merged(each, terms)) for each in found]


def refusal(root: Path, run: Path, record: Record, case: Case, terms: Terms) -> str:
    """Return the first line with which the update would be refused; empty where it would work."""
    lines = accept.record_problems(run, record, [case.id], terms.reason)
    if not lines:
        try:
            results(root, run, record, [case], terms)
        except BaselineError as problem:
            lines = str(problem).splitlines()
    first = next(iter(lines), "")
    return first.removeprefix(f"{run}: ").removeprefix(f"case '{case.id}': ")


@dataclass(frozen=True)
class Outcome:
    """What a whole session says, as pytest's exit status does.

    Attributes:
        word: the gravest verdict of all cases.
        errors: tests that ended without a verdict; each fails the session.
        absent: cases whose weights, data or ranks are not there, where that fails the session.
        tasks: that were not asked since their questions are not there.
        partial: the session was stopped, so that its exit status is not known.
        strict: what was not compared counts as failed, as under ``--strict-verdicts``.
    """

    word: Word
    errors: int
    partial: bool
    strict: bool
    absent: int = 0
    tasks: int = 0

    @property
    def failed(self) -> bool:
        """Return whether pytest fails."""
        unmeasured = self.errors or self.absent or (self.strict and self.tasks)
        return self.partial or bool(unmeasured) or fails(self.word, self.strict)

    @property
    def title(self) -> str:
        """Return the verdict in a few words, gravest first: ``regressed``."""
        parts = ["stopped before its end"] if self.partial else []
        parts += unmeasured(self.errors, self.absent, self.tasks)
        return ", ".join([*parts, self.word])

    @property
    def exit_line(self) -> str:
        """Return what pytest's exit status is, and what it would be under the strict options."""
        if self.partial:
            return "the session was stopped before its end: pytest does not exit 0"
        if self.failed:
            only_strict = not (self.errors or self.absent or fails(self.word, strict=False))
            return f"pytest exits 1{' under --strict-verdicts' if only_strict else ''}"
        if self.tasks or skips(self.word, self.strict):
            return "pytest exits 0, and 1 under --strict-verdicts: not everything was compared"
        return "pytest exits 0"


def outcome(record: Record, strict: bool = False) -> Outcome:
    """What a session says as a whole."""
    cases = record.cases.values()
    word = worst(v for case in cases for v in case.verdicts)
    errors, absent, tasks = unmeasured_counts(record)
    # An absent task is an error only in a session that was strict.
    strict = strict or any(len(untold(case)) < len(case.not_asked) for case in cases)
    return Outcome(word, errors, record.partial, strict, absent, tasks)


def unmeasured_counts(record: Record) -> tuple[int, int, int]:
    """How many tests ended without a verdict; how many cases were absent, and how many tasks."""
    cases = record.cases.values()
    lines = [line for case in cases for line in case.errors]
    absent = sum(line.startswith(ABSENT) for line in lines)
    told = sum(  # tasks with one place for their questions are told in one line
        len({absence(why) for why in case.not_asked.values()} & {*case.errors}) for case in cases
    )
    return len(lines) - absent, absent - told, sum(len(case.not_asked) for case in cases)


def untold(case: CaseRecord) -> dict[str, str]:
    """The tasks that were not asked, and why, but for those that its errors tell of."""
    return {name: why for name, why in case.not_asked.items() if absence(why) not in case.errors}


def not_asked_lines(case: CaseRecord) -> list[str]:
    """Which tasks were not asked, and why; but for those that the case's errors tell of."""
    return [f"{name} was not asked: {why}" for name, why in untold(case).items()]


def unmeasured(errors: int, absent: int, tasks: int) -> list[str]:
    """The same in words; what is none is left out."""
    words = [f"{errors} could not be measured"] if errors else []
    words += [f"{absent} case{'s' * (absent != 1)} absent"] if absent else []
    return words + ([f"{tasks} task{'s' * (tasks != 1)} not asked"] if tasks else [])


_BY_ANOTHER_MEASURE = {
    "decode_flips": "decode generates other tokens than a forward: its cache, its positions or a "
    "kernel",
    "fidelity_ways": "that way computes other numbers than the eager engine: a kernel, what "
    "torch.compile makes of it, or shared prefixes",
    "drift_": "more is lost than rounding to the case's dtype costs: a cast, or a kernel",
}


def gravest_first(record: Record) -> list[CaseRecord]:
    """The cases of a record, the gravest verdict first."""
    return sorted(
        record.cases.values(),
        key=lambda case: (not case.errors, WORST_FIRST.index(worst(case.verdicts))),
    )


def next_of(record: Record, flags: str, refused: Mapping[str, Refused]) -> str:
    """The one next step of a session: the first of the gravest case which has one.

    ``refused`` says, by case, why ``perfline baselines update`` would refuse what it would be.
    """
    found = (
        next_steps(
            c.case,
            c.verdicts,
            flags,
            refused.get(c.case, lambda terms: ""),
            settle=str(c.notes.get("settle_with", "")),
            failed=bool(c.errors),
        )
        for c in gravest_first(record)
    )
    return next((steps[0] for steps in found if steps), "")


Refused = Callable[[Terms], str]  # why an update with these terms is refused; empty where not


def next_steps(
    case: str,
    verdicts: Sequence[Verdict],
    flags: str,
    refused: Refused = lambda terms: "",
    *,
    settle: str = "",
    failed: bool = False,
) -> list[str]:
    """What comes next for a case, the first thing first; empty where there is nothing to do.

    A regression is settled or looked at before it is accepted. ``settle`` is the comparison that
    would (see ``settling``), ``flags`` are those that ``perfline baselines`` needs to find what
    pytest used; where ``update`` would be ``refused``, its cure comes, and what it is the cure of.
    ``failed``: a test of the case ended without a verdict.
    """
    if any(v.word == "invalid" and v.reason.endswith("--plain") for v in verdicts):
        return ["run again with --plain, which asks each question by itself"]
    if failed or any(v.word == "invalid" for v in verdicts):
        return ["run again once the cause above is gone"]
    steps = [comparing(settle, verdicts)] if settle else []
    red = [v for v in verdicts if v.word == "regressed"]
    if wrong := [v.metric for v in red if accept.final(v)]:
        for start, why in _BY_ANOTHER_MEASURE.items():
            if all(metric.startswith(start) for metric in wrong):
                return [*steps, f"find out why {why}"]
        asked = f"`perfline prompt {case} TASK/SUBJECT/INDEX` shows what was asked"
        return [*steps, f"find out why the answers are wrong; {asked}"]
    if red and not settle:
        steps.append(f"to look: perfline baselines diff {case} {flags}".strip())
    if (offer := _offer(verdicts)) is None:
        return steps
    said, terms = offer
    if line := refused(terms):
        cause, _, cure = line.rpartition("; ")
        return [*steps, f"{cure}: {cause}" if cause else cure]
    options = ["--add"] if terms.add else []
    options += ["--accept-regression"] if terms.accept_regression else []
    words = [f"perfline baselines update {case} {flags}", *options, f'--reason "{terms.reason}"']
    return [*steps, said + " ".join(words)]


def comparing(settle: str, verdicts: Sequence[Verdict]) -> str:
    """The comparison ``settle`` as a step: what has no noise is looked at, and not settled."""
    red = [v for v in verdicts if v.word == "regressed"]
    noiseless = red and all(v.unit in ("count", "nats") for v in red)
    return f"to {'look' if noiseless else 'settle it'}: {settle}"


def _offer(verdicts: Sequence[Verdict]) -> tuple[str, Terms] | None:
    """What stores these verdicts, and what is said before it; None where nothing need be."""
    words = {v.word for v in verdicts}
    if "regressed" in words:
        return "to accept it: ", Terms("...", accept_regression=True)
    if "incomparable" in words:
        return "to accept it anew: ", Terms("...")
    if any(v.word == "unsure" and accept.more_sessions_settle(v) for v in verdicts):
        return "to widen the baseline: ", Terms("...", add=True)
    if "missing" in words:
        return "", Terms("first baseline")
    return ("", Terms("...")) if "improved" in words else None
