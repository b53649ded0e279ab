"""Which fields do the messages of ``perfline compare`` have?

Each object of ``model`` as JSON (``..._json``) and back. What comes back is checked field by field:
a worker that sends something else is a WorkerError, never a number. A record's digest can be
computed, and a message sent, by anybody: numbers of both are held to the same limits.
"""

from __future__ import annotations

import dataclasses
import math
from typing import cast

import numpy as np

from perfline.compare.model import Ready, Workload
from perfline.errors import DataError, WorkerError
from perfline.fields import Node, as_json
from perfline.tasks.answers import Answers


def workload_json(workload: Workload) -> dict[str, object]:
    """``workload``, its paths absolute: a worker may stand in another directory."""
    dirs = tuple(path.absolute() for path in workload.case_dirs)
    data = workload.data_dir.absolute() if workload.data_dir else None
    found: dict[str, object] = as_json(dataclasses.replace(workload, case_dirs=dirs, data_dir=data))
    return found


def ready_json(ready: Ready) -> dict[str, object]:
    """``ready`` as it is sent."""
    return {**as_json(ready), "others": [str(pid) for pid in ready.others]}


def ready(found: Node) -> Ready:
    """The inverse of ``ready_json``; an older perfline of a project's ref tells no ranks."""
    pids = found.texts("others") if "others" in found.data else ()
    if not all(pid.isdecimal() and len(pid) < 20 for pid in pids):
        found.fail("others", "are no numbers of processes")
    return found.build(Ready, others=tuple(map(int, pids)))


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
        "scales": None if answers.scales is None else answers.scales.tolist(),
    }


def answers(found: Node) -> Answers:
    """The inverse of ``answers_json``."""
    labels = found.data.get("labels")
    letters = found.data.get("argmax_letter")
    if not isinstance(letters, str) or not isinstance(labels, str | None):
        found.fail("argmax_letter", "or 'labels' is no text")
    ids = found.texts("ids")
    try:
        logits = cast("list[list[float | None]]", found.data["letter_logits"])
        width = len(logits[0]) if logits else 4
        scales = found.data.get("scales")  # an older perfline of a project's ref tells none
        return Answers(
            ids=ids,
            letter_logits=np.asarray(logits, np.float32).reshape(len(ids), width),
            argmax=np.asarray(found.data["argmax"], dtype=np.int64),
            argmax_letter=letters,
            labels=labels,
            shots=tuple(map(int, cast("list[int]", found.data["shots"]))),
            scales=None if scales is None else np.asarray(scales, np.float32).reshape(len(ids)),
        )
    except (KeyError, OverflowError, TypeError, ValueError, DataError) as error:
        raise WorkerError(f"{found.file}: sent answers that are none: {error}") from error
