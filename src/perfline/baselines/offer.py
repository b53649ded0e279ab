"""Would ``perfline baselines update`` take what a person is about to be told to type?

It is asked before a command is offered, and reads the same files and rules as the command itself:
what a session is told next, and what the update then says, cannot disagree.
"""

from __future__ import annotations

from pathlib import Path

from perfline.baselines import accept, baseline
from perfline.baselines.baseline import Baseline
from perfline.baselines.proposal import Candidate, Terms, measured_baseline
from perfline.cases.case import Case
from perfline.errors import BaselineError
from perfline.measure.record import Record


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
        case=case,
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
