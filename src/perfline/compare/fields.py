"""Is a number in a record, or in a worker's message, one that a comparison can have measured?

Each look-up raises the node's own error, which names file or worker, key, value and what was
expected. A digest can be computed, and a message sent, by anybody: both are held to the same.
"""

from __future__ import annotations

from perfline.compare.model import Round
from perfline.jsonfile import Node

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
