"""How does an engine answer prompts, and what is timed while it does?

``MeasuredEngine`` is what the rest of perfline knows of a model: ``torch_engine.TorchEngine`` is
ours, ``own_engine.OwnEngine`` stands before a class of somebody's own (``Engine``), tests script a
fake one. ``run_pass`` is the only loop that drives an engine, for accuracy and throughput alike:
one prompt a forward, the clock around the synchronised forward alone.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from perfline.cases.case import EngineName as EngineName
from perfline.errors import EngineError
from perfline.fields import OPTIONAL
from perfline.tasks.answers import Answers, full_vocab_letter, letter_table
from perfline.tasks.prompts import Prompt

Head = Literal["all", "last"]
Ints = npt.NDArray[np.int64]
Clock = Callable[[], float]
Progress = Callable[[int, int], None]  # (prompts done, prompts in all)


@dataclass(frozen=True)
class CompileCounts:
    """What torch.compile did in this process for the model at hand; counts only ever grow.

    Attributes:
        graphs: graphs compiled.
        graph_breaks: places where the traced code fell back to Python.
        cache_hits: graphs that came from inductor's cache on disk.
        cache_misses: graphs that inductor compiled anew.
        kernels: kernels that inductor generated for them.
        nodes: what it fused these from.
    """

    graphs: int = 0
    graph_breaks: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    kernels: int = 0
    nodes: int = 0

    def __sub__(self, earlier: CompileCounts) -> CompileCounts:
        """What happened since ``earlier``."""
        return CompileCounts(*map(operator.sub, astuple(self), astuple(earlier)))

    def __add__(self, other: CompileCounts) -> CompileCounts:
        """What happened in both."""
        return CompileCounts(*map(operator.add, astuple(self), astuple(other)))

    @property
    def cache(self) -> str | None:
        """``cold`` or ``warm``; None where nothing was compiled or no cache was asked."""
        if self.cache_misses:
            return "cold"
        return "warm" if self.cache_hits else None


_COUNT: Mapping[str, Any] = {"ge": 0}


@dataclass(frozen=True)
class Fingerprint:
    """What ran in one forward of one engine, or while it generated tokens, and on what.

    Attributes:
        prompt: digest of the tokens that were run.
        software: versions that operators and kernels depend on.
        counts: what is judged: ``prompt_tokens`` of the timed sample, ``eager_ops`` (operators that
            a compiling engine ran outside of its graphs), ``weights_elsewhere`` (numbers of the
            model on another device), ``graphs``, ``graph_breaks``, ``recompiles``.
        operators: calls by operator, such as ``aten::mm``.
        kernels: launches by kernel on an accelerator; on a CPU those that inductor generated
            (``generated``) and the nodes that it fused them from (``nodes``), all graphs together.
        flops: by module, such as ``layers.2.mlp``; of the eager engine alone.
        weights: numbers of the model by device and dtype, such as ``cuda float16``.
    """

    prompt: str
    software: str
    counts: Mapping[str, float] = field(metadata=_COUNT)
    operators: Mapping[str, float] = field(default_factory=dict, metadata=_COUNT)
    kernels: Mapping[str, float] = field(default_factory=dict, metadata=_COUNT)
    flops: Mapping[str, float] = field(default_factory=dict, metadata={**_COUNT, **OPTIONAL})
    weights: Mapping[str, float] = field(default_factory=dict, metadata=_COUNT)

    def __post_init__(self) -> None:
        """Refuse one that counts nothing: by it all would be well."""
        if not self.counts:
            raise EngineError("a fingerprint without counts")


@dataclass(frozen=True)
class Span:
    """Seconds of one operator within one module, in a profiled forward of every prompt.

    Attributes:
        module: its path, such as ``layers.2.mlp.up_proj``; empty for the model itself.
        operator: what the module called, such as ``aten::linear``, a kernel of the compiler's, such
            as ``cpp_fused_mul_silu``, or ``Python``: the module's own time between those.
        calls: of all forwards of the round.
        kernel: what took most of it, where that has another name.
    """

    module: str = field(metadata={"blank": True})
    operator: str
    seconds: float = field(metadata={"ge": 0.0, "le": 1e12})
    calls: int
    kernel: str = ""


@dataclass(frozen=True)
class Profile:
    """Where the seconds of one profiled round went.

    Attributes:
        tokens: of all prompts.
        wall_s: of the synchronised forwards: of all spans, and of what lies between them.
        on_device: whether the spans are seconds of an accelerator; else of the CPU.
    """

    tokens: int = field(metadata={"ge": 1})
    wall_s: float = field(metadata={"gt": 0.0, "le": 1e12})
    on_device: bool
    spans: tuple[Span, ...]


class Engine(Protocol):
    """An engine of one's own: what a class that is named ``module:Class`` must have.

    perfline makes it with ``Class(case, weights)``: the :class:`~perfline.Case`, and the directory
    of the checkpoint (a ``pathlib.Path``; None under ``--dummy-weights``). Then it gives every
    prompt by itself to ``forward`` and what comes back to ``answer``.

    It may have these methods too; what is missing is not measured, and nothing is guessed::

        begin(prompts, head)      told before every pass over ``prompts``
        prepare(prompt) -> batch  before the clock starts, such as a copy to the device; without it
                                  ``forward`` is given the :class:`~perfline.Prompt` itself
        synchronize()             wait for queued work; torch's device is waited for without it
        letter_logits(output)     logits of the tokens A, B, C, D at the last position, 4 numbers;
                                  more where the case's tasks have more choices
        log_probability(output, targets)   for tasks that are scored by continuation: the sum of the
                                  log-probabilities of the token ids ``targets``, each read at the
                                  position before it; the last is not in the prompt. ``forward``
                                  was asked for ``head="all"``
        compiled_graphs() -> int  compiled so far; more in a timed round make the run invalid
        flops(tokens, head)       FLOPs of one forward of ``tokens``, or None; gives mfu_computed
        reset_peak_memory(), peak_memory_gib()   peak in GiB since the reset, or None
        close()                   the case is done: free the model
    """

    def forward(self, batch: Any, head: Head) -> Any:
        """Run one prompt; the clock is around this.

        ``head`` is ``"all"`` where the case times logits at all positions (``throughput.head``),
        and ``"last"`` where those at the last one are enough.
        """

    def answer(self, output: Any) -> str:
        """Return the text of the most likely next token, such as ``" B"``, from what came back."""


class MeasuredEngine(Protocol):
    """One way of running one loaded model, with all that the measuring code asks of it."""

    name: EngineName

    def begin(self, prompts: Sequence[Prompt], head: Head) -> None:
        """Told before a pass: where a model is split, its other ranks run the pass too."""

    def prepare(self, prompt: Prompt) -> Any:
        """Copy a prompt's ids to the device; shape (1, tokens), int64."""

    def forward(self, batch: Any, head: Head) -> Any:
        """Queue the forward; logits of shape (1, tokens or 1, vocabulary)."""

    def score(self, batch: Any, targets: Ints, head: Head) -> Any:
        """Queue the forward and the score of ``targets`` (tokens), read at its last positions."""

    def read_score(self, scored: Any) -> tuple[float, float]:
        """(sum of the targets' log-probabilities, what its rounding is a share of).

        The second is the root of the sum of squares of the largest logits, without sign, at their
        positions: errors of independent positions add up so.
        """

    def synchronize(self) -> None:
        """Wait for the device."""

    def read(self, logits: Any) -> tuple[Sequence[float] | None, float | None, int, str]:
        """Last position: letters' logits, the largest of all, the arg-max token, and its text.

        The largest is without sign (``Answers.rounding_scales``). None and -1 where an engine does
        not tell logits or token.
        """

    def compile_counts(self) -> CompileCounts:
        """What was compiled so far; all 0 for an engine that compiles nothing."""

    def forget_compiled(self) -> None:
        """Have the next forward compile anew, whatever ran before."""

    def not_compiled(self) -> str:
        """Why an engine that compiles has compiled nothing by now; empty where that is not so."""

    def fingerprint(
        self,
        prompt: Prompt,
        head: Head,
        compiled: tuple[CompileCounts, CompileCounts],
        sample_tokens: int,
    ) -> Fingerprint | None:
        """What runs in a forward (``fingerprint.of_run``); None where that is not known."""

    def profile(
        self, prompts: Sequence[Prompt], head: Head, trace: Path | None = None
    ) -> Callable[[], Profile] | None:
        """One round under the profiler (``Profiler.round``); None where modules are not known.

        What is returned works the profile out. The first call may compile anew: nothing is timed
        after it. ``trace`` is written as Chrome's trace viewer reads it.
        """

    def flops(self, tokens: int, head: Head) -> float | None:
        """FLOPs that the forward of one prompt of ``tokens`` executes; None where not known."""

    def reset_peak_memory(self) -> None:
        """Start a new peak."""

    def peak_memory_gib(self) -> float | None:
        """Peak device memory in GiB since the reset; None where the device does not count it."""


