"""Ranks of one launch: scripted ones, started as torchrun does it; who failed is told by name."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from launches import READY, ROUND, SOURCE, WORKLOAD, gone
from perfline.compare import messages, process
from perfline.compare import process as ranked
from perfline.compare.launch import LaunchedWorker, Limits, ProcessLauncher
from perfline.compare.model import SIDES, Side, Turn, Workload
from perfline.compare.sides import Place
from perfline.errors import DeviceMemory, WorkerError
from perfline.fields import as_json

HOST = socket.gethostname()
RANKS = Workload(**{**vars(WORKLOAD), "ranks": 2})

# Rank 0 answers as scripted; rank 1 waits. Each in a session, its stderr in a file, as torchrun's.
TORCHRUN = f"""
import os, pathlib, signal, subprocess, sys, time

(logs,) = [word.partition("=")[2] for word in sys.argv if word.startswith("--logs=")]
assert "--ranks=2" in sys.argv
if "RANK" not in os.environ:
    children = []
    for rank in "01":
        place = pathlib.Path(logs, "run_x", "attempt_0", rank)
        place.mkdir(parents=True)
        children.append(subprocess.Popen(
            [sys.executable, "-c", os.environ["SCRIPT"], *sys.argv[1:]],
            env=dict(os.environ, RANK=rank),
            stderr=(place / "stderr.log").open("w"),
            start_new_session=True,
        ))
    while all(child.poll() is None for child in children):
        time.sleep(0.01)
    (rank,) = [n for n, child in enumerate(children) if child.poll() is not None][:1]
    for child in children:
        child.kill()
        child.wait()
    print("torchrun's own words", file=sys.stderr)
    if "SILENT" not in os.environ:
        print(f'''Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_00:00:00
  rank      : {{rank}} (local_rank: {{rank}})
  exitcode  : {{children[rank].returncode}} (pid: 7)''', file=sys.stderr)
    sys.exit(1)

import faulthandler, json
faulthandler.register(signal.SIGUSR1, all_threads=False)
pid = pathlib.Path(logs, "pid")
def until(path):
    while not path.exists():
        time.sleep(0.01)
def reply(**message):
    print(json.dumps(dict(protocol=1, **message)), flush=True)
def serve(**doing):
    for line in sys.stdin:
        request = json.loads(line)
        word = request["ask"]
        if word in doing:
            doing[word](request)
        elif word == "open":
            until(pid)
            time.sleep(0.01)
            others = [pid.read_text()]
            reply(ok=dict({messages.ready_json(READY)!r}, pid=os.getpid(), others=others))
        else:
            reply(ok={as_json(ROUND)!r})
    sys.exit(0)
def other():
    time.sleep(600)
def main(other=other, **doing):
    if os.environ["RANK"] == "0":
        serve(**doing)
    pid.write_text(str(os.getpid()))
    other()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return Place(tmp_path, tmp_path, SOURCE, None)


@pytest.fixture(autouse=True)
def nothing_is_left(place: Place):
    yield
    assert list(place.directory.glob("perfline-*")) == []


def launcher(place: Place, script: str, **limits: float) -> ProcessLauncher:
    program = ("-c", TORCHRUN)
    launching = ProcessLauncher(RANKS, dict.fromkeys(SIDES, place), Limits(**limits), program)
    launching.script = script  # type: ignore[attr-defined]
    return launching


def ready(launching: ProcessLauncher, **env: str) -> LaunchedWorker:
    script = TORCHRUN + launching.script  # type: ignore[attr-defined]
    side = Side("candidate", Path(sys.executable), env={"SCRIPT": script, **env})
    return launching.start(side).wait_ready()


def failing_round(launching: ProcessLauncher, error: type[Exception] = WorkerError, **env: str):
    with launching:
        worker = ready(launching, **env)
        with pytest.raises(error) as caught:
            worker.round(Turn(1))
        assert gone(worker.ready.pid)
        assert all(map(gone, worker.ready.others))
    return str(caught.value)


