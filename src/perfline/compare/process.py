"""How is a worker process asked, timed out and ended, so that a failure is never a time?

It runs in a session of its own (Ctrl-C reaches the parent only) and is spoken to through two pipes
(``wire``). Its stderr goes to a file, whose end is shown when it crashes, hangs or talks nonsense.
Before any error is raised the process is gone, and its pipes are closed.

A launch of several ranks (``RankedProcess``) is torchrun and the ranks that it starts; rank 0 is
spoken to, through pipes that it inherits. The ranks stand in sessions of their own and write their
stderr to a file each. Which one failed first is read from torchrun's report, so that errors show
that rank's own words. At the end all are found in the process table by a mark in their environment,
killed, and waited for: what they hold of a device is free when the next launch starts.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, NoReturn, TypeVar

from perfline.compare import wire
from perfline.compare.sides import SCRATCH
from perfline.errors import DeviceMemory, WorkerError, printable
from perfline.fields import Node

Answer = TypeVar("Answer")

_TAIL_LINES = 15
_TAIL_BYTES = 16384
_LINE_LENGTH = 300
TRACE_LINES = 6  # the innermost frames
TRACE_S = 0.2  # to write them
KILL_S = 30.0
_LONGEST_REPLY = 1 << 28  # bytes; a line longer than this is no reply
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_VMSTAT = Path("/proc/vmstat")


class Process:
    """One worker process: send, receive, end. After a failure it is ended, and stays so.

    Attributes:
        name: of its side; errors begin with it.
        pid: may be that of a wrapper, until the worker has told its own.
        others: processes that belong to it and may be on a device, too.
    """

    def __init__(
        self, name: str, command: Sequence[str], directory: Path, env: Mapping[str, str]
    ) -> None:
        """Start ``command``; WorkerError where it cannot be."""
        self.name = name
        self._asked = ""
        self._read = b""
        self._oom_kills = _oom_kills()
        with ExitStack() as ends:
            self._stderr = ends.enter_context(tempfile.TemporaryFile())
            try:
                self._process = subprocess.Popen(
                    command,
                    cwd=directory,
                    env=env,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._stderr,
                    bufsize=0,
                    start_new_session=True,
                )
            except OSError as error:
                raise WorkerError(
                    f"{name}: {command[0]} cannot be started: {error.strerror}"
                ) from error
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._requests = ends.enter_context(self._process.stdin)
            self._replies = ends.enter_context(self._process.stdout)
            self._selector = ends.enter_context(selectors.DefaultSelector())
            self._selector.register(self._replies, selectors.EVENT_READ)
            self._ends: ExitStack | None = ends.pop_all()
        self.pid = self._process.pid
        self.others: tuple[int, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether it was ended."""
        return self._ends is None

    def send(self, what: str, **message: object) -> None:
        """Ask; ``what``, such as ``for its peak memory``, is how errors name it."""
        if self.ended:
            raise WorkerError(f"{self.name}: was asked {what} after its process had ended")
        self._asked = what
        rest = wire.line(**message)
        with suppress(BrokenPipeError):  # it crashed: receive() tells how
            while rest:
                rest = rest[os.write(self._requests.fileno(), rest) :]

    def receive(self, limit_s: float, read: Callable[[Node], Answer]) -> Answer:
        """What ``read`` makes of the answer; WorkerError, DeviceMemory where there is none."""
        if self.ended:
            raise WorkerError(f"{self.name}: was asked {self._asked} and has been ended since")
        line = self._line(limit_s)
        try:
            reply = wire.parse(line, self.name)
            if "ok" in reply.data:
                answer = read(reply.child("ok"))
                self._asked = ""
                return answer
            failure = reply.child("error")
            kind, message = failure.text("kind"), failure.text("message")
        except WorkerError as error:
            self._fail(f"{error}; it was asked {self._asked}")
        raise self._refusal(kind, message)

    def end(self) -> None:
        """Kill it, with all that it started, such as a compiler; safe to call twice."""
        ends, self._ends = self._ends, None
        if ends is None:
            return
        with ends:
            self._kill()
            with suppress(subprocess.TimeoutExpired):  # stuck in a device's driver
                self._process.wait(KILL_S)

    def _line(self, limit_s: float) -> bytes:
        """The next line that it writes."""
        deadline = time.monotonic() + limit_s
        while b"\n" not in self._read:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                self._hangs(limit_s)
            if self._selector.select(min(left_s, 1.0)):
                chunk = os.read(self._replies.fileno(), 1 << 20)
                if not chunk:
                    self._crashed()
                self._read += chunk
                if len(self._read) > _LONGEST_REPLY:
                    self._fail(f"{self.name}: sent {len(self._read)} bytes without a line's end")
            elif self._process.poll() is not None:  # what it forked may hold its pipe open
                self._crashed()
        line, _, self._read = self._read.partition(b"\n")
        if self._read:
            self._fail(f"{self.name}: sent more than the answer to what it was asked, {line!r:.80}")
        return line

    def _kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _refusal(self, kind: str, message: str) -> DeviceMemory | WorkerError:
        """End it, as it answered with an error; ``kind`` is that one's type."""
        self.end()
        error_type = DeviceMemory if kind == "DeviceMemory" else WorkerError
        return error_type(f"{self.name}: {_harmless(_plain(message))}")

    def _crashed(self) -> NoReturn:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        status = self._process.poll()
        self._ended_with(status, ending(status), self._said())

    def _ended_with(self, status: int | None, how: str, said: Sequence[str]) -> NoReturn:
        how = f"{self.name}: was asked {self._asked} and {how}"
        if status == -signal.SIGKILL and _oom_kills() > self._oom_kills:
            self.end()
            raise DeviceMemory(f"{how}: the machine's memory was full (the kernel's OOM killer)")
        self._fail(how, said)

    def _hangs(self, limit_s: float) -> NoReturn:
        where, said = self._where()
        how = f"{self.name}: was asked {self._asked}, did not answer for {limit_s:g} s, was killed"
        self._fail("\n    ".join([how, *where]), said)

    def _where(self) -> tuple[list[str], list[str]]:
        """Where it is (``faulthandler`` answers in the midst of anything); what it said before."""
        before, said = size(self._stderr), self._said()
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGUSR1)
            time.sleep(TRACE_S)
        return lines(self._stderr, before, size(self._stderr))[:TRACE_LINES], said

    def _said(self) -> list[str]:
        """The end of its stderr."""
        return tail(self._stderr)

    def _fail(self, message: str, said: Sequence[str] | None = None) -> NoReturn:
        """End it; raise ``message`` with ``said``, or with the end of its stderr."""
        shown = self._said() if said is None else said
        self.end()
        what = "the end of its stderr:" if shown else "its stderr is empty"
        raise WorkerError(_harmless("\n    ".join([f"{message}; {what}", *shown])))