@dataclass(frozen=True)
class Generated:
    """Tokens that were generated behind one prompt, or behind several of one length at once.

    Attributes:
        tokens: (rows, tokens).
        first_s: seconds from the prompt on the device to its first token.
        steps_s: seconds from each token to the next.
        whole_s: seconds of all of it by the host's clock, until the device is idle.
    """

    tokens: Ints
    first_s: float
    steps_s: tuple[float, ...]
    whole_s: float


class MeasuredDecoder(Protocol):
    """Greedy decoding by one engine of a loaded model; counts and memory are the engine's."""

    static: bool
    positions: int

    def generate(self, ids: Ints, tokens: int, length: int) -> Generated:
        """The ``tokens`` most likely tokens behind each row of ``ids``; (rows, width).

        ``length`` is that of the cache, where it is static.
        """

    def logits_after(self, ids: Ints, last: int = 1) -> npt.NDArray[np.float32]:
        """Logits of the token behind each of the ``last`` of ``ids`` (tokens), without any cache.

        (last, vocabulary).
        """

    def streamed_bytes(self, rows: int, length: int) -> int | None:
        """Bytes that one step reads from memory; None where not known."""

    def fingerprint(
        self,
        ids: Ints,
        tokens: int,
        length: int,
        compiled: tuple[CompileCounts, CompileCounts],
        prompt_tokens: int,
    ) -> Fingerprint:
        """What runs while ``tokens`` are generated behind ``ids`` (1, width).

        ``compiled`` and ``prompt_tokens`` as of ``MeasuredEngine.fingerprint``.
        """


