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

What all replicas measured in the same rounds is then summed up as if they were one large device
(``aggregate``): a round's tokens are those of all, it lasts until the slowest is done, and the
seconds inside the forwards are such that tokens / seconds is the sum of the replicas' own rates. So
``throughput.metrics`` holds for one rank and for many. Counts and memory are the worst of any rank,
energy is the sum.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any, Protocol

from perfline.cases.case import Case, GatesSpec, Precision
from perfline.distributed.group import Group
from perfline.engines.device import Device
from perfline.engines.engine import Clock, CompileCounts, MeasuredEngine
from perfline.engines.telemetry import RoundHealth, Watch, watch
from perfline.errors import RankError, told
from perfline.fields import Scalar
from perfline.gates import accuracy, performance
from perfline.measure.journal import from_row, to_row
from perfline.measure.throughput import Ready, Round, TimedRegion, Timings
from perfline.metrics import Metric, pass_name
from perfline.tasks.answers import Answers
from perfline.tasks.prompts import Prompt


@dataclass(frozen=True)
class ReplicaTimings:
    """What one replica measured.

    Attributes:
        name: of the rank that leads it, such as ``rank 3 on node-b``.
        rounds: all of them, also those in which its device slowed itself.
        ready: what getting ready took there.
        timed: what it compiled in the rounds.
        answers: of its last pass.
    """

    name: str
    rounds: tuple[Round, ...]
    ready: Ready
    timed: CompileCounts
    peak_memory_gib: float | None
    waited_fraction: float | None
    answers: Answers


@dataclass(frozen=True)
class AggregateTimings:
    """The throughput of all replicas.

    Attributes:
        timings: of all of them, as if they were one device.
        alone: of rank 0's replica while the others waited, in the same job.
        devices: how many there are; a replica may be spread over several.
        names: the replicas'.
        rates: each replica's own ``p_*_whole`` in the rounds that count, tok/s.
    """

    timings: Timings
    alone: Timings
    devices: int
    names: tuple[str, ...]
    rates: tuple[float, ...]

    def metrics(self) -> list[Metric]:
        """What there is beside the metrics of ``timings``."""
        name, rounds = pass_name(self.timings.engine), self.timings.rounds
        core = tuple(r.tokens / r.core_s / self.devices for r in rounds)
        per_device = f"p_{name}_core_per_device"
        found = [Metric(per_device, statistics.median(core), "tok/s", "info", core)]
        if len(self.names) == 1:
            return found  # one model over all ranks: nothing to scale against
        one = tuple(r.tokens / r.whole_s for r in self.alone.rounds)
        ideal = len(self.names) * statistics.median(one)
        share = tuple(r.tokens / r.whole_s / ideal for r in rounds)
        return [
            *found,
            Metric(f"p_{name}_whole_one_rank", statistics.median(one), "tok/s", "info", one),
            Metric(
                f"scaling_efficiency_{name}", statistics.median(share), "fraction", "info", share
            ),
        ]

    def notes(self, limits: GatesSpec) -> dict[str, Scalar]:
        """How many ranks there were, how fast each was, and which was the slowest."""
        name = pass_name(self.timings.engine)
        if len(self.names) == 1:
            return {f"throughput_ranks_{name}": self.devices}
        slowest = min(range(len(self.rates)), key=self.rates.__getitem__)
        others = statistics.median(r for i, r in enumerate(self.rates) if i != slowest)
        below = 1 - self.rates[slowest] / others
        who, by = self.names[slowest], "rank"
        if self.devices > len(self.names):
            who, by = f"the replica of {who}", "replica"
        notes: dict[str, Scalar] = {
            f"throughput_ranks_{name}": self.devices,
            f"tok_per_s_by_{by}_{name}": ", ".join(f"{rate:.1f}" for rate in self.rates),
            f"slowest_{by}_{name}": f"{who}: {100 * below:.1f} % below the median of the others",
        }
        if finding := performance.straggler(who, below, limits):
            notes[f"straggler_{name}"] = finding
        return notes


