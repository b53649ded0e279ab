"""Scripted workers: launches and rounds of an A/B comparison without a process, in no time.

Every call goes to the launcher's ``log``, so that a test can pin the order of things.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from perfline.compare import run as compare
from perfline.compare.model import (
    FidelityNumbers,
    GeneratedTokens,
    Ready,
    References,
    Round,
    Side,
    SideName,
    Turn,
    Workload,
)
from perfline.compare.record import CaseComparison
from perfline.compare.run import Plan
from perfline.engines.engine import Fingerprint, Profile
from perfline.errors import DeviceMemory
from perfline.measure.fidelity import Drift
from perfline.tasks.answers import LETTERS, Answers
from perfline.tasks.reference import PromptReference
from samples import packaged

MACHINE = "fake-gpu"
SHORT: dict[str, str] = {"baseline": "A", "candidate": "B"}
FACTS = {"weights": "sha256:w", "mmlu": "sha256:q"}


def sides() -> dict[SideName, Side]:
    return {
        "baseline": Side("baseline", Path("/venvs/a/bin/python")),
        "candidate": Side("candidate", Path("/venvs/b/bin/python")),
    }


def workload(**changes: object) -> Workload:
    whole = Workload("tiny", (), None, "real", "inductor", 200)
    return replace(whole, **changes)  # type: ignore[arg-type]


def ready(**changes: object) -> Ready:
    whole = Ready(
        pid=1,
        device="Fake GPU",
        machine=MACHINE,
        context={"torch": "2.13.0", "commit": "abc1234"},
        facts=dict(FACTS),
        digest="sha256:c",
        dtype="fp32",
        prompts_digest="sha256:p",
        tokens=1000,
        load_s=1.0,
        compile_s=2.0,
        warmup_s=0.1,
        pass_s=0.05,
        graphs=2,
        graph_breaks=0,
        recompiles=0,
        by_task=True,
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def answers(
    wrong: Mapping[int, str] | None = None,
    n: int = 200,
    labels: bool = True,
    shift: float = 0.0,
) -> Answers:
    """``n`` questions, all right but for ``wrong`` (number -> letter).

    ``shift`` is added to the logits of A and C, and taken from those of B and D.
    """
    right = [LETTERS[i % 4] for i in range(n)]
    given = [(wrong or {}).get(i, letter) for i, letter in enumerate(right)]
    logits = np.zeros((n, 4), np.float32)
    for row, letter in enumerate(given):
        logits[row, LETTERS.index(letter)] = 5.0
    return Answers(
        ids=tuple(f"sky/{i}" for i in range(n)),
        letter_logits=logits + np.array([shift, -shift] * 2, np.float32),
        argmax=np.array([LETTERS.index(letter) for letter in given]),
        argmax_letter="".join(given),
        labels="".join(right) if labels else None,
        shots=(5,) * n,
    )


def generated(*tokens: int) -> GeneratedTokens:
    """Tokens behind one prompt; 9 is as likely as each of them but for rounding, 8 is not."""
    count = len(tokens)
    likeliest = tuple((token, 9, 8) for token in tokens)
    return GeneratedTokens(tokens, likeliest, ((10.0, 9.9999, 8.0),) * count, (10.0,) * count)


def fidelity(
    kl: float = 0.0,
    compiled: float | None = None,
    drift: Mapping[str, Sequence[float]] | None = None,
    **changes: Any,
) -> FidelityNumbers:
    """What a side computes, ``kl`` nats from A: eager, and compiled where that is another number.

    ``drift``: by engine, or "rounded", mean squared errors of two prompts; None in fp32.
    """
    prompts = {
        name: PromptReference(f"digest of {name}", {"3": "1:-0.5 *:-0.9327521295671886"})
        for name in ("sky/0", "sky/1")
    }
    engines = {"eager": kl, "inductor": kl if compiled is None else compiled}
    own = None
    if drift is not None:
        rows = {name: tuple(row) for name, row in drift.items()}
        rounded = rows.pop("rounded")
        own = Drift(rows, {"attention": rows["eager"], "batch": rows["eager"]}, rounded)
    whole = FidelityNumbers(
        references=dict.fromkeys(engines, prompts),
        apart={name: dict.fromkeys(prompts, (off,)) for name, off in engines.items()},
        vocabulary=30,
        variations={"attention": 1e-12, "rounding": 1e-13},
        most=1e-6,
        layers_off=(1e-6, 1e-6),
        seconds=2.5,
        drift=own,
    )
    return replace(whole, **changes)


@dataclass
class Script:
    """What the launches of one side do.

    Attributes:
        token_s: seconds a token in the forward, of the n-th launch's m-th kept or dropped round.
        faults: of the same.
        fails: number of the launch -> the error that it raises when waited for.
        round_fails: the same, at its third round.
        step_s, first_s: as ``token_s``, of decode; None where it is not timed.
        profile: of the n-th profiled round, which may raise; None of an older perfline.
        fidelity: None of an older perfline.
        more: answers to the case's other tasks.
    """

    ready: Ready = field(default_factory=ready)
    token_s: Callable[[int, int], float] = lambda launch, turn: 1e-5
    faults: Callable[[int, int], tuple[str, ...]] = lambda launch, turn: ()
    fails: Mapping[int, BaseException] = field(default_factory=dict)
    round_fails: Mapping[int, BaseException] = field(default_factory=dict)
    memory_gib: float | None = 2.0
    joules: float | None = None
    answers: Answers = field(default_factory=answers)
    step_s: Callable[[int, int], float] | None = None
    first_s: Callable[[int, int], float] | None = None
    fingerprint: Fingerprint | None = None
    profile: Callable[[int], Profile | None] = lambda turn: None
    generated: tuple[GeneratedTokens, ...] | None = (generated(1, 2, 3), generated(4, 5, 6))
    fidelity: FidelityNumbers | None = field(default_factory=fidelity)
    more: Mapping[str, Answers] = field(default_factory=dict)


@dataclass
class FakeLauncher:
    """``model.Launcher`` by script."""

    baseline: Script = field(default_factory=Script)
    candidate: Script = field(default_factory=Script)
    log: list[str] = field(default_factory=list)
    started: dict[str, int] = field(default_factory=dict)
    live: set[str] = field(default_factory=set)
    turns: list[Turn] = field(default_factory=list)  # of all rounds, in their order
    references: dict[str, References] = field(default_factory=dict)  # that a side was given
    fits_once: bool = False  # the second launch beside a live one finds no memory

    def start(self, side: Side) -> FakeLaunch:
        script = self.baseline if side.name == "baseline" else self.candidate
        launch = self.started[side.name] = self.started.get(side.name, -1) + 1
        name = SHORT[side.name]
        self.log.append(f"start {name}")
        self.live.add(name)
        return FakeLaunch(self, name, script, launch)

    def __enter__(self) -> FakeLauncher:
        return self

    def __exit__(self, *error: object) -> None:
        self.log.append("end")

    @property
    def rounds(self) -> str:
        """The sides of all rounds in their order."""
        return "".join(line[-1] for line in self.log if line.startswith("round"))


@dataclass
class FakeLaunch:
    """``model.PendingWorker`` and ``model.Worker`` in one."""

    launcher: FakeLauncher
    name: str
    script: Script
    launch: int
    turns: int = 0
    profiled: list[Profile] = field(default_factory=list)

    @property
    def ready(self) -> Ready:
        return self.script.ready

    def wait_ready(self) -> FakeLaunch:
        self.launcher.log.append(f"wait {self.name}")
        if self.launch in self.script.fails:
            raise self.script.fails[self.launch]
        if self.launcher.fits_once and len(self.launcher.live) == 2:
            raise DeviceMemory(f"{self.name}: 16.1 GiB are needed, 9.0 are free")
        return self

    def round(self, asked: Turn) -> Round:
        self.launcher.log.append(f"round {self.name}")
        self.launcher.turns.append(asked)
        turn, self.turns = self.turns, self.turns + 1
        if self.launch in self.script.round_fails and turn == 2:
            raise self.script.round_fails[self.launch]
        tokens = asked.repeats * self.ready.tokens // asked.parts
        core_s = tokens * self.script.token_s(self.launch, turn)
        return Round(
            start_s=1.7e9 + len(self.launcher.log),
            tokens=tokens,
            core_s=core_s,
            whole_s=1.1 * core_s,
            waited_fraction=0.01,
            joules=self.script.joules,
            faults=self.script.faults(self.launch, turn),
            health={"sm_clock_mhz": 1410},
            step_s=None if self.script.step_s is None else self.script.step_s(self.launch, turn),
            first_s=None if self.script.first_s is None else self.script.first_s(self.launch, turn),
        )

    def hold(self, threads: int) -> tuple[int, ...]:
        self.launcher.log.append(f"hold {self.name} {threads}")
        return (7,) if threads else ()

    def answers(self, task: str) -> Answers:
        other = task in self.script.more
        self.launcher.log.append(f"answers {self.name}{f' {task}' * other}")
        return self.script.more[task] if other else self.script.answers

    def generated(self) -> tuple[GeneratedTokens, ...] | None:
        self.launcher.log.append(f"generated {self.name}")
        return self.script.generated

    def fidelity(self, references: References) -> FidelityNumbers | None:
        self.launcher.log.append(f"fidelity {self.name}")
        self.launcher.references[self.name] = references
        return self.script.fidelity

    def peak_memory_gib(self) -> float | None:
        return self.script.memory_gib

    def fingerprint(self) -> Fingerprint | None:
        self.launcher.log.append(f"fingerprint {self.name}")
        return self.script.fingerprint

    def profile(self, trace: Path | None = None) -> bool:
        self.launcher.log.append(f"profile {self.name}")
        if trace is not None:
            trace.write_text(f"trace of {self.name}")
        found = self.script.profile(len(self.profiled))
        if found is not None:
            self.profiled.append(found)
        return found is not None

    def profiles(self) -> tuple[Profile, ...]:
        return tuple(self.profiled)

    def close(self) -> None:
        if self.name in self.launcher.live:
            self.launcher.log.append(f"close {self.name}")
            self.launcher.live.discard(self.name)


def noisy(factor: float = 1.0, sd: float = 0.01, seed: int = 1) -> Callable[[int, int], float]:
    """Seconds a token: ``factor`` times 10 us, launches and rounds spread by ``sd``."""
    generator = np.random.default_rng(seed)
    launches = generator.normal(0, sd, 200)
    rounds = generator.normal(0, sd, (200, 100))

    def token_s(launch: int, turn: int) -> float:
        return float(1e-5 * factor * np.exp(launches[launch] + rounds[launch, turn]))

    return token_s


def plan(**changes: Any) -> Plan:
    whole = Plan(packaged(), sides(), workload(), margin_fraction=0.02, max_pairs=48)
    return replace(whole, **changes)


def with_side(name: str, **changes: Any) -> dict[Any, Any]:
    return {k: replace(s, **changes) if k == name else s for k, s in sides().items()}


def states(launcher: FakeLauncher, wanted: Plan | None = None) -> list[CaseComparison]:
    return list(compare.run(wanted or plan(), launcher, lambda line: None))


def last(launcher: FakeLauncher, wanted: Plan | None = None) -> CaseComparison:
    return states(launcher, wanted)[-1]


def pair(a: float, b: float, sd: float = 0.0) -> FakeLauncher:
    """A launcher whose sides take ``a`` and ``b`` times 10 us a token."""
    return FakeLauncher(Script(token_s=noisy(a, sd)), Script(token_s=noisy(b, sd, seed=2)))
