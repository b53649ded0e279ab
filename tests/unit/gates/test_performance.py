from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfline.cases.case import GatesSpec
from perfline.gates.accuracy import accuracy_baseline, accuracy_published, same_answers
from perfline.gates.performance import (
    Held,
    Run,
    against_sessions,
    compile_health,
    impossible_bandwidth,
    memory_baseline,
    straggler,
    throughput_baseline,
    throughput_published,
    too_few_rounds,
    too_many_thrown_out,
)
from perfline.gates.verdict import Verdict
from perfline.metrics import Metric
from perfline.tasks.answers import Answers, Scored

GATES = GatesSpec()
WORDS = ["regressed", "unsure", "ok", "improved"]  # as throughput rises


def accuracy(fraction: float) -> Metric:
    return Metric("acc_infer", fraction, "fraction", "higher")


def scored(answers: str, labels: str | None = None, first: int = 0) -> Scored:
    ids = tuple(f"law/{first + index}" for index in range(len(answers)))
    return Scored(ids, answers, labels or "A" * len(answers))


def paired(n: int, lost: int, gained: int, gates: GatesSpec = GATES) -> Verdict:
    """Judge n questions of which ``lost`` went right -> wrong and ``gained`` the other way."""
    same = "A" * (n - lost - gained)
    before, after = "A" * lost + "B" * gained + same, "B" * lost + "A" * gained + same
    return accuracy_baseline("acc_infer", scored(before), scored(after), gates)


