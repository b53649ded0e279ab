"""How do the ranks of a torchrun job time their rounds together?

Rank 0 asks step by step, and every replica answers each step once::

    time      load, compile, warm up; then rank 0 times a few rounds alone, the others wait
    begin     start the timed region
    round     time one round; asked as soon as all are done with the one before
    finish    tell compile counts, memory, answers
    over      the end, also of what failed

A round begins when its command arrives: ranks wait for it inside the store (``quiet``), without
asking it again and again. Nobody speaks to the store while it times; one that is done earlier says
so and waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from perfline.case import Case
from perfline.device import Device
from perfline.engine import Clock, CompileCounts, Engine
from perfline.errors import RankError
from perfline.group import Group
from perfline.journal import from_row, to_row
from perfline.mmlu import Prompt
from perfline.telemetry import RoundHealth, watch
from perfline.throughput import Ready, Round, Stopwatch, Timings
from perfline.together import ReplicaTimings, Together, aggregate

STEPS = ("begin", "round", "finish", "over")  # of a pass; one who failed in it may still hear them
ALONE_ROUNDS = 5  # of one rank, before those of all
_PAUSE_S = 0.1  # between rank 0's looks for answers: other ranks may still be timing


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
    """What is used of ``parallel.Lead``."""

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

    @contextmanager
    def stopwatch(self, ready: Ready) -> Iterator[Stopwatch]:
        """The timed region, with the device's health read beside it."""
        head = self.case.throughput.head
        with watch(self.device) as health:
            yield Stopwatch(self.engine, self.prompts, head, ready, self.clock, health=health)

    def alone(self, ready: Ready, alive: Callable[[], None]) -> Timings:
        """Some rounds of this rank, while the others wait; ``alive`` is called between them."""
        with self.stopwatch(ready) as stopwatch:
            for _ in range(ALONE_ROUNDS):
                stopwatch.round()
                alive()
            return stopwatch.finish()


def conduct(lead: Leader, run: TimedRun, repeat: Repeat) -> Together:
    """Rank 0's side; RankError names the rank that failed or is silent."""
    asked = _Asked(lead, run)
    mine: dict[int, Round] = {}
    told: list[dict[int, Mapping[str, Any]]] = []
    try:
        ready = run.ready()
        asked.gather(f"make {run.engine.name} ready")
        alone = run.alone(ready, lead.group.alive)
        asked.step("begin", repeats=ready.repeats)
        asked.gather("begin the rounds")
        with run.stopwatch(ready) as stopwatch:

            def before() -> None:
                if mine:
                    told.append(asked.gather(f"end round {len(mine)}"))
                asked.step("round")

            def timed_round() -> None:
                mine[len(told)] = stopwatch.round()

            repeat(timed_round, run.case.throughput.rounds, before)
            told.append(asked.gather(f"end round {len(mine)}"))
            own = stopwatch.finish()
        asked.step("finish")
        ends = asked.gather("tell what it measured")
    finally:
        with suppress(RankError):  # a store that is gone is told by what came before
            asked.step("over")
    group, rounds = lead.group, tuple(mine.values())
    counts, mem, waited = own.timed, own.peak_memory_gib, own.waited_fraction
    replicas = [ReplicaTimings(group.name(0), rounds, ready, counts, mem, waited, own.answers)]
    for rank, end in sorted(ends.items()):
        rounds = tuple(_round(each[rank]) for each in told)
        replicas.append(_replica(group.name(rank), rounds, end))
    return aggregate(replicas, own, alone, group.ranks, run.case.model.precision)


def serve(group: Group, number: int, run: TimedRun) -> None:
    """Another rank's side, until rank 0 says that it is over."""
    ready = run.ready()
    group.tell("timed", **{"pass": number, "step": 0})
    command = group.command(quiet=True)[1]
    if command["do"] == "over":
        return
    ready = replace(ready, repeats=command["repeats"])
    with run.stopwatch(ready) as stopwatch:
        while command["do"] != "over":
            said: dict[str, Any] = {}
            if command["do"] == "round":
                said = asdict(stopwatch.round())
            elif command["do"] == "finish":
                said = _end(ready, stopwatch.finish())
            group.tell("timed", **{"pass": number, "step": command["step"]}, **said)
            command = group.command(quiet=True)[1]


class _Asked:
    """One pass as rank 0 asks for it."""

    def __init__(self, lead: Leader, run: TimedRun) -> None:
        self._lead, self._step = lead, 0
        identity = dict(run.identity)
        self._number = lead.ask("time", run.case.id, engine=run.engine.name, identity=identity)

    def step(self, do: str, **more: object) -> None:
        """Ask for the next step."""
        self._step += 1
        self._lead.group.post({"do": do, "step": self._step, **more})

    def gather(self, what: str) -> dict[int, Mapping[str, Any]]:
        """What every other replica says to this step; RankError where one fails or is silent."""
        group = self._lead.group
        begin, others = group.clock(), set(self._lead.leaders) - {0}
        told: dict[int, Mapping[str, Any]] = {}
        while True:
            for message in group.messages():
                self._lead.hear(message)
                if message.get("pass") != self._number:
                    continue  # what is left of a failed pass
                if message["kind"] == "failed":
                    raise RankError(f"{group.name(message['rank'])}: {message['text']}")
                if message["step"] == self._step:
                    told[message["rank"]] = message
            missing = sorted(others - set(told))
            if not missing:
                return told
            if group.clock() - begin > group.timeout_s:
                names = ", ".join(map(group.name, missing))
                raise self._lead.lost(
                    f"waited for {names} to {what}: silent for {group.timeout_s:g} s; it hangs, "
                    "or --rank-timeout is too short"
                )
            group.alive()
            group.sleep(_PAUSE_S)


def _end(ready: Ready, timings: Timings) -> dict[str, Any]:
    return {
        "ready": asdict(ready),
        "timed": asdict(timings.timed),
        "peak_memory_gib": timings.peak_memory_gib,
        "waited_fraction": timings.waited_fraction,
        "answers": to_row(timings.answers),
    }


def _replica(name: str, rounds: tuple[Round, ...], told: Mapping[str, Any]) -> ReplicaTimings:
    ready = dict(told["ready"])
    ready |= {key: CompileCounts(**ready[key]) for key in ("first", "later")}
    return ReplicaTimings(
        name=name,
        rounds=rounds,
        ready=Ready(**ready),
        timed=CompileCounts(**told["timed"]),
        peak_memory_gib=told["peak_memory_gib"],
        waited_fraction=told["waited_fraction"],
        answers=from_row(told["answers"]),
    )


def _round(told: Mapping[str, Any]) -> Round:
    health = dict(told["health"])
    foreign = tuple(health.pop("foreign"))
    return Round(
        told["tokens"], told["core_s"], told["whole_s"], RoundHealth(**health, foreign=foreign)
    )
