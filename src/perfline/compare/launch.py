"""How do the launches of ``perfline compare`` start, and what can be asked of them?

``model.Launcher``, ``PendingWorker`` and ``Worker`` over real processes (``process.Process``, and
of several ranks ``process.RankedProcess``), which run ``perfline.compare.worker`` in their
side's place. Two launches may be alive at once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from perfline.compare import messages
from perfline.compare.model import (
    FidelityNumbers,
    GeneratedTokens,
    Ready,
    References,
    Round,
    Side,
    SideName,
    Turn,
    Workload,
)
from perfline.compare.process import Process, RankedProcess
from perfline.compare.sides import Place
from perfline.compare.worker import DIE_WITH_PARENT
from perfline.engines.engine import Fingerprint, Profile
from perfline.errors import WorkerError
from perfline.fields import Node, as_json
from perfline.tasks.answers import Answers

# A side may hold an older perfline, whose worker stood in another place.
WORKER = (
    "-c",
    "import sys, perfline; from importlib import import_module, util; "
    "new, old = 'perfline.compare.worker', 'perfline.ab.worker'; "
    "worker = import_module(new if util.find_spec('perfline.compare') else old); "
    "sys.exit(worker.main(sys.argv[1:]))",
)
_Told = TypeVar("_Told")
_LONG_PROMPT = 4096  # tokens; for a time limit


@dataclass(frozen=True)
class Limits:
    """How long a worker may take before it is taken for hanging, and killed.

    Attributes:
        open_s: to load, compile and warm up.
        request_s: for a request, and ``slack`` times what its passes take when warm.
    """

    open_s: float = 3600.0
    request_s: float = 300.0
    slack: float = 20.0


@dataclass
class ProcessLauncher:
    """Starts real processes; as a context manager it leaves none behind.

    Attributes:
        places: where each side runs (``sides.places``).
        program: what follows the interpreter on the command line.
    """

    workload: Workload
    places: Mapping[SideName, Place]
    limits: Limits = Limits()
    program: Sequence[str] = WORKER
    _live: list[Process] = field(default_factory=list)

    def start(self, side: Side) -> PendingLaunch:
        """Start the process of a side and send it to work; WorkerError where it does not start."""
        place = self.places[side.name]
        # The kernel ends it with the thread that started it, and only the main one surely stays.
        in_main = threading.current_thread() is threading.main_thread()
        command = [str(side.python), *self.program, *([DIE_WITH_PARENT] if in_main else [])]
        env, ranks = place.environment(side.env), self.workload.ranks
        if ranks == 1:
            process = Process(side.name, command, place.directory, env)
        else:
            command += [f"--import={name}" for name in side.imports]  # by every rank, first of all
            process = RankedProcess(side.name, command, place.directory, env, ranks)
        self._live = [other for other in self._live if not other.ended] + [process]
        process.send(
            f"to load, compile and warm up case '{self.workload.case}'",
            ask="open",
            workload=messages.workload_json(self.workload),
            settings=[f"{key}={value}" for key, value in side.settings],
            imports=list(side.imports),
        )
        return PendingLaunch(process, self)

    def peers(self, process: Process) -> list[int]:
        """Processes of ours that may be on the device beside ``process``."""
        others = [other for other in self._live if other is not process and not other.ended]
        return [pid for other in others for pid in (other.pid, *other.others)]

    def close(self) -> None:
        """End all processes that are still there."""
        for process in self._live:
            process.end()

    def __enter__(self) -> ProcessLauncher:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End all processes that are still there."""
        self.close()


@dataclass
class PendingLaunch:
    """A process that loads, compiles and warms up."""

    _process: Process
    _launcher: ProcessLauncher

    def wait_ready(self) -> LaunchedWorker:
        """Wait until it is ready; where it fails it is gone."""
        ready = self._process.receive(self._launcher.limits.open_s, self._ready)
        self._process.pid, self._process.others = ready.pid, ready.others
        return LaunchedWorker(ready, self._process, self._launcher)

    def _ready(self, found: Node) -> Ready:
        ready, ranks = messages.ready(found), self._launcher.workload.ranks
        if 1 + len(ready.others) != ranks:
            raise WorkerError(
                f"{self._process.name}: started {1 + len(ready.others)} of {ranks} ranks: the "
                "perfline of its ref is older than --ranks; compare a newer ref"
            )
        return ready

    def close(self) -> None:
        """End the process."""
        self._process.end()


