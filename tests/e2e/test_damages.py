"""benchmarks/gate/damages.py still runs: damages of three of its lists, beside an unchanged run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "gate"))
import damages

EACH = {
    "TORCH_COMPILE_DISABLE=1": "fingerprint invalid",
    "a dropped shot": "acc_val regressed",
    "file: epsilon 1e-5 for 1e-6": "fidelity regressed",
}


@pytest.mark.filterwarnings("ignore")
def test_a_damage_is_seen_and_an_unchanged_run_is_not(tmp_path: Path) -> None:
    only = f"^({'|'.join(EACH)})$"
    out = tmp_path / "found.json"
    assert damages.main(["--only", only, "--unchanged", "1", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert {each["damage"]: each["red"][0] for each in found["damages"]} == EACH
    assert [each["words"] for each in found["unchanged"]] == [["ok", "ok"]]
