"""The task of one's own that docs/tasks.md shows, beside MMLU: measured, accepted, judged."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from doc_pages import REPOSITORY, yaml_blocks
from fork_server import python

QUESTIONS = 24


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """What the page shows, with rows enough to judge by."""
    for text in yaml_blocks("docs/tasks.md"):
        if named := re.match(r"# (cases/\S+)\n", text):
            path = tmp_path / named[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    (row,) = re.findall(r"(?ms)^```json\n(.*?)^```$", (REPOSITORY / "docs/tasks.md").read_text())
    one = json.loads(row)
    rows = [
        {**one, "id": f"s{n}", "first": str(n % 3), "options": one["options"][: 2 + n % 2]}
        | {"right": n % 2}
        for n in range(QUESTIONS)
    ]
    folder = tmp_path / "cases" / "tasks" / "sums"
    folder.mkdir()
    for name in ("test", "shots"):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in rows))
    return tmp_path


def run(repository: Path, *words: str) -> subprocess.CompletedProcess[str]:
    module = [] if words[0] == "perfline" else ["-p", "no:cacheprovider"]
    return subprocess.run(
        [python(), "-m", words[0], *module, *words[1:]],
        cwd=repository,
        env=os.environ
        | {"XDG_CACHE_HOME": str(repository / ".cache"), "PYTHONPATH": str(REPOSITORY / "src")},
        capture_output=True,
        text=True,
        check=False,
    )


def measure(repository: Path) -> dict[str, object]:
    suite = str(REPOSITORY / "tests" / "accuracy")
    done = run(
        *(repository, "pytest", suite, "-m", "accuracy and not fidelity", "--rootdir=."),
        *("-k", "stored and eager", "--cases=mine", "--case-dir=cases", "--baselines=baselines"),
        *("--results=run.json", "-c", os.devnull, f"--confcutdir={REPOSITORY}"),
    )
    assert (repository / "run.json").exists(), done.stdout + done.stderr
    found = json.loads((repository / "run.json").read_text())["cases"]["mine"]
    assert not found.get("errors"), done.stdout + done.stderr
    return found


def test_a_task_of_ones_own_is_measured_accepted_and_judged(repository: Path):
    shown = run(repository, "perfline", "prompt", "mine", "sums/sums/1", "--case-dir=cases")
    assert shown.stdout == (
        "Choose the right sum.\n\n0 + 3 = ?\nA. 5\nB. 6\nAnswer: A\n\n"
        "1 + 3 = ?\nA. 5\nB. 6\nC. 4\nAnswer:"
    )
    first = measure(repository)
    assert {v["metric"]: v["word"] for v in first["verdicts"]} == {
        "acc_val": "missing",
        "acc_val_sums": "missing",
        "acc_val_sums_said": "missing",
    }
    values = {name: metric["value"] for name, metric in first["metrics"].items()}
    assert values["acc_val_sums_said"] == values["acc_val_sums_said_norm"]
    assert {f"acc_val_sums{end}" for end in ("_letters", "_said_raw")} <= set(values)
    assert not {name for name in values if name.startswith("acc_val_sums_said_letters")}
    assert first["metrics"]["acc_val_sums_questions"]["value"] == QUESTIONS
    assert first["facts"]["sums_task"].startswith("version 1, sha256:")
    assert len(first["facts"]["sums_data"]) == 64
    flags = ("--case-dir=cases", "--run=run.json", "--baselines=baselines", "--reason=first")
    done = run(repository, "perfline", "baselines", "update", "mine", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "acc_val_sums" in done.stdout

    again = measure(repository)

    words = {v["metric"]: v["word"] for v in again["verdicts"]}
    assert [words[f"acc_val{task}"] for task in ("", "_sums", "_sums_said")] == ["ok"] * 3
    (stored,) = (repository / "baselines").rglob("mine.json")
    answers = json.loads(stored.read_text())["accuracy"]
    assert set(answers) == {"eager", "val_sums", "val_sums_said"}
