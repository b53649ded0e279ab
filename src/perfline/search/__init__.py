"""Which commit, version or package did it? Plans of comparisons, over ``compare``'s one engine.

Each plan asks the same question again and again, ``probe.compare`` of two environments, and keeps
what it was told in ``record``; what a person reads of it is ``report``'s.
"""

from __future__ import annotations

__all__ = ["bisect", "candidates", "groups", "isolate", "probe", "record"]
