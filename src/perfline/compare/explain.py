"""Which operator of which layer makes the difference between A and B, as far as that is certain?

Both sides' live processes took turns in profiled rounds. An operator's n-th difference is B's
seconds of the n-th round less A's. The ``DISTURBED_FRACTION`` of its pairs that took longest, A's
and B's seconds together, is left out: something else ran then. (Which of a pair is A's has no say
in that, so the test stays exact.) Of the rest, the median and the exact signed-rank interval
(``sequential.interval``), at a confidence of 1 - ``ALPHA`` / operators (Bonferroni): the chance
that a comparison of equal processes names any operator is at most ``ALPHA``. Two processes of one
program are not quite equal, though: memory lies otherwise. So an interval must lie wholly beyond
``LEAST_FRACTION`` of A's time, too.

A kernel of A is compared with the one of B that the same operator of the same module launched
(:func:`matched`). What stands on one side alone is matched within its layer: first in its own
module, then in the lowest module that holds both; there the names of inductor's kernels, which list
what was fused, say which belong together. So a renamed, fused or split kernel is one row, not one
gone and one new. Layers are looked at together, ``layers.*``, and told apart where a few of them
make the difference, or where the difference of one alone is certain.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from perfline.compare.sequential import interval
from perfline.engines.engine import Profile

ROUNDS = 30  # profiled, a side: 12 would do for 20 operators, these do for many more
ALPHA = 0.01  # of naming any operator between equals
WALL_CONFIDENCE = 0.95  # of the whole change: it was judged before, and is only taken shares of
DISTURBED_FRACTION = 0.2  # of an operator's pairs of rounds
LEAST_FRACTION = 0.005  # of A's time
LITTLE_FRACTION = 0.5  # of the change: less is "explains little"
_MOST_OF = 0.8  # of a row's change: the layers that make so much of it are named
_FEW = 4  # layers are named where they are at most a quarter of all
_SHOWN = 3  # operators of one side
NOTHING = "nothing"
REST = "(launch gaps, Python)"  # what no operator accounts for

_SECONDS = {"ge": -1e12, "le": 1e12}
Key = tuple[str, str]  # module with its layer as ``*``, operator
_LAYER = re.compile(r"\.\d+(?=\.|$)")


@dataclass(frozen=True)
class Cause:
    """One row that is certain: seconds of a profiled round, medians over the rounds.

    Attributes:
        module: path; ``layers.*`` of all layers alike; empty for the model itself.
        operator: as both sides call it, or ``A's -> B's``.
        low_s, high_s: interval of ``change_s``, corrected over all rows.
    """

    module: str = field(metadata={"blank": True})
    operator: str
    baseline_s: float = field(metadata=_SECONDS)
    candidate_s: float = field(metadata=_SECONDS)
    change_s: float = field(metadata=_SECONDS)
    low_s: float = field(metadata=_SECONDS)
    high_s: float = field(metadata=_SECONDS)


@dataclass(frozen=True)
class Explanation:
    """What profiled rounds of both sides say of their difference.

    Attributes:
        problem: why there is none; empty where there is one.
        differences: what is counted without noise, from ``gates.fingerprint``.
        on_device: the seconds are an accelerator's; else the CPU's.
        baseline_s: A's wall clock of a round; ``change_s``: what B's is above it, with its interval
            at ``WALL_CONFIDENCE``; all 0 where nothing was profiled.
        compared: rows that were looked at.
        causes: those that are certain, the largest first.
        seconds: what the explaining took.
        traces: files for Chrome's trace viewer, A's and B's.
    """

    problem: str = ""
    differences: tuple[str, ...] = ()
    rounds: int = 0
    tokens: int = 0
    on_device: bool = False
    baseline_s: float = field(default=0.0, metadata=_SECONDS)
    change_s: float = field(default=0.0, metadata=_SECONDS)
    low_s: float = field(default=0.0, metadata=_SECONDS)
    high_s: float = field(default=0.0, metadata=_SECONDS)
    compared: int = 0
    causes: tuple[Cause, ...] = ()
    seconds: float = 0.0
    traces: tuple[str, ...] = ()

    @property
    def explained(self) -> float | None:
        """The share of the change that the causes make; None where no change is certain."""
        if self.low_s <= 0 <= self.high_s:
            return None
        return sum(cause.change_s for cause in self.causes) / self.change_s


@dataclass(frozen=True)
class Row:
    """What is compared as one: keys of A, keys of B, and the lowest module that holds them."""

    module: str
    baseline: tuple[Key, ...]
    candidate: tuple[Key, ...]


def explain(baseline: Sequence[Profile], candidate: Sequence[Profile]) -> Explanation:
    """Compare the n-th round of A with the n-th of B; ValueError for too few to be certain."""
    a, b = [_Round(each) for each in baseline], [_Round(each) for each in candidate]
    walls = _undisturbed([each.wall_s for each in baseline], [each.wall_s for each in candidate])
    wall = interval(walls, WALL_CONFIDENCE)
    if wall is None:
        raise ValueError(f"{len(baseline)} profiled rounds a side are too few")
    baseline_s = statistics.median(each.wall_s for each in baseline)
    least_s = LEAST_FRACTION * baseline_s
    rows = [
        row
        for row in matched(_calls(a), _calls(b))
        if max(_median(a, row.baseline), _median(b, row.candidate)) > least_s
    ]
    layers = sorted({layer for each in (*a, *b) for layer, _ in each.by_layer} - {""}, key=int)
    alone = [
        (row, layer)
        for row in rows
        for layer in (layers if ".*" in row.module else ())
        if max(_median(a, row.baseline, layer), _median(b, row.candidate, layer)) > least_s
    ]
    # Half of alpha is for all layers together, half for layers alone.
    confidence = 1 - ALPHA / 2 / (len(rows) + 1)
    causes = []
    told: set[Row] = set()
    for row in rows:
        if (found := _beyond(_changes(row, a, b), confidence, least_s)) is not None:
            told.add(row)
            seconds = _median(a, row.baseline), _median(b, row.candidate)
            causes.append(Cause(_layers(row, a, b, layers), _label(row, a, b), *seconds, *found))
    for row, layer in alone:
        changes = [] if row in told else _changes(row, a, b, layer)
        if (found := _beyond(changes, 1 - ALPHA / 2 / len(alone), least_s)) is not None:
            seconds = _median(a, row.baseline, layer), _median(b, row.candidate, layer)
            module = row.module.replace("*", layer, 1)
            causes.append(Cause(module, _label(row, a, b), *seconds, *found))
    gaps = _undisturbed([each.rest_s for each in a], [each.rest_s for each in b])
    if (found := _beyond(gaps, confidence, least_s)) is not None:
        before, after = (statistics.median(each.rest_s for each in side) for side in (a, b))
        causes.append(Cause("", REST, before, after, *found))
    return Explanation(
        rounds=len(baseline),
        tokens=baseline[0].tokens,
        on_device=baseline[0].on_device,
        baseline_s=baseline_s,
        change_s=statistics.median(walls),
        low_s=wall[0],
        high_s=wall[1],
        compared=len(rows) + len(alone) + 1,
        causes=tuple(sorted(causes, key=lambda cause: -abs(cause.change_s))),
    )


def everywhere(module: str) -> str:
    """``layers.*.mlp`` of ``layers.2.mlp``: the path in all layers."""
    return _LAYER.sub(".*", module, count=1)


def matched(baseline: Mapping[Key, int], candidate: Mapping[Key, int]) -> list[Row]:
    """Which keys of A and of B are compared with each other, by their calls; each is in one row.

    Where a module runs some operators on A and others on B, those that both run, but not as often,
    are part of that exchange.
    """
    a, b = baseline.keys(), candidate.keys()
    both = sorted(a & b)
    others = {key for key in both if baseline[key] != candidate[key]}
    rows: list[Row] = []
    pools: defaultdict[str, tuple[set[Key], set[Key]]] = defaultdict(lambda: (set(), set()))
    for side, lonely in enumerate((a - b, b - a)):
        for key in lonely:
            pools[key[0]][side].add(key)
    while pools:
        module = max(pools, key=lambda path: (path.count("."), len(path), path))
        left, right = pools.pop(module)
        same = {key for key in others if key[0] == module}
        for group in list(_linked(left, right, same)) if left and right else ():
            rows.append(Row(module, *group))
            left, right, others = left - {*group[0]}, right - {*group[1]}, others - {*group[0]}
            both = [key for key in both if key not in group[0]]
        above = _above(module)
        if above is None:
            rows += [Row(key[0], (key,), ()) for key in sorted(left)]
            rows += [Row(key[0], (), (key,)) for key in sorted(right)]
        elif left or right:
            pools[above][0].update(left)
            pools[above][1].update(right)
    return [Row(key[0], (key,), (key,)) for key in both] + rows


def _above(module: str) -> str | None:
    """The module that holds this one; None for a layer, and for the model."""
    if not module or module.endswith(".*"):
        return None
    return module.rpartition(".")[0]


def _linked(
    left: set[Key], right: set[Key], others: set[Key]
) -> Iterator[tuple[tuple[Key, ...], tuple[Key, ...]]]:
    """Groups of keys that belong together: each with the other side's one of the likest name.

    Those that are like none are one group, with ``others``, which stand on both sides.
    """
    groups: list[tuple[set[Key], set[Key]]] = []

    def link(one: Key, other: Key) -> None:
        met = [group for group in groups if one in group[0] or other in group[1]]
        joined = ({one}.union(*(g[0] for g in met)), {other}.union(*(g[1] for g in met)))
        groups[:] = [group for group in groups if group not in met] + [joined]

    for one in sorted(left):
        if (other := _likest(one, right)) is not None:
            link(one, other)
    for other in sorted(right):
        if (like := _likest(other, left)) is not None:
            link(like, other)
    rest = left.difference(*(g[0] for g in groups)), right.difference(*(g[1] for g in groups))
    if all(rest):
        groups.append((rest[0] | others, rest[1] | others))
    for one_side, other_side in groups:
        yield tuple(sorted(one_side)), tuple(sorted(other_side))


def _likest(key: Key, others: set[Key]) -> Key | None:
    """The key whose operator shares the largest part of its words; None where none shares any."""
    words = _words(key[1])
    shares = {
        other: len(words & theirs) / len(words | theirs)
        for other in sorted(others)
        if words & (theirs := _words(other[1]))
    }
    return max(shares, key=lambda other: shares[other], default=None)


def _words(operator: str) -> set[str]:
    """``{"mul", "silu"}`` of ``cpp_fused_mul_silu``, ``{"silu"}`` of ``aten::silu``."""
    fused = re.sub(r"^(?:cpp|triton_[a-z]+)_fused_", "", operator.rpartition("::")[2])
    return {*fused.lower().split("_")} - {""}


class _Round:
    """The seconds of one profiled round, to be looked up by key and layer."""

    def __init__(self, profile: Profile) -> None:
        """Sum what all layers have alike."""
        self.by_key: defaultdict[Key, float] = defaultdict(float)
        self.by_layer: defaultdict[tuple[str, Key], float] = defaultdict(float)
        self.calls: Counter[Key] = Counter()
        self.kernels: defaultdict[Key, Counter[str]] = defaultdict(Counter)
        for span in profile.spans:
            key = (everywhere(span.module), span.operator)
            self.calls[key] += span.calls
            self.by_key[key] += span.seconds
            self.by_layer[_layer(span.module), key] += span.seconds
            self.kernels[key][span.kernel] += span.seconds  # type: ignore[assignment]
        self.rest_s = profile.wall_s - sum(span.seconds for span in profile.spans)

    def seconds(self, keys: Iterable[Key], layer: str | None = None) -> float:
        """Of these keys together, in one layer or in all; what did not run took none."""
        if layer is None:
            return sum(self.by_key.get(key, 0.0) for key in keys)
        return sum(self.by_layer.get((layer, key), 0.0) for key in keys)


def _layer(module: str) -> str:
    """The number of the layer of a path; empty outside of layers."""
    found = _LAYER.search(module)
    return found.group()[1:] if found else ""


def _calls(rounds: Sequence[_Round]) -> Counter[Key]:
    """Calls of all rounds."""
    return sum((each.calls for each in rounds), Counter())


def _median(rounds: Sequence[_Round], keys: Sequence[Key], layer: str | None = None) -> float:
    return statistics.median(each.seconds(keys, layer) for each in rounds)


def _changes(
    row: Row, a: Sequence[_Round], b: Sequence[_Round], layer: str | None = None
) -> list[float]:
    """B's seconds less A's, of the rounds that nothing disturbed."""
    return _undisturbed(
        [each.seconds(row.baseline, layer) for each in a],
        [each.seconds(row.candidate, layer) for each in b],
    )


def _undisturbed(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """B's less A's, without those pairs that took longest together."""
    pairs = sorted(zip(a, b, strict=True), key=sum)
    kept = len(pairs) - int(DISTURBED_FRACTION * len(pairs))
    return [then - now for now, then in pairs[:kept]]


def _beyond(
    change: Sequence[float], confidence: float, least_s: float
) -> tuple[float, float, float] | None:
    """Median and interval of ``change``; None unless it is wholly beyond ``least_s``."""
    found = interval(change, confidence)
    if found is None or (found[0] <= least_s and found[1] >= -least_s):
        return None
    return statistics.median(change), *found


def _layers(row: Row, a: Sequence[_Round], b: Sequence[_Round], layers: Sequence[str]) -> str:
    """The row's module, its layers named where a few of them make most of its change."""
    if ".*" not in row.module:
        return row.module
    change_s = statistics.median(_changes(row, a, b))
    each = {layer: statistics.median(_changes(row, a, b, layer)) for layer in layers}
    named: list[str] = []
    for layer in sorted(each, key=lambda name: each[name] / change_s, reverse=True):
        named.append(layer)
        if sum(each[name] for name in named) / change_s >= _MOST_OF:
            break
    if len(named) > max(1, len(layers) // _FEW):
        return row.module
    shown = ",".join(sorted(named, key=int))
    return row.module.replace("*", shown if len(named) == 1 else f"{{{shown}}}", 1)


def _label(row: Row, a: Sequence[_Round], b: Sequence[_Round]) -> str:
    """What ran: ``linear``, ``linear (mm -> addmm)``, ``softmax -> exp + sum``."""
    both = {*row.baseline} & {*row.candidate} if row.baseline != row.candidate else set()
    before = _shown([key for key in row.baseline if key not in both], a)
    after = _shown([key for key in row.candidate if key not in both], b)
    if before != after:
        return f"{before} -> {after}"
    kernels = [_most(row.baseline, a), _most(row.candidate, b)]
    return before if kernels[0] == kernels[1] else f"{before} ({kernels[0]} -> {kernels[1]})"


def _shown(keys: Sequence[Key], rounds: Sequence[_Round]) -> str:
    """The operators of one side, those that take most first."""
    by_time = sorted(keys, key=lambda key: _median(rounds, [key]), reverse=True)
    names = list(dict.fromkeys(_plain(key[1]) for key in by_time))
    more = f" + {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return " + ".join(names[:_SHOWN]) + more or NOTHING


def _most(keys: Sequence[Key], rounds: Sequence[_Round]) -> str:
    """The kernel that took most in the last round."""
    kernels: Counter[str] = Counter()
    for key in keys:
        kernels.update(rounds[-1].kernels.get(key, {}))
    name = max(kernels, key=lambda kernel: kernels[kernel], default="")
    return _plain(name or keys[0][1])


def _plain(operator: str) -> str:
    return operator.removeprefix("aten::")