def rounds(*values: float) -> Metric:
    return Metric("p_infer_core", sorted(values)[len(values) // 2], "tok/s", "higher", values)


def speed(change_fraction: float, sessions: int, sd: float = 0.01, margin: float = 0.02) -> Verdict:
    gates = dataclasses.replace(
        GATES, throughput_margin_fraction=margin, throughput_session_sd_fraction=sd
    )
    value = 1000.0 * (1 + change_fraction)
    return throughput_baseline(rounds(value, value, value), [1000.0] * sessions, gates)


# --- accuracy against the published figure


@pytest.mark.parametrize(
    ("measured", "word"),
    [(0.652, "ok"), (0.6421, "ok"), (0.6418, "regressed"), (0.6619, "ok"), (0.6622, "improved")],
)
def test_published_accuracy_is_held_to_one_point_at_full_mmlu(measured: float, word: str) -> None:
    verdict = accuracy_published(accuracy(measured), 14042, 0.652, GATES)

    assert (verdict.word, verdict.gate, verdict.limit) == (word, "published", "-1.00 pp")
    assert verdict.measured_error == pytest.approx(0.00402, abs=1e-5)
    assert verdict.change_pp == pytest.approx(100 * (measured - 0.652))


def test_published_accuracy_over_few_questions_takes_their_standard_error() -> None:
    verdict = accuracy_published(accuracy(0.59), 400, 0.652, GATES)

    assert (verdict.word, verdict.limit) == ("regressed", "-5.95 pp")
    assert accuracy_published(accuracy(0.60), 400, 0.652, GATES).word == "ok"


def test_more_than_the_published_accuracy_doubts_the_recipe() -> None:
    assert "recipe may differ" in accuracy_published(accuracy(0.70), 14042, 0.652, GATES).reason


# --- accuracy against the stored answers


@pytest.mark.parametrize(
    ("lost", "gained", "word"),
    [
        (0, 0, "ok"),
        (70, 70, "ok"),
        (35, 0, "ok"),  # 0.249 pp: sure, and below the margin; the bound is 0.35 pp
        (36, 0, "regressed"),  # 0.256 pp
        (90, 40, "regressed"),
        (80, 44, "regressed"),  # 0.256 pp, p = 0.0008
        (420, 384, "unsure"),  # 0.256 pp, p = 0.11
        (300, 300, "ok"),
        (1000, 1000, "unsure"),
        (0, 36, "improved"),
        (0, 35, "ok"),
        (44, 80, "improved"),
    ],
)
def test_full_mmlu_against_stored_answers(lost: int, gained: int, word: str) -> None:
    verdict = paired(14042, lost, gained)

    assert verdict.word == word
    assert verdict.limit == "-0.25 pp"
    assert verdict.change_pp == pytest.approx(100 * (gained - lost) / 14042)
    assert len(verdict.flips) == lost + gained
    assert "scaled" not in verdict.reason


def test_measured_and_baseline_accuracy_are_fractions_of_the_same_questions() -> None:
    verdict = paired(600, 13, 0)

    assert (verdict.baseline, verdict.measured) == (1.0, 587 / 600)
    assert verdict.headline == "acc_infer regressed -2.17 pp (limit -0.61 pp)"


@pytest.mark.parametrize(
    ("n", "lost", "gained", "word"),
    [
        (400, 0, 0, "ok"),  # 0.92 pp are not ruled out, twice that is
        (400, 2, 0, "ok"),
        (400, 4, 0, "unsure"),  # 1 pp, p = 0.06
        (400, 7, 0, "regressed"),  # 1.75 pp, p = 0.008
        (400, 0, 7, "improved"),
        (400, 40, 40, "unsure"),
        (20, 0, 0, "ok"),
        (20, 7, 0, "regressed"),
        (7, 0, 0, "ok"),
        (7, 2, 0, "ok"),
        (7, 3, 0, "unsure"),
        (7, 7, 0, "regressed"),
    ],
)
def test_few_questions_take_the_margins_they_can_resolve(
    n: int, lost: int, gained: int, word: str
) -> None:
    verdict = paired(n, lost, gained)
    ok_pp = 200 * (1 - 0.025 ** (1 / n))

    assert verdict.word == word
    assert f"margins scaled to {ok_pp / 2:.2f} and {ok_pp:.2f} pp" in verdict.reason
    assert f"{n} questions see a drop of" in verdict.reason


@pytest.mark.parametrize(("n", "lost"), [(1, 0), (1, 1), (6, 0), (6, 6)])
def test_fewer_questions_than_any_drop_needs_are_never_ok(n: int, lost: int) -> None:
    verdict = paired(n, lost, 0)

    assert verdict.word == "unsure"
    assert "too few to show any drop, ask at least 7" in verdict.reason


def test_unsure_says_what_would_settle_it() -> None:
    reason = paired(400, 4, 0).reason

    assert "4 right -> wrong and 0 wrong -> right in 400 questions (p = 0.062)" in reason
    assert "a drop of up to 2.54 pp is not ruled out, ok is below 1.84 pp; ask more" in reason


def test_a_cases_own_margins_are_used() -> None:
    strict = dataclasses.replace(GATES, accuracy_drop_regressed_pp=0.05, accuracy_drop_ok_pp=0.1)

    assert paired(14042, 14, 0, strict).word == "regressed"
    assert paired(14042, 14, 0).word == "ok"


@given(n=st.integers(1, 3000), lost=st.integers(0, 19), gained=st.integers(0, 19))
def test_one_more_loss_never_improves_the_verdict(n: int, lost: int, gained: int) -> None:
    n += lost + gained
    fewer, more = paired(n, lost, gained).word, paired(n, lost + 1, gained).word

    assert WORDS.index(more) <= WORDS.index(fewer)


def test_flips_are_named_sorted_and_keep_the_stored_margin() -> None:
    before = Scored(("law/10", "law/9", "art/0", "law/11"), "ABCA", "ACAA", (0.1, 2.5, 0.3, 4.0))
    after = Scored(("law/9", "law/10", "law/11", "art/0"), "DBAC", "CAAA")

    flips = accuracy_baseline("acc_infer", before, after, GATES).flips

    assert [(f.id, f.label, f.before, f.after, f.margin, f.kind) for f in flips] == [
        ("law/9", "C", "B", "D", 2.5, "wrong -> wrong"),
        ("law/10", "A", "A", "B", 0.1, "right -> wrong"),
    ]


def test_a_change_from_wrong_to_wrong_does_not_count() -> None:
    verdict = accuracy_baseline("acc_infer", scored("B" * 100), scored("C" * 100), GATES)

    assert (verdict.word, verdict.change_pp, len(verdict.flips)) == ("ok", 0.0, 100)
    assert verdict.reason.startswith("0 right -> wrong and 0 wrong -> right")


def test_fewer_questions_than_stored_are_compared_on_what_was_asked() -> None:
    verdict = accuracy_baseline("acc_infer", scored("A" * 400), scored("B" * 20), GATES)

    assert (verdict.word, verdict.change_pp) == ("regressed", -100.0)
    assert "in 20 of 400 questions" in verdict.reason


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (
            scored("AAAA", first=2),
            "2 of 4 questions are not in the baseline, such as law/4 and law/5",
        ),
        (
            scored("AAAA", "AABA"),
            "1 questions have another label than in the baseline, such as law/2",
        ),
        (Scored((), "", ""), "the run answered no question"),
    ],
)
def test_other_questions_are_incomparable(after: Scored, reason: str) -> None:
    verdict = accuracy_baseline("acc_infer", scored("AAAA"), after, GATES)

    assert (verdict.word, verdict.reason, verdict.flips) == ("incomparable", reason, ())
    assert verdict.change == ""


