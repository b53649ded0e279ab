"""Two ranks a side, started by torchrun: one slow rank is seen, and nothing outlives compare."""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fork_server import python
from perfline.compare.launch import ProcessLauncher
from perfline.compare.model import Turn, Workload
from perfline.compare.process import MARK
from perfline.compare.sides import make_side, places
from perfline.errors import WorkerError

# What one rank does ahead of every timed round.
MUTANT = """
import os
import signal
import sys
import time
from pathlib import Path

from perfline.measure.throughput import TimedRegion

timed_round = TimedRegion.round


def damaged_round(self):
    damage()
    return timed_round(self)


TimedRegion.round = damaged_round
RANK = os.environ["RANK"]
"""
# Rank 1 alone: more time a forward, as with a GPU that is too hot; ten times as long and more.
SLEEP_S = 0.2
SLOW = f"""
import os
import time
from perfline.engines.torch_engine import TorchEngine

forward = TorchEngine.forward


def slower(self, batch, head):
    if os.environ["RANK"] == "1":
        time.sleep({SLEEP_S})
    return forward(self, batch, head)


TorchEngine.forward = slower
"""
KILLED = """
def damage():
    if RANK == "1" and Path("kill").exists():
        print("about to fall", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""
# In C, holding the interpreter's lock: no thread of Python's can end such a process.
STUCK = """
import ctypes


def damage():
    Path(f"stuck-{RANK}").touch()
    (ctypes.PyDLL(None) if RANK == "0" else ctypes.CDLL(None)).sleep(600)
"""
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc: Linux only")
SMALL = "throughput.sample=8"


def command(folder: Path, *arguments: str) -> list[str]:
    words = ["-m", "perfline", "compare", "tiny", "--ranks=2", "--engine", "eager"]
    words += ["--rounds", "3", "--max-pairs", "1", "--questions", "16", "--out", "compare.json"]
    words += [f"--env=PYTHONPATH={folder}", f"--baseline-env=PYTHONPATH={folder}"]
    return [sys.executable, *words, f"--baseline-set={SMALL}", f"--set={SMALL}", *arguments]


def launched_by(pid: int) -> list[str]:
    """What runs of all that the comparison with that process number has started."""
    mark, found = f"{MARK}=".encode(), []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            environ = (place / "environ").read_bytes()
        except OSError:
            continue
        if mark in environ and f"/perfline-{pid}-".encode() in environ:
            found.append((place / "cmdline").read_text().replace("\0", " "))
    return found


def test_one_slow_rank_makes_its_side_slow(tmp_path: Path):
    (tmp_path / "slow.py").write_text(SLOW)
    forked = f"PYTHON_EXEC={python()}"  # what torchrun starts ranks with
    done = subprocess.run(
        command(tmp_path, "--import=slow", f"--env={forked}", f"--baseline-env={forked}"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr  # one launch pair proves nothing
    assert done.stdout.startswith("tiny eager on 2 ranks ")
    record = json.loads((tmp_path / "compare.json").read_text())
    assert "--ranks 2" in record["command"]
    case = record["cases"]["tiny"]
    assert case["ranks"] == 2
    assert case["sides"]["candidate"]["machine"].endswith("-x2")
    (pair,) = case["pairs"]
    assert pair["interleaved"]
    a, b = (pair[side]["rounds"] for side in ("baseline", "candidate"))
    assert {done["tokens"] for done in a} == {done["tokens"] for done in b}
    whole_s = [statistics.median(done["whole_s"] for done in rounds) for rounds in (a, b)]
    assert whole_s[1] > max(8 * SLEEP_S, whole_s[0])
    words = {verdict["metric"]: verdict["word"] for verdict in case["verdicts"]}
    assert words["fidelity_val"] == "ok"


@LINUX
def test_the_same_thing_twice_and_a_rank_that_is_killed(tmp_path: Path):
    (tmp_path / "killed.py").write_text(MUTANT + KILLED)
    workload = Workload("tiny", (), None, "real", "eager", questions=8, ranks=2)
    settings, path = ["throughput.sample=4"], [f"PYTHONPATH={tmp_path}"]
    a = make_side("baseline", settings=settings)
    b = make_side("candidate", settings=settings, env=path, imports=["killed"])
    with places((a, b), tmp_path) as found, ProcessLauncher(workload, found) as launcher:
        workers = [each.wait_ready() for each in [launcher.start(side) for side in (a, b)]]
        ready = [worker.ready for worker in workers]
        rounds = [worker.round(Turn(2)) for _ in range(2) for worker in workers]
        answers = [worker.answers("mmlu") for worker in workers]
        assert len({pid for each in ready for pid in (each.pid, *each.others)}) == 4
        assert ready[0].prompts_digest == ready[1].prompts_digest
        assert {done.tokens for done in rounds} == {2 * 2 * ready[0].tokens}
        assert all(0 < done.core_s <= done.whole_s and done.faults == () for done in rounds)
        assert answers[0].ids == answers[1].ids
        assert np.array_equal(answers[0].letter_logits, answers[1].letter_logits)
        (tmp_path / "kill").touch()
        begin = time.monotonic()
        expected = (
            "^candidate: was asked for a round of 2 passes and rank 1 on "
            f"{socket.gethostname()} was ended by SIGKILL; the end of its stderr:\n"
            "    about to fall$"
        )
        with pytest.raises(WorkerError, match=expected):
            workers[1].round(Turn(2))
        assert time.monotonic() - begin < 60
        assert workers[0].round(Turn(2)).tokens == rounds[0].tokens  # the other side goes on
        assert len(launched_by(os.getpid())) == 3
    assert launched_by(os.getpid()) == []


@LINUX
def test_ranks_die_with_a_comparison_that_was_killed(tmp_path: Path):
    (tmp_path / "stuck.py").write_text(MUTANT + STUCK)
    words = command(tmp_path, "--alternate", "--baseline-import=stuck", "--import=stuck")
    with subprocess.Popen(words, cwd=tmp_path) as comparing:
        deadline = time.monotonic() + 100
        while not all((tmp_path / f"stuck-{rank}").exists() for rank in (0, 1)):
            assert comparing.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert len(launched_by(comparing.pid)) == 3  # torchrun and two ranks
        comparing.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while (alive := launched_by(comparing.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive == []
