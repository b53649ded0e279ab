"""What is a task: where are its rows, and how does a row become a question, a prompt and an answer?

One YAML file says it: YAML -> ``Task``. MMLU's is ``mmlu.yaml``, beside this module. There is no
code in such a file. A template names columns in braces and nothing else: no attribute, no index, no
format. The dataclasses below are the whole schema, by the rules of ``fields``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shlex
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from perfline.cases import data
from perfline.cases.case import Case, Scoring, read_yaml
from perfline.errors import CaseError, MissingData, clip
from perfline.fields import OUTSIDE, Node, did_you_mean
from perfline.tasks.answers import LETTERS

PACKAGED_TASKS = Path(__file__).parent
SUBJECT = "{subject}"  # in the names of files
_NAME = re.compile(r"[a-z][a-z0-9_]{0,29}")
_BRACKETS = re.compile(r"\[.*?\]")


def _without_brackets(text: str) -> str:
    """HellaSwag's text as lm-evaluation-harness cleans it (``tasks/hellaswag/utils.py``)."""
    return _BRACKETS.sub("", text.strip().replace(" [title]", ". ")).replace("  ", " ")


_CLEAN: Mapping[str, Callable[[str], str]] = {
    "strip": str.strip,
    "capitalize": str.capitalize,
    "brackets": _without_brackets,
}
Clean = Literal["strip", "capitalize", "brackets"]
Score = Literal["letters", "full-vocab", "continuation"]
_LENGTH: Mapping[str, Callable[[str], int]] = {
    "chars": len,
    "bytes": lambda text: len(text.encode("utf-8")),
}


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Where the rows are. ``{subject}`` in a file's name stands for each subject, ``*`` for any."""

    path: str = field(metadata={"relative": True})  # below the case's directory or --data-dir
    hub: str | None = None  # of a dataset in the local Hugging Face cache
    format: Literal["csv", "jsonl", "parquet", "datasets"] = "csv"
    # A list names the columns of a CSV without a header. A mapping gives a column another name, or
    # says where it is inside of one: "choices.text".
    columns: tuple[str, ...] | Mapping[str, str] | None = field(default=None, hash=False)
    test: str = field(metadata={"relative": True})
    shots: str | None = field(default=None, metadata={"relative": True})
    sha256: Mapping[str, str] = field(default_factory=dict, hash=False)  # of files, by name


