"""What tests of launched processes share: answers of a worker, and whether one is gone."""

from __future__ import annotations

import time
from pathlib import Path

from perfline.compare import process
from perfline.compare.model import Ready, Round, Workload

SOURCE = Path(process.__file__).parents[1]
WORKLOAD = Workload("tiny", (), None, "real", "eager", 4)
READY = Ready(1, "CPU", "cpu", {}, {}, "d", "fp32", "p", 100, 1.0, 1.0, 1.0, 1e-3, 0, 0, 0)
ROUND = Round(1.0, 100, 0.5, 0.6)


def gone(pid: int) -> bool:
    """Whether the process ends within a minute; a zombie that nobody reaps is as good as gone."""
    for _ in range(3000):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False
