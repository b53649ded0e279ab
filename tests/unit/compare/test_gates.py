"""What is compared, and what is said of it, between two sides whose launches are told by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from fake_workers import answers, last, pair, ready
from perfline.cases.case import GatesSpec
from perfline.compare import gates
from samples import packaged

CASE = packaged()  # fp32, letters or not as its YAML says


def compared(a, b, case=CASE, dtypes=("fp32", "fp32")):
    record, verdicts = gates.answers(case, "inductor", a, b, dtypes)
    return record, {verdict.metric: verdict for verdict in verdicts}


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("mmlu", "mmlu_dir", "elsewhere"),
        ("mmlu", "few_shots", 4),
        ("mmlu", "max_prompt_tokens", 77),
        ("mmlu", "scoring", "?"),
        ("model", "bos", "?"),
        ("throughput", "sample", 77),
        ("throughput", "head", "?"),
        ("throughput", "min_round_s", 7.7),
    ],
)
def test_a_setting_that_changes_the_work_is_named(section, key, value):
    part = dataclasses.replace(getattr(CASE, section))
    object.__setattr__(part, key, value)
    other = dataclasses.replace(CASE)
    object.__setattr__(other, section, part)
    old = getattr(getattr(CASE, section), key)
    assert gates.other_work(CASE, other) == (
        f"'{section}.{key}' is {old} on A and {value} on B: set it on both sides, or on neither"
    )
    assert gates.other_work(CASE, CASE) == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"machine": "other"}, "A ran on fake-gpu, B on other: give both sides the same device"),
        ({"facts": {"weights": "w", "mmlu": "sha256:q"}}, "the weights differ: A has sha256:w, B"),
        ({"facts": {"weights": "sha256:w"}}, "the mmlu differ: A has sha256:q, B has unknown"),
        ({"prompts_digest": "x"}, "the timed prompts differ: A has sha256:p of 1000 tokens, B x"),
        (
            {"tokens": 1001},
            "the timed prompts differ: A has sha256:p of 1000 tokens, B sha256:p of",
        ),
    ],
)
def test_launches_that_do_not_compare_are_told(changes, said):
    found = gates.mismatch({"baseline": ready(), "candidate": ready(**changes)})
    assert found.startswith(said)
    assert bool(found) is bool(said)
    if "facts" in changes:
        back = gates.mismatch({"baseline": ready(**changes), "candidate": ready()})
        assert back.startswith(said.partition(":")[0])


def test_letter_logits_are_held_to_a_share_of_each_question_s_largest():
    a, b = answers(n=200), answers(n=200, shift=0.0004)
    record, said = compared(a, b)
    assert (record.questions, record.baseline_correct, record.candidate_correct) == (200, 200, 200)
    assert record.largest_difference == pytest.approx(0.0004, rel=1e-3)
    assert record.share == pytest.approx(0.0004 / 5.0004, rel=1e-3)
    verdict = said["letter_logits"]
    assert (verdict.word, verdict.gate, verdict.unit) == ("ok", "paired", "logits")
    assert (verdict.limit, verdict.flips) == ("0.0001 rel", ())
    assert verdict.measured == record.largest_difference
    assert verdict.reason == (
        "letter logits differ by 0.0004 at most, 8e-05 of the largest (rounding: 0.0001)"
    )
    assert said["acc_infer"].word == "ok"
    nothing = dataclasses.replace(a, letter_logits=np.zeros((200, 4), np.float32))
    assert compared(nothing, nothing)[1]["letter_logits"].word == "ok"
    assert compared(answers(n=200, shift=-9), answers(n=200, shift=-9.0005))[0].share == (
        pytest.approx(0.0005 / 9.0005, rel=1e-2)
    )


def test_the_difference_that_counts_is_the_largest_of_any_question():
    a, b = answers(n=8), answers(n=8)
    b.letter_logits[5, 2] -= 0.3
    record, _ = compared(a, b)
    assert record.largest_difference == pytest.approx(0.3)
    assert record.share == pytest.approx(0.06)


def test_questions_that_cannot_be_paired_and_none_are_no_comparison():
    record, said = compared(answers(n=3), answers(n=2))
    assert (record.questions, record.share, record.tolerance) == (0, 0.0, 1e-4)
    assert (record.baseline_correct, record.largest_difference) == (None, 0.0)
    verdict = said["letter_logits"]
    assert (verdict.word, verdict.gate, verdict.unit) == ("incomparable", "paired", "logits")
    assert verdict.reason == "A answered 3 questions, B 2, and not the same ones"
    record, said = compared(answers(n=0), answers(n=0), dtypes=("fp32", "bf16"))
    assert (record.questions, record.tolerance) == (0, 3e-2)
    verdict = said["letter_logits"]
    assert (verdict.word, verdict.gate, verdict.unit) == ("missing", "paired", "logits")
    assert verdict.reason.endswith("ask with --questions 200")


def without_logits(told):
    return dataclasses.replace(told, letter_logits=np.full((len(told.ids), 4), np.nan, np.float32))


def test_an_engine_without_letter_logits_is_held_to_its_accuracy():
    case = dataclasses.replace(CASE, mmlu=dataclasses.replace(CASE.mmlu, scoring="full-vocab"))
    good = without_logits(answers(n=200))
    bad = without_logits(answers(n=200, wrong={i: "ABCD"[(i + 1) % 4] for i in range(9)}))
    for a, b in ((good, bad), (answers(n=200), bad), (good, answers(bad_letters(9)))):
        record, said = compared(a, b, case)
        assert (record.questions, record.baseline_correct) == (200, 200)
        assert (record.candidate_correct, record.share, record.tolerance) == (191, 0.0, 1e-4)
        assert {name: verdict.word for name, verdict in said.items()} == {"acc_infer": "regressed"}
    dummy = dataclasses.replace(good, labels=None)
    for a, b in ((dummy, dummy), (good, dummy), (dummy, good)):
        record, said = compared(a, b, case)
        assert (record.questions, record.baseline_correct) == (200, None)
        verdict = said["letter_logits"]
        assert (verdict.word, verdict.gate, verdict.unit) == ("missing", "paired", "logits")
        assert verdict.reason.endswith("dummy weights have no accuracy")


def bad_letters(count):
    return {i: "ABCD"[(i + 1) % 4] for i in range(count)}


def test_the_case_s_scoring_says_which_answers_count():
    """The letters are all right; over the vocabulary 9 of B's are not, and the other way round."""
    right = answers(n=200)
    full = dataclasses.replace(right, argmax_letter=answers(bad_letters(9)).argmax_letter)
    for scoring, correct in (("letters", 200), ("full-vocab", 191)):
        case = dataclasses.replace(CASE, mmlu=dataclasses.replace(CASE.mmlu, scoring=scoring))
        record, said = compared(right, full, case)
        assert record.candidate_correct == correct
        assert said["acc_infer"].word == ("ok" if correct == 200 else "regressed")
        assert said["acc_infer"].measured == correct / 200


