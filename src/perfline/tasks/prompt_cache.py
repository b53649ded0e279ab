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
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from perfline.cases.case import Case
from perfline.tasks import prompts, task
from perfline.tasks.prompts import Prompt, Subject, question_set_digest

_FORMAT = 1
# config.json for the number of positions, which the prompts were checked against.
_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def cached_prompts(
    case: Case,
    weights: Path,
    subjects: Sequence[Subject],
    build: Callable[[], list[Prompt]],
    folder: Path | None = None,
) -> list[Prompt]:
    """The case's prompts: from the cache, else from ``build``, whose prompts are then kept."""
    path = (folder or _cache_dir()) / f"prompts-{_digest(case, weights, subjects)}.npz"
    questions = [question for subject in subjects for question in subject.test]
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            ids, ends, shots = data["ids"], data["ends"], data["shots"]
        if len(ends) == len(shots) == len(questions) and int(ends[-1]) == len(ids):
            rows = np.split(ids.astype(np.int64), ends[:-1])
            return [
                Prompt(q.id, q.subject, row, int(kept), q.label, len(q.choices))
                for q, row, kept in zip(questions, rows, shots, strict=True)
            ]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # not there, or broken: it is made anew
    prompts = build()
    _keep(path, prompts)
    return prompts


def _keep(path: Path, prompts: Sequence[Prompt]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            np.savez(
                file,
                ids=np.concatenate([prompt.ids for prompt in prompts]).astype(np.int32),
                ends=np.cumsum([len(prompt.ids) for prompt in prompts]),
                shots=np.array([prompt.shots for prompt in prompts], dtype=np.int16),
            )
        Path(file.name).replace(path)
    except OSError:
        return  # a full or read-only home: the next run tokenises again


def _digest(case: Case, weights: Path, subjects: Sequence[Subject]) -> str:
    said = {
        "format": _FORMAT,
        "bos": case.model.bos,
        "few_shots": case.mmlu.few_shots,
        "max_prompt_tokens": case.mmlu.max_prompt_tokens,
        "questions": question_set_digest(subjects),
        "tokenizers": metadata.version("tokenizers"),
        "transformers": metadata.version("transformers"),
    }
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    # What a change of perfline's own code does to the prompts must be seen, not cached away: the
    # code goes in, and every text as it is rendered now.
    digest.update(Path(prompts.__file__).read_bytes() + Path(task.__file__).read_bytes())
    for subject in subjects:
        for question in subject.test:
            digest.update(prompts.render_prompt(subject, question, len(subject.dev)).encode())
    for name in _FILES:
        if (weights / name).is_file():
            digest.update(name.encode() + (weights / name).read_bytes())
    return digest.hexdigest()[:16]


def _cache_dir() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(home) if home else Path.home() / ".cache") / "perfline"
    except RuntimeError:  # no HOME, and no account: nothing is found there, and nothing kept
        return Path(os.devnull) / "perfline"
