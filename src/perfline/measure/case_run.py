"""How is one case measured in one session: what is loaded, run and timed, and only once?

A ``CaseRun`` holds one opened case. The accuracy and the throughput tests ask it for answers and
timings; weights, questions, compilation and passes that they share are done at the first asking.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from perfline.cases.case import ENGINE_NAMES, Case, WeightsKind
from perfline.engines.device import Device
from perfline.engines.engine import (
    Clock,
    EngineName,
    Fingerprint,
    MeasuredDecoder,
    MeasuredEngine,
    Progress,
    run_pass,
)
from perfline.engines.telemetry import watch
from perfline.errors import (
    DataError,
    EngineError,
    MissingData,
    MissingRanks,
    NoDecode,
    NoFidelity,
    NoSharedPrefixes,
    RankError,
    clip,
)
from perfline.measure import decode as decoding
from perfline.measure import fidelity, throughput
from perfline.measure.accuracy import (
    AccuracyOptions,
    AccuracyPass,
    AccuracyRun,
    Coordinator,
    SharedRunner,
    accuracy_metrics,
    choose,
)
from perfline.measure.notices import Notices
from perfline.measure.parallel_rounds import AggregateTimings, Repeat, TimedRun
from perfline.measure.throughput import Ready, TimedRegion, Timings
from perfline.metrics import Metric, answered, pass_name
from perfline.tasks.answers import Answers
from perfline.tasks.prompts import Prompt, Subject, stratified_sample
from perfline.tasks.reference import PromptReference

if TYPE_CHECKING:
    from perfline.distributed.replica import Replica
    from perfline.engines import hf
    from perfline.engines.own_engine import OwnEngines
    from perfline.tasks.task import Task


SCORED = "_scored"  # behind a task's name: the fact that its letters are scored as continuations
_ALIKE = ("torch", "transformers")  # on all ranks that hold one model between them


class LoadedCase(Protocol):
    """A case whose model is on the device and whose prompts are made."""

    @property
    def prompts(self) -> Sequence[Prompt]:
        """Every question's prompt, of the case's first task."""

    @property
    def more(self) -> Mapping[str, Sequence[Prompt]]:
        """Those of its other tasks, by name."""

    @property
    def absent(self) -> Mapping[str, str]:
        """Why those of other tasks than the first are not there, by name, and how to get them."""

    @property
    def load_s(self) -> float | None:
        """Seconds of the load; None where no engine of ours runs the model."""

    @property
    def own_load_s(self) -> Mapping[str, float]:
        """Seconds that it took to make each engine of the user's own, so far."""

    @property
    def load_peak_gib(self) -> float | None:
        """Peak memory of the load, GiB; None where the device does not count it."""

    @property
    def facts(self) -> Mapping[str, str]:
        """What was loaded, such as the weights' digest."""

    def engine(self, name: EngineName) -> MeasuredEngine:
        """The engine of that name."""

    def shared(self, name: EngineName, say: Callable[[str], None]) -> SharedRunner | None:
        """What answers by shared prefixes; None or NoSharedPrefixes where there is no such path."""

    def decoder(self, name: EngineName) -> MeasuredDecoder:
        """What generates token by token with that engine; NoDecode where it cannot."""

    def in_step(self, do: str) -> AbstractContextManager[None]:
        """Have the ranks that hold the model with this one ``do`` the same meanwhile."""

    def full_precision(self) -> AbstractContextManager[fidelity.Logits]:
        """The model in fp32, meanwhile; NoFidelity where it cannot be had."""

    def own_precision(self) -> AbstractContextManager[fidelity.Logits]:
        """The model in the dtype that the case asks for; NoFidelity where no engine is ours."""

    def close(self) -> None:
        """Free the model."""


