"""How many prompt tokens a second does an engine take, and what did getting there cost?

Four phases, each on its own clock, nothing subtracted from anything:

    load      weights to the device (``hf.load``)
    compile   the first forward, as if nothing had run before; what it compiles is counted, and
              whether the cache was cold
    warm-up   one pass over the prompts; what it still compiles is a recompile
    timed     rounds over the same prompts; a recompile in here makes the run invalid

A round repeats its pass until it is long enough to time (``min_round_s``). Rounds that the device
itself slowed (hardware slow-down, heat) are thrown out and counted; of too many, nothing is judged.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from perfline.cases.case import ThroughputSpec
from perfline.engines.device import cpu_contention
from perfline.engines.engine import (
    Clock,
    CompileCounts,
    EngineName,
    Head,
    MeasuredEngine,
    Pass,
    Progress,
    run_pass,
)
from perfline.engines.telemetry import ENERGY_STEP_S, RoundHealth, Watch
from perfline.gates import performance
from perfline.measure import notices
from perfline.metrics import Metric, mfu, pass_name, suffix
from perfline.tasks.answers import Answers
from perfline.tasks.prompts import Prompt

_COARSE_ROUND_S = 0.5  # below, a single round's joules are known to 20 % or worse
_COARSE_TOTAL_S = 1.0


@dataclass(frozen=True)
class Ready:
    """An engine that is compiled and warm, and what that cost.

    Attributes:
        compile_s: seconds of the first forward, compilation included.
        warmup_s: seconds of the warm-up pass.
        first: what the first forward compiled.
        later: what was compiled after it, before the timed region.
        repeats: passes a round, so that it lasts ``min_round_s``.
        uncompiled: why the engine compiled nothing though it should have; empty where it did.
    """

    compile_s: float
    warmup_s: float
    first: CompileCounts
    later: CompileCounts
    repeats: int
    uncompiled: str = ""

    def joined(self, other: Ready) -> Ready:
        """What both took."""
        return replace(
            self,
            compile_s=self.compile_s + other.compile_s,
            warmup_s=self.warmup_s + other.warmup_s,
            first=self.first + other.first,
            later=self.later + other.later,
            uncompiled=self.uncompiled or other.uncompiled,
        )


@dataclass(frozen=True)
class Round:
    """One timed round: ``repeats`` passes over the prompts.

    Attributes:
        health: what the device's own readings said meanwhile.
    """

    tokens: int
    core_s: float
    whole_s: float
    health: RoundHealth = field(default_factory=RoundHealth)


@dataclass(frozen=True)
class Timings:
    """All that the throughput of one engine comes from.

    Attributes:
        rounds: those that count; all of them where none would be left.
        answers: the answers of the last pass.
        timed: what was compiled inside the timed region; anything makes the run invalid.
        waited_fraction: share of the timed CPU seconds spent waiting for a core; None unknown.
        flops: FLOPs executed in one pass; None where not known.
        faults: what makes the run invalid, one sentence each.
        thrown_out: of every round in which the device slowed itself, how.
        timed_s: seconds of all rounds, thrown out or not.
    """

    engine: EngineName
    ready: Ready
    rounds: tuple[Round, ...]
    answers: Answers
    timed: CompileCounts
    peak_memory_gib: float | None
    waited_fraction: float | None
    flops: float | None
    faults: tuple[str, ...] = ()
    thrown_out: tuple[str, ...] = ()
    timed_s: float = 0.0

    @property
    def watched(self) -> bool:
        """Whether the device's own readings were to be had."""
        return any(done.health.readings for done in self.rounds)

    @property
    def joules_error_fraction(self) -> float | None:
        """How far the tokens per joule may be off: one step of the energy counter, of all time.

        Between two rounds the counter goes on: what it owes one round it gives to the next. None
        where the energy was not counted, or for less than ``_COARSE_TOTAL_S``.
        """
        total_s = sum(done.whole_s for done in self.rounds)
        joules = [done.health.joules for done in self.rounds]
        counted = None not in joules and any(joules)  # a counter that stands still counts nothing
        return ENERGY_STEP_S / total_s if counted and total_s >= _COARSE_TOTAL_S else None


