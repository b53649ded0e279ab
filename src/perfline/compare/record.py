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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

from perfline import jsonfile
from perfline.compare.installers import masked
from perfline.compare.messages import MOST, count, optional_count, positive, round_
from perfline.compare.model import SIDES, Ready, Round, Side, SideName
from perfline.compare.sequential import Decision
from perfline.errors import RecordError
from perfline.gates.verdict import Verdict, Word, worst
from perfline.jsonfile import Node, Scalar
from perfline.measure.notices import Notice, read_notices
from perfline.measure.record import CASE_NAME, read_verdict

SCHEMA = 1
_FIX = "run perfline compare again"
_MOST_LOG = 50.0  # a log ratio: B takes 5e21 times A's time


def save(path: Path, comparison: Comparison) -> None:
    """Replace the file at once; RecordError where it cannot be written."""
    data: dict[str, object] = {
        "schema": SCHEMA,
        "kind": "compare",
        "created": comparison.created,
        "partial": comparison.partial,
        "command": comparison.command,
        "cases": {name: _case_json(case) for name, case in comparison.cases.items()},
    }
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
        shown = jsonfile.printable(str(path))
        raise RecordError(f"{shown}: is nested too deeply; {_FIX}") from failure


def _load(path: Path) -> Comparison:
    node = jsonfile.read(path, SCHEMA, RecordError, _FIX, "comparison")
    if node.data.get("kind") != "compare":
        raise RecordError(f"{path}: is no record of perfline compare; name the file of its --out")
    _check_numbers(node, node.data, "")
    comparison = Comparison(
        created=node.text("created"),
        partial=node.flag("partial"),
        command=node.text("command"),
        cases={name: _case(name, child) for name, child in node.child("cases").children()},
    )
    rest = {key: value for key, value in node.data.items() if key != "digest"}
    if node.text("digest") != jsonfile.digest(rest):
        raise RecordError(f"{path}: was edited by hand (its digest does not fit); {_FIX}")
    return comparison


def _case_json(case: CaseComparison) -> dict[str, object]:
    data = asdict(case)
    del data["case"]
    if case.ranks == 1:
        del data["ranks"]  # as before there were ranks
    for side in data["sides"].values():  # as before there were any
        for key in ("install", "packages", "notices"):
            if not side[key]:
                del side[key]
    for shown, pair in zip(data["pairs"], case.pairs, strict=True):
        shown["log_ratio"] = pair.log_ratio()
    return data


