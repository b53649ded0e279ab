"""What is asked, in which words and in which tokens?

Rows -> ``Question`` -> ``Prompt`` -> (an engine) -> ``answers.Answers``, as a ``task.Task`` states
it. A prompt that is too long drops whole shots from the front, one question at a time. (MMLU's
published code cut its text at blank lines; 61 questions hold one, and it would cut inside them.)
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from perfline.cases.case import Case, MmluSpec
from perfline.errors import DataError, clip
from perfline.fields import did_you_mean
from perfline.tasks import rows
from perfline.tasks.answers import LETTERS, of_continuations
from perfline.tasks.rows import Place
from perfline.tasks.task import SUBJECT, Task, fill, load_task, scores, tasks_of

Ints = npt.NDArray[np.int64]
Encode = Callable[[Sequence[str]], list[list[int]]]  # texts -> token ids, special tokens included
_BATCH = 512  # texts tokenised at a time: bounds the memory that the ids take as Python ints


@dataclass(frozen=True)
class Question:
    """One row, as its task reads it: of MMLU's nothing is stripped."""

    subject: str
    index: int  # among the subject's rows, from 0
    text: str
    choices: tuple[str, ...]  # 2 to 10
    label: str  # "A" for the first choice, to "J"
    row_id: str | None = None  # the row's own, where the task names a column for it

    @property
    def id(self) -> str:
        """Return ``subject/index``."""
        return f"{self.subject}/{self.index}"


@dataclass(frozen=True)
class Subject:
    """A subject of a task: ``dev`` holds the shots (the first ``few_shots`` rows of their file)."""

    name: str
    dev: tuple[Question, ...]
    test: tuple[Question, ...]
    task: Task = field(default_factory=lambda: load_task("mmlu"))


@dataclass(frozen=True, eq=False)
class Continuation:
    """A choice as it follows a prompt: its token ids, and its length in characters or bytes."""

    ids: Ints  # 1-D
    length: int


@dataclass(frozen=True, eq=False)
class Prompt:
    """A question as token ids, ready for a forward.

    Where its choices are scored as ``continuations``, each is a forward of its own (``rows``): the
    prompt and all tokens of the choice but the last, since a token's log-probability is read at the
    position before it. ``targets`` are the tokens that are scored at such a row's last positions.
    """

    id: str
    subject: str
    ids: Ints  # 1-D
    shots: int  # kept
    label: str | None  # None under --dummy-weights
    choices: int = 4
    task: str = "mmlu"
    continuations: tuple[Continuation, ...] = ()
    normalised: bool = False  # the answer is the best by length
    targets: Ints | None = None

    @property
    def rows(self) -> tuple[Prompt, ...]:
        """What is run to answer it: itself, or a row for each continuation."""
        if not self.continuations:
            return (self,)
        return tuple(
            replace(
                self,
                ids=np.concatenate([self.ids, choice.ids[:-1]]),
                continuations=(),
                targets=choice.ids,
            )
            for choice in self.continuations
        )

    @property
    def tail(self) -> int:
        """At how many of a row's last positions logits are needed."""
        return 1 if self.targets is None else len(self.targets)

    @property
    def tokens(self) -> int:
        """Of all its rows, as if each were run by itself."""
        more = sum(len(choice.ids) - 1 for choice in self.continuations)
        return len(self.ids) * max(1, len(self.continuations)) + more

    def scored(self, found: Sequence[tuple[float, float]]) -> tuple[Sequence[float], str, float]:
        """``answers.of_continuations`` of (score, scale) of each of its rows."""
        sums, scales = zip(*found, strict=True)
        lengths = [choice.length for choice in self.continuations]
        return of_continuations(sums, scales, lengths, self.normalised)


