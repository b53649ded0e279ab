"""perfline holds the line on LLM inference: accuracy and throughput against baselines."""

from __future__ import annotations

__version__ = "0.1.0"
