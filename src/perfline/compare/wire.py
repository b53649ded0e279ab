"""How do the parent and a worker of ``perfline compare`` write to each other?

One JSON object a line, each way, the worker speaking only when asked::

    {"protocol": 1, "ask": "round", "repeats": 3, "part": 0, "parts": 1, "peers": [4711]}
    {"protocol": 1, "ok": {"start_s": 1.7e9, "tokens": 29013, "core_s": 0.41, ...}}
    {"protocol": 1, "error": {"kind": "DeviceMemory", "message": "..."}}

Nothing is pickled: the two ends are two interpreters, of two environments. This module needs the
standard library only, so that a worker without numpy can still say so.
"""

from __future__ import annotations

import json
from pathlib import Path

from perfline.errors import WorkerError, printable
from perfline.fields import Node

PROTOCOL = 1


def node(data: object, who: str) -> Node:
    """A message for typed look-ups; WorkerError, naming ``who`` sent it, for what is not one."""
    if not isinstance(data, dict):
        raise WorkerError(f"{who}: sent {data!r:.80}; expected a JSON object")
    return Node(Path(who), data, WorkerError, "the two ends do not run the same perfline")


def parse(line: bytes, who: str) -> Node:
    """One line as a message of this protocol; WorkerError for garbage and for other protocols."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        shown = printable(line[:80].decode("ascii", "replace"))
        raise WorkerError(f"{who}: sent what is no message: {shown!r}") from error
    message = node(data, who)
    if message.data.get("protocol") != PROTOCOL:
        spoken = message.data.get("protocol")
        raise WorkerError(
            f"{who}: speaks protocol {spoken!r:.20}, expected {PROTOCOL}: another perfline is on "
            "its path; compare refs that have the same one"
        )
    return message


def line(**message: object) -> bytes:
    """``message`` as one line of this protocol."""
    text = json.dumps({"protocol": PROTOCOL, **message}, allow_nan=False, separators=(",", ":"))
    return text.encode("ascii") + b"\n"
