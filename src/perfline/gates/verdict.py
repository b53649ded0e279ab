"""What does a comparison say, in one word, one line and one sentence?

``ok`` and ``improved`` pass; ``regressed``, ``incomparable`` and ``invalid`` fail; ``missing`` and
``unsure`` skip, and fail where nothing uncompared may be green (``--strict``). The comparisons
themselves stand in ``gates.performance`` and ``gates.accuracy``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from perfline.fields import OPTIONAL
from perfline.metrics import Metric

Word = Literal["ok", "improved", "regressed", "unsure", "missing", "incomparable", "invalid"]
Gate = Literal[
    "published", "baseline", "paired"
]  # paired: B against A, or compiled against eager, in one job

WORST_FIRST: tuple[Word, ...] = (
    "regressed",
    "invalid",
    "incomparable",
    "unsure",
    "missing",
    "improved",
    "ok",
)
_FAILS: frozenset[Word] = frozenset({"regressed", "invalid", "incomparable"})
_UNCOMPARED: frozenset[Word] = frozenset({"unsure", "missing"})

_LINE = 80


@dataclass(frozen=True)
class Flip:
    """One question whose answer differs from the stored one."""

    id: str
    label: str
    before: str
    after: str
    margin: float | None  # of the stored answer, in logits: small means it was close

    @property
    def kind(self) -> Literal["right -> wrong", "wrong -> right", "wrong -> wrong"]:
        """Return what the change did; only the first two count in the test."""
        if self.before == self.label:
            return "right -> wrong"
        return "wrong -> right" if self.after == self.label else "wrong -> wrong"


@dataclass(frozen=True)
class Settled:
    """What a comparison in one job said after a gate, under ``--settle``.

    Attributes:
        first: the gate's own word.
        compared: the comparison's.
        seconds: what that took of the device.
        record: the comparison's file.
    """

    first: Word
    compared: Word
    seconds: float = field(metadata={"ge": 0})
    record: str


@dataclass(frozen=True)
class Verdict:
    """What one gate says about one metric; None is what could not be had."""

    metric: str
    word: Word
    gate: Gate
    unit: str
    baseline: float | None = None
    baseline_error: float | None = None
    measured: float | None = None
    measured_error: float | None = None
    change_fraction: float | None = None  # (measured - baseline) / baseline
    change_pp: float | None = None  # of fractions: percentage points
    limit: str = ""  # in the change's unit, e.g. "-2.0 %"
    reason: str = ""  # one sentence: why, and what would settle it
    flips: tuple[Flip, ...] = ()
    settled: Settled | None = field(default=None, metadata=OPTIONAL)

    @property
    def change(self) -> str:
        """Return the change with its sign and unit; empty where there is nothing to compare."""
        if self.change_pp is not None:
            return signed(self.change_pp, "pp")
        if self.change_fraction is not None:
            return signed(100 * self.change_fraction, "%")
        if self.unit == "nats" and self.measured is not None and self.limit:  # a change by itself
            return f"{self.measured:.1e} nats"
        if self.unit == "count" and self.baseline is not None and self.measured is not None:
            return signed(self.measured - self.baseline, "")
        return ""

    @property
    def headline(self) -> str:
        """Return the verdict in 80 columns: ``p_infer_core regressed -9.4 % (limit -2.0 %)``."""
        if self.change:
            return f"{self.metric} {self.word} {self.change} (limit {self.limit})"
        return textwrap.shorten(
            f"{self.metric} {self.word}: {self.reason}", _LINE, placeholder=" ..."
        )


def worst(verdicts: Iterable[Verdict]) -> Word:
    """Return the gravest word; ``missing`` for no verdict at all, since nothing was compared."""
    return min((v.word for v in verdicts), key=WORST_FIRST.index, default="missing")


def fails(word: Word, strict: bool) -> bool:
    """Return whether a test with this verdict fails; else ``skips`` says if it passes."""
    return word in _FAILS or (strict and word in _UNCOMPARED)


def skips(word: Word, strict: bool) -> bool:
    """Return whether a test with this verdict is skipped, with its numbers shown."""
    return word in _UNCOMPARED and not strict


def missing(metric: Metric, reason: str, gate: Gate = "baseline") -> Verdict:
    """Return the verdict that there is nothing to compare with."""
    return _without_comparison(metric, "missing", reason, gate)


def incomparable(metric: Metric, reason: str, gate: Gate = "baseline") -> Verdict:
    """Return the verdict that the baseline belongs to something else; ``reason`` says to what."""
    return _without_comparison(metric, "incomparable", reason, gate)


def invalid(metric: Metric, reason: str, gate: Gate = "baseline") -> Verdict:
    """Return the verdict that the run itself was disturbed; ``reason`` says by what."""
    return _without_comparison(metric, "invalid", reason, gate)


def signed(value: float, unit: str) -> str:
    """Return e.g. ``-9.4 %``, ``-0.61 pp`` or ``+2``: two decimals for pp, one for per cent."""
    decimals = {"pp": 2, "%": 1}.get(unit, 0)
    rounded = round(value, decimals) + 0.0  # -0.0 shows as +0.0
    return f"{rounded:+.{decimals}f} {unit}".strip()


def _without_comparison(metric: Metric, word: Word, reason: str, gate: Gate) -> Verdict:
    return Verdict(
        metric=metric.name,
        word=word,
        gate=gate,
        unit=metric.unit,
        measured=metric.value,
        reason=reason,
    )
