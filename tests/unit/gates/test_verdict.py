from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import get_args

import pytest

from perfline.gates.verdict import (
    WORST_FIRST,
    Flip,
    Verdict,
    Word,
    fails,
    incomparable,
    invalid,
    missing,
    signed,
    skips,
    worst,
)
from perfline.metrics import Metric

SPEED = Metric("p_infer_core", 1179.8, "tok/s", "higher")


def verdict(word: Word) -> Verdict:
    return Verdict("p_infer_core", word, "baseline", "tok/s")


def test_the_order_of_words_is_complete() -> None:
    assert sorted(WORST_FIRST) == sorted(get_args(Word))


@pytest.mark.parametrize(("graver", "lighter"), list(itertools.combinations(WORST_FIRST, 2)))
def test_the_graver_word_wins(graver: Word, lighter: Word) -> None:
    assert worst([verdict(lighter), verdict(graver), verdict(lighter)]) == graver


def test_no_verdict_at_all_is_missing_and_never_green() -> None:
    assert worst([]) == "missing"


@pytest.mark.parametrize(
    ("word", "normal", "strict"),
    [
        ("ok", "passes", "passes"),
        ("improved", "passes", "passes"),
        ("regressed", "fails", "fails"),
        ("incomparable", "fails", "fails"),
        ("invalid", "fails", "fails"),
        ("unsure", "skips", "fails"),
        ("missing", "skips", "fails"),
    ],
)
def test_what_a_word_does_to_a_test(word: Word, normal: str, strict: str) -> None:
    for is_strict, expected in ((False, normal), (True, strict)):
        assert fails(word, is_strict) == (expected == "fails")
        assert skips(word, is_strict) == (expected == "skips")


@pytest.mark.parametrize(
    ("verdict", "headline"),
    [
        (
            Verdict(
                "p_infer_core",
                "regressed",
                "baseline",
                "tok/s",
                change_fraction=-0.0938,
                limit="-2.0 %",
            ),
            "p_infer_core regressed -9.4 % (limit -2.0 %)",
        ),
        (
            Verdict(
                "acc_infer",
                "regressed",
                "baseline",
                "fraction",
                change_pp=-2.1667,
                limit="-0.61 pp",
            ),
            "acc_infer regressed -2.17 pp (limit -0.61 pp)",
        ),
        (
            Verdict(
                "recompiles",
                "regressed",
                "baseline",
                "count",
                baseline=0.0,
                measured=2.0,
                limit="+0",
            ),
            "recompiles regressed +2 (limit +0)",
        ),
    ],
)
def test_the_headline_is_the_whole_story(verdict: Verdict, headline: str) -> None:
    assert verdict.headline == headline


@pytest.mark.parametrize(
    ("make", "word"),
    [(missing, "missing"), (incomparable, "incomparable"), (invalid, "invalid")],
)
def test_a_verdict_without_comparison_keeps_the_measured_number(
    make: Callable[[Metric, str], Verdict], word: Word
) -> None:
    made = make(SPEED, "no file baselines/cpu/tiny.json")

    assert made.word == word
    assert (made.measured, made.unit, made.gate) == (1179.8, "tok/s", "baseline")
    assert (made.baseline, made.change_fraction, made.change) == (None, None, "")
    assert made.headline == f"p_infer_core {word}: no file baselines/cpu/tiny.json"


def test_a_long_reason_is_cut_at_80_columns() -> None:
    headline = invalid(SPEED, "the clock was throttled " * 9).headline

    assert len(headline) <= 80
    assert headline.endswith("...")


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [("A", "B", "right -> wrong"), ("B", "A", "wrong -> right"), ("B", "-", "wrong -> wrong")],
)
def test_a_flip_knows_what_it_did(before: str, after: str, kind: str) -> None:
    assert Flip("law/3", "A", before, after, None).kind == kind


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (-9.44, "%", "-9.4 %"),
        (-0.001, "%", "+0.0 %"),
        (0.613, "pp", "+0.61 pp"),
        (-0.001, "pp", "+0.00 pp"),
        (2.0, "", "+2"),
    ],
)
def test_changes_have_a_sign_and_a_unit(value: float, unit: str, text: str) -> None:
    assert signed(value, unit) == text
