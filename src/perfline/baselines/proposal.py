"""What did a session measure of a case, beside what is stored of it?

``perfline baselines`` shows it, and ``accept`` says whether it may be stored.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from perfline.baselines.baseline import Baseline, Published, Session
from perfline.cases.case import Case
from perfline.fields import Scalar
from perfline.measure.record import CaseRecord, Record
from perfline.tasks.answers import StoredAnswers

_KEPT_INFO = (
    "compile_time",
    "sm_clock",
    "sm_clock_val",
    "scaling_efficiency_infer",
    "scaling_efficiency_val",
)  # never judged, yet worth comparing by eye


@dataclass(frozen=True)
class Terms:
    """What the person who accepts has said."""

    reason: str
    add: bool = False
    accept_regression: bool = False


@dataclass(frozen=True)
class Candidate:
    """One case of a record, beside what is stored of it.

    Attributes:
        run: the record's file.
        path: the baseline's file.
        measured: what the session measured.
        case: the case as its YAML is today.
        old: the stored baseline; None where there is none.
        new: what the session measured, in a baseline's form.
        published: the case's published figures; None where there are none.
        broken: what is wrong with the baseline's file that is replaced; empty where nothing is.
        one_rank: the baseline of one rank on this machine, where several were measured.
    """

    run: Path
    path: Path
    measured: CaseRecord
    case: Case
    old: Baseline | None
    new: Baseline
    published: Published | None = None
    broken: str = ""
    one_rank: Baseline | None = None

    @property
    def stored_answers(self) -> dict[str, StoredAnswers]:
        """What the answers are held to: those stored for this layout, else those of one rank."""
        definition = self.new.case_digest, self.new.dtype
        return {
            engine: answers
            for held in (self.one_rank, self.old)
            if held is not None and (held.case_digest, held.dtype) == definition
            for engine, answers in held.accuracy.items()
        }

    @property
    def same_definition(self) -> bool:
        """Whether the stored baseline measured this very case in this dtype."""
        return self.old is not None and (self.old.case_digest, self.old.dtype) == (
            self.new.case_digest,
            self.new.dtype,
        )

    @property
    def same_workload(self) -> bool:
        """Whether the stored sessions, too, timed this very case over these prompts."""
        return (
            self.old is not None
            and self.same_definition
            and bool(self.old.sessions and self.new.sessions)
            and dict(self.old.sessions[-1].workload) == dict(self.new.sessions[-1].workload)
        )


def measured_baseline(record: Record, measured: CaseRecord, reason: str) -> Baseline:
    """Return what a session measured of a case, in a baseline's form."""
    facts: dict[str, Scalar] = {**record.environment.context, **measured.facts}
    commit = facts.pop("commit", None)
    kept = {
        name: metric
        for name, metric in measured.metrics.items()
        if name in _KEPT_INFO
        or metric.own
        or (metric.direction != "info" and not name.startswith("acc_"))
    }
    timed = any(metric.own or metric.unit == "tok/s" for metric in kept.values())
    session = Session(
        date=record.created,
        commit=None if commit is None else str(commit),
        reason=reason,
        context=facts,
        workload=measured.workload,
        metrics=kept,
        packages=record.environment.packages,
        variables=record.environment.variables,
    )
    return Baseline(
        case=measured.case,
        machine=record.environment.machine,
        case_digest=measured.digest,
        dtype=measured.dtype,
        accuracy={
            engine: dataclasses.replace(answers, reason=reason)
            for engine, answers in measured.accuracy.items()
        },
        sessions=(session,) if timed else (),
        reference=None
        if measured.reference is None
        else dataclasses.replace(measured.reference, reason=reason),
        fingerprints=measured.fingerprints,
    )
