"""Two ranks under the real torchrun, with scripted engines: answers, faults, exit statuses.

``damaged`` is what happens to rank 1 once it has taken questions; rank 0 waits until rank 1 has
said something, or it would have answered all of them before. The real model is in tests/e2e.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from fork_server import python

HOST = socket.gethostname()
RANKS = """

# Below: what other ranks than the first open, and what happens to them.
import os
import signal
import time

from perfline.plugin import ranks
from perfline.measure.accuracy import AccuracyRun

RANK, ATTEMPT = os.environ.get("RANK"), os.environ.get("TORCHELASTIC_RESTART_COUNT")
JOURNAL = Path("results/journals/fake-eager.jsonl")
ranks.open_case = opened
ranks.collect = lambda root: ENVIRONMENT
ranks.current_device = lambda: DEVICE
part = AccuracyRun.part


def until(what):
    end = time.monotonic() + 60
    while not what() and time.monotonic() < end:
        time.sleep(0.01)


def damaged():
    pass


def together(self, *arguments):
    if RANK == "1":
        damaged()
    elif RANK == "0" and ATTEMPT == "0":
        until(lambda: self.coordinator.group.store.check(["0/said"]))
    return part(self, *arguments)


AccuracyRun.part = together
"""


@pytest.fixture
def torchrun(suite, monkeypatch: pytest.MonkeyPatch):
    """Run the suite on two ranks; ``damage`` is code."""
    conftest = (suite.root / "conftest.py").read_text()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in [name for name in os.environ if name.startswith(("TORCHELASTIC", "MASTER_"))]:
        monkeypatch.delenv(name)

    def run(*arguments: str, damage: str = "", restarts: int = 0):
        (suite.root / "conftest.py").write_text(conftest + RANKS + damage)
        return subprocess.run(
            [
                *(python(), "-m", "torch.distributed.run", "--standalone"),
                *("--nproc-per-node=2", f"--max-restarts={restarts}", "-m", "pytest"),
                *("-p", "no:cacheprovider", "--cases=fake", "--case-dir=cases", "-rs"),
                *("-k", "stored and eager", *arguments),
            ],
            cwd=suite.root,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(paths()),
                "PYTHON_EXEC": python(),  # what torchrun starts ranks with
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run


def paths() -> list[str]:
    """Where this process finds perfline and the fakes."""
    import perfline

    return [os.environ["PYTHONPATH"], str(Path(perfline.__file__).parents[1])]


def noted(suite) -> dict:
    return suite.record()["cases"]["fake"]["notes"]


def stored(suite) -> dict:
    """The record's answers, but for the date."""
    return suite.record()["cases"]["fake"]["accuracy"]["eager"]["subjects"]


@pytest.fixture
def alone(suite) -> dict:
    """The answers of one process."""
    suite.script(prompts=64)
    suite.run("-k", "stored and eager").assert_outcomes(skipped=1, deselected=5)
    return stored(suite)


def test_two_ranks_answer_as_one_process_does_and_only_rank_0_prints(suite, torchrun, alone):
    assert suite.update("--run=results/run.json") == 0  # accepted from one rank
    done = torchrun()
    assert done.returncode == 0, done.stdout + done.stderr
    assert stored(suite) == alone
    assert suite.words() == {"acc_val.baseline": "ok"}  # compared on two
    assert suite.record()["environment"]["machine"] == "fake-cpu-x2"
    given = [int(n) for n in noted(suite)["accuracy_questions_by_rank_val"].split(", ")]
    assert (noted(suite)["accuracy_ranks_val"], sum(given)) == (2, 64)
    line = f"2 ranks on 1 host answered 64 questions (rank 0: {given[0]}, 1: {given[1]})"
    assert f"accuracy, eager: {line}" in " ".join(done.stdout.split())
    assert min(given) > 0
    assert done.stdout.count("test session starts") == 1
    assert list((suite.root / "results" / "journals").iterdir()) == []


def test_decode_is_skipped_on_ranks_and_says_what_to_do(suite, torchrun):
    shutil.copy(Path(__file__).parents[1] / "perf" / "test_decode.py", suite.root / "tests")
    done = torchrun("-k", "decode and eager")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 skipped" in done.stdout
    said = " ".join(done.stdout.split())
    assert "decode is measured by one process: run it without torchrun" in said


def test_a_usage_error_is_said_once_by_rank_0(torchrun):
    done = torchrun("--cases=nope")
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert said.count("case 'nope' is not known") == 1, said