def test_a_launch_is_spoken_to_through_rank_0_and_leaves_nothing(place: Place, tmp_path: Path):
    script = """
if os.environ["RANK"] == "1":
    child = os.fork()
    if child == 0:
        os.setsid()  # out of reach of a signal to any group
        time.sleep(600)
    (pathlib.Path.cwd() / "child").write_text(str(child))
main()"""
    with launcher(place, script) as launching:
        worker = ready(launching)
        assert worker.round(Turn(3)) == ROUND
        pids = [worker.ready.pid, *worker.ready.others, int((tmp_path / "child").read_text())]
        assert len(set(pids)) == 3
        worker.close()
        assert [pid for pid in pids if ranked._runs(pid)] == []  # at once
        worker.close()


def test_all_ranks_of_the_other_side_may_be_on_the_devices(place: Place):
    script = """
def peers(request):
    reply(ok=dict(start_s=1, tokens=1, core_s=1, whole_s=1, waited_fraction=None, joules=None,
                  faults=request["peers"], health={}))
main(round=peers)"""
    with launcher(place, script) as launching:
        a, b = ready(launching), ready(launching)
        pids = [tuple(map(str, (each.ready.pid, *each.ready.others))) for each in (a, b)]
        assert [worker.round(Turn(1)).faults for worker in (a, b)] == pids[::-1]


@pytest.mark.parametrize(
    ("end", "how"),
    [
        ("os.kill(os.getpid(), 9)", "was ended by SIGKILL"),
        ("sys.exit('no device')", "ended with status 1"),
    ],
)
def test_a_rank_that_ends_is_named_with_its_own_stderr(place: Place, end: str, how: str):
    script = f"""
def other():
    until(pathlib.Path(logs, "go"))
    print("said rank 1", file=sys.stderr, flush=True)
    {end}
main(other, round=lambda request: pathlib.Path(logs, "go").touch())"""
    told = failing_round(launcher(place, script))
    assert told.startswith(
        f"candidate: was asked for a round of 1 passes and rank 1 on {HOST} {how}; "
        "the end of its stderr:\n    said rank 1"
    )
    assert "torchrun" not in told


def test_what_a_rank_tells_of_another_that_has_ended_is_that_one_s_end(place: Place):
    script = """
def other():
    until(pathlib.Path(logs, "go"))
    os.kill(os.getpid(), 11)
def lost(request):
    pathlib.Path(logs, "go").touch()
    reply(error=dict(kind="RankError", message="rank 0 and rank 1 did not go on together"))
main(other, round=lost)"""
    assert f"and rank 1 on {HOST} was ended by SIGSEGV" in failing_round(launcher(place, script))


def test_what_a_rank_tells_of_another_that_goes_on_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("perfline.compare.process._NEWS_S", 0.1)
    script = """
def lost(request):
    reply(error=dict(kind="RankError", message="rank 1 on x: logits are not finite"))
main(round=lost)"""
    told = failing_round(launcher(place, script))
    assert told == "candidate: rank 1 on x: logits are not finite"


def test_a_full_device_of_any_rank_is_lack_of_memory(place: Place):
    script = """
def full(request):
    reply(error=dict(kind="DeviceMemory", message="rank 1 on x: out of memory"))
main(round=full)"""
    told = failing_round(launcher(place, script), DeviceMemory)
    assert told == "candidate: rank 1 on x: out of memory"


def test_the_kernels_oom_killer_may_take_any_rank(place: Place, monkeypatch: pytest.MonkeyPatch):
    counts = iter((7, 8))
    monkeypatch.setattr(process, "_oom_kills", lambda: next(counts))
    script = """
def other():
    until(pathlib.Path(logs, "go"))
    os.kill(os.getpid(), 9)
main(other, round=lambda request: pathlib.Path(logs, "go").touch())"""
    told = failing_round(launcher(place, script), DeviceMemory)
    assert f"rank 1 on {HOST} was ended by SIGKILL: the machine's memory was full" in told


