"""Two ranks on this machine's CPU, started by torchrun as a user starts them, then damaged.

The damage is a plugin that every rank loads; rank 0 waits in it until rank 1 has work, or it would
have answered the few questions asked here before rank 1 has loaded its model.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from perfline.cli import main

REPOSITORY = Path(__file__).parents[2]
HOST = socket.gethostname()
QUESTIONS = 96
TOGETHER = """
import os
import signal
import time
from pathlib import Path

from perfline import ranks
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
HANGS = """
def damaged():
    time.sleep(300)


if RANK == "1":  # rank 0 alone is to lose patience
    join = ranks.join
    ranks.join = lambda timeout_s: join(300)
"""
CRASHES = """
def damaged():
    raise RuntimeError("the kernel is broken")
"""


def run(
    folder: Path, *arguments: str, plugin: str = "", launcher: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """The accuracy tests of ``tiny``; under ``launcher`` where there is one."""
    (folder / "damage.py").write_text(plugin)
    path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [
            *(sys.executable, *launcher, "-m", "pytest", "-m", "accuracy or perf"),
            *("-p", "damage", "-p", "no:cacheprovider", "--cases=tiny", "--verify=2"),
            *(f"--questions={QUESTIONS}", f"--results={folder / 'run.json'}"),
            *(f"--baselines={folder / 'baselines'}", *arguments),
            *(str(REPOSITORY / "tests" / "accuracy"), str(REPOSITORY / "tests" / "perf")),
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
    done = run(folder, "-k", "mmlu")
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture
def folder(tmp_path: Path, alone: Path) -> Path:
    shutil.copytree(alone / "baselines", tmp_path / "baselines")
    return tmp_path


def test_two_ranks_answer_as_one_process_does(folder: Path, alone: Path):
    done = torchrun(folder, "-k", "mmlu")
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
    done = torchrun(folder, "-k", "mmlu and eager", damage=KILLED, restarts=1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert measured(folder)["notes"]["accuracy_resumed_val"] > 0
    assert answers(folder, "eager") == answers(alone, "eager")
    assert json.loads((folder / "run.json").read_text())["partial"] is False


def test_a_rank_that_hangs_is_named_and_nothing_of_the_run_is_accepted(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    done = torchrun(folder, "-k", "mmlu and eager and published", "--rank-timeout=10", damage=HANGS)
    assert done.returncode == 1
    (error,) = measured(folder)["errors"]
    assert f"waited for rank 1 on {HOST} with 0 of" in error
    assert f"waited for rank 1 on {HOST} with 0 of" in done.stdout
    update = ["baselines", "update", "tiny", f"--run={folder / 'run.json'}", "--reason=x"]
    assert main([*update, f"--baselines={folder / 'baselines'}"]) != 0
    assert "rank 1" in capsys.readouterr().err


def test_a_rank_that_crashes_is_named_in_terminal_and_record(folder: Path):
    done = torchrun(folder, "-k", "mmlu and eager and published", damage=CRASHES)
    assert done.returncode == 1
    said = f"rank 1 on {HOST} crashed: RuntimeError: the kernel is broken"
    (error,) = measured(folder)["errors"]
    assert said in error
    assert said in done.stdout
    assert "in damaged" in done.stderr  # the other rank's own traceback


def test_throughput_is_refused_and_a_verdict_is_not_asked_for_twice(folder: Path):
    done = torchrun(folder, "-k", "test_throughput and eager", restarts=1)
    assert done.returncode == 1
    assert done.stdout.count("throughput under torchrun is not measured yet") > 0
    assert done.stdout.count("test session starts") == 1
    assert "the job ended with status 1 already; not done again" in done.stdout
    assert "p_val_core" not in measured(folder)["metrics"]
