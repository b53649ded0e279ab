"""How are the questions of an accuracy run answered: which ones, by which path, and how surely?

By default every shared prefix is computed once (``shared_prefix``); ``--plain`` runs each prompt by
itself, as published. Answers go to a journal batch by batch, a sample of them is answered again the
plain way (``verify``), and a sequential run stops at the first look that makes its verdict certain.

A pass is the sum of its parts, whichever process answered them: they merge by question id.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from perfline.cases.case import Case, Scoring
from perfline.distributed.replica import Replica
from perfline.engines.engine import (
    Clock,
    CompileCounts,
    EngineName,
    MeasuredEngine,
    Progress,
    run_pass,
)
from perfline.errors import DeviceMemory, EngineError, NoSharedPrefixes
from perfline.measure import notices
from perfline.measure.journal import Journal
from perfline.measure.parallel_rounds import AggregateTimings, Repeat, TimedRun
from perfline.metrics import Metric, pass_name
from perfline.tasks.answers import Answers, accuracy, no_answers, subset, union
from perfline.tasks.prompts import Prompt
from perfline.tasks.sampling import tier_order
from perfline.tasks.task import measures, scoring

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
    engine: MeasuredEngine,
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
    engine: MeasuredEngine,
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
    each = [engine.flops(len(row.ids), "last") for prompt in prompts for row in prompt.rows]
    return Part(
        answers=union(batches),
        served_tokens=_tokens(prompts),
        computed_tokens=_tokens(prompts),
        core_s=core_s,
        flops=None if None in each else sum(f for f in each if f is not None),
        counts=engine.compile_counts() - before,
    )


def _tokens(prompts: Sequence[Prompt]) -> int:
    return sum(prompt.tokens for prompt in prompts)


def accuracy_metrics(case: Case, name: str, done: AccuracyPass, peak: float | None) -> list[Metric]:
    """Micro accuracy (correct / asked) as the case scores it and as it might, and its cost.

    The cost is of the forwards of this session: served tokens are the prompts', computed ones those
    really run; with shared prefixes the published MFU formula would read above 100 %, so only the
    FLOPs really executed are set against the peak.
    """
    answers = done.answers
    if answers.labels is None:
        return []
    prefix = f"acc_{pass_name(name)}"
    scorings: tuple[Scoring, ...] = ("full-vocab", "letters")
    by_scoring = {
        each: correct / asked for each in scorings for correct, asked in [accuracy(answers, each)]
    }
    told: dict[str, Scoring] = {"full_vocab": "full-vocab"}
    if answers.has_logits:
        told["letters"] = "letters"
    told = measures(case, done.task) or told
    return [
        Metric(prefix, by_scoring[scoring(case, name)], "fraction", "higher"),
        *(
            Metric(f"{prefix}_{end}", by_scoring[by], "fraction", "info")
            for end, by in told.items()
        ),
        Metric(f"{prefix}_questions", len(answers.ids), "questions", "info"),
        *_cost(prefix, done, peak),
    ]


def _cost(prefix: str, done: AccuracyPass, peak: float | None) -> list[Metric]:
    asked = len(done.answers.ids) - done.resumed
    if not (done.computed_tokens and done.core_s and done.whole_s):
        return []
    found = [
        Metric(f"{prefix}_served_tokens", done.served_tokens, "tok", "info"),
        Metric(f"{prefix}_computed_tokens", done.computed_tokens, "tok", "info"),
        Metric(f"{prefix}_padded_tokens", done.padded_tokens, "tok", "info"),
        Metric(f"{prefix}_reuse_factor", done.served_tokens / done.computed_tokens, "x", "info"),
        Metric(f"{prefix}_warmup_time", done.warmup_s, "s", "info"),
        Metric(f"{prefix}_time", done.whole_s, "s", "info"),
        Metric(f"{prefix}_questions_per_s", asked / done.whole_s, "questions/s", "info"),
        Metric(f"{prefix}_core", done.core_s / done.replicas / done.whole_s, "fraction", "info"),
    ]
    if peak is not None and done.flops:
        utilisation = done.flops / done.core_s / peak
        found.append(Metric(f"{prefix}_mfu_computed", utilisation, "fraction", "info"))
    return found


# Shares of all questions at which a sequential run looks; fixed in advance, alpha is split evenly.
LOOKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


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


class Coordinator(Protocol):
    """Shares passes and rounds among ranks (``RankCoordinator``); this is rank 0."""

    @property
    def replicas(self) -> int:
        """How many replicas of the model there are."""

    @property
    def hosts(self) -> int:
        """On how many hosts they are."""

    def open(self, case: Case) -> Replica | None:
        """Have the other ranks load the case too; this rank's replica where it is split."""

    def prepare(self, case: str, engine: EngineName) -> None:
        """Have the other ranks make the engine ready in the meantime."""

    def answer(self, run: AccuracyRun, prompts: Sequence[Prompt], keep: Keep | None) -> list[Part]:
        """Answer every prompt once, here or elsewhere; every batch goes to ``keep``."""

    def time(self, run: TimedRun, repeat: Repeat) -> AggregateTimings:
        """Time rounds of all ranks together."""

    def alive(self) -> None:
        """Tell the other ranks that this one still works."""