@dataclass(frozen=True, kw_only=True)
class Task:
    """One multiple-choice task, as its YAML file states it."""

    name: str
    title: str = ""
    version: str | int | float
    source: str  # where it is published
    data: DataSpec
    id: str | None = None  # a column that is different in every row
    subject: str | None = None  # a column; without it a subject is a file
    subjects: Mapping[str, str] = field(default_factory=dict, hash=False)  # as prompts call them
    description: str = ""  # in front of everything; a template of {subject}
    question: str = "{question}"  # a template of columns
    choices: str | tuple[str, ...]  # a column with a list, or a column each
    choice_count: tuple[int, ...] | None = field(default=None, metadata={"ge": 2})  # least, most
    labels: str | None = None  # a column with the choices' own labels
    answer: str  # a column
    answer_is: Literal["letter", "index", "label"] = "letter"
    clean: Mapping[str, Clean] = field(default_factory=dict, hash=False)
    lenient: bool = False  # takes empty and doubled texts, as published
    prompt: str = "{question}\n{choices}\nAnswer:"  # of one question, without its answer
    separator: str = field(default="\n\n", metadata={"blank": True})  # behind every shot
    shots: int = 5
    score: Score = "letters"
    normalise: Literal["none", "chars", "bytes"] = "none"  # of continuations' log-probabilities
    file: Path = field(metadata=OUTSIDE, compare=False)

    def __post_init__(self) -> None:
        """Refuse what no type tells."""
        if not _NAME.fullmatch(self.name):
            raise CaseError(f"'name' is {clip(repr(self.name), 60)}; expected {_NAME.pattern}")
        for key, names in (("description", ["subject"]), ("prompt", ["question", "choices"])):
            for name in _names(key, getattr(self, key)):
                if name not in names:
                    known = " and ".join(f"{{{each}}}" for each in names)
                    raise CaseError(f"'{key}' names {{{clip(name, 60)}}}; expected {known} alone")
        by_letters = self.score != "continuation"
        for name in ("question", "choices") if by_letters else ("question",):
            if name not in _names("prompt", self.prompt):
                raise CaseError(f"'prompt' has no {{{name}}}")
        if by_letters and _names("prompt", self.prompt.rpartition("\n")[2]):
            raise CaseError("'prompt' ends in no line of words alone, such as 'Answer:'")
        if by_letters and self.normalise != "none":
            raise CaseError(
                f"'normalise' is {self.normalise}, and 'score' is {self.score}; it is for "
                "score: continuation"
            )
        _names("question", self.question)
        for key, files in (("data.test", self.data.test), ("data.shots", self.data.shots or "x")):
            if "**" in files or not Path(files).name or files.count(SUBJECT) > 1:
                raise CaseError(f"'{key}' is {clip(repr(files), 60)}; expected a file's name")
        for name, sum_ in self.data.sha256.items():
            if not re.fullmatch("[0-9a-f]{64}", sum_):
                told = f"'data.sha256' has {clip(repr(sum_), 80)} of {clip(name, 60)}"
                raise CaseError(f"{told}; expected 64 hex digits")
        if isinstance(self.choices, tuple) and not 2 <= len(self.choices) <= len(LETTERS):
            raise CaseError(
                f"'choices' names {len(self.choices)} columns; expected 2 to {len(LETTERS)}"
            )
        if self.choice_count is not None and not (
            len(self.choice_count) == 2 and 2 <= self.least <= self.most <= len(LETTERS)
        ):
            raise CaseError(
                f"'choice_count' is {list(self.choice_count)}; expected the least and the most, "
                f"from 2 to {len(LETTERS)}"
            )
        if self.answer_is == "label" and self.labels is None:
            raise CaseError("'answer_is' is label, and no column holds 'labels'")
        self._check_columns()

    def _check_columns(self) -> None:
        names = self.data.columns
        if names is None or not isinstance(names, tuple):
            return
        for key, wanted in self.columns():
            if wanted not in names:
                near = did_you_mean(wanted, names)
                known = near or f" (columns: {', '.join(names)})"
                raise CaseError(f"'{key}' names the column '{clip(wanted, 60)}'{known}")

    def columns(self) -> list[tuple[str, str]]:
        """(key, column) of every column that the task reads."""
        choices = (self.choices,) if isinstance(self.choices, str) else self.choices
        single = ("id", self.id), ("subject", self.subject), ("labels", self.labels)
        return [
            *(("question", name) for name in _names("question", self.question)),
            *(("choices", name) for name in choices),
            ("answer", self.answer),
            *((key, name) for key, name in single if name is not None),
        ]

    @property
    def least(self) -> int:
        """The least number of choices of a row."""
        return self._count[0]

    @property
    def most(self) -> int:
        """The largest number of choices of a row."""
        return self._count[1]

    @property
    def _count(self) -> tuple[int, int]:
        if self.choice_count is not None:
            return self.choice_count[0], self.choice_count[-1]
        if isinstance(self.choices, tuple):
            return len(self.choices), len(self.choices)
        return 2, len(LETTERS)

    def cleaned(self, name: str, text: str) -> str:
        """A column, ``question`` or one of the ``choices`` as the task cleans it."""
        return _CLEAN[self.clean[name]](text) if name in self.clean else text

    def subject_words(self, subject: str) -> str:
        """What prompts call a subject."""
        return self.subjects.get(subject, subject.replace("_", " "))

    @property
    def said(self) -> str:
        """The task's version, and a digest of all that its file says."""
        everything = {**dataclasses.asdict(self), "file": ""}
        digest = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
        return f"version {self.version}, sha256:{digest[:16]}"

    def answers(self, choices: Sequence[str]) -> tuple[str, ...]:
        """What may follow the prompt and a blank, by choice: its letter, or its own text."""
        return tuple(choices) if self.score == "continuation" else tuple(LETTERS[: len(choices)])

    def length(self, choice: str) -> int:
        """What a choice's log-probability is divided by where it is normalised (``acc_norm``)."""
        return _LENGTH["bytes" if self.normalise == "bytes" else "chars"](choice)

    @property
    def stem(self) -> str:
        """The prompt's last line, which a letter follows: ``Answer:``."""
        return fill(self.prompt.rpartition("\n")[2], {})

    def ask(self, question: str, choices: Iterable[str]) -> str:
        """One question as it is asked, without its answer."""
        lines = "\n".join(
            f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)
        )
        return fill(self.prompt, {"question": question, "choices": lines})


