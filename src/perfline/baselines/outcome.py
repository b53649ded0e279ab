"""What does a whole session say, in the words of pytest's exit status?

The page and the Markdown both ask here, so that neither can say another thing than pytest did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from perfline.baselines.suggestions import Refused, next_command
from perfline.gates.verdict import WORST_FIRST, Word, fails, skips, worst
from perfline.measure.record import CaseRecord, Record


@dataclass(frozen=True)
class Outcome:
    """What a whole session says, as pytest's exit status does.

    Attributes:
        word: the gravest verdict of all cases.
        errors: tests that ended without a verdict; each fails the session.
        partial: the session was stopped, so that its exit status is not known.
        strict: what was not compared counts as failed, as under ``--strict-verdicts``.
    """

    word: Word
    errors: int
    partial: bool
    strict: bool

    @property
    def failed(self) -> bool:
        """Return whether pytest fails."""
        return self.partial or bool(self.errors) or fails(self.word, self.strict)

    @property
    def title(self) -> str:
        """Return the verdict in a few words, gravest first: ``regressed``."""
        parts = ["stopped before its end"] if self.partial else []
        parts += [f"{self.errors} could not be measured"] if self.errors else []
        return ", ".join([*parts, self.word])

    @property
    def exit_line(self) -> str:
        """Return what pytest's exit status is, and what it would be under the strict options."""
        if self.partial:
            return "the session was stopped before its end: pytest does not exit 0"
        if self.failed:
            only_strict = not self.errors and skips(self.word, strict=False)
            return f"pytest exits 1{' under --strict-verdicts' if only_strict else ''}"
        if skips(self.word, self.strict):
            return "pytest exits 0, and 1 under --strict-verdicts: not everything was compared"
        return "pytest exits 0"


def outcome(record: Record, strict: bool = False) -> Outcome:
    """What a session says as a whole."""
    cases = record.cases.values()
    word = worst(v for case in cases for v in case.verdicts)
    return Outcome(word, sum(len(case.errors) for case in cases), record.partial, strict)


def gravest_first(record: Record) -> list[CaseRecord]:
    """The cases of a record, the gravest verdict first."""
    return sorted(
        record.cases.values(),
        key=lambda case: (not case.errors, WORST_FIRST.index(worst(case.verdicts))),
    )


def next_of(record: Record, flags: str, refused: Mapping[str, Refused]) -> str:
    """The one next command of a session: that of the gravest case which has one.

    ``refused`` says, by case, why ``perfline baselines update`` would refuse what it would be.
    """
    commands = (
        next_command(c.case, c.verdicts, flags, refused.get(c.case, lambda terms: ""))
        for c in gravest_first(record)
    )
    return next((command for command in commands if command), "")
