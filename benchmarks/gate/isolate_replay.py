"""How often does ``perfline isolate`` name the guilty group, and how often an innocent one?

``python benchmarks/gate/isolate_replay.py [--runs N] [--write]``: every row is *replayed*, from the
A/A launch pairs of ``data/`` (``_replay.py``), on environments that differ in five groups:

- ``one``: one of them makes B slower;
- ``broken``: the same, and another one does not run alone, only with its neighbour;
- ``two``: two of them, one with 30 to 70 % of the whole, whose shares add up;
- ``together``: two of them, neither of which does it alone.

An answer is right where it names the guilty groups and no other; an innocent one is named where one
of those named is neither guilty nor merged with a guilty one. The same environments go to a rule
that measures A and each group by one launch of the recording, and names what is 7 % slower.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from _recording import Recording
from _replay import Replay, Tally, environment, tell

from perfline.search import isolate, probe, record
from perfline.search.groups import AND, Group
from perfline.search.probe import Compare, Environment, Finding, Terms
from perfline.search.record import Search

HERE = Path(__file__).parent
NAMES = ("torch", "transformers", "numpy", "code", "rest")
GROUPS = tuple(Group(name, (name,), packages=frozenset({name})) for name in NAMES)
KINDS = ("one", "broken", "two", "together")
EFFECTS = (0.05, 0.03)
BEGIN, END = "<!-- isolate_replay.py begin -->", "<!-- isolate_replay.py end -->"


@dataclass
class Drawn:
    """What five groups cost, and which of them are guilty.

    Attributes:
        alone: of each group, a log ratio; ``extra``: of the guilty ones together, on top.
        broken: does not run but with ``neighbour``.
    """

    alone: dict[str, float]
    guilty: frozenset[str]
    extra: float = 0.0
    broken: str = ""
    neighbour: str = ""
    effects: dict[str, float | None] = field(default_factory=lambda: {"A": 0.0})

    @classmethod
    def of(cls, kind: str, effect: float, generator: np.random.Generator) -> Drawn:
        """One of a kind; of 0, nothing is guilty."""
        size = math.log1p(effect)
        first, second, third = generator.choice(NAMES, 3, replace=False).tolist()
        alone = dict.fromkeys(NAMES, 0.0)
        if not effect:
            return cls(alone, frozenset())
        if kind == "two":
            share = generator.uniform(0.3, 0.7)
            alone |= {first: share * size, second: (1 - share) * size}
            return cls(alone, frozenset({first, second}))
        if kind == "together":
            return cls(alone, frozenset({first, second}), size)
        found = cls(alone | {first: size}, frozenset({first}))
        if kind == "broken":
            found.broken = third
            found.neighbour = next(name for name in NAMES if name != third)
        return found

    def mix(self, name: str, groups: Sequence[Group]) -> Environment:
        """A with these groups, and what that costs."""
        held = frozenset[str]().union(*(group.packages for group in groups))
        cost = sum(self.alone[each] for each in held) + self.extra * (self.guilty <= held)
        runs = self.broken not in held or self.neighbour in held
        self.effects[name] = cost if runs else None
        return environment(name)

    def right(self, named: Sequence[str]) -> bool:
        """Whether these are the guilty groups; a merged one may hold an innocent one."""
        held = [{*name.split(AND)} for name in named]
        return all(any(one in each for each in held) for one in self.guilty) and not self.wrong(
            named
        )

    def wrong(self, named: Sequence[str]) -> bool:
        """Whether one of these holds nothing that is guilty."""
        return any(not self.guilty & {*name.split(AND)} for name in named)


class Memory(record.Journal):
    """A journal that keeps nothing."""

    def probe(
        self,
        role: str,
        a: Environment,
        b: Environment,
        terms: Terms,
        compare: Compare | None = None,
    ) -> Finding:
        """The finding of a comparison."""
        return (compare or self.compare)(a, b, terms)

    def end(self, named: tuple[str, ...], answer: str, notes: tuple[str, ...] = ()) -> Search:
        """The answer."""
        return replace(self.search, partial=False, named=named, answer=answer)


def same(a: Environment, b: Environment, terms: Terms) -> Finding:
    """No difference in what has no noise."""
    return Finding("good", "", 0.0, 0.0, 0.0, "same")


FRESH = Search("", True, "", "isolate", "", "tiny", "inductor", "core_time")


def ours(drawn: Drawn, replay: Replay, pairs: int) -> tuple[str, ...]:
    """What ``perfline isolate`` names."""
    question = isolate.Question(
        a=environment("A"),
        b=drawn.mix("B", GROUPS),
        groups=GROUPS,
        mix=drawn.mix,
        metric=probe.sought("core_time"),
        without_noise={isolate.TOKENS: same, isolate.RUNS: same},
        margin_fraction=0.02,
        max_pairs=pairs,
    )
    journal = Memory(Path("none"), FRESH, replay)
    return isolate.isolate(question, journal, lambda line: None).named


def one_run(drawn: Drawn, recording: Recording, generator: np.random.Generator) -> tuple[str, ...]:
    """Groups that are 7 % slower than A, by one launch of each."""
    rounds = [side for p in recording.pairs for side in (p.levels[0.0].a, p.levels[0.0].b)]
    launches = [math.log(float(np.median(each))) for each in rounds]
    of_a = generator.choice(launches)
    named = []
    for group in GROUPS:
        drawn.mix(group.name, [group])
        effect = drawn.effects[group.name]
        if effect is not None and generator.choice(launches) + effect - of_a > math.log1p(0.07):
            named.append(group.name)
    return tuple(named)


RULES = ("perfline isolate", "one run, 7 %", "perfline isolate, spread x 2")


def run(rule: str, recording: Recording, kind: str, effect: float, runs: int, pairs: int) -> Tally:
    """Draw ``runs`` differences, and let a rule answer; the seed is that of the row."""
    tally = Tally()
    for number in range(runs):
        generator = np.random.default_rng([zlib.crc32(f"{kind} {effect}".encode()), number])
        drawn = Drawn.of(kind, effect, generator)
        if rule == RULES[1]:
            named, launches = one_run(drawn, recording, generator), 1 + len(GROUPS)
        else:
            spread = 2.0 if rule == RULES[2] else 1.0
            replay = Replay(recording, drawn.effects, generator, spread)
            named = ours(drawn, replay, pairs)
            launches = 2 * replay.pairs
        tally.join(Tally(1, drawn.right(named), drawn.wrong(named), launches))
    return tally


def rows(recording: Recording, runs: int, pairs: int) -> Iterator[dict[str, object]]:
    """Every row of the table: the kinds by themselves, and what they come to together."""
    for effect in (*EFFECTS, 0.0):
        for rule in RULES:
            whole = Tally()
            for kind in KINDS if effect else ("one",):
                each = run(rule, recording, kind, effect, runs // 4 if effect else runs, pairs)
                if effect and rule == RULES[0]:
                    yield each.row(rule, effect, "groups", kind)
                whole.join(each)
            yield whole.row(rule, effect, "groups", "all" if effect else "no change")


if __name__ == "__main__":
    raise SystemExit(tell("isolate", __doc__, "differences", (BEGIN, END), rows))
