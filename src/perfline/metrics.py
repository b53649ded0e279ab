"""What is one measured number?

A :class:`Metric`: a name, a finite value, its unit, which way is better, and the raw rounds behind
it. What was not measured has no Metric; there is no 0, NaN or guess that stands for "absent".
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from perfline.errors import MetricError

Direction = Literal["higher", "lower", "info"]
_PASSES = {"eager": "val", "inductor": "infer"}  # the published names of the two passes


def pass_name(engine: str) -> str:
    """Return the word for an engine in ``p_<word>_core`` and ``acc_<word>``, such as ``val``."""
    return _PASSES.get(engine, engine)


def suffix(engine: str) -> str:
    """Return what an engine's other metrics end in: ``mem_val``, ``mem``, ``mem_<engine>``."""
    return "" if engine == "inductor" else f"_{pass_name(engine)}"


@dataclass(frozen=True)
class Metric:
    """One measured number; MetricError if it or one of its samples is no finite number."""

    name: str
    value: float
    unit: str  # "tok/s", "s", "GiB", "fraction", "count", "questions", "tok"
    direction: Direction  # which way is better; "info" is reported and never judged
    samples: tuple[float, ...] = ()  # one per round, in the unit of the value

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

    def to_json(self) -> dict[str, object]:
        """Return the metric without its name, which is its key; no samples, no key."""
        data: dict[str, object] = {
            "value": self.value,
            "unit": self.unit,
            "direction": self.direction,
        }
        return data | ({"samples": list(self.samples)} if self.samples else {})

    @classmethod
    def from_json(cls, name: str, data: Mapping[str, object]) -> Metric:
        """Read what :meth:`to_json` wrote; MetricError names the key that is wrong."""
        unit, direction = data.get("unit"), data.get("direction")
        if not isinstance(unit, str):
            raise MetricError(f"{name}: unit is {unit!r}; expected text such as 'tok/s'")
        samples = data.get("samples", [])
        if not isinstance(samples, list):
            raise MetricError(f"{name}: samples is {samples!r}; expected a list of numbers")
        return cls(
            name=name,
            value=_number(name, "value", data.get("value")),
            unit=unit,
            direction=cast("Direction", direction),  # checked by the constructor
            samples=tuple(_number(name, "samples", sample) for sample in samples),
        )


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


def _number(name: str, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MetricError(f"{name}: {key} is {value!r}; expected a number")
    return float(value)
