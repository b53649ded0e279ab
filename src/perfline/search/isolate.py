"""Two environments differ in several groups of things; which group made B worse?

The plan, over :mod:`groups` and ``probe``, and always against A at the same time:

1. What has no noise, one launch of each side: the tokens of the timed prompts. Where they differ
   that is the answer, and nothing is timed.
2. B, all groups together: no difference, nothing to isolate. What runs inside a forward
   (fingerprint) then is told for B and for each group; it decides nothing.
3. A with each group alone. One that cannot be made or does not run is merged with a neighbour. Of
   one that is made of parts (``groups.REST``) and did it, A with each half, until one part is left.
4. Where the groups' shares do not add up to the whole, or none has one: B without each group. What
   is needed for B to be worse did it, together with others.

The margin of 4 is the least that B was shown to be worse by, that of 3 half of it: what has no more
than a quarter of the whole is not what did it.
Each of at most 1 + 2 k comparisons, and two for each halving, has an equal share of the 1 % in
which the answer may name an innocent group (``probe.terms``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from perfline.errors import SearchError, WorkerError
from perfline.gates import fingerprint
from perfline.search.groups import Group
from perfline.search.probe import Compare, Environment, Finding, Sought, Terms, percent, terms
from perfline.search.record import Journal, Search

# Roles of probes. Those of B are called ``ends``.
ENDS, ALONE, WITHOUT = "ends", "alone", "without"
TOKENS, RUNS = "tokens", "runs"
TOKENS_OF_ENDS, RUNS_OF_ENDS = "tokens of the ends", "runs of the ends"
WITHOUT_NOISE = {TOKENS: "prompt_tokens", RUNS: fingerprint.NAME}

Mix = Callable[[str, Sequence[Group]], Environment]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Question:
    """What is to be isolated.

    Attributes:
        mix: A with some groups as B has them, under a name.
        without_noise: compares by a metric of :data:`WITHOUT_NOISE`; the journal by ``metric``.
        margin_fraction: what B must be shown to be worse by, or it is no difference.
    """

    a: Environment
    b: Environment
    groups: tuple[Group, ...]
    mix: Mix
    metric: Sought
    without_noise: Mapping[str, Compare]
    margin_fraction: float
    max_pairs: int


def isolate(question: Question, journal: Journal, say: Say) -> Search:
    """Ask until it is answered; the search, which has ended.

    SearchError where B does not run, or cannot be compared with A; what was measured is kept.
    """
    return _Isolation(question, journal, say).run()


def compared(search: Search) -> bool:
    """Whether B was compared with A; else the tokens of the prompts were the answer."""
    return any(probe.role == ENDS for probe in search.probes)


def worse(search: Search) -> bool:
    """Whether B is worse than A, or that could not be told."""
    if search.named:
        return True
    return any(probe.role == ENDS and probe.finding.word != "good" for probe in search.probes)


def probes(groups: Sequence[Group]) -> int:
    """Over how many comparisons the error is split: the ends, each group alone, and B without.

    And two for each halving of a group's parts.
    """
    halvings = sum(math.ceil(math.log2(len(each.parts))) for each in groups if each.parts)
    return 1 + 2 * halvings + (2 * len(groups) if len(groups) > 1 else 0)


@dataclass
class _Isolation:
    asked: Question
    journal: Journal
    say: Say
    groups: list[Group] = field(init=False)
    notes: list[str] = field(default_factory=list)
    inner: list[Group] = field(default_factory=list)  # parts of groups

    def __post_init__(self) -> None:
        self.groups = list(self.asked.groups)
        self.first = terms(self.asked.margin_fraction, self.asked.max_pairs, probes(self.groups))

    def run(self) -> Search:
        """All of the plan."""
        if self.asked.metric.noisy and (found := self._by_tokens()) is not None:
            return found
        ends = self._of_b(ENDS, None)
        if ends.word != "bad":
            return self._end((), self._no_worse(ends))
        self.notes += _drivers(ends)
        if self.asked.metric.noisy:
            self._tell_what_runs()
        least = _least(ends, self.asked.margin_fraction)
        part = max(least, self.asked.margin_fraction) / 2
        then = replace(self.first, margin_fraction=part)
        alone = self._each(ALONE, None, then, ends)
        named = [group for group in self.groups if alone[group.name].word == "bad"]
        together: list[Group] = []
        left = _left_over(ends, list(alone.values()))
        if not named or (left is not None and left.low > 0 and left.estimate > _half(least)):
            without = self._without(replace(self.first, margin_fraction=least), alone)
            together = [
                group
                for group in self.groups
                if group not in named and without[group.name].word == "good"
            ]
            together = [] if len(named) + len(together) < 2 else together
        named = [self._within(group, then, alone) for group in named]
        return self._end(
            tuple(group.name for group in (*named, *together)),
            self._answer(ends, alone, named, together, left),
        )

    def _of_b(self, role: str, compare: Compare | None) -> Finding:
        found = self.journal.probe(role, self.asked.a, self.asked.b, self.first, compare)
        if found.word == "skipped":
            self.journal.forget()  # whoever mends B and asks again is not told the same
            raise SearchError(f"B cannot be compared with A: {found.reason}")
        return found

    def _by_tokens(self) -> Search | None:
        """The answer where the timed prompts are not the same ones: seconds would not tell."""
        compare = self.asked.without_noise[TOKENS]
        ends = self._of_b(TOKENS_OF_ENDS, compare)
        if not _moved(ends):
            return None
        alone = self._each(TOKENS, compare, self.first, ends)
        named = [group for group in self.groups if _moved(alone[group.name])]
        told = [f"{group.name} ({_tokens(alone[group.name])})" for group in named]
        who = f"{' and '.join(told)} did it" if told else "no group alone did it"
        return self._end(
            tuple(group.name for group in named),
            f"{who}: the timed prompts are not the same ones ({_tokens(ends)} in all), so no "
            "timing was needed",
        )

    def _tell_what_runs(self) -> None:
        """What runs inside a forward, of B and of each group, kept for people."""
        compare = self.asked.without_noise[RUNS]
        try:
            ends = self._of_b(RUNS_OF_ENDS, compare)
            if ends.word == "bad":
                self._each(RUNS, compare, self.first, ends)
        except (WorkerError, SearchError) as error:
            self.notes.append(" ".join(f"what runs in a forward is not known: {error}".split()))

    def _each(
        self, role: str, compare: Compare | None, terms: Terms, ends: Finding
    ) -> dict[str, Finding]:
        """Each group alone, by its name; what does not run alone is merged and asked again."""
        found: dict[str, Finding] = {}
        while group := next((each for each in self.groups if each.name not in found), None):
            if len(self.groups) == 1:  # A with all groups is B
                found[group.name] = ends
                break
            environment = self.asked.mix(group.name, [group])
            probed = self.journal.probe(role, self.asked.a, environment, terms, compare)
            if probed.word == "skipped":
                self._merge(group, probed.reason)
            else:
                found[group.name] = probed
        return found

    def _within(self, group: Group, terms: Terms, alone: dict[str, Finding]) -> Group:
        """The smallest part of a group that does it alone; itself where no half of it does."""
        while halves := group.halves:
            for half in halves:
                environment = self.asked.mix(half.name, [half])
                found = self.journal.probe(ALONE, self.asked.a, environment, terms)
                self.inner.append(half)
                if found.word == "bad":
                    group, alone[half.name] = half, found
                    break
            else:
                break
        return group

    def _merge(self, group: Group, why: str) -> None:
        others = [each for each in self.groups if each != group]
        near = [each for each in others if group.near & each.packages or each.near & group.packages]
        neighbour = (near or others)[0]
        both = group.with_(neighbour)
        rest = [each for each in self.groups if each != neighbour]
        self.groups = [both if each == group else each for each in rest]
        note = f"{group.name} alone does not run ({why}): moved with {neighbour.name}"
        self.notes.append(note)
        self.say(note)

    def _without(self, terms: Terms, alone: Mapping[str, Finding]) -> dict[str, Finding]:
        """B without each group, by its name."""
        if len(self.groups) == 2:  # B without one is A with the other
            one, other = (group.name for group in self.groups)
            return {one: alone[other], other: alone[one]}
        found = {}
        for group in self.groups:
            rest = [each for each in self.groups if each != group]
            environment = self.asked.mix(f"B without {group.name}", rest)
            found[group.name] = self.journal.probe(WITHOUT, self.asked.a, environment, terms)
        return found

    def _end(self, named: tuple[str, ...], answer: str) -> Search:
        held = {group.name: group.what for group in (*self.groups, *self.inner)}
        self.journal.search = replace(self.journal.search, groups=held)
        return self.journal.end(named, answer, (*self.journal.search.notes, *self.notes))

    def _no_worse(self, ends: Finding) -> str:
        margin = f"{100 * self.asked.margin_fraction:g} %"
        if ends.word == "unsure":
            why = ends.reason or f"neither shown nor ruled out after {ends.pairs} launch pairs"
            return f"nothing to isolate yet: that B is worse by {margin} is {why}"
        if ends.reason == "improved":
            return f"nothing to isolate: B is better by {shown(ends)}"
        if not self.asked.metric.noisy:
            return f"nothing to isolate: B is no worse ({ends.change or ends.reason})"
        return f"nothing to isolate: that B is worse by {margin} is ruled out ({shown(ends)})"

    def _answer(
        self,
        ends: Finding,
        alone: Mapping[str, Finding],
        named: Sequence[Group],
        together: Sequence[Group],
        left: LeftOver | None,
    ) -> str:
        whole = f" of {ends.change}" if ends.change and len(self.groups) > 1 else ""
        parts = [shown(alone[group.name]) for group in named]
        unsure = [group.name for group in self.groups if alone[group.name].word == "unsure"]
        if parts:
            who = " and ".join(group.name for group in named)
            text = f"{who} did it: {' and '.join(parts)}{whole}"
            if together:
                text += f"; the rest with {' and '.join(group.name for group in together)}"
        elif together:
            who = " with ".join(group.name for group in together)
            text = f"{who} did it, and none alone: {shown(ends)}"
        else:
            text = f"no group by itself is to blame for {shown(ends)}"
        if unsure := [name for name in unsure if name not in [g.name for g in together]]:
            text += f"; not settled: {', '.join(unsure)}"
        if left is not None and not together and len(self.groups) > 1:
            text += f"; left over: {left}"
        return text


@dataclass(frozen=True)
class LeftOver:
    """What the groups' shares do not add up to; log ratios, at ``probe.CONFIDENCE``."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        """As people read it."""
        return _interval(self.estimate, self.low, self.high)


