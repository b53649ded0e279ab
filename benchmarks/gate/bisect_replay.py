"""How often does ``perfline bisect`` name the right commit, and how often an innocent one?

``python benchmarks/gate/bisect_replay.py [--runs N] [--write]``: every row is *replayed*, from the
A/A launch pairs of ``data/`` (``_replay.py``), on histories of 32 commits behind the good end that
are drawn anew for each run:

- ``plain``: one commit makes it slower;
- ``skips``: the same, and a tenth of the commits, and a stretch of four, do not build;
- ``revert``: a commit makes it slower, a later one takes that back, a third one brings it again;
- ``two``: two commits, which together cost twice as much, one of them 30 to 70 % of that.

An answer is right where a guilty commit is among those named, and all others of them do not build;
an innocent one is named where none of those named is guilty. What is left is no name, or a range.
The same histories go to two other rules, which measure each commit by one launch of the recording:
the first is TorchBench's bisection (``pytorch/benchmark``: one run a commit, 7 %), the second keeps
the part of the range with the larger difference between its ends, by golden sections.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from _recording import Recording
from _replay import Replay, Tally, environment, tell

from perfline.search import bisect

HERE = Path(__file__).parent
COMMITS = 32
KINDS = ("plain", "skips", "revert", "two")
EFFECTS = (0.05, 0.03)
NAMES = [f"c{number}" for number in range(COMMITS + 1)]
BEGIN, END = "<!-- bisect_replay.py begin -->", "<!-- bisect_replay.py end -->"
Effects = Mapping[str, float | None]


@dataclass(frozen=True)
class History:
    """The log ratio of every commit to the first, and which of them are guilty."""

    effects: Effects
    guilty: frozenset[str]

    @classmethod
    def drawn(cls, kind: str, effect: float, generator: np.random.Generator) -> History:
        """One of a kind; of 0, nothing is guilty, and commits do not build as among ``skips``."""
        size = math.log1p(effect)
        at = np.zeros(COMMITS + 1)
        places = sorted(generator.choice(np.arange(1, COMMITS + 1), 3, replace=False).tolist())
        first, second, third = places
        guilty = {first}
        if kind == "revert":
            at[first:second] += size
            at[third:] += size
            guilty = {first, third}
        elif kind == "two":
            share = generator.uniform(0.3, 0.7)
            at[first:] += 2 * size * share
            at[second:] += 2 * size * (1 - share)
            guilty = {first, second}
        else:
            at[first:] += size
        broken: set[int] = set()
        if kind == "skips":
            stretch = int(generator.integers(1, COMMITS - 4))
            broken = {*range(stretch, stretch + 4)}
            broken |= {n for n in range(1, COMMITS) if generator.random() < 0.1}
        effects = {
            name: None if number in broken else float(at[number])
            for number, name in enumerate(NAMES)
        }
        return cls(effects, frozenset(NAMES[n] for n in guilty) if effect else frozenset())

    def answered(self, named: tuple[str, ...], launches: int) -> Tally:
        """One answer, counted; ``named`` is empty where it names none."""
        wrong = bool(named) and not self.guilty & {*named}
        return Tally(1, self.right(named), wrong, launches)

    def right(self, named: tuple[str, ...]) -> bool:
        """Whether these are a guilty commit, beside what does not build."""
        if not self.guilty & {*named}:
            return False
        return all(name in self.guilty or self.effects[name] is None for name in named[:-1])


@dataclass
class Launches:
    """Commits measured by one launch of the recording each: what rules without pairs see."""

    recording: Recording
    effects: Effects
    generator: np.random.Generator
    taken: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take every launch of the A/A pairs."""
        rounds = [side for p in self.recording.pairs for side in (p.levels[0.0].a, p.levels[0.0].b)]
        self.all = np.array([math.log(float(np.median(each))) for each in rounds])

    def of(self, number: int) -> float | None:
        """Log seconds of a commit, measured once; None where it does not build."""
        effect = self.effects[NAMES[number]]
        if effect is not None and number not in self.taken:
            self.taken[number] = float(self.generator.choice(self.all)) + effect
        return None if effect is None else self.taken[number]

    def near(self, number: int, low: int, high: int) -> int | None:
        """The nearest commit to ``number`` between two others that builds."""
        builds = [n for n in range(low + 1, high) if self.effects[NAMES[n]] is not None]
        return min(builds, key=lambda n: abs(n - number)) if builds else None


