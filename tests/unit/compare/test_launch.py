"""A worker's crash, hang, garbage or lack of memory is told with its stderr, and leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from launches import READY, ROUND, SOURCE, WORKLOAD, gone
from perfline.compare import messages, process, wire
from perfline.compare.launch import LaunchedWorker, Limits, ProcessLauncher
from perfline.compare.model import SIDES, Side, Turn
from perfline.compare.sides import Place
from perfline.engines.engine import Profile, Span
from perfline.errors import DeviceMemory, WorkerError
from perfline.fields import as_json

# Answers 'open' and 'round'; what it does else stands in the test.
POLITE = f"""
import json, os, sys, time
def reply(**message):
    print(json.dumps(dict(protocol=1, **message)), flush=True)
def serve(**doing):
    for line in sys.stdin:
        request = json.loads(line)
        word = request["ask"]
        if word in doing:
            doing[word](request)
        elif word == "open":
            reply(ok=dict({messages.ready_json(READY)!r}, pid=os.getpid()))
        elif word == "round":
            reply(ok={as_json(ROUND)!r})
        else:
            reply(error=dict(kind="WorkerError", message=word))
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, tmp_path, SOURCE, None)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    files, processes = open_files(), children()
    yield
    assert open_files() <= files
    assert children() <= processes  # not even a zombie


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def children() -> set[str]:
    lists = Path("/proc/self/task").glob("*/children")
    return {pid for path in lists for pid in path.read_text().split()}


def launcher(place: Place, script: str, **limits: float) -> ProcessLauncher:
    return ProcessLauncher(
        WORKLOAD,
        dict.fromkeys(SIDES, place),
        Limits(**limits),
        program=("-c", POLITE + script),
    )


def side(**change: object) -> Side:
    return Side("candidate", Path(sys.executable), **change)


def failing(launching: ProcessLauncher, **change: object) -> str:
    with pytest.raises(WorkerError) as caught:
        launching.start(side(**change)).wait_ready()
    return str(caught.value)


def ready(launching: ProcessLauncher) -> LaunchedWorker:
    return launching.start(side()).wait_ready()


def test_a_round_comes_back(place: Place):
    with launcher(place, "serve()") as launching:
        worker = ready(launching)
        assert worker.round(Turn(2)) == ROUND
        assert worker.ready.tokens == 100
        worker.close()
        assert gone(worker.ready.pid)


def test_two_are_alive_at_once_and_know_of_each_other(place: Place):
    script = """
def peers(request):
    reply(ok=dict(start_s=1, tokens=1, core_s=1, whole_s=1, waited_fraction=None, joules=None,
                  faults=request["peers"], health={}))
serve(round=peers)"""
    with launcher(place, script) as launching:
        workers = [pending.wait_ready() for pending in [launching.start(side()) for _ in "AB"]]
        pids = [str(worker.ready.pid) for worker in workers]
        assert [worker.round(Turn(1)).faults for worker in workers] == [(pids[1],), (pids[0],)]
        workers[0].close()
        assert workers[1].round(Turn(1)).faults == ()


def test_what_a_side_says_arrives(place: Place):
    script = """
def tell(request):
    found = [request["settings"], request["imports"], request["workload"]["case"],
             os.environ["SWITCH"], os.getcwd(), sys.argv[1:]]
    reply(error=dict(kind="WorkerError", message=json.dumps(found)))
serve(open=tell)"""
    with launcher(place, script) as launching, pytest.raises(WorkerError) as caught:
        launching.start(
            side(env={"SWITCH": "on"}, settings=(("a.b", "1=2"),), imports=("m",))
        ).wait_ready()
    told = json.loads(str(caught.value).partition(": ")[2])
    assert told == [["a.b=1=2"], ["m"], "tiny", "on", str(place.directory), ["--die-with-parent"]]


def test_a_crash_tells_status_question_and_stderr(place: Place):
    script = "print('about to fall', file=sys.stderr); sys.exit(3)"
    assert failing(launcher(place, script)) == (
        "candidate: was asked to load, compile and warm up case 'tiny' and ended with status 3; "
        "the end of its stderr:\n    about to fall"
    )