def test_a_report_that_cannot_be_read_is_shown(place: Place):
    script = "main(round=lambda request: sys.exit(3))"
    told = failing_round(launcher(place, script), SILENT="1")
    assert "and torchrun ended with status 1" in told
    assert told.endswith("torchrun's own words")


def test_a_torchrun_that_was_killed_takes_its_ranks_with_it(place: Place):
    script = "main(round=lambda request: os.kill(os.getppid(), 9))"
    assert "and torchrun was ended by SIGKILL" in failing_round(launcher(place, script))


WAITS = "def wait_for():\n    import time\n    time.sleep(600)\n"


def test_of_ranks_that_hang_the_one_that_others_wait_for_is_shown(place: Place, tmp_path: Path):
    (tmp_path / "group.py").write_text(WAITS)
    script = """
import group
def sulks():
    print("about to sulk", file=sys.stderr, flush=True)
    time.sleep(600)
main(sulks, round=lambda request: group.wait_for())"""
    told = failing_round(launcher(place, script, request_s=2, slack=0))
    lines = told.split("\n    ")
    assert lines[0].endswith("passes, did not answer for 2 s, was killed")
    assert lines[1] == f"rank 1 on {HOST}:"
    assert "in sulks" in told
    assert "wait_for" not in told
    assert told.endswith("the end of its stderr:\n    about to sulk")


def test_ranks_that_all_wait_are_shown_as_well(place: Place, tmp_path: Path):
    (tmp_path / "group.py").write_text(WAITS)
    script = "import group\nmain(group.wait_for, round=lambda request: group.wait_for())"
    told = failing_round(launcher(place, script, request_s=2, slack=0))
    assert told.count("in wait_for") == 2
    assert f"rank 0 on {HOST}:" in told


def test_a_perfline_that_knows_of_no_ranks_is_refused(place: Place):
    script = f"""
def alone(request):
    reply(ok={ {k: v for k, v in messages.ready_json(READY).items() if k != "others"}!r})
main(open=alone)"""
    expected = r"^candidate: started 1 of 2 ranks: the perfline of its ref is older than --ranks"
    with launcher(place, script) as launching, pytest.raises(WorkerError, match=expected):
        ready(launching)


def test_a_hang_before_there_are_ranks_is_told(place: Place):
    launching = ProcessLauncher(
        RANKS, {"candidate": place}, Limits(open_s=0.3), ("-c", "import time; time.sleep(600)")
    )
    with launching, pytest.raises(WorkerError, match=r"did not answer for 0\.3 s, was killed; its"):
        launching.start(Side("candidate", Path(sys.executable))).wait_ready()


# The real worker from here on; nothing is loaded.


def test_an_interpreter_without_torch_says_so_before_torchrun_is_missed(
    place: Place, tmp_path: Path
):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'torch' else find(name, *more)\n"
    )
    launching = ProcessLauncher(RANKS, {"candidate": place})
    with launching, pytest.raises(WorkerError, match=r"has no torch; install: \S+ -m pip install"):
        launching.start(Side("candidate", Path(sys.executable))).wait_ready()


def test_a_rank_ends_with_the_comparison_and_reads_nothing_of_what_it_says(tmp_path: Path):
    from perfline.compare import worker

    source, sink = os.pipe()
    os.write(sink, b"for rank 0\n")
    child = os.fork()
    if child == 0:
        os.close(sink)
        os.setsid()
        worker._outlive_nobody(source)
        os._exit(0)
    time.sleep(0.2)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)  # what is there to read does not wake it
    assert os.read(source, 100) == b"for rank 0\n"
    os.close(sink)
    assert os.waitpid(child, 0) == (child, 9)
    os.close(source)
