"""How are the questions of an accuracy run answered: which ones, by which path, and how surely?

By default every shared prefix is computed once (``shared_prefix``); ``--plain`` runs each prompt by
itself, as published. Answers go to a journal batch by batch, a sample of them is answered again the
plain way (``verify``), and a sequential run stops at the first look that makes its verdict certain.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from perfline.answers import Answers, no_answers, subset
from perfline.engine import Clock, CompileCounts, Engine, Progress, run_pass
from perfline.journal import Journal
from perfline.mmlu import Prompt
from perfline.tiers import tier_order

# Shares of all questions at which a sequential run looks; fixed in advance, alpha is split evenly.
LOOKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)

KEEP_EVERY = 16  # plain answers that an interrupt may cost


@dataclass(frozen=True)
class AccuracyOptions:
    """What an accuracy run asks, and how.

    Attributes:
        questions: the first N of the fixed order; None for all.
        verify: how many answers of the shared-prefix path are given again by the plain path.
        plain: run each prompt by itself.
        sequential: stop as soon as the paired verdict is certain.
        resume: continue an interrupted pass from its journal.
        journals: the directory of the journals; None for none.
    """

    questions: int | None = None
    verify: int = 32
    plain: bool = False
    sequential: bool = False
    resume: bool = False
    journals: Path | None = None


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
        on_batch: Callable[[Answers], None] | None,
    ) -> SharedPass:
        """Answer every prompt."""


@dataclass(frozen=True)
class AccuracyPass:
    """The answers of one engine, and what they took.

    Attributes:
        answers: in the prompts' order.
        asked_of: how many questions there are in all.
        path: ``shared-prefix`` or ``plain``.
        resumed: how many answers came from the journal; times and tokens are of the others.
        served_tokens, computed_tokens, padded_tokens: of this session's forwards.
        warmup_s: seconds before the pass, compilation included.
        core_s, whole_s: seconds in forwards, and of the whole pass.
        flops: really executed, padding included; None where not known.
        counts: what was compiled after the warm-up; must be nothing.
        looks: among how many looks the error rates are split; 1 for a run that was not sequential.
        reference: the plain answers to the verified questions; None where nothing was verified.
    """

    answers: Answers
    asked_of: int
    path: str
    resumed: int = 0
    served_tokens: int = 0
    computed_tokens: int = 0
    padded_tokens: int = 0
    warmup_s: float = 0.0
    core_s: float = 0.0
    whole_s: float = 0.0
    flops: float | None = 0.0
    halvings: int = 0
    counts: CompileCounts = field(default_factory=CompileCounts)
    looks: int = 1
    reference: Answers | None = None


@dataclass
class AccuracyRun:
    """One engine's accuracy run.

    Attributes:
        engine: answers by the plain path.
        oracle: the engine that answers the verified questions, by the plain path.
        runner: answers by shared prefixes; None where there is no such path.
        identity: what the journal's answers belong to.
    """

    engine: Engine
    oracle: Engine
    runner: SharedRunner | None
    options: AccuracyOptions
    identity: Mapping[str, str]
    clock: Clock = time.perf_counter
    progress: Progress | None = None

    @property
    def shared(self) -> bool:
        """Whether prefixes are shared."""
        return self.runner is not None and not self.options.plain

    def answer(
        self,
        prompts: Sequence[Prompt],
        certain: Callable[[Answers, int, int], bool] | None = None,
    ) -> AccuracyPass:
        """Answer the questions asked for.

        ``certain(answers, looks, asked_of)`` says whether a sequential run may stop; without it a
        run is not sequential.
        """
        chosen = choose(prompts, self.options.questions)
        journal = self._journal(self.options.resume)
        given = journal.resume() if journal is not None else None
        sequential = self.options.sequential and certain is not None
        stages = looks(len(chosen)) if sequential else (len(chosen),)
        done = AccuracyPass(
            answers=no_answers() if given is None else _keep(given, chosen),
            asked_of=len(prompts),
            path="shared-prefix" if self.shared else "plain",
            looks=len(stages),
        )
        done = replace(done, resumed=len(done.answers.ids))
        begin = self.clock()
        if self.shared:
            assert self.runner is not None
            self.runner.warm_up(self.runner.plan(chosen))
        done = replace(done, warmup_s=self.clock() - begin)
        before = self.engine.compile_counts()
        for stage in stages:
            have = set(done.answers.ids)
            todo = [prompt for prompt in chosen[:stage] if prompt.id not in have]
            done = self._add(done, todo, journal)
            if (
                sequential
                and certain is not None
                and certain(done.answers, len(stages), len(chosen))
            ):
                break
        done = replace(
            done,
            answers=_in_order(done.answers, [prompt.id for prompt in prompts]),
            counts=self.engine.compile_counts() - before,
        )
        return self._verified(done, prompts) if self.shared else done

    def forget(self) -> None:
        """Remove the journal: its answers are safe elsewhere."""
        journal = self._journal(resume=True)
        if journal is not None:
            journal.finish()

    def _add(
        self, done: AccuracyPass, prompts: Sequence[Prompt], journal: Journal | None
    ) -> AccuracyPass:
        """Answer ``prompts`` too."""
        if not prompts:
            return done
        keep = journal.append if journal is not None else None
        begin = self.clock()
        if self.shared:
            assert self.runner is not None
            plan = self.runner.plan(prompts)
            shared = self.runner.run(prompts, plan, self.clock, self.progress, keep)
            answers, core_s, flops = shared.answers, shared.core_s, shared.flops
            computed, padded = shared.computed_tokens, shared.padded_tokens
            halvings = shared.halvings
        else:
            answers, core_s = self._plain(prompts, keep)
            computed, padded, halvings = sum(len(prompt.ids) for prompt in prompts), 0, 0
            each = [self.engine.flops(len(prompt.ids), "last") for prompt in prompts]
            flops = None if None in each else sum(f for f in each if f is not None)
        return replace(
            done,
            answers=done.answers.merge(answers) if done.answers.ids else answers,
            served_tokens=done.served_tokens + sum(len(prompt.ids) for prompt in prompts),
            computed_tokens=done.computed_tokens + computed,
            padded_tokens=done.padded_tokens + padded,
            core_s=done.core_s + core_s,
            whole_s=done.whole_s + self.clock() - begin,
            flops=None if flops is None or done.flops is None else done.flops + flops,
            halvings=done.halvings + halvings,
        )

    def _plain(
        self, prompts: Sequence[Prompt], keep: Callable[[Answers], None] | None
    ) -> tuple[Answers, float]:
        """Answer one prompt a forward, kept batch by batch; and the seconds in forwards."""
        answers, core_s = no_answers(), 0.0
        for start in range(0, len(prompts), KEEP_EVERY):
            batch = run_pass(self.engine, prompts[start : start + KEEP_EVERY], "last", self.clock)
            if keep is not None:
                keep(batch.answers)
            answers = answers.merge(batch.answers) if answers.ids else batch.answers
            core_s += batch.core_s
            if self.progress is not None:
                self.progress(len(answers.ids), len(prompts))
        return answers, core_s

    def _verified(self, done: AccuracyPass, prompts: Sequence[Prompt]) -> AccuracyPass:
        """Answer some of the answered questions again, the plain way, spread over subjects."""
        answered = set(done.answers.ids)
        candidates = [prompt for prompt in prompts if prompt.id in answered]
        sample = choose(candidates, min(self.options.verify, len(candidates)))
        if not sample:
            return done
        return replace(done, reference=run_pass(self.oracle, sample, "last", self.clock).answers)

    def _journal(self, resume: bool) -> Journal | None:
        folder = self.options.journals
        if folder is None:
            return None
        name = f"{self.identity['case']}-{self.identity['engine']}.jsonl"
        path = "shared-prefix" if self.shared else "plain"
        journal = Journal(folder / name, {**self.identity, "path": path})
        if not resume:
            journal.finish()
        return journal


def choose(prompts: Sequence[Prompt], n: int | None) -> list[Prompt]:
    """The first ``n`` prompts of the fixed, subject-stratified order; None for all of them."""
    order = tier_order([prompt.id for prompt in prompts])
    return [prompts[index] for index in (order if n is None else order[:n])]


def looks(n: int) -> tuple[int, ...]:
    """After how many of ``n`` questions a sequential run looks."""
    return tuple(sorted({max(1, round(share * n)) for share in LOOKS}))


def _in_order(answers: Answers, ids: Sequence[str]) -> Answers:
    answered = set(answers.ids)
    return subset(answers, [name for name in ids if name in answered])


def _keep(answers: Answers, prompts: Sequence[Prompt]) -> Answers:
    wanted = {prompt.id for prompt in prompts}
    return subset(answers, [name for name in answers.ids if name in wanted])
