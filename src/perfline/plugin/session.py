"""What does one pytest session keep, and what can a test do with a case?

``Session`` holds the record that grows test by test; ``CaseUnderTest`` is the object that tests
read like the specification with: measure, then check.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from perfline import jsonfile
from perfline.baselines import judge, settling, suggestions
from perfline.baselines.accept import invalid
from perfline.baselines.baseline import Published
from perfline.baselines.judge import Against
from perfline.baselines.proposal import Terms
from perfline.baselines.settling import Made
from perfline.baselines.suggestions import Refused
from perfline.cases.case import Case, WeightsKind
from perfline.distributed.replica import Replica
from perfline.engines.device import Device
from perfline.engines.engine import Clock, EngineName, Fingerprint, MeasuredEngine
from perfline.engines.environment import (
    Environment,
    advertised_bandwidth,
    beyond_tested,
    peak_flops,
    today,
)
from perfline.errors import (
    DataError,
    DeviceMemory,
    EngineError,
    MetricError,
    NoDecode,
    NoFidelity,
    PerflineError,
    RecordError,
)
from perfline.fields import Scalar
from perfline.gates import fidelity, performance, verdict
from perfline.gates.verdict import Verdict
from perfline.measure import record
from perfline.measure.accuracy import AccuracyOptions, AccuracyPass, Coordinator
from perfline.measure.case_run import CaseRun, LoadedCase, ProgressOf, in_turn
from perfline.measure.decode import Decoded
from perfline.measure.fidelity import Fidelity
from perfline.measure.notices import Notices
from perfline.measure.parallel_rounds import Repeat
from perfline.measure.record import CaseRecord, Record
from perfline.measure.throughput import Timings
from perfline.metrics import Metric, answered, pass_name, suffix
from perfline.plugin import settle
from perfline.report import exports, table, text
from perfline.tasks.answers import Answers, StoredAnswers
from perfline.tasks.prompts import Prompt
from perfline.tasks.reference import Reference

Opener = Callable[..., LoadedCase]  # as case_run.open_case
_BESIDE_OTHERS = "PYTEST_XDIST_WORKER"  # in the environment of a worker
_Measured = TypeVar("_Measured")
_NOT_LOOKED_AT = Environment("unknown", "unknown", "unknown")  # a session that died before it was


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    data_dir: Path | None
    baselines: Path
    results: Path
    strict: bool
    full_pass: bool
    weights: WeightsKind
    accuracy: AccuracyOptions
    case_dir: str | None
    shown_from: Path  # paths in messages are relative to it
    ranks: int = 1  # of a torchrun job, on this host
    settle_minutes: float | None = None  # in all, for comparisons that settle verdicts on time

    @property
    def update_flags(self) -> str:
        """The flags with which ``perfline baselines update`` finds what this session used."""
        flags = [f"--run {self.shown(self.results)}"]
        if self.case_dir is not None:
            flags.append(f"--case-dir={self.case_dir}")
        if self.shown(self.baselines) != "baselines":
            flags.append(f"--baselines={self.shown(self.baselines)}")
        return " ".join(flags)

    @property
    def settle_flags(self) -> str:
        """The flags with which ``perfline compare`` finds what this session used."""
        flags = ["--dummy-weights"] if self.weights == "dummy" else []
        if self.data_dir is not None:
            flags.append(f"--data-dir={self.shown(self.data_dir)}")
        if self.case_dir is not None:
            flags.append(f"--case-dir={self.case_dir}")
        if self.ranks > 1:
            flags.append(f"--ranks={self.ranks}")
        return " ".join(flags)

    def shown(self, path: Path) -> str:
        """``path`` as a person here would type it."""
        return os.path.relpath(path, self.shown_from)


@dataclass(frozen=True)
class Tools:
    """What every case of a session is measured with.

    Attributes:
        notices: of the session.
        coordinator: shares passes and rounds with the other ranks of a torchrun job; None without.
        compare: runs ``perfline compare``, under ``--settle``.
    """

    opener: Opener
    environment: Environment
    device: Device
    clock: Clock
    progress: ProgressOf | None
    say: Callable[[str], None]
    notices: Notices = field(default_factory=Notices)
    coordinator: Coordinator | None = None
    compare: settle.Runner = settle.run_compare

    def settler(self, options: Options) -> settle.Settler | None:
        """What settles verdicts on time; None without ``--settle``."""
        if options.settle_minutes is None:
            return None
        return settle.Settler(
            60 * options.settle_minutes,
            options.results.parent / "settle",
            options.shown_from,
            options.settle_flags,
            self.compare,
            self.clock,
            self.say,
        )

    def open(self, case: Case, options: Options, replica: Replica | None = None) -> LoadedCase:
        """The case's model and prompts; ``replica``: the ranks that the model is split over."""
        places = options.data_dir, options.weights
        if replica is None:
            return self.opener(case, self.device, *places)
        return self.opener(case, self.device, *places, replica)

    def case_run(self, case: Case, loaded: LoadedCase, options: Options) -> CaseRun:
        """What measures an opened case."""
        environment = self.environment
        peak = peak_flops(environment.device, case.model.precision)
        return CaseRun(
            case=case,
            loaded=loaded,
            device=self.device,
            peak=None if peak is None else peak * case.parallel.tensor,
            advertised=advertised_bandwidth(environment.device),
            full_pass=options.full_pass,
            clock=self.clock,
            progress=self.progress,
            say=self.say,
            notices=self.notices,
            options=options.accuracy,
            software={
                key: environment.context[key]
                for key in ("torch", "transformers", "commit")
                if key in environment.context
            }
            | {"machine": environment.one_rank},  # any number of ranks goes on from a journal
            coordinator=self.coordinator,
        )