@dataclass(frozen=True)
class OpenCase:
    """``LoadedCase`` over a real model.

    Attributes:
        model: of the engines that are ours; None where none is asked for.
        own: the engines of the user's own, each made when it is first asked for.
        directory: where the weights are; None for random ones.
    """

    model: hf.Model | None
    own: OwnEngines
    device: Device
    directory: Path | None
    prompts: Sequence[Prompt]
    more: Mapping[str, Sequence[Prompt]]
    facts: Mapping[str, str]
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def load_s(self) -> float | None:
        """Seconds of the load; None where no engine of ours runs the model."""
        return None if self.model is None else self.model.load_s

    @property
    def own_load_s(self) -> Mapping[str, float]:
        """Seconds that it took to make each engine of the user's own, so far."""
        return self.own.load_s

    @property
    def load_peak_gib(self) -> float | None:
        """Peak memory of the load, GiB; None where the device does not count it."""
        return None if self.model is None else self.model.load_peak_gib

    def engine(self, name: EngineName) -> MeasuredEngine:
        """The engine of that name."""
        if self.model is None or name not in ENGINE_NAMES:
            return self.own.engine(name, self.directory, self.device)
        return self.model.engine(name)

    def shared(self, name: EngineName, say: Callable[[str], None]) -> SharedRunner | None:
        """What answers by shared prefixes; None or NoSharedPrefixes where there is no such path."""
        if self.model is None or name not in ENGINE_NAMES:
            return None
        from perfline.engines import upstream

        upstream.check_prefixes()
        from perfline.engines.shared_prefix import SharedPrefixRunner

        return SharedPrefixRunner(self.model.engine(name), say=say)

    def decoder(self, name: EngineName) -> MeasuredDecoder:
        """What generates token by token with that engine; NoDecode where it cannot."""
        from perfline.engines.decode import Decoder

        if self.model is None or name not in ENGINE_NAMES:
            raise NoDecode(f"no engine of perfline's is '{name}'")
        return Decoder(self.model, name)

    def in_step(self, do: str) -> AbstractContextManager[None]:
        """Have the ranks that hold the model with this one ``do`` the same meanwhile."""
        if self.model is None or self.model.replica is None:
            return nullcontext()
        return self.model.replica.in_step(do=do)

    def full_precision(self) -> AbstractContextManager[fidelity.Logits]:
        """The model in fp32, meanwhile; NoFidelity where it cannot be had."""
        from perfline.engines import full_precision

        return full_precision.full_precision(self._ours())

    def own_precision(self) -> AbstractContextManager[fidelity.Logits]:
        """The model in the dtype that the case asks for; NoFidelity where no engine is ours."""
        from perfline.engines import full_precision

        return full_precision.own_precision(self._ours())

    def close(self) -> None:
        """Free the model, and have the user's own engines free theirs."""
        try:
            self.own.close()
        finally:
            if self.model is not None:
                self.model.close()

    def _ours(self) -> hf.Model:
        if self.model is None:
            raise NoFidelity("no engine of perfline's runs the model")
        return self.model