# --- throughput against the baseline's sessions


def test_one_session_rests_on_the_declared_spread_and_says_so() -> None:
    same = speed(0.0, sessions=1)

    assert (same.word, same.limit) == ("ok", "-5.7 %")
    assert same.reason.startswith("a slowdown of 5.7 % is ruled out (+-3.3 % between sessions")
    assert "for 2 % more sessions are needed, or a comparison" in same.reason

    verdict = speed(-0.03, sessions=1)
    assert verdict.word == "unsure"
    assert "+-3.3 % between sessions" in verdict.reason
    assert "spread declared in the case (1 session held)" in verdict.reason
    assert "`perfline baselines update CASE --add`" in verdict.reason


@pytest.mark.parametrize(
    ("change", "word", "limit"),
    [
        (-0.094, "regressed", "-2.0 %"),
        (-0.021, "regressed", "-2.0 %"),
        (-0.0185, "regressed", "-1.8 %"),
        (-0.017, "ok", "-2.0 %"),
        (0.0, "ok", "-2.0 %"),
        (0.009, "ok", "-2.0 %"),
        (0.011, "improved", "-2.0 %"),
    ],
)
def test_a_quiet_baseline_decides_at_its_margin(change: float, word: str, limit: str) -> None:
    verdict = speed(change, sessions=3, sd=0.0008)

    assert (verdict.word, verdict.limit) == (word, limit)
    assert verdict.change_fraction == pytest.approx(change)


@pytest.mark.parametrize(
    ("change", "word"), [(-0.05, "regressed"), (-0.03, "unsure"), (0.03, "ok"), (0.05, "improved")]
)
def test_a_noisy_baseline_is_unsure_below_what_it_resolves(change: float, word: str) -> None:
    assert speed(change, sessions=1).word == word


@pytest.mark.parametrize("held", [1, 2, 3, 8])
@pytest.mark.parametrize("spread", [0.005, 0.01])
def test_an_unchanged_run_passes_as_often_as_promised(held: int, spread: float) -> None:
    """A simulation with a fixed seed, up to the declared spread: 95 % ok, 1 % regressed."""
    random = np.random.default_rng(7)
    draws = 4_000
    words = [
        throughput_baseline(rounds(today, today, today), sessions, GATES).word
        for *sessions, today in np.exp(random.normal(0, spread, (draws, held + 1))).tolist()
    ]
    passed = words.count("ok") + (words.count("improved") if held > 1 else 0)
    assert passed >= 0.95 * draws
    assert words.count("regressed") <= 0.01 * draws


@pytest.mark.parametrize("held", [1, 3, 8])
def test_a_slowdown_that_ok_rules_out_is_called_ok_in_at_most_2_5_percent(held: int) -> None:
    """A simulation with a fixed seed, at the declared spread, of what each verdict rules out."""
    random = np.random.default_rng(8)
    draws, passed = 4_000, 0
    for *sessions, today in np.exp(random.normal(0, 0.01, (draws, held + 1))).tolist():
        limit = throughput_baseline(rounds(1, 1, 1), sessions, GATES).limit
        slow = today * (1 + float(limit.removesuffix(" %")) / 100)
        passed += throughput_baseline(rounds(slow, slow, slow), sessions, GATES).word == "ok"
    # 99.9 % of runs of this test would count no more, were the rate 2.5 %.
    assert passed <= 131


