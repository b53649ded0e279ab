"""How do the ranks of a torchrun job time their rounds together?

Rank 0 asks step by step, and every replica answers each step once::

    time      load, compile, warm up; under pytest rank 0 then times a few rounds alone
    begin     start a timed region, of so many passes a round
    round     time one round; asked as soon as all are done with the one before
    finish    tell compile counts, memory, answers
    over      the end, also of what failed

Under pytest a pass is one region of many rounds (``conduct``); ``perfline compare`` asks for
regions of one round each, as its two sides take turns (``Rounds``).

A round begins when its command arrives: ranks wait for it inside the store (``quiet``), without
asking it again and again. Nobody speaks to the store while it times; one that is done earlier says
so and waits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from perfline.cases.case import Case
from perfline.distributed.group import Group
from perfline.engines.device import Device
from perfline.engines.engine import Clock, CompileCounts, Engine
from perfline.engines.telemetry import RoundHealth, Watch, watch
from perfline.errors import RankError, told
from perfline.measure.aggregate_timings import ReplicaTimings, Together, aggregate
from perfline.measure.journal import from_row, to_row
from perfline.measure.throughput import Ready, Round, Stopwatch, Timings
from perfline.tasks.mmlu import Prompt

STEPS = ("begin", "round", "finish", "over")  # of a pass; one who failed in it may still hear them
ALONE_ROUNDS = 5  # of one rank, before those of all
_PAUSE_S = 0.1  # between rank 0's looks for answers: other ranks may still be timing
_FIRST_PAUSE_S = 0.005  # most often they are done as soon as rank 0 is


class Repeat(Protocol):
    """Runs the rounds (pytest-benchmark does)."""

    def __call__(
        self,
        timed_round: Callable[[], None],
        rounds: int,
        before: Callable[[], None] | None = None,
        /,
    ) -> None:
        """Call ``timed_round`` that often, ``before`` ahead of each and outside of its clock."""


class Leader(Protocol):
    """What is used of ``parallel_accuracy.Lead``."""

    group: Group

    @property
    def leaders(self) -> Sequence[int]:
        """The ranks that lead a replica, 0 first."""

    def ask(self, do: str, case: str, **more: object) -> int:
        """Ask the other ranks; returns the command's number."""

    def hear(self, message: Mapping[str, Any]) -> None:
        """Take in what concerns no pass. RankError where a rank has crashed."""

    def lost(self, text: str) -> RankError:
        """The error to raise, now and for every pass that follows."""


@dataclass(frozen=True)
class TimedRun:
    """One engine's throughput run on one rank.

    Attributes:
        ready: has the engine compiled and warm.
        identity: what must be the same on every rank.
    """

    case: Case
    engine: Engine
    prompts: Sequence[Prompt]
    ready: Callable[[], Ready]
    device: Device
    identity: Mapping[str, str]
    clock: Clock = time.perf_counter

    def stopwatch(self, ready: Ready, health: Watch) -> Stopwatch:
        """The timed region; ``health`` reads the device beside it."""
        head = self.case.throughput.head
        return Stopwatch(self.engine, self.prompts, head, ready, self.clock, health=health)

    def alone(self, ready: Ready, alive: Callable[[], None]) -> Timings:
        """Some rounds of this rank, while the others wait; ``alive`` is called between them."""
        with watch(self.device) as health:
            stopwatch = self.stopwatch(ready, health)
            for _ in range(ALONE_ROUNDS):
                stopwatch.round()
                alive()
            return stopwatch.finish()


def conduct(lead: Leader, run: TimedRun, repeat: Repeat) -> Together:
    """Rank 0's side of one region; RankError names the rank that failed or is silent."""
    with watch(run.device) as health:
        rounds = Rounds(lead, run, health)
        try:
            ready = rounds.ready()[0]
            alone = run.alone(ready, lead.group.alive)
            rounds.begin(ready.repeats)
            repeat(rounds.round, run.case.throughput.rounds, rounds.before)
            own, replicas = rounds.finish()
        finally:
            rounds.over()
    return aggregate(replicas, own, alone, lead.group.ranks, run.case.model.precision)


