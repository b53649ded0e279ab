"""What do people and services read of a record? Terminal, Markdown, page, exports, history."""

from __future__ import annotations

__all__ = [
    "baselines",
    "comparison_text",
    "export_lm_eval",
    "exports",
    "history",
    "markdown",
    "page",
    "page_inputs",
    "search_text",
    "table",
    "text",
]