def test_what_is_wrong_on_another_rank_alone_is_said_by_rank_0(torchrun):
    damage = """
if RANK == "1":
    def refuse(directory):
        raise ranks.RankError("no such directory here")
    from perfline.cases import data
    data.directory = refuse
"""
    done = torchrun(damage=damage)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "crashed: no such directory here" in said, said


KILLED = """

def damaged():
    if ATTEMPT == "0":
        until(lambda: JOURNAL.exists() and len(JOURNAL.read_text().splitlines()) > 1)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_rank_comes_back_and_the_pass_goes_on_from_the_journal(suite, torchrun, alone):
    done = torchrun(damage=KILLED, restarts=1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert noted(suite)["accuracy_resumed_val"] >= 16
    assert stored(suite) == alone
    assert suite.record()["partial"] is False


def test_without_restarts_a_killed_rank_leaves_a_journal_and_nothing_to_accept(
    suite, torchrun, alone
):
    (suite.root / "results" / "run.json").unlink()
    done = torchrun(damage=KILLED)
    assert done.returncode != 0
    assert suite.record()["partial"] is True
    assert suite.update("--run=results/run.json") != 0
    again = suite.run("-k", "stored and eager", "--resume")  # by hand, with one rank
    again.assert_outcomes(skipped=1, deselected=5)
    assert noted(suite)["accuracy_resumed_val"] >= 16
    assert stored(suite) == alone


IMPATIENT = """

join = ranks.join


def impatient(timeout_s):
    # Rank 0 alone is to lose patience, and not while the other still starts.
    group = join(100)
    group.timeout_s = timeout_s if RANK == "0" else 100
    return group


ranks.join = impatient
"""
HANGS = """

def damaged():
    time.sleep(100)
"""


def test_a_rank_that_hangs_is_named_and_nothing_of_the_run_is_accepted(suite, torchrun):
    suite.script(prompts=64)
    done = torchrun("--rank-timeout=2", damage=IMPATIENT + HANGS)
    assert done.returncode == 1
    (error,) = suite.record()["cases"]["fake"]["errors"]
    assert f"waited for rank 1 on {HOST} with 0 of" in error
    assert f"waited for rank 1 on {HOST} with 0 of" in done.stdout
    assert suite.update("--run=results/run.json") != 0


CRASHES = """

def damaged():
    raise RuntimeError("the kernel is broken")
"""


def test_a_rank_that_crashes_is_named_in_terminal_and_record(suite, torchrun):
    suite.script(prompts=64)
    done = torchrun(damage=CRASHES)
    assert done.returncode == 1
    said = f"rank 1 on {HOST} crashed: RuntimeError: the kernel is broken"
    (error,) = suite.record()["cases"]["fake"]["errors"]
    assert said in error
    assert said in done.stdout
    assert "in damaged" in done.stderr  # the other rank's own traceback


OTHER = """

if RANK == "1":
    other = ENVIRONMENT.__class__("fake-cpu", "Fake CPU", "cpu", {"torch": "9.8"})
    ranks.collect = lambda root: other
"""


def test_a_rank_with_other_software_is_refused_by_name(suite, torchrun):
    suite.script(prompts=64)
    done = torchrun(damage=OTHER)
    assert done.returncode == 1
    (error,) = suite.record()["cases"]["fake"]["errors"]
    assert f"rank 1 on {HOST}: its torch is 9.8, rank 0's is 9.9" in error


LACKING = """


def lacking(*arguments):
    found = opened(*arguments)
    found.absent["ceval"] = "no questions of task 'ceval'"
    return found


if RANK == "1":
    ranks.open_case = lacking
"""


def test_a_rank_without_a_task_that_the_first_one_asks_is_named(suite, torchrun):
    suite.script(prompts=64)
    # Alone: rank 0 waits for what rank 1 says first.
    done = torchrun("--tasks=mmlu,ceval", "-k", "stored and eager and ceval", damage=LACKING)
    assert done.returncode == 1, done.stdout + done.stderr
    (error,) = suite.record()["cases"]["fake"]["errors"]
    assert f"rank 1 on {HOST}: no questions of task 'ceval'" in error


TIMED = """

from types import SimpleNamespace

from perfline.measure import throughput

throughput.cpu_contention = lambda: None  # what else this machine does must not be seen
ranks.time = SimpleNamespace(perf_counter=CLOCK)  # other ranks, too, are timed by a scripted clock


def slower(case, device, data_dir, weights, factor={factor}):
    made = opened(case, device, data_dir, weights)
    if RANK == "1":
        for engine in made.engines.values():
            engine.token_s *= factor
    return made


