"""What is compared, and what is said of it, between two sides whose launches are told by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from fake_workers import (
    FakeLauncher,
    Script,
    answers,
    fidelity,
    generated,
    last,
    pair,
    plan,
    ready,
    workload,
)
from perfline.cases.case import GatesSpec
from perfline.compare import gates
from perfline.gates.verdict import Flip
from perfline.tasks.reference import PromptReference
from samples import packaged

CASE = packaged()  # fp32, letters or not as its YAML says
TWO = dataclasses.replace(CASE, tasks=("mmlu", "ceval"))


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
        ("fidelity", "prompts", 7),
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


def test_sides_that_ask_other_tasks_do_other_work():
    assert gates.other_work(CASE, TWO) == (
        "'tasks' is mmlu on A and mmlu, ceval on B: set it on both sides, or on neither"
    )
    assert gates.other_work(TWO, TWO) == ""


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
        assert ("A has unknown, B has sha256:q" in back) is ("B has unknown" in found)


def test_letters_are_held_to_what_rounding_explains_of_their_log_probabilities():
    a, b = answers(n=200), answers(n=200, shift=0.0003)
    record, said = compared(a, b)
    assert (record.questions, record.baseline_correct, record.candidate_correct) == (200, 200, 200)
    assert record.largest_difference == pytest.approx(0.0003, rel=1e-3)
    assert record.share == pytest.approx(0.0003 / 5.0003, rel=1e-3)
    verdict = said["letter_logprobs"]
    assert (verdict.word, verdict.gate, verdict.unit) == ("ok", "paired", "nats")
    assert (verdict.limit, verdict.flips) == ("5.0e-04 nats", ())
    assert verdict.measured == pytest.approx(rms_by_hand(a, b), rel=1e-9)
    assert verdict.reason == (
        "letters' log-probabilities differ by 4.2e-04 nats (rms; rounding explains 5.0e-04)"
    )
    assert said["acc_infer"].word == "ok"
    nothing = dataclasses.replace(a, letter_logits=np.zeros((200, 4), np.float32))
    assert compared(nothing, nothing)[1]["letter_logprobs"].word == "ok"


def rms_by_hand(a, b):
    squares = []
    for rows in zip(a.letter_logits.tolist(), b.letter_logits.tolist(), strict=True):
        totals = [math.log(sum(map(math.exp, row))) for row in rows]
        squares += [((y - totals[1]) - (x - totals[0])) ** 2 for x, y in zip(*rows, strict=True)]
    return math.sqrt(sum(squares) / len(squares))


def test_what_all_letters_have_in_common_is_no_difference():
    a = answers(n=8)
    b = dataclasses.replace(a, letter_logits=a.letter_logits + np.float32(3))
    assert compared(a, b)[1]["letter_logprobs"].measured == pytest.approx(0, abs=1e-6)


def test_a_choice_that_a_question_does_not_have_counts_for_nothing():
    a, b = answers(n=8), answers(n=8)
    for side in (a, b):
        side.letter_logits[::2, 3] = np.nan
    assert compared(a, b)[1]["letter_logprobs"].measured == 0
    b.letter_logits[1, 3] += 0.5  # of a question of four choices
    assert compared(a, b)[1]["letter_logprobs"].word == "unsure"


def test_one_question_of_many_is_enough_to_be_beyond_rounding():
    a, b = answers(n=200), answers(n=200)
    b.letter_logits[5, 2] -= 0.3
    record, said = compared(a, b)
    assert record.largest_difference == pytest.approx(0.3)
    assert record.share == pytest.approx(0.06)
    assert said["letter_logprobs"].word == "unsure"


def test_where_fidelity_is_known_the_letters_stand_for_an_accuracy_only():
    a, b = answers(n=200), answers(n=200, shift=0.01)
    _, verdicts = gates.answers(CASE, "inductor", a, b, ("fp32", "fp32"), known=True)
    assert [verdict.metric for verdict in verdicts] == ["acc_infer"]
    dummy = [dataclasses.replace(each, labels=None) for each in (a, b)]
    _, verdicts = gates.answers(CASE, "inductor", *dummy, ("fp32", "fp32"), known=True)
    assert [(each.metric, each.word) for each in verdicts] == [("letter_logprobs", "unsure")]


# --- what is computed in fp32, and in the case's own dtype


def numbers(a, b, engine="inductor", dtypes=("bf16", "bf16")):
    return gates.numbers(CASE, engine, a, b, dtypes)


def test_b_is_held_to_a_by_a_s_own_floor():
    (same,) = numbers(fidelity(), fidelity())
    assert (same.metric, same.word, same.gate) == ("fidelity_infer", "ok", "paired")
    assert (same.limit, same.baseline, same.measured) == ("1.0e-09 nats", 0.0, 0.0)
    assert same.reason.startswith("computes what A does: KL at most 0.0e+00")
    assert "eager" not in same.reason
    loose = dataclasses.replace(fidelity(kl=2e-9), variations={"attention": 1e-3})
    assert numbers(fidelity(), loose)[0].word == "regressed"  # B's floor is not asked
    assert numbers(loose, fidelity(kl=2e-9))[0].word == "ok"
    assert numbers(fidelity(), fidelity(kl=0.9e-9))[0].word == "ok"


def test_a_compiled_engine_s_own_fault_is_told_from_the_model_s():
    (compiled,) = numbers(fidelity(), fidelity(compiled=1e-3))
    assert (compiled.word, compiled.measured) == ("regressed", 1e-3)
    assert compiled.reason.startswith("computes something else than A does")
    assert "; the eager model computes what A does" in compiled.reason
    (both,) = numbers(fidelity(), fidelity(kl=1e-3))
    assert "; the eager model computes something else than A does" in both.reason
    (eager,) = numbers(fidelity(), fidelity(kl=1e-3), engine="eager")
    assert (eager.metric, eager.word) == ("fidelity_val", "regressed")
    assert "the eager model" not in eager.reason
    (eager,) = numbers(fidelity(), fidelity(compiled=1e-3), engine="eager")
    assert (eager.metric, eager.word) == ("fidelity_val", "ok")


def test_what_cannot_be_held_to_a_is_never_ok():
    a = fidelity()
    nothing = dataclasses.replace(a, apart={})
    elsewhere = {"sky/0": PromptReference("x", {"3": "1:-0.5 *:-0.9327521295671886"})}
    other = dataclasses.replace(a, references=dict.fromkeys(("eager", "inductor"), elsewhere))
    one_engine = dataclasses.replace(a, references={"eager": a.references["eager"]})
    short = dataclasses.replace(a, apart={"inductor": {"sky/0": (0.0,), "sky/1": ()}})
    words = [numbers(a, b)[0].word for b in (nothing, other, short, one_engine)]
    assert words == ["incomparable", "incomparable", "incomparable", "missing"]
    assert numbers(one_engine, a)[0].word == "missing"
    drifting = fidelity(drift=ROUNDED)
    for b in (other, one_engine):  # then the drift is none of the same work
        half = dataclasses.replace(drifting, references=b.references)
        assert len(numbers(drifting, half)) == 1
    assert numbers(a, nothing)[0].reason == (
        "A holds other positions of sky/0: give both sides the same perfline"
    )


def test_a_side_that_tells_no_numbers_is_missing_for_the_reason_it_gives():
    broken = dataclasses.replace(fidelity(), problem="no room")
    for a, b, why in (
        (None, fidelity(), "the perfline of A is too old to tell"),
        (fidelity(), None, "the perfline of B is too old to tell"),
        (fidelity(), broken, "B: no room"),
    ):
        (found,) = numbers(a, b)
        assert (found.metric, found.word) == ("fidelity_infer", "missing")
        assert (found.gate, found.unit) == ("paired", "nats")
        left_out = f"{why}; `fidelity: {{prompts: 0}}` in {CASE.source} leaves it out"
        assert found.reason == left_out


ROUNDED = {"rounded": (1.0, 1.2), "eager": (1.0, 1.1), "inductor": (0.5, 0.6)}


def drifted(inductor, dtypes=("bf16", "bf16"), a=ROUNDED, **changes):
    verdicts = numbers(
        fidelity(drift=a),
        fidelity(drift={**ROUNDED, "inductor": inductor, **changes}),
        "inductor",
        dtypes,
    )
    (drift,) = [verdict for verdict in verdicts if verdict.metric == "drift_infer"]
    return drift


def test_b_s_drift_is_held_to_what_rounding_costs_on_a_s_side():
    assert drifted((0.5, 0.6)).word == "ok"
    assert drifted((1.1, 1.3)).word == "ok"  # A's fused kernels round less than that, by luck
    beyond = drifted((9.0, 10.8))
    assert (beyond.word, beyond.gate) == ("regressed", "paired")
    assert beyond.reason.startswith("3.00 times what rounding costs")
    assert beyond.reason.endswith("; in all prompts alike")
    three = dict.fromkeys(("rounded", "eager", "inductor"), (1.0, 1.0, 1.0))
    unnamed = drifted((9.0, 9.0, 9.0), a=three, rounded=(1.0,) * 3, eager=(1.0,) * 3)
    assert unnamed.reason.endswith("or a kernel is broken")  # two prompts are known by name
    assert drifted((9.0, 10.8), rounded=(9.0, 10.8)).word == "regressed"  # B's floor is not asked


def test_a_fault_that_a_has_too_is_none_of_b_s():
    broken = {**ROUNDED, "inductor": (9.0, 10.8)}
    same = drifted((9.0, 10.8), a=broken)
    assert (same.word, same.reason[:31]) == ("ok", "1.00 times A's own error, 3.1e+")
    assert drifted((90.0, 108.0), a=broken).word == "regressed"


def test_another_dtype_on_purpose_is_held_to_its_own_rounding():
    coarse = {"rounded": (9.0, 10.8), "eager": (9.0, 10.0)}
    assert drifted((9.0, 10.0), dtypes=("fp16", "bf16"), **coarse).word == "ok"
    assert drifted((9.0, 10.0), dtypes=("fp32", "bf16"), a=None, **coarse).word == "ok"
    assert drifted((90.0, 100.0), dtypes=("fp16", "bf16"), **coarse).word == "regressed"
    both = fidelity(drift=ROUNDED), fidelity(kl=1e-3, drift=ROUNDED)  # its weights are rounded
    assert [v.metric for v in numbers(*both, dtypes=("fp16", "bf16"))] == ["drift_infer"]
    assert numbers(*both, dtypes=("fp16", "fp16"))[0].word == "regressed"
    assert [v.metric for v in numbers(fidelity(drift=ROUNDED), fidelity())] == ["fidelity_infer"]


def test_drift_of_other_prompts_is_incomparable():
    apart = fidelity(drift=ROUNDED, apart={})
    assert [v.metric for v in numbers(fidelity(drift=ROUNDED), apart)] == ["fidelity_infer"]
    other = drifted((1.0,))
    assert (other.word, other.gate, other.unit) == ("incomparable", "paired", "nats")
    assert other.reason == (
        "A and B do not tell the drift of the same prompts: give both the same perfline"
    )
    eager = {name: ROUNDED[name] for name in ("rounded", "eager")}
    assert drifted((1.0, 1.0), a=eager).word == "incomparable"
    assert drifted((1.0, 1.0), a=None).word == "incomparable"
    assert drifted((1.0, 1.0), a={**ROUNDED, "rounded": (1.0,)}).word == "incomparable"


def test_questions_that_cannot_be_paired_and_none_are_no_comparison():
    record, said = compared(answers(n=3), answers(n=2))
    assert (record.questions, record.share, record.tolerance) == (0, 0.0, 1e-4)
    assert (record.baseline_correct, record.largest_difference) == (None, 0.0)
    verdict = said["letter_logprobs"]
    assert (verdict.word, verdict.gate, verdict.unit) == ("incomparable", "paired", "nats")
    assert verdict.reason == "A answered 3 questions, B 2, and not the same ones"
    record, said = compared(answers(n=0), answers(n=0), dtypes=("fp32", "bf16"))
    assert (record.questions, record.tolerance) == (0, 3e-2)
    verdict = said["letter_logprobs"]
    assert (verdict.word, verdict.gate, verdict.unit) == ("missing", "paired", "nats")
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
        verdict = said["letter_logprobs"]
        assert (verdict.word, verdict.gate, verdict.unit) == ("missing", "paired", "nats")
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


# --- the tokens that were generated


def of_tokens(a, b, dtypes=("fp32", "fp32")):
    return gates.generated(CASE, "inductor", a, b, dtypes)


def test_the_first_other_token_of_each_prompt_is_told_with_how_far_behind_it_is():
    a = [generated(1, 2, 3), generated(4, 5, 6), generated(7, 7, 7)]
    b = [generated(1, 2, 3), generated(4, 8, 5), generated(6, 7, 7)]
    found = of_tokens(a, b)
    assert (found.metric, found.word) == ("decode_flips", "regressed")
    assert (found.gate, found.unit) == ("paired", "count")
    assert found.reason == "2 of 6 generated tokens differ from A's (0 more are ties)"
    assert found.flips == (
        Flip("single/1 token 1", "5", "5", "8", 2.0),
        Flip("single/2 token 0", "7", "7", "6", 2.0),  # A does not tell of it: as far as its last
    )


def test_generated_tokens_within_the_rounding_of_the_coarser_dtype_are_ties():
    a = dataclasses.replace(generated(1), logits=((10.0, 9.9, 8.0),))
    words = {
        dtypes: of_tokens([a], [generated(9)], dtypes).word
        for dtypes in (("fp32", "fp32"), ("fp32", "bf16"), ("bf16", "fp32"))
    }
    assert list(words.values()) == ["regressed", "ok", "ok"]
    small = dataclasses.replace(a, largest=(1.0,))
    assert of_tokens([small], [generated(9)], ("bf16", "bf16")).word == "regressed"


@pytest.mark.parametrize(
    ("a", "b", "word", "reason"),
    [
        (None, [generated(1)], "missing", "the perfline of A is too old to tell which tokens it"),
        ([generated(1)], None, "missing", "the perfline of B is too old to tell which tokens it"),
        ([generated(1, 2)], [generated(1)], "incomparable", "A generated 2 tokens, B 1"),
        ([generated(1)], [], "incomparable", "A generated 1 tokens, B 0"),
    ],
)
def test_generated_tokens_that_cannot_be_paired_are_never_ok(a, b, word, reason):
    found = of_tokens(a, b)
    assert (found.metric, found.word) == ("decode_flips", word)
    assert (found.gate, found.unit) == ("paired", "count")
    assert found.reason.startswith(reason)


# --- the case's other tasks


def of_ceval(a, b, engine="inductor"):
    return gates.more_answers(TWO, engine, "ceval", a, b, ("fp32", "fp32"))


def test_another_task_is_judged_by_its_own_scoring_under_its_own_name():
    """MMLU's answers are those of the whole vocabulary in tiny, C-Eval's are the letters."""
    right = answers(n=200)
    full = dataclasses.replace(right, argmax_letter=answers(bad_letters(9)).argmax_letter)
    assert compared(right, full, TWO)[1]["acc_infer"].word == "regressed"
    record, verdict = of_ceval(right, full)
    assert (verdict.metric, verdict.word) == ("acc_infer_ceval", "ok")
    assert (record.questions, record.baseline_correct, record.candidate_correct) == (200, 200, 200)
    record, verdict = of_ceval(right, answers(bad_letters(9)))
    assert (verdict.word, record.candidate_correct, len(verdict.flips)) == ("regressed", 191, 9)
    names = [of_ceval(right, right, engine)[1].metric for engine in ("eager", "my.module:My_Own")]
    assert names == ["acc_val_ceval", "acc_myown_ceval"]


def test_another_task_s_scores_beyond_rounding_are_kept_and_the_accuracy_decides():
    record, verdict = of_ceval(answers(n=200), answers(n=200, shift=0.3))
    assert (record.largest_difference, verdict.word) == (pytest.approx(0.3), "ok")


def test_another_task_that_a_side_cannot_tell_or_pair_is_never_ok():
    some = answers(n=3)
    assert of_ceval(None, some)[0] is None
    assert [of_ceval(*sides)[1].word for sides in ((None, some), (some, None))] == ["missing"] * 2
    assert of_ceval(some, None)[1].reason == (
        "the perfline of B is too old to answer any task but the case's first"
    )
    record, other = of_ceval(some, answers(n=2))
    assert (other.metric, other.word, record.questions) == ("acc_infer_ceval", "incomparable", 0)
    assert (other.gate, other.unit) == ("paired", "fraction")
    assert other.reason == "A answered 3 questions, B 2, and not the same ones"
    assert of_ceval(answers(n=0), answers(n=0))[1].word == "missing"
    assert of_ceval(some, dataclasses.replace(some, labels=None))[1].word == "missing"


def test_a_flip_shows_how_close_the_stored_answer_was():
    _, said = compared(answers(n=200), answers(bad_letters(9)))
    assert [flip.margin for flip in said["acc_infer"].flips] == [5.0] * 9


@pytest.mark.parametrize(("letters", "differ"), [({}, 0), ({0: "B", 1: "A"}, 2)])
def test_with_dummy_weights_the_letters_that_differ_are_counted(letters, differ):
    a, b = answers(n=20, labels=False), answers(letters, n=20, labels=False)
    verdict = compared(a, b)[1]["letter_logprobs"]
    assert verdict.word == ("unsure" if differ else "ok")
    assert verdict.reason.startswith("letters' log-probabilities differ by ")
    assert f"); {differ} of 20 answers differ and are no ties" in verdict.reason
    assert len(verdict.flips) == differ


def test_the_questions_that_let_the_accuracy_decide_are_as_many_as_said():
    limits = GatesSpec()
    assert [gates._resolved(n, limits) for n in (1473, 1474)] == [False, True]
    _, said = compared(answers(n=1473), answers(n=1473, shift=0.01))
    assert said["letter_logprobs"].reason.endswith("--questions 1474 lets the accuracy decide")
    _, said = compared(answers(n=1474), answers(n=1474, shift=0.01))
    assert said["letter_logprobs"].reason == (
        "letters' log-probabilities differ by 1.4e-02 nats (rms; rounding explains 5.0e-04): more "
        "than rounding, so the accuracy decides"
    )


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
    even = last(pair(1.0, 1.0))
    same = even.verdicts[0]
    assert (same.word, same.limit) == ("ok", "+2.0 %")
    assert same.reason == "a slowdown of 2 % is ruled out (p = 0.00098)"
    unsure = dataclasses.replace(slow.decision, word="unsure")
    assert gates.on_time(dataclasses.replace(slow, decision=unsure)).reason.startswith(
        "a slowdown of 2 % is neither shown nor ruled out"
    )
    stopped = gates.on_time(dataclasses.replace(slow, problem="it  broke\n" + "x" * 999), "invalid")
    assert (stopped.word, stopped.measured) == ("invalid", verdict.measured)
    assert stopped.reason == "it broke " + "x" * 391
    assert gates.on_time(dataclasses.replace(even, margin_fraction=0.1)).limit == "+10.0 %"
    assert gates.middle(slow, "baseline") == pytest.approx(1.0e-5)
    assert gates.middle(slow, "baseline", "whole_s") == pytest.approx(1.1e-5)
    assert gates.middle(slow, "candidate", "whole_s") == pytest.approx(1.375e-5)


def test_a_prompt_s_first_token_is_told_in_seconds():
    times = {"token_s": lambda *_: 1e-5, "step_s": lambda *_: 1e-3}
    both = FakeLauncher(*(Script(**times, first_s=lambda *_, s=s: s) for s in (0.5, 0.6)))
    asked = dataclasses.replace(plan(), workload=workload(kind="decode"))
    decode, ttft, *_ = last(both, asked).verdicts
    assert (decode.metric, decode.unit, ttft.metric) == ("decode_time", "us/tok", "ttft")
    assert (ttft.word, ttft.unit, ttft.gate) == ("regressed", "s", "paired")
    assert (ttft.baseline, ttft.measured) == (pytest.approx(0.5), pytest.approx(0.6))


def beside_time(a, b):
    """The verdicts on what one side is known to take and compile beside its time."""
    verdicts = last(FakeLauncher(Script(**a), Script(**b))).verdicts
    return {each.metric: each for each in verdicts if each.gate == "baseline"}


def test_memory_is_told_in_gib_and_not_at_all_where_a_counts_none():
    mem = beside_time({"memory_gib": 0.25}, {"memory_gib": 1.0})["mem"]
    assert (mem.word, mem.unit, mem.baseline, mem.measured) == ("regressed", "GiB", 0.25, 1.0)
    assert "mem" not in beside_time({"memory_gib": 0.0}, {"memory_gib": 1.0})


def test_what_was_compiled_is_told_graphs_first():
    found = beside_time({}, {"ready": ready(graph_breaks=1)})
    counts = {name: each.word for name, each in found.items() if each.unit == "count"}
    assert list(counts.items()) == [
        ("graphs", "ok"),
        ("graph_breaks", "regressed"),
        ("recompiles", "ok"),
    ]