def one_run(launches: Launches) -> tuple[str, ...]:
    """TorchBench's: bad is 7 % slower than the good end, by one run of each."""
    limit = math.log1p(0.07)
    good, bad = launches.of(0), launches.of(COMMITS)
    assert good is not None
    assert bad is not None
    if bad - good <= limit:
        return ()
    low, high = 0, COMMITS
    while (middle := launches.near((low + high) // 2, low, high)) is not None:
        value = launches.of(middle)
        assert value is not None
        low, high = (low, middle) if value - good > limit else (middle, high)
    return tuple(NAMES[low + 1 : high + 1])


def golden_section(launches: Launches) -> tuple[str, ...]:
    """Keep the part with the larger difference, cut at the golden ratio; it always names one."""
    low, high, ratio = 0, COMMITS, (math.sqrt(5) - 1) / 2
    while (middle := launches.near(round(low + ratio * (high - low)), low, high)) is not None:
        ends = [launches.of(n) for n in (low, middle, high)]
        a, b, c = (value for value in ends if value is not None)
        low, high = (low, middle) if b - a >= c - b else (middle, high)
    return tuple(NAMES[low + 1 : high + 1])


RULES = ("perfline bisect", "one run, 7 %", "golden section, one run")


def run(
    rule: str,
    recording: Recording,
    kind: str,
    effect: float,
    runs: int,
    pairs: int,
    spread: float = 1.0,
) -> Tally:
    """Draw ``runs`` histories, and let a rule answer; the seed is that of the row."""
    envs = [environment(name) for name in NAMES]
    every = bisect.budget(len(envs), 0.02, pairs)
    tally = Tally()
    for number in range(runs):
        generator = np.random.default_rng([zlib.crc32(f"{kind} {effect}".encode()), number])
        history = History.drawn(kind, effect, generator)
        if rule == RULES[0]:
            replay = Replay(recording, history.effects, generator, spread)
            answer = bisect.bisect(envs, replay.ask, every)
            named = answer.named if answer.outcome == "step" else ()
            tally.join(history.answered(named, 2 * replay.pairs))
        else:
            launches = Launches(recording, history.effects, generator)
            named = one_run(launches) if rule == RULES[1] else golden_section(launches)
            tally.join(history.answered(named, len(launches.taken)))
    return tally


def rows(recording: Recording, runs: int, pairs: int) -> Iterator[dict[str, object]]:
    """Every row of the table: the kinds by themselves, and what they come to together."""
    for effect in (*EFFECTS, 0.0):
        for rule in RULES:
            whole = Tally()
            for kind in KINDS if effect else ("skips",):
                each = run(rule, recording, kind, effect, runs // 4 if effect else runs, pairs)
                if effect and rule == RULES[0]:
                    yield each.row(rule, effect, "history", kind)
                whole.join(each)
            yield whole.row(rule, effect, "history", "all" if effect else "no change")
        whole = Tally()
        for kind in KINDS if effect else ("skips",):
            whole.join(
                run(RULES[0], recording, kind, effect, runs // 4 if effect else runs, pairs, 2)
            )
        shown = "all" if effect else "no change"
        yield whole.row(f"{RULES[0]}, spread x 2", effect, "history", shown)


if __name__ == "__main__":
    raise SystemExit(tell("bisect", __doc__, "histories", (BEGIN, END), rows))