def open_case(
    case: Case,
    device: Device,
    data_dir: Path | None,
    weights: WeightsKind,
    replica: Replica | None = None,
) -> OpenCase:
    """Find weights and questions, load the model, tokenise the prompts.

    Where no engine of ours is asked for, the model stays on disk: somebody's own engine loads it,
    when it is first asked for. ``replica``: the ranks that the model is split over; None for a
    model that is not. Raises MissingData (with the command that gets them), MissingRanks,
    DataError, EngineError, RankError. Where another task's questions than the first's are absent,
    that task alone is (``OpenCase.absent``).
    """
    from perfline.cases import data
    from perfline.engines import hf, own_engine
    from perfline.tasks import prompt_lengths

    if replica is None and case.parallel.tensor > 1:
        raise MissingRanks(
            f"case '{case.id}' splits its model over {case.parallel.tensor} ranks "
            "(parallel.tensor): type the same command after `torchrun --standalone "
            f"--nproc-per-node={case.parallel.tensor} -m`"
        )
    own = own_engine.OwnEngines(case)
    ours = not own.are_all
    directory: Path | None = None
    absent: dict[str, str] = {}
    if weights == "real":
        with replica.agreeing() if replica is not None else nullcontext():
            directory = data.find_weights(case, data_dir)
            asked, absent = _asked(case, data_dir)
            if ours:
                data.check_weights(directory)
    model = hf.load(case, device, directory, replica) if ours else None
    known: hf.Model | hf.Vocabulary = model or hf.vocabulary(case, device, directory)
    facts: dict[str, str] = {}
    if directory is None:
        limit = min(case.mmlu.max_prompt_tokens, known.positions)
        made = {case.task_names[0]: prompt_lengths.dummy_prompts(known.vocabulary, limit)}
    else:
        if ours or any(directory.glob("*.safetensors")):
            facts["weights"] = data.weights_digest(directory)
        for each in asked:
            facts |= each.facts()
        made = {each.task.name: each.prompts(case, directory, known) for each in asked}
    if model is not None:
        facts |= _facts_of(model, case)
    for built in made.values():
        _check_ids(case, built, known.vocabulary)
    if model is not None and replica is not None:
        here = {"case": case.digest(weights), **facts}
        try:
            replica.check_alike(here | {name: metadata.version(name) for name in _ALIKE})
        except RankError:
            replica.end()  # the others end it too: nobody is to wait for them
            model.close()
            raise
    first = made.pop(case.task_names[0])
    return OpenCase(model, own, device, directory, first, made, facts, absent)


def _facts_of(model: hf.Model, case: Case) -> dict[str, str]:
    """What is not as the case's file would have one expect."""
    found = {
        f"{name}{SCORED}": f"by continuation: {clip(why, 200)}"
        for name, why in model.without_letters.items()
    }
    if model.attention != case.model.attention:
        found["attention"] = model.attention
    if model.quantization:
        found["quantization"] = model.quantization
    return found


@dataclass(frozen=True)
class _Asked:
    """A task's rows, read before a model is loaded."""

    task: Task
    rows: Path
    subjects: tuple[Subject, ...]

    def facts(self) -> dict[str, str]:
        """What is asked."""
        from perfline.tasks import prompts

        name = self.task.name
        found = {name: prompts.question_set_digest(self.subjects)}
        if name != "mmlu":
            found[f"{name}_task"] = self.task.said
            found[f"{name}_data"] = prompts.data_digest(self.rows, self.task)
        return found

    def prompts(self, case: Case, weights: Path, known: hf.Model | hf.Vocabulary) -> list[Prompt]:
        """The prompts, in the tokens of what is ``known`` of the model."""
        from perfline.tasks import prompt_cache, prompts

        continued = self.task.name in known.without_letters
        asked = (self.subjects, known.encode, case.mmlu, known.positions, continued)
        build = partial(prompts.build_prompts, *asked)
        kept = prompt_cache.cached_prompts
        return kept(case, weights, self.subjects, build, continued=continued)


def _asked(case: Case, data_dir: Path | None) -> tuple[list[_Asked], dict[str, str]]:
    """The rows of the case's tasks, and by name why those of others than the first are absent.

    MissingData for the first's, which throughput needs, too; DataError for bad rows of any.
    """
    from perfline.tasks import prompts, task

    found: list[_Asked] = []
    absent: dict[str, str] = {}
    for each in task.tasks_of(case):
        try:
            folder = task.find_rows(case, each, data_dir)
        except MissingData as why:
            if not found:
                raise
            absent[each.name] = str(why)
            continue
        subjects = prompts.load_subjects(folder, task.shots(case, each), each)
        found.append(_Asked(each, folder, subjects))
    return found, absent


