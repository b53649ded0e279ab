"""How is one launch pair run: in which order, with which rounds, and when does it not count?

Interleaved, two processes live side by side, and kept rounds run A B | B A | A B ..., so that a
drift over time weighs on both alike. Whenever the process changes, its first round (written a, b)
is run and dropped: ``a A b B B a A A b B``. Where both do not fit on the device, whole launches
follow each other: ``a A A A``, then ``b B B B``; the next pair begins with B.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from perfline.compare.model import SIDES, Launcher, Ready, Round, Side, SideName, Worker
from perfline.compare.record import LaunchRecord, PairRecord
from perfline.errors import WorkerError
from perfline.tasks.answers import Answers

MIN_ROUND_PAIRS = 3
MAX_FAULTY_FRACTION = 0.2  # of a launch pair's round pairs

Check = Callable[[Mapping[SideName, Ready]], None]


@dataclass(frozen=True)
class Task:
    """What one launch pair is to do.

    Attributes:
        first: the side that starts, and is timed, first.
        rounds: kept rounds a side.
        repeats: passes a round; None chooses, so that a round of the slower side lasts
            ``min_round_s``.
        answer: whether both sides also answer the questions, once the rounds are over.
        check: is given what both launches told of themselves before anything is timed, and raises
            where they cannot be compared.
    """

    first: SideName
    rounds: int
    repeats: int | None
    min_round_s: float
    answer: bool
    check: Check

    @property
    def order(self) -> tuple[SideName, SideName]:
        """Both sides, the first one first."""
        return SIDES if self.first == SIDES[0] else (SIDES[1], SIDES[0])


@dataclass(frozen=True)
class Done:
    """One launch pair, and what is not written for every pair."""

    pair: PairRecord
    repeats: int
    ready: Mapping[SideName, Ready]
    answers: Mapping[SideName, Answers]


@dataclass
class _Live:
    """One launch while it lives."""

    worker: Worker
    launch_s: float
    kept: list[Round] = field(default_factory=list)
    dropped: list[Round] = field(default_factory=list)

    def time(self, repeats: int, fresh: bool) -> None:
        """Time one round to keep; before it, one to drop where the process is ``fresh``."""
        if fresh:
            self.dropped.append(self.worker.round(repeats))
        measured = self.worker.round(repeats)
        if min(measured.tokens, measured.core_s, measured.whole_s) <= 0:
            raise WorkerError(
                f"worker {self.worker.ready.pid}: told of a round of {measured.tokens} tokens in "
                f"{measured.core_s:g} s; expected both above 0"
            )
        self.kept.append(measured)

    def record(self) -> LaunchRecord:
        """What it measured."""
        return LaunchRecord.of(
            self.worker.ready,
            self.launch_s,
            self.worker.peak_memory_gib(),
            tuple(self.kept),
            tuple(self.dropped),
        )


def interleaved(launcher: Launcher, sides: Mapping[SideName, Side], task: Task) -> Done:
    """Run a launch pair of two live processes, round by round.

    WorkerError where a process fails; DeviceMemory where both do not fit.
    """
    begin = time.monotonic()
    with ExitStack() as ends:
        pending = {}
        for name in task.order:  # both load and compile at the same time
            pending[name] = launcher.start(sides[name])
            ends.callback(pending[name].close)
        live = {}
        for name in task.order:
            worker = pending[name].wait_ready()
            ends.callback(worker.close)
            live[name] = _Live(worker, time.monotonic() - begin)
        ready = {name: live[name].worker.ready for name in SIDES}
        task.check(ready)
        repeats = task.repeats or repeats_for(task.min_round_s, *ready.values())
        start = time.monotonic()
        last: SideName | None = None
        for turn in range(task.rounds):
            for name in task.order if turn % 2 == 0 else task.order[::-1]:
                live[name].time(repeats, fresh=name != last)
                last = name
        rounds_s = time.monotonic() - start
        launches = {name: live[name].record() for name in SIDES}
        answers = {name: live[name].worker.answers() for name in SIDES} if task.answer else {}
    return _done(task, launches, (begin, rounds_s), (True, repeats), ready, answers)


def whole_launches(launcher: Launcher, sides: Mapping[SideName, Side], task: Task) -> Done:
    """Run a launch pair as one whole launch after the other.

    The passes a round are chosen from the first launch of all, since the other is not there yet.
    """
    begin = time.monotonic()
    ready: dict[SideName, Ready] = {}
    launches: dict[SideName, LaunchRecord] = {}
    answers: dict[SideName, Answers] = {}
    repeats, rounds_s = task.repeats, 0.0
    for name in task.order:
        with ExitStack() as ends:
            start = time.monotonic()
            pending = launcher.start(sides[name])
            ends.callback(pending.close)
            worker = pending.wait_ready()
            ends.callback(worker.close)
            live = _Live(worker, time.monotonic() - start)
            ready[name] = worker.ready
            if len(ready) == 2:
                task.check(ready)
            repeats = repeats or repeats_for(task.min_round_s, worker.ready)
            start = time.monotonic()
            for turn in range(task.rounds):
                live.time(repeats, fresh=turn == 0)
            rounds_s += time.monotonic() - start
            launches[name] = live.record()
            if task.answer:
                answers[name] = worker.answers()
    assert repeats is not None
    return _done(task, launches, (begin, rounds_s), (False, repeats), ready, answers)


def repeats_for(min_round_s: float, *ready: Ready) -> int:
    """How many passes last ``min_round_s`` on the slowest of these launches."""
    pass_s = max(launch.pass_s for launch in ready)
    return max(1, math.ceil(min_round_s / pass_s)) if pass_s > 0 else 1


def void(pair: PairRecord) -> str:
    """Why a launch pair does not count; empty where it does."""
    asked, kept = len(pair.baseline.rounds), len(pair.kept)
    thrown = asked - kept
    if thrown > MAX_FAULTY_FRACTION * asked or kept < MIN_ROUND_PAIRS:
        return f"{thrown} of {asked} round pairs thrown out: {'; '.join(pair.faults)}"
    return ""


def _done(
    task: Task,
    launches: Mapping[SideName, LaunchRecord],
    seconds: tuple[float, float],
    how: tuple[bool, int],
    ready: Mapping[SideName, Ready],
    answers: Mapping[SideName, Answers],
) -> Done:
    pair = PairRecord(
        first=task.first,
        interleaved=how[0],
        wall_s=time.monotonic() - seconds[0],
        rounds_s=seconds[1],
        baseline=launches["baseline"],
        candidate=launches["candidate"],
    )
    return Done(replace(pair, void=void(pair)), how[1], ready, answers)