def test_a_flip_shows_how_close_the_stored_answer_was():
    _, said = compared(answers(n=200), answers(bad_letters(9)))
    assert [flip.margin for flip in said["acc_infer"].flips] == [5.0] * 9


def test_the_questions_that_let_the_accuracy_decide_are_as_many_as_said():
    limits = GatesSpec()
    assert [gates._resolved(n, limits) for n in (1473, 1474)] == [False, True]
    _, said = compared(answers(n=1473), answers(n=1473, shift=0.01))
    assert said["letter_logits"].reason.endswith("--questions 1474 lets the accuracy decide")
    _, said = compared(answers(n=1474), answers(n=1474, shift=0.01))
    assert said["letter_logits"].reason.endswith("more than rounding, so the accuracy decides")


def test_the_coarser_of_both_dtypes_counts():
    a = answers(n=4)
    for dtypes, tolerance in (
        (("fp32", "bf16"), 3e-2),
        (("bf16", "fp16"), 3e-2),
        (("fp16", "fp32"), 4e-3),
        (("?", "?"), 1e-4),
    ):
        assert compared(a, a, dtypes=dtypes)[0].tolerance == tolerance


def test_a_word_on_time_stands_on_half_the_margin_and_ok_on_all_of_it():
    half = math.sqrt(1.02) - 1
    assert gates.bound("regressed", 0.02) == pytest.approx(half)
    assert gates.bound("improved", 0.02) == pytest.approx(1 / (1 + half) - 1)
    assert gates.bound("ok", 0.02) == gates.bound("unsure", 0.02) == 0.02


def test_the_time_of_both_sides_is_told_in_microseconds_a_token():
    slow = last(pair(1.0, 1.25))
    verdict = slow.verdicts[0]
    assert (verdict.metric, verdict.gate, verdict.unit) == ("core_time", "paired", "us/tok")
    assert (verdict.word, verdict.limit) == ("regressed", "+1.0 %")
    assert verdict.baseline == pytest.approx(10.0)
    assert verdict.measured == pytest.approx(12.5)
    assert verdict.change_fraction == pytest.approx(0.25)
    assert verdict.reason == (
        "slower than chance allows (p = 0.00098), by more than half the margin of 2 %"
    )
    fast = last(pair(1.25, 1.0)).verdicts[0]
    assert (fast.word, fast.limit) == ("improved", "-1.0 %")
    assert fast.reason == "faster than chance allows (p = 0.00098)"
    same = last(pair(1.0, 1.0)).verdicts[0]
    assert (same.word, same.limit) == ("ok", "+2.0 %")
    assert same.reason == "a slowdown of 2 % is ruled out (p = 0.00098)"
    stopped = gates.on_time(dataclasses.replace(slow, problem="it  broke\n" + "x" * 999), "invalid")
    assert (stopped.word, stopped.measured) == ("invalid", verdict.measured)
    assert stopped.reason == "it broke " + "x" * 391
    assert gates.middle(slow, "baseline", "whole_s") == pytest.approx(1.1e-5)
    assert gates.middle(slow, "candidate", "whole_s") == pytest.approx(1.375e-5)
