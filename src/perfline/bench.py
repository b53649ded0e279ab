"""How is one case measured in one session: what is loaded, run and timed, and only once?

A ``Bench`` holds one opened case. The accuracy and the throughput tests ask it for answers and
timings; weights, questions, compilation and passes that they share are done at the first asking.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from perfline import throughput
from perfline.answers import Answers, accuracy
from perfline.case import Case, Scoring, WeightsKind
from perfline.device import Device
from perfline.engine import Clock, Engine, EngineName, Pass, Progress, run_pass
from perfline.metrics import Metric
from perfline.mmlu import Prompt, stratified_sample
from perfline.telemetry import watch
from perfline.throughput import PREFIX, Ready, Stopwatch, Timings

ProgressOf = Callable[[str], Progress]


class Opened(Protocol):
    """A case whose model is on the device and whose prompts are made."""

    @property
    def prompts(self) -> Sequence[Prompt]:
        """Every question's prompt."""

    @property
    def load_s(self) -> float:
        """Seconds of the load."""

    @property
    def load_peak_gib(self) -> float | None:
        """Peak memory of the load, GiB; None where the device does not count it."""

    @property
    def facts(self) -> Mapping[str, str]:
        """What was loaded, such as the weights' digest."""

    def engine(self, name: EngineName) -> Engine:
        """The engine of that name."""

    def close(self) -> None:
        """Free the model."""


@dataclass(frozen=True)
class OpenCase:
    """``Opened`` over a real model."""

    prompts: Sequence[Prompt]
    load_s: float
    load_peak_gib: float | None
    facts: Mapping[str, str]
    engine: Callable[[EngineName], Engine]
    close: Callable[[], None]


def open_case(case: Case, device: Device, data_dir: Path | None, weights: WeightsKind) -> Opened:
    """Find weights and questions, load the model, tokenise the prompts.

    Raises MissingData (with the command that gets them), DataError, EngineError.
    """
    from perfline import data, hf, lengths, mmlu

    if weights == "dummy":
        model = hf.load(case, device, None)
        facts: dict[str, str] = {}
        limit = min(case.mmlu.max_prompt_tokens, model.positions)
        prompts = lengths.dummy_prompts(model.vocabulary, limit)
    else:
        located = data.locate(case, data_dir)
        data.check_weights(located.weights)
        subjects = mmlu.load_subjects(located.mmlu, case.mmlu.few_shots)
        model = hf.load(case, device, located.weights)
        prompts = mmlu.build_prompts(subjects, model.encode, case.mmlu, model.positions)
        facts = {
            "weights": data.weights_digest(located.weights),
            "mmlu": mmlu.question_set_digest(subjects),
        }
    return OpenCase(prompts, model.load_s, model.load_peak_gib, facts, model.engine, model.close)


