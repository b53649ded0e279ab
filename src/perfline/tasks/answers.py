"""What did an engine answer, and how many answers are right?

Both scorings come out of one pass: the arg-max over the full vocabulary (as published), and the
arg-max of the letters of its choices (as lm-evaluation-harness scores).

In a baseline's file, answers are one row per question, in the order of subject and index, one short
line per subject and column: 14,042 questions take about 0.1 MB per engine, and a changed answer
changes two lines.
"""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from perfline.cases.case import Scoring
from perfline.errors import BaselineError, DataError
from perfline.fields import OPTIONAL, Node, Scalar, as_json
from perfline.jsonfile import digest

LETTERS = "ABCDEFGHIJ"  # of the choices; the most that a task has is ten
NO_LETTER = "-"
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Scored:
    """Answers as one scoring sees them: a row per question, in any order of unique ids."""

    ids: tuple[str, ...]  # "subject/index"
    answers: str  # "A" to "J", or "-" for no letter
    labels: str  # "A" to "J"
    margins: tuple[float, ...] | None = None  # best minus second-best letter logit

    def __post_init__(self) -> None:
        """Refuse columns of different lengths: they would pair wrong questions in silence."""
        _check_rows(self.ids, answers=self.answers, labels=self.labels, margins=self.margins)

    @property
    def correct(self) -> int:
        """Return how many answers equal their label."""
        return sum(map(str.__eq__, self.answers, self.labels))


@dataclass(frozen=True)
class _Columns:
    """The answers to one subject's questions as a file has them."""

    full_vocab: str
    labels: str
    letters: str = field(default="", metadata=OPTIONAL)  # it and margins: of letter logits
    margins: str = field(default="", metadata=OPTIONAL)
    indices: str = field(default="", metadata=OPTIONAL)  # where they are not 0 to n - 1


@dataclass(frozen=True)
class _Stored:
    """:class:`StoredAnswers` as a file has them."""

    date: str
    commit: str | None
    reason: str
    context: Mapping[str, Scalar]
    questions_digest: str
    subjects: Mapping[str, _Columns]


@dataclass(frozen=True)
class StoredAnswers:
    """One engine's answers, where they came from, and why they were accepted."""

    ids: tuple[str, ...]  # "subject/index", sorted by subject and index
    letters: str  # arg-max of the letters' logits; all "-" where an engine tells none
    argmax: str  # arg-max of the whole vocabulary, "-" where it is no letter
    labels: str
    margins: tuple[float, ...] | None  # best minus second-best letter logit, three digits
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
        told = self.labels if self.margins is None else self.labels + self.letters
        if not set(told) <= set(LETTERS):
            raise BaselineError("answers to store: a letter or label is not one of A to J")
        if not set(self.argmax) <= set(LETTERS + NO_LETTER):
            raise BaselineError("answers to store: a full-vocabulary answer is not A to J or -")
        if not all(0 <= margin < math.inf for margin in self.margins or ()):
            raise BaselineError("answers to store: a margin is negative or no number")

    @classmethod
    def of(
        cls,
        rows: Sequence[tuple[str, str, str, str, float | None]],
        *,
        date: str,
        commit: str | None,
        reason: str,
        context: Mapping[str, Scalar],
    ) -> StoredAnswers:
        """Sort rows of (id, letter, full-vocabulary letter, label, margin), and round margins.

        Without letter logits, every margin is None.
        """
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
            margins=None
            if None in margins
            else tuple(float(f"{margin:.3g}") for margin in margins if margin is not None),
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
        """Return the stored form; ``indices`` stands only where they are not 0 to n - 1.

        ``letters`` and ``margins`` stand only where the engine told letter logits.
        """
        values = self.margins or (0.0,) * len(self.ids)
        rows = zip(self.ids, self.letters, self.argmax, self.labels, values, strict=True)
        told = self.margins is not None
        subjects: dict[str, _Columns] = {}
        for subject, group in itertools.groupby(rows, key=lambda row: question_key(row[0])[0]):
            ids, letters, argmax, labels, margins = zip(*group, strict=True)
            indices = [question_key(name)[1] for name in ids]
            subjects[subject] = _Columns(
                letters="".join(letters) if told else "",
                full_vocab="".join(argmax),
                labels="".join(labels),
                margins=" ".join(f"{margin:.3g}" for margin in margins) if told else "",
                indices="" if indices == list(range(len(indices))) else " ".join(map(str, indices)),
            )
        where_from = (self.date, self.commit, self.reason, self.context)
        stored: dict[str, object] = as_json(_Stored(*where_from, self.questions_digest, subjects))
        return stored

    @classmethod
    def from_json(cls, node: Node) -> StoredAnswers:
        """Read what :meth:`to_json` wrote; BaselineError names the key that is wrong."""
        stored = node.build(_Stored)
        below = node.child("subjects")
        rows = [row for name, each in stored.subjects.items() for row in _rows(name, each, below)]
        try:
            answers = cls.of(
                rows,
                date=stored.date,
                commit=stored.commit,
                reason=stored.reason,
                context=stored.context,
            )
        except BaselineError as problem:
            node.fail("subjects", f"is wrong ({problem})")
        if answers.questions_digest != stored.questions_digest:
            node.fail("questions_digest", "does not fit the ids and labels")
        return answers


