"""A start in an empty repository, from ``perfline init`` to a second run against its baselines."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import perfline
from fork_server import python
from perfline.cases.data import PACKAGED_DATA
from tinier import CALM, SHORT, UNDISTURBED, with_values

SOURCE = Path(perfline.__file__).parents[1]
EAGER = "--engines=eager"  # what the first run has compiled is not compiled again


def shell(folder: Path, *words: str) -> str:
    """Run Python with ``words`` there, as somebody with perfline installed would; its output."""
    own = ("PYTEST_", "PERFLINE_", "GITHUB_", "HF_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    done = subprocess.run(
        [python(), "-m", *words],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def words(folder: Path) -> set[str]:
    record = json.loads((folder / "results" / "run.json").read_text())
    return {verdict["word"] for verdict in record["cases"]["tiny-hf"]["verdicts"]}


def test_from_nothing_to_the_second_green_run(tmp_path: Path) -> None:
    weights = PACKAGED_DATA / "tiny_mmlu" / "tiny_hf"
    said = shell(tmp_path, "perfline", "init", ".", "--weights", str(weights))
    assert said.endswith("next:\n  pytest -m perf\n")
    case = tmp_path / "cases" / "tiny-hf.yaml"
    (tmp_path / "conftest.py").write_text(UNDISTURBED)
    case.write_text(with_values(case.read_text(), **SHORT, **CALM))
    said = shell(tmp_path, "pytest", "-m", "perf")
    assert "missing" in words(tmp_path), said
    accept = ("perfline", "baselines", "update", "--all", "--reason", "first")
    shell(tmp_path, *accept)
    said = shell(tmp_path, "pytest", "-m", "accuracy", EAGER)
    assert "missing" in words(tmp_path), said
    shell(tmp_path, *accept)
    said = shell(tmp_path, "pytest", "-m", "perf or accuracy", EAGER)
    assert words(tmp_path) <= {"ok", "improved", "unsure"}, said
    assert "ok" in words(tmp_path), said
    assert "0 wrong, 0 missing" in shell(tmp_path, "perfline", "baselines", "check", "--strict")