@dataclass(frozen=True)
class AccuracyPass:
    """The answers of one engine, and what they took.

    Attributes:
        answers: in the prompts' order.
        asked_of: how many questions were to be asked, had the run not been certain before.
        path: ``shared-prefix`` or ``plain``.
        resumed: how many answers came from the journal; times and tokens are of the others.
        served_tokens, computed_tokens, padded_tokens: of this session's forwards.
        warmup_s: seconds before the pass, compilation included.
        core_s, whole_s: seconds in forwards, and of the whole pass.
        flops: really executed, padding included; None where not known.
        counts: what was compiled after the warm-up; must be nothing.
        looks: among how many looks the error rates are split; 1 for a run that was not sequential.
        replicas: among how many of the model's it was shared; ``core_s`` and ``flops`` are of all.
        by_replica: how many questions each of them answered.
        reference: the plain answers to the verified questions; None where nothing was verified.
        uncompiled: why an engine that compiles ran eagerly; empty where it did not.
        task: whose questions they are.
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
    replicas: int = 1
    by_replica: Mapping[int, int] = field(default_factory=dict)
    reference: Answers | None = None
    uncompiled: str = ""
    task: str = "mmlu"


@dataclass
class AccuracyRun:
    """One engine's accuracy run.

    Attributes:
        engine: answers by the plain path.
        oracle: the engine that answers the verified questions, by the plain path.
        runner: answers by shared prefixes; None where there is no such path.
        identity: what the journal's answers belong to.
        ready: has the engine compiled and warm for the plain path.
        without: takes why no prefixes are shared, where that shows in the warm-up.
        coordinator: shares the questions with other ranks; None where this process is alone.
    """

    engine: MeasuredEngine
    oracle: MeasuredEngine
    runner: SharedRunner | None
    options: AccuracyOptions
    identity: Mapping[str, str]
    ready: Callable[[], object] = lambda: None
    without: Callable[[NoSharedPrefixes], None] = lambda why: None
    clock: Clock = time.perf_counter
    progress: Progress | None = None
    coordinator: Coordinator | None = None

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
        warmup_s = self.warm_up(chosen)  # first of all: it may show that no prefixes are shared
        journal = self._journal(self.options.resume)
        given = journal.resume() if journal is not None else None
        sequential = self.options.sequential and certain is not None
        stages = looks(len(chosen)) if sequential else (len(chosen),)
        done = AccuracyPass(
            answers=no_answers() if given is None else _keep(given, chosen),
            asked_of=len(chosen),
            path="shared-prefix" if self.shared else "plain",
            looks=len(stages),
            replicas=1 if self.coordinator is None else self.coordinator.replicas,
        )
        done = replace(done, resumed=len(done.answers.ids), warmup_s=warmup_s)
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
        ordered = _in_order(done.answers, [prompt.id for prompt in prompts])
        done = replace(done, answers=ordered, uncompiled=self.engine.not_compiled())
        return self._verified(done, prompts) if self.shared else done

    def forget(self) -> None:
        """Remove the journal: its answers are safe elsewhere."""
        journal = self._journal(resume=True)
        if journal is not None:
            journal.finish()

    def warm_up(self, prompts: Sequence[Prompt]) -> float:
        """Compile what a pass over ``prompts`` needs; seconds, without those of ``ready``.

        Where the model runs no forward after a prefix, or torch does not compile one, the plain
        path answers: a slower right answer beats none.
        """
        begin = self.clock()
        if self.shared:
            assert self.runner is not None
            try:
                self.runner.warm_up(self.runner.plan(prompts))
            except DeviceMemory:
                raise
            except (EngineError, RuntimeError) as why:  # ours or the compiler's, the model's own
                self.runner = None
                if not isinstance(why, NoSharedPrefixes):
                    first = (str(why) or "no message").splitlines()[0]
                    why = NoSharedPrefixes(f"{type(why).__name__}: {first}")
                self.without(why)
        warmup_s = self.clock() - begin
        if not self.shared:
            self.ready()
        return warmup_s

    def cost(self, prompts: Sequence[Prompt]) -> int:
        """Tokens that this process would run to answer ``prompts``, padding included."""
        if self.shared:
            assert self.runner is not None
            plan = self.runner.plan(prompts)
            return int(plan.computed_tokens + plan.padded_tokens)
        return _tokens(prompts)

    def part(
        self, prompts: Sequence[Prompt], keep: Keep | None, progress: Progress | None = None
    ) -> Part:
        """Answer ``prompts`` in this process."""
        if self.shared:
            assert self.runner is not None
            try:
                return shared_part(self.engine, self.runner, prompts, self.clock, progress, keep)
            except NoSharedPrefixes as why:  # the warm-up did not meet it
                raise EngineError(f"{why}; run again with --plain") from why
        return plain_part(self.engine, prompts, self.clock, progress, keep)

    def _add(
        self, done: AccuracyPass, prompts: Sequence[Prompt], journal: Journal | None
    ) -> AccuracyPass:
        """Answer ``prompts`` too."""
        if not prompts:
            return done
        keep = journal.append if journal is not None else None
        begin = self.clock()
        with notices.timed():
            if self.coordinator is not None:
                parts = self.coordinator.answer(self, prompts, keep)
            else:
                parts = [self.part(prompts, keep, self.progress)]
        flops = [done.flops, *(part.flops for part in parts)]
        by_replica = Counter(done.by_replica)
        for part in parts:
            by_replica[part.replica] += len(part.answers.ids)
        return replace(
            done,
            answers=union([done.answers, *(part.answers for part in parts)]),
            served_tokens=done.served_tokens + sum(part.served_tokens for part in parts),
            computed_tokens=done.computed_tokens + sum(part.computed_tokens for part in parts),
            padded_tokens=done.padded_tokens + sum(part.padded_tokens for part in parts),
            core_s=done.core_s + sum(part.core_s for part in parts),
            whole_s=done.whole_s + self.clock() - begin,
            flops=None if None in flops else sum(f for f in flops if f is not None),
            halvings=done.halvings + sum(part.halvings for part in parts),
            counts=sum((part.counts for part in parts), start=done.counts),
            by_replica=dict(sorted(by_replica.items())),
        )

    def _verified(self, done: AccuracyPass, prompts: Sequence[Prompt]) -> AccuracyPass:
        """Answer some of the answered questions again, the plain way, spread over subjects."""
        answered = set(done.answers.ids)
        candidates = [prompt for prompt in prompts if prompt.id in answered]
        sample = choose(candidates, min(self.options.verify, len(candidates)))
        if not sample:
            return done
        coordinator = self.coordinator
        seen = None if coordinator is None else lambda done, total: coordinator.alive()
        again = run_pass(self.oracle, sample, "last", self.clock, seen)
        return replace(done, reference=again.answers)

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
