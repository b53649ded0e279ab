"""Is what a session measured a measurement at all, whatever it is compared with?

Nothing overrides what is wrong here: a test that failed, an edited record, another definition of
the case, rounds beside other processes, too few of them, numbers that nothing can measure.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import cast

from perfline.baselines.proposal import Candidate
from perfline.cases.case import WeightsKind
from perfline.gates import performance as gates
from perfline.metrics import Metric

AGAIN = "run pytest again"
_WAITED = {"p_val": "cpu_waited_fraction_val", "p_infer": "cpu_waited_fraction_infer"}
# What perfline writes of a metric, by the start of its name: anything else was edited in.
_EXPECTED = {
    "p_": ("tok/s", "higher"),
    "mem": ("GiB", "lower"),
    "graph": ("count", "lower"),
    "recompiles": ("count", "lower"),
    "compile_time": ("s", "info"),
    "sm_clock": ("MHz", "info"),
}

_BESIDE_THROUGHPUT = ("_core_per_device", "_whole_one_rank")  # of several ranks; not judged


def waited_note(metric: str) -> str:
    """Return the name of the note on the CPU while a tok/s metric was timed; empty: no such."""
    return _WAITED.get(metric.rpartition("_")[0], "")


def rounds_asked(candidate: Candidate, metric: Metric) -> int:
    """Return the rounds that the case asks for, less those that the device spoilt."""
    engine = "val" if metric.name.startswith("p_val") else "infer"
    thrown_out = candidate.measured.notes.get(f"rounds_thrown_out_{engine}")
    return candidate.case.throughput.rounds - (thrown_out if isinstance(thrown_out, int) else 0)


def contended(candidate: Candidate) -> dict[str, float]:
    """Return {note: fraction} of the timed rounds whose CPU other processes took."""
    timed = [name for session in candidate.new.sessions for name in session.metrics]
    notes = {note: candidate.measured.notes.get(note) for note in map(waited_note, timed)}
    return {
        note: float(waited)
        for note, waited in notes.items()
        if isinstance(waited, int | float) and waited > gates.MAX_CONTENTION_FRACTION
    }


def _edited(metric: Metric) -> str:
    """Say how a metric differs from what perfline writes; empty where it does not."""
    expected = next(
        (each for start, each in _EXPECTED.items() if metric.name.startswith(start)), None
    )
    if metric.name.endswith(_BESIDE_THROUGHPUT):
        expected = ("tok/s", "info")
    found = (metric.unit, metric.direction)
    if expected is not None and found != expected:
        return f"{metric.name} is {' '.join(found)} (expected {' '.join(expected)})"
    if metric.unit == "tok/s" and metric.samples:
        median = statistics.median(metric.samples)
        if not math.isclose(metric.value, median, rel_tol=1e-6):
            return f"{metric.name} is {metric.value:g} tok/s, the median of its rounds {median:g}"
    return ""


def spoilt(candidate: Candidate) -> Iterator[str]:
    """Yield what is wrong with the measurement itself; nothing overrides that."""
    measured, case = candidate.measured, candidate.case
    for line in measured.errors:
        yield f"a test ended without a result ({line}); fix it, then {AGAIN}"
    today = case.digest(cast("WeightsKind", measured.weights))
    if measured.digest != today:
        yield (
            f"measured another definition of the case than {case.source} has now "
            f"({measured.digest}, now {today}); {AGAIN}, or restore the YAML"
        )
    if not candidate.new.sessions and not candidate.new.accuracy:
        yield "has neither accuracy nor throughput; run `pytest -m 'perf or accuracy'`"
    for metric in measured.metrics.values():
        if edited := _edited(metric):
            yield f"{edited}: the record was edited; {AGAIN}"
    counts = [n for note, n in measured.notes.items() if note.startswith("throughput_ranks_")]
    if any(not candidate.new.machine.endswith(f"-x{n}") for n in counts):
        yield (
            f"timed on {counts[0]} ranks, and is of machine {candidate.new.machine}: the record "
            f"was edited; {AGAIN}"
        )
    if beside := contended(candidate):
        taken = [f"{100 * waited:.0f} % ({note})" for note, waited in beside.items()]
        ranks = any(note.startswith("throughput_ranks_") for note in measured.notes)
        who, cure = "other processes", ""
        if ranks:
            who, cure = "other processes or ranks", ", with no more ranks than cores"
        yield (
            f"{who} took {' and '.join(taken)} of the CPU during the timed rounds "
            f"(at most {100 * gates.MAX_CONTENTION_FRACTION:.0f} % may be); "
            f"run again on an idle machine{cure}"
        )
    for session in candidate.new.sessions:
        for metric in session.metrics.values():
            if (zero := impossible(metric)) is not None:
                yield f"{metric.name} holds {zero:g} {metric.unit}: no measurement; {AGAIN}"
            asked = rounds_asked(candidate, metric)
            run = gates.Run(None, full_pass(candidate), asked)
            if lacking := gates.too_few_rounds(metric, run):
                cure = "raise throughput.rounds, then " if asked < gates.MIN_ROUNDS else ""
                yield f"{metric.name} was timed in {lacking}; {cure}{AGAIN}"


def full_pass(candidate: Candidate) -> bool:
    """Whether every question was timed, once: one long round, which is enough."""
    return candidate.measured.workload.get("full_pass") is True


def impossible(metric: Metric) -> float | None:
    """Return the first number that cannot have been measured; only a count may be 0."""
    numbers = (metric.value, *metric.samples)
    return next((n for n in numbers if n < 0 or (n == 0 and metric.unit != "count")), None)
