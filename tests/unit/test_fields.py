from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfline.cases.case import PACKAGED_CASES, load_case, with_settings
from perfline.errors import PerflineError, RecordError
from perfline.fields import OPTIONAL, OUTSIDE, Node, Scalar, as_json

FIX = "make it anew"


@dataclass(frozen=True)
class Part:
    name: str = field(metadata=OUTSIDE)
    size: float = field(metadata={"ge": 0.5, "le": 9, "or_zero": True})
    unit: Literal["s", "GiB"] = "s"
    share: float | None = field(default=None, metadata={"gt": 0, "lt": 1})


@dataclass(frozen=True)
class Whole:
    title: str
    count: int
    flag: bool
    parts: Mapping[str, Part]
    rows: tuple[Part, ...]
    numbers: tuple[int, ...] = field(metadata={"ge": 1})
    free: Mapping[str, Scalar]
    sides: Mapping[Literal["a", "b"], str]
    place: Path | None
    note: str = ""
    later: Mapping[str, str] = field(default_factory=dict, metadata=OPTIONAL)
    ranks: int = field(default=1, metadata={"key": "world", "ge": 1, **OPTIONAL})


WHOLE = Whole(
    title="t",
    count=0,
    flag=False,
    parts={"p": Part("p", 2.5), "q": Part("q", 0.0, "GiB", 0.5)},
    rows=(),
    numbers=(1, 2),
    free={"text": "", "number": -1.5, "whole": -2, "yes": True, "null": None},
    sides={"a": "", "b": "x"},
    place=Path("/d"),
)


def build(data: Mapping[str, object], by_hand: bool = False) -> Whole:
    return Node("f", data, RecordError, FIX, by_hand=by_hand).build(Whole)


HOSTILE = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["x" * 2_000, "a b " * 600, "\x1b[2J\x07", "a\nb", "\ud800", "::error::"]),
)


TINY = load_case(PACKAGED_CASES / "tiny.yaml")


def check_message(attempt: Callable[[], object]) -> None:
    """One line, nothing that a terminal obeys, no field of more than 400 characters."""
    told = ""
    try:
        attempt()
    except PerflineError as problem:
        told = str(problem)
    assert told.isprintable(), told
    assert len(told) < 1500, told


@given(HOSTILE, st.sampled_from(["title", "count", "parts", "rows", "numbers", "place", "sides"]))
def test_hostile_text_is_cut_and_escaped_in_a_message(text: str, key: str) -> None:
    for hostile in ({key: text}, {"parts": {text: {"size": text}}}, {"free": {text: [text]}}):
        for by_hand in (True, False):
            check_message(lambda h=hostile, b=by_hand: build(data(**h), by_hand=b))
    unknown = Node("f", {text: 1, "\0": 2}, RecordError, by_hand=True)
    check_message(lambda: unknown.build(Whole))


@settings(max_examples=30)
@given(HOSTILE, HOSTILE)
def test_hostile_settings_are_cut_and_escaped_in_a_message(key: str, value: str) -> None:
    for name in (key, "engine.mode", "model.precision", "throughput.rounds", f"engine.{key}"):
        check_message(lambda n=name: with_settings(TINY, [(n, value)]))


def test_a_cut_says_how_long_it_was() -> None:
    told = str(RecordError(f"a: key '{'x' * 100_000}' \x1b[2J"))
    assert told == f"a: key '{'x' * 399}... (100002 characters) \\x1b[2J"
    assert str(RecordError(told)) == told


def data(**changes: object) -> dict[str, Any]:
    return json.loads(json.dumps(as_json(WHOLE))) | changes


@pytest.mark.parametrize(
    "whole", [WHOLE, dataclasses.replace(WHOLE, place=None, later={"k": "v"}, ranks=4, note="n")]
)
def test_what_was_written_is_built_again(whole: Whole) -> None:
    assert build(json.loads(json.dumps(as_json(whole)))) == whole


def test_what_is_optional_stands_where_it_is_not_the_default() -> None:
    assert not {"later", "ranks", "world", "name"} & {*data(), *data()["parts"]["p"]}
    written = as_json(dataclasses.replace(WHOLE, later={"k": "v"}, ranks=2))
    assert (written["later"], written["world"]) == ({"k": "v"}, 2)


