"""How is one case measured once, by one process or by all ranks of a job, and what is written down?

Load, compile, warm-up and timed rounds; accuracy passes, resumed from a journal; the record.
"""

from __future__ import annotations

__all__ = [
    "accuracy",
    "case_run",
    "decode",
    "fidelity",
    "journal",
    "notices",
    "parallel_accuracy",
    "parallel_rounds",
    "progress",
    "rank_worker",
    "record",
    "throughput",
]
