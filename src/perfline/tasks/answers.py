"""What did an engine answer, and how many answers are right?

Both scorings come out of one pass: the arg-max over the full vocabulary (as published), and the
arg-max of the four letters (as lm-evaluation-harness scores).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from perfline.cases.case import Scoring
from perfline.errors import DataError

LETTERS = "ABCD"


NO_LETTER = "-"


@dataclass(frozen=True, eq=False)
class Answers:
    """What an engine answered: one row per question, in prompt order.

    ``argmax_letter`` holds :func:`full_vocab_letter` of the arg-max token, ``labels`` the right
    letters (None where there are none), both as one character per question.
    """

    ids: tuple[str, ...]
    letter_logits: npt.NDArray[np.float32]  # (n, 4)
    argmax: npt.NDArray[np.int64]  # (n,), over the full vocabulary
    argmax_letter: str
    labels: str | None
    shots: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse rows that do not match, and a question that is answered twice."""
        n = len(self.ids)
        lengths = {len(self.argmax), len(self.argmax_letter), len(self.shots)}
        if self.labels is not None:
            lengths.add(len(self.labels))
        if lengths != {n} or self.letter_logits.shape != (n, 4):
            raise DataError(
                f"answers do not match: {n} ids, {len(self.argmax)} arg-maxes, letter logits of "
                f"shape {self.letter_logits.shape}; expected one row of 4 logits per id"
            )
        if len(set(self.ids)) != n:
            twice = Counter(self.ids).most_common(1)[0][0]
            raise DataError(f"question {twice} is answered twice; expected each id once")

    def letters(self) -> str:
        """Return the arg-max of the four letters per question: ties to the first, NaN to '-'."""
        best = self.letter_logits.argmax(axis=1).tolist()
        nan = cast("list[bool]", np.isnan(self.letter_logits).any(axis=1).tolist())
        return "".join(NO_LETTER if bad else LETTERS[i] for i, bad in zip(best, nan, strict=True))

    def merge(self, other: Answers) -> Answers:
        """Return both sets of answers; DataError where they share a question."""
        return union([self, other])


def union(parts: Sequence[Answers]) -> Answers:
    """Return all answers, in the order of the parts; DataError where two share a question."""
    some = [part for part in parts if part.ids]
    if not some:
        return no_answers()
    labels = [part.labels for part in some]
    if None in labels and any(label is not None for label in labels):
        raise DataError("answers with labels do not merge with answers without")
    return Answers(
        ids=tuple(name for part in some for name in part.ids),
        letter_logits=np.concatenate([part.letter_logits for part in some]),
        argmax=np.concatenate([part.argmax for part in some]),
        argmax_letter="".join(part.argmax_letter for part in some),
        labels=None if None in labels else "".join(label for label in labels if label),
        shots=tuple(shots for part in some for shots in part.shots),
    )


def full_vocab_letter(decoded: str) -> str:
    """Return the letter that a decoded arg-max token counts as, '-' for none.

    As published: keep the characters A-D and compare with the label. So " A" is A, but " Because"
    is B too, and "CD" is no letter.
    """
    kept = "".join(character for character in decoded if character in LETTERS)
    return kept if len(kept) == 1 else NO_LETTER


def accuracy(answers: Answers, scoring: Scoring) -> tuple[int, int]:
    """Return (correct, asked); their ratio is the micro average."""
    if answers.labels is None:
        raise DataError("answers without labels (--dummy-weights) have no accuracy")
    given = answers.letters() if scoring == "letters" else answers.argmax_letter
    right = sum(a == b for a, b in zip(given, answers.labels, strict=True))
    return right, len(answers.ids)


def subset(answers: Answers, ids: Sequence[str]) -> Answers:
    """The rows of ``ids``, in that order."""
    where = {name: row for row, name in enumerate(answers.ids)}
    rows = [where[name] for name in ids]
    return Answers(
        ids=tuple(ids),
        letter_logits=answers.letter_logits[rows],
        argmax=answers.argmax[rows],
        argmax_letter="".join(answers.argmax_letter[row] for row in rows),
        labels=None if answers.labels is None else "".join(answers.labels[row] for row in rows),
        shots=tuple(answers.shots[row] for row in rows),
    )


def no_answers() -> Answers:
    """Answers to no question."""
    return Answers((), np.empty((0, 4), np.float32), np.empty(0, np.int64), "", "", ())