def test_a_silent_crash_says_so(place: Place):
    assert failing(launcher(place, "sys.exit(3)")).endswith("status 3; its stderr is empty")


def test_an_exception_is_shown(place: Place):
    assert failing(launcher(place, "1 / 0")).endswith("\n    ZeroDivisionError: division by zero")


def test_a_signal_is_named(place: Place):
    script = "serve(round=lambda request: os.kill(os.getpid(), 11))"
    with launcher(place, script) as launching:
        worker = ready(launching)
        asked = "for a round of 7 passes, part 2 of 3 and was ended by SIGSEGV"
        with pytest.raises(WorkerError, match=asked):
            worker.round(Turn(7, part=1, parts=3))
        with pytest.raises(WorkerError, match="for its peak memory after its process had ended"):
            worker.peak_memory_gib()
        worker.close()
        worker.close()


@pytest.mark.parametrize(("word", "told"), [("fingerprint", None), ("profile", False)])
def test_an_older_perfline_has_no_fingerprint_and_no_profile(place: Place, word: str, told: object):
    script = f"""
def old(request):
    reply(error=dict(kind="WorkerError", message="was asked for '{word}'; expected ready"))
serve({word}=old)
"""
    with launcher(place, script) as launching:
        assert getattr(ready(launching), word)() is told


def test_a_task_is_asked_by_its_name(place: Place):
    script = """
def told(request):
    reply(error=dict(kind="WorkerError", message="was asked for " + request["task"]))
serve(answers=told)
"""
    with launcher(place, script) as launching:
        worker = ready(launching)
        with pytest.raises(WorkerError, match=r"^candidate: was asked for ceval$"):
            worker.answers("ceval")
        with pytest.raises(WorkerError, match="for 4 answers to ceval after its process"):
            worker.answers("ceval")


def test_a_process_is_held_on_the_last_of_its_cores(place: Place):
    """As many as it computes on, all its threads; what computes on all cores is left alone."""
    usable = sorted(os.sched_getaffinity(0))
    with launcher(place, "import threading\nthreading.Thread(target=serve).start()") as launching:
        worker = ready(launching)
        worker.ready = replace(worker.ready, machine="cuda-x")
        assert worker.hold(1) == ()
        worker.ready = replace(worker.ready, machine="cpu-x")
        assert worker.hold(len(usable)) == worker.hold(0) == ()
        held = worker.hold(1)
        assert held == ((usable[-1],) if len(usable) > 1 else ())
        for task in Path(f"/proc/{worker.ready.pid}/task").iterdir():
            assert os.sched_getaffinity(int(task.name)) == {*(held or usable)}
        worker.close()
        assert worker.hold(1) == ()
    assert sorted(os.sched_getaffinity(0)) == usable


def test_profiles_come_over_the_wire(place: Place):
    sent = Profile(900, 0.5, False, (Span("", "Python", 0.1, 5), Span("norm", "aten::mul", 0.0, 1)))
    script = f"""
def told(request):
    assert request["trace"] == "/tmp/x.json"
    reply(ok=dict(profiled=True))
serve(profile=told, profiles=lambda request: reply(ok=dict(profiles=[{as_json(sent)!r}])))
"""
    with launcher(place, script) as launching:
        worker = ready(launching)
        assert worker.profile(Path("/tmp/x.json"))
        assert worker.profiles() == (sent,)


def test_a_profile_that_is_none_is_refused(place: Place):
    sent = as_json(Profile(900, 0.5, False, (Span("norm", "aten::mul", 0.25, 1),)))
    sent["spans"][0]["seconds"] = -1
    script = f"serve(profiles=lambda request: reply(ok=dict(profiles=[{sent!r}])))"
    with (
        launcher(place, script) as launching,
        pytest.raises(WorkerError, match=r"spans\.0\.seconds"),
    ):
        ready(launching).profiles()


