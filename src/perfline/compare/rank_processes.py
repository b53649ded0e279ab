"""How are the ranks of one launch asked, timed out and ended, as if they were one process?

The process is torchrun, which starts the ranks; rank 0 is spoken to, through pipes that it
inherits. The ranks stand in sessions of their own and write their stderr to a file each. Which one
failed first is read from torchrun's report, so that errors show that rank's own words. At the end
all are found in the process table by a mark in their environment, killed, and waited for: what they
hold of a device is free when the next launch starts.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from perfline.compare.process import (
    KILL_S,
    TRACE_LINES,
    TRACE_S,
    Process,
    ending,
    lines,
    size,
    tail,
)
from perfline.compare.worktree import SCRATCH
from perfline.errors import DeviceMemory, WorkerError

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
        # Where this process is killed, the next comparison removes it (worktree.sweep_scratch).
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