def middle(prompts: Sequence[Prompt]) -> Prompt:
    """Return the prompt of middle length: not one that a compiler takes for a special case."""
    return sorted(prompts, key=lambda prompt: len(prompt.ids))[len(prompts) // 2]


def no_work() -> Ready:
    """Ready for nothing, at no cost."""
    return Ready(0.0, 0.0, CompileCounts(), CompileCounts(), 1)


def make_ready(
    engine: MeasuredEngine,
    prompts: Sequence[Prompt],
    spec: ThroughputSpec,
    clock: Clock = time.perf_counter,
) -> Ready:
    """Compile, then warm up over ``prompts``, each phase on its own clock."""
    engine.forget_compiled()
    before = engine.compile_counts()
    start = clock()
    run_pass(engine, [middle(prompts)], spec.head, clock)
    compiled = clock()
    first = engine.compile_counts()
    warm = run_pass(engine, prompts, spec.head, clock)
    end = clock()
    later = engine.compile_counts() - first
    # A pass that still compiled says nothing of how long a pass takes.
    pass_s = run_pass(engine, prompts, spec.head, clock).whole_s if later.graphs else warm.whole_s
    repeats = max(1, math.ceil(spec.min_round_s / pass_s)) if pass_s > 0 else 1
    uncompiled = engine.not_compiled()
    return Ready(compiled - start, end - compiled, first - before, later, repeats, uncompiled)


def once(ready: Ready) -> Ready:
    """``ready``, with a single pass a round: the full pass is long enough by itself."""
    return replace(ready, repeats=1)


class _Timed(Protocol):
    """A round, of prompts or of tokens one by one."""

    @property
    def health(self) -> RoundHealth:
        """What the device's own readings said meanwhile."""


_R = TypeVar("_R", bound=_Timed)


def counted(rounds: Sequence[_R]) -> tuple[tuple[_R, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the rounds that count, how the device slowed itself in the others, and the faults.

    All of them where none would be left; that is a fault.
    """
    kept = tuple(done for done in rounds if not done.health.throttled)
    thrown_out = tuple(done.health.throttled for done in rounds if done.health.throttled)
    spoilt = performance.too_many_thrown_out(len(rounds), thrown_out)
    foreign = tuple(sorted({pid for done in rounds for pid in done.health.foreign}))
    faults = ((spoilt,) if spoilt else ()) + RoundHealth(foreign=foreign).faults
    return kept or tuple(rounds), thrown_out, faults


class TimedRegion:
    """The timed region: call ``round()`` as often as wanted, then ``finish()``."""

    def __init__(
        self,
        engine: MeasuredEngine,
        prompts: Sequence[Prompt],
        head: Head,
        ready: Ready,
        clock: Clock = time.perf_counter,
        progress: Progress | None = None,
        health: Watch | None = None,
    ) -> None:
        """Start the region: peak memory and compile counts begin anew here."""
        self._health = health or Watch()
        self._engine, self._prompts, self._head, self._ready = engine, prompts, head, ready
        self._clock, self._progress = clock, progress
        self._rounds: list[Round] = []
        self._last: Pass | None = None
        engine.reset_peak_memory()
        self._counts = engine.compile_counts()
        self._contention = cpu_contention()

    def round(self) -> Round:
        """Time one round; the device is read before and after, and beside it by a thread."""
        tokens, core_s, whole_s = 0, 0.0, 0.0
        self._health.begin()
        with notices.timed():
            for _ in range(self._ready.repeats):
                once = run_pass(
                    self._engine, self._prompts, self._head, self._clock, self._progress
                )
                tokens += once.tokens
                core_s += once.core_s
                whole_s += once.whole_s
                self._last = once
        done = Round(tokens, core_s, whole_s, self._health.end())
        self._rounds.append(done)
        return done

    def finish(self) -> Timings:
        """End the region: rounds in which the device slowed itself do not count."""
        assert self._last is not None, "finish() before any round()"
        kept, thrown_out, faults = counted(self._rounds)
        flops = [
            self._engine.flops(len(row.ids), self._head)
            for prompt in self._prompts
            for row in prompt.rows
        ]
        return Timings(
            engine=self._engine.name,
            ready=self._ready,
            rounds=kept,
            answers=self._last.answers,
            timed=self._engine.compile_counts() - self._counts,
            peak_memory_gib=self._engine.peak_memory_gib(),
            waited_fraction=waited_fraction(self._contention, cpu_contention()),
            flops=None if None in flops else sum(f for f in flops if f is not None),
            faults=faults,
            thrown_out=thrown_out,
            timed_s=sum(done.whole_s for done in self._rounds),
        )


def metrics(timings: Timings, nominal_parameters: float, peak: float | None) -> list[Metric]:
    """The metrics of one engine's timings, under their published names.

    ``peak`` is the device's dense FLOP/s for the dtype; without it there is no MFU.
    """
    name, end = pass_name(timings.engine), suffix(timings.engine)
    rounds = timings.rounds
    core = tuple(r.tokens / r.core_s for r in rounds)
    whole = tuple(r.tokens / r.whole_s for r in rounds)
    found = [
        Metric(f"p_{name}_core", statistics.median(core), "tok/s", "higher", core),
        Metric(f"p_{name}_whole", statistics.median(whole), "tok/s", "higher", whole),
        Metric(f"warmup_time{end}", timings.ready.warmup_s, "s", "info"),
        Metric(f"timed_time{end}", sum(r.whole_s for r in rounds), "s", "info"),
        Metric(f"tokens{end}", sum(r.tokens for r in rounds), "tok", "info"),
        Metric(f"questions{end}", len(timings.answers.ids), "questions", "info"),
    ]
    nominal = mfu(statistics.median(core), nominal_parameters, peak)
    if nominal is not None:
        found.append(Metric(f"mfu{end}", nominal, "fraction", "info"))
    if peak is not None and timings.flops is not None:
        rate = statistics.median(timings.flops * timings.ready.repeats / r.core_s for r in rounds)
        found.append(Metric(f"mfu{end}_computed", rate / peak, "fraction", "info"))
    if timings.peak_memory_gib is not None:
        found.append(Metric(f"mem{end}", timings.peak_memory_gib, "GiB", "lower"))
    if timings.engine == "inductor":
        found += compile_metrics(timings.ready)
    return found + _energy(timings) + _health(timings)


def _energy(timings: Timings) -> list[Metric]:
    """Tokens per joule of the board, over all rounds (idle moments in them included).

    A round's own sample is there where every round is long against the counter's step.
    """
    if timings.joules_error_fraction is None:
        return []
    rounds = timings.rounds
    joules = [done.health.joules or 0.0 for done in rounds]
    samples: tuple[float, ...] = ()
    if all(joules) and min(done.whole_s for done in rounds) >= _COARSE_ROUND_S:
        samples = tuple(done.tokens / each for done, each in zip(rounds, joules, strict=True))
    value = sum(done.tokens for done in rounds) / sum(joules)
    name = f"tokens_per_joule{suffix(timings.engine)}"
    return [Metric(name, value, "tok/J", "info", samples)]


def _health(timings: Timings) -> list[Metric]:
    """The device's lowest clock, highest temperature and mean power; a sample a round."""
    sums = (
        ("sm_clock", "sm_clock_mhz", "MHz", min),
        ("temperature", "temperature_c", "C", max),
        ("power", "power_w", "W", statistics.fmean),
    )
    found = []
    for name, key, unit, of in sums:
        read = [done.health.numbers.get(key) for done in timings.rounds]
        values = [float(value) for value in read if value is not None]
        if values and len(values) == len(read):
            name += suffix(timings.engine)
            found.append(Metric(name, float(of(values)), unit, "info", tuple(values)))
    return found


def compile_metrics(ready: Ready) -> list[Metric]:
    """Compile time and health: graphs at the first forward, recompiles after it."""
    return [
        Metric("compile_time", ready.compile_s, "s", "info"),
        Metric("graphs", ready.first.graphs, "count", "lower"),
        Metric(
            "graph_breaks", ready.first.graph_breaks + ready.later.graph_breaks, "count", "lower"
        ),
        Metric("recompiles", ready.later.graphs, "count", "lower"),
    ]


def waited_fraction(
    before: tuple[float, float] | None, after: tuple[float, float] | None
) -> float | None:
    """Share of the CPU seconds wanted that were spent waiting, between two readings."""
    if before is None or after is None:
        return None
    ran, waited = after[0] - before[0], after[1] - before[1]
    # A thread that ended took its seconds with it.
    return waited / (ran + waited) if ran > 0 and waited >= 0 else None