def test_only_the_end_of_a_long_stderr_is_shown(place: Place):
    script = r"""
sys.stderr.write("x" * 1_000_000 + "\n")
for i in range(100):
    sys.stderr.write(f"\x1b[31mline {i}\x1b[0m\x07\n")
sys.stderr.write("10%\r20%\r100%\n")
sys.stderr.flush()
os.write(2, b"\xff\n")
sys.exit(1)"""
    lines = failing(launcher(place, script)).split("\n    ")
    assert lines[-2:] == ["100%", "\N{REPLACEMENT CHARACTER}"]
    assert lines[1:14] == [f"line {i} " for i in range(87, 100)]
    assert len(lines) == 16


def test_a_hang_is_killed_and_told_with_the_place_where_it_hung(place: Place):
    script = """
import faulthandler, signal
faulthandler.register(signal.SIGUSR1, all_threads=False)
def wait_for_godot(request):
    print("waiting", file=sys.stderr, flush=True)
    time.sleep(600)
serve(round=wait_for_godot)"""
    with launcher(place, script, request_s=2, slack=0) as launching:
        worker = ready(launching)
        with pytest.raises(WorkerError) as caught:
            worker.round(Turn(1))
        assert gone(worker.ready.pid)
    told = str(caught.value)
    assert told.startswith(
        "candidate: was asked for a round of 1 passes, did not answer for 2 s, was killed\n"
    )
    assert "in wait_for_godot" in told
    assert told.endswith("the end of its stderr:\n    waiting")


def test_time_to_answer_grows_with_the_work(place: Place):
    with launcher(place, "serve()", request_s=10, slack=20) as launching:
        worker = ready(launching)
        assert worker._limit_s(500) == pytest.approx(10 + 20 * 500 * READY.pass_s)


def test_a_hang_in_starting_is_killed_even_before_it_listens(place: Place):
    assert "did not answer for 0.2 s" in failing(launcher(place, "time.sleep(600)", open_s=0.2))


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("hello", "sent what is no message: 'hello'"),
        ("\\x1b[2J", r"sent what is no message: '\\x1b[2J'"),
        ("[]", "sent []; expected a JSON object"),
        ("{}", "speaks protocol None, expected 1"),
        ('{"protocol": 2, "ok": {}}', "speaks protocol 2, expected 1"),
        ('{"protocol": 1}', "key 'error' is missing"),
        ('{"protocol": 1, "ok": {}}', "key 'ok.pid' is missing"),
        ('{"protocol": 1, "ok": 4}', "key 'ok' is 4"),
        ('{"protocol": 1, "error": {"kind": 1}}', "key 'error.kind' is 1"),
        ("a\\nb", "sent more than the answer to what it was asked"),
    ],
)
def test_garbage_is_no_answer(place: Place, said: str, problem: str):
    with launcher(place, f"print('''{said}''', flush=True); time.sleep(600)") as launching:
        told = failing(launching)
        assert problem in told
        assert launching.peers(None) == []  # type: ignore[arg-type]


def test_a_round_of_no_time_is_no_round(place: Place):
    bad = {**as_json(ROUND), "core_s": 0}
    script = f"serve(round=lambda request: reply(ok={bad!r}))"
    with launcher(place, script) as launching:
        worker = ready(launching)
        with pytest.raises(WorkerError, match=r"key 'ok\.core_s' is 0"):
            worker.round(Turn(1))
        assert gone(worker.ready.pid)


def test_endless_output_is_no_answer(place: Place, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process, "_LONGEST_REPLY", 1000)
    told = failing(launcher(place, "print('x' * 5000, end='', flush=True); time.sleep(600)"))
    assert "without a line's end" in told


@pytest.mark.parametrize(("kind", "error"), [("DeviceMemory", DeviceMemory), ("Odd", WorkerError)])
def test_a_refusal_is_one_line_of_its_kind(place: Place, kind: str, error: type[Exception]):
    script = f"serve(round=lambda request: reply(error=dict(kind='{kind}', message='no room')))"
    with launcher(place, script) as launching:
        worker = ready(launching)
        with pytest.raises(error, match=r"^candidate: no room$"):
            worker.round(Turn(1))
        assert gone(worker.ready.pid)


