"""What exactly is a model asked? ``perfline prompt CASE TASK/SUBJECT/INDEX``, or ``TASK/ID``.

The prompt's text goes to stdout byte for byte, what is known of it to stderr. Only the tokenizer is
loaded, never the model.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from perfline.cases import data
from perfline.cases.case import Case
from perfline.errors import DataError, clip
from perfline.fields import did_you_mean
from perfline.tasks import prompts
from perfline.tasks import task as tasks
from perfline.tasks.answers import LETTERS
from perfline.tasks.prompts import Question, Subject
from perfline.tasks.task import Task

_Way = tuple[str, int] | str  # a subject and an index, or a row's own id
_NUMBERED = re.compile("[^/]+/[0-9]{1,9}")
_MOST_SHOWN = 600  # characters of a list of subjects


def prompt(
    case: Case,
    asked: str,
    index: int | None,
    data_dir: Path | None,
    mmlu_dir: Path | None,
    as_ids: bool,
) -> int:
    """Print one prompt's text, or with ``as_ids`` its token ids, as the suite would ask it.

    ``asked`` is the question's TASK/SUBJECT/INDEX, without a task of the case's first; or TASK/ID,
    by the row's own id; or, with an ``index``, the subject alone.
    """
    task, ways = _named(case, asked, index)
    weights = data.find_weights(case, data_dir)
    if mmlu_dir is not None:
        rows = data.find_mmlu(case, data_dir, mmlu_dir)
    else:
        rows = tasks.find_rows(case, task, data_dir)
    chosen, question = _find(rows, case, task, ways)
    encode = prompts.hf_encode(load_tokenizer(weights), case.model.bos)
    alone = Subject(chosen.name, chosen.dev, (question,), task)
    foreign = () if task.name in case.task_names else (task.name,)
    _, without = prompts.case_letters(replace(case, tasks=(*case.tasks, *foreign)), encode)
    continued = task.name in without
    (built,) = prompts.build_prompts([alone], encode, case.mmlu, continued=continued)
    if as_ids:
        sys.stdout.write(" ".join(map(str, built.ids)) + "\n")
    else:
        sys.stdout.flush()
        text = prompts.render_prompt(chosen, question, built.shots)
        sys.stdout.buffer.write(text.encode("utf-8"))  # no newline or encoding of its own
        sys.stdout.buffer.flush()
    print(
        f"\n{question.id}: {built.shots} of {len(chosen.dev)} shots kept, {len(built.ids)} tokens, "
        f"label {question.label}",
        file=sys.stderr,
    )
    if continued:
        print(f"letters are scored by continuation: {without[task.name]}", file=sys.stderr)
    texts = task.answers(question.choices) if built.continuations else ()
    for letter, text, choice in zip(LETTERS, texts, built.continuations, strict=False):
        ids = " ".join(map(str, choice.ids.tolist()))
        print(f"{letter}: {' ' + text!r}, tokens {ids}", file=sys.stderr)
    return 0


def _named(case: Case, asked: str, index: int | None) -> tuple[Task, list[_Way]]:
    """The task that the command line names, and which question, in the order of trying."""
    known = {task.name: task for task in tasks.tasks_of(case)}
    first = next(iter(known.values()))
    if index is not None and "/" not in asked:
        return first, [(asked, index)]
    asked = asked if index is None else f"{asked}/{index}"
    head, _, rest = asked.partition("/")
    numbered = _NUMBERED.fullmatch(asked)
    task = first
    ways: list[_Way] = [_way(asked)] if numbered else []
    if head in known or head in tasks.packaged_tasks() or _NUMBERED.fullmatch(rest):
        task = known[head] if head in known else tasks.load_task(head)
        ways = [way for way in ways if task is first]
        ways += [_way(rest)] if _NUMBERED.fullmatch(rest) else []
        ways += [rest] if task.id is not None and rest else []
    if not ways:
        raise DataError(
            f"{clip(asked, 60)}: names no question; expected TASK/SUBJECT/INDEX, such as "
            f"{first.name}/anatomy/0, or TASK/ID for a task whose rows have ids"
        )
    return task, ways


def _way(text: str) -> tuple[str, int]:
    subject, _, number = text.partition("/")
    return subject, int(number)


def _find(
    directory: Path, case: Case, task: Task, ways: Sequence[_Way]
) -> tuple[Subject, Question]:
    """The question, and its subject; DataError says what there is where none is named so."""
    shots = tasks.shots(case, task)
    subjects = {s.name: s for s in prompts.load_subjects(directory, shots, task)}
    rows = {q.row_id: (s, q) for s in subjects.values() for q in s.test}
    for way in ways:
        if isinstance(way, str):
            if way in rows:
                return rows[way]
        elif way[0] in subjects:
            return _at(directory, subjects[way[0]], way[1])
    first, last = ways[0], ways[-1]
    if isinstance(first, str) or (isinstance(last, str) and "/" not in last):
        hint = did_you_mean(str(last), filter(None, rows))
        raise DataError(
            f"{directory}: no row of task '{task.name}' has the id '{clip(str(last), 60)}'{hint}"
        )
    there = textwrap.shorten(", ".join(subjects), _MOST_SHOWN, placeholder=" ...")
    raise DataError(
        f"{directory}: has no subject '{first[0]}'{did_you_mean(first[0], subjects)} "
        f"({len(subjects)} subject{'s' * (len(subjects) > 1)}: {there})"
    )


def _at(directory: Path, subject: Subject, index: int) -> tuple[Subject, Question]:
    if not 0 <= index < len(subject.test):
        raise DataError(
            f"{directory}: subject '{subject.name}' has no question {index}; expected 0 to "
            f"{len(subject.test) - 1}"
        )
    return subject, subject.test[index]


def load_tokenizer(weights: Path) -> Any:
    """Return a checkpoint's tokenizer, without code of its own; DataError where it cannot be."""
    try:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            weights, trust_remote_code=False, local_files_only=True
        )
    except ImportError as error:
        raise DataError(f"{error}: install it with `pip install transformers`") from error
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{weights}: the tokenizer cannot be loaded: {first}") from error