def question_key(name: str) -> tuple[str, int]:
    """Return the sort key (subject, index) of a question's id ``subject/index``."""
    subject, _, index = name.rpartition("/")
    if not subject or not _INDEX.fullmatch(index):
        raise BaselineError(f"question id {name[:60]!r}: expected subject/index")
    return subject, int(index)


def _rows(
    subject: str, columns: _Columns, node: Node
) -> list[tuple[str, str, str, str, float | None]]:
    letters, argmax, labels = columns.letters, columns.full_vocab, columns.labels
    margins = columns.margins.split()
    if not letters and not margins:
        letters, margins = NO_LETTER * len(argmax), [""] * len(argmax)
    indices = columns.indices.split() or range(len(letters))
    if not len(letters) == len(argmax) == len(labels) == len(margins) == len(indices):
        node.fail(f"{subject}.letters", "and the other columns differ in length")
    try:
        numbers = [float(margin) if margin else None for margin in margins]
    except ValueError:
        node.fail(f"{subject}.margins", "holds what is no number")
    ids = [f"{subject}/{index}" for index in indices]
    return list(zip(ids, letters, argmax, labels, numbers, strict=True))


def _check_rows(ids: Sequence[str], **columns: Sequence[object] | None) -> None:
    for name, column in columns.items():
        if column is not None and len(column) != len(ids):
            raise BaselineError(f"answers: {len(column)} {name} for {len(ids)} questions")
    if len(set(ids)) != len(ids):
        twice = next(name for name in ids if list(ids).count(name) > 1)
        raise BaselineError(f"answers: question {twice} stands twice")


class Asked(Protocol):
    """What has a number of choices (``mmlu.Prompt``)."""

    @property
    def choices(self) -> int:
        """How many."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What an engine answered: one row per question, in prompt order.

    ``argmax_letter`` holds :func:`full_vocab_letter` of the arg-max token, ``labels`` the right
    letters (None where there are none), both as one character per question. Of a task that is
    scored by continuation, see :func:`of_continuations`.
    """

    ids: tuple[str, ...]
    # (n, 4 to 10); NaN where an engine tells none, and behind a question's last choice.
    letter_logits: npt.NDArray[np.float32]
    argmax: npt.NDArray[np.int64]  # (n,), over the full vocabulary; -1 where it is not told
    argmax_letter: str
    labels: str | None
    shots: tuple[int, ...]
    # (n,): what a dtype's rounding is a share of; None where the engine does not tell
    scales: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        """Refuse rows that do not match, and a question that is answered twice."""
        n = len(self.ids)
        lengths = {len(self.argmax), len(self.argmax_letter), len(self.shots)}
        if self.scales is not None:
            lengths.add(len(self.scales))
        if self.labels is not None:
            lengths.add(len(self.labels))
        shape = self.letter_logits.shape
        if lengths != {n} or shape not in [(n, most) for most in range(4, len(LETTERS) + 1)]:
            raise DataError(
                f"answers do not match: {n} ids, {len(self.argmax)} arg-maxes, letter logits of "
                f"shape {shape}; expected one row of 4 to {len(LETTERS)} logits per id"
            )
        if len(set(self.ids)) != n:
            twice = statistics.mode(self.ids)
            raise DataError(f"question {twice} is answered twice; expected each id once")

    @property
    def rounding_scales(self) -> npt.NDArray[np.float32]:
        """Per question, what a dtype's rounding is a share of.

        The largest logit of the vocabulary, without sign: all are sums over one hidden state, whose
        errors do not care whether the letters' are small (of random weights, they are). Of a
        continuation, see ``engine.MeasuredEngine.read_score``. Where none is told: of the letters'.
        """
        if self.scales is not None:
            return self.scales
        told: npt.NDArray[np.float32] = np.where(
            np.isnan(self.letter_logits), np.float32(0), np.abs(self.letter_logits)
        ).max(axis=1)
        return told

    def letters(self) -> str:
        """Return the arg-max of the letters per question: ties to the first, none told to '-'."""
        none = np.isnan(self.letter_logits).all(axis=1)
        best = np.where(none, len(LETTERS), self._comparable.argmax(axis=1)).tolist()
        return "".join((LETTERS + NO_LETTER)[i] for i in best)

    @property
    def has_logits(self) -> bool:
        """Whether the engine told letter logits."""
        return not np.isnan(self.letter_logits).all(axis=1).any()

    def margins(self) -> tuple[float, ...] | None:
        """Return the best minus the second-best letter logit; None where an engine tells none."""
        if not self.has_logits:
            return None
        ordered = np.sort(self._comparable, axis=1)
        return tuple(map(float, ordered[:, -1] - ordered[:, -2]))

    @property
    def _comparable(self) -> npt.NDArray[np.float32]:
        return np.where(np.isnan(self.letter_logits), np.float32("-inf"), self.letter_logits)

    def merge(self, other: Answers) -> Answers:
        """Return both sets of answers; DataError where they share a question."""
        return union([self, other])


