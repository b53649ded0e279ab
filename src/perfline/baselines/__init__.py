"""What is stored of earlier runs, what is held against it, and what may be stored next?

The files, the judging of a measurement, the rules of accepting one, and what to type next.
"""

from __future__ import annotations

__all__ = [
    "accept",
    "baseline",
    "judge",
    "proposal",
    "settling",
    "suggestions",
]