def aggregate(
    replicas: Sequence[ReplicaTimings],
    own: Timings,
    alone: Timings,
    devices: int,
    precision: Precision,
) -> AggregateTimings:
    """Sum up what every replica measured; the first is rank 0's, whose timings are ``own``."""
    whole = combine(replicas, own, devices, precision)
    counted = [i for i, done in enumerate(whole.rounds) if not done.health.throttled]
    thrown_out = tuple(d.health.throttled for d in whole.rounds if d.health.throttled)
    spoilt = performance.too_many_thrown_out(len(whole.rounds), thrown_out)
    counted = counted or list(range(len(whole.rounds)))
    timings = replace(
        whole,
        rounds=tuple(whole.rounds[i] for i in counted),
        timed=whole.timed + alone.timed,
        faults=((spoilt,) if spoilt else ()) + alone.faults + whole.faults,
        thrown_out=thrown_out,
        timed_s=alone.timed_s + whole.timed_s,
    )
    rates = tuple(
        statistics.median(r.rounds[i].tokens / r.rounds[i].whole_s for i in counted)
        for r in replicas
    )
    return AggregateTimings(timings, alone, devices, tuple(r.name for r in replicas), rates)


def combine(
    replicas: Sequence[ReplicaTimings], own: Timings, devices: int, precision: Precision
) -> Timings:
    """What every replica measured, as if they were one device, with all of their rounds.

    The first is rank 0's, whose timings are ``own``.
    """
    names = [replica.name for replica in replicas]
    if devices > len(replicas):  # of a split model one device is read: no sum of all is known
        replicas = [_without_energy(replica) for replica in replicas]
    rounds = [_whole_round(names, each) for each in zip(*(r.rounds for r in replicas), strict=True)]
    return replace(
        own,
        ready=worst_ready([_of_rank(replica) for replica in replicas]),
        rounds=tuple(rounds),
        timed=_worst([replica.timed for replica in replicas]),
        peak_memory_gib=_of_known(max, [replica.peak_memory_gib for replica in replicas]),
        waited_fraction=_of_known(max, [replica.waited_fraction for replica in replicas]),
        flops=None if own.flops is None else own.flops * len(replicas),
        faults=_faults(replicas, precision),
        thrown_out=(),
        timed_s=sum(done.whole_s for done in rounds),
    )


def _of_rank(replica: ReplicaTimings) -> Ready:
    """Its ``ready``, whose fault says on which rank it is."""
    fault = replica.ready.uncompiled
    return replace(replica.ready, uncompiled=fault and f"{replica.name}: {fault}")


def worst_ready(readies: Sequence[Ready]) -> Ready:
    """What it took until all were ready: the longest, and the most of everything compiled."""
    return Ready(
        compile_s=max(ready.compile_s for ready in readies),
        warmup_s=max(ready.warmup_s for ready in readies),
        first=_worst([ready.first for ready in readies]),
        later=_worst([ready.later for ready in readies]),
        repeats=readies[0].repeats,
        uncompiled="; ".join(dict.fromkeys(r.uncompiled for r in readies if r.uncompiled)),
    )


def _without_energy(replica: ReplicaTimings) -> ReplicaTimings:
    rounds = [
        replace(done, health=replace(done.health, joules=None, power_w=None))
        for done in replica.rounds
    ]
    return replace(replica, rounds=tuple(rounds))


def _whole_round(names: Sequence[str], rounds: Sequence[Round]) -> Round:
    """One round of all replicas: they began together, it ends with the slowest."""
    tokens = sum(done.tokens for done in rounds)
    rate = sum(done.tokens / done.core_s for done in rounds)
    health = _health(names, [done.health for done in rounds])
    return Round(tokens, tokens / rate, max(done.whole_s for done in rounds), health)


def _health(names: Sequence[str], healths: Sequence[RoundHealth]) -> RoundHealth:
    throttled = [f"{n}: {h.throttled}" for n, h in zip(names, healths, strict=True) if h.throttled]
    return RoundHealth(
        throttled="; ".join(throttled),
        foreign=tuple(sorted({pid for h in healths for pid in h.foreign})),
        joules=_of_all(sum, [h.joules for h in healths]),
        sm_clock_mhz=_of_all(min, [h.sm_clock_mhz for h in healths]),
        temperature_c=_of_all(max, [h.temperature_c for h in healths]),
        power_w=_of_all(sum, [h.power_w for h in healths]),
        readings=sum(h.readings for h in healths),
    )


def _worst(counts: Sequence[CompileCounts]) -> CompileCounts:
    return CompileCounts(*map(max, zip(*map(astuple, counts), strict=True)))


