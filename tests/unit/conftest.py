"""Hypothesis times nothing here: how fast an example is depends on what else the machine does."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("perfline", deadline=None)
settings.load_profile("perfline")
