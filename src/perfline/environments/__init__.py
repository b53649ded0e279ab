"""How is an environment made: another one, and a change on top of it?

What ``perfline compare --candidate-install`` and the searches over versions (isolate, bisect) run
their sides in. Nothing here knows what is measured there.
"""

from __future__ import annotations

__all__ = ["installers", "making"]
