"""Which rules judge a paired comparison of answers?

perfline's gate, as the suite calls it, and rules that know the two accuracies alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from perfline.cases.case import GatesSpec
from perfline.gates.accuracy import accuracy_baseline
from perfline.gates.verdict import Word
from perfline.tasks.answers import Scored

GATE = "perfline"


@dataclass(frozen=True)
class Counts:
    """A paired comparison: how many questions were right and are right."""

    both_right: int
    lost: int  # right -> wrong
    gained: int  # wrong -> right
    both_wrong: int

    @property
    def n(self) -> int:
        """Questions."""
        return self.both_right + self.lost + self.gained + self.both_wrong

    @property
    def drop_pp(self) -> float:
        """Drop of the accuracy in percentage points."""
        return 100 * (self.lost - self.gained) / self.n


Rule = Callable[[Counts], bool]  # whether it raises an alarm


def count(before: str, after: str, labels: str) -> Counts:
    """Count answers (a letter a question) against their labels."""
    pairs = [(a == c, b == c) for a, b, c in zip(before, after, labels, strict=True)]
    return Counts(
        pairs.count((True, True)),
        pairs.count((True, False)),
        pairs.count((False, True)),
        pairs.count((False, False)),
    )


def fixed_tolerance(tolerance_pp: float) -> Rule:
    """Alarm where the accuracy fell by more than ``tolerance_pp``."""
    return lambda counts: 100 * (counts.lost - counts.gained) > tolerance_pp * counts.n


def unpaired_z(alpha: float) -> Rule:
    """lm-evaluation-harness' rule, over all questions at once.

    ``calculate_z_value`` in its ``scripts/model_comparator.py``: z of the two accuracies from their
    standard errors sqrt(p (1 - p) / (n - 1)), as if they came from different questions; two-sided
    p-value. Only a fall counts as an alarm.
    """
    from scipy.special import ndtr

    def alarm(counts: Counts) -> bool:
        n = counts.n
        before, after = ((counts.both_right + k) / n for k in (counts.lost, counts.gained))
        variance = (before * (1 - before) + after * (1 - after)) / (n - 1)
        if before <= after:
            return False
        return variance == 0 or 2 * float(ndtr((after - before) / math.sqrt(variance))) <= alpha

    return alarm


UNPAIRED: dict[str, Rule] = {
    "> 1.0 pp": fixed_tolerance(1.0),
    "> 0.5 pp": fixed_tolerance(0.5),
    "unpaired z, 1 %": unpaired_z(0.01),
}


@cache
def gate_word(n: int, lost: int, gained: int, gates: GatesSpec) -> Word:
    """What the gate says; of the answers it heeds no more than these counts."""
    labels = "A" * n
    before = Scored(_ids(n), "A" * lost + "B" * gained + "A" * (n - lost - gained), labels)
    after = Scored(_ids(n), "B" * lost + "A" * (n - lost), labels)
    return accuracy_baseline("acc_val", before, after, gates).word


@cache
def _ids(n: int) -> tuple[str, ...]:
    return tuple(f"drawn/{index}" for index in range(n))


def alarms(counts: Counts, gates: GatesSpec) -> dict[str, bool]:
    """Which rules raise an alarm."""
    word = gate_word(counts.n, counts.lost, counts.gained, gates)
    return {GATE: word == "regressed", **{name: rule(counts) for name, rule in UNPAIRED.items()}}
