"""Which fields do the messages of ``perfline compare`` have?

Each object of ``model`` as JSON (``..._json``) and back. What comes back is checked field by field:
a worker that sends something else is a WorkerError, never a number. A record's digest can be
computed, and a message sent, by anybody: numbers of both are held to the same limits.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from perfline.cases.case import WeightsKind
from perfline.compare.model import Ready, Round, Workload
from perfline.errors import DataError, WorkerError
from perfline.jsonfile import Node
from perfline.measure.notices import read_notices
from perfline.tasks.answers import Answers

LEAST, MOST = 1e-12, 1e30  # no measurement lies beyond, and what follows from one stays finite
_MOST_S = 1e12  # seconds: 30,000 years


def count(node: Node, key: str, least: int = 0) -> int:
    """Return a whole number, at least ``least``."""
    value = node.number(key)
    if not least <= value <= MOST or value != int(value):
        node.fail(key, f"is {value:g} (expected a whole number, at least {least})")
    return int(value)


def optional_count(node: Node, key: str) -> int | None:
    """Return the same, or None for null."""
    return None if node.optional_number(key) is None else count(node, key)


def positive(node: Node, key: str, most: float) -> float:
    """Return a number above 0 that is not absurd."""
    value = node.number(key)
    if not LEAST <= value <= most:
        node.fail(key, f"is {value:g} (expected a number above 0: {LEAST:g} to {most:g})")
    return value


def round_(node: Node) -> Round:
    """Return a timed round; seconds that are not positive are no measurement."""
    return Round(
        start_s=node.number("start_s"),
        tokens=count(node, "tokens", 1),
        core_s=positive(node, "core_s", _MOST_S),
        whole_s=positive(node, "whole_s", _MOST_S),
        waited_fraction=node.optional_number("waited_fraction"),
        joules=node.optional_number("joules") and positive(node, "joules", MOST),
        faults=node.texts("faults"),
        health=node.scalars("health"),
    )


def workload_json(workload: Workload) -> dict[str, object]:
    """``workload``, its paths absolute: a worker may stand in another directory."""
    return {
        **dataclasses.asdict(workload),
        "case_dirs": [str(path.absolute()) for path in workload.case_dirs],
        "data_dir": str(workload.data_dir.absolute()) if workload.data_dir else None,
    }


def workload(found: Node) -> Workload:
    """The inverse of ``workload_json``."""
    data_dir = found.optional_text("data_dir")
    return Workload(
        case=found.text("case"),
        case_dirs=tuple(map(Path, found.texts("case_dirs"))),
        data_dir=Path(data_dir) if data_dir else None,
        weights=cast("WeightsKind", _one_of(found, "weights", get_args(WeightsKind))),
        engine=found.text("engine"),
        questions=count(found, "questions"),
        ranks=count(found, "ranks") if "ranks" in found.data else 1,
    )


def ready_json(ready: Ready) -> dict[str, object]:
    """``ready`` as it is sent."""
    return {**dataclasses.asdict(ready), "others": [str(pid) for pid in ready.others]}


def ready(found: Node) -> Ready:
    """The inverse of ``ready_json``."""
    texts = ("device", "machine", "digest", "dtype", "prompts_digest")
    seconds = ("load_s", "compile_s", "warmup_s", "pass_s")
    counts = ("pid", "tokens", "graphs", "graph_breaks", "recompiles")
    values: dict[str, Any] = {name: found.text(name) for name in texts}
    values |= {name: found.number(name) for name in seconds}
    values |= {name: count(found, name) for name in counts}
    for name in ("context", "facts"):
        values[name] = {key: found.child(name).text(key) for key in found.child(name).data}
    # A project's ref that brings its own, older perfline tells no ranks, packages or notices.
    pids = found.texts("others") if "others" in found.data else ()
    if "packages" in found.data:
        told = found.child("packages")
        values["packages"] = {key: told.text(key) for key in told.data}
    return Ready(**values, others=tuple(map(int, pids)), notices=read_notices(found))


def round_json(done: Round) -> dict[str, object]:
    """``done`` as it is sent."""
    return dataclasses.asdict(done)


def answers_json(answers: Answers) -> dict[str, object]:
    """``answers`` as they are sent; float32 survives the way through decimal digits."""
    return {
        "ids": list(answers.ids),
        "letter_logits": [
            [None if math.isnan(x) else x for x in row] for row in answers.letter_logits.tolist()
        ],
        "argmax": answers.argmax.tolist(),
        "argmax_letter": answers.argmax_letter,
        "labels": answers.labels,
        "shots": list(answers.shots),
    }


def answers(found: Node) -> Answers:
    """The inverse of ``answers_json``."""
    labels = found.data.get("labels")
    letters = found.data.get("argmax_letter")
    if not isinstance(letters, str) or not isinstance(labels, str | None):
        found.fail("argmax_letter", "or 'labels' is no text")
    ids = found.texts("ids")
    try:
        return Answers(
            ids=ids,
            letter_logits=np.asarray(found.data["letter_logits"], np.float32).reshape(len(ids), 4),
            argmax=np.asarray(found.data["argmax"], dtype=np.int64),
            argmax_letter=letters,
            labels=labels,
            shots=tuple(map(int, cast("list[int]", found.data["shots"]))),
        )
    except (KeyError, TypeError, ValueError, DataError) as error:
        raise WorkerError(f"{found.file}: sent answers that are none: {error}") from error


def _one_of(found: Node, key: str, words: tuple[str, ...]) -> str:
    word = found.text(key)
    if word not in words:
        found.fail(key, f"is '{word}' (expected {' or '.join(words)})")
    return word
