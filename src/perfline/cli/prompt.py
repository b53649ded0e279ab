"""What exactly is a model asked? ``perfline prompt CASE TASK/SUBJECT/INDEX``.

The prompt's text goes to stdout byte for byte, what is known of it to stderr. Only the tokenizer is
loaded, never the model.
"""

from __future__ import annotations

import difflib
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from perfline.cases import data
from perfline.cases.case import Case
from perfline.errors import DataError, clip
from perfline.tasks import prompts
from perfline.tasks import task as tasks
from perfline.tasks.answers import LETTERS
from perfline.tasks.prompts import Question, Subject
from perfline.tasks.task import Task


def prompt(
    case: Case,
    asked: str,
    index: int | None,
    data_dir: Path | None,
    mmlu_dir: Path | None,
    as_ids: bool,
) -> int:
    """Print one prompt's text, or with ``as_ids`` its token ids, as the suite would ask it.

    ``asked`` is the question's TASK/SUBJECT/INDEX, without a task of the case's first; or, with an
    ``index``, the subject alone.
    """
    task, subject, index = _named(case, asked, index)
    weights = data.find_weights(case, data_dir)
    if mmlu_dir is not None:
        rows = data.find_mmlu(case, data_dir, mmlu_dir)
    else:
        rows = tasks.find_rows(case, task, data_dir)
    chosen, question = _find(rows, case, task, subject, index)
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


def _named(case: Case, asked: str, index: int | None) -> tuple[Task, str, int]:
    """The task, subject and index that the command line names."""
    known = {task.name: task for task in tasks.tasks_of(case)}
    task = next(iter(known.values()))
    if index is not None and "/" not in asked:
        return task, asked, index
    asked = asked if index is None else f"{asked}/{index}"
    *named, subject, number = ["", *asked.split("/")]
    if len(named) > 2 or not subject or not re.fullmatch("[0-9]{1,9}", number):
        raise DataError(
            f"{clip(asked, 60)}: names no question; expected TASK/SUBJECT/INDEX, such as "
            f"{task.name}/anatomy/0"
        )
    if len(named) == 2:
        task = known[named[1]] if named[1] in known else tasks.load_task(named[1])
    return task, subject, int(number)


def _find(
    directory: Path, case: Case, task: Task, name: str, index: int
) -> tuple[Subject, Question]:
    shots = tasks.shots(case, task)
    subjects = {s.name: s for s in prompts.load_subjects(directory, shots, task)}
    if name not in subjects:
        near = difflib.get_close_matches(name, list(subjects), n=1, cutoff=0.0)
        raise DataError(
            f"{directory}: has no subject '{name}'; did you mean '{near[0]}'? "
            f"({len(subjects)} subjects)"
        )
    questions = subjects[name].test
    if not 0 <= index < len(questions):
        raise DataError(
            f"{directory}: subject '{name}' has no question {index}; expected 0 to "
            f"{len(questions) - 1}"
        )
    return subjects[name], questions[index]


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
