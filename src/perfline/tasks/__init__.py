"""What is asked, and what counts as right? Questions -> prompts -> token ids; answers, scores."""

from __future__ import annotations

__all__ = [
    "answers",
    "prompt_cache",
    "prompt_lengths",
    "prompts",
    "reference",
    "rows",
    "sampling",
    "task",
]
