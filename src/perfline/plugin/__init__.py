"""What does pytest see of perfline? Options, fixtures, the running session, a rank's part in it."""

from __future__ import annotations

__all__: list[str] = []
