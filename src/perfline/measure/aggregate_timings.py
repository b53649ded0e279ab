"""How many prompt tokens a second do N ranks take in together, and which of them is slow?

From what every replica measured in the same rounds, as if they were one large device: a round's
tokens are those of all, it lasts until the slowest is done, and the seconds inside the forwards are
such that tokens / seconds is the sum of the replicas' own rates. So ``throughput.metrics`` holds
for one rank and for many. Counts and memory are the worst of any rank, energy is the sum.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from perfline.cases.case import GatesSpec, Precision
from perfline.engines.engine import CompileCounts
from perfline.engines.telemetry import RoundHealth
from perfline.gates import accuracy as accuracy_gates
from perfline.gates import performance as gates
from perfline.jsonfile import Scalar
from perfline.measure.throughput import PREFIX, Ready, Round, Timings
from perfline.metrics import Metric
from perfline.tasks.answers import Answers


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
class Together:
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
        name, rounds = PREFIX[self.timings.engine], self.timings.rounds
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
        name = PREFIX[self.timings.engine]
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
        if finding := gates.straggler(who, below, limits):
            notes[f"straggler_{name}"] = finding
        return notes


def aggregate(
    replicas: Sequence[ReplicaTimings],
    own: Timings,
    alone: Timings,
    devices: int,
    precision: Precision,
) -> Together:
    """Sum up what every replica measured; the first is rank 0's, whose timings are ``own``."""
    whole = combine(replicas, own, devices, precision)
    counted = [i for i, done in enumerate(whole.rounds) if not done.health.throttled]
    thrown_out = tuple(d.health.throttled for d in whole.rounds if d.health.throttled)
    spoilt = gates.too_many_thrown_out(len(whole.rounds), thrown_out)
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
    return Together(timings, alone, devices, tuple(r.name for r in replicas), rates)


def combine(
    replicas: Sequence[ReplicaTimings], own: Timings, devices: int, precision: Precision
) -> Timings:
    """What every replica measured, as if they were one device, with all of their rounds.

    The first is rank 0's, whose timings are ``own``.
    """
    names = [replica.name for replica in replicas]
    if devices > len(replicas):  # of a split model one device is read: no sum of all is known
        replicas = [_without_energy(replica) for replica in replicas]
    rounds = [_round(names, each) for each in zip(*(r.rounds for r in replicas), strict=True)]
    return replace(
        own,
        ready=worst_ready([replica.ready for replica in replicas]),
        rounds=tuple(rounds),
        timed=_worst([replica.timed for replica in replicas]),
        peak_memory_gib=_of_known(max, [replica.peak_memory_gib for replica in replicas]),
        waited_fraction=_of_known(max, [replica.waited_fraction for replica in replicas]),
        flops=None if own.flops is None else own.flops * len(replicas),
        faults=_faults(replicas, precision),
        thrown_out=(),
        timed_s=sum(done.whole_s for done in rounds),
    )


def worst_ready(readies: Sequence[Ready]) -> Ready:
    """What it took until all were ready: the longest, and the most of everything compiled."""
    return Ready(
        compile_s=max(ready.compile_s for ready in readies),
        warmup_s=max(ready.warmup_s for ready in readies),
        first=_worst([ready.first for ready in readies]),
        later=_worst([ready.later for ready in readies]),
        repeats=readies[0].repeats,
    )


def _without_energy(replica: ReplicaTimings) -> ReplicaTimings:
    rounds = [
        replace(done, health=replace(done.health, joules=None, power_w=None))
        for done in replica.rounds
    ]
    return replace(replica, rounds=tuple(rounds))


def _round(names: Sequence[str], rounds: Sequence[Round]) -> Round:
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
    return CompileCounts(
        graphs=max(each.graphs for each in counts),
        graph_breaks=max(each.graph_breaks for each in counts),
        cache_hits=max(each.cache_hits for each in counts),
        cache_misses=max(each.cache_misses for each in counts),
    )


def _faults(replicas: Sequence[ReplicaTimings], precision: Precision) -> tuple[str, ...]:
    """What makes the run invalid on any rank: foreign processes, and other answers than rank 0's.

    Every rank runs the same prompts: one that answers otherwise computes something else, and how
    fast it does so says nothing.
    """
    found = []
    for replica in replicas:
        foreign = tuple(sorted({pid for r in replica.rounds for pid in r.health.foreign}))
        found += [f"{replica.name}: {each}" for each in RoundHealth(foreign=foreign).faults]
        same = accuracy_gates.same_answers(replicas[0].answers, replica.answers, precision)
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