def load_subjects(
    directory: Path, few_shots: int | None = None, task: Task | None = None
) -> tuple[Subject, ...]:
    """Read a task's rows below ``directory``, sorted by subject; without a task, those of MMLU.

    ``few_shots`` are the task's own where none are given. Raise DataError, with file and row, on
    anything but rows as the task states them.
    """
    task = load_task("mmlu") if task is None else task
    shots = task.shots if few_shots is None else few_shots
    files = _files(directory, task)
    tests = {path for paths in files.values() for path in paths}
    if task.data.sha256:
        paths = (*tests, *_shots(directory, task))
        names = {path.relative_to(directory).as_posix() for path in paths}
        for name in task.data.sha256.keys() - names:
            raise DataError(
                f"{task.file}: data.sha256 names {clip(name, 60)}, which is no file of questions "
                f"or shots in {directory}{did_you_mean(name, names)}"
            )
    reader = _Reader(directory, task, tests)
    if SUBJECT in task.data.test:
        return tuple(
            Subject(name, reader.shots(name, shots, path), reader.test(path, name), task)
            for name, (path,) in files.items()
        )
    by_subject: dict[str, list[Question]] = {}
    for path in files[task.name]:
        for question in reader.test(path, None):
            by_subject.setdefault(question.subject, []).append(question)
    return tuple(
        Subject(name, reader.shots(name, shots, files[task.name][0]), tuple(questions), task)
        for name, questions in sorted(by_subject.items())
    )


def data_digest(directory: Path, task: Task) -> str:
    """Return the sha256 of a task's file; of several, that of their sums (``rows.sums_digest``)."""
    found = [path for paths in _files(directory, task).values() for path in paths]
    if task.shots:
        found += _shots(directory, task)
    if len(found) == 1:
        return rows.file_digest(found[0])
    return rows.sums_digest({path.relative_to(directory).as_posix(): path for path in found})


def _shots(directory: Path, task: Task, subject: str = "*") -> list[Path]:
    """The files of shots, of all subjects; ``subject`` is a pattern."""
    pattern = task.data.shots
    return [] if pattern is None else sorted(directory.glob(pattern.replace(SUBJECT, subject)))


def _files(directory: Path, task: Task) -> dict[str, list[Path]]:
    """The files of test rows by subject, sorted; all by the task's name where none is a subject's.

    A subject is what stands for ``{subject}`` in a file's path.
    """
    pattern = task.data.test
    places = sorted(
        path
        for path in directory.glob(pattern.replace(SUBJECT, "*"))
        if not path.name.startswith(".")  # macOS' ._ files in tars
    )
    if not places:
        parent, _, name = pattern.replace(SUBJECT, "*").rpartition("/")
        per = " per subject" if SUBJECT in pattern else ""
        raise DataError(f"{directory / parent}: holds no {name}; expected one{per}")
    if SUBJECT not in pattern:
        return {task.name: places}
    front, back = (re.escape(part).replace(r"\*", "[^/]*") for part in pattern.split(SUBJECT))
    named = re.compile(f"{front}([^/]+){back}")
    found = {}
    for path in places:
        match = named.fullmatch(path.relative_to(directory).as_posix())
        if match is None:
            continue
        if task.subjects and match[1] not in task.subjects:
            raise DataError(f"{path}: '{match[1]}' is none of the subjects of {task.file.name}")
        found[match[1]] = [path]
    return dict(sorted(found.items()))