def _names(key: str, template: str) -> list[str]:
    """The names in a template; CaseError where it is none."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise CaseError(f"'{key}' is no template ({error}); write {{{{ for a brace") from error
    found = []
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        if spec or conversion or not name or set(name) & set(".[]{}"):
            shown = f"{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}"
            raise CaseError(
                f"'{key}' holds {clip(repr('{' + shown + '}'), 60)}; expected a column's name in "
                "braces and nothing else"
            )
        found.append(name)
    return found


def fill(template: str, values: Mapping[str, str]) -> str:
    """The text of a checked template; KeyError names a value that is not there."""
    return "".join(
        text + ("" if name is None else values[name])
        for text, name, _, _ in string.Formatter().parse(template)
    )


def packaged_tasks() -> dict[str, Path]:
    """The tasks that come with the package: ``{name: file}``, sorted."""
    return {path.stem: path for path in sorted(PACKAGED_TASKS.glob("[a-z]*.yaml"))}


@cache
def load_task(name: str) -> Task:
    """The packaged task of that name; CaseError."""
    known = packaged_tasks()
    if name not in known:
        raise CaseError(
            f"task '{clip(name, 60)}' is not known{did_you_mean(name, known)} "
            f"(known: {', '.join(known)}; one of your own is named by its file, 'my_task.yaml')"
        )
    return read_task(known[name])


def read_task(path: Path) -> Task:
    """Read one task's file; CaseError names file, key, what was found and what is valid."""
    node = Node(path, _included(path, ()), CaseError, by_hand=True)
    task = node.build(Task, file=path)
    if task.name != path.stem:
        raise CaseError(f"{path}: key 'name' is '{task.name}' (expected '{path.stem}', its file's)")
    return task


def _included(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """The keys of a file, those of the file that it includes among them where it has no others."""
    if path in above:
        raise CaseError(f"{path}: key 'include' leads back to this file")
    found = read_yaml(path, lines=True)
    if not isinstance(found, dict):
        raise CaseError(f"{path}: holds no mapping of keys to values")
    name = found.pop("include", None)
    if name is None:
        return found
    if not isinstance(name, str) or not name.endswith(".yaml") or Path(name).name != name:
        raise CaseError(f"{path}: key 'include' is {name!r:.60} (expected a file beside this one)")
    below = _included(path.with_name(name), (*above, path))
    return below | found


def tasks_of(case: Case) -> tuple[Task, ...]:
    """The tasks that a case asks, the first of them the one that throughput is timed over.

    CaseError for a file with the name of a packaged task: their answers would be held together.
    """
    folder = case.source.parent
    for name in case.tasks:
        if name.endswith(".yaml") and Path(name).stem in packaged_tasks():
            raise CaseError(
                f"{folder / name}: a task that comes with perfline has this name; give it another"
            )
    return tuple(
        read_task(folder / name) if name.endswith(".yaml") else load_task(name)
        for name in case.tasks
    )


def scoring(case: Case, word: str) -> Scoring:
    """How the answers ``word`` (``metrics.answered``) are scored; those of MMLU as the case says.

    Continuations are as letters here: of both the choice with the best score is the answer. So is
    a task that the case names no more.
    """
    _, _, name = word.partition("_")
    if name in ("", "mmlu"):
        return case.mmlu.scoring
    full = any(task.name == name and task.score == "full-vocab" for task in tasks_of(case))
    return "full-vocab" if full else "letters"


def measures(case: Case, name: str) -> dict[str, Scoring]:
    """Where a task's answers hold what lm-evaluation-harness calls ``acc`` and ``acc_norm``.

    ``raw``: the choice of the largest log-probability; ``norm``: that divided by its length. Empty
    where letters are scored.
    """
    for task in tasks_of(case):
        if task.name == name and task.score == "continuation":
            own, other = ("raw", "norm") if task.normalise == "none" else ("norm", "raw")
            return {own: "letters", other: "full-vocab"}
    return {}


def scores(case: Case, task: Task) -> Score:
    """What a case scores of a task: of MMLU as the case says."""
    return case.mmlu.scoring if task.name == "mmlu" else task.score


def shots(case: Case, task: Task) -> int:
    """How many shots a case asks of a task."""
    return case.mmlu.few_shots if task.name == "mmlu" else task.shots


def find_rows(case: Case, task: Task, data_dir: Path | None) -> Path:
    """Return the directory of a task's rows; MissingData, with the command that gets them.

    MMLU's is where the case says. Another's ``data.path`` is looked for below the case's directory,
    --data-dir, the task's own file, and last in the local Hugging Face cache.
    """
    if task.data.path == load_task("mmlu").data.path:
        return data.find_mmlu(case, data_dir)
    homes = [] if data_dir is None else [data_dir / case.model.case_dir, data_dir]
    for home in (*homes, task.file.parent):
        if (home / task.data.path).is_dir():
            return home / task.data.path
    cached = data.cached_dataset(task.data.hub) if task.data.hub else None
    if cached is not None:
        return cached
    target = (data_dir or Path("DATA_DIR")) / task.data.path
    command = (
        f"hf download --repo-type dataset {task.data.hub} --local-dir {shlex.quote(str(target))}"
        if task.data.hub
        else f"cp -r YOUR_QUESTIONS {shlex.quote(str(target))}"
    )
    at = data.place(target, data_dir)
    if task.file.parent != PACKAGED_TASKS:
        at = f"{task.file.parent / task.data.path}, or at {at}"
    raise MissingData(f"case {case.id}: no questions of task '{task.name}' at {at}", command)
