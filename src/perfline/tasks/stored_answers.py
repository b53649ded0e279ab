"""Which answers did a baseline's run give, question by question?

One row per question, in the order of subject and index, and in the file one short line per subject
and column: 14,042 questions take about 0.1 MB per engine, and a changed answer changes two lines.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from perfline.errors import BaselineError
from perfline.jsonfile import Node, Scalar, digest

_NO_LETTER = "-"
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Scored:
    """Answers as one scoring sees them: a row per question, in any order of unique ids."""

    ids: tuple[str, ...]  # "subject/index"
    answers: str  # "A" to "D", or "-" for no letter
    labels: str  # "A" to "D"
    margins: tuple[float, ...] | None = None  # best minus second-best letter logit

    def __post_init__(self) -> None:
        """Refuse columns of different lengths: they would pair wrong questions in silence."""
        _check_rows(self.ids, answers=self.answers, labels=self.labels, margins=self.margins)

    @property
    def correct(self) -> int:
        """Return how many answers equal their label."""
        return sum(map(str.__eq__, self.answers, self.labels))


@dataclass(frozen=True)
class StoredAnswers:
    """One engine's answers, where they came from, and why they were accepted."""

    ids: tuple[str, ...]  # "subject/index", sorted by subject and index
    letters: str  # arg-max of the four letters' logits
    argmax: str  # arg-max of the whole vocabulary, "-" where it is no letter
    labels: str
    margins: tuple[float, ...]  # best minus second-best letter logit, three significant digits
    date: str
    commit: str | None
    reason: str
    context: Mapping[str, Scalar]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths and what is no answer."""
        _check_rows(
            self.ids,
            letters=self.letters,
            argmax=self.argmax,
            labels=self.labels,
            margins=self.margins,
        )
        if not set(self.letters + self.labels) <= set("ABCD"):
            raise BaselineError("answers to store: a letter or label is not one of A, B, C, D")
        if not set(self.argmax) <= set("ABCD" + _NO_LETTER):
            raise BaselineError("answers to store: a full-vocabulary answer is not A, B, C, D or -")
        if not all(0 <= margin < float("inf") for margin in self.margins):
            raise BaselineError("answers to store: a margin is negative or no number")

    @classmethod
    def of(
        cls,
        rows: Sequence[tuple[str, str, str, str, float]],
        *,
        date: str,
        commit: str | None,
        reason: str,
        context: Mapping[str, Scalar],
    ) -> StoredAnswers:
        """Sort rows of (id, letter, full-vocabulary letter, label, margin), and round margins."""
        if not rows:
            raise BaselineError("answers to store: there are none")
        ids, letters, argmax, labels, margins = zip(
            *sorted(rows, key=lambda row: question_key(row[0])), strict=True
        )
        return cls(
            ids=ids,
            letters="".join(letters),
            argmax="".join(argmax),
            labels="".join(labels),
            margins=tuple(float(f"{margin:.3g}") for margin in margins),
            date=date,
            commit=commit,
            reason=reason,
            context=context,
        )

    def scored(self, scoring: Literal["full-vocab", "letters"]) -> Scored:
        """Return the answers as the case's ``scoring`` sees them."""
        answers = self.letters if scoring == "letters" else self.argmax
        return Scored(self.ids, answers, self.labels, self.margins)

    @property
    def questions_digest(self) -> str:
        """Return the digest of ids and labels: equal digests are the same questions."""
        return digest([self.ids, self.labels])

    def to_json(self) -> dict[str, object]:
        """Return the stored form; ``indices`` stands only where they are not 0 to n - 1."""
        rows = zip(self.ids, self.letters, self.argmax, self.labels, self.margins, strict=True)
        subjects: dict[str, object] = {}
        for subject, group in itertools.groupby(rows, key=lambda row: question_key(row[0])[0]):
            ids, letters, argmax, labels, margins = zip(*group, strict=True)
            indices = [question_key(name)[1] for name in ids]
            columns = {
                "letters": "".join(letters),
                "full_vocab": "".join(argmax),
                "labels": "".join(labels),
                "margins": " ".join(f"{margin:.3g}" for margin in margins),
            }
            if indices != list(range(len(indices))):
                columns["indices"] = " ".join(map(str, indices))
            subjects[subject] = columns
        return {
            "date": self.date,
            "commit": self.commit,
            "reason": self.reason,
            "context": dict(self.context),
            "questions_digest": self.questions_digest,
            "subjects": subjects,
        }

    @classmethod
    def from_json(cls, node: Node) -> StoredAnswers:
        """Read what :meth:`to_json` wrote; BaselineError names the key that is wrong."""
        date, commit = node.text("date"), node.optional_text("commit")
        reason, context = node.text("reason"), node.scalars("context")
        rows = [
            row for name, child in node.child("subjects").children() for row in _rows(name, child)
        ]
        try:
            answers = cls.of(rows, date=date, commit=commit, reason=reason, context=context)
        except BaselineError as problem:
            node.fail("subjects", f"is wrong ({problem})")
        if answers.questions_digest != node.text("questions_digest"):
            node.fail("questions_digest", "does not fit the ids and labels")
        return answers


def question_key(name: str) -> tuple[str, int]:
    """Return the sort key (subject, index) of a question's id ``subject/index``."""
    subject, _, index = name.rpartition("/")
    if not subject or not _INDEX.fullmatch(index):
        raise BaselineError(f"question id {name[:60]!r}: expected subject/index")
    return subject, int(index)


def _rows(subject: str, node: Node) -> list[tuple[str, str, str, str, float]]:
    letters, argmax = node.text("letters"), node.text("full_vocab")
    labels, margins = node.text("labels"), node.text("margins").split()
    indices = node.text("indices").split() if "indices" in node.data else range(len(letters))
    if not len(letters) == len(argmax) == len(labels) == len(margins) == len(indices):
        node.fail("letters", "and the other columns differ in length")
    try:
        numbers = [float(margin) for margin in margins]
    except ValueError:
        node.fail("margins", "holds what is no number")
    ids = [f"{subject}/{index}" for index in indices]
    return list(zip(ids, letters, argmax, labels, numbers, strict=True))


def _check_rows(ids: Sequence[str], **columns: Sequence[object] | None) -> None:
    for name, column in columns.items():
        if column is not None and len(column) != len(ids):
            raise BaselineError(f"answers: {len(column)} {name} for {len(ids)} questions")
    if len(set(ids)) != len(ids):
        twice = next(name for name in ids if list(ids).count(name) > 1)
        raise BaselineError(f"answers: question {twice} stands twice")