@dataclass
class Bench:
    """One case in one session.

    Attributes:
        peak: the device's dense FLOP/s for the case's dtype; None where not known.
        full_pass: throughput is timed over all questions, once, as published.
    """

    case: Case
    opened: Opened
    device: Device
    peak: float | None = None
    full_pass: bool = False
    clock: Clock = time.perf_counter
    progress: ProgressOf | None = None
    _ready: dict[EngineName, Ready] = field(default_factory=dict)
    _passes: dict[EngineName, Pass] = field(default_factory=dict)
    _timings: dict[EngineName, Timings] = field(default_factory=dict)
    _reference: Answers | None = None

    @property
    def sample(self) -> list[Prompt]:
        """The fixed, length-stratified sample that throughput is timed over."""
        prompts = self.opened.prompts
        chosen = stratified_sample([len(p.ids) for p in prompts], self.case.throughput.sample)
        return [prompts[index] for index in chosen]

    @property
    def workload(self) -> dict[str, str | int | float | bool | None]:
        """What throughput is timed over; sessions of different workloads do not compare."""
        prompts = self.opened.prompts if self.full_pass else self.sample
        return {
            "questions": len(prompts),
            "tokens": sum(len(prompt.ids) for prompt in prompts),
            "full_pass": self.full_pass,
        }

    def ready(self, name: EngineName) -> Ready:
        """The engine compiled and warm; done once."""
        if name not in self._ready:
            engine = self.opened.engine(name)
            spec = self.case.throughput
            self._ready[name] = throughput.make_ready(engine, self.sample, spec, self.clock)
        return self._ready[name]

    def answer_all(self, name: EngineName) -> Pass:
        """Answer every question; done once.

        ``--full-pass`` times this very pass, so it then applies the head as the workload does.
        """
        if self.full_pass:
            return self._full_pass(name)
        if name not in self._passes:
            self.ready(name)
            engine, prompts = self.opened.engine(name), self.opened.prompts
            self._passes[name] = run_pass(
                engine, prompts, "last", self.clock, self._progress_of(f"{name} accuracy")
            )
        return self._passes[name]

    def rounds(self, name: EngineName) -> int:
        """How many rounds ``time`` will run."""
        return 1 if self.full_pass else self.case.throughput.rounds

    def time(self, name: EngineName, repeat: Callable[[Callable[[], None], int], None]) -> Timings:
        """Time the engine: ``repeat(round, n)`` runs the rounds (pytest-benchmark does, say).

        Readings of the device's health are taken before, between and after the rounds.
        """
        if name in self._timings:
            return self._timings[name]
        ready = self.ready(name)
        prompts = list(self.opened.prompts) if self.full_pass else self.sample
        progress = self._progress_of(f"{name} full pass") if self.full_pass else None
        with watch(self.device) as health:
            stopwatch = Stopwatch(
                self.opened.engine(name),
                prompts,
                self.case.throughput.head,
                ready if not self.full_pass else throughput.once(ready),
                self.clock,
                progress,
            )
            health.sample()

            def timed_round() -> None:
                stopwatch.round()
                health.sample()

            repeat(timed_round, self.rounds(name))
            self._timings[name] = stopwatch.finish(health.faults())
        return self._timings[name]

    def reference(self) -> Answers:
        """The eager engine's answers to the timed prompts, whether or not it was timed."""
        if "eager" in self._timings:
            return self._timings["eager"].answers
        if self._reference is None:
            engine = self.opened.engine("eager")
            self._reference = run_pass(engine, self.sample, self.case.throughput.head).answers
        return self._reference

    def metrics(self) -> dict[str, Metric]:
        """All that is measured by now."""
        found = [Metric("load_time", self.opened.load_s, "s", "info")]
        if self.opened.load_peak_gib is not None:
            found.append(Metric("load_peak", self.opened.load_peak_gib, "GiB", "info"))
        for timings in self._timings.values():
            found += throughput.metrics(timings, self.case.model.nominal_parameters, self.peak)
        for name, ready in self._ready.items():
            if name == "inductor":
                found += throughput.compile_metrics(ready)
        for name, done in self._passes.items():
            found += accuracy_metrics(self.case, name, done.answers)
        found.append(Metric("e2e_time", self._e2e_s(), "s", "info"))
        return {metric.name: metric for metric in found}

    @property
    def timed(self) -> bool:
        """Whether any engine was timed."""
        return bool(self._timings)

    def full_answers(self) -> dict[EngineName, Answers]:
        """The answers to all questions, by engine that was asked them."""
        return {name: done.answers for name, done in self._passes.items()}

    def notes(self) -> dict[str, str | int | float | bool | None]:
        """Facts beside the metrics."""
        notes: dict[str, str | int | float | bool | None] = {}
        ready = self._ready.get("inductor")
        if ready is not None and ready.first.cache is not None:
            notes["compile_cache"] = ready.first.cache
        for name, timings in self._timings.items():
            if timings.waited_fraction is not None:
                notes[f"cpu_waited_fraction_{PREFIX[name]}"] = round(timings.waited_fraction, 4)
        return notes

    def _full_pass(self, name: EngineName) -> Pass:
        if name not in self._passes:
            timings = self.time(name, _in_turn)
            total = timings.rounds[0]
            self._passes[name] = Pass(timings.answers, total.tokens, total.core_s, total.whole_s)
        return self._passes[name]

    def _e2e_s(self) -> float:
        """Seconds of every phase that ran, from the start of the load on."""
        phases = [self.opened.load_s]
        phases += [ready.compile_s + ready.warmup_s for ready in self._ready.values()]
        phases += [r.whole_s for timings in self._timings.values() for r in timings.rounds]
        if not self.full_pass:
            phases += [done.whole_s for done in self._passes.values()]
        return sum(phases)

    def _progress_of(self, what: str) -> Progress | None:
        return self.progress(f"{self.case.id}: {what}") if self.progress else None


def accuracy_metrics(case: Case, name: EngineName, answers: Answers) -> list[Metric]:
    """Micro accuracy (correct / asked) as the case scores it, and by both scorings."""
    if answers.labels is None:
        return []
    prefix = f"acc_{PREFIX[name]}"
    scorings: tuple[Scoring, ...] = ("full-vocab", "letters")
    by_scoring = {
        scoring: correct / asked
        for scoring in scorings
        for correct, asked in [accuracy(answers, scoring)]
    }
    return [
        Metric(prefix, by_scoring[case.mmlu.scoring], "fraction", "higher"),
        Metric(f"{prefix}_full_vocab", by_scoring["full-vocab"], "fraction", "info"),
        Metric(f"{prefix}_letters", by_scoring["letters"], "fraction", "info"),
        Metric(f"{prefix}_questions", len(answers.ids), "questions", "info"),
    ]


def _in_turn(timed_round: Callable[[], None], rounds: int) -> None:
    for _ in range(rounds):
        timed_round()