def _drivers(ends: Finding) -> Iterator[str]:
    """What no group of ours can change: a driver is the machine's, and both sides' on it."""
    for compared in ends.comparisons.values():
        if driver := compared.sides["baseline"].context.get("driver"):
            yield f"driver {driver} on both sides: it is the machine's, and cannot be swapped"


def _left_over(ends: Finding, alone: Sequence[Finding]) -> LeftOver | None:
    """The whole less all shares: errors of independent comparisons add up by their squares.

    None where one of them has no interval.
    """
    estimate, squares = 0.0, 0.0
    for sign, each in ((1, ends), *((-1, each) for each in alone)):
        if each.estimate is None or each.low is None or each.high is None:
            return None
        estimate += sign * each.estimate
        squares += ((each.high - each.low) / 2) ** 2
    half = math.sqrt(squares)
    return LeftOver(estimate, estimate - half, estimate + half)


def _least(ends: Finding, margin_fraction: float) -> float:
    """What B is worse by at least, as a margin: the proven part, or half of the estimate if more.

    A lower bound near 0, which few launch pairs leave, would ask for more than any search can pay.
    """
    if ends.estimate is None or ends.low is None:
        return margin_fraction  # of a metric without noise
    return min(math.expm1(max(ends.low, ends.estimate / 2)), 1.0)


def _half(margin_fraction: float) -> float:
    """Half a margin, as a log ratio: less than that is not told from nothing."""
    return math.log1p(margin_fraction) / 2


def shown(found: Finding) -> str:
    """The change that a probe found, with its interval where it has one."""
    if found.estimate is None or found.low is None or found.high is None:
        return found.change or found.reason
    if found.low == found.high:
        return found.change
    return _interval(found.estimate, found.low, found.high)


def _interval(estimate: float, low: float, high: float) -> str:
    return f"{percent(estimate)} [{percent(low)}, {percent(high)}]"


def _moved(found: Finding) -> bool:
    """Whether the numbers of tokens differ, to either side."""
    return found.estimate != 0.0


def _tokens(found: Finding) -> str:
    if found.estimate is None:
        return f"{found.change} tokens"
    return f"{percent(found.estimate)} prompt tokens, {found.change}"
