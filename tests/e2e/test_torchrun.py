"""Two ranks on this machine's CPU, started by torchrun as a user starts them, on the real suite.

tests/plugin has all faults.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from together import TOGETHER

REPOSITORY = Path(__file__).parents[2]
QUESTIONS = 96
KILLED = """
def damaged():
    if ATTEMPT == "0":
        until(lambda: JOURNAL.exists() and len(JOURNAL.read_text().splitlines()) > 1)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def run(
    folder: Path, *arguments: str, plugin: str = "", launcher: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """The accuracy tests of ``tiny``; under ``launcher`` where there is one."""
    (folder / "damage.py").write_text(plugin)
    path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [
            *(sys.executable, *launcher, "-m", "pytest", "-m", "accuracy"),
            *("-p", "damage", "-p", "no:cacheprovider", "--cases=tiny", "--verify=2"),
            *(f"--questions={QUESTIONS}", f"--results={folder / 'run.json'}"),
            *(f"--baselines={folder / 'baselines'}", *arguments),
            str(REPOSITORY / "tests" / "accuracy"),
        ],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


def torchrun(
    folder: Path, *arguments: str, damage: str = "", restarts: int = 0
) -> subprocess.CompletedProcess[str]:
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    return run(
        folder,
        *arguments,
        plugin=TOGETHER + damage,
        launcher=(*command, f"--max-restarts={restarts}"),
    )


def measured(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())["cases"]["tiny"]


def answers(folder: Path, engine: str) -> dict[str, dict[str, str]]:
    """What was answered; without margins, which depend in their last digit on the batches."""
    subjects = measured(folder)["accuracy"][engine]["subjects"]
    return {
        subject: {name: column for name, column in columns.items() if name != "margins"}
        for subject, columns in subjects.items()
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the record of one process."""
    folder = tmp_path_factory.mktemp("alone")
    shutil.copytree(REPOSITORY / "baselines" / "published", folder / "baselines" / "published")
    done = run(folder)
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture
def folder(tmp_path: Path, alone: Path) -> Path:
    shutil.copytree(alone / "baselines", tmp_path / "baselines")
    return tmp_path


def test_two_ranks_answer_as_one_process_does(folder: Path, alone: Path):
    done = torchrun(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    for engine, kind in (("eager", "val"), ("inductor", "infer")):
        assert answers(folder, engine) == answers(alone, engine)
        notes = measured(folder)["notes"]
        given = [int(n) for n in notes[f"accuracy_questions_by_rank_{kind}"].split(", ")]
        assert notes[f"accuracy_ranks_{kind}"] == 2
        assert sum(given) == QUESTIONS
        assert min(given) > 0
    assert done.stdout.count("test session starts") == 1  # the other rank prints nothing
    assert list((folder / "journals").iterdir()) == []


def test_a_killed_rank_comes_back_and_the_pass_goes_on_from_the_journal(folder: Path, alone: Path):
    done = torchrun(folder, "-k", "eager", damage=KILLED, restarts=1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert measured(folder)["notes"]["accuracy_resumed_val"] > 0
    assert answers(folder, "eager") == answers(alone, "eager")
    assert json.loads((folder / "run.json").read_text())["partial"] is False