@dataclass
class _LastRun:
    """What the last run of a test said of its case."""

    verdicts: list[Verdict] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    absent: str = ""  # why the task that it asks is not


@dataclass
class Session:
    """One pytest session: what is open, what was measured."""

    options: Options
    environment: Environment | None = None
    _known: dict[str, Case] = field(default_factory=dict)
    _cases: dict[str, CaseRecord] = field(default_factory=dict)
    _skipped: dict[str, str] = field(default_factory=dict)
    _published: dict[str, Published] = field(default_factory=dict)
    _against: dict[str, Against] = field(default_factory=dict)
    _case_runs: dict[str, CaseRun] = field(default_factory=dict)
    _tests: dict[tuple[str, str], _LastRun] = field(default_factory=dict)  # by case and test
    _recorded: dict[tuple[str, str], str] = field(default_factory=dict)
    notices: Notices = field(default_factory=Notices)
    _kept: list[CaseRun] = field(default_factory=list)
    _tools: Tools | None = None
    _settler: settle.Settler | None = None
    _freed: set[str] = field(default_factory=set)  # cases whose model made room for a comparison
    _created: str = field(default_factory=today)
    _partial: bool = True
    _claimed: bool = False

    @property
    def measured(self) -> bool:
        """Whether any case was opened or failed."""
        return bool(self._cases)

    def claim(self) -> None:
        """Put an empty partial record in the place of an older session's.

        However this one ends, be it by a kill, what stands there is never taken for its own.
        """
        if not jsonfile.is_continued(self.options.results):
            self._write()
            self._claimed = True

    def start(self, case: Case, test: str) -> None:
        """A test begins. Where it did before (a rerun, a repetition), its last run counts."""
        if (case.id, test) in self._tests:
            name = test.rpartition("::")[2]
            self.notices.once([f"{name} was run again: its last run counts"])
        self._tests[case.id, test] = _LastRun()
        if case.id in self._cases:
            self._collect(case)

    def open(self, case: Case, tools: Tools) -> CaseRun:
        """Open ``case``; first of all see that baselines can be read and results written."""
        if _BESIDE_OTHERS in os.environ:
            raise PerflineError("one model at a time: run the perfline tests without pytest-xdist")
        options = self.options
        self._known[case.id] = case
        self.environment = environment = tools.environment
        self.notices.once(beyond_tested(environment.context))
        against = judge.against(options.baselines, environment, case, options.weights)
        against = against.relative(options.shown)
        self._against[case.id] = against
        if against.published is not None:
            self._published[case.id] = against.published
        record.check_writable(options.results)
        if not self.measured:
            self.claim()
        replica = None if tools.coordinator is None else tools.coordinator.open(case)
        case_run = tools.case_run(case, tools.open(case, options, replica), options)
        self._case_runs[case.id] = case_run
        self._tools, self._settler = tools, self._settler or tools.settler(options)
        self._skipped.pop(case.id, None)
        self._cases.setdefault(case.id, self._empty(case))
        return case_run

    def close(self, case: Case) -> None:
        """Free the case's model."""
        case_run = self._case_runs.pop(case.id, None)
        if case_run is not None:
            self._free(case_run)
        self._freed.discard(case.id)

    def reopen(self, case_run: CaseRun) -> None:
        """Load the case's model again where a comparison has had its place."""
        if case_run.case.id in self._freed and self._tools is not None:
            case_run.loaded = self._tools.open(case_run.case, self.options)
            self._freed.discard(case_run.case.id)

    def _free(self, case_run: CaseRun) -> None:
        if case_run.case.id in self._freed:
            return
        self._freed.add(case_run.case.id)
        try:
            case_run.free()
        except EngineError as error:  # one of the user's own: what it measured stands
            self.notices.once([str(error)])

    def settle(self, case_run: CaseRun, verdicts: Sequence[Verdict]) -> list[Verdict]:
        """The verdicts once what is open on time is settled by a comparison, under ``--settle``."""
        case, found = case_run.case, list(verdicts)
        then = Made.stored(self._against[case.id].stored)
        job = settling.job(verdicts, case.engines)
        if self._settler is None or then is None or job is None or not settle.worth(verdicts):
            return found
        now = self._made(case_run)
        a = settling.side_a(then, now)
        crept = {name: self._crept(case_run, name) for name in job.seconds}
        try:
            self._settler.check(a, then, now)
            self._free(case_run)
            compared = self._settler.compare(case, job, a)
            assert self.environment is not None
            settle.check_b(compared.found, now, self.environment.machine)
            for number, each in enumerate(found):
                if each.gate == "baseline" and each.metric in job.seconds:
                    against = compared, then, now, crept[each.metric]
                    found[number] = settle.settled(each, job, a, *against)
        except settle.SettleError as why:
            return [
                settle.unsettled(each, str(why))
                if each.gate == "baseline" and each.metric in job.seconds
                else each
                for each in verdicts
            ]
        return found

    def _crept(self, case_run: CaseRun, name: str) -> str:
        """That a metric has lost against its anchor, which no comparison with later code clears."""
        stored = self._against[case_run.case.id].stored
        values, since = ((), "") if stored is None else stored.anchor(name)
        if not values:
            return ""
        metric = case_run.metrics()[name]
        judged = performance.throughput_baseline(metric, values, case_run.case.gates)
        if judged.word != "regressed":
            return ""
        return f"yet it is {judged.change} since what was accepted on {since}: small steps add up"

    def _made(self, case_run: CaseRun) -> Made:
        assert self.environment is not None
        return Made.here(self.environment, case_run.loaded.facts)

    def against(self, case: Case) -> Against:
        """What ``case`` is compared with."""
        return self._against[case.id]

    def add(self, case: Case, case_run: CaseRun, verdicts: Sequence[Verdict], test: str) -> None:
        """Take over what a test measured, and write the record."""
        assert self.environment is not None
        environment = self.environment
        context = {**environment.context, **case_run.loaded.facts}
        accuracy: dict[str, StoredAnswers] = {
            name: stored
            for name, answers in case_run.full_answers().items()
            for stored in [
                judge.stored_answers(answers, self._created, context.get("commit"), context)
            ]
            if stored is not None
        }
        old, command = self._cases[case.id], self._settling(case, case_run, verdicts)
        if "settle_with" in old.notes and settling.job(verdicts, case.engines) is None:
            command = ""  # what settles a verdict on time is not lost to what only shows
        self._cases[case.id] = replace(
            old,
            workload=case_run.workload if case_run.timed else old.workload,
            # A case that was closed and opened again keeps what it measured the first time.
            metrics={**old.metrics, **case_run.metrics()},
            accuracy={**old.accuracy, **accuracy},
            notes={
                **old.notes,
                **case_run.notes(),
                **({} if self.options.case_dir is None else {"case_dir": self.options.case_dir}),
                **(
                    {}
                    if case_run.coordinator is None
                    else {"accuracy_hosts": case_run.coordinator.hosts}
                ),
                **({"settle_with": command} if command else {}),
            },
            facts=case_run.loaded.facts,
            reference=self._reference(case_run, context) or old.reference,
            fingerprints={**old.fingerprints, **case_run.fingerprints},
            not_asked={
                task: why for task, why in old.not_asked.items() if task in case_run.loaded.absent
            },
            token_times={**old.token_times, **case_run.token_times},
        )
        self._tests.setdefault((case.id, test), _LastRun()).verdicts += verdicts
        self._collect(case)
        self._write()
        if case_run.coordinator is None:
            case_run.forget_journals()
        else:  # torchrun may start the group again: what is answered need not be asked again
            self._kept.append(case_run)

    def _reference(self, case_run: CaseRun, context: Mapping[str, Scalar]) -> Reference | None:
        if not case_run.computed:
            return None
        about = {key: value for key, value in context.items() if key != "commit"}
        if (layers := case_run.case.fidelity.layers) is not None:
            about[judge.FIRST_LAYERS] = layers
        if case_run.ways:
            about[judge.WAYS] = ", ".join(case_run.ways)
        commit = context.get("commit")
        told = None if commit is None else str(commit)
        return Reference(self._created, told, "measured", about, case_run.computed)

    def claim_metric(self, case: Case, metric: str, test: str) -> None:
        """Note which test records a metric; MetricError where another one does already."""
        other = self._recorded.setdefault((case.id, metric), test)
        if other != test:
            raise MetricError(f"{metric}: {other} records it too; give one of them another name")

    def add_error(self, case: Case, test: str, line: str) -> None:
        """Note a test that failed; not where its verdicts say so already.

        That a case, or a task, is absent, which :meth:`add_skipped` or :meth:`add_not_asked` has
        been told before, is said once for all its tests.
        """
        last = self._tests.setdefault((case.id, test), _LastRun())
        told = last.verdicts and verdict.fails(verdict.worst(last.verdicts), self.options.strict)
        if not told:
            why = last.absent or self._skipped.get(case.id, "")
            last.errors.append(record.absence(why) if why else line)
        self._cases.setdefault(case.id, self._empty(case))
        self._collect(case)
        self._write_quietly()

    def add_skipped(self, case: Case, why: str) -> bool:
        """Note a case that could not be opened; False where that is known."""
        known, self._skipped[case.id] = self._skipped.get(case.id), why
        return known != why

    def add_not_asked(self, case: Case, task: str, why: str, test: str) -> bool:
        """Note a task that a test cannot ask, since its questions are absent; False where known."""
        self._tests.setdefault((case.id, test), _LastRun()).absent = why
        old = self._cases[case.id]
        self._cases[case.id] = replace(old, not_asked={**old.not_asked, task: why})
        self._write_quietly()
        return task not in old.not_asked

    def finish(self, *, partial: bool) -> None:
        """Write the record for the last time; nothing stays of a session that measured nothing."""
        if self.measured:
            self._partial = partial
            self._write_quietly()
        elif self._claimed and not partial and _BESIDE_OTHERS not in os.environ:
            with suppress(RecordError):
                jsonfile.withdraw(self.options.results, RecordError)
        for case_run in self._kept if not partial else ():
            case_run.forget_journals()

    def summary(self) -> list[str]:
        """The terminal section; empty where perfline had nothing to do."""
        if not self.measured and not self._skipped:
            return []
        if not self.measured:
            return [f"{name} was not measured: {why}" for name, why in self._skipped.items()]
        flags = self.options.update_flags
        return text.session_lines(
            self._record(), self._published, self._not_recorded(), flags, self._refused()
        )

    def markdown(self) -> str:
        """The step summary."""
        from perfline.report.markdown import markdown  # with the page's charts: at the end only
        from perfline.report.page_inputs import CaseInputs, Inputs

        record, options = self._record(), self.options
        cases = {n: CaseInputs(c, self._published.get(n)) for n, c in record.cases.items()}
        refused = self._refused()
        inputs = Inputs(None, record, cases, flags=options.update_flags, refused=refused)
        return markdown(inputs, strict=options.strict)

    def failure(self, case: Case, verdicts: Sequence[Verdict]) -> str:
        """The message of a test that did not pass."""
        assert self.environment is not None
        against = self._against[case.id]
        if against.stored is None and against.one_rank is not None and _of_answers(verdicts):
            against = against.one_rank
        origin = text.Origin(against.shown)
        newest = None if against.stored is None else against.stored.newest
        if newest is not None:
            origin = replace(origin, date=newest.date, commit=newest.commit, context=newest.context)
        case_run = self._case_runs[case.id]
        context = {**self.environment.context, **case_run.loaded.facts}
        flags = self.options.update_flags, self._settling(case, case_run, verdicts)
        return text.failure(
            verdicts, origin, context, case.id, *flags, lambda terms: self._invalid(case, terms)
        )

    def _not_recorded(self) -> dict[str, str]:
        """The cases that could not be opened, and of which the record does not tell."""
        told = {name for name, case in self._cases.items() if case.errors}
        return {name: why for name, why in self._skipped.items() if name not in told}

    def _refused(self) -> dict[str, Refused]:
        """Why ``perfline baselines update`` would refuse what was measured, by case."""
        root, run, whole = self.options.baselines, self.options.results, self._record()
        return {
            name: partial(suggestions.refusal, root, run, whole, case)
            for name, case in self._known.items()
            if name in whole.cases
        }

    def _invalid(self, case: Case, terms: Terms) -> str:
        """The same of what is known before the session's end: other tests may be to come."""
        root, run = self.options.baselines, self.options.results
        found = suggestions.candidate(root, run, self._record(), case, terms)
        return next(invalid(found), "")

    def _settling(self, case: Case, case_run: CaseRun, verdicts: Sequence[Verdict]) -> str:
        """The command that settles verdicts on time; empty where there is nothing to."""
        then = Made.stored(self._against[case.id].stored)
        job = settling.job(verdicts, case.engines) or settling.noiseless(verdicts, case.engines)
        if then is None or job is None:
            return ""
        a = settling.side_a(then, self._made(case_run))
        return "" if a.empty else settling.command(case.id, job, a, self.options.settle_flags)

    def _empty(self, case: Case) -> CaseRecord:
        weights = self.options.weights
        digest = case.digest(weights)
        tasks = case.tasks if case.tasks_named_in else ()
        return CaseRecord(case.id, case.title, digest, case.model.precision, weights, tasks=tasks)

    def _collect(self, case: Case) -> None:
        """Make the case's record say what the last run of each test said."""
        last = [each for (name, _), each in self._tests.items() if name == case.id]
        self._cases[case.id] = replace(
            self._cases[case.id],
            verdicts=tuple(found for each in last for found in each.verdicts),
            errors=tuple(dict.fromkeys(line for each in last for line in each.errors)),
        )

    def _record(self) -> Record:
        environment = self.environment or _NOT_LOOKED_AT
        return Record(self._created, self._partial, environment, self._cases, self.notices.all)

    def _write(self) -> None:
        record.save(self.options.results, self._record())

    def _write_quietly(self) -> None:
        # The session is already failing, or over: the first error is the one to show.
        try:
            self._write()
        except RecordError:
            return