def tail(file: IO[bytes]) -> list[str]:
    """The last lines of ``file``."""
    end = size(file)
    return lines(file, max(0, end - _TAIL_BYTES), end)[-_TAIL_LINES:]


def size(file: IO[bytes]) -> int:
    """Bytes in ``file`` by now."""
    return os.fstat(file.fileno()).st_size


def lines(file: IO[bytes], start: int, end: int) -> list[str]:
    """The lines of a stretch of ``file`` as they would stand on a terminal, without its codes."""
    raw = os.pread(file.fileno(), min(end - start, _TAIL_BYTES), start)
    text = _ESCAPE.sub("", raw.decode("utf-8", "replace"))
    shown = (line.rstrip().rpartition("\r")[2][:_LINE_LENGTH] for line in text.split("\n"))
    return [line for line in map(_plain, shown) if line.strip()]


def _plain(text: str) -> str:
    """One line of printable characters."""
    return printable(_ESCAPE.sub("", text), " ")


def _harmless(text: str) -> str:
    """``text`` without what GitHub's runner obeys: ``::word::`` first on a line, ``##[`` anywhere.

    A space goes before the second sign at the start of any word: who wraps it breaks lines there.
    """
    return re.sub(r"(?<!\S)::", ": :", text).replace("##[", "## [")


def ending(status: int | None) -> str:
    """How a process ended, in words."""
    if status is None:
        return "closed its end of the pipe"
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was ended by {name}"


def _oom_kills() -> int:
    """How many processes the kernel has killed for memory since it started: ``/proc/vmstat``."""
    try:
        found = re.search(r"^oom_kill (\d+)$", _VMSTAT.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found.group(1)) if found else 0


MARK = "PERFLINE_LAUNCH"  # set in the environment of all that a launch starts
_REPORT_S = 40.0  # torchrun gives its ranks 30 s to end, then tells which one failed
_NEWS_S = 2.0  # for torchrun to see that a rank has ended, and to end the others
_STUCK_SHOWN = 2  # ranks
_PROC = Path("/proc")
_WAITING = re.compile(r'/(?:group|rounds|parallel_rounds)\.py", line \d+ in (?:wait_for|_gather)$')