@dataclass
class LaunchedWorker:
    """A process that is ready."""

    ready: Ready
    _process: Process
    _launcher: ProcessLauncher

    def hold(self, threads: int) -> tuple[int, ...]:
        """Keep a process that computes on so many cores of a CPU on the last of its own.

        The last, since a system's own work is mostly on the first. They are returned; none where it
        may use no more than that, or the system cannot.
        """
        pid = self.ready.pid
        if not (self.ready.machine.startswith("cpu-") and hasattr(os, "sched_setaffinity")):
            return ()
        with suppress(OSError):  # it has ended: its next round says how
            usable = sorted(os.sched_getaffinity(pid))
            if 0 < threads < len(usable):
                held = usable[-threads:]
                for task in Path(f"/proc/{pid}/task").iterdir():
                    with suppress(ProcessLookupError):  # a thread that has ended meanwhile
                        os.sched_setaffinity(int(task.name), held)
                return tuple(held)
        return ()

    def round(self, turn: Turn) -> Round:
        """Time a turn."""
        peers = [str(pid) for pid in self._launcher.peers(self._process)]
        what = f"for a round of {turn.repeats} passes"
        if turn.parts > 1:
            what += f", part {turn.part + 1} of {turn.parts}"
        self._process.send(what, ask="round", **asdict(turn), peers=peers)
        limit_s = self._limit_s(turn.repeats)
        return self._process.receive(limit_s, lambda found: found.build(Round))

    def answers(self, task: str) -> Answers:
        """Answer the workload's questions of a task."""
        questions = self._launcher.workload.questions
        self._process.send(f"for {questions} answers to {task}", ask="answers", task=task)
        limit_s = self._limit_s(1 + questions * _LONG_PROMPT / self.ready.tokens)
        return self._process.receive(limit_s, messages.answers)

    def peak_memory_gib(self) -> float | None:
        """Peak device memory of all rounds so far."""
        self._process.send("for its peak memory", ask="peak")
        return self._process.receive(self._limit_s(0), _gib)

    def fingerprint(self) -> Fingerprint | None:
        """What runs inside a forward; None where that is not known.

        The perfline of an older ref does not know the question: its process ends with it.
        """
        self._process.send("for its fingerprint", ask="fingerprint")
        return self._optional("fingerprint", self._limit_s(10), _one("fingerprint", Fingerprint))

    def generated(self) -> tuple[GeneratedTokens, ...] | None:
        """What it generates behind the prompts of decode; None, and its end, as above."""
        self._process.send("for its tokens", ask="generated")
        return self._optional("generated", self._limit_s(10), _generated)

    def fidelity(self, references: References) -> FidelityNumbers | None:
        """What it computes in fp32; None, and its end, as above."""
        told = as_json(references)
        self._process.send("for its fp32 numbers", ask="fidelity", references=told)
        read = _one("fidelity", FidelityNumbers)
        return self._optional("fidelity", self._launcher.limits.open_s, read)

    def profile(self, trace: Path | None = None) -> bool:
        """One round under the profiler; False where the fingerprint is None."""
        self._process.send("for a profiled round", ask="profile", trace=str(trace or ""))
        done = self._optional("profile", self._launcher.limits.open_s, _profiled)
        return done is not None and done

    def profiles(self) -> tuple[Profile, ...]:
        """What was found in all profiled rounds."""
        self._process.send("for what its profiled rounds found", ask="profiles")
        return self._process.receive(self._launcher.limits.open_s, _profiles)

    def _optional(
        self, word: str, limit_s: float, read: Callable[[Node], _Told | None]
    ) -> _Told | None:
        """What came back to a question that an older perfline does not know."""
        try:
            return self._process.receive(limit_s, read)
        except WorkerError as error:
            if f"was asked for '{word}'" in str(error):
                return None
            raise

    def close(self) -> None:
        """End the process; safe to call twice, and after a crash."""
        self._process.end()

    def _limit_s(self, passes: float) -> float:
        limits = self._launcher.limits
        return limits.request_s + limits.slack * passes * self.ready.pass_s


def _one(word: str, kind: type[_Told]) -> Callable[[Node], _Told | None]:
    def read(found: Node) -> _Told | None:
        return None if found.data.get(word) is None else found.child(word).build(kind)

    return read


def _profiled(found: Node) -> bool:
    return bool(found.get("profiled", bool))


def _profiles(found: Node) -> tuple[Profile, ...]:
    return tuple(each.build(Profile) for each in found.items("profiles"))


def _generated(found: Node) -> tuple[GeneratedTokens, ...]:
    return tuple(each.build(GeneratedTokens) for each in found.items("generated"))


def _gib(found: Node) -> float | None:
    gib: float | None = found.get("gib", float | None)
    return gib
