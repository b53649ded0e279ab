"""How does one launch pair run: which rounds, in which order, on which cores?

Interleaved, two processes live side by side and take turns A B | B A | A B ..., so that a drift
over time weighs on both alike. Whenever the process changes, its turn (written a, b) is run once
before, and dropped: ``a A b B B a A A b B``. A turn is a round or, on a CPU, a part of one of
``TURN_S`` (every n-th prompt of a pass), the same for both sides: a core's speed changes within a
second. A round is the sum of its turns: a few prompts that got slower weigh in it as in a pass.

Where both do not fit on the device, whole launches follow each other: ``a A A A``, then
``b B B B``; the next pair begins with B.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from perfline.compare.model import (
    SIDES,
    FidelityNumbers,
    GeneratedTokens,
    Kind,
    Launcher,
    PendingWorker,
    Ready,
    Round,
    Side,
    SideName,
    Turn,
    Worker,
)
from perfline.compare.record import LaunchRecord, PairRecord, untimed
from perfline.errors import WorkerError
from perfline.tasks.answers import Answers

MIN_ROUND_PAIRS = 3
MAX_FAULTY_FRACTION = 0.2  # of a launch pair's round pairs
TURN_S = 0.03  # why so short: docs/compare.md

Check = Callable[[Mapping[SideName, Ready]], None]


@dataclass(frozen=True)
class Task:
    """What one launch pair is to do.

    Attributes:
        first: the side that starts, and is timed, first.
        rounds: kept rounds a side.
        repeats: passes a round; None chooses, so that a round of the slower side lasts
            ``min_round_s``.
        tasks: those of the case whose questions both sides also answer, its first one first, once
            the rounds are over; then they tell what they generate, too, where a round is of decode.
        workload: what a round is.
        fidelity: whether both tell, last of all, what they compute in fp32; A is then the first.
        threads: how many of a CPU's cores either side computes on, where that is known. Both are
            timed on the same ones: cores differ in speed (by what others run on a core's second
            thread, or by their kind), and which one a process wakes on is chance.
        keep: whether both processes are to live on, until ``Done.ends`` is closed.
        check: is given what both launches told of themselves before anything is timed, and raises
            where they cannot be compared.
    """

    first: SideName
    rounds: int
    repeats: int | None
    min_round_s: float
    tasks: tuple[str, ...]
    check: Check
    workload: Kind = "prefill"
    fidelity: bool = False
    threads: int = 0
    keep: bool = False

    @property
    def generate(self) -> bool:
        """Whether both sides tell what they generate."""
        return bool(self.tasks) and self.workload != "prefill"

    @property
    def order(self) -> tuple[SideName, SideName]:
        """Both sides, the first one first."""
        return SIDES if self.first == SIDES[0] else (SIDES[1], SIDES[0])


@dataclass(frozen=True)
class Done:
    """One launch pair, and what is not written for every pair.

    ``answers`` are by task, those of an older perfline to the case's first alone. ``alive`` are its
    processes where they live on, until ``ends`` is closed.
    """

    pair: PairRecord
    repeats: int
    ready: Mapping[SideName, Ready]
    answers: Mapping[SideName, Mapping[str, Answers]] = field(default_factory=dict)
    generated: Mapping[SideName, Sequence[GeneratedTokens] | None] = field(default_factory=dict)
    fidelity: Mapping[SideName, FidelityNumbers | None] = field(default_factory=dict)
    alive: Mapping[SideName, Worker] = field(default_factory=dict)
    ends: ExitStack = field(default_factory=ExitStack)


@dataclass
class Live:
    """One launch while it lives, and the rounds that were timed in it."""

    worker: Worker
    launch_s: float
    workload: Kind = "prefill"
    cores: tuple[int, ...] = ()
    kept: list[Round] = field(default_factory=list)
    dropped: list[Round] = field(default_factory=list)

    def end_round(self, kept: Sequence[Round], dropped: Sequence[Round]) -> None:
        """Take in the turns of a round; WorkerError where they are none."""
        measured, who = Round.of_turns(kept), f"worker {self.worker.ready.pid}"
        if min(measured.tokens, measured.core_s, measured.whole_s) <= 0:
            raise WorkerError(
                f"{who}: told of a round of {measured.tokens} tokens in {measured.core_s:g} s; "
                "expected both above 0"
            )
        if lacking := untimed(measured, self.workload):
            raise WorkerError(f"{who}: told of a round without {lacking}")
        self.kept.append(measured)
        if dropped:
            self.dropped.append(Round.of_turns(dropped))

    def record(self) -> LaunchRecord:
        """What it measured."""
        return LaunchRecord.of(
            self.worker.ready,
            self.launch_s,
            self.worker.peak_memory_gib(),
            tuple(self.kept),
            tuple(self.dropped),
            self.cores,
        )


def in_turns(
    live: Mapping[SideName, Live], order: Sequence[SideName], turns: Sequence[Turn], rounds: int
) -> None:
    """Time so many rounds of ``turns`` each, A B | B A; ``order`` has the side that begins.

    The side that begins a part of a pass is the other one in the next round.
    """
    last: SideName | None = None
    for number in range(rounds):
        kept: dict[SideName, list[Round]] = {name: [] for name in live}
        dropped: dict[SideName, list[Round]] = {name: [] for name in live}
        for step, turn in enumerate(turns):
            for name in order if (number + step) % 2 == 0 else order[::-1]:
                if name != last:
                    dropped[name].append(live[name].worker.round(turn))
                kept[name].append(live[name].worker.round(turn))
                last = name
        for name, each in live.items():
            each.end_round(kept[name], dropped[name])


def interleaved(launcher: Launcher, sides: Mapping[SideName, Side], task: Task) -> Done:
    """Run a launch pair of two live processes, turn by turn.

    WorkerError where a process fails; DeviceMemory where both do not fit.
    """
    begin = time.monotonic()
    with ExitStack() as ends:
        live = launched(launcher, sides, task, ends)
        ready = {name: live[name].worker.ready for name in SIDES}
        repeats = task.repeats or repeats_for(task.min_round_s, *ready.values())
        turns = turns_for(repeats, *ready.values())
        start = time.monotonic()
        in_turns(live, task.order, turns, task.rounds)
        rounds_s = time.monotonic() - start
        launches = {name: live[name].record() for name in SIDES}
        answers = {name: _answers(live[name].worker, task) for name in SIDES if task.tasks}
        generated = {name: live[name].worker.generated() for name in SIDES if task.generate}
        pair = _pair(task, launches, begin, rounds_s, len(turns))
        done = Done(pair, repeats, ready)
        numbers: dict[SideName, FidelityNumbers | None] = {}
        for name in SIDES if task.fidelity else ():
            numbers[name] = _fidelity(live[name].worker, numbers)
        done = replace(done, answers=answers, generated=generated, fidelity=numbers)
        if task.keep:
            workers = {name: live[name].worker for name in SIDES}
            return replace(done, alive=workers, ends=ends.pop_all())
    return done


def launched(
    launcher: Launcher, sides: Mapping[SideName, Side], task: Task, ends: ExitStack
) -> dict[SideName, Live]:
    """Start both at once, so that both load and compile at the same time, until both are ready."""
    begin = time.monotonic()
    pending: dict[SideName, PendingWorker] = {}
    for name in task.order:
        pending[name] = launcher.start(sides[name])
        ends.callback(pending[name].close)
    live: dict[SideName, Live] = {}
    for name in task.order:
        worker = pending[name].wait_ready()
        ends.callback(worker.close)
        live[name] = Live(worker, time.monotonic() - begin, task.workload)
    task.check({name: live[name].worker.ready for name in SIDES})
    for each in live.values():
        each.cores = each.worker.hold(task.threads)
    return live


def whole_launches(launcher: Launcher, sides: Mapping[SideName, Side], task: Task) -> Done:
    """Run a launch pair as one whole launch after the other.

    The passes a round are chosen from the first launch of all, since the other is not there yet.
    """
    begin = time.monotonic()
    ready: dict[SideName, Ready] = {}
    launches: dict[SideName, LaunchRecord] = {}
    answers: dict[SideName, Mapping[str, Answers]] = {}
    generated: dict[SideName, Sequence[GeneratedTokens] | None] = {}
    numbers: dict[SideName, FidelityNumbers | None] = {}
    repeats, rounds_s = task.repeats, 0.0
    for name in task.order:
        with ExitStack() as ends:
            start = time.monotonic()
            pending = launcher.start(sides[name])
            ends.callback(pending.close)
            worker = pending.wait_ready()
            ends.callback(worker.close)
            launch_s, cores = time.monotonic() - start, worker.hold(task.threads)
            live = Live(worker, launch_s, task.workload, cores)
            ready[name] = worker.ready
            if len(ready) == 2:
                task.check(ready)
            repeats = repeats or repeats_for(task.min_round_s, worker.ready)
            start = time.monotonic()
            in_turns({name: live}, [name], [Turn(repeats)], task.rounds)
            rounds_s += time.monotonic() - start
            launches[name] = live.record()
            if task.tasks:
                answers[name] = _answers(worker, task)
            if task.generate:
                generated[name] = worker.generated()
            if task.fidelity:
                numbers[name] = _fidelity(worker, numbers)
    assert repeats is not None
    pair = _pair(task, launches, begin, rounds_s, None)
    return Done(pair, repeats, ready, answers, generated, numbers)


def _answers(worker: Worker, task: Task) -> dict[str, Answers]:
    asked = task.tasks if worker.ready.by_task else task.tasks[:1]
    return {name: worker.answers(name) for name in asked}


def _fidelity(
    worker: Worker, before: Mapping[SideName, FidelityNumbers | None]
) -> FidelityNumbers | None:
    """What a side computes in fp32; B is not asked where A has told nothing to hold it to."""
    if not before:
        return worker.fidelity({})
    of_a = before["baseline"]
    return worker.fidelity(of_a.references) if of_a is not None and of_a.references else None


def repeats_for(min_round_s: float, *ready: Ready) -> int:
    """How many passes last ``min_round_s`` on the slowest of these launches."""
    pass_s = max(launch.pass_s for launch in ready)
    return max(1, math.ceil(min_round_s / pass_s)) if pass_s > 0 else 1


def turns_for(repeats: int, *ready: Ready) -> list[Turn]:
    """The turns of a round of ``repeats`` passes: as short as they can be from ``TURN_S`` on.

    The round is one turn where a side cannot cut a pass.
    """
    pass_s, most = max(launch.pass_s for launch in ready), min(launch.parts for launch in ready)
    if most == 1 or pass_s <= 0:
        return [Turn(repeats)]
    parts = max(1, min(most, int(pass_s / TURN_S)))
    if parts > 1:
        return [Turn(part=part, parts=parts) for _ in range(repeats) for part in range(parts)]
    passes = math.ceil(TURN_S / pass_s)
    return [Turn(min(passes, repeats - done)) for done in range(0, repeats, passes)]


def void(pair: PairRecord) -> str:
    """Why a launch pair does not count; empty where it does."""
    asked, kept = len(pair.baseline.rounds), len(pair.kept)
    thrown = asked - kept
    if thrown > MAX_FAULTY_FRACTION * asked or kept < MIN_ROUND_PAIRS:
        return f"{thrown} of {asked} round pairs thrown out: {'; '.join(pair.faults)}"
    return ""


def _pair(
    task: Task,
    launches: Mapping[SideName, LaunchRecord],
    begin: float,
    rounds_s: float,
    turns: int | None,
) -> PairRecord:
    """The record of a launch pair; ``turns``: of a round, None for whole launches."""
    pair = PairRecord(
        first=task.first,
        interleaved=turns is not None,
        wall_s=time.monotonic() - begin,
        rounds_s=rounds_s,
        baseline=launches["baseline"],
        candidate=launches["candidate"],
        turns=turns or 1,
    )
    return replace(pair, void=void(pair))
