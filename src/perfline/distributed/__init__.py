"""How do torchrun's ranks meet, tell each other things, share work, and hold one model together?"""

from __future__ import annotations

__all__ = ["group", "replica", "work_units"]
