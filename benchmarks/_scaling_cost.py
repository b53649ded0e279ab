"""What does a unit of questions take on one rank, and which measured units say so?

Seconds as a sum over what its plan runs: tokens, forwards, pairs of a query and a key, and the unit
itself. The seconds each of them costs are fitted to timed units; none is below 0, since a negative
one would make some pass of another size take less than no time.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from scipy.optimize import nnls

from perfline.engines.prefix_plan import Plan

TERMS = ("tokens", "forwards", "pairs", "units")
REPEATS = 3  # the first fit's errors are relative to what was measured: slow outliers count little
EARNED = 0.05  # of the error on units left out: a term that saves less is left out itself


@dataclass(frozen=True)
class Work:
    """What a plan runs.

    Attributes:
        tokens: padding included.
        pairs: of a token that is run and one that it may attend to, padding included.
        units: how many plans these are.
    """

    tokens: int
    forwards: int
    pairs: int
    units: int = 1


def work(plan: Plan, least_rows: int) -> Work:
    """The work of one plan, whose forwards run at least so many rows."""
    pairs = sum(
        max(len(batch.rows), least_rows) * batch.width * (batch.prefix + batch.width)
        for batch in plan.batches
    )
    for group in plan.groups:
        start = plan.nodes[group[0]].start
        width = max(plan.nodes[number].end - start for number in group)
        pairs += max(len(group), least_rows) * width * (start + width)
    return Work(plan.computed_tokens + plan.padded_tokens, plan.forwards, pairs)


@dataclass(frozen=True)
class Cost:
    """What a run costs.

    Attributes:
        terms: seconds of one token, forward, pair, unit.
        start_s: every rank's load and warm-up.
        cut_s: rank 0's cutting into units, before any is handed out, for each question.
        tail_s: what rank 0 does alone after the pass.
    """

    terms: Mapping[str, float] = field(default_factory=lambda: {"tokens": 1e-3})
    start_s: float = 0.0
    cut_s: float = 0.0
    tail_s: float = 0.0

    def seconds(self, one: Work) -> float:
        """Of a unit, or a whole pass."""
        amounts = asdict(one)
        return sum(each * float(amounts[term]) for term, each in self.terms.items())


def last_ends(seconds: Iterable[float], ranks: int) -> float:
    """When the last of ``ranks`` ends, the next unit always going to the first one that is free."""
    free = [0.0] * ranks
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def fit(units: Sequence[Work], seconds: Sequence[float]) -> dict[str, float]:
    """Seconds of each term, by least squares of the relative error, none below 0.

    Begins with all terms; one after the other is dropped that the units which a fit has not seen
    (each left out in turn) do not miss.
    """
    kept = list(TERMS)
    error = left_out_error(units, seconds, kept)
    while len(kept) > 1:
        rest = {
            term: left_out_error(units, seconds, [t for t in kept if t != term]) for term in kept
        }
        least = min(kept, key=lambda term: rest[term])
        if rest[least] > error * (1 + EARNED) + 1e-9:
            break
        kept.remove(least)
        error = rest[least]
    return _solve(units, seconds, kept)


def left_out_error(units: Sequence[Work], seconds: Sequence[float], terms: Sequence[str]) -> float:
    """Root mean square of the relative errors of units that a fit has not seen."""
    errors = []
    for out in range(len(units)):
        others = [i for i in range(len(units)) if i != out]
        cost = Cost(_solve([units[i] for i in others], [seconds[i] for i in others], terms))
        errors.append(seconds[out] / cost.seconds(units[out]) - 1)
    return float(np.sqrt(np.mean(np.square(errors))))


def _solve(
    units: Sequence[Work], seconds: Sequence[float], terms: Sequence[str]
) -> dict[str, float]:
    amounts = np.array([[asdict(unit)[term] for term in terms] for unit in units], dtype=np.float64)
    wanted = np.array(seconds)
    expected, found = wanted, np.zeros(len(terms))
    for _ in range(REPEATS):
        relative = amounts / expected[:, None]
        scale = np.linalg.norm(relative, axis=0)
        found = nnls(relative / scale, wanted / expected)[0] / scale
        expected = amounts @ found
    return {term: float(x) for term, x in zip(terms, found, strict=True) if x > 0}