def test_a_whole_number_is_a_number_and_a_number_stays_one() -> None:
    size = build(data(parts={"p": {"size": 2, "unit": "s", "share": None}})).parts["p"].size
    assert (size, type(size)) == (2.0, float)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"title": " "}, "'title' is \" \" (expected text)"),
        ({"count": -1}, "'count' is -1 (expected a whole number at least 0)"),
        ({"count": True}, "'count' is true (expected a whole number)"),
        ({"count": 2.0}, "'count' is 2.0 (expected a whole number)"),
        ({"flag": 1}, "'flag' is 1 (expected true or false)"),
        ({"numbers": [1, 0]}, "'numbers.1' is 0 (expected a whole number at least 1)"),
        ({"numbers": 1}, "'numbers' is 1 (expected a list of whole numbers)"),
        ({"rows": [1]}, "'rows.0' is 1 (expected an object)"),
        ({"parts": {"p": {"size": 0.4}}}, "'parts.p.size' is 0.4 (expected a number at least 0.5)"),
        ({"parts": {"p": {"size": 10}}}, "'parts.p.size' is 10 (expected a number at most 9)"),
        ({"parts": {"p": {"size": math.nan}}}, "'parts.p.size' is NaN (expected a number from -1"),
        ({"parts": {"p": {"size": 10**400}}}, "'parts.p.size' is 100000"),
        ({"parts": {"p": {"size": 10**9999}}}, "'parts.p.size' is too long to be shown (exp"),
        (
            {"parts": {"p": {"size": 1, "unit": "Gib", "share": None}}},
            "'parts.p.unit' is \"Gib\" (expected s or GiB); did you mean 'GiB'?",
        ),
        (
            {"parts": {"p": {"size": 1, "unit": "s", "share": 1}}},
            "'parts.p.share' is 1 (expected a number below 1)",
        ),
        ({"parts": {"p": {"size": 1, "unit": "s"}}}, "'parts.p.share' is missing (expected a num"),
        ({"free": {"k": []}}, "'free.k' is [] (expected text, a whole number, a number, true, f"),
        ({"sides": {"a": "x"}}, "'sides.b' is missing (expected text)"),
        ({"place": 1}, "'place' is 1 (expected text or null)"),
        ({"later": {"k": None}}, "'later.k' is null (expected text)"),
        ({"world": 0}, "'world' is 0 (expected a whole number at least 1)"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecordError) as raised:
        build(data(**changes))

    assert str(raised.value).startswith(f"f: key {message}")
    assert str(raised.value).endswith(f"; {FIX}")


def test_a_file_of_a_later_perfline_may_say_more() -> None:
    assert build(data(more=1)) == WHOLE


def test_what_people_write_has_defaults_and_no_unknown_key() -> None:
    given = data()
    del given["note"]

    with pytest.raises(RecordError, match=r"^f: key 'note' is missing \(expected text\); make"):
        build(given)
    assert build(given, by_hand=True) == WHOLE
    with pytest.raises(RecordError, match=r"key 'cuont' is not known; did you mean 'count'\?"):
        build(given | {"cuont": 1}, by_hand=True)
    with pytest.raises(RecordError, match=r"'parts\.p\.xyz' is not known \(known: size, unit, sh"):
        build(given | {"parts": {"p": {"size": 1, "xyz": 2}}}, by_hand=True)
    with pytest.raises(RecordError, match=r"'free' is 1 .expected a mapping of keys to values"):
        build(given | {"free": 1}, by_hand=True)


@pytest.mark.parametrize(
    ("look_up", "message"),
    [
        (lambda n: n.text("absent"), "'x.absent' is missing (expected text)"),
        (lambda n: n.text("empty"), "'x.empty' is \"\" (expected text)"),
        (lambda n: n.text("one"), "'x.one' is 1 (expected text)"),
        pytest.param(
            lambda n: n.get("one", str | None), "'x.one' is 1 (expected text or null)", id="null"
        ),
        (lambda n: n.number("true"), "'x.true' is true (expected a number)"),
        (lambda n: n.number("empty"), "'x.empty' is \"\" (expected a number)"),
        (
            lambda n: n.number("huge"),
            "'x.huge' is Infinity (expected a number from -1e+30 to",
        ),
        (lambda n: n.child("one"), "'x.one' is 1 (expected an object)"),
        (lambda n: list(n.items("one")), "'x.one' is 1 (expected a list of objects)"),
        (lambda n: list(n.items("list")), "'x.list.1' is 1 (expected an object)"),
        (
            lambda n: n.get("deep", Mapping[str, Scalar]),
            "'x.deep.a' is [] (expected text, a whole number, a number, true, false or null)",
        ),
    ],
)
def test_a_wrong_key_is_named_with_its_place(look_up: Any, message: str) -> None:
    data = {
        "empty": "",
        "one": 1,
        "true": True,
        "huge": float("inf"),
        "list": [{}, 1],
        "deep": {"a": []},
    }

    with pytest.raises(RecordError) as raised:
        look_up(Node(Path("f.json"), data, RecordError, FIX, "x."))

    assert str(raised.value).startswith(f"f.json: key {message}")


def test_scalars_are_finite_and_a_key_stays_on_the_line() -> None:
    node = Node(Path("f.json"), {"a\n\x1b": {"b": float("inf")}}, RecordError, FIX)
    with pytest.raises(RecordError) as raised:
        node.get("a\n\x1b", Mapping[str, Scalar])
    assert str(raised.value) == (
        "f.json: key 'a\\n\\x1b.b' is Infinity (expected a number from -1e+30 to 1e+30); "
        "make it anew"
    )


def test_a_value_that_is_nested_too_deeply_to_be_shown_is_one_line() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    try:
        with pytest.raises(RecordError) as raised:
            Node(Path("f.json"), {"a": deep}, RecordError, FIX).child("a")
    finally:
        while deep:  # or its end would recurse
            (deep,) = deep
    assert str(raised.value) == (
        f"f.json: key 'a' is nested too deeply (expected an object); {FIX}"
    )