class RankedProcess(Process):
    """torchrun and the ranks of one launch."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        directory: Path,
        env: Mapping[str, str],
        ranks: int,
    ) -> None:
        """Start ``command``, which is told where the ranks' stderr goes; WorkerError as above."""
        self._ranks = ranks
        # Where this process is killed, the next comparison removes it (sides.sweep_scratch).
        self._scratch = tempfile.TemporaryDirectory(
            prefix=SCRATCH.format(pid=os.getpid()), ignore_cleanup_errors=True
        )
        logs = self._scratch.name
        try:
            started = [*command, f"--ranks={ranks}", f"--logs={logs}"]
            super().__init__(name, started, directory, {**env, MARK: logs})
        except BaseException:
            self._scratch.cleanup()
            raise

    def end(self) -> None:
        """Kill all ranks, with all that they started, and see them gone; safe to call twice."""
        super().end()
        self._scratch.cleanup()

    def _kill(self) -> None:
        # What dies already has no environment any more, but may still hold a device.
        alive, known = self._alive(), (self.pid, *self.others)
        super()._kill()
        deadline = time.monotonic() + KILL_S
        while alive and time.monotonic() < deadline:
            for pid in alive:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            while any(map(_runs, (*alive, *known))) and time.monotonic() < deadline:
                time.sleep(0.01)
            alive = self._alive()

    def _alive(self) -> list[int]:
        """All processes of this launch: those with its mark. None where there is no ``/proc``."""
        mark, found = f"{MARK}={self._scratch.name}\0".encode(), []
        for place in _PROC.glob("[0-9]*"):
            with suppress(OSError):  # another user's, or gone
                if mark in (place / "environ").read_bytes():
                    found.append(int(place.name))
        return found

    def _crashed(self) -> NoReturn:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_REPORT_S)
        self._tell_of_rank()
        status = self._process.poll()
        self._ended_with(status, f"torchrun {ending(status)}", self._said())

    def _refusal(self, kind: str, message: str) -> DeviceMemory | WorkerError:
        # Of a rank that has ended, it may be: its own words say more.
        if kind in ("RankError", "ReplicaLost"):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_NEWS_S)
            self._tell_of_rank()
        return super()._refusal(kind, message)

    def _tell_of_rank(self) -> None:
        """Fail with what torchrun reports of the first rank that failed; return if it does not."""
        report = os.pread(self._stderr.fileno(), size(self._stderr), 0).decode("utf-8", "replace")
        cause = report.rpartition("Root Cause")
        rank = re.search(r"^ *rank *: (\d+)", cause[2], re.MULTILINE)
        status = re.search(r"^ *exitcode *: (-?\d+)", cause[2], re.MULTILINE)
        if cause[1] and rank and status:
            number, code = int(rank[1]), int(status[1])
            said = self._said_by(number)
            self._ended_with(code, f"{_name(number)} {ending(code)}", said)

    def _where(self) -> tuple[list[str], list[str]]:
        """Where the ranks are that do not wait for others; what the first of them said before."""
        logs = self._logs()
        before = {rank: path.stat().st_size for rank, path in logs.items()}
        said = {rank: self._said_by(rank) for rank in logs}
        for pid in self._alive():
            if pid != self._process.pid:  # torchrun would die of it, and take all with it
                with suppress(OSError):
                    os.kill(pid, signal.SIGUSR1)
        time.sleep(TRACE_S)
        traces = {rank: _read(path, before[rank])[:TRACE_LINES] for rank, path in logs.items()}
        waiting = {rank for rank, trace in traces.items() if any(map(_WAITING.search, trace))}
        stuck = [rank for rank in traces if rank not in waiting] or list(traces)
        shown = stuck[:_STUCK_SHOWN]
        where = [line for rank in shown for line in (f"{_name(rank)}:", *traces[rank])]
        if len(stuck) > len(shown):
            where.append(f"and {len(stuck) - len(shown)} more ranks")
        return where, said[stuck[0]] if stuck else self._said()

    def _said(self) -> list[str]:
        """The end of rank 0's stderr; before there is one, of torchrun's."""
        return self._said_by(0) or super()._said()

    def _said_by(self, rank: int) -> list[str]:
        path = self._logs().get(rank)
        if path is None:
            return []
        with path.open("rb") as file:
            return tail(file)

    def _logs(self) -> dict[int, Path]:
        found = Path(self._scratch.name).glob("*/attempt_*/*/stderr.log")
        return {int(path.parent.name): path for path in sorted(found)}


def _read(path: Path, start: int) -> list[str]:
    with path.open("rb") as file:
        return lines(file, start, size(file))


def _name(rank: int) -> str:
    return f"rank {rank} on {socket.gethostname()}"


def _runs(pid: int) -> bool:
    """Whether it holds anything yet: a zombie does not, whoever fails to reap it."""
    try:
        state = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")
