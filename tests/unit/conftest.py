"""Hypothesis times nothing here: how fast an example is depends on what else the machine does.

Nor does chance choose: the same tree has the same examples, so what fails is what has changed.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("perfline", deadline=None, derandomize=True)
settings.load_profile("perfline")
