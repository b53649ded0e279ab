"""What is measured, and where is it? A YAML file -> a ``Case``; its weights and questions on disk.

The packaged cases are the YAML files here; ``embedded/`` holds the model and questions of ``tiny``.
"""

from __future__ import annotations

__all__ = ["case", "data"]