class _Reader:
    """Rows -> questions, for one task; what no row by itself tells is checked, too."""

    def __init__(self, directory: Path, task: Task, tests: Set[Path]) -> None:
        self._directory, self._task, self._tests = directory, task, tests
        self._ids: dict[str, str] = {}  # the rows' own, and where they stand
        self._first: tuple[int, str] | None = None  # number of choices, and where

    def test(self, path: Path, subject: str | None) -> tuple[Question, ...]:
        """The questions of one file; ``subject`` is None where rows say theirs."""
        found: list[Question] = []
        counts: Counter[str] = Counter()
        for place in self._rows(path):
            name = self._subject(place) if subject is None else subject
            row_id = self._row_id(place)
            found.append(replace(self._question(place, name, counts[name]), row_id=row_id))
            counts[name] += 1
        if not found:
            raise DataError(f"{path}: is empty; expected at least one question")
        return tuple(found)

    def shots(self, subject: str, few_shots: int, test_path: Path) -> tuple[Question, ...]:
        """The first rows of the file of shots."""
        pattern = self._task.data.shots
        if pattern is None:
            if few_shots:
                raise DataError(
                    f"{self._task.file}: {few_shots} shots are asked, and data.shots names no "
                    "file; name one, or set shots: 0"
                )
            return ()
        found = _shots(self._directory, self._task, glob.escape(subject))
        if not found:
            path = self._directory / pattern.replace(SUBJECT, subject)
            raise DataError(
                f"{path}: is missing; subject '{subject}' has {test_path} but no {path.parent.name}"
                " file"
            )
        if few_shots and (told := sorted(self._tests & set(found))):
            raise DataError(
                f"{told[0]}: holds the questions, and data.shots of {self._task.file.name} takes "
                "it, too: a shot would tell a question's answer; name another file, or set shots: 0"
            )
        places = [place for path in found for place in self._rows(path)]
        if len(places) < few_shots:
            raise DataError(
                f"{found[-1]}: has {len(places)} rows; expected at least {few_shots} shots"
            )
        return tuple(
            self._question(place, subject, index) for index, place in enumerate(places[:few_shots])
        )

    def _rows(self, path: Path) -> Iterator[Place]:
        return rows.read_rows(path, path.relative_to(self._directory), self._task.data)

    def _question(self, place: Place, subject: str, index: int) -> Question:
        task, where = self._task, place.where
        names = dict.fromkeys(name for key, name in task.columns() if key == "question")
        values = {n: task.cleaned(n, self._text(place, "question", n)) for n in names}
        text = task.cleaned("question", fill(task.question, values))
        if isinstance(task.choices, str):
            held = self._texts(place, "choices", task.choices)
        else:
            held = tuple(self._text(place, "choices", name) for name in task.choices)
        choices = tuple(task.cleaned("choices", choice) for choice in held)
        self._check_choices(where, choices)
        if not task.lenient and not text.strip():
            raise DataError(f"{where}: the question is empty")
        return Question(subject, index, text, choices, self._label(place, len(choices)))

    def _check_choices(self, where: str, choices: Sequence[str]) -> None:
        task, n = self._task, len(choices)
        if not task.least <= n <= task.most:
            raise DataError(f"{where}: has {n} choices; expected {task.least} to {task.most}")
        self._first = self._first or (n, where)
        if task.choice_count is None and self._first[0] != n:
            raise DataError(
                f"{where}: has {n} choices where {self._first[1]} has {self._first[0]}; where "
                f"their number varies, {task.file.name} says so: choice_count: [least, most]"
            )
        if task.lenient:
            return
        for i, choice in enumerate(choices):
            if not choice.strip():
                raise DataError(f"{where}: choice {LETTERS[i]} is missing: it is empty")
            if choice in choices[:i]:
                first = LETTERS[choices.index(choice)]
                raise DataError(
                    f"{where}: choices {first} and {LETTERS[i]} are both {clip(repr(choice), 60)}"
                )

    def _label(self, place: Place, n: int) -> str:
        """The letter of the right choice."""
        task = self._task
        answer = self._value(place, "answer", task.answer)
        letters: Sequence[object] = tuple(LETTERS[:n])
        if task.answer_is == "index":
            letters = range(n)
            if isinstance(answer, str) and re.fullmatch(r"[0-9]{1,9}", answer):
                answer = int(answer)
        elif task.answer_is == "label":
            assert task.labels is not None
            letters = self._texts(place, "labels", task.labels)
            if len(letters) != n or len(set(letters)) != n:
                told = clip(", ".join(map(str, letters)), 60)
                raise DataError(f"{place.where}: {n} choices have the labels {told}")
        if isinstance(answer, bool) or answer not in letters:
            *most, last = map(str, letters)
            raise DataError(
                f"{place.where}: answer is {clip(repr(answer), 60)}; "
                f"expected {', '.join(most)} or {last}"
            )
        return LETTERS[letters.index(answer)]

    def _subject(self, place: Place) -> str:
        if self._task.subject is None:
            return self._task.name
        text = self._text(place, "subject", self._task.subject)
        name = re.sub(r"\W+", "_", text.strip().lower()).strip("_")
        if not name:
            raise DataError(f"{place.where}: the subject is empty")
        return name

    def _row_id(self, place: Place) -> str | None:
        if self._task.id is None:
            return None
        found = self._value(place, "id", self._task.id)
        if not isinstance(found, str | int) or not str(found).strip():
            raise DataError(f"{place.where}: id is {clip(repr(found), 60)}; expected text")
        if (other := self._ids.setdefault(str(found), place.where)) != place.where:
            raise DataError(f"{place.where}: id {clip(repr(found), 60)} stands at {other}, too")
        return str(found)

    def _text(self, place: Place, key: str, column: str) -> str:
        found = self._value(place, key, column)
        if not isinstance(found, str):
            told = clip(repr(found), 60)
            raise DataError(f"{place.where}: column '{column}' holds {told}; expected text")
        return found

    def _texts(self, place: Place, key: str, column: str) -> tuple[str, ...]:
        found = self._value(place, key, column)
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            told = clip(repr(found), 60)
            raise DataError(f"{place.where}: column '{column}' holds {told}; expected texts")
        return tuple(found)

    def _value(self, place: Place, key: str, column: str) -> object:
        if column not in place.row:
            known = clip(", ".join(map(str, place.row)))
            raise DataError(
                f"{place.where}: has no column '{clip(column, 60)}', which {self._task.file.name} "
                f"names under '{key}' (columns: {known})"
            )
        return place.row[column]


