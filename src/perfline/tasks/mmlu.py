"""What is asked, in which words and in which tokens?

CSVs -> ``Question`` -> ``Prompt`` -> (an engine) -> ``answers.Answers``. The prompt is that of
Hendrycks et al. (https://github.com/hendrycks/test, ``evaluate.py``), bit for bit, two spaces after
"about" included. A prompt that is too long drops whole shots from the front, one question at a
time. (The published code cut its text at blank lines; 61 questions hold one, and it would cut
inside them.)
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from perfline.cases.case import MmluSpec
from perfline.errors import DataError
from perfline.tasks.answers import LETTERS

Encode = Callable[[Sequence[str]], list[list[int]]]  # texts -> token ids, special tokens included
_BATCH = 512  # texts tokenised at a time: bounds the memory that the ids take as Python ints


@dataclass(frozen=True)
class Question:
    """One row of a subject's CSV, exactly as written: nothing is stripped."""

    subject: str
    index: int  # row in the CSV, from 0
    text: str
    choices: tuple[str, str, str, str]
    label: str  # in "ABCD"

    @property
    def id(self) -> str:
        """Return ``subject/index``."""
        return f"{self.subject}/{self.index}"


@dataclass(frozen=True)
class Subject:
    """A subject: ``dev`` holds the shots (the dev CSV's first ``few_shots`` rows)."""

    name: str
    dev: tuple[Question, ...]
    test: tuple[Question, ...]


@dataclass(frozen=True, eq=False)
class Prompt:
    """A question as token ids, ready for a forward."""

    id: str
    subject: str
    ids: npt.NDArray[np.int64]  # 1-D
    shots: int  # kept
    label: str | None  # None under --dummy-weights


def load_subjects(directory: Path, few_shots: int) -> tuple[Subject, ...]:
    """Read ``dev/*_dev.csv`` and ``test/*_test.csv`` below ``directory``, sorted by subject.

    Raise DataError, with file and line, on anything but rows of question, four choices, letter.
    """
    tests = sorted(
        (path.name.removesuffix("_test.csv"), path)
        for path in directory.glob("test/*_test.csv")
        if not path.name.startswith(".")  # macOS' ._ files in tars
    )
    if not tests:
        raise DataError(f"{directory / 'test'}: holds no *_test.csv; expected one per subject")
    return tuple(_load_subject(directory, name, path, few_shots) for name, path in tests)


def _load_subject(directory: Path, name: str, test_path: Path, few_shots: int) -> Subject:
    dev_path = directory / "dev" / f"{name}_dev.csv"
    if not dev_path.is_file():
        raise DataError(f"{dev_path}: is missing; subject '{name}' has {test_path} but no dev file")
    test = _read_csv(test_path, name)
    if not test:
        raise DataError(f"{test_path}: is empty; expected at least one question")
    dev = _read_csv(dev_path, name)
    if len(dev) < few_shots:
        raise DataError(f"{dev_path}: has {len(dev)} rows; expected at least {few_shots} shots")
    return Subject(name, dev[:few_shots], test)


