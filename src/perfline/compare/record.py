"""What did a comparison of A and B measure? Every raw round, and what follows from them.

Kept rounds and log ratios are computed from the rounds, here and nowhere else.

``results/compare.json`` is replaced, whole and at once, after every launch pair, and says
``partial`` until the comparison has ended by itself: what Ctrl-C or a kill leaves behind can be
read. A pair's log ratio stands in it for people only.

Schema 1: the first.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from perfline import jsonfile
from perfline.compare.explain import Explanation
from perfline.compare.model import BESIDE, LEAST, Kind, Ready, Round, Side, SideName, Timed
from perfline.compare.sequential import OK_ALPHA, Decision
from perfline.environments.installers import masked
from perfline.errors import RecordError, printable
from perfline.fields import OPTIONAL, OUTSIDE, Node, as_json
from perfline.gates.verdict import Verdict, Word, worst
from perfline.measure.notices import Notice
from perfline.measure.record import check_names

SCHEMA = 1
_FIX = "run perfline compare again"


def save(path: Path, comparison: Comparison) -> None:
    """Replace the file at once; RecordError where it cannot be written."""
    data = {"schema": SCHEMA, "kind": "compare", **as_json(comparison)}
    for name, case in comparison.cases.items():
        for shown, pair in zip(data["cases"][name]["pairs"], case.pairs, strict=True):
            shown["log_ratio"] = pair.log_ratio()
    jsonfile.write(path, data | {"digest": jsonfile.digest(data)}, RecordError)


def check_writable(path: Path) -> None:
    """Raise RecordError if :func:`save` could not work: before an hour of measuring, not after."""
    jsonfile.check_writable(path, RecordError)


def load(path: Path) -> Comparison:
    """Read a comparison's record; RecordError says which key of the file is wrong.

    A digest can be computed by anybody, so what no comparison can have measured is refused, too.
    """
    try:
        return _load(path)
    except RecursionError as failure:
        shown = printable(str(path))
        raise RecordError(f"{shown}: is nested too deeply; {_FIX}") from failure


def _load(path: Path) -> Comparison:
    node = jsonfile.read(path, SCHEMA, RecordError, _FIX, "comparison")
    if node.data.get("kind") != "compare":
        raise RecordError(f"{path}: is no record of perfline compare; name the file of its --out")
    comparison = node.build(Comparison)
    check_names(node, comparison.cases)
    for name, case in comparison.cases.items():
        _check(node.child("cases").child(name), case)
    rest = {key: value for key, value in node.data.items() if key != "digest"}
    if node.text("digest") != jsonfile.digest(rest):
        raise RecordError(f"{path}: was edited by hand (its digest does not fit); {_FIX}")
    return comparison


def _check(node: Node, case: CaseComparison) -> None:
    """Refuse what no type tells."""
    for key, held in (("verdicts", case.verdicts), ("looks", case.looks)):
        if not held:
            node.fail(key, "is empty (expected at least one)")
    for number, pair in enumerate(case.pairs):
        if len(pair.baseline.rounds) != len(pair.candidate.rounds):
            node.fail(f"pairs.{number}.candidate.rounds", "and baseline.rounds differ in length")
        for side, launch in (("baseline", pair.baseline), ("candidate", pair.candidate)):
            for n, done in enumerate(launch.rounds):
                if lacking := untimed(done, case.workload):
                    node.fail(f"pairs.{number}.{side}.rounds.{n}.{lacking}", "is missing")
        if not pair.void and not pair.kept:
            node.fail(f"pairs.{number}.void", "is empty, yet no round pair is without faults")
    told = case.explanation
    if told is not None and not told.problem:
        if told.baseline_s < LEAST or not told.tokens:
            node.fail("explanation.baseline_s", "or 'tokens' is 0, yet it says no problem")
        if not told.low_s <= told.change_s <= told.high_s:
            node.fail("explanation.change_s", "lies outside of its interval")


# Names of environment variables whose values are not for a file.
_SECRET = re.compile(
    r"token|secret|pass|pwd|credential|cookie|auth|api_?key|_keys?$|^keys?$|(^|_)pat$",
    re.IGNORECASE,
)
_LOGIN = re.compile(r"://[^/\s@]*:[^/\s@]*@")  # a password in an address


@dataclass(frozen=True)
class SideRecord:
    """One side: what was asked of it, and what its first launch told of itself.

    ``machine`` to ``digest`` are empty until the first launch was ready. ``packages`` are all
    installed distributions with their versions; empty where no side had anything installed.
    ``notices`` are what other packages said before the timed rounds.
    """

    python: str
    ref: str | None
    env: Mapping[str, str]
    settings: Mapping[str, str]
    imports: tuple[str, ...]
    machine: str = ""
    device: str = ""
    dtype: str = ""
    digest: str = ""
    context: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    install: tuple[str, ...] = field(default=(), metadata=OPTIONAL)
    packages: Mapping[str, str] = field(default_factory=dict, metadata=OPTIONAL)
    notices: tuple[Notice, ...] = field(default=(), metadata=OPTIONAL)

    @classmethod
    def of(cls, side: Side) -> SideRecord:
        """What ``side`` was asked to be; values that look secret are left out."""
        env, settings = shown_env(side.env), dict(side.settings)
        install = tuple(map(masked, side.install))
        python, imports = str(side.python), side.imports
        return cls(python, side.ref, env, settings, imports, install=install)


@dataclass(frozen=True)
class LaunchRecord:
    """One launch.

    Attributes:
        launch_s: from the start of the process until it was ready, as seen from outside.
        peak_memory_gib: None where the device does not count it.
        rounds: the kept rounds; the n-th pairs up with the n-th of the other side.
        dropped: turns run first after a switch of process, to settle, a round's as one; never
            looked at.
        cores: those of the CPU that its threads were kept on; none: all that there are.
    """

    launch_s: float
    load_s: float
    compile_s: float
    warmup_s: float
    pass_s: float
    graphs: int
    graph_breaks: int
    recompiles: int
    peak_memory_gib: float | None
    rounds: tuple[Round, ...]
    dropped: tuple[Round, ...]
    cores: tuple[int, ...] = field(default=(), metadata=OPTIONAL)

    @classmethod
    def of(
        cls,
        ready: Ready,
        launch_s: float,
        peak_memory_gib: float | None,
        rounds: tuple[Round, ...],
        dropped: tuple[Round, ...],
        cores: tuple[int, ...],
    ) -> LaunchRecord:
        """What a launch told, and what was timed in it."""
        return cls(
            launch_s=launch_s,
            load_s=ready.load_s,
            compile_s=ready.compile_s,
            warmup_s=ready.warmup_s,
            pass_s=ready.pass_s,
            graphs=ready.graphs,
            graph_breaks=ready.graph_breaks,
            recompiles=ready.recompiles,
            peak_memory_gib=peak_memory_gib,
            rounds=rounds,
            dropped=dropped,
            cores=cores,
        )


@dataclass(frozen=True)
class PairRecord:
    """One launch pair.

    Attributes:
        first: the side that started, and was timed, first.
        interleaved: turns alternated between two live processes; else one whole launch followed
            the other.
        wall_s: all of it; ``rounds_s``: the rounds alone, the dropped ones included.
        void: why the pair does not count; empty where it does.
        turns: in how many turns of A and B each round of both was timed.
    """

    first: SideName
    interleaved: bool
    wall_s: float
    rounds_s: float
    baseline: LaunchRecord
    candidate: LaunchRecord
    void: str = ""
    turns: int = field(default=1, metadata={"ge": 1, **OPTIONAL})

    def launch(self, side: SideName) -> LaunchRecord:
        """The launch of ``side``."""
        return self.baseline if side == "baseline" else self.candidate

    @property
    def kept(self) -> list[tuple[Round, Round]]:
        """Round pairs (A's, B's) without a fault."""
        paired = zip(self.baseline.rounds, self.candidate.rounds, strict=True)
        return [(a, b) for a, b in paired if not (a.faults or b.faults)]

    @property
    def faults(self) -> tuple[str, ...]:
        """What was wrong with the rounds that were thrown out; each fault once."""
        rounds = (*self.baseline.rounds, *self.candidate.rounds)
        return tuple(dict.fromkeys(fault for r in rounds for fault in r.faults))

    def round_log_ratios(self, seconds: Timed = "core_s") -> list[float]:
        """log(B's seconds a token / A's) of every kept round pair."""
        return [math.log(per_token(b, seconds) / per_token(a, seconds)) for a, b in self.kept]

    def log_ratio(self, seconds: Timed = "core_s") -> float | None:
        """The pair's one number: above 0, B is slower. None where the pair is void.

        The median over kept round pairs; of whole launches, where the n-th rounds share no moment,
        the ratio of the medians.
        """
        if self.void:
            return None
        if self.interleaved:
            return statistics.median(self.round_log_ratios(seconds))
        middle = [statistics.median(per_token(r, seconds) for r in side) for side in self._sides]
        return math.log(middle[1] / middle[0])

    @property
    def _sides(self) -> tuple[list[Round], list[Round]]:
        return [a for a, _ in self.kept], [b for _, b in self.kept]


@dataclass(frozen=True)
class AnswersRecord:
    """Both sides' answers to the same questions, in short; flips stand in the verdicts.

    Attributes:
        baseline_correct, candidate_correct: of ``questions``; None without labels.
        largest_difference: the largest absolute difference of a letter's logit.
        share: the same as a share of its question's largest letter logit, the largest of all.
        tolerance: what rounding may make of ``share`` in the dtype.
    """

    questions: int
    baseline_correct: int | None
    candidate_correct: int | None
    largest_difference: float
    share: float
    tolerance: float


@dataclass(frozen=True)
class FidelityRecord:
    """What it took both sides to run so many prompts in fp32, and in their own dtypes."""

    prompts: int
    baseline_s: float = field(metadata={"ge": 0})
    candidate_s: float = field(metadata={"ge": 0})


@dataclass(frozen=True)
class CaseComparison:
    """One case compared.

    Attributes:
        margin_fraction: the slowdown that must be ruled out for ``ok``.
        looks: after how many counted launch pairs it may be decided; the last is the cap.
        alpha: of one look, this case's share of it where several cases are compared.
        ok_alpha: of calling a slowdown of the margin ``ok``, at one look.
        difference: how B differs from A, in words.
        repeats: passes a round; None until the first launch was ready.
        rounds: kept rounds a side and launch; ``rounds_reason`` says why so many.
        answers: to the case's first task; ``more_answers``: to its others, by name, where both
            sides told them.
        decision: of the last look or, between looks, what is known; None without a counted pair.
        workload: what a round was.
        beside: the decisions on the other seconds that are judged.
        notes: what was seen on the way, such as that both sides do not fit at once.
        problem: what ended the comparison before a decision; empty where nothing did.
        ranks: processes of a launch.
        ended: False while it goes on, and in what an interrupt left behind.
        fidelity: what the verdicts on fidelity and drift took; None where they were not had.
        explanation: which operators make the difference; None where nobody asked.
    """

    case: str = field(metadata=OUTSIDE)
    title: str
    engine: str
    weights: str
    questions: int
    margin_fraction: float = field(metadata={"ge": LEAST, "le": 1.0})
    looks: tuple[int, ...] = field(metadata={"ge": 1})
    alpha: float = field(metadata={"ge": LEAST, "le": 0.5})
    rounds: int
    rounds_reason: str
    sides: Mapping[SideName, SideRecord]
    difference: str
    repeats: int | None = None
    pairs: tuple[PairRecord, ...] = ()
    answers: AnswersRecord | None = None
    decision: Decision | None = None
    verdicts: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()
    problem: str = ""
    ended: bool = False
    ranks: int = field(default=1, metadata={"ge": 1, **OPTIONAL})
    workload: Kind = field(default="prefill", metadata=OPTIONAL)
    ok_alpha: float = field(default=OK_ALPHA, metadata={"ge": LEAST, "le": 0.5, **OPTIONAL})
    beside: Mapping[str, Decision] = field(default_factory=dict, metadata=OPTIONAL)
    explanation: Explanation | None = field(default=None, metadata=OPTIONAL)
    fidelity: FidelityRecord | None = field(default=None, metadata=OPTIONAL)
    more_answers: Mapping[str, AnswersRecord] = field(default_factory=dict, metadata=OPTIONAL)

    @property
    def alpha_each(self) -> float:
        """What each of the judged seconds may spend of ``alpha``: they cry wolf for one."""
        return self.alpha / (1 + len(BESIDE[self.workload]))

    @property
    def on_ranks(self) -> str:
        """`` on 4 ranks``; empty for one process."""
        return f" on {self.ranks} ranks" if self.ranks > 1 else ""

    @property
    def word(self) -> Word:
        """The gravest of the verdicts."""
        return worst(self.verdicts)

    @property
    def counted(self) -> list[PairRecord]:
        """The launch pairs that are not void."""
        return [pair for pair in self.pairs if not pair.void]

    def log_ratios(self, seconds: Timed = "core_s") -> list[float]:
        """One log ratio for every counted launch pair."""
        return [d for pair in self.pairs if (d := pair.log_ratio(seconds)) is not None]


@dataclass(frozen=True)
class Comparison:
    """What one ``perfline compare`` measured; ``command`` runs it again."""

    created: str  # ISO 8601, UTC
    partial: bool
    command: str
    cases: Mapping[str, CaseComparison]


def shown_env(env: Mapping[str, str]) -> dict[str, str]:
    """Environment variables as a record may show them: without values that look secret."""
    return {
        key: "(not recorded)" if _SECRET.search(key) or _LOGIN.search(text) else text
        for key, text in env.items()
    }


def per_token(measured: Round, seconds: Timed = "core_s") -> float:
    """Seconds a token of one round; to its first token for ``first_s``."""
    if seconds in ("core_s", "whole_s"):
        return float(getattr(measured, seconds)) / measured.tokens
    return float(getattr(measured, seconds))


def untimed(measured: Round, workload: Kind) -> str:
    """Which of the seconds that are judged a round does not tell; empty where it tells all."""
    return next((name for name in BESIDE[workload] if getattr(measured, name) is None), "")
