"""What does one launch of a side do when it is asked: open, time a round, answer questions?

It measures through the same code as the suite (``case_run``, ``throughput``): what
``perfline compare`` settles is what the suite has measured.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from perfline.cases.case import (
    ENGINE_NAMES,
    Case,
    EngineName,
    engine_name,
    load_cases,
    with_settings,
)
from perfline.compare import messages, wire
from perfline.compare.model import (
    FidelityNumbers,
    GeneratedTokens,
    Ready,
    References,
    Round,
    Turn,
    Workload,
)
from perfline.distributed.group import Group
from perfline.distributed.replica import Replica
from perfline.engines.device import Device, current_device
from perfline.engines.engine import Fingerprint, Profile, run_pass
from perfline.engines.environment import Environment, collect, packages
from perfline.engines.telemetry import Watch, watch
from perfline.errors import DeviceMemory, EngineError, NoFidelity, WorkerError
from perfline.fields import Node, as_json
from perfline.measure.accuracy import AccuracyOptions
from perfline.measure.case_run import CaseRun, LoadedCase, open_case
from perfline.measure.decode import Decoded, DecodeRegion, Work
from perfline.measure.fidelity import references, sample
from perfline.measure.parallel_accuracy import RankCoordinator
from perfline.measure.parallel_rounds import Rounds, TimedRun, combine, worst_ready
from perfline.measure.rank_worker import RankWorker, obey_all
from perfline.measure.throughput import Timings, no_work
from perfline.tasks.answers import Answers, no_answers
from perfline.tasks.prompts import Prompt
from perfline.tasks.reference import distances
from perfline.tasks.sampling import tier_order

_LIKELIEST = 8  # tokens told of a position: one that is no tie of the first need not be known


@dataclass
class Launch:
    """One side in one process, or in the first of several: loaded, compiled and warm.

    Attributes:
        coordinator: asks the other ranks; None where this process is alone.
    """

    workload: Workload
    case_run: CaseRun
    environment: Environment
    health: Watch = field(default_factory=Watch)
    coordinator: RankCoordinator | None = None
    _rounds: Rounds | None = None
    _decode: Work | None = None
    _others: tuple[int, ...] = ()
    _peaks: list[float] = field(default_factory=list)
    _profiles: list[Callable[[], Profile]] = field(default_factory=list)
    _watching: ExitStack = field(default_factory=ExitStack)  # to the end of the process

    @classmethod
    def open(cls, request: Node, group: Group | None = None) -> Launch:
        """Load what the request's ``workload`` says, with its ``settings`` (``key=value``).

        ``group``: the ranks that this process is the first of.
        """
        opening = _Opening(request.child("workload"), request.texts("settings"))
        environment = collect(Path.cwd())  # as pytest does: before the case sets the threads
        coordinator = None if group is None else RankCoordinator(group)
        replica = None
        if coordinator is not None:
            asked = {key: request.data[key] for key in ("workload", "settings")}
            coordinator.group.post({"do": "launch", **asked})
            replica = coordinator.open(opening.case)
        case_run = opening.case_run(opening.case, opening.open(opening.case, replica))
        if coordinator is not None:
            environment = environment.of_ranks(coordinator.group.hosts())
        launch = cls(opening.workload, case_run, environment, coordinator=coordinator)
        launch.health = launch._watching.enter_context(watch(case_run.device))
        return launch

    @property
    def engine(self) -> EngineName:
        """The engine that both sides run, by its name in metrics."""
        return engine_name(self.workload.engine)

    @cached_property
    def _timed(self) -> TimedRun:
        """What times its turns: made once, as a turn is short."""
        return self.case_run.timed_run(self.engine)

    def answer(self, word: str, request: Node) -> dict[str, object]:
        """The JSON answer to one request of ``wire``."""
        words: dict[str, Callable[[], dict[str, object]]] = {
            "ready": lambda: messages.ready_json(self.ready()),
            "round": lambda: as_json(self.round(request.build(Turn), _pids(request))),
            "answers": lambda: messages.answers_json(self.answers(_task(request))),
            "generated": lambda: {"generated": as_json(self.generated())},
            "fidelity": lambda: {
                "fidelity": as_json(self.fidelity(request.get("references", References)))
            },
            "peak": lambda: {"gib": self.peak_memory_gib()},
            "fingerprint": lambda: {"fingerprint": as_json(self.fingerprint())},
            "profile": lambda: {"profiled": self.profile(request.get("trace", str))},
            "profiles": lambda: {"profiles": as_json(self.profiles())},
        }
        if word not in words:
            raise WorkerError(f"was asked for '{word}'; expected {', '.join(words)}")
        with _memory_in_words(self.case_run.device, f"'{word}'"):
            return words[word]()

    def ready(self) -> Ready:
        """Compile and warm up, and say what that took."""
        case_run, name, case = self.case_run, self.engine, self.case_run.case
        sample = case_run.sample
        if self.coordinator is not None:  # the others get ready meanwhile
            self._rounds = Rounds(self.coordinator, self._timed, self.health)
        kind = self.workload.kind
        done, pass_s = no_work(), 0.0
        if kind != "decode":
            done = case_run.ready(name)
            pass_s = done.warmup_s
            if done.later.graphs:  # a pass that still compiled tells not how long a pass takes
                engine = case_run.loaded.engine(name)
                pass_s = run_pass(engine, sample, case.throughput.head, case_run.clock).whole_s
        if kind != "prefill":
            whole = case_run.decode_work(name)
            self._decode = replace(whole, forms=whole.forms[:1])  # batch 1, the case's own lengths
            own = self._decode.make_ready(0.0, anew=kind == "decode")
            start = case_run.clock()
            self._decode.once()
            done, pass_s = done.joined(own), pass_s + case_run.clock() - start
        if self.coordinator is not None and self._rounds is not None:
            done = worst_ready(self._rounds.ready())
        if done.uncompiled:
            raise EngineError(f"case '{case.id}': {done.uncompiled}")
        if self.coordinator is not None:
            self._others = tuple(_others(self.coordinator.group))
        return Ready(
            pid=os.getpid(),
            device=self.environment.device,
            machine=self.environment.machine,
            context=self.environment.context,
            facts=case_run.loaded.facts,
            digest=case.digest(self.workload.weights),
            dtype=case.model.precision,
            prompts_digest=prompts_digest(sample),
            tokens=sum(prompt.tokens for prompt in sample),
            load_s=_load_s(case_run.loaded),
            compile_s=done.compile_s,
            warmup_s=done.warmup_s,
            pass_s=pass_s,
            graphs=done.first.graphs,
            graph_breaks=done.first.graph_breaks + done.later.graph_breaks,
            recompiles=done.later.graphs,
            parts=self._parts(),
            by_task=True,
            others=self._others,
            packages=packages(),
        )

    def _parts(self) -> int:
        """Into how many parts a pass can be cut: its prompts.

        Not one with other ranks or with decode in it, nor of an engine that is not ours, which may
        run prompts together, nor on a GPU, whose clocks and energy are read too seldom for that.
        """
        alone = self.coordinator is None and self.workload.kind == "prefill"
        ours, on_cpu = self.workload.engine in ENGINE_NAMES, self.case_run.device.kind == "cpu"
        return len(self.case_run.sample) if alone and ours and on_cpu else 1

    def round(self, turn: Turn, peers: Sequence[int] = ()) -> Round:
        """Time a turn; ``peers`` are processes that may be on the device as well."""
        start_s, kind = time.time(), self.workload.kind
        decoded = None
        if self._decode is not None:
            self.health.friends = peers
            region = DecodeRegion(
                self._decode, replace(no_work(), repeats=turn.repeats), self.health
            )
            region.round()
            decoded = region.finish(lambda: None, None)
            if decoded.peak_memory_gib is not None:
                self._peaks.append(decoded.peak_memory_gib)
            if kind == "decode":
                return _decoded_round(start_s, decoded)
        timings = self._timings(turn, peers)
        (done,) = timings.rounds
        if timings.peak_memory_gib is not None:
            self._peaks.append(timings.peak_memory_gib)
        faults = done.health.faults
        if self._rounds is not None:  # says whose device it is, and whose answers are wrong
            faults = (*filter(None, [done.health.throttled]), *timings.faults)
        recompiled = f"{timings.timed.graphs} graphs were compiled inside the round"
        return Round(
            start_s=start_s,
            tokens=done.tokens,
            core_s=done.core_s,
            whole_s=done.whole_s,
            waited_fraction=timings.waited_fraction,
            joules=done.health.joules,
            faults=(
                *faults,
                *([recompiled] if timings.timed.graphs else []),
                *(_decode_faults(decoded) if decoded is not None else ()),
            ),
            health=done.health.numbers,
            step_s=None if decoded is None else decoded.step_s,
            first_s=None if decoded is None else decoded.first_s,
        )

    def _timings(self, turn: Turn, peers: Sequence[int]) -> Timings:
        """A region of one round."""
        case_run, name = self.case_run, self.engine
        if self._rounds is not None:
            self._rounds.begin(turn.repeats, (*peers, os.getpid(), *self._others))
            self._rounds.before()
            self._rounds.round()
            own, replicas = self._rounds.finish()
            devices = self.workload.ranks
            return combine(replicas, own, devices, case_run.case.model.precision)
        self.health.friends = peers
        ready = replace(case_run.ready(name), repeats=turn.repeats)
        prompts = self._timed.prompts[turn.part :: turn.parts]
        region = replace(self._timed, prompts=prompts).region(ready, self.health)
        region.round()
        return region.finish()

    def answers(self, task: str = "") -> Answers:
        """The first ``questions`` of a task's fixed order, of the case's first where none is named.

        Of dummy weights, which know the first alone, at least the timed sample; none where the
        task's questions are absent. WorkerError where the case has no such task.
        """
        case, loaded = self.case_run.case, self.case_run.loaded
        known = {case.task_names[0]: loaded.prompts, **loaded.more}
        task = task or case.task_names[0]
        if task in loaded.absent:
            return no_answers()
        if task not in known:
            raise WorkerError(
                f"was asked for answers to task '{task}'; case '{case.id}' has {', '.join(known)}"
            )
        prompts = known[task]
        order = tier_order([prompt.id for prompt in prompts])[: self.workload.questions]
        asked = [prompts[index] for index in order]
        if not asked and self.workload.weights == "dummy":
            asked = self.case_run.sample  # their logits still compare
        if not asked:
            return no_answers()
        engine = self.case_run.loaded.engine(self.engine)
        return run_pass(engine, asked, "last", self.case_run.clock).answers

    def generated(self) -> list[GeneratedTokens]:
        """The tokens behind each prompt of decode, and what else was likely in their places."""
        assert self._decode is not None, "generated() without decode"
        eager, (form,) = self.case_run.loaded.decoder("eager"), self._decode.forms
        found = []
        for ids in form.prompts:
            tokens = self._decode.generate(form, ids).tokens[0]
            logits = eager.logits_after(np.concatenate([ids[0], tokens[:-1]]), len(tokens))
            if not np.isfinite(logits).all():
                raise EngineError(
                    f"case '{self.case_run.case.id}': logits are not finite in decode"
                )
            first = np.argsort(-logits, axis=1, kind="stable")[:, :_LIKELIEST]
            found.append(
                GeneratedTokens(
                    tokens=tuple(tokens.tolist()),
                    likeliest=tuple(map(tuple, first.tolist())),
                    logits=tuple(map(tuple, np.take_along_axis(logits, first, axis=1).tolist())),
                    largest=tuple(np.abs(logits).max(axis=1).tolist()),
                )
            )
        return found

    def fidelity(self, of_a: References) -> FidelityNumbers:
        """What the model computes in fp32, and how far from A's that is where it is given."""
        case_run = self.case_run
        try:
            with _memory_in_words(case_run.device, "the model in fp32"):
                found = case_run.fidelity()
        except (NoFidelity, DeviceMemory) as why:
            return FidelityNumbers(problem=str(why))
        prompts = sample(case_run.case, case_run.loaded.prompts)
        logits = {"eager": found.logits, **found.others}
        own = {name: references(found, name, prompts) for name in logits}
        apart = {
            name: {
                question: tuple(row.tolist())
                for question, row in distances(of_a[name], own[name], logits[name]).items()
            }
            for name in own
            if name in of_a
        }
        return FidelityNumbers(
            references=own,
            apart=apart,
            vocabulary=found.logits[prompts[0].id].shape[-1],
            variations=found.variations,
            most=found.most,
            layers_off=found.layers_off,
            seconds=found.seconds,
            drift=found.drift,
        )

    def peak_memory_gib(self) -> float | None:
        """The highest peak of any round so far; None before one, or where it is not counted."""
        return max(self._peaks, default=None)

    def fingerprint(self) -> Fingerprint | None:
        """What runs inside a forward of the sample's middle prompt.

        None of a model that is split over ranks, since one of them cannot run it alone.
        """
        case_run = self.case_run
        if case_run.case.parallel.tensor > 1:
            return None
        return case_run.fingerprint(self.engine)

    def profile(self, trace: str = "") -> bool:
        """One round under the profiler, of the sample's middle prompt; ``trace``: a path, or "".

        False, and nothing is run, where the fingerprint is None.
        """
        case_run = self.case_run
        if case_run.case.parallel.tensor > 1:
            return False
        by_length = sorted(case_run.sample, key=lambda prompt: len(prompt.ids))
        prompts = [by_length[len(by_length) // 2]]
        engine, head = case_run.loaded.engine(self.engine), case_run.case.throughput.head
        profile = engine.profile(prompts, head, Path(trace) if trace else None)
        if profile is not None:
            self._profiles.append(profile)
        return profile is not None

    def profiles(self) -> list[Profile]:
        """What was found in all profiled rounds."""
        return [profile() for profile in self._profiles]


class _Opening:
    """What a launch opens, on each of its ranks."""

    def __init__(self, workload: Node, settings: Sequence[str]) -> None:
        """CaseError for settings that are none; nothing is loaded yet."""
        self.workload = workload.build(Workload)
        (case,) = load_cases([self.workload.case], self.workload.case_dirs)
        pairs = [text.partition("=")[::2] for text in settings]
        # Ours load one model, which is all that a side runs; another engine loads its own.
        case = with_settings(case, pairs)
        self.case = case.with_engines([self.workload.engine], "--engine")
        self.device = current_device()

    def open(self, case: Case, replica: Replica | None) -> LoadedCase:
        """Load the model, or this rank's share of it, and make the prompts."""
        places = self.device, self.workload.data_dir, self.workload.weights
        with _memory_in_words(self.device, f"case '{case.id}'"):
            return open_case(case, *places, replica)

    def case_run(self, case: Case, loaded: LoadedCase) -> CaseRun:
        """What measures it; ranks on devices of two kinds are no one machine."""
        software, plain = {"machine": self.device.slug}, AccuracyOptions(plain=True)
        return CaseRun(case, loaded, self.device, software=software, options=plain)


@dataclass
class _Assistant(RankWorker):
    """What a rank beside the first has open."""

    def obey(self, group: Group, number: int, command: Mapping[str, Any]) -> None:
        """Do what rank 0 asks; a full device is told as one."""
        with _memory_in_words(current_device(), f"'{command['do']}'"):
            super().obey(group, number, command)


def assist(group: Group) -> None:
    """Be a rank beside the first, until the process is ended: take part in all that it times."""
    group.put(f"pid/{group.rank}", str(os.getpid()))
    command = wire.node(group.command()[1], group.name(0))
    opening = _Opening(command.child("workload"), command.texts("settings"))
    obey_all(group, _Assistant({opening.case.id: opening.case}, opening.open, opening.case_run))


def _decoded_round(start_s: float, decoded: Decoded) -> Round:
    """A round of decode alone: its steps are what is timed."""
    (done,) = decoded.rounds
    steps = sum(len(each.steps_s) for each in done.generated[""])
    return Round(
        start_s=start_s,
        tokens=steps,
        core_s=steps * decoded.step_s,
        whole_s=done.whole_s,
        waited_fraction=decoded.waited_fraction,
        faults=_decode_faults(decoded),
        health=done.health.numbers,
        first_s=decoded.first_s,
    )


def _decode_faults(decoded: Decoded) -> tuple[str, ...]:
    (done,) = decoded.rounds
    recompiled = f"{decoded.timed.graphs} graphs were compiled inside the round"
    return (*done.health.faults, *([recompiled] if decoded.timed.graphs else []))


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """``sha256:`` and 16 hex digits over ids and token ids of what is run, in order."""
    digest = hashlib.sha256()
    for row in (row for prompt in prompts for row in prompt.rows):
        digest.update(f"{row.id} {len(row.ids)} ".encode())
        digest.update(row.ids.astype("<i8").tobytes())
        if row.targets is not None:
            digest.update(row.targets.astype("<i8").tobytes())
    return f"sha256:{digest.hexdigest()[:16]}"


def _load_s(loaded: LoadedCase) -> float:
    return (loaded.load_s or 0.0) + sum(loaded.own_load_s.values())


def _others(group: Group) -> Iterator[int]:
    """The other ranks' processes."""
    for rank in range(1, group.ranks):
        yield int(group.wait_for(f"pid/{rank}", rank))


def _task(request: Node) -> str:
    """Whose questions are asked; an older parent asks the first task's, and names none."""
    return request.text("task") if "task" in request.data else ""


def _pids(request: Node) -> list[int]:
    return [int(text) for text in request.texts("peers") if text.isdecimal()]


def _memory_in_words(device: Device, what: str) -> AbstractContextManager[None]:
    from perfline.engines.torch_engine import memory_in_words  # transformers comes with it

    return memory_in_words(device, what)