def render_prompt(subject: Subject, question: Question, shots: int) -> str:
    """Return the prompt's text with the last ``shots`` of the subject's shots."""
    task = subject.task
    kept = subject.dev[len(subject.dev) - shots :]
    return "".join(
        [
            fill(task.description, {"subject": task.subject_words(subject.name)}),
            *(f"{task.ask(s.text, s.choices)} {_right(task, s)}{task.separator}" for s in kept),
            task.ask(question.text, question.choices),
        ]
    )


def _right(task: Task, shot: Question) -> str:
    return task.answers(shot.choices)[LETTERS.index(shot.label)]


def build_prompts(
    subjects: Iterable[Subject],
    encode: Encode,
    spec: MmluSpec,
    positions: int | None = None,
    continued: bool = False,
) -> list[Prompt]:
    """Render and tokenise every test question, in the subjects' order.

    A prompt that with its answer (a letter is one token) exceeds ``spec.max_prompt_tokens`` drops
    shots from the front until it fits. ``continued`` scores letters as continuations, too.
    DataError where none are left to drop, or where a prompt is longer than the model's
    ``positions``.
    """
    return [
        prompt
        for subject in subjects
        for prompt in _subject_prompts(
            subject, encode, spec.max_prompt_tokens, positions, continued
        )
    ]


def _subject_prompts(
    subject: Subject, encode: Encode, max_tokens: int, positions: int | None, continued: bool
) -> list[Prompt]:
    done: dict[int, Prompt] = {}
    waiting, task = list(subject.test), subject.task
    continued = continued or task.score == "continuation"
    for shots in range(len(subject.dev), -1, -1):
        texts = [render_prompt(subject, question, shots) for question in waiting]
        prompts = [
            Prompt(q.id, subject.name, ids, shots, q.label, len(q.choices), task.name)
            for q, ids in zip(waiting, _encode_batches(encode, texts), strict=True)
        ]
        if continued:
            prompts = _continued(task, waiting, texts, prompts, encode)
        too_long = []
        for question, prompt in zip(waiting, prompts, strict=True):
            length = max(len(row.ids) for row in prompt.rows)
            if length + 1 > max_tokens:
                too_long.append((question, length))
            else:
                done[question.index] = prompt
        waiting = [question for question, _ in too_long]
        if not waiting:
            break
    if waiting:
        question, length = too_long[0]
        raise DataError(
            f"question {question.id} of task '{task.name}': {length} tokens without any shot"
            f"{', its longest choice among them' if continued else ''}; expected below "
            f"{max_tokens}: raise mmlu.max_prompt_tokens"
        )
    for prompt in done.values():
        length = max(len(row.ids) for row in prompt.rows)
        if positions is not None and length > positions:
            raise DataError(
                f"question {prompt.id}: {length} tokens; the model has {positions} "
                f"positions: set mmlu.max_prompt_tokens to {positions} or below"
            )
    return [done[question.index] for question in subject.test]


