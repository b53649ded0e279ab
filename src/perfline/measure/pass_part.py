"""How does one process answer some of a pass's questions, and what does it take?

By shared prefixes, or each prompt by itself. A pass is the sum of its parts, whichever process
answered them: they merge by question id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from perfline.engines.engine import Clock, CompileCounts, Engine, Progress, run_pass
from perfline.tasks.answers import Answers, union
from perfline.tasks.mmlu import Prompt

KEEP_EVERY = 16  # plain answers that an interrupt may cost
Keep = Callable[[Answers], None]


class SharedPass(Protocol):
    """What a shared-prefix pass measures (``shared_prefix.SharedPass``)."""

    @property
    def answers(self) -> Answers:
        """One row per prompt."""

    @property
    def computed_tokens(self) -> int:
        """Tokens really run, padding left out."""

    @property
    def padded_tokens(self) -> int:
        """Padding run beside them."""

    @property
    def core_s(self) -> float:
        """Seconds in forwards."""

    @property
    def flops(self) -> float | None:
        """Really executed; None where not known."""

    @property
    def halvings(self) -> int:
        """How often memory ran out."""


class SharedRunner(Protocol):
    """What answers prompts by shared prefixes (``shared_prefix.SharedPrefixRunner``)."""

    def plan(self, prompts: Sequence[Prompt]) -> Any:
        """Plan the forwards."""

    def warm_up(self, plan: Any) -> None:
        """Compile what any plan needs."""

    def run(
        self,
        prompts: Sequence[Prompt],
        plan: Any,
        clock: Clock,
        progress: Progress | None,
        on_batch: Keep | None,
    ) -> SharedPass:
        """Answer every prompt."""

    def follow(self, said: Mapping[str, Any], prompts: Sequence[Prompt]) -> None:
        """Do what the first rank's runner does, where ranks hold one model between them."""


@dataclass(frozen=True)
class Part:
    """The answers to some questions of a pass, and what they took.

    Attributes:
        replica: which of the model's replicas answered.
        served_tokens: prompt tokens, as if each prompt were run by itself.
        computed_tokens, padded_tokens: tokens really run, and padding run beside them.
        core_s: seconds in forwards.
        flops: really executed, padding included; None where not known.
        halvings: how often memory ran out.
        counts: what was compiled meanwhile.
    """

    answers: Answers
    replica: int = 0
    served_tokens: int = 0
    computed_tokens: int = 0
    padded_tokens: int = 0
    core_s: float = 0.0
    flops: float | None = None
    halvings: int = 0
    counts: CompileCounts = field(default_factory=CompileCounts)


def shared_part(
    engine: Engine,
    runner: SharedRunner,
    prompts: Sequence[Prompt],
    clock: Clock,
    progress: Progress | None,
    keep: Keep | None,
) -> Part:
    """Answer by shared prefixes."""
    before = engine.compile_counts()
    done = runner.run(prompts, runner.plan(prompts), clock, progress, keep)
    return Part(
        answers=done.answers,
        served_tokens=_tokens(prompts),
        computed_tokens=done.computed_tokens,
        padded_tokens=done.padded_tokens,
        core_s=done.core_s,
        flops=done.flops,
        halvings=done.halvings,
        counts=engine.compile_counts() - before,
    )


def plain_part(
    engine: Engine,
    prompts: Sequence[Prompt],
    clock: Clock,
    progress: Progress | None,
    keep: Keep | None,
) -> Part:
    """Answer one prompt a forward, as published; kept batch by batch."""
    before, core_s = engine.compile_counts(), 0.0
    batches: list[Answers] = []
    for start in range(0, len(prompts), KEEP_EVERY):
        batch = run_pass(engine, prompts[start : start + KEEP_EVERY], "last", clock)
        if keep is not None:
            keep(batch.answers)
        batches.append(batch.answers)
        core_s += batch.core_s
        if progress is not None:
            progress(min(start + KEEP_EVERY, len(prompts)), len(prompts))
    each = [engine.flops(len(prompt.ids), "last") for prompt in prompts]
    return Part(
        answers=union(batches),
        served_tokens=_tokens(prompts),
        computed_tokens=_tokens(prompts),
        core_s=core_s,
        flops=None if None in each else sum(f for f in each if f is not None),
        counts=engine.compile_counts() - before,
    )


def _tokens(prompts: Sequence[Prompt]) -> int:
    return sum(len(prompt.ids) for prompt in prompts)
