"""Two ranks on this machine's CPU, started by torchrun as a user starts them, on the real suite.

A plugin that every rank loads makes rank 0 wait until rank 1 has work, or it would have answered
the few questions asked here before rank 1 has loaded its model. tests/plugin has all faults.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
QUESTIONS = 96
TOGETHER = """
import os
import signal
import time
from pathlib import Path

from perfline.accuracy import AccuracyRun

HERE = Path(__file__).parent
RANK, ATTEMPT = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
JOURNAL = HERE / "journals" / "tiny-eager.jsonl"
part = AccuracyRun.part


def until(what):
    end = time.monotonic() + 150
    while not what() and time.monotonic() < end:
        time.sleep(0.01)


def damaged():
    pass


def together(self, *arguments):
    took = HERE / f"took-{self.engine.name}"
    if RANK == "1":
        took.touch()
        damaged()
    elif ATTEMPT == "0":
        until(took.exists)
    return part(self, *arguments)


AccuracyRun.part = together
"""
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


def test_two_ranks_answer_as_one_process_does_and_are_timed_together(folder: Path, alone: Path):
    both = ("-m", "accuracy or perf", "-k", "not throughput or eager")
    done = torchrun(folder, *both, str(REPOSITORY / "tests" / "perf"))
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
    metrics, notes = measured(folder)["metrics"], measured(folder)["notes"]
    rates = [float(rate) for rate in notes["tok_per_s_by_rank_val"].split(", ")]
    assert notes["throughput_ranks_val"] == len(rates) == 2
    assert min(rates) < metrics["p_val_whole"]["value"] <= sum(rates) * 1.5  # medians, one by one
    assert len(metrics["scaling_efficiency_val"]["samples"]) == 7
    assert json.loads((folder / "run.json").read_text())["environment"]["layout"] == "x2"


def test_a_killed_rank_comes_back_and_the_pass_goes_on_from_the_journal(folder: Path, alone: Path):
    done = torchrun(folder, "-k", "eager", damage=KILLED, restarts=1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert measured(folder)["notes"]["accuracy_resumed_val"] > 0
    assert answers(folder, "eager") == answers(alone, "eager")
    assert json.loads((folder / "run.json").read_text())["partial"] is False
