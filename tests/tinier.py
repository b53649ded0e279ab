"""The case ``tiny`` made tinier, for what is not about speed; and no machine's mood breaks it."""

from __future__ import annotations

import re
from pathlib import Path

# Two sessions of one thing may differ as much as those of a machine whose neighbours come and go:
# what is judged slower is forty times slower or more (docs/gate.md#stored-throughput).
CALM = {"throughput_margin_fraction": "0.9", "throughput_session_sd_fraction": "0.9"}
SHORT = {"sample": "8", "rounds": "3", "min_round_s": "0.01"}
# A run that other processes disturbed cannot become a baseline: for a conftest or a plugin.
UNDISTURBED = """
from perfline.measure import decode, throughput

decode.cpu_contention = throughput.cpu_contention = lambda: None
"""
# Where something slower must be found: seconds are those of the CPU that this process had, whatever
# others took meanwhile. For a plugin that is loaded before perfline is.
CPU_SECONDS = """
import time

time.perf_counter = time.process_time
"""


def with_values(text: str, **values: str) -> str:
    """The YAML of a case with other numbers at keys that it has."""
    for key, value in values.items():
        text, count = re.subn(rf"^(  {key}: )[\d.]+", rf"\g<1>{value}", text, flags=re.MULTILINE)
        assert count == 1, key
    return text


def make_small(package: Path) -> None:
    """In a copy of the package: eight prompts, ten questions a subject."""
    tiny = package / "cases" / "tiny.yaml"
    tiny.write_text(with_values(tiny.read_text(), **SHORT, **CALM))
    for test in (package / "cases" / "embedded").rglob("*_test.csv"):
        test.write_text("".join(test.read_text().splitlines(keepends=True)[:10]))
    device = package / "engines" / "device.py"
    assert "def cpu_contention() -> " in device.read_text()
    with device.open("a") as file:
        file.write("\n\ndef cpu_contention() -> None:\n    return None\n")