def _faults(replicas: Sequence[ReplicaTimings], precision: Precision) -> tuple[str, ...]:
    """What makes the run invalid on any rank: foreign processes, and other answers than rank 0's.

    Every rank runs the same prompts: one that answers otherwise computes something else, and how
    fast it does so says nothing.
    """
    found = []
    for replica in replicas:
        foreign = tuple(sorted({pid for r in replica.rounds for pid in r.health.foreign}))
        found += [f"{replica.name}: {each}" for each in RoundHealth(foreign=foreign).faults]
        same = accuracy.same_answers(replicas[0].answers, replica.answers, precision)
        if same.flips:
            found.append(
                f"{replica.name}: {len(same.flips)} of {len(replica.answers.ids)} timed answers "
                "differ from rank 0's and are no tie"
            )
    return tuple(found)


def _of_known(of: Callable[[list[float]], float], values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return of(known) if known else None


def _of_all(of: Callable[[list[Any]], Any], values: Sequence[Any]) -> Any:
    """None where one rank does not know it: a sum of the others would pass for all."""
    return None if None in values else of(list(values))


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


class RoundsCoordinator(Protocol):
    """What is used of ``parallel_accuracy.RankCoordinator``."""

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
    engine: MeasuredEngine
    prompts: Sequence[Prompt]
    ready: Callable[[], Ready]
    device: Device
    identity: Mapping[str, str]
    clock: Clock = time.perf_counter

    def region(self, ready: Ready, health: Watch) -> TimedRegion:
        """The timed region; ``health`` reads the device beside it."""
        head = self.case.throughput.head
        return TimedRegion(self.engine, self.prompts, head, ready, self.clock, health=health)

    def alone(self, ready: Ready, alive: Callable[[], None]) -> Timings:
        """Some rounds of this rank, while the others wait; ``alive`` is called between them."""
        with watch(self.device) as health:
            region = self.region(ready, health)
            for _ in range(ALONE_ROUNDS):
                region.round()
                alive()
            return region.finish()


def conduct(coordinator: RoundsCoordinator, run: TimedRun, repeat: Repeat) -> AggregateTimings:
    """Rank 0's side of one region; RankError names the rank that failed or is silent."""
    with watch(run.device) as health:
        rounds = Rounds(coordinator, run, health)
        try:
            ready = rounds.ready()[0]
            alone = run.alone(ready, coordinator.group.alive)
            rounds.begin(ready.repeats)
            repeat(rounds.round, run.case.throughput.rounds, rounds.before)
            own, replicas = rounds.finish()
        finally:
            rounds.over()
    return aggregate(replicas, own, alone, coordinator.group.ranks, run.case.model.precision)


class Rounds:
    """Rank 0's side, step by step: ``ready``, then regions: ``begin``, rounds, ``finish``.

    Every step raises RankError, which names the rank that failed or is silent, and DeviceMemory
    where it is a rank's memory that is full.
    """

    def __init__(self, coordinator: RoundsCoordinator, run: TimedRun, health: Watch) -> None:
        """Have the others get ready in the meantime; ``health`` reads this rank's device."""
        self._coordinator, self._run, self._health, self._step = coordinator, run, health, 0
        self._readies: dict[int, Ready] = {}
        identity = dict(run.identity)
        self._number = coordinator.ask(
            "time", run.case.id, engine=run.engine.name, identity=identity
        )

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
        self._region = self._run.region(ready, self._health)

    def before(self) -> None:
        """Ahead of a round: once all are done with the last, have the others begin the next."""
        if self._mine:
            self._told.append(self._gather(f"end round {len(self._mine)}"))
        self._ask("round")

    def round(self) -> None:
        """Time a round; ``before`` goes ahead of each."""
        self._mine[len(self._told)] = self._region.round()

    def finish(self) -> tuple[Timings, list[ReplicaTimings]]:
        """End the region: what this rank measured, and what every replica did, this one first."""
        self._told.append(self._gather(f"end round {len(self._mine)}"))
        own = self._region.finish()
        self._ask("finish")
        ends = self._gather("tell what it measured")
        name, rounds = self._coordinator.group.name, tuple(self._mine.values())
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
        self._coordinator.group.post({"do": do, "step": self._step, **more})

    def _gather(self, what: str) -> dict[int, Mapping[str, Any]]:
        """What every other replica says to this step."""
        group = self._coordinator.group
        begin, others = group.clock(), set(self._coordinator.leaders) - {0}
        heard: dict[int, Mapping[str, Any]] = {}
        pause_s = _FIRST_PAUSE_S
        while True:
            for message in group.messages():
                self._coordinator.hear(message)
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
                raise self._coordinator.lost(
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
                region = run.region(replace(ready, repeats=command["repeats"]), health)
            elif command["do"] == "round":
                said = asdict(region.round())
            else:
                said = _end(region.finish())
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