@pytest.mark.parametrize(("kills", "error"), [((7, 8), DeviceMemory), ((7, 7), WorkerError)])
def test_the_kernels_oom_killer_is_lack_of_memory(
    place: Place, monkeypatch: pytest.MonkeyPatch, kills: tuple[int, int], error: type[Exception]
):
    counts = iter(kills)
    monkeypatch.setattr(process, "_oom_kills", lambda: next(counts))
    script = "os.kill(os.getpid(), 9)"
    with launcher(place, script) as launching, pytest.raises(error, match="was ended by SIGKILL"):
        ready(launching)


def test_kernels_that_do_not_count_oom_kills(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(process, "_VMSTAT", tmp_path / "vmstat")
    assert process._oom_kills() == 0
    (tmp_path / "vmstat").write_text("nr_free_pages 1\noom_kill 12\n")
    assert process._oom_kills() == 12


@pytest.mark.parametrize("how", ["missing", "no program", "no permission"])
def test_what_cannot_be_started_is_one_line(place: Place, tmp_path: Path, how: str):
    python = tmp_path / "python"
    if how != "missing":
        python.write_text("nonsense")
        python.chmod(0o755 if how == "no program" else 0o644)
    with (
        launcher(place, "") as launching,
        pytest.raises(WorkerError, match=r"^baseline: \S+/python cannot be started: [^\n]+$"),
    ):
        launching.start(Side("baseline", python))


def test_a_grandchild_that_holds_the_pipe_does_not_hide_a_crash(place: Place):
    script = """
if os.fork() == 0:
    time.sleep(600)
os._exit(5)"""
    assert "ended with status 5" in failing(launcher(place, script))


def test_what_a_worker_started_ends_with_it(place: Place, tmp_path: Path):
    script = """
child = os.fork()
if child == 0:
    time.sleep(600)
open("child", "w").write(str(child))
serve()"""
    with launcher(place, script) as launching:
        ready(launching)
    assert gone(int((tmp_path / "child").read_text()))


def test_a_pending_launch_can_be_ended(place: Place):
    pending = launcher(place, "time.sleep(600)").start(side())
    pending.close()
    pending.close()
    with pytest.raises(WorkerError, match="case 'tiny' and has been ended since"):
        pending.wait_ready()


def test_ctrl_c_reaches_the_parent_only(place: Place):
    with launcher(place, "serve()") as launching:
        pid = ready(launching).ready.pid
        assert os.getsid(pid) == os.getpgid(pid) == pid != os.getsid(0)


def test_an_interrupt_while_waiting_ends_the_processes(place: Place):
    launching = launcher(place, "time.sleep(600)")
    pending = launching.start(side())
    interrupt = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    # A job in the background of a shell, as CI's may be, ignores SIGINT from its start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt.start()
    try:
        with launching, pytest.raises(KeyboardInterrupt):
            pending.wait_ready()
    finally:
        interrupt.join()
        signal.signal(signal.SIGINT, before)
    assert gone(pending._process.pid)


# The real worker from here on: it opens no case, as what it imports first does not come back.

PARENT = """
import sys, threading
from pathlib import Path
from perfline.compare.model import Side, Workload
from perfline.compare.launch import ProcessLauncher
from perfline.compare.sides import Place
here = Path(sys.argv[1])
place = Place(here, here, Path(sys.argv[2]), None)
launching = ProcessLauncher(Workload("tiny", (), None, "real", "eager", 4), {"candidate": place})
def start():
    pending = launching.start(Side("candidate", Path(sys.executable), imports=("stuck",)))
    print(pending._process.pid, flush=True)
    threading.Event().wait()
if sys.argv[3] == "thread":
    threading.Thread(target=start).start()
else:
    start()
"""
SLEEPING = "import time\nopen('stuck.pid', 'w').close()\ntime.sleep(600)"
HOLDING_THE_LOCK = "import ctypes\nopen('stuck.pid', 'w').close()\nctypes.PyDLL(None).sleep(600)"


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel: Linux only")
@pytest.mark.parametrize(
    ("stuck", "started_by"),
    [(SLEEPING, "thread"), (SLEEPING, "main"), (HOLDING_THE_LOCK, "main")],
    ids=["by its input's end", "asleep", "in C, holding the lock"],
)
def test_a_worker_dies_with_a_parent_that_was_killed(tmp_path: Path, stuck: str, started_by: str):
    (tmp_path / "stuck.py").write_text(stuck)
    command = [sys.executable, "-c", PARENT, str(tmp_path), str(SOURCE), started_by]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(SOURCE)}
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        for _ in range(5000):
            if (tmp_path / "stuck.pid").exists():
                break
            time.sleep(0.02)
        time.sleep(0.1)
        alive = Path(f"/proc/{pid}/cmdline").read_bytes()
        parent.kill()
    assert b"perfline.compare.worker" in alive
    assert gone(pid)


