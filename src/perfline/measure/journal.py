"""Which questions did an interrupted pass answer already?

An append-only file of JSON lines: a header that says what was asked of what (digests of model, data
and case, engine, software), then one line a batch. A line is with the kernel before the next batch
starts, so an interrupt or a kill costs one batch at most (a power cut may cost more; waiting for
the disk would slow every run); a torn last line is dropped. A journal of anything else is not
continued but begun anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from math import isnan
from pathlib import Path
from typing import cast

import numpy as np

from perfline.errors import DataError, RecordError
from perfline.tasks.answers import Answers, union

SCHEMA = 1


class Journal:
    """The answers of one pass, kept while it runs.

    ``identity`` is all that must be the same for the answers to be continued; values are text.
    """

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        """Name the file; nothing is read or written yet."""
        self.path = path
        self._header = {"schema": SCHEMA, **identity}

    def resume(self) -> Answers | None:
        """The answers given so far; None where there are none to continue.

        Afterwards the file holds exactly those answers: whatever followed them is cut off.
        """
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            lines = []
        except OSError as error:
            raise RecordError(f"{self.path}: cannot be read: {error.strerror}") from error
        batches: list[Answers] = []
        seen: set[str] = set()
        good = 0
        for number, line in enumerate(lines[:-1]):  # what follows the last line end is torn
            try:
                data = json.loads(line)
                if number == 0:
                    if data != self._header:
                        break
                else:
                    batch = from_row(data)
                    if not seen.isdisjoint(batch.ids):
                        break
                    seen.update(batch.ids)
                    batches.append(batch)
            except (ValueError, KeyError, TypeError, DataError):
                break
            good += len(line) + 1
        self._begin(good)
        return union(batches) if batches else None

    def append(self, answers: Answers) -> None:
        """Add one batch; a kill of this process cannot lose it once this returns."""
        text = json.dumps(to_row(answers), separators=(",", ":"), allow_nan=False)
        self._write(text.encode() + b"\n")

    def finish(self) -> None:
        """The pass is over and its record is written: the journal has done its work."""
        self.path.unlink(missing_ok=True)

    def _begin(self, good: int) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if good:
                os.truncate(self.path, good)
            else:
                self.path.write_bytes(b"")
        except OSError as error:
            raise RecordError(f"{self.path}: cannot be written: {error.strerror}") from error
        if not good:
            self._write(json.dumps(self._header).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        try:
            with self.path.open("ab") as file:
                file.write(line)
        except OSError as error:
            raise RecordError(f"{self.path}: cannot be written: {error.strerror}") from error


def to_row(answers: Answers) -> dict[str, object]:
    """Answers as JSON; a float32 comes back as it went."""
    return {
        "ids": answers.ids,
        "letter_logits": [
            [None if isnan(x) else float(x) for x in logits] for logits in answers.letter_logits
        ],
        "argmax": answers.argmax.tolist(),
        "argmax_letter": answers.argmax_letter,
        "labels": answers.labels,
        "shots": answers.shots,
        "scales": None if answers.scales is None else answers.scales.tolist(),
    }


def from_row(row: Mapping[str, object]) -> Answers:
    """What :func:`to_row` was given; ValueError, KeyError, TypeError or DataError otherwise."""
    ids, labels, shots = row["ids"], row["labels"], row["shots"]
    if not isinstance(ids, list) or not isinstance(shots, list):
        raise TypeError("ids and shots are lists")
    logits = cast("list[list[float | None]]", row["letter_logits"])
    scales = row.get("scales")  # none by an older perfline
    width = len(logits[0]) if logits else 4
    return Answers(
        ids=tuple(map(str, ids)),
        letter_logits=np.array(logits, dtype=np.float32).reshape(len(ids), width),
        argmax=np.array(row["argmax"], dtype=np.int64),
        argmax_letter=str(row["argmax_letter"]),
        labels=None if labels is None else str(labels),
        shots=tuple(map(int, shots)),
        scales=None if scales is None else np.array(cast("list[float]", scales), dtype=np.float32),
    )