def _continued(
    task: Task,
    questions: Sequence[Question],
    texts: Sequence[str],
    prompts: Sequence[Prompt],
    encode: Encode,
) -> list[Prompt]:
    """The prompts with what may follow each: what a text has more tokens with it than without.

    As lm-evaluation-harness splits them (``api/model.py``: ``_encode_pair``): blanks at a prompt's
    end are the choice's.
    """
    answers = [task.answers(question.choices) for question in questions]
    whole = iter(
        _encode_batches(
            encode,
            [f"{text} {each}" for text, of in zip(texts, answers, strict=True) for each in of],
        )
    )
    bare = prompts
    if any(text != text.rstrip() for text in texts):
        stripped = _encode_batches(encode, [text.rstrip() for text in texts])
        bare = [replace(prompt, ids=ids) for prompt, ids in zip(prompts, stripped, strict=True)]
    found = []
    for question, prompt, of in zip(questions, bare, answers, strict=True):
        choices = tuple(_continuation(task, question, prompt, each, next(whole)) for each in of)
        if len(of) > 1 and len({tuple(each.ids.tolist()) for each in choices}) == 1:
            raise DataError(
                f"question {question.id} of task '{task.name}': all {len(of)} choices are the same "
                "tokens behind its prompt (does the tokenizer append an EOS? try model.bos: false)"
            )
        normalised = task.score == "continuation" and task.normalise != "none"
        found.append(replace(prompt, continuations=choices, normalised=normalised))
    return found


def _continuation(
    task: Task, question: Question, prompt: Prompt, answer: str, whole: Ints
) -> Continuation:
    own = whole[len(prompt.ids) :]
    length = task.length(answer) if task.score == "continuation" else 1
    if not len(own) or not length or not len(prompt.ids):
        raise DataError(
            f"question {question.id} of task '{task.name}': the choice {clip(repr(answer), 60)} "
            "adds no token to its prompt; expected text to score"
        )
    return Continuation(own, length)


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


def letter_tokens(encode: Encode, asked: str = "Answer:", choices: int = 4) -> tuple[int, ...]:
    """Return the tokens that answer A, B ...: each the one that follows ``asked``.

    Found by tokenising "Answer: A", never by a fixed id or position. DataError where a letter is
    not exactly one more token, or two letters share theirs.
    """
    letters = LETTERS[:choices]
    stem, *answers = encode([asked, *(f"{asked} {letter}" for letter in letters)])
    for letter, ids in zip(letters, answers, strict=True):
        if len(ids) != len(stem) + 1 or ids[:-1] != stem:
            raise DataError(
                f"no letter token for '{letter}': '{asked}' is {stem}, '{asked} {letter}' is "
                f"{ids}; expected one more token (does the tokenizer append an EOS? try model.bos)"
            )
    found = tuple(ids[-1] for ids in answers)
    if len(set(found)) != choices:
        told = f"{', '.join(letters)} are {', '.join(map(str, found))}"
        raise DataError(f"no letter token of its own: {told}")
    return found


def case_letters(case: Case, encode: Encode) -> tuple[tuple[int, ...] | None, dict[str, str]]:
    """Return the tokens that answer the case's tasks by letters, and by task why these do not.

    The letters of such a task are scored as continuations: where one of them is not one token
    behind the prompt, or is another than in the tasks before.
    """
    first: tuple[int, ...] = ()
    without: dict[str, str] = {}
    for task in tasks_of(case):
        if scores(case, task) == "continuation":
            continue
        try:
            found = letter_tokens(encode, task.stem, task.most)
        except DataError as why:
            without[task.name] = str(why)
            continue
        if any(a != b for a, b in zip(first, found, strict=False)):
            without[task.name] = f"its letters are the tokens {found}, not {first}"
        else:
            first = max(first, found, key=len)
    return first or None, without


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
