"""Were these questions tokenised before, by this very tokenizer?

Token ids of all prompts of a case, in one file in the user's cache directory
(``$XDG_CACHE_HOME/perfline``, else ``~/.cache/perfline``), named by a digest of tokenizer,
rendered texts, code and settings: another tokenizer or another prompt is another file. A file that
is broken, or cannot be written, costs the tokenising anew and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perfline.cases.case import Case
from perfline.tasks import prompts, task
from perfline.tasks.prompts import Continuation, Prompt, Subject, question_set_digest

_FORMAT = 2
_COLUMNS = ("ids", "ends", "shots", "normalised", "choices", "choice_ends", "lengths")
_NONE = np.empty(0, dtype=np.int64)
# A tokenizer is read from whatever of these there is: tokenizer.json, added_tokens.json, vocab.txt,
# tokenizer.model ...; config.json has the number of positions, which the prompts were checked by.
_READ = {".json", ".txt", ".model", ".vocab", ".bpe", ".tiktoken"}


def cached_prompts(
    case: Case,
    weights: Path,
    subjects: Sequence[Subject],
    build: Callable[[], list[Prompt]],
    folder: Path | None = None,
    continued: bool = False,
) -> list[Prompt]:
    """A task's prompts: from the cache, else from ``build``, whose prompts are then kept.

    ``continued``: letters are scored as continuations.
    """
    path = (folder or _cache_dir()) / f"prompts-{_digest(case, weights, subjects, continued)}.npz"
    questions = [question for subject in subjects for question in subject.test]
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            columns = {name: data[name] for name in _COLUMNS}
        return _restored(columns, subjects, len(questions))
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile):
        pass  # not there, or broken: it is made anew
    prompts = build()
    _keep(path, prompts)
    return prompts


def _restored(
    columns: Mapping[str, npt.NDArray[Any]], subjects: Sequence[Subject], n: int
) -> list[Prompt]:
    """The prompts of a file; ValueError, IndexError or StopIteration where it is of others."""
    rows = _split(columns["ids"], columns["ends"])
    pieces = _split(columns["choices"], columns["choice_ends"])
    told = zip(pieces, columns["lengths"].tolist(), strict=True)
    choices = [Continuation(ids, length) for ids, length in told]
    shots, normalised = columns["shots"].tolist(), columns["normalised"].tolist()
    if not len(rows) == len(shots) == len(normalised) == n:
        raise ValueError("a file of other questions")
    found: list[Prompt] = []
    at = 0
    for subject in subjects:
        for q in subject.test:
            count, number = len(q.choices), len(found)
            own = tuple(choices[at : at + count])
            if choices and len(own) != count:
                raise ValueError("a file of other choices")
            asked = (q.id, q.subject, rows[number], shots[number], q.label, count)
            found.append(Prompt(*asked, subject.task.name, own, normalised[number]))
            at += count
    if choices and at != len(choices):
        raise ValueError("a file of other choices")
    return found


def _split(ids: npt.NDArray[Any], ends: npt.NDArray[Any]) -> list[npt.NDArray[np.int64]]:
    if (int(ends[-1]) if len(ends) else 0) != len(ids):
        raise ValueError("a torn file")
    return np.split(ids.astype(np.int64), ends[:-1]) if len(ends) else []


def _keep(path: Path, prompts: Sequence[Prompt]) -> None:
    choices = [each for prompt in prompts for each in prompt.continuations]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            np.savez(
                file,
                ids=np.concatenate([prompt.ids for prompt in prompts]).astype(np.int32),
                ends=np.cumsum([len(prompt.ids) for prompt in prompts]),
                shots=np.array([prompt.shots for prompt in prompts], dtype=np.int16),
                normalised=np.array([prompt.normalised for prompt in prompts]),
                choices=np.concatenate([_NONE, *(each.ids for each in choices)]).astype(np.int32),
                choice_ends=np.cumsum([len(each.ids) for each in choices], dtype=np.int64),
                lengths=np.array([each.length for each in choices], dtype=np.int64),
            )
        Path(file.name).replace(path)
    except OSError:
        return  # a full or read-only home: the next run tokenises again


def _installed(name: str) -> str:
    """A distribution's version, and its files' digests: a local build may keep the version."""
    found = metadata.distribution(name)
    own = hashlib.sha256((found.read_text("RECORD") or "").encode()).hexdigest()
    return f"{found.version} {own[:16]}"


def _digest(case: Case, weights: Path, subjects: Sequence[Subject], continued: bool) -> str:
    said = {
        "format": _FORMAT,
        "bos": case.model.bos,
        "continued": continued,
        "few_shots": case.mmlu.few_shots,
        "max_prompt_tokens": case.mmlu.max_prompt_tokens,
        "questions": question_set_digest(subjects),
        "tokenizers": _installed("tokenizers"),
        "transformers": _installed("transformers"),
    }
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    # What a change of perfline's own code does to the prompts must be seen, not cached away: the
    # code goes in, and every text as it is rendered now.
    digest.update(Path(prompts.__file__).read_bytes() + Path(task.__file__).read_bytes())
    for subject in subjects:
        for question in subject.test:
            digest.update(prompts.render_prompt(subject, question, len(subject.dev)).encode())
    for path in sorted(weights.iterdir()):
        if path.suffix in _READ and path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _cache_dir() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(home) if home else Path.home() / ".cache") / "perfline"
    except RuntimeError:  # no HOME, and no account: nothing is found there, and nothing kept
        return Path(os.devnull) / "perfline"
