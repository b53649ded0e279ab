"""How many prompt tokens a second does an engine take, and what did getting there cost?

Four phases, each on its own clock, nothing subtracted from anything:

    load      weights to the device (``hf.load``)
    compile   the first forward; what it compiles is counted, and whether the cache was cold
    warm-up   one pass over the prompts; what it still compiles is a recompile
    timed     rounds over the same prompts; a recompile in here makes the run invalid

A round repeats its pass until it is long enough to time (``min_round_s``).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from perfline.answers import Answers
from perfline.case import ThroughputSpec
from perfline.device import cpu_contention
from perfline.engine import Clock, CompileCounts, Engine, EngineName, Head, Pass, Progress, run_pass
from perfline.metrics import Metric, mfu
from perfline.mmlu import Prompt

PREFIX: dict[EngineName, str] = {
    "eager": "val",
    "inductor": "infer",
}  # the published names of the two passes


@dataclass(frozen=True)
class Ready:
    """An engine that is compiled and warm, and what that cost.

    Attributes:
        compile_s: seconds of the first forward, compilation included.
        warmup_s: seconds of the warm-up pass.
        first: what the first forward compiled.
        later: what was compiled after it, before the timed region.
        repeats: passes a round, so that it lasts ``min_round_s``.
    """

    compile_s: float
    warmup_s: float
    first: CompileCounts
    later: CompileCounts
    repeats: int


@dataclass(frozen=True)
class Round:
    """One timed round: ``repeats`` passes over the prompts."""

    tokens: int
    core_s: float
    whole_s: float


@dataclass(frozen=True)
class Timings:
    """All that the throughput of one engine comes from.

    Attributes:
        answers: the answers of the last pass.
        timed: what was compiled inside the timed region; anything makes the run invalid.
        waited_fraction: share of the timed CPU seconds spent waiting for a core; None unknown.
        flops: FLOPs executed in one pass; None where not known.
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


def make_ready(
    engine: Engine,
    prompts: Sequence[Prompt],
    spec: ThroughputSpec,
    clock: Clock = time.perf_counter,
) -> Ready:
    """Compile, then warm up over ``prompts``, each phase on its own clock."""
    before = engine.compile_counts()
    start = clock()
    # The middle length: not one that a compiler would specialise on as a special case.
    middle = sorted(prompts, key=lambda prompt: len(prompt.ids))[len(prompts) // 2]
    run_pass(engine, [middle], spec.head, clock)
    compiled = clock()
    first = engine.compile_counts()
    warm = run_pass(engine, prompts, spec.head, clock)
    end = clock()
    later = engine.compile_counts() - first
    # A pass that still compiled says nothing of how long a pass takes.
    pass_s = run_pass(engine, prompts, spec.head, clock).whole_s if later.graphs else warm.whole_s
    repeats = max(1, math.ceil(spec.min_round_s / pass_s)) if pass_s > 0 else 1
    return Ready(compiled - start, end - compiled, first - before, later, repeats)


def once(ready: Ready) -> Ready:
    """``ready``, with a single pass a round: the full pass is long enough by itself."""
    return replace(ready, repeats=1)


class Stopwatch:
    """The timed region: call ``round()`` as often as wanted, then ``finish()``."""

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Prompt],
        head: Head,
        ready: Ready,
        clock: Clock = time.perf_counter,
        progress: Progress | None = None,
    ) -> None:
        """Start the region: peak memory and compile counts begin anew here."""
        self._engine, self._prompts, self._head, self._ready = engine, prompts, head, ready
        self._clock, self._progress = clock, progress
        self._rounds: list[Round] = []
        self._last: Pass | None = None
        engine.reset_peak_memory()
        self._counts = engine.compile_counts()
        self._contention = cpu_contention()

    def round(self) -> None:
        """Time one round."""
        tokens, core_s, whole_s = 0, 0.0, 0.0
        for _ in range(self._ready.repeats):
            done = run_pass(self._engine, self._prompts, self._head, self._clock, self._progress)
            tokens += done.tokens
            core_s += done.core_s
            whole_s += done.whole_s
            self._last = done
        self._rounds.append(Round(tokens, core_s, whole_s))

    def finish(self, faults: Sequence[str] = ()) -> Timings:
        """End the region; ``faults`` are what the device's own telemetry found wrong in it."""
        assert self._last is not None, "finish() before any round()"
        flops = [self._engine.flops(len(prompt.ids), self._head) for prompt in self._prompts]
        return Timings(
            engine=self._engine.name,
            ready=self._ready,
            rounds=tuple(self._rounds),
            answers=self._last.answers,
            timed=self._engine.compile_counts() - self._counts,
            peak_memory_gib=self._engine.peak_memory_gib(),
            waited_fraction=_waited_fraction(self._contention, cpu_contention()),
            flops=None if None in flops else sum(f for f in flops if f is not None),
            faults=tuple(faults),
        )


def metrics(timings: Timings, nominal_parameters: float, peak: float | None) -> list[Metric]:
    """The metrics of one engine's timings, under their published names.

    ``peak`` is the device's dense FLOP/s for the dtype; without it there is no MFU.
    """
    name = PREFIX[timings.engine]
    suffix = "" if timings.engine == "inductor" else "_val"
    rounds = timings.rounds
    core = tuple(r.tokens / r.core_s for r in rounds)
    whole = tuple(r.tokens / r.whole_s for r in rounds)
    found = [
        Metric(f"p_{name}_core", statistics.median(core), "tok/s", "higher", core),
        Metric(f"p_{name}_whole", statistics.median(whole), "tok/s", "higher", whole),
        Metric(f"warmup_time{suffix}", timings.ready.warmup_s, "s", "info"),
        Metric(f"timed_time{suffix}", sum(r.whole_s for r in rounds), "s", "info"),
        Metric(f"tokens{suffix}", sum(r.tokens for r in rounds), "tok", "info"),
        Metric(f"questions{suffix}", len(timings.answers.ids), "questions", "info"),
    ]
    nominal = mfu(statistics.median(core), nominal_parameters, peak)
    if nominal is not None:
        found.append(Metric(f"mfu{suffix}", nominal, "fraction", "info"))
    if peak is not None and timings.flops is not None:
        rate = statistics.median(timings.flops * timings.ready.repeats / r.core_s for r in rounds)
        found.append(Metric(f"mfu{suffix}_computed", rate / peak, "fraction", "info"))
    if timings.peak_memory_gib is not None:
        found.append(Metric(f"mem{suffix}", timings.peak_memory_gib, "GiB", "lower"))
    if timings.engine == "inductor":
        found += compile_metrics(timings.ready)
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


def _waited_fraction(
    before: tuple[float, float] | None, after: tuple[float, float] | None
) -> float | None:
    if before is None or after is None:
        return None
    ran, waited = after[0] - before[0], after[1] - before[1]
    # A thread that ended took its seconds with it.
    return waited / (ran + waited) if ran > 0 and waited >= 0 else None
