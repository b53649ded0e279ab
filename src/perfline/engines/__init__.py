"""How does a model run, on which device, and with what software?

``engine`` is what the rest of perfline knows of a model; ``hf`` loads a real one, ``own_engine``
makes somebody's own. ``device``, ``telemetry`` and ``environment`` are the machine's side of it.
"""

from __future__ import annotations

__all__ = [
    "decode",
    "device",
    "engine",
    "environment",
    "full_precision",
    "hf",
    "own_engine",
    "prefix_plan",
    "shared_prefix",
    "telemetry",
    "torch_engine",
    "upstream",
]
