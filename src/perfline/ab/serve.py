"""What does one launch of a side do when it is asked: open, time a round, answer questions?

It measures through the same code as the suite (``bench``, ``throughput``): what
``perfline compare`` settles is what the suite has measured.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from perfline.ab import messages
from perfline.ab.nouns import Ready, Round, Workload
from perfline.answers import Answers, no_answers
from perfline.bench import Bench, open_case
from perfline.case import load_cases, with_settings
from perfline.device import Device, current_device
from perfline.engine import run_pass
from perfline.environment import Environment, collect
from perfline.errors import WorkerError
from perfline.jsonfile import Node
from perfline.mmlu import Prompt
from perfline.telemetry import Watch, watch
from perfline.throughput import Stopwatch
from perfline.tiers import tier_order


@dataclass
class Launch:
    """One side in one process: loaded, compiled and warm."""

    workload: Workload
    bench: Bench
    environment: Environment
    health: Watch = field(default_factory=Watch)
    _peaks: list[float] = field(default_factory=list)
    _watching: ExitStack = field(default_factory=ExitStack)  # to the end of the process

    @classmethod
    def open(cls, request: Node) -> Launch:
        """Load what the request's ``workload`` says, with its ``settings`` (``key=value``)."""
        workload = messages.workload(request.child("workload"))
        settings = [tuple(text.partition("=")[::2]) for text in request.texts("settings")]
        (case,) = load_cases([workload.case], workload.case_dirs)
        case = with_settings(case, [(key, text) for key, text in settings])
        device = current_device()
        with _memory_in_words(device, f"case '{case.id}'"):
            opened = open_case(case, device, workload.data_dir, workload.weights)
        environment = collect(Path.cwd())  # once the model is loaded: the case sets the threads
        launch = cls(workload, Bench(case, opened, device), environment)
        launch.health = launch._watching.enter_context(watch(device))
        return launch

    def answer(self, word: str, request: Node) -> dict[str, object]:
        """The JSON answer to one request of ``wire``."""
        words: dict[str, Callable[[], dict[str, object]]] = {
            "ready": lambda: messages.ready_json(self.ready()),
            "round": lambda: messages.round_json(
                self.round(int(request.number("repeats")), _pids(request))
            ),
            "answers": lambda: messages.answers_json(self.answers()),
            "peak": lambda: {"gib": self.peak_memory_gib()},
        }
        if word not in words:
            raise WorkerError(f"was asked for '{word}'; expected {', '.join(words)}")
        with _memory_in_words(self.bench.device, f"'{word}'"):
            return words[word]()

    def ready(self) -> Ready:
        """Compile and warm up, and say what that took."""
        bench, name, case = self.bench, self.workload.engine, self.bench.case
        sample = bench.sample
        done = bench.ready(name)
        pass_s = done.warmup_s
        if done.later.graphs:  # a pass that still compiled says nothing of how long a pass takes
            engine = bench.opened.engine(name)
            pass_s = run_pass(engine, sample, case.throughput.head, bench.clock).whole_s
        return Ready(
            pid=os.getpid(),
            device=self.environment.device,
            machine=self.environment.machine,
            context=self.environment.context,
            facts=bench.opened.facts,
            digest=case.digest(self.workload.weights),
            dtype=case.model.precision,
            prompts_digest=prompts_digest(sample),
            tokens=sum(len(prompt.ids) for prompt in sample),
            load_s=bench.opened.load_s,
            compile_s=done.compile_s,
            warmup_s=done.warmup_s,
            pass_s=pass_s,
            graphs=done.first.graphs,
            graph_breaks=done.first.graph_breaks + done.later.graph_breaks,
            recompiles=done.later.graphs,
        )

    def round(self, repeats: int, peers: Sequence[int] = ()) -> Round:
        """Time ``repeats`` passes; ``peers`` are processes that may be on the device as well."""
        bench, name = self.bench, self.workload.engine
        spec = bench.case.throughput
        ready = replace(bench.ready(name), repeats=repeats)
        engine = bench.opened.engine(name)
        self.health.friends = peers
        stopwatch = Stopwatch(
            engine, bench.sample, spec.head, ready, bench.clock, health=self.health
        )
        start_s = time.time()
        done = stopwatch.round()
        timings = stopwatch.finish()
        if timings.peak_memory_gib is not None:
            self._peaks.append(timings.peak_memory_gib)
        recompiled = f"{timings.timed.graphs} graphs were compiled inside the round"
        return Round(
            start_s=start_s,
            tokens=done.tokens,
            core_s=done.core_s,
            whole_s=done.whole_s,
            waited_fraction=timings.waited_fraction,
            joules=done.health.joules,
            faults=(*done.health.faults, *([recompiled] if timings.timed.graphs else [])),
            health=done.health.numbers,
        )

    def answers(self) -> Answers:
        """The first ``questions`` of the fixed order; without labels at least the timed sample."""
        prompts = self.bench.opened.prompts
        order = tier_order([prompt.id for prompt in prompts])[: self.workload.questions]
        asked = [prompts[index] for index in order]
        if not asked and self.workload.weights == "dummy":
            asked = self.bench.sample  # their logits still compare
        if not asked:
            return no_answers()
        engine = self.bench.opened.engine(self.workload.engine)
        return run_pass(engine, asked, "last", self.bench.clock).answers

    def peak_memory_gib(self) -> float | None:
        """The highest peak of any round so far; None before one, or where it is not counted."""
        return max(self._peaks, default=None)


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """``sha256:`` and 16 hex digits over ids and token ids, in order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(f"{prompt.id} {len(prompt.ids)} ".encode())
        digest.update(prompt.ids.astype("<i8").tobytes())
    return f"sha256:{digest.hexdigest()[:16]}"


def _pids(request: Node) -> list[int]:
    return [int(text) for text in request.texts("peers") if text.isdecimal()]


@contextmanager
def _memory_in_words(device: Device, what: str) -> Iterator[None]:
    """Outside of the engine's own forwards too, a full device is a DeviceMemory."""
    from perfline.torch_engine import full, out_of_memory

    try:
        yield
    except RuntimeError as error:
        if not full(error):
            raise
        raise out_of_memory(device, what, error) from error
