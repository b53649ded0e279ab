"""The ``python`` that other tests start: is it one, but for what it has imported already?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fork_server import ForkServer
from launches import gone

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="python() is sys.executable there")
TELL = """
import os, sys
print("wave" in sys.modules, sys.argv, os.getcwd(), os.environ["TOLD"], __name__, sys.stdin.read())
print(os.environ.get("LEFT_OUT"), sys.path[:2], file=sys.stderr)
sys.exit(3)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    started = ForkServer(["wave"])
    yield started
    started.stop()
    assert not Path(started.python).exists()


def run(server: ForkServer, *words: str, **how: object) -> subprocess.CompletedProcess[str]:
    command = [server.python, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, **how)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("words", [("-c", TELL), ("-u", "-m", "tell"), ("{there}/tell.py",)])
def test_a_command_has_its_own_words_streams_directory_and_environment(
    server, tmp_path: Path, words, monkeypatch
):
    (there := tmp_path / "there").mkdir()
    (there / "tell.py").write_text(TELL)
    monkeypatch.setenv("LEFT_OUT", "of what the command is given")
    environment = {"PATH": os.environ["PATH"], "TOLD": "x", "PYTHONPATH": f"{there}:/else"}
    kept = {key: value for key, value in os.environ.items() if key.startswith("PYTHON")}
    words = [word.format(there=there) if "there" in word else word for word in words]
    done = run(server, *words, "more", cwd=tmp_path, env={**kept, **environment}, input="typed")
    name = {"-c": "-c", "-u": str(there / "tell.py")}.get(words[0], words[0])
    assert done.stdout == f"True {[name, 'more']} {tmp_path} x __main__ typed\n"
    first = {"-c": "", "-u": str(tmp_path)}.get(words[0], str(there))
    assert done.stderr == f"None {[first, str(there)]}\n"
    assert done.returncode == 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_it_ends_by_the_signal_that_ended_the_command(server, number):
    code = f"import os; os.kill(os.getpid(), {number:d})"
    assert run(server, "-c", code).returncode == -number


def test_it_ends_after_its_threads_and_with_what_was_left_to_do(server):
    code = (
        "import atexit, sys, threading, time; atexit.register(print, 'last')\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()\n"
        "sys.exit('no')"
    )
    done = run(server, "-c", code)
    assert (done.stdout, done.stderr, done.returncode) == ("thread\nlast\n", "no\n", 1)
    closed = run(server, "-c", "import sys; print(1); sys.stdout.close()")
    assert (closed.stdout, closed.stderr, closed.returncode) == ("1\n", "", 0)


def test_an_exception_is_status_1_with_its_traceback(server):
    done = run(server, "-c", "1 / 0")
    assert done.returncode == 1
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_without_what_was_read_at_import_it_is_started_anew(server):
    code = "import sys; print('wave' in sys.modules)"
    for words, environment, forked in (
        (["-c", code], {}, True),
        (["-c", code], {"TORCHINDUCTOR_CACHE_DIR": "/x", "TORCHELASTIC_RUN_ID": "1"}, True),
        (["-c", code], {"TORCHINDUCTOR_MAX_AUTOTUNE": "1"}, False),
        (["-W", "error", "-c", code], {}, False),
    ):
        done = run(server, *words, env=os.environ | environment)
        assert done.stdout == f"{forked}\n", words


CHILD = """
import os, signal, subprocess, sys, time

signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


def test_a_killed_one_takes_the_command_and_all_that_it_started_along(server):
    with subprocess.Popen([server.python, "-c", CHILD], stdout=subprocess.PIPE) as asked:
        assert asked.stdout is not None
        pids = [int(pid) for pid in asked.stdout.readline().split()]
        asked.kill()
    assert [gone(pid) for pid in pids] == [True, True]


def test_a_signal_reaches_the_command(server):
    with subprocess.Popen([server.python, "-c", CHILD], stdout=subprocess.PIPE) as asked:
        assert asked.stdout is not None
        _, child = map(int, asked.stdout.readline().split())
        asked.terminate()
        os.kill(child, signal.SIGKILL)
    assert asked.returncode == 7


def test_a_stopped_server_takes_everything_along():
    server = ForkServer([])
    with subprocess.Popen([server.python, "-c", CHILD], stdout=subprocess.PIPE) as asked:
        assert asked.stdout is not None
        pids = [int(pid) for pid in asked.stdout.readline().split()]
        server.stop()
    assert [gone(pid) for pid in pids] == [True, True]