@pytest.mark.parametrize("anchored", [1, 3])
def test_an_anchor_accuses_an_unchanged_run_in_at_most_2_percent(anchored: int) -> None:
    """1 % for the latest sessions and 1 % for the anchor."""
    random = np.random.default_rng(9)
    draws = 4_000
    words = [
        against_sessions(
            rounds(today, today, today), Held(latest, anchor, "2026-11-01"), GATES, Run()
        ).word
        for today, *values in np.exp(random.normal(0, 0.01, (draws, 4 + anchored))).tolist()
        for latest, anchor in [(values[:3], values[3:])]
    ]
    assert words.count("regressed") <= 0.02 * draws


def test_sessions_that_spread_far_beyond_the_declared_one_do_not_stretch_the_margin() -> None:
    sessions = [1000.0, 1100.0, 900.0]
    verdict = throughput_baseline(rounds(1000, 1000, 1000), sessions, GATES)
    assert verdict.word == "unsure"


def test_the_embedded_cases_wide_margin_tells_same_from_twice_as_slow() -> None:
    assert speed(0.0, sessions=1, sd=0.08, margin=0.3).word == "ok"
    assert speed(-0.5, sessions=1, sd=0.08, margin=0.3).word == "regressed"


@given(
    changes=st.lists(st.floats(-0.5, 1.0), min_size=2, max_size=2),
    sessions=st.integers(1, 12),
    sd=st.floats(1e-4, 0.2),
    margin=st.floats(0.005, 0.5),
)
def test_a_faster_run_never_gets_a_worse_word(
    changes: list[float], sessions: int, sd: float, margin: float
) -> None:
    slow, fast = (speed(change, sessions, sd, margin) for change in sorted(changes))

    assert WORDS.index(slow.word) <= WORDS.index(fast.word)
    if fast.word == "improved":
        assert fast.change_fraction is not None
        assert fast.change_fraction > 0


@given(change=st.floats(-0.5, 0.5), sd=st.floats(1e-4, 0.05), sessions=st.integers(1, 9))
def test_a_regression_is_always_at_or_beyond_the_limit_it_names(
    change: float, sd: float, sessions: int
) -> None:
    verdict = speed(change, sessions, sd)

    if verdict.word == "regressed":
        assert 100 * change <= float(verdict.limit.removesuffix(" %")) + 0.051


def test_errors_are_of_the_rounds_and_of_the_sessions() -> None:
    verdict = throughput_baseline(rounds(990.0, 1000.0, 1010.0), [1000.0], GATES)

    assert verdict.measured == 1000.0
    assert verdict.measured_error == pytest.approx(10 / math.sqrt(3))
    assert verdict.baseline == pytest.approx(1000.0)
    assert verdict.baseline_error == pytest.approx(10.0)


def test_one_slow_round_does_not_move_the_verdict() -> None:
    quiet = dataclasses.replace(GATES, throughput_session_sd_fraction=0.001)
    verdict = throughput_baseline(rounds(1000, 1000, 1000, 1000, 300), [1000.0] * 3, quiet)

    assert (verdict.word, verdict.measured) == ("ok", 1000.0)


@pytest.mark.parametrize("samples", [(), (500.0,), (500.0, 500.0)])
def test_too_few_rounds_are_unsure(samples: tuple[float, ...]) -> None:
    metric = Metric("p_infer_core", 500.0, "tok/s", "higher", samples)
    verdict = throughput_baseline(metric, [1000.0], GATES)

    assert (verdict.word, verdict.measured) == ("unsure", 500.0)
    assert verdict.reason == f"too few samples: {len(samples)} rounds, 3 are needed"


@pytest.mark.parametrize(
    ("contention", "word"), [(None, "regressed"), (0.1, "regressed"), (0.5, "unsure")]
)
def test_a_contended_cpu_accuses_nobody(contention: float | None, word: str) -> None:
    slow = rounds(500.0, 500.0, 500.0)
    verdict = throughput_baseline(slow, [1000.0], GATES, contention)

    assert verdict.word == word
    assert ("another process took 50 % of the CPU" in verdict.reason) == (word == "unsure")


def test_contention_does_not_touch_what_is_fast_enough() -> None:
    verdict = throughput_baseline(rounds(2000.0, 2000.0, 2000.0), [1000.0], GATES, 0.9)

    assert verdict.word == "improved"


