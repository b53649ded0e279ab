"""How does a comparison's record get into ``results/compare.json`` and back?

The file is replaced, whole and at once, after every launch pair, and says ``partial`` until the
comparison has ended by itself: what Ctrl-C or a kill leaves behind can be read. A pair's log ratio
stands in it for people only: readers compute it from the rounds, as ``record`` does.

Schema 1: the first.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Literal, cast, get_args

from perfline import jsonfile
from perfline.compare.fields import MOST, count, optional_count, positive, round_
from perfline.compare.model import SIDES, SideName
from perfline.compare.record import (
    AnswersRecord,
    CaseComparison,
    Comparison,
    LaunchRecord,
    PairRecord,
    SideRecord,
)
from perfline.compare.sequential import Decision
from perfline.errors import RecordError
from perfline.jsonfile import Node, Scalar
from perfline.measure.notices import read_notices
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