def _read_csv(path: Path, subject: str) -> tuple[Question, ...]:
    """Read a headerless CSV as text: the choice "None" stays "None", "007" stays "007"."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        why = error.strerror
        raise DataError(f"{path}: cannot be read: {why}; expected a CSV file") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: is not UTF-8 (byte 0x{raw[error.start]:02x})") from error
    questions: list[Question] = []
    for line, row in _rows(path, text):
        if len(row) != 6:
            raise DataError(
                f"{path}:{line}: has {len(row)} columns; expected 6: question, four choices, letter"
            )
        if row[5] not in tuple(LETTERS):
            raise DataError(f"{path}:{line}: answer is '{row[5]}'; expected A, B, C or D")
        choices = (row[1], row[2], row[3], row[4])
        questions.append(Question(subject, len(questions), row[0], choices, row[5]))
    return tuple(questions)


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (physical line that the row starts on, cells); blank lines are skipped."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{line}: is not valid CSV: {error}") from error


def render_prompt(subject: Subject, question: Question, shots: int) -> str:
    """Return the prompt's text with the last ``shots`` of the subject's shots."""
    words = "".join(f" {word}" for word in subject.name.split("_"))
    kept = subject.dev[len(subject.dev) - shots :]
    return "".join(
        [
            f"The following are multiple choice questions (with answers) about {words}.\n\n",
            *(f"{_ask(shot)} {shot.label}\n\n" for shot in kept),
            _ask(question),
        ]
    )


def _ask(question: Question) -> str:
    choices = "".join(
        f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=True)
    )
    return f"{question.text}{choices}\nAnswer:"


def build_prompts(
    subjects: Iterable[Subject], encode: Encode, spec: MmluSpec, positions: int | None = None
) -> list[Prompt]:
    """Render and tokenise every test question, in the subjects' order.

    A prompt whose tokens and one more exceed ``spec.max_prompt_tokens`` drops shots from the front
    until it fits. DataError where none are left to drop, or where a prompt is longer than the
    model's ``positions``.
    """
    return [
        prompt
        for subject in subjects
        for prompt in _subject_prompts(subject, encode, spec.max_prompt_tokens, positions)
    ]


def _subject_prompts(
    subject: Subject, encode: Encode, max_tokens: int, positions: int | None
) -> list[Prompt]:
    done: dict[int, Prompt] = {}
    waiting = list(subject.test)
    for shots in range(len(subject.dev), -1, -1):
        texts = [render_prompt(subject, question, shots) for question in waiting]
        too_long = []
        for question, ids in zip(waiting, _encode_batches(encode, texts), strict=True):
            if len(ids) + 1 > max_tokens:
                too_long.append((question, len(ids)))
            else:
                done[question.index] = Prompt(question.id, subject.name, ids, shots, question.label)
        waiting = [question for question, _ in too_long]
        if not waiting:
            break
    if waiting:
        question, length = too_long[0]
        raise DataError(
            f"question {question.id}: {length} tokens without any shot; expected below "
            f"{max_tokens}: raise mmlu.max_prompt_tokens"
        )
    for prompt in done.values():
        if positions is not None and len(prompt.ids) > positions:
            raise DataError(
                f"question {prompt.id}: {len(prompt.ids)} tokens; the model has {positions} "
                f"positions: set mmlu.max_prompt_tokens to {positions} or below"
            )
    return [done[question.index] for question in subject.test]


def _encode_batches(encode: Encode, texts: Sequence[str]) -> Iterator[npt.NDArray[np.int64]]:
    for start in range(0, len(texts), _BATCH):
        for ids in encode(texts[start : start + _BATCH]):
            yield np.asarray(ids, dtype=np.int64)


def hf_encode(tokenizer: Any, bos: bool | Literal["tokenizer"]) -> Encode:
    """Return the batch encoder of a Hugging Face tokenizer.

    ``bos`` is False: no special tokens; True: exactly one BOS in front and no other; "tokenizer":
    whatever the tokenizer adds by itself (which has changed between releases of one model).
    """
    if bos is True and tokenizer.bos_token_id is None:
        raise DataError(
            f"{tokenizer.name_or_path}: the tokenizer has no BOS token; set model.bos to false"
        )
    front = [int(tokenizer.bos_token_id)] if bos is True else []

    def encode(texts: Sequence[str]) -> list[list[int]]:
        rows = tokenizer(
            list(texts),
            add_special_tokens=bos == "tokenizer",
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # "longer than the maximum length" is this module's to say
        )["input_ids"]
        return [front + row for row in rows]

    return encode


def letter_tokens(encode: Encode) -> tuple[int, int, int, int]:
    """Return the tokens that answer A, B, C, D: each the one that follows "Answer:".

    Found by tokenising "Answer: A", never by a fixed id or position. DataError where a letter is
    not exactly one more token, or two letters share theirs.
    """
    stem, *answers = encode(["Answer:", *(f"Answer: {letter}" for letter in LETTERS)])
    for letter, ids in zip(LETTERS, answers, strict=True):
        if len(ids) != len(stem) + 1 or ids[:-1] != stem:
            raise DataError(
                f"no letter token for '{letter}': 'Answer:' is {stem}, 'Answer: {letter}' is "
                f"{ids}; expected one more token (does the tokenizer append an EOS? try model.bos)"
            )
    a, b, c, d = (ids[-1] for ids in answers)
    if len({a, b, c, d}) != 4:
        raise DataError(f"no letter token of its own: A, B, C, D are {a}, {b}, {c}, {d}")
    return a, b, c, d


def question_set_digest(subjects: Iterable[Subject]) -> str:
    """Return ``sha256:`` and 16 hex digits over every shot and question, labels included."""
    rows = [
        [part, q.subject, q.index, q.text, *q.choices, q.label]
        for subject in subjects
        for part, questions in (("dev", subject.dev), ("test", subject.test))
        for q in questions
    ]
    canonical = json.dumps(rows, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"


def stratified_sample(lengths: Sequence[int], n: int) -> list[int]:
    """Return ``n`` indices that stand for all ``lengths``: the same ones every time.

    Sorted by length (ties by index) and cut into ``n`` equal strata, each gives its middle one.
    The indices come back ascending; all of them where ``n`` is no smaller than their number.
    """
    if n < 1:
        raise ValueError(f"a sample of {n} prompts; expected at least 1")
    total = len(lengths)
    if n >= total:
        return list(range(total))
    order = np.argsort(np.asarray(lengths), kind="stable")
    return sorted(int(order[(2 * stratum + 1) * total // (2 * n)]) for stratum in range(n))