def _check_numbers(node: Node, value: object, where: str) -> None:
    """Refuse numbers in ``value``, at ``where`` in the file, that are no measurement."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            _check_numbers(node, item, f"{where}.{key}" if where else f"{key}")
    elif isinstance(value, int | float) and abs(value) > MOST:
        node.fail(where, f"is {value:g} (expected at most {MOST:g})")


def _case(name: str, node: Node) -> CaseComparison:
    if not CASE_NAME.fullmatch(name):
        node.fail("title", f"is of a case named {name[:40]!r}, which perfline writes for none")
    sides = node.child("sides")
    answers = None if node.data.get("answers") is None else _answers(node.child("answers"))
    decision = None if node.data.get("decision") is None else _decision(node.child("decision"))
    verdicts = tuple(map(read_verdict, node.items("verdicts")))
    if not verdicts:
        node.fail("verdicts", "is empty (expected at least the one on time)")
    return CaseComparison(
        case=name,
        title=node.text("title"),
        engine=node.text("engine"),
        weights=node.text("weights"),
        questions=count(node, "questions"),
        margin_fraction=positive(node, "margin_fraction", 1.0),
        looks=_looks(node),
        alpha=positive(node, "alpha", 0.5),
        rounds=count(node, "rounds"),
        rounds_reason=node.text("rounds_reason"),
        sides={side: _side(sides.child(side)) for side in SIDES},
        difference=node.text("difference"),
        repeats=optional_count(node, "repeats"),
        pairs=tuple(map(_pair, node.items("pairs"))),
        answers=answers,
        decision=decision,
        verdicts=verdicts,
        notes=node.texts("notes"),
        problem=_text(node, "problem"),
        ended=node.flag("ended"),
        ranks=_ranks(node),
    )


def _ranks(node: Node) -> int:
    if "ranks" not in node.data:
        return 1
    if not count(node, "ranks"):
        node.fail("ranks", "is 0 (expected a whole number above 0)")
    return count(node, "ranks")


def _side(node: Node) -> SideRecord:
    return SideRecord(
        python=node.text("python"),
        ref=node.optional_text("ref"),
        env=_texts(node, "env"),
        settings=_texts(node, "settings"),
        imports=node.texts("imports"),
        machine=_text(node, "machine"),
        device=_text(node, "device"),
        dtype=_text(node, "dtype"),
        digest=_text(node, "digest"),
        context=_texts(node, "context"),
        facts=_texts(node, "facts"),
        install=node.texts("install") if "install" in node.data else (),
        packages=_texts(node, "packages") if "packages" in node.data else {},
        notices=read_notices(node),
    )


def _pair(node: Node) -> PairRecord:
    first = node.text("first")
    if first not in get_args(SideName):
        node.fail("first", f"is '{first}' (expected baseline or candidate)")
    pair = PairRecord(
        first=cast("SideName", first),
        interleaved=node.flag("interleaved"),
        wall_s=node.number("wall_s"),
        rounds_s=node.number("rounds_s"),
        baseline=_launch(node.child("baseline")),
        candidate=_launch(node.child("candidate")),
        void=_text(node, "void"),
    )
    if len(pair.baseline.rounds) != len(pair.candidate.rounds):
        node.fail("candidate.rounds", "and baseline.rounds differ in length")
    if not pair.void and not pair.kept:
        node.fail("void", "is empty, yet no round pair is without faults")
    return pair


def _launch(node: Node) -> LaunchRecord:
    return LaunchRecord(
        **{key: node.number(key) for key in ("launch_s", "load_s", "compile_s")},
        **{key: node.number(key) for key in ("warmup_s", "pass_s")},
        graphs=count(node, "graphs"),
        graph_breaks=count(node, "graph_breaks"),
        recompiles=count(node, "recompiles"),
        peak_memory_gib=node.optional_number("peak_memory_gib"),
        rounds=tuple(map(round_, node.items("rounds"))),
        dropped=tuple(map(round_, node.items("dropped"))),
    )


def _answers(node: Node) -> AnswersRecord:
    return AnswersRecord(
        questions=count(node, "questions"),
        baseline_correct=optional_count(node, "baseline_correct"),
        candidate_correct=optional_count(node, "candidate_correct"),
        largest_difference=node.number("largest_difference"),
        share=node.number("share"),
        tolerance=node.number("tolerance"),
    )


def _decision(node: Node) -> Decision:
    for key in ("estimate", "low", "high"):
        if abs(node.optional_number(key) or 0) > _MOST_LOG:
            node.fail(key, f"is {node.number(key):g} (expected -{_MOST_LOG:g} to {_MOST_LOG:g})")
    word = node.optional_text("word")
    if word not in (None, "ok", "improved", "regressed", "unsure"):
        node.fail("word", f"is '{word}' (expected ok, improved, regressed, unsure or null)")
    return Decision(
        word=cast("Literal['ok', 'improved', 'regressed', 'unsure'] | None", word),
        pairs=count(node, "pairs"),
        estimate=node.optional_number("estimate"),
        low=node.optional_number("low"),
        high=node.optional_number("high"),
        confidence=node.number("confidence"),
        p_slower=node.number("p_slower"),
        p_faster=node.number("p_faster"),
        p_margin=node.number("p_margin"),
        alpha=node.number("alpha"),
        to_settle=optional_count(node, "to_settle"),
    )


def _text(node: Node, key: str) -> str:
    """A string that may be empty."""
    value = node.data.get(key)
    return value if isinstance(value, str) else node.text(key)


def _texts(node: Node, key: str) -> dict[str, str]:
    found: dict[str, Scalar] = node.scalars(key)
    for name, value in found.items():
        if not isinstance(value, str):
            node.fail(f"{key}.{name}", "is no text")
    return cast("dict[str, str]", found)


def _looks(node: Node) -> tuple[int, ...]:
    value = node.data.get("looks")
    if (
        not isinstance(value, list)
        or not value
        or not all(type(count) is int and count > 0 for count in value)
    ):
        node.fail("looks", "is not a list of whole numbers above 0")
    return tuple(value)


# Names of environment variables whose values are not for a file.
_SECRET = re.compile(
    r"token|secret|pass|pwd|credential|cookie|auth|api_?key|_keys?$|^keys?$|(^|_)pat$",
    re.IGNORECASE,
)
_LOGIN = re.compile(r"://[^/\s@]*:[^/\s@]*@")  # a password in an address

Seconds = Literal["core_s", "whole_s"]


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
    install: tuple[str, ...] = ()
    packages: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()

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
        dropped: rounds run first after a switch of process, to settle; never looked at.
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

    @classmethod
    def of(
        cls,
        ready: Ready,
        launch_s: float,
        peak_memory_gib: float | None,
        rounds: tuple[Round, ...],
        dropped: tuple[Round, ...],
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
        )


@dataclass(frozen=True)
class PairRecord:
    """One launch pair.

    Attributes:
        first: the side that started, and was timed, first.
        interleaved: rounds alternated between two live processes; else one whole launch followed
            the other.
        wall_s: all of it; ``rounds_s``: the rounds alone, the dropped ones included.
        void: why the pair does not count; empty where it does.
    """

    first: SideName
    interleaved: bool
    wall_s: float
    rounds_s: float
    baseline: LaunchRecord
    candidate: LaunchRecord
    void: str = ""

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

    def round_log_ratios(self, seconds: Seconds = "core_s") -> list[float]:
        """log(B's seconds a token / A's) of every kept round pair."""
        return [math.log(per_token(b, seconds) / per_token(a, seconds)) for a, b in self.kept]

    def log_ratio(self, seconds: Seconds = "core_s") -> float | None:
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
class CaseComparison:
    """One case compared.

    Attributes:
        margin_fraction: the slowdown that must be ruled out for ``ok``.
        looks: after how many counted launch pairs it may be decided; the last is the cap.
        alpha: of one look, this case's share of it where several cases are compared.
        difference: how B differs from A, in words.
        repeats: passes a round; None until the first launch was ready.
        rounds: kept rounds a side and launch; ``rounds_reason`` says why so many.
        decision: of the last look or, between looks, what is known; None without a counted pair.
        notes: what was seen on the way, such as that both sides do not fit at once.
        problem: what ended the comparison before a decision; empty where nothing did.
        ranks: processes of a launch.
        ended: False while it goes on, and in what an interrupt left behind.
    """

    case: str
    title: str
    engine: str
    weights: str
    questions: int
    margin_fraction: float
    looks: tuple[int, ...]
    alpha: float
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
    ranks: int = 1

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

    def log_ratios(self, seconds: Seconds = "core_s") -> list[float]:
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


def per_token(measured: Round, seconds: Seconds = "core_s") -> float:
    """Seconds a token of one round."""
    return (measured.core_s if seconds == "core_s" else measured.whole_s) / measured.tokens