def _check_ids(case: Case, prompts: Sequence[Prompt], rows: int) -> None:
    """Refuse a prompt with a token that the model has no row for.

    A tokenizer may know more tokens than the model has rows, as those of published checkpoints do.
    """
    for prompt in prompts:
        ids = [prompt.ids, *(choice.ids for choice in prompt.continuations)]
        if (largest := max(int(each.max()) for each in ids)) >= rows:
            raise DataError(
                f"case '{case.id}': question {prompt.id} holds token {largest}, and the model has "
                f"{rows} rows: the tokenizer belongs to another model"
            )


ProgressOf = Callable[[str], Progress]


@dataclass
class CaseRun:
    """One case in one session.

    Attributes:
        peak: dense FLOP/s for the case's dtype, of all devices that hold the model; None where
            not known.
        advertised: bytes a second of the device's memory by its data sheet; None where not known.
        full_pass: throughput is timed over all questions, once, as published.
        say: takes lines for the user, such as that memory ran out and the run goes on with less.
        software: machine and versions, which a journal's answers belong to.
        notices: what other packages say meanwhile.
        coordinator: shares passes and rounds with other ranks; None where this process is alone.
        recorded: metrics of the user's own, by name.
    """

    case: Case
    loaded: LoadedCase
    device: Device
    peak: float | None = None
    advertised: float | None = None
    full_pass: bool = False
    clock: Clock = time.perf_counter
    progress: ProgressOf | None = None
    say: Callable[[str], None] = lambda line: None
    options: AccuracyOptions = field(default_factory=AccuracyOptions)
    software: Mapping[str, str] = field(default_factory=dict)
    notices: Notices = field(default_factory=Notices)
    coordinator: Coordinator | None = None
    recorded: dict[str, Metric] = field(default_factory=dict)
    _ready: dict[EngineName, Ready] = field(default_factory=dict)
    _runs: dict[str, AccuracyRun] = field(default_factory=dict)  # by ``metrics.answered``
    _passes: dict[str, AccuracyPass] = field(default_factory=dict)
    _timings: dict[EngineName, Timings] = field(default_factory=dict)
    _decoded: dict[EngineName, decoding.Decoded] = field(default_factory=dict)
    _of_all: dict[EngineName, AggregateTimings] = field(default_factory=dict)
    _reference: Answers | None = None
    _fidelity: fidelity.Fidelity | None = None
    _fingerprints: dict[EngineName, Fingerprint] = field(default_factory=dict)

    @property
    def sample(self) -> list[Prompt]:
        """The fixed, length-stratified sample that throughput is timed over."""
        prompts = self.loaded.prompts
        chosen = stratified_sample([p.tokens for p in prompts], self.case.throughput.sample)
        return [prompts[index] for index in chosen]

    @property
    def workload(self) -> dict[str, str | int | float | bool | None]:
        """What throughput is timed over; sessions of different workloads do not compare."""
        prompts = self.loaded.prompts if self.full_pass else self.sample
        return {
            "questions": len(prompts),
            "tokens": sum(prompt.tokens for prompt in prompts),
            "full_pass": self.full_pass,
        }

    def ready(self, name: EngineName) -> Ready:
        """The engine compiled and warm; done once."""
        if name not in self._ready:
            engine = self.loaded.engine(name)
            spec = self.case.throughput
            self._ready[name] = throughput.make_ready(engine, self.sample, spec, self.clock)
        return self._ready[name]

    def fingerprint(self, name: EngineName) -> Fingerprint | None:
        """What runs in a forward of the sample's middle prompt; done once. None: not known."""
        if name not in self._fingerprints:
            ready, sample = self.ready(name), self.sample
            found = self.loaded.engine(name).fingerprint(
                throughput.middle(sample),
                self.case.throughput.head,
                (ready.first, ready.later),
                sum(prompt.tokens for prompt in sample),
            )
            if found is None:
                return None
            self._fingerprints[name] = found
        return self._fingerprints[name]

    @property
    def fingerprints(self) -> Mapping[str, Fingerprint]:
        """What is known of that, by engine; ``<engine> decode``: while it generates tokens."""
        decoded = {
            each.fingerprint_name: found
            for each in self._decoded.values()
            if (found := each.fingerprint) is not None
        }
        return self._fingerprints | decoded

    def answer_all(
        self,
        name: EngineName,
        certain: Callable[[Answers, int, int], bool] | None = None,
        task: str | None = None,
    ) -> AccuracyPass:
        """Answer the questions of a task that the options ask for; done once.

        Without a task it is the case's first. ``certain`` says when a sequential run may stop.
        Under ``--full-pass`` the first task's answers are those of the timed pass: every prompt by
        itself, the head at all positions.
        """
        task = self.case.task_names[0] if task is None else task
        word = answered(name, task)
        if word not in self._passes:
            if self.full_pass and task == self.case.task_names[0]:
                timings = self.time(name, in_turn)
                answers = timings.answers
                done = AccuracyPass(answers, len(answers.ids), "plain")
            else:
                run = self._runs[word] = self._accuracy_run(word)
                if self.coordinator is not None:
                    self.coordinator.prepare(self.case.id, word)
                done = run.answer(self.prompts_of(word), certain)
            self._passes[word] = replace(done, task=task)
        return self._passes[word]

    def prompts_of(self, word: str) -> Sequence[Prompt]:
        """The prompts that the answers ``word`` (``metrics.answered``) are given to; MissingData.

        Of two ranks, one may lack what the other has.
        """
        _, task = self._answered[word]
        if why := self.loaded.absent.get(task):
            raise MissingData(why)
        first = task == self.case.task_names[0]
        return self.loaded.prompts if first else self.loaded.more[task]

    @property
    def _answered(self) -> dict[str, tuple[EngineName, str]]:
        """{word: (engine, task)} of all that the case may be asked."""
        names = dict.fromkeys((*ENGINE_NAMES, *self.case.engine_names))
        return {answered(n, task): (n, task) for n in names for task in self.case.task_names}

    def fidelity(self) -> fidelity.Fidelity:
        """What the model computes in fp32, every way, and its own dtype's drift; NoFidelity.

        Done once.
        """
        if self._fidelity is None:
            with self.loaded.in_step("fidelity"):
                prompts = fidelity.sample(self.case, self.loaded.prompts)
                ours = [name for name in self.case.engine_names if name in ENGINE_NAMES]
                shared = not self.options.plain
                with self.loaded.full_precision() as model:
                    found = fidelity.measure(model, ours, prompts, self.clock, shared)
                if found.rounded:
                    with self.loaded.own_precision() as own:
                        found = fidelity.with_drift(found, own, ours, prompts, self.clock)
                layers = self.case.fidelity.layers
                if self.case.model.precision != "fp32" or layers is not None:  # engines begin anew
                    self._compile_anew()
                self._fidelity = replace(found, first_layers=layers)
        return self._fidelity

    def helper(self, word: str) -> AccuracyRun:
        """What gives the answers ``word`` for another rank, compiled and warm; done once."""
        if word not in self._runs:
            run = self._accuracy_run(word)
            run.warm_up(choose(self.prompts_of(word), self.options.questions))
            if why := run.engine.not_compiled():
                raise EngineError(f"case '{self.case.id}': {why}")
            self._runs[word] = run
        return self._runs[word]

    def free(self) -> None:
        """Close the model; what was measured stays, and ``loaded`` may be opened anew."""
        self._compile_anew()
        self.loaded.close()

    def forget_journals(self) -> None:
        """The answers are in a record: their journals have done their work."""
        for name in self._passes:
            if name in self._runs:
                self._runs.pop(name).forget()

    def rounds(self, name: EngineName) -> int:
        """How many rounds ``time`` will run."""
        return 1 if self.full_pass else self.case.throughput.rounds

    def timed_run(self, name: EngineName) -> TimedRun:
        """What times this rank's rounds beside those of other ranks."""
        return TimedRun(
            case=self.case,
            engine=self.loaded.engine(name),
            prompts=self.sample,
            ready=lambda: self.ready(name),
            device=self.device,
            identity=self._identity(name),
            clock=self.clock,
        )

    def time(self, name: EngineName, repeat: Repeat) -> Timings:
        """Time the engine: ``repeat(round, n)`` runs the rounds (pytest-benchmark does, say).

        The device's health is read during every round; see ``telemetry``. Beside other ranks the
        timings, and what getting ready took, are those of all.
        """
        if name in self._timings:
            return self._timings[name]
        if self.coordinator is not None:
            of_all = self.coordinator.time(self.timed_run(name), repeat)
            self._of_all[name] = of_all
            self._timings[name], self._ready[name] = of_all.timings, of_all.timings.ready
            return of_all.timings
        ready = self.ready(name)
        prompts = list(self.loaded.prompts) if self.full_pass else self.sample
        progress = self._progress_of(f"{name} full pass") if self.full_pass else None
        with watch(self.device) as health:
            region = TimedRegion(
                self.loaded.engine(name),
                prompts,
                self.case.throughput.head,
                ready if not self.full_pass else throughput.once(ready),
                self.clock,
                progress,
                health,
            )

            def timed_round() -> None:
                region.round()

            repeat(timed_round, self.rounds(name))
            self._timings[name] = region.finish()
        return self._timings[name]

    def decode(self, name: EngineName, repeat: Repeat) -> decoding.Decoded:
        """Generate token by token in timed rounds; done once. NoDecode where the engine cannot.

        Its tokens are held to what is likeliest by the eager engine's forward.
        """
        if name in self._decoded:
            return self._decoded[name]
        work = self.decode_work(name)
        ready = work.make_ready(self.case.throughput.min_round_s)
        with watch(self.device) as health:
            region = decoding.DecodeRegion(work, ready, health)

            def timed_round() -> None:
                region.round()

            repeat(timed_round, self.case.throughput.rounds)
            found = region.finish(lambda: self._memory_bandwidth, self.device.uncached_bytes())
        if self.case.fingerprint:
            found = replace(found, fingerprint=work.fingerprint(ready))
        eager = self.loaded.decoder("eager")
        others, compared = decoding.tokens_apart(found.given, work.forms, eager)
        found = replace(found, others=tuple(others), compared=compared)
        self._compile_anew()
        self._decoded[name] = found
        return found

    @property
    def token_times(self) -> Mapping[EngineName, tuple[float, ...]]:
        """Seconds a token by its position, of each engine that decoded: see there."""
        return {name: decoded.token_times_s for name, decoded in self._decoded.items()}

    def decode_work(self, name: EngineName) -> decoding.Work:
        """What that engine generates; NoDecode where it cannot."""
        decoder = self.loaded.decoder(name)
        tokens = decoding.tokens_of(self.case.decode, self.device)
        forms, lines = decoding.forms(self.case, self.loaded.prompts, tokens, decoder.positions)
        if not decoder.static:
            lines.append(f"{self.case.id}, {name}: decode has a cache that grows, not a static one")
        self.notices.once(lines)
        return decoding.Work(self.loaded.engine(name), decoder, tuple(forms), tokens, self.clock)

    @cached_property
    def _memory_bandwidth(self) -> float | None:
        return self.device.memory_bandwidth()

    def _compile_anew(self) -> None:
        """What was compiled is gone: who needs an engine ready from now on makes it so."""
        self._ready.clear()

    @property
    def _readied(self) -> dict[EngineName, Ready]:
        """What getting ready took, of each engine; of one that was timed, before it was."""
        return self._ready | {name: timings.ready for name, timings in self._timings.items()}

    def reference(self, name: EngineName) -> Answers | None:
        """The eager engine's answers to the prompts that ``name`` was timed over.

        Those of our own model, whether or not it was timed; None where an engine of the user's own
        was, and the case does not run ``eager`` beside it.
        """
        if name not in ENGINE_NAMES and "eager" not in self.case.engine_names:
            return None
        if "eager" in self._timings:
            return self._timings["eager"].answers
        if self._reference is None:
            engine = self.loaded.engine("eager")
            prompts = self.loaded.prompts if self.full_pass else self.sample
            self._reference = run_pass(engine, prompts, "last", self.clock).answers
        return self._reference

    def metrics(self) -> dict[str, Metric]:
        """All that is measured by now."""
        found = []
        if self.loaded.load_s is not None:
            found.append(Metric("load_time", self.loaded.load_s, "s", "info"))
        for name, seconds in self.loaded.own_load_s.items():
            found.append(Metric(f"load_time_{name}", seconds, "s", "info"))
        if self.loaded.load_peak_gib is not None:
            found.append(Metric("load_peak", self.loaded.load_peak_gib, "GiB", "info"))
        for timings in self._timings.values():
            of_all = self._of_all.get(timings.engine)
            replicas = 1 if of_all is None else len(of_all.names)
            peak = None if self.peak is None else self.peak * replicas
            found += throughput.metrics(timings, self.case.model.nominal_parameters, peak)
            found += [] if of_all is None else of_all.metrics()
        for name, ready in self._readied.items():
            if name == "inductor":
                found += throughput.compile_metrics(ready)
        if self._fidelity is not None:
            found += self._fidelity.metrics()
        for decoded in self._decoded.values():
            found += decoded.metrics()
            if decoded.mbu and self.advertised is not None:
                gb_per_s = self.advertised / 1e9
                found.append(Metric("decode_bandwidth_advertised", gb_per_s, "GB/s", "info"))
        for name, done in self._passes.items():
            found += accuracy_metrics(self.case, name, done, self.peak)
        found.append(Metric("e2e_time", self._e2e_s(), "s", "info"))
        return {metric.name: metric for metric in found} | self.recorded

    @property
    def timed_engines(self) -> Collection[EngineName]:
        """The engines that were timed."""
        return self._timings

    @property
    def timed(self) -> bool:
        """Whether any engine was timed, or a metric of the user's own recorded."""
        return bool(self._timings or self._decoded or self.recorded)

    def full_answers(self) -> dict[str, Answers]:
        """The answers to all questions, by ``metrics.answered``."""
        return {name: done.answers for name, done in self._passes.items()}

    @property
    def computed(self) -> Mapping[str, PromptReference]:
        """What the model computed in fp32, by question; empty where that was not asked."""
        return {} if self._fidelity is None else self._fidelity.prompts

    @property
    def ways(self) -> Sequence[str]:
        """The ways by which it did, beside the eager one."""
        return () if self._fidelity is None else tuple(self._fidelity.ways)

    def notes(self) -> dict[str, str | int | float | bool | None]:
        """Facts beside the metrics."""
        notes: dict[str, str | int | float | bool | None] = {}
        ready = self._readied.get("inductor")
        if ready is not None and ready.first.cache is not None:
            notes["compile_cache"] = ready.first.cache
        for name, done in self._passes.items():
            notes[f"accuracy_path_{pass_name(name)}"] = done.path
            if done.resumed:
                notes[f"accuracy_resumed_{pass_name(name)}"] = done.resumed
            if self.coordinator is not None:
                tensor, given = self.case.parallel.tensor, done.by_replica
                by = "rank" if tensor == 1 else "replica"
                notes[f"accuracy_ranks_{pass_name(name)}"] = done.replicas * tensor
                notes[f"accuracy_questions_by_{by}_{pass_name(name)}"] = ", ".join(
                    str(given.get(each, 0)) for each in range(done.replicas)
                )
            if done.halvings:
                notes[f"accuracy_halvings_{pass_name(name)}"] = done.halvings
        for name, timings in self._timings.items():
            notes |= _timing_notes(timings, pass_name(name))
            if timings.joules_error_fraction is not None:
                error = round(timings.joules_error_fraction, 4)
                notes[f"tokens_per_joule_error_fraction_{pass_name(name)}"] = error
        for name, decoded in self._decoded.items():
            notes |= _timing_notes(decoded, f"decode_{pass_name(name)}")
            notes |= {
                "decode_tokens": decoded.tokens,
                "decode_prompt_lengths": ", ".join(
                    str(ids.shape[1]) for form in decoded.forms for ids in form.prompts
                ),
                f"decode_cache_{pass_name(name)}": "static" if decoded.static else "growing",
            }
        for of_all in self._of_all.values():
            notes |= of_all.notes(self.case.gates)
        return notes

    def _accuracy_run(self, word: str) -> AccuracyRun:
        name, task = self._answered[word]

        def without(why: NoSharedPrefixes) -> None:
            line = f"{self.case.id}, {name}: each question by itself, as --plain does, since {why}"
            self.notices.once([line])
            self.say(line)

        if why := self.loaded.facts.get(f"{task}{SCORED}"):
            self.notices.once([f"{self.case.id}: letters of {task} are scored {why}"])
        runner: SharedRunner | None = None
        if not self.options.plain:
            try:
                runner = self.loaded.shared(name, self.say)
            except NoSharedPrefixes as why:
                without(why)
        return AccuracyRun(
            engine=self.loaded.engine(name),
            oracle=self.loaded.engine("eager" if name in ENGINE_NAMES else name),
            runner=runner,
            options=self.options,
            identity=self._identity(word),
            ready=lambda: self.ready(name),
            without=without,
            clock=self.clock,
            progress=self._progress_of(f"{word} accuracy"),
            coordinator=self.coordinator,
        )

    def _identity(self, name: str) -> dict[str, str]:
        """What a journal's answers belong to, and what every rank has to have alike."""
        return {
            **self.software,
            **{key: str(value) for key, value in self.loaded.facts.items()},
            "case": self.case.id,
            "digest": self.case.digest(),
            "engine": name,
        }

    def _e2e_s(self) -> float:
        """Seconds of every phase that ran, from the start of the load on."""
        phases = [self.loaded.load_s or 0.0, *self.loaded.own_load_s.values()]
        phases += [ready.compile_s + ready.warmup_s for ready in self._readied.values()]
        phases += [timings.timed_s for timings in self._timings.values()]
        phases += [] if self._fidelity is None else [self._fidelity.seconds]
        for decoded in self._decoded.values():
            phases += [decoded.ready.compile_s, decoded.ready.warmup_s, decoded.timed_s]
        if not self.full_pass:
            phases += [done.warmup_s + done.whole_s for done in self._passes.values()]
        return sum(phases)

    def _progress_of(self, what: str) -> Progress | None:
        return self.progress(f"{self.case.id}: {what}") if self.progress else None


def _timing_notes(timed: Timings | decoding.Decoded, what: str) -> dict[str, str | int | float]:
    """What was seen while rounds were timed, by the names that ``accept.waited_note`` knows."""
    notes: dict[str, str | int | float] = {}
    if timed.waited_fraction is not None:
        notes[f"cpu_waited_fraction_{what}"] = round(timed.waited_fraction, 4)
    if timed.watched:
        notes[f"rounds_thrown_out_{what}"] = len(timed.thrown_out)
    if timed.thrown_out:
        notes[f"thrown_out_{what}"] = timed.thrown_out[0]
    return notes


def in_turn(
    timed_round: Callable[[], None], rounds: int, before: Callable[[], None] | None = None, /
) -> None:
    """Run the rounds one after the other, with nothing beside them: a ``Repeat``."""
    for _ in range(rounds):
        if before is not None:
            before()
        timed_round()
