"""What does the command ``perfline`` do? ``main`` parses; a module for each command.

Only ``baselines`` writes baselines, and no command measures but ``compare``.
"""

from __future__ import annotations

__all__ = ["main"]