@dataclass(frozen=True)
class Pass:
    """One pass over prompts.

    Attributes:
        answers: one row per prompt, in their order.
        tokens: prompt tokens of the pass.
        core_s: seconds inside the synchronised forwards alone.
        whole_s: seconds of the loop: copies, forwards, reading the answers.
    """

    answers: Answers
    tokens: int
    core_s: float
    whole_s: float


def run_pass(
    engine: MeasuredEngine,
    prompts: Sequence[Prompt],
    head: Head,
    clock: Clock = time.perf_counter,
    progress: Progress | None = None,
) -> Pass:
    """Answer every prompt by a forward of its own (batch 1, the published workload).

    A prompt with continuations takes one forward for each. EngineError where logits are not finite:
    that is no wrong answer but no measurement.
    """
    letters = letter_table(prompts)
    argmax = np.full(len(prompts), -1, dtype=np.int64)
    told = np.ones(len(prompts), dtype=bool)
    scales = np.full(len(prompts), np.nan, dtype=np.float32)
    argmax_letters: list[str] = []
    core_s = 0.0
    engine.begin(prompts, head)
    begin = clock()
    for row, prompt in enumerate(prompts):
        scored = []
        for part in prompt.rows:
            batch = engine.prepare(part)
            engine.synchronize()
            start = clock()
            if part.targets is None:
                found = engine.forward(batch, head)
            else:
                found = engine.score(batch, part.targets, head)
            engine.synchronize()
            core_s += clock() - start
            if part.targets is not None:
                scored.append(engine.read_score(found))
        if scored:
            letters[row, : prompt.choices], letter, scales[row] = prompt.scored(scored)
        else:
            given, largest, argmax[row], text = engine.read(found)
            if given is not None:
                letters[row, : prompt.choices] = _of_choices(engine, prompt, given)
            if largest is not None:
                scales[row] = largest
            told[row] = given is not None
            letter = full_vocab_letter(text, prompt.choices)
        argmax_letters.append(letter)
        if progress is not None:
            progress(row + 1, len(prompts))
    whole_s = clock() - begin
    choices = np.array([prompt.choices for prompt in prompts])
    broken = np.flatnonzero(told & (np.isfinite(letters).sum(axis=1) < choices))
    if broken.size:
        raise EngineError(
            f"{engine.name}: logits of {broken.size} of {len(prompts)} prompts are not finite "
            f"(first: question {prompts[broken[0]].id}); an overflow in fp16, or a broken kernel?"
        )
    labels = [prompt.label for prompt in prompts]
    answers = Answers(
        ids=tuple(prompt.id for prompt in prompts),
        letter_logits=letters,
        argmax=argmax,
        argmax_letter="".join(argmax_letters),
        labels="".join(label for label in labels if label) if all(labels) else None,
        shots=tuple(prompt.shots for prompt in prompts),
        scales=None if np.isnan(scales).any() else scales,
    )
    return Pass(answers, sum(prompt.tokens for prompt in prompts), core_s, whole_s)


def _of_choices(engine: MeasuredEngine, prompt: Prompt, given: Sequence[float]) -> Sequence[float]:
    """The logits of the letters that the question has."""
    if len(given) < prompt.choices:
        raise EngineError(
            f"{engine.name}: tells logits of {len(given)} letters, and question {prompt.id} has "
            f"{prompt.choices} choices"
        )
    return given[: prompt.choices]
