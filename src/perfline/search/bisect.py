"""Which of the candidates, in their order, made the metric worse?

The good end is compared with the bad one first: without a sure difference there is nothing to look
for. Then candidates between them are compared with the good end, halving the range, and what does
not run or stays unsure is stepped around, as ``git bisect skip`` does. The step that is left is
compared once more, with its own parent: only that names it.

How sure that is: a name is wrong only where that last comparison calls what is no slower
``regressed``. It has its share of 1 %, split by Bonferroni over the ends, the halvings, and two
such comparisons. A wrong turn on the way leads to a step that is none, and so to no name.

Where the range holds several steps, one of them is found. A part of the way that was taken for bad
once, and for good another time, can lead between two steps: then the step found is no slower than
its parent, and the search goes on once, before it, where the rest of the change has to be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from perfline.errors import SearchError
from perfline.search.probe import Environment, Finding, Terms, terms

Ask = Callable[[str, Environment, Environment, Terms], Finding]
Outcome = Literal["step", "range", "same", "better", "unsure"]

ENDS, HALF, STEP = "ends", "half", "step"  # roles of probes
_MOST_UNSURE = 3  # of one search: beyond it the machine is too noisy for this change


@dataclass(frozen=True)
class Answer:
    """What a search found.

    Attributes:
        outcome: ``step``: one of ``named`` did it, shown against the parent; ``range``: it lies
            among ``named``, more cannot be told; ``same``, ``better`` or ``unsure``: what the bad
            end is against the good one, and nothing was looked for.
        named: names of candidates, in their order: those before the last could not be measured.
        parent: the last candidate before them; empty without a step.
        ends: of the bad end against the good one; ``step``: of the last of ``named`` against the
            parent, None where it was not compared.
        reason: why it is no more than a range.
    """

    outcome: Outcome
    ends: Finding
    named: tuple[str, ...] = ()
    parent: str = ""
    step: Finding | None = None
    reason: str = ""

    @property
    def several(self) -> bool:
        """Whether the step is surely less than the whole way."""
        ends, step = self.ends, self.step
        if step is None or None in (step.low, step.high, ends.low, ends.high):
            return False
        farthest = max(abs(step.low or 0.0), abs(step.high or 0.0))
        return farthest < abs(_nearest(ends))


def budget(candidates: int, margin_fraction: float, max_pairs: int) -> Terms:
    """The terms of each comparison of a search over so many candidates, ends included."""
    halvings = math.ceil(math.log2(max(1, candidates - 1)))
    return terms(margin_fraction, max_pairs, 3 + halvings)


def bisect(candidates: Sequence[Environment], ask: Ask, every: Terms) -> Answer:
    """Find the step among ``candidates``, the first of which is good and the last bad.

    ``ask`` compares two of them; ``every`` are the terms of the first comparison, the margin below
    which a difference of the ends does not count among them. SearchError where the bad end cannot
    be measured.
    """
    ends = ask(ENDS, candidates[0], candidates[-1], every)
    if ends.word == "skipped":
        raise SearchError(f"the bad end {candidates[-1].name} cannot be measured: {ends.reason}")
    if ends.word != "bad":
        better = ends.reason == "improved"
        return Answer("better" if better else "unsure" if ends.word == "unsure" else "same", ends)
    last, whole = len(candidates) - 1, ends
    for again in (False, True):
        margin = replace(every, margin_fraction=_margin(whole, every))
        search = _Descent(candidates, ask, margin, last, whole)
        search.run()
        named = tuple(each.name for each in candidates[search.low + 1 : search.high + 1])
        if search.unsure:
            return Answer("range", ends, named, candidates[search.low].name, None, search.reason)
        half = replace(margin, margin_fraction=margin.margin_fraction / 2)
        step = ask(STEP, candidates[search.low], candidates[search.high], half)
        found = Answer("step", ends, named, candidates[search.low].name, step)
        if step.word == "bad":
            return found
        if again or search.low == 0 or step.word != "good":
            break
        last, whole = search.high, search.found
    return replace(found, outcome="range", reason=_not_shown(found))


def _margin(found: Finding, every: Terms) -> float:
    """What an environment may be slower by, and be good still: less than the whole change.

    Its proven part, but at least half of its estimate: a lower bound near 0, which few launch
    pairs leave, would ask for more launch pairs than any search can pay.
    """
    if found.estimate is None or found.low is None:
        return every.margin_fraction  # of a metric without noise
    return math.expm1(max(abs(_nearest(found)), abs(found.estimate) / 2))


def _nearest(found: Finding) -> float:
    """The end of the interval that is nearest to no change."""
    low, high = found.low or 0.0, found.high or 0.0
    return low if (found.estimate or 0.0) > 0 else high


def _not_shown(found: Answer) -> str:
    step = found.step
    assert step is not None
    last = found.named[-1]
    if step.word == "skipped":
        return f"{last} could not be compared with {found.parent}: {step.reason}"
    return (
        f"{last} is not shown to be worse than its parent {found.parent} "
        f"({step.change or step.word}): the change comes in small steps, or comes and goes"
    )


@dataclass
class _Descent:
    """Halves the range between a good and a bad candidate until nothing can be put between them."""

    candidates: Sequence[Environment]
    ask: Ask
    terms: Terms
    high: int
    found: Finding  # of ``high``
    low: int = 0
    unsure: bool = False
    reason: str = ""

    def run(self) -> None:
        """Halve it."""
        passed: set[int] = set()  # skipped, or unsure
        unsure = 0
        while (middle := _next(self.low, self.high, passed)) is not None:
            found = self.ask(HALF, self.candidates[0], self.candidates[middle], self.terms)
            if found.word == "bad":
                self.high, self.found = middle, found
            elif found.word == "good":
                self.low = middle
            else:
                passed.add(middle)
                unsure += found.word == "unsure"
                self.reason = f"{self.candidates[middle].name} is unsure: {found.change}"
            if unsure > _MOST_UNSURE:
                break
        between = range(self.low + 1, self.high)
        self.unsure = unsure > _MOST_UNSURE and bool(between)


def _next(low: int, high: int, passed: set[int]) -> int | None:
    """What to measure next between two candidates: the middle, or far from what was passed by."""
    left = [index for index in range(low + 1, high) if index not in passed]
    if not left:
        return None
    tried = sum(low < index < high for index in passed)
    target = low + (high - low) * _fraction(tried)
    return min(left, key=lambda index: (abs(index - target), index))


def _fraction(count: int) -> float:
    """1/2, 1/4, 3/4, 1/8, 5/8, ...: van der Corput's sequence, so that a broken stretch is left."""
    return sum(bit / (1 << place) for place, bit in enumerate(_bits(count + 1), 1))


def _bits(number: int) -> Iterator[int]:
    while number:
        number, bit = divmod(number, 2)
        yield bit
