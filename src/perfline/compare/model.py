"""What is compared in ``perfline compare``: two sides, their launches, and what each tells?

Words: a *side* is one of two environments (``baseline`` is A, ``candidate`` is B); a *launch* is
one process of a side, from interpreter start to exit, or N of them under torchrun that are timed
as one (``--ranks``); a *turn* is what a launch times at one request, a *round* the sum of one turn
or more; a *launch pair* is one launch of each side, measured in alternating turns, and gives one
number, the log ratio of B's seconds a token to A's: above 0, B is slower.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from perfline.cases.case import WeightsKind
from perfline.engines.engine import EngineName, Fingerprint, Profile
from perfline.errors import WorkerError
from perfline.fields import OPTIONAL, Scalar
from perfline.measure.fidelity import Drift
from perfline.measure.notices import Notice
from perfline.tasks.answers import Answers
from perfline.tasks.reference import PromptReference

SideName = Literal["baseline", "candidate"]
LEAST = 1e-12  # above 0, and what is divided by it stays finite
_SECONDS = {"ge": LEAST, "le": 1e12}  # 30,000 years
_JOULES = {"ge": LEAST, "or_zero": True}
Kind = Literal["prefill", "decode", "all"]
Timed = Literal["core_s", "whole_s", "step_s", "first_s"]  # the seconds of a round
# What is judged beside the seconds a token of the forwards.
BESIDE: Mapping[Kind, tuple[Timed, ...]] = {
    "prefill": (),
    "decode": ("first_s",),
    "all": ("step_s", "first_s"),
}
SIDES: tuple[SideName, SideName] = ("baseline", "candidate")


@dataclass(frozen=True)
class Side:
    """One environment: what may differ between A and B.

    Attributes:
        python: the interpreter; its packages are the side's torch, transformers and so on.
        ref: git revision of the project under test; None is the working tree as it is.
        env: environment variables set on this side only.
        settings: case settings, as ``engine.mode=max-autotune`` split at the ``=``; YAML values.
        imports: modules imported in the worker before the case is opened, such as a plugin that
            swaps a kernel.
        install: what was asked to be installed beside the packages of another interpreter;
            ``python`` then is that of the environment made for it (``environments.make``).
    """

    name: SideName
    python: Path
    ref: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    settings: tuple[tuple[str, str], ...] = ()
    imports: tuple[str, ...] = ()
    install: tuple[str, ...] = ()


@dataclass(frozen=True)
class Workload:
    """What both sides run: the same prompts by the same engine.

    Attributes:
        questions: how many of a task's fixed, stratified order are answered for the comparison of
            answers; 0 with dummy weights that have no labels still compares logits.
        ranks: processes of a launch; they share the model as the case's ``parallel`` says.
        kind: what a round is: prompts, tokens generated one by one behind some, or both.
    """

    case: str
    case_dirs: tuple[Path, ...]
    data_dir: Path | None
    weights: WeightsKind
    engine: EngineName
    questions: int
    ranks: int = field(default=1, metadata=OPTIONAL)
    kind: Kind = field(default="prefill", metadata=OPTIONAL)


@dataclass(frozen=True)
class Ready:
    """A launch that is loaded, compiled and warm.

    Attributes:
        machine: slug of what decides speed (``environment.Environment.machine``).
        context: versions, driver, commit, as in a record.
        facts: digests of weights and questions; they must be equal on both sides.
        digest: of the case with this side's settings.
        prompts_digest: of the timed prompts' token ids; must be equal on both sides.
        tokens: prompt tokens of one pass of one replica.
        pass_s: seconds of one warm pass.
        parts: into how many parts, at most, a pass can be cut; 1: a round is one request.
        by_task: whether it answers the task that it is asked for; an older perfline does not, and
            answers the case's first.
        graphs, graph_breaks, recompiles: compile health of the launch, all 0 for eager; of several
            ranks the most of any, and so is how long they took.
        others: processes of the ranks beside the first.
        packages: version of every installed distribution; empty from an older perfline.
        notices: what other packages said up to then.
    """

    pid: int
    device: str
    machine: str
    context: Mapping[str, str]
    facts: Mapping[str, str]
    digest: str
    dtype: str
    prompts_digest: str
    tokens: int
    load_s: float
    compile_s: float
    warmup_s: float
    pass_s: float
    graphs: int
    graph_breaks: int
    recompiles: int
    parts: int = field(default=1, metadata={"ge": 1, **OPTIONAL})
    by_task: bool = field(default=False, metadata=OPTIONAL)
    others: tuple[int, ...] = ()
    packages: Mapping[str, str] = field(default_factory=dict, metadata=OPTIONAL)
    notices: tuple[Notice, ...] = field(default=(), metadata=OPTIONAL)


@dataclass(frozen=True)
class Turn:
    """What a side times at one request: ``repeats`` passes over the prompts, or a part of each.

    ``part`` of ``parts``: every ``parts``-th prompt, from that one on.
    """

    repeats: int = field(default=1, metadata={"ge": 1})
    part: int = field(default=0, metadata={"ge": 0, **OPTIONAL})
    parts: int = field(default=1, metadata={"ge": 1, **OPTIONAL})


@dataclass(frozen=True)
class Round:
    """One timed round of one side, or one turn of it.

    Attributes:
        start_s: seconds since the epoch at its start; the other side's turns lie within a round.
        core_s: inside the synchronised forwards; whole_s: of the whole round. Of decode alone,
            the seconds of its steps, and ``tokens`` are theirs.
        step_s: seconds a token of decode, where both are timed.
        first_s: seconds to the first token.
        waited_fraction: CPU seconds spent waiting for a core, of those wanted; None unknown.
        joules: energy the device took; None where it does not count.
        faults: what makes the round worthless (throttled clocks, a foreign process, a recompile).
        health: readings such as ``sm_clock_mhz``, ``temperature_c``, ``power_w``.
    """

    start_s: float
    tokens: int = field(metadata={"ge": 1})
    core_s: float = field(metadata=_SECONDS)
    whole_s: float = field(metadata=_SECONDS)
    waited_fraction: float | None = None
    joules: float | None = field(default=None, metadata=_JOULES)
    faults: tuple[str, ...] = ()
    health: Mapping[str, Scalar] = field(default_factory=dict)
    step_s: float | None = field(default=None, metadata={**_SECONDS, **OPTIONAL})
    first_s: float | None = field(default=None, metadata={**_SECONDS, **OPTIONAL})

    @classmethod
    def of_turns(cls, turns: Sequence[Round]) -> Round:
        """One round of several turns of prompts; its faults are those of its first faulty turn."""
        if len(turns) == 1:
            return turns[0]
        whole_s = [each.whole_s for each in turns]

        def of_all(of: Callable[[list[float]], float], values: list[Any]) -> float | None:
            return None if None in values else of(values)

        def mean(values: list[float]) -> float:
            return statistics.fmean(values, whole_s)

        read = {
            name: of_all(of, [each.health.get(name) for each in turns])
            for name, of in (("sm_clock_mhz", min), ("temperature_c", max), ("power_w", mean))
        }
        return cls(
            start_s=turns[0].start_s,
            tokens=sum(each.tokens for each in turns),
            core_s=math.fsum(each.core_s for each in turns),
            whole_s=math.fsum(whole_s),
            waited_fraction=of_all(mean, [each.waited_fraction for each in turns]),
            joules=of_all(math.fsum, [each.joules for each in turns]),
            faults=next((each.faults for each in turns if each.faults), ()),
            health={name: value for name, value in read.items() if value is not None},
        )


@dataclass(frozen=True)
class GeneratedTokens:
    """What one side generated behind one prompt, token by token.

    Attributes:
        tokens: in order.
        likeliest: by position, the tokens that the side's eager forward puts first, the likeliest
            first.
        logits: theirs.
        largest: by position, the largest logit, without sign.
    """

    tokens: tuple[int, ...]
    likeliest: tuple[tuple[int, ...], ...]
    logits: tuple[tuple[float, ...], ...]
    largest: tuple[float, ...]


# By engine and question, what is kept of logits in fp32.
References = Mapping[EngineName, Mapping[str, PromptReference]]


@dataclass(frozen=True)
class FidelityNumbers:
    """What one side computed in fp32, each prompt by itself, and what its own dtype costs.

    WorkerError where a number can be none.

    Attributes:
        problem: why there are no numbers; empty where there are.
        references: of the eager engine, and of the one that is compared.
        apart: by engine and question, KL(A's reference || this side), nats, at each position; of
            prompts that both hold alike, where A's references were given.
        vocabulary: tokens that the model knows.
        variations, most, layers_off, seconds, drift: as of ``measure.fidelity.Fidelity``.
    """

    problem: str = ""
    references: References = field(default_factory=dict)
    apart: Mapping[EngineName, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)
    vocabulary: int = 0
    variations: Mapping[str, float] = field(default_factory=dict)
    most: float = field(default=0.0, metadata={"ge": 0})
    layers_off: tuple[float, ...] = field(default=(), metadata={"ge": 0})
    seconds: float = field(default=0.0, metadata={"ge": 0})
    drift: Drift | None = None

    def __post_init__(self) -> None:
        """Refuse a divergence or a square below 0, and numbers without a floor."""
        numbers = [*self.variations.values()]
        numbers += [kl for told in self.apart.values() for row in told.values() for kl in row]
        if self.drift is not None:
            squares = (*self.drift.engines.values(), *self.drift.variations.values())
            numbers += [each for row in (*squares, self.drift.rounded) for each in row]
        whole = bool(self.problem) or (self.variations and self.references.get("eager"))
        if any(number < 0 for number in numbers) or not whole:
            raise WorkerError("told of fp32 numbers that are none: below 0, or without a floor")


class Worker(Protocol):
    """One live launch; a failure of it is never a time.

    Every call raises ``errors.WorkerError`` (crash, hang, refusal: with the end of the worker's
    stderr) or ``errors.DeviceMemory``.
    """

    @property
    def ready(self) -> Ready:
        """What the launch told when it was ready."""

    def round(self, turn: Turn) -> Round:
        """Time a turn."""

    def answers(self, task: str) -> Answers:
        """Answer the workload's questions of a task, plainly, one forward a prompt.

        Where it is not ``ready.by_task``, the case's first task is the one that it can be asked.
        """

    def generated(self) -> tuple[GeneratedTokens, ...] | None:
        """What it generates behind the prompts of decode; None where it is too old to tell."""

    def fidelity(self, references: References) -> FidelityNumbers | None:
        """What it computes in fp32, and how far from A's ``references`` that is, where they are.

        None where it is too old to tell; its process ends with that.
        """

    def hold(self, threads: int) -> tuple[int, ...]:
        """Keep a process that computes on so many cores of a CPU there; the cores, if any."""

    def peak_memory_gib(self) -> float | None:
        """Peak device memory since the first round."""

    def fingerprint(self) -> Fingerprint | None:
        """What runs inside a forward; None where that is not known (an engine of one's own)."""

    def profile(self, trace: Path | None = None) -> bool:
        """One round under the profiler, after all that is timed: the first may compile anew.

        ``trace`` is a file for Chrome's trace viewer. False where the side's perfline cannot.
        """

    def profiles(self) -> tuple[Profile, ...]:
        """What was found in all profiled rounds."""

    def close(self) -> None:
        """End the process; safe to call twice, and after a crash."""


class Launcher(Protocol):
    """Starts launches: real processes, or scripted ones in tests."""

    def start(self, side: Side) -> PendingWorker:
        """Start the process of a side; does not wait for it."""


class PendingWorker(Protocol):
    """A launch on its way."""

    def wait_ready(self) -> Worker:
        """Wait until it is loaded, compiled and warm. WorkerError, DeviceMemory as above."""

    def close(self) -> None:
        """End the process."""
