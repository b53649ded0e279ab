"""Is B slower, faster, the same or wrong against A, when both run at the same time?

``perfline compare``: two environments as live processes, launch pair by launch pair, until an exact
group-sequential test decides. Without a word of text: that is ``report``'s.
"""

from __future__ import annotations

__all__ = [
    "explain",
    "gates",
    "launch",
    "model",
    "pair",
    "record",
    "run",
    "sequential",
    "sides",
]