def test_what_a_library_prints_goes_to_stderr(place: Place, tmp_path: Path):
    (tmp_path / "loud.py").write_text(
        "import os\nprint('printed')\nos.write(1, b'written\\n')\nos.system('echo shouted')\n"
        "assert input is not None and not os.read(0, 1)\nimport no_such_module"
    )
    (tmp_path / "crash.py").write_text("import loud_too, os\nos._exit(9)")
    (tmp_path / "loud_too.py").write_text((tmp_path / "loud.py").read_text().rpartition("\n")[0])
    launching = ProcessLauncher(WORKLOAD, {"candidate": place})
    assert "cannot import 'loud': No module named" in failing(launching, imports=("loud",))
    said = failing(launching, imports=("crash",)).split("\n    ")
    assert set(said[1:]) == {"printed", "written", "shouted"}


def test_a_segmentation_fault_shows_where(place: Place, tmp_path: Path):
    (tmp_path / "fault.py").write_text(
        "import ctypes\ndef deep():\n    ctypes.string_at(0)\ndeep()"
    )
    told = failing(ProcessLauncher(WORKLOAD, {"candidate": place}), imports=("fault",))
    assert "was ended by SIGSEGV" in told
    assert "fault.py" in told


def test_a_wrong_setting_is_told_without_loading_anything(place: Place):
    with (
        ProcessLauncher(WORKLOAD, {"candidate": place}) as launching,
        pytest.raises(WorkerError, match=r"^candidate: .*key 'engine.mod' is not known"),
    ):
        launching.start(side(settings=(("engine.mod", "x"),))).wait_ready()


def test_a_refusal_holds_printable_characters_and_no_command_of_github_s(place: Place):
    message = "\x1b[31ma\x1b]0;t\x07\n::error::b ##[error]c std::bad_alloc"
    script = f"serve(round=lambda request: reply(error=dict(kind='E', message={message!r})))"
    with launcher(place, script) as launching:
        worker = ready(launching)
        with pytest.raises(WorkerError) as caught:
            worker.round(Turn(1))
    assert str(caught.value) == "candidate: a ]0;t  : :error::b ## [error]c std::bad_alloc"


def test_the_end_of_stderr_holds_no_command_of_github_s(place: Place):
    script = "print('::error::a', '##[group]b', sep=chr(10), file=sys.stderr); sys.exit(3)"
    lines = failing(launcher(place, script)).splitlines()
    assert [line.strip() for line in lines[-2:]] == [": :error::a", "## [group]b"]


def test_an_older_perfline_says_nothing_of_packages():
    sent = messages.ready_json(replace(READY, packages={"torch": "2.13.0"}))
    assert messages.ready(wire.parse(wire.line(**sent), "a")).packages == {"torch": "2.13.0"}
    del sent["packages"]
    assert messages.ready(wire.parse(wire.line(**sent), "a")).packages == {}


@pytest.mark.parametrize("room", ["compare", "ab"])
def test_a_side_may_hold_an_older_perfline_whose_worker_stood_elsewhere(
    place: Place, tmp_path: Path, room: str
):
    package = tmp_path / "perfline" / room
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "worker.py").write_text(f"{POLITE}\ndef main(arguments):\n    serve()\n")
    with ProcessLauncher(WORKLOAD, dict.fromkeys(SIDES, place)) as launching:
        assert ready(launching).round(Turn(2)) == ROUND