@dataclass
class CaseUnderTest:
    """One case in one test."""

    session: Session
    opened: CaseRun  # its model may have made room for a comparison
    benchmark: Callable[[], Any]
    note: Callable[[str, object], None]  # one property of the test, for JUnit XML
    test: str  # its id
    _recorded: set[str] = field(default_factory=set)

    @property
    def case_run(self) -> CaseRun:
        """What measures the case, its model loaded."""
        self.session.reopen(self.opened)
        return self.opened

    def answer_all(self, engine: EngineName, task: str | None = None) -> AccuracyPass:
        """Answer every question of a task with ``engine``; skipped under ``--dummy-weights``.

        Without a task it is the case's first. Skipped, too, where its questions are absent; under
        ``--strict-verdicts`` that fails.
        """
        session, case = self.session, self.opened.case
        if session.options.weights == "dummy":
            pytest.skip("accuracy is not judged under --dummy-weights")
        task = case.task_names[0] if task is None else task
        if why := self.opened.loaded.absent.get(task):
            new = session.add_not_asked(case, task, why, self.test)
            if not session.options.strict:
                pytest.skip(why)
            told = why if new else f"the questions of task '{task}' are absent, as told above"
            pytest.fail(told, pytrace=False)
        word = answered(engine, task)
        return self.case_run.answer_all(engine, lambda *so_far: self._certain(word, *so_far), task)

    def fidelity(self) -> Fidelity:
        """Run a few prompts in fp32, by every way; ``missing`` where there can be no such run."""
        try:
            return self.case_run.fidelity()
        except (NoFidelity, DeviceMemory) as why:
            problem = f"{why}; `fidelity: {{prompts: 0}}` in the case's YAML leaves it out"
        self.check([Verdict(fidelity.WAYS, "missing", "paired", fidelity.UNIT, reason=problem)])
        raise AssertionError("missing neither failed nor skipped")

    def judge_fidelity(self, found: Fidelity) -> list[Verdict]:
        """Judge what the model computes by every way, and by what is stored of it."""
        return judge.model_numbers(found, self.case_run.loaded.facts, self._against)

    def fingerprint(self, engine: EngineName) -> Fingerprint:
        """Run one prompt once more and see what runs; skipped where the engine cannot tell."""
        found = self.case_run.fingerprint(engine)
        if found is None:
            pytest.skip(f"what runs inside of engine {engine} is not known")
        return found

    def judge_fingerprint(self, engine: EngineName, found: Fingerprint) -> list[Verdict]:
        """Judge what runs by what is stored of it."""
        timed = engine in self.case_run.timed_engines
        uncompiled = self.case_run.ready(engine).uncompiled
        return judge.what_runs(engine, found, timed, self._against, uncompiled)

    def time(self, engine: EngineName) -> Timings:
        """Time ``engine`` with pytest-benchmark's rounds; our numbers go to its ``extra_info``.

        Under ``--benchmark-disable`` it would run one round only, and it need not run any.
        """
        timings = self._in_rounds(lambda repeat: self.case_run.time(engine, repeat))
        if timings.answers.labels is None and self.session.options.weights == "real":
            raise DataError(f"case {self.case_run.case.id}: questions without labels")
        return timings

    def decode(self, engine: EngineName) -> Decoded:
        """Generate token by token, in rounds as those of ``time``; ``missing`` where it cannot."""
        try:
            return self._in_rounds(lambda repeat: self.case_run.decode(engine, repeat))
        except NoDecode as why:
            problem = f"{why}; `decode: {{tokens: 0}}` in the case's YAML leaves it out"
        name = f"decode{suffix(engine)}"
        self.check([Verdict(name, "missing", "baseline", "tok/s", reason=problem)])
        raise AssertionError("missing neither failed nor skipped")

    def judge_decode(self, decoded: Decoded) -> list[Verdict]:
        """Judge speed, first token, memory and compilation, and that the tokens are right."""
        run = self.case_run
        return judge.decode(run.case, decoded, run.workload, self._against)

    def _in_rounds(self, measure: Callable[[Repeat], _Measured]) -> _Measured:
        """What ``measure`` finds in pytest-benchmark's rounds."""
        used: list[Any] = []

        def repeat(
            timed_round: Callable[[], None],
            rounds: int,
            before: Callable[[], None] | None = None,
            /,
        ) -> None:
            benchmark = self.benchmark()
            if benchmark.cprofile:
                raise PerflineError(
                    "--benchmark-cprofile times one more round, under a profiler: leave it out"
                )
            if benchmark.disabled:
                in_turn(timed_round, rounds, before)
                return
            benchmark.pedantic(
                timed_round, setup=before, rounds=rounds, iterations=1, warmup_rounds=0
            )
            used.append(benchmark)

        found = measure(repeat)
        for benchmark in used:
            measured = self.case_run.metrics().values()
            benchmark.extra_info.update({exports.key(m): m.value for m in measured})
        return found

    @property
    def prompts(self) -> Sequence[Prompt]:
        """Every question's prompt."""
        return self.case_run.loaded.prompts

    def engine(self, name: EngineName) -> MeasuredEngine:
        """An engine of the case: its ``prepare``, ``forward`` and ``read``, for a prompt each."""
        return self.case_run.loaded.engine(name)

    def record(self, *metrics: Metric) -> None:
        """Record metrics of the user's own, then judge them as throughput is, and check.

        They stand in the record, the baseline and every report beside ours. MetricError for a name
        that is ours, or that this or another test has recorded, and where nothing is recorded.
        """
        case = self.case_run.case
        taken = {exports.key(each): name for name, each in self.case_run.metrics().items()}
        own = []
        for metric in metrics:
            if not isinstance(metric, Metric):
                found = " ".join(repr(metric).split())[:60]
                raise MetricError(f"case.record takes perfline.Metric, not {found}")
            own.append(replace(metric, own=True))
            self.session.claim_metric(case, metric.name, self.test)
            if metric.name in self._recorded:
                raise MetricError(f"{metric.name}: this test records it twice; record it once")
            self._recorded.add(metric.name)
            other = taken.setdefault(key := exports.key(metric), metric.name)
            if other != metric.name:
                raise MetricError(
                    f"{metric.name} and {other} would both be '{key}' in exports; rename one"
                )
        if not own:
            raise MetricError("case.record() was given no metric, and so would pass; give it one")
        self.case_run.recorded |= {metric.name: metric for metric in own}
        verdicts = [
            found
            for metric in own
            for found in judge.own_metric(case, metric, self.case_run.workload, self._against)
        ]
        if verdicts:
            self.check(verdicts)
        else:  # info alone: there is nothing to judge
            self.session.add(case, self.case_run, [], self.test)

    def against_published(self, engine: EngineName, done: AccuracyPass) -> list[Verdict]:
        """Judge the accuracy against the published figure."""
        metric = self.case_run.metrics()[f"acc_{pass_name(answered(engine, done.task))}"]
        published = self._against.published
        if published is None or metric.name not in published.metrics:
            pytest.skip(f"no accuracy of case {self.case_run.case.id} is published")
        figure = published.metrics[metric.name]
        if not figure.judged:
            pytest.skip(f"{metric.name}: {figure.value:g} is published, not judged: {figure.note}")
        return judge.accuracy_against_published(self.case_run.case, metric, done, published)

    def against_baseline(self, engine: EngineName, done: AccuracyPass) -> list[Verdict]:
        """Judge the answers, paired, against the stored ones."""
        word = answered(engine, done.task)
        metric = self.case_run.metrics()[f"acc_{pass_name(word)}"]
        return judge.accuracy_against_baseline(
            self.case_run.case, word, metric, done, self._against
        )

    def judge_timings(self, timings: Timings) -> list[Verdict]:
        """Judge throughput, memory and compilation, and that the answers are still right."""
        case = self.case_run.case
        assert self.session.environment is not None
        verdicts = judge.throughput(
            case,
            timings,
            self.case_run.metrics(),
            self.case_run.workload,
            self.session.environment,
            self._against,
        )
        reference = self.case_run.reference(timings.engine)
        return verdicts + judge.same_answers(case, timings, reference, self._against)

    def check(self, verdicts: Sequence[Verdict]) -> None:
        """Record the verdicts; fail or skip as the gravest says."""
        case, session = self.opened.case, self.session
        verdicts = session.settle(self.opened, verdicts)
        session.add(case, self.opened, verdicts, self.test)
        for name, value in _properties(case.id, verdicts).items():
            self.note(name, value)
        word = verdict.worst(verdicts)
        strict = session.options.strict
        if verdict.fails(word, strict):
            pytest.fail(session.failure(case, verdicts), pytrace=False)
        if verdict.skips(word, strict):
            pytest.skip(_skip_reason(verdicts))

    def _certain(self, word: str, answers: Answers, looks: int, asked_of: int) -> bool:
        """Whether a sequential run may stop: its paired verdict is out."""
        so_far = AccuracyPass(answers, asked_of, "", looks=looks)
        metric = Metric(f"acc_{pass_name(word)}", 0.0, "fraction", "higher")
        (found,) = judge.accuracy_against_baseline(
            self.case_run.case, word, metric, so_far, self._against
        )
        return found.word in ("ok", "improved", "regressed")

    @property
    def _against(self) -> Against:
        return self.session.against(self.opened.case)


def _of_answers(verdicts: Sequence[Verdict]) -> bool:
    """Whether stored answers are all that was compared with."""
    return all(each.metric.startswith("acc_") for each in verdicts)


def _properties(case: str, verdicts: Sequence[Verdict]) -> dict[str, object]:
    """What JUnit XML says of a test: every number with its unit in the name, every word."""
    found: dict[str, object] = {}
    for each in verdicts:
        if each.measured is not None:
            metric = Metric(each.metric, each.measured, each.unit, "info")
            found[f"{case}.{exports.key(metric)}"] = each.measured
        found[f"{case}.{each.metric}.{each.gate}"] = each.word
    return found


def _skip_reason(verdicts: Sequence[Verdict]) -> str:
    """The numbers that could not be judged, on one line."""
    word = verdict.worst(verdicts)
    open_ones = [v for v in verdicts if v.word == word]
    numbers = ", ".join(
        f"{v.metric} {table.number(v.measured, v.unit)} {table.unit_shown(v.unit)}"
        for v in open_ones
        if v.measured is not None
    )
    told = open_ones[0].reason
    return f"{word}: {numbers} ({told})" if numbers else f"{word}: {told}"