class Rounds:
    """Rank 0's side, step by step: ``ready``, then regions: ``begin``, rounds, ``finish``.

    Every step raises RankError, which names the rank that failed or is silent, and DeviceMemory
    where it is a rank's memory that is full.
    """

    def __init__(self, lead: Leader, run: TimedRun, health: Watch) -> None:
        """Have the others get ready in the meantime; ``health`` reads this rank's device."""
        self._lead, self._run, self._health, self._step = lead, run, health, 0
        self._readies: dict[int, Ready] = {}
        identity = dict(run.identity)
        self._number = lead.ask("time", run.case.id, engine=run.engine.name, identity=identity)

    def ready(self) -> tuple[Ready, ...]:
        """Get ready; what that took on every replica, this one first."""
        own = self._run.ready()
        told = self._gather(f"make {self._run.engine.name} ready")
        others = {rank: _ready(said["ready"]) for rank, said in sorted(told.items())}
        self._readies = {0: own, **others}
        return tuple(self._readies.values())

    def begin(self, repeats: int, friends: Collection[int] = ()) -> None:
        """Begin a region; ``friends``: processes that may be on the devices beside a rank."""
        self._ask("begin", repeats=repeats, friends=list(friends))
        self._gather("begin the rounds")
        self._mine: dict[int, Round] = {}
        self._told: list[dict[int, Mapping[str, Any]]] = []
        self._health.friends = _others(friends)
        ready = replace(self._readies[0], repeats=repeats)
        self._stopwatch = self._run.stopwatch(ready, self._health)

    def before(self) -> None:
        """Ahead of a round: once all are done with the last, have the others begin the next."""
        if self._mine:
            self._told.append(self._gather(f"end round {len(self._mine)}"))
        self._ask("round")

    def round(self) -> None:
        """Time a round; ``before`` goes ahead of each."""
        self._mine[len(self._told)] = self._stopwatch.round()

    def finish(self) -> tuple[Timings, list[ReplicaTimings]]:
        """End the region: what this rank measured, and what every replica did, this one first."""
        self._told.append(self._gather(f"end round {len(self._mine)}"))
        own = self._stopwatch.finish()
        self._ask("finish")
        ends = self._gather("tell what it measured")
        name, rounds = self._lead.group.name, tuple(self._mine.values())
        counts, mem, waited = own.timed, own.peak_memory_gib, own.waited_fraction
        replicas = [ReplicaTimings(name(0), rounds, own.ready, counts, mem, waited, own.answers)]
        for rank, end in sorted(ends.items()):
            rounds = tuple(_round(each[rank]) for each in self._told)
            replicas.append(_replica(name(rank), rounds, self._readies[rank], end))
        return own, replicas

    def over(self) -> None:
        """Let the others go."""
        with suppress(RankError):  # a store that is gone is told by what came before
            self._ask("over")

    def _ask(self, do: str, **more: object) -> None:
        """Ask for the next step."""
        self._step += 1
        self._lead.group.post({"do": do, "step": self._step, **more})

    def _gather(self, what: str) -> dict[int, Mapping[str, Any]]:
        """What every other replica says to this step."""
        group = self._lead.group
        begin, others = group.clock(), set(self._lead.leaders) - {0}
        heard: dict[int, Mapping[str, Any]] = {}
        pause_s = _FIRST_PAUSE_S
        while True:
            for message in group.messages():
                self._lead.hear(message)
                if message.get("pass") != self._number:
                    continue  # what is left of a failed pass
                if message["kind"] == "failed":
                    text = f"{group.name(message['rank'])}: {message['text']}"
                    raise told(message.get("error"), text)
                if message["step"] == self._step:
                    heard[message["rank"]] = message
            missing = sorted(others - set(heard))
            if not missing:
                return heard
            if group.clock() - begin > group.timeout_s:
                names = ", ".join(map(group.name, missing))
                raise self._lead.lost(
                    f"waited for {names} to {what}: silent for {group.timeout_s:g} s; it hangs, "
                    "or --rank-timeout is too short"
                )
            group.alive()
            group.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_S)


def serve(group: Group, number: int, run: TimedRun) -> None:
    """Another rank's side, until rank 0 says that it is over."""
    ready = run.ready()
    group.tell("timed", **{"pass": number, "step": 0}, ready=asdict(ready))
    with watch(run.device) as health:
        while (command := group.command(quiet=True)[1])["do"] != "over":
            said: dict[str, Any] = {}
            if command["do"] == "begin":
                health.friends = _others(command["friends"])
                stopwatch = run.stopwatch(replace(ready, repeats=command["repeats"]), health)
            elif command["do"] == "round":
                said = asdict(stopwatch.round())
            else:
                said = _end(stopwatch.finish())
            group.tell("timed", **{"pass": number, "step": command["step"]}, **said)


def _others(pids: Collection[int]) -> list[int]:
    return [pid for pid in pids if pid != os.getpid()]


def _end(timings: Timings) -> dict[str, Any]:
    return {
        "timed": asdict(timings.timed),
        "peak_memory_gib": timings.peak_memory_gib,
        "waited_fraction": timings.waited_fraction,
        "answers": to_row(timings.answers),
    }


def _replica(
    name: str, rounds: tuple[Round, ...], ready: Ready, end: Mapping[str, Any]
) -> ReplicaTimings:
    return ReplicaTimings(
        name=name,
        rounds=rounds,
        ready=ready,
        timed=CompileCounts(**end["timed"]),
        peak_memory_gib=end["peak_memory_gib"],
        waited_fraction=end["waited_fraction"],
        answers=from_row(end["answers"]),
    )


def _ready(said: Mapping[str, Any]) -> Ready:
    counts = {key: CompileCounts(**said[key]) for key in ("first", "later")}
    return Ready(**{**said, **counts})


def _round(said: Mapping[str, Any]) -> Round:
    health = dict(said["health"])
    foreign = tuple(health.pop("foreign"))
    return Round(
        said["tokens"], said["core_s"], said["whole_s"], RoundHealth(**health, foreign=foreign)
    )
