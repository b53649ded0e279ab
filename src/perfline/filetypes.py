"""Which of the JSON files around perfline is this, and which command takes it?

Told by its keys, so that a reader which was given another one can name it instead of its parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Kind = Literal["record", "comparison", "baseline", "published", "benchmark"]

_TOLD: dict[Kind, tuple[str, str]] = {
    "record": (
        "the record of a pytest session",
        "`perfline baselines update`, `report`, `export` and `history` take it",
    ),
    "comparison": ("a record of perfline compare", "`perfline report` takes it"),
    "baseline": ("a baseline", "`perfline baselines show` takes its case"),
    "published": ("published figures", "pytest reads them from baselines/published/"),
    "benchmark": (
        "pytest-benchmark's JSON",
        "`pytest-benchmark compare` takes it; perfline's own record is what --results names",
    ),
}
_KEYS: tuple[tuple[Kind, frozenset[str]], ...] = (
    ("record", frozenset({"environment", "cases", "partial"})),
    ("baseline", frozenset({"case_digest", "machine"})),
    ("published", frozenset({"source", "metrics", "case"})),
    ("benchmark", frozenset({"machine_info", "benchmarks"})),
)


def kind(data: Mapping[str, object]) -> Kind | None:
    """Return what a JSON object is; None where it is nothing that is known."""
    if data.get("kind") == "compare":
        return "comparison"
    return next((name for name, keys in _KEYS if keys <= data.keys()), None)


def mistaken(data: Mapping[str, object], wanted: Kind) -> str:
    """Say what a file is instead of what is ``wanted``; empty where that cannot be told."""
    found = kind(data)
    if found is None or found == wanted:
        return ""
    what, taken = _TOLD[found]
    return f"is {what} (expected {_TOLD[wanted][0]}); {taken}"
