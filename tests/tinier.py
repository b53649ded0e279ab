"""The case ``tiny`` made tinier, in a copy of the package: for what is not about speed."""

from __future__ import annotations

import re
from pathlib import Path


def make_small(package: Path) -> None:
    """Eight prompts, ten questions a subject, limits that no machine's mood can break."""
    tiny = package / "cases" / "tiny.yaml"
    text = tiny.read_text()
    for key, value in (
        ("sample", "8"),
        ("rounds", "3"),
        ("min_round_s", "0.01"),
        ("throughput_margin_fraction", "0.9"),
        ("throughput_session_sd_fraction", "0.5"),
    ):
        text, count = re.subn(rf"^(  {key}: )[\d.]+", rf"\g<1>{value}", text, flags=re.MULTILINE)
        assert count == 1, key
    tiny.write_text(text)
    for test in (package / "cases" / "embedded").rglob("*_test.csv"):
        test.write_text("".join(test.read_text().splitlines(keepends=True)[:10]))
    device = package / "engines" / "device.py"
    assert "def cpu_contention() -> " in device.read_text()
    with device.open("a") as file:  # a run that others disturb cannot become a baseline
        file.write("\n\ndef cpu_contention() -> None:\n    return None\n")