def union(parts: Sequence[Answers]) -> Answers:
    """Return all answers, in the order of the parts; DataError where two share a question."""
    some = [part for part in parts if part.ids]
    if not some:
        return no_answers()
    most = max(part.letter_logits.shape[1] for part in some)
    labels = [part.labels for part in some]
    if None in labels and any(label is not None for label in labels):
        raise DataError("answers with labels do not merge with answers without")
    return Answers(
        ids=tuple(name for part in some for name in part.ids),
        letter_logits=np.concatenate([_wide(part.letter_logits, most) for part in some]),
        argmax=np.concatenate([part.argmax for part in some]),
        argmax_letter="".join(part.argmax_letter for part in some),
        labels=None if None in labels else "".join(label for label in labels if label),
        shots=tuple(shots for part in some for shots in part.shots),
        scales=None
        if all(part.scales is None for part in some)
        else np.concatenate([part.rounding_scales for part in some]),
    )


def letter_table(prompts: Sequence[Asked]) -> npt.NDArray[np.float32]:
    """Return letter logits of no engine yet, as wide as the most choices of ``prompts``."""
    most = max((4, *(prompt.choices for prompt in prompts)))
    return np.full((len(prompts), most), np.nan, np.float32)


def of_continuations(
    sums: Sequence[float], scales: Sequence[float], lengths: Sequence[int], normalised: bool
) -> tuple[Sequence[float], str, float]:
    """Return what stands for ``letter_logits``, ``argmax_letter`` and ``scales`` of a question.

    A choice's score is the sum of its tokens' log-probabilities, divided by its length where the
    task is ``normalised``; the letter is that of the best choice by the other of the two (``acc``
    and ``acc_norm`` of lm-evaluation-harness). ``scales`` are those of the sums
    (``engine.MeasuredEngine.read_score``).
    """
    by_length = [total / length for total, length in zip(sums, lengths, strict=True)]
    own, other = (by_length, sums) if normalised else (sums, by_length)
    divided = lengths if normalised else [1] * len(lengths)
    scale = max(scale / by for scale, by in zip(scales, divided, strict=True))
    return own, LETTERS[int(np.argmax(other))], scale


def _wide(logits: npt.NDArray[np.float32], most: int) -> npt.NDArray[np.float32]:
    more = ((0, 0), (0, most - logits.shape[1]))
    return np.pad(logits, more, constant_values=np.nan)


def full_vocab_letter(decoded: str, choices: int) -> str:
    """Return the letter that a decoded arg-max token counts as, '-' for none.

    As published for MMLU: keep the letters of the choices and compare with the label. So " A" is A,
    but " Because" is B too, and "CD" is no letter.
    """
    kept = "".join(character for character in decoded if character in LETTERS[:choices])
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
        scales=None if answers.scales is None else answers.scales[rows],
    )


def no_answers() -> Answers:
    """Answers to no question."""
    return Answers((), np.empty((0, 4), np.float32), np.empty(0, np.int64), "", "", ())
