"""What is one measured number?

A :class:`Metric`: a name, a finite value, its unit, which way is better, and the raw rounds behind
it. What was not measured has no Metric; there is no 0, NaN or guess that stands for "absent".
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal, NoReturn, get_args

from perfline.errors import MetricError, printable
from perfline.fields import MOST, OPTIONAL, OUTSIDE, shown

Direction = Literal["higher", "lower", "info"]
_PASSES = {"eager": "val", "inductor": "infer"}  # the published names of the two passes


def pass_name(engine: str) -> str:
    """Return the word for an engine, or its answers, in the names of metrics, such as ``val``."""
    return _PASSES.get(engine, engine)


def answered(engine: str, task: str) -> str:
    """Return the word for an engine's answers to a task, in ``acc_<word>`` and in stored files.

    ``eager`` for MMLU's, and ``val_ceval`` for those of another task.
    """
    return engine if task == "mmlu" else f"{pass_name(engine)}_{task}"


def task_of(word: str) -> str:
    """Return the task of answers that :func:`answered` calls ``word``."""
    return word.partition("_")[2] or "mmlu"


def suffix(engine: str) -> str:
    """Return what an engine's other metrics end in: ``mem_val``, ``mem``, ``mem_<engine>``."""
    return "" if engine == "inductor" else f"_{pass_name(engine)}"


# What perfline's own metrics are called: a metric of the user's own has another name.
_OURS = re.compile(
    r"p_.*|acc_.*|fidelity.*|drift_.*|fingerprint.*|flips.*|load_peak|e2e_time"
    r"|(compile_time|graphs|graph_breaks|recompiles)(_decode)?|mfu(_\w+)?_computed"
    r"|(decode(_flips|_bandwidth)?|ttft|itl_p50|itl_p99|mbu|mem_decode)((_[bc]\d+)?(_[a-z0-9]+)?)"
    r"|(load_time|warmup_time|timed_time|tokens|questions|mfu|mem|tokens_per_joule|sm_clock"
    r"|temperature|power|scaling_efficiency)(_[a-z0-9]+)?"
)
_OWN_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_LONGEST_UNIT = 12  # it stands in tables of 80 columns


@dataclass(frozen=True)
class Metric:
    """One measured number, and the raw rounds behind it.

    The fixture's ``case.record(metric)`` takes one of the user's own, in any unit; it is ``own``
    from then on. MetricError, one line, where a number is not finite or the direction is unknown;
    for one of the user's own also where the name is one of ours, or name or unit do not fit tables.
    """

    name: str = field(metadata=OUTSIDE)
    value: float
    unit: str  # "tok/s", "s", "GiB", "fraction" (shown in %), "count", or any other
    direction: Direction  # which way is better; "info" is reported and never judged
    samples: Sequence[float] = field(default=(), metadata=OPTIONAL)  # one a round, in the unit
    own: bool = field(default=False, kw_only=True, metadata=OPTIONAL)  # of a test of the user's

    def __post_init__(self) -> None:
        """Refuse what is no measurement."""
        if self.direction not in get_args(Direction):
            self._refuse(
                f"direction is {self.direction!r:.60}; "
                f"expected one of {', '.join(get_args(Direction))}"
            )
        if not str(self.unit).strip():
            self._refuse("has no unit; a number without one is 'count', say")
        object.__setattr__(self, "value", self._finite(self.value))
        try:
            samples = tuple(self.samples)
        except TypeError:
            self._refuse(f"samples are {self.samples!r:.60}; expected numbers, one a round")
        object.__setattr__(self, "samples", tuple(map(self._finite, samples)))
        if self.own:
            self._check_own()

    def _refuse(self, problem: str) -> NoReturn:
        raise MetricError(printable(f"{self.name!s:.60}: {problem}"))

    def _finite(self, number: float) -> float:
        if isinstance(number, bool) or not isinstance(number, Real):
            told = " ".join(repr(number).split())[:60]
            self._refuse(f"{told} is no number; pass float(...) of it")
        if not -MOST <= number <= MOST:  # nor is NaN
            told = number if isinstance(number, float) else shown(number)
            self._refuse(f"{told} {self.unit!s:.60} is no measurement")
        return number if isinstance(number, int | float) else float(number)

    def _check_own(self) -> None:
        if not (isinstance(self.name, str) and _OWN_NAME.fullmatch(self.name)):
            raise MetricError(
                f"a metric is called {self.name!r:.60}; expected small letters, digits and _, "
                "at most 40, such as 'wait'"
            )
        if _OURS.fullmatch(self.name):
            self._refuse(
                "perfline's own metrics are called so (docs/metrics.md); call yours "
                f"'my_{self.name}', say"
            )
        unit = self.unit
        if not (isinstance(unit, str) and len(unit) <= _LONGEST_UNIT and unit.isprintable()):
            self._refuse(
                f"unit is {unit!r:.60}; expected text of at most {_LONGEST_UNIT} characters, "
                "such as 'ms'"
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