ranks.open_case = slower
"""


def test_two_ranks_are_timed_together_and_the_straggler_is_named(suite, torchrun):
    suite.run("-k", "throughput and eager").assert_outcomes(skipped=1, deselected=5)
    one = suite.record()["cases"]["fake"]
    assert suite.update("--run=results/run.json") == 0  # of one rank: of another machine
    done = torchrun("-k", "test_throughput and eager", damage=TIMED.format(factor=1.25), restarts=1)
    assert done.returncode == 0, done.stdout + done.stderr
    two = suite.record()["cases"]["fake"]
    rate = one["metrics"]["p_val_core"]["value"]
    values = {name: metric["value"] for name, metric in two["metrics"].items()}
    assert values["p_val_core"] == pytest.approx(rate * (1 + 1 / 1.25))
    assert values["p_val_whole"] == pytest.approx(2 * rate / 1.25)
    assert values["p_val_whole_one_rank"] == pytest.approx(rate)
    assert values["scaling_efficiency_val"] == pytest.approx(0.8)
    assert len(two["metrics"]["p_val_whole"]["samples"]) == 5
    assert two["workload"] == one["workload"]
    assert two["notes"]["throughput_ranks_val"] == 2
    below = f"rank 1 on {HOST}: 20.0 % below the median of the others"
    assert two["notes"]["slowest_rank_val"] == below
    said = " ".join(done.stdout.split())
    assert f"p_val: rank 1 on {HOST} is 20.0 % slower than the median of the other ranks" in said
    assert "no stored value in baselines/fake-cpu-x2/fake.json" in said
    assert suite.record()["environment"]["machine"] == "fake-cpu-x2"
    assert suite.update("--run=results/run.json") == 0
    assert (suite.root / "baselines" / "fake-cpu-x2" / "fake.json").exists()


HANGS_IN_A_ROUND = (
    TIMED.format(factor=1)
    + """

from perfline.measure.throughput import TimedRegion

timed = TimedRegion.round


def hanging(self):
    if RANK == "1" and len(self._rounds) == 2:
        time.sleep(100)
    return timed(self)


TimedRegion.round = hanging
"""
)


def test_a_rank_that_hangs_in_a_round_is_named_and_nothing_is_accepted(suite, torchrun):
    done = torchrun(
        "-k", "test_throughput", "--rank-timeout=2", damage=IMPATIENT + HANGS_IN_A_ROUND
    )
    assert done.returncode == 1
    errors = suite.record()["cases"]["fake"]["errors"]
    assert len(errors) == 2  # the other engine's test fails at once
    for error in errors:
        assert f"waited for rank 1 on {HOST} to end round 3: silent for 2 s" in error
    assert f"waited for rank 1 on {HOST} to end round 3" in done.stdout
    assert "p_val_core" not in suite.record()["cases"]["fake"]["metrics"]
    assert suite.update("--run=results/run.json") != 0


KILLED_IN_A_ROUND = (
    TIMED.format(factor=1)
    + """

from perfline.measure.throughput import TimedRegion

timed = TimedRegion.round


def killed(self):
    if RANK == "1" and len(self._rounds) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return timed(self)


TimedRegion.round = killed
"""
)


def test_a_rank_that_is_killed_in_a_round_leaves_nothing_to_accept(suite, torchrun):
    done = torchrun("-k", "test_throughput and eager", damage=KILLED_IN_A_ROUND)
    assert done.returncode != 0
    assert suite.record()["partial"] is True
    assert suite.update("--run=results/run.json") != 0


def test_settling_is_refused_before_anything_is_opened(suite, torchrun):
    done = torchrun("--settle=5")
    assert done.returncode != 0
    assert "--settle is for one device: under torchrun the other ranks hold theirs" in done.stderr


def test_a_full_pass_is_refused_before_anything_is_opened(suite, torchrun):
    done = torchrun("--full-pass")
    assert done.returncode != 0
    assert "--full-pass is for one device: under torchrun every rank would time" in done.stderr
    assert not (suite.root / "opened.log").exists()


def test_ranks_share_the_questions_of_an_engine_of_the_user_s_own(suite, torchrun):
    suite.script(prompts=64)
    (suite.root / "mine.py").write_text(
        "class Mine:\n"
        "    def __init__(self, case, weights): pass\n"
        "    def forward(self, batch, head): return batch\n"
        "    def answer(self, output): return output.label\n"
    )
    done = torchrun("--engines=mine:Mine", "-k", "stored")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "accuracy, mine: 2 ranks on 1 host answered 64 questions" in done.stdout
    assert suite.record()["cases"]["fake"]["metrics"]["acc_mine"]["value"] == 1.0