def test_unsure_says_how_many_more_sessions_would_settle_it() -> None:
    sessions = [1000.0, 1001.0, 999.0]
    verdict = throughput_baseline(rounds(978.0, 978.0, 978.0), sessions, GATES)

    assert verdict.word == "unsure"
    assert "from 3 sessions" in verdict.reason
    added = int(verdict.reason.split("add ")[1].split()[0])
    grown = sessions + [1001.0, 999.0] * (added // 2) + [1000.0] * (added % 2)
    assert throughput_baseline(rounds(978.0, 978.0, 978.0), grown, GATES).word == "regressed"


def test_unsure_says_when_more_sessions_would_not_help() -> None:
    verdict = throughput_baseline(rounds(980, 980, 980), [900.0, 1000.0, 1100.0], GATES)

    assert verdict.word == "unsure"
    assert verdict.reason.endswith("more of them would not help")


# --- the published throughput, memory, compile health


@pytest.mark.parametrize(
    ("value", "word"), [(9051.3, "ok"), (8600.0, "ok"), (8590.0, "regressed"), (9600.0, "improved")]
)
def test_published_throughput_is_judged_on_its_device(value: float, word: str) -> None:
    metric = Metric("p_infer_core", value, "tok/s", "higher")
    verdict = throughput_published(metric, 9051.3, True, GATES)

    assert verdict is not None
    assert (verdict.word, verdict.gate, verdict.limit) == (word, "published", "-5.0 %")


def test_published_throughput_is_not_judged_elsewhere() -> None:
    metric = Metric("p_infer_core", 10.0, "tok/s", "higher")

    assert throughput_published(metric, 9051.3, False, GATES) is None


@pytest.mark.parametrize(
    ("baseline", "measured", "word", "limit"),
    [
        (16.0, 16.15, "ok", "+1.0 %"),
        (16.0, 16.17, "regressed", "+1.0 %"),
        (16.0, 15.83, "improved", "+1.0 %"),
        (1.0, 1.0625, "ok", "+6.2 %"),
        (1.0, 1.063, "regressed", "+6.2 %"),
        (1.0, 0.93, "improved", "+6.2 %"),
    ],
)
def test_memory_may_grow_by_one_per_cent_or_64_mib(
    baseline: float, measured: float, word: str, limit: str
) -> None:
    verdict = memory_baseline(Metric("mem", measured, "GiB", "lower"), baseline, GATES)

    assert (verdict.word, verdict.limit) == (word, limit)
    assert verdict.change_fraction == pytest.approx(measured / baseline - 1)


@pytest.mark.parametrize(
    ("value", "word", "change"),
    [(0.0, "improved", "-1"), (1.0, "ok", "+0"), (2.0, "regressed", "+1")],
)
def test_any_more_recompiles_regress(value: float, word: str, change: str) -> None:
    verdict = compile_health(Metric("recompiles", value, "count", "lower"), 1.0)

    assert (verdict.word, verdict.change, verdict.limit) == (word, change, "+0")


@pytest.mark.parametrize("name", ["graphs", "graphs_decode"])
def test_fewer_graphs_are_no_improvement_by_themselves(name: str) -> None:
    verdict = compile_health(Metric(name, 1.0, "count", "lower"), 5.0)
    assert (verdict.word, verdict.change) == ("ok", "-4")


def letters(*rows: tuple[float, float, float, float]) -> Answers:
    n = len(rows)
    return Answers(
        ids=tuple(f"law/{i}" for i in range(n)),
        letter_logits=np.array(rows, dtype=np.float32),
        argmax=np.zeros(n, dtype=np.int64),
        argmax_letter="A" * n,
        labels=None,
        shots=(5,) * n,
    )


def test_equal_answers_of_both_engines_are_ok_whatever_the_rounding() -> None:
    verdict = same_answers(letters((9, 1, 2, 3)), letters((8.99, 1, 2, 3)), "fp16")
    assert (verdict.word, verdict.measured, verdict.flips) == ("ok", 0, ())
    assert "letter logits differ by 0.01 at most" in verdict.reason


def test_a_differing_answer_is_regressed_and_named() -> None:
    verdict = same_answers(letters((9, 1, 2, 3)), letters((1, 9, 2, 3)), "fp16")
    assert (verdict.word, verdict.measured) == ("regressed", 1)
    assert [(f.id, f.before, f.after, f.margin) for f in verdict.flips] == [("law/0", "A", "B", 6)]


@pytest.mark.parametrize(
    ("precision", "margin", "word"),
    [
        ("fp32", 0.0005, "ok"),  # 1e-4 of the largest logit, 9.x
        ("fp32", 0.005, "regressed"),
        ("fp16", 0.03, "ok"),  # 4e-3
        ("fp16", 0.05, "regressed"),
        ("bf16", 0.2, "ok"),  # 3e-2
        ("bf16", 0.4, "regressed"),
    ],
)
def test_a_tie_within_the_rounding_of_the_dtype_is_no_flip(precision, margin, word) -> None:
    before, after = letters((9 + margin, 9, 2, 3)), letters((9, 9 + margin, 2, 3))
    assert same_answers(before, after, precision).word == word


def test_a_tie_that_became_clear_cut_is_a_flip() -> None:
    assert (
        same_answers(letters((9.001, 9, 2, 3)), letters((5, 9, 2, 3)), "fp16").word == "regressed"
    )


# --- metrics of the user's own


def own(value: float, direction: str, samples: int = 3) -> Metric:
    return Metric("wait", value, "ms", direction, [value] * samples, own=True)


@pytest.mark.parametrize("change", [-0.2, -0.05, -0.01, 0.0, 0.01, 0.05, 0.2])
@pytest.mark.parametrize("sessions", [1, 8])
def test_a_metric_of_ones_own_is_judged_as_throughput_is(change: float, sessions: int) -> None:
    expected = speed(change, sessions)
    held = [1000.0] * sessions
    higher = throughput_baseline(own(1000.0 * (1 + change), "higher"), held, GATES)
    lower = throughput_baseline(own(1000.0 / (1 + change), "lower"), held, GATES)
    assert higher.word == lower.word == expected.word
    assert higher.change_fraction == pytest.approx(expected.change_fraction)
    assert lower.change_fraction == pytest.approx(1 / (1 + change) - 1)
    assert lower.limit[0] != higher.limit[0]


def test_a_percentile_is_judged_itself_and_not_by_the_median_of_its_rounds() -> None:
    metric = Metric("wait_p99", 1300.0, "ms", "lower", (1000.0, 1000.0, 1300.0), own=True)
    verdict = throughput_baseline(metric, [1000.0] * 8, GATES)
    assert (verdict.word, verdict.measured, verdict.measured_error) == ("regressed", 1300.0, None)
    mean = throughput_baseline(own(1000.0, "lower"), [1000.0] * 8, GATES)
    assert mean.measured_error is not None


def test_without_samples_it_takes_three_sessions() -> None:
    for sessions, word in ((1, "unsure"), (2, "unsure"), (8, "ok")):
        held = [1000.0] * sessions
        assert throughput_baseline(own(1000.0, "lower", 0), held, GATES).word == word


@pytest.mark.parametrize(("value", "held"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_what_has_no_ratio_is_unsure(value: float, held: float) -> None:
    found = throughput_baseline(own(value, "lower"), [held], GATES)
    assert (found.word, found.change) == ("unsure", "")
    assert "ratio" in found.reason


# --- what stands beside the word


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (500.0, "slower than chance allows (+-26.1 % between sessions, spread declared in the"),
        (2000.0, "faster than chance allows (+-26.1 % between sessions, spread declared in the"),
    ],
)
def test_a_sure_change_is_said_with_the_spread_it_was_held_against(measured, said) -> None:
    wide = dataclasses.replace(GATES, throughput_session_sd_fraction=0.08)
    verdict = throughput_baseline(rounds(measured, measured, measured), [1000.0], wide)
    assert (verdict.gate, verdict.unit) == ("baseline", "tok/s")
    assert verdict.reason.startswith(said)


def test_a_metric_of_ones_own_is_worse_or_better_not_slower() -> None:
    for value, said in (
        (800.0, "better than chance allows"),
        (1200.0, "worse than chance allows"),
        (1000.0, "a loss of the margin is ruled out"),
    ):
        held = [1000.0, 1000.1, 999.9] * 3
        assert throughput_baseline(own(value, "lower"), held, GATES).reason.startswith(said)


def test_a_margin_that_the_sessions_resolve_is_named_as_such() -> None:
    assert speed(0.0, sessions=3, sd=0.0008).reason.startswith(
        "a slowdown of the margin is ruled out (+-0.2 % between sessions, from 3 sessions)"
    )


@pytest.mark.parametrize(
    ("measured", "contention", "word"),
    [
        (920.0, 0.1, "regressed"),  # a tenth is let pass, and excuses nothing
        (920.0, 0.11, "unsure"),
        (500.0, 0.3, "regressed"),  # explains a third of the loss
        (500.0, 0.9, "unsure"),
        (500.0, 1.0, "unsure"),
    ],
)
def test_contention_explains_no_more_than_itself(measured, contention, word) -> None:
    slow = rounds(measured, measured, measured)
    verdict = throughput_baseline(slow, [1000.0], GATES, contention)
    assert verdict.word == word
    if word == "unsure":
        assert f"another process took {100 * contention:.0f} % of the CPU" in verdict.reason


def test_zero_or_less_has_no_ratio_wherever_it_stands() -> None:
    samples = Metric("wait", 1.0, "ms", "lower", (1.0, 0.0, 1.0), own=True)
    verdict = throughput_baseline(samples, [1.0], GATES)
    assert (verdict.word, verdict.gate, verdict.unit) == ("unsure", "baseline", "ms")
    assert (verdict.baseline, verdict.baseline_error, verdict.measured) == (None, None, 1.0)
    assert throughput_baseline(own(0.5, "lower"), [0.5] * 3, GATES).word == "ok"


def test_fewer_rounds_than_asked_for_are_unsure_but_for_a_full_pass() -> None:
    few = rounds(*[1000.0] * 5)
    verdict = throughput_baseline(few, [1000.0], GATES, rounds=7)
    assert (verdict.word, verdict.reason) == (
        "unsure",
        "too few samples: 5 rounds, 7 were asked for",
    )
    assert throughput_baseline(rounds(1000.0), [1000.0], GATES, full_pass=True).word == "ok"
    shown = Metric("itl_p50", 1.0, "s", "info")
    for other in (Metric("mem", 1.0, "GiB", "lower"), own(1.0, "lower", 1), shown):
        assert too_few_rounds(other, Run()) == ""
    assert too_few_rounds(Metric("x", 1.0, "tok/s", "higher", own=True), Run()) == ""


def test_published_memory_and_counts_name_what_they_were_held_against() -> None:
    more = memory_baseline(Metric("mem", 1.1, "GiB", "lower"), 1.0, GATES)
    assert (more.gate, more.baseline, more.measured) == ("baseline", 1.0, 1.1)
    assert more.reason == "worse than baseline by more than 6.2 %"
    same = memory_baseline(Metric("mem", 1.0, "GiB", "lower"), 1.0, GATES)
    assert same.reason == "within 6.2 % of baseline"
    less = memory_baseline(Metric("mem", 0.5, "GiB", "lower"), 1.0, GATES)
    assert less.reason == "better than baseline by more than 6.2 %"
    count = compile_health(Metric("graphs", 3.0, "count", "lower"), 2.0)
    assert count.gate == "baseline"
    assert count.reason.startswith("3 where the baseline has 2")


def test_exactly_the_margin_of_memory_is_within_it() -> None:
    exact = dataclasses.replace(GATES, memory_fraction=0.25)
    for value in (1.25, 0.75):
        assert memory_baseline(Metric("mem", value, "GiB", "lower"), 1.0, exact).word == "ok"


def test_as_many_sessions_as_are_said_settle_it_and_one_fewer_does_not() -> None:
    sessions = [1000.0, 1001.0, 999.0]
    edge = rounds(980.0, 980.0, 980.0)
    added = int(throughput_baseline(edge, sessions, GATES).reason.split("add ")[1].split()[0])
    for more, settled in ((added, True), (added - 1, False)):
        # As many, with the variance of these three.
        off = math.sqrt(1e-6 * (2 + more) / (2 * ((3 + more) // 2)))
        grown = [1000 * (1 + off), 1000 * (1 - off)] * ((3 + more) // 2) + [1000.0] * (
            (3 + more) % 2
        )
        assert (throughput_baseline(edge, grown, GATES).word != "unsure") is settled


# --- what is no measurement; the slow rank; latest sessions and anchor


@pytest.mark.parametrize(
    ("of", "thrown_out", "fine"),
    [(5, 0, True), (2, 0, True), (5, 1, True), (10, 2, True), (10, 3, False), (4, 1, False)],
)
def test_a_fifth_of_the_rounds_may_be_thrown_out(of: int, thrown_out: int, fine: bool) -> None:
    said = too_many_thrown_out(of, [f"heat {number}" for number in range(thrown_out)])
    assert said == "" if fine else said.endswith("the first with heat 0")
    if not fine:
        assert f"{thrown_out} of {of} rounds were thrown out (at most 20 %, and 3 must be" in said


def test_a_rank_slower_than_the_others_by_more_than_the_margin_is_told() -> None:
    assert straggler("rank 3", 0.02, GATES) == ""
    said = straggler("rank 3", 0.7, dataclasses.replace(GATES, throughput_margin_fraction=0.6))
    assert said.startswith(
        "rank 3 is 70.0 % slower than the median of the other ranks (margin 60.0"
    )


def test_a_loss_against_the_anchor_is_regressed_though_the_latest_sessions_allow_it() -> None:
    quiet = dataclasses.replace(GATES, throughput_session_sd_fraction=0.0008)
    held = Held([970.0] * 3, [1000.0] * 3, "2026-11-01")
    crept = against_sessions(rounds(965.0, 965.0, 965.0), held, quiet, Run())
    assert (crept.word, crept.change) == ("regressed", "-3.5 %")
    assert crept.reason.endswith("; against what was accepted on 2026-11-01: small steps add up")
    fine = against_sessions(rounds(995.0, 995.0, 995.0), held, quiet, Run())
    assert (fine.word, fine.change) == ("improved", "+2.6 %")
    assert fine.reason.endswith("; -0.5 % since what was accepted on 2026-11-01")
    slow = against_sessions(rounds(900.0, 900.0, 900.0), held, quiet, Run())
    assert (slow.word, slow.change) == ("regressed", "-7.2 %")
    assert slow.reason.endswith("; -10.0 % since what was accepted on 2026-11-01")
    alone = against_sessions(rounds(965.0, 965.0, 965.0), Held([970.0] * 3), quiet, Run())
    assert (alone.word, "since" in alone.reason) == ("ok", False)


def test_the_unit_says_which_gate_and_the_run_how_it_was_timed() -> None:
    slow, once = rounds(500.0, 500.0, 500.0), rounds(1000.0)
    held = Held([1000.0])
    assert against_sessions(slow, held, GATES, Run(0.9)).word == "unsure"
    assert against_sessions(once, held, GATES, Run(full_pass=True)).word == "ok"
    assert against_sessions(slow, held, GATES, Run(rounds=7)).reason.endswith("7 were asked for")
    assert against_sessions(own(1000.0, "lower"), held, GATES, Run()).word == "ok"
    memory = Metric("mem", 2.0, "GiB", "lower")
    assert against_sessions(memory, Held([1.0, 2.0]), GATES, Run()).limit == "+3.1 %"
    graphs = Metric("graphs", 2.0, "count", "lower")
    assert against_sessions(graphs, Held([1.0, 2.0]), GATES, Run()).change == "+0"


def test_sessions_to_add_are_never_fewer_than_one() -> None:
    """Two sessions lean on the declared spread more than three: that is no way to settle it."""
    said = throughput_baseline(rounds(965, 965, 965), [1000.0, 1010.0, 990.0], GATES).reason
    assert int(said.split("add ")[1].split()[0]) >= 1


def test_no_step_reads_more_than_memory_gives() -> None:
    assert impossible_bandwidth(()) == ""
    assert impossible_bandwidth((1.1, 0.4, 1.3)) == ""  # the median of rounds counts
    assert impossible_bandwidth((1.2,)).startswith(
        "a step would read 120 % of the memory bandwidth measured here (at most 110 % can be): "
    )
