"""What is one measured number?

A :class:`Metric`: a name, a finite value, its unit, which way is better, and the raw rounds behind
it. What was not measured has no Metric; there is no 0, NaN or guess that stands for "absent".
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from perfline.errors import MetricError
from perfline.fields import OPTIONAL, OUTSIDE

Direction = Literal["higher", "lower", "info"]


@dataclass(frozen=True)
class Metric:
    """One measured number; MetricError if it or one of its samples is no finite number."""

    name: str = field(metadata=OUTSIDE)
    value: float
    unit: str  # "tok/s", "s", "GiB", "fraction", "count", "questions", "tok"
    direction: Direction  # which way is better; "info" is reported and never judged
    samples: tuple[float, ...] = field(default=(), metadata=OPTIONAL)  # one a round, in the unit

    def __post_init__(self) -> None:
        """Refuse what is no measurement."""
        if self.direction not in get_args(Direction):
            raise MetricError(
                f"{self.name}: direction is {self.direction!r}; "
                f"expected one of {', '.join(get_args(Direction))}"
            )
        for number in (self.value, *self.samples):
            if not math.isfinite(number):
                raise MetricError(f"{self.name}: {number} {self.unit} is no measurement")


def mfu(tokens_per_s: float, nominal_parameters: float, peak_flops: float | None) -> float | None:
    """Return the published model FLOPs utilisation as a fraction: tok/s x 2 x parameters / peak.

    ``peak_flops`` is the device's dense FLOP/s in the model's dtype; without it there is no MFU.
    """
    return None if peak_flops is None else tokens_per_s * 2 * nominal_parameters / peak_flops


def summary(samples: Sequence[float]) -> tuple[float, float | None]:
    """Return the samples' median and, from two samples on, their standard error sd/sqrt(n).

    For display beside each other, as in ``1179.8 +- 8.1``; no verdict rests on this error, since
    rounds of one session say nothing about the spread between sessions.
    """
    if not samples:
        raise MetricError("no samples: there is nothing to summarise")
    error = statistics.stdev(samples) / math.sqrt(len(samples)) if len(samples) > 1 else None
    return statistics.median(samples), error
