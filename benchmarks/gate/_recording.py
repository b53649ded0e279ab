"""What did the recorder write? Raw data of launch pairs at known slow-downs, read and checked.

One file is one recording of one case and engine on one machine; ``record.py`` writes it and
``README.md`` has its format. All rounds are seconds a token x 1e6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from perfline import jsonfile
from perfline.compare.sequential import signed_rank_p, spreads
from perfline.errors import RecordError
from perfline.fields import Node, Scalar

Floats = npt.NDArray[np.float64]
SCHEMA = 1
_FIX = "restore it with `git restore`, or record anew with benchmarks/gate/record.py"


@dataclass(frozen=True)
class Rounds:
    """The rounds of one launch pair at one slow-down: A as it is, B slowed; index by index."""

    a: Floats
    b: Floats

    @property
    def log_ratios(self) -> Floats:
        """log(B / A) of each round: above 0, B is slower."""
        ratios: Floats = np.log(self.b / self.a)
        return ratios


@dataclass(frozen=True)
class Pair:
    """One launch of A and one of B, with their rounds by slow-down (a fraction)."""

    start_s: float  # since the epoch
    launch_s: tuple[float, float]  # of starting A, and B
    levels: Mapping[float, Rounds]


@dataclass(frozen=True)
class Recording:
    """All launch pairs of a file, in the order of time."""

    name: str
    machine: str
    case: str
    engine: str
    created: str
    command: str
    note: str
    context: Mapping[str, Scalar]
    levels: tuple[float, ...]
    pairs: tuple[Pair, ...]
    multiplied: bool = False  # slow-downs were multiplied in, not measured

    def slowed(self, levels: Sequence[float]) -> Recording:
        """The same A/A rounds, those of B multiplied by each slow-down as well."""
        pairs = []
        for pair in self.pairs:
            still = pair.levels[0.0]
            more = {level: Rounds(still.a, still.b * (1 + level)) for level in levels}
            pairs.append(replace(pair, levels={0.0: still, **more}))
        return replace(self, levels=(0.0, *levels), pairs=tuple(pairs), multiplied=True)

    def log_ratios(self, level: float) -> Floats:
        """One d a launch pair: the median over its rounds, as ``perfline compare`` has it."""
        return np.array([float(np.median(p.levels[level].log_ratios)) for p in self.pairs])

    def spreads(self) -> tuple[float, float]:
        """(between launch pairs, between rounds) of the log ratio without a slow-down."""
        return spreads([pair.levels[0.0].log_ratios.tolist() for pair in self.pairs])

    def p_unbiased(self) -> float:
        """Two-sided signed-rank p of "neither side is favoured", over all pairs at 0 %."""
        still = self.log_ratios(0.0)
        return min(1.0, 2 * min(signed_rank_p(still), signed_rank_p(-still)))

    @cached_property
    def seconds_per_pair(self) -> float | None:
        """Seconds that a launch pair takes at one slow-down, or a comparison for one pair.

        The median over pairs of the slower launch's start, both being started at once, and the
        share of one slow-down in what is left until the next pair begins.
        """
        taken = []
        for pair, following in zip(self.pairs, self.pairs[1:], strict=False):
            starts = max(pair.launch_s)  # both start at once
            rest = max(0.0, following.start_s - pair.start_s - starts)
            taken.append(starts + rest / (1 if self.multiplied else len(self.levels)))
        return float(np.median(taken)) if taken else None


def read(path: Path) -> Recording:
    """Read a recording; RecordError names file, key, what was found and what to do."""
    node = jsonfile.read(path, SCHEMA, RecordError, _FIX)
    levels = tuple(sorted(_numbers(node, "levels")))
    if 0.0 not in levels:
        node.fail("levels", f"is {list(levels)} (expected 0.0, the A/A level, among them)")
    pairs = [_pair(child, levels) for child in node.items("pairs")]
    if len(pairs) < 2:
        node.fail("pairs", f"holds {len(pairs)} (expected at least 2 launch pairs)")
    return Recording(
        name=path.stem,
        machine=node.text("machine"),
        case=node.text("case"),
        engine=node.text("engine"),
        created=node.text("created"),
        command=node.text("command"),
        note=node.text("note") if node.data.get("note") else "",
        context=node.get("context", Mapping[str, Scalar]),
        levels=levels,
        pairs=tuple(sorted(pairs, key=lambda pair: pair.start_s)),
    )


def _pair(node: Node, levels: Sequence[float]) -> Pair:
    launch = _numbers(node, "launch_s")
    if len(launch) != 2:
        node.fail("launch_s", f"holds {len(launch)} numbers (expected 2, of A and B)")
    by_level = node.child("levels")
    found = {}
    for key, child in by_level.children():
        try:
            level = float(key)
        except ValueError:
            by_level.fail(key, "is no slow-down (expected a fraction such as 0.02)")
        a, b = (np.array(_numbers(child, side)) for side in ("a", "b"))
        if len(a) != len(b) or len(a) < 2 or min(a.min(), b.min()) <= 0:
            expected = "as many each, at least 2, all above 0"
            child.fail("a", f"has {len(a)} and b {len(b)} rounds (expected {expected})")
        found[level] = Rounds(a, b)
    if missing := sorted(set(levels) - set(found)):
        node.fail("levels", f"lacks {missing} (expected all of {list(levels)})")
    return Pair(node.number("start_s"), (launch[0], launch[1]), found)


def _numbers(node: Node, key: str) -> list[float]:
    values = node.data.get(key)
    if not isinstance(values, list) or not all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    ):
        node.fail(key, "is no list of numbers")
    return [float(value) for value in values]
