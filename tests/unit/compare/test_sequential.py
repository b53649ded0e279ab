from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from perfline.compare.sequential import (
    ALPHA,
    LOOKS,
    OK_ALPHA,
    Decision,
    decide,
    hodges_lehmann,
    interval,
    looks_up_to,
    rounds_per_launch,
    shared_alpha,
    signed_rank_p,
    spreads,
)
from perfline.gates.statistics import clopper_pearson

MARGIN = math.log1p(0.02)

# Eighths are exact in binary, so that ties and zeros are ties and zeros.
TIED = st.lists(st.integers(-6, 6).map(lambda n: n / 8), max_size=9)
UNTIED = st.lists(st.integers(1, 400), min_size=1, max_size=14, unique=True).flatmap(
    lambda sizes: st.tuples(*(st.sampled_from([size / 8, -size / 8]) for size in sizes))
)
VALUES = st.lists(st.integers(-400, 400).map(lambda n: n / 4096), min_size=1, max_size=60)


def brute_force_p(values: list[float], at: float = 0.0) -> float:
    """P(W+ >= observed) by all 2^n assignments of signs, with scipy's mid-ranks."""
    away = [value - at for value in values if value != at]
    ranks = scipy.stats.rankdata([abs(value) for value in away])
    observed = sum(rank for rank, value in zip(ranks, away, strict=True) if value > 0)
    sums = [
        sum(itertools.compress(ranks, signs))
        for signs in itertools.product([0, 1], repeat=len(away))
    ]
    return sum(total >= observed for total in sums) / len(sums)


def spread(count: int, centre: float, sd: float = 0.017) -> list[float]:
    """Values at the normal distribution's quantiles: exactly symmetric about ``centre``."""
    return [float(x) for x in centre + sd * scipy.stats.norm.ppf((np.arange(count) + 0.5) / count)]


# --- the exact test


@given(UNTIED)
def test_the_p_value_is_scipys_exact_one(values: tuple[float, ...]) -> None:
    reference = scipy.stats.wilcoxon(values, alternative="greater", method="exact").pvalue

    assert signed_rank_p(values) == pytest.approx(reference, rel=1e-12)


@pytest.mark.parametrize("count", LOOKS)
def test_the_p_value_is_scipys_exact_one_at_every_look(count: int) -> None:
    values = np.random.default_rng(count).normal(0.1, 1, count)

    for sign in (1, -1):
        reference = scipy.stats.wilcoxon(sign * values, alternative="greater", method="exact")
        assert signed_rank_p(sign * values) == pytest.approx(reference.pvalue, rel=1e-9)


@settings(max_examples=60)
@given(TIED, st.sampled_from([0.0, 0.25, -0.5]))
def test_with_ties_and_zeros_it_is_the_enumeration_of_all_signs(
    values: list[float], at: float
) -> None:
    assert signed_rank_p(values, at) == pytest.approx(brute_force_p(values, at), rel=1e-12)


def test_known_p_values() -> None:
    assert signed_rank_p([]) == 1.0
    assert signed_rank_p([0.0, 0.0]) == 1.0
    assert signed_rank_p([0.3] * 10) == 2**-10
    assert signed_rank_p([-0.3] * 10) == 1.0
    assert signed_rank_p([1.0, 2.0, 3.0, -4.0]) == 7 / 16  # 4 of 10 rank sums: 6 or more


@given(VALUES, st.integers(0, 100).map(lambda n: n / 4096))
def test_a_shift_upwards_never_weakens_the_case_for_larger(
    values: list[float], shift: float
) -> None:
    distinct = sorted(set(values))
    before = [value + index / 2**30 for index, value in enumerate(distinct)]  # no ties, no zeros

    assert signed_rank_p([value + shift for value in before]) <= signed_rank_p(before) + 1e-12


@given(VALUES)
def test_the_two_directions_overlap_in_what_was_observed(values: list[float]) -> None:
    upwards, downwards = signed_rank_p(values), signed_rank_p([-value for value in values])

    assert 0 < upwards <= 1
    assert upwards + downwards >= 1 - 1e-12


@pytest.mark.parametrize("count", [10, 12])
@pytest.mark.parametrize("tied", [False, True])
def test_the_false_alarm_rate_at_a_look_is_exactly_what_it_may_be(count: int, tied: bool) -> None:
    """Over all equally likely signs, p <= alpha in the largest achievable share up to alpha."""
    sizes = [1 + index // 3 if tied else 1 + index for index in range(count)]
    p_values = np.array(
        [
            signed_rank_p([size * sign for size, sign in zip(sizes, signs, strict=True)])
            for signs in itertools.product([1, -1], repeat=count)
        ]
    )

    for alpha in (ALPHA, OK_ALPHA, 0.05):
        rate = float(np.mean(p_values <= alpha))
        assert rate <= alpha
        assert rate == pytest.approx(p_values[p_values <= alpha].max(initial=0.0), rel=1e-9)


def test_the_false_alarms_of_all_looks_add_up_to_less_than_1_percent() -> None:
    assert len(LOOKS) * ALPHA < 0.01
    assert 2.0 ** -LOOKS[0] <= ALPHA  # the first look can already tell


# --- estimate and interval


@given(VALUES)
def test_the_estimate_is_the_median_of_all_pairwise_means(values: list[float]) -> None:
    averages = [
        (values[i] + values[j]) / 2 for i in range(len(values)) for j in range(i, len(values))
    ]

    assert hodges_lehmann(values) == pytest.approx(float(np.median(averages)), abs=1e-15)
    assert min(values) <= hodges_lehmann(values) <= max(values)


def test_one_stray_launch_hardly_moves_the_estimate() -> None:
    calm = spread(11, 0.01)

    assert hodges_lehmann([*calm, 3.0]) == pytest.approx(0.01, abs=0.003)


def test_no_estimate_of_nothing() -> None:
    with pytest.raises(ValueError, match="no value"):
        hodges_lehmann([])


@given(UNTIED, st.sampled_from([0.8, 0.95, 0.98]))
def test_the_interval_holds_exactly_what_the_test_does_not_reject(
    values: tuple[float, ...], confidence: float
) -> None:
    found = interval(values, confidence)
    tail = (1 - confidence) / 2

    if found is None:
        assert 2.0 ** -len(values) > tail
        return
    low, high = found
    step = 2.0**-6  # Walsh averages lie at least 2^-4 apart, or are equal
    for inside in (low + step, high - step):
        if low < high:
            assert signed_rank_p(values, inside) > tail
            assert signed_rank_p([-value for value in values], -inside) > tail
    assert signed_rank_p(values, low - step) <= tail
    assert signed_rank_p([-value for value in values], -(high + step)) <= tail


@pytest.mark.parametrize(("count", "covered"), [(7, True), (6, False), (1, False), (0, False)])
def test_98_percent_take_7_pairs(count: int, covered: bool) -> None:
    assert (interval(spread(count, 0.0), 0.98) is not None) is covered


def test_a_tail_that_is_exactly_what_may_miss_is_an_interval() -> None:
    assert interval([1, 2, 3, 4, 5, 6, 7], 1 - 2**-6) == (1.0, 7.0)


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    samples = rng.standard_t(3, (2000, 14))
    found = [interval(row.tolist(), 0.98) for row in samples]
    covered = sum(pair is not None and pair[0] <= 0 <= pair[1] for pair in found)

    assert clopper_pearson(covered, len(samples), 0.999)[0] <= 0.9834 + 1e-4
    assert clopper_pearson(covered, len(samples), 0.999)[1] >= 0.98


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_ratio_that_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=f"{bad} among the values; expected finite"):
        signed_rank_p([0.1, bad])


# --- the decision


@pytest.mark.parametrize(
    ("centre", "word"),
    [(0.05, "regressed"), (0.02, "regressed"), (0.0, "ok"), (-0.05, "improved"), (-0.005, "ok")],
)
def test_a_clear_case_is_settled_at_the_first_look(centre: float, word: str) -> None:
    found = decide(spread(10, centre, sd=0.003), MARGIN)

    assert (found.word, found.pairs, found.to_settle) == (word, 10, None)
    assert found.estimate == pytest.approx(centre, abs=1e-12)
    assert found.alpha == ALPHA


@pytest.mark.parametrize("count", [9, 11, 13, 15, 47])
def test_between_looks_nothing_is_decided_however_clear(count: int) -> None:
    found = decide(spread(count, 0.3, sd=0.001), MARGIN)

    assert (found.word, found.alpha) == (None, 0.0)
    assert found.p_slower == 2.0**-count


def test_a_sure_slowdown_below_half_the_margin_is_ok() -> None:
    found = decide(spread(10, 0.008, sd=0.002), MARGIN)

    assert found.p_slower <= ALPHA
    assert found.word == "ok"


def test_a_sure_slowdown_between_half_and_the_whole_margin_is_told() -> None:
    found = decide(spread(10, 0.012, sd=0.002), MARGIN)

    assert found.p_slower <= ALPHA
    assert found.p_margin <= OK_ALPHA
    assert found.word == "regressed"


def test_a_last_look_of_ones_own_is_no_more_looks_than_there_are() -> None:
    assert looks_up_to(LOOKS[-1]) == LOOKS
    assert looks_up_to(LOOKS[1]) == LOOKS[:2]  # not that one twice
    assert looks_up_to(LOOKS[1] + 1) == (*LOOKS[:2], LOOKS[1] + 1)


@pytest.mark.parametrize("count", [LOOKS[0], LOOKS[-1]])
def test_equal_values_are_ok_and_do_not_divide_by_their_spread(count: int) -> None:
    found = decide([0.0] * count, MARGIN)

    assert (found.word, found.estimate, found.p_slower, found.p_faster) == ("ok", 0.0, 1.0, 1.0)
    assert decide([0.05] * count, MARGIN).word == "regressed"


def test_noise_goes_on_and_ends_unsure_with_the_pairs_it_takes() -> None:
    on_the_way = decide(spread(36, 0.01, sd=0.06), MARGIN)
    capped = decide(spread(LOOKS[-1], 0.01, sd=0.06), MARGIN)

    assert on_the_way.word is None
    assert capped.word == "unsure"
    # ((2.326 + 0.842) x 0.06 / (0.0198 - 0.01))^2 / 0.955 = 394; the quantiles' MAD is 1 % larger
    assert capped.to_settle == pytest.approx(394, rel=0.05)


@pytest.mark.parametrize(
    ("value", "word"),
    [(0.125, "ok"), (-0.125, "ok"), (0.126, "regressed"), (-0.126, "improved"), (-0.11, "ok")],
)
def test_a_word_takes_more_than_half_the_margin(value: float, word: str) -> None:
    assert decide([value] * 10, 0.25).word == word


@pytest.mark.parametrize(("value", "word"), [(0.2, "regressed"), (-0.2, "improved"), (0.1, "ok")])
def test_a_p_value_that_is_exactly_alpha_is_enough(value: float, word: str) -> None:
    assert decide([value] * 10, 0.25, alpha=2**-10, ok_alpha=2**-10).word == word


def test_to_settle_is_never_fewer_than_a_p_value_takes_and_never_what_is_there() -> None:
    """2^-10 is the first p-value below alpha; equal values have no spread to wait for."""
    assert [decide([0.25] * n, 0.25).to_settle for n in (1, 2, 3, 11)] == [None, 10, 10, 12]


def test_beyond_the_looks_it_is_unsure() -> None:
    assert decide(spread(LOOKS[-1] + 1, 0.3, sd=0.001), MARGIN).word == "unsure"


def test_without_pairs_everything_is_absent() -> None:
    found = decide([], MARGIN)

    assert found == Decision(
        None, 0, None, None, None, pytest.approx(0.98), 1.0, 1.0, 1.0, 0.0, None
    )


@pytest.mark.parametrize("margin", [0.0, -0.1, math.nan])
def test_a_margin_of_nothing_is_refused(margin: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        decide([0.1], margin)


@given(VALUES)
def test_no_word_contradicts_what_is_shown_beside_it(values: list[float]) -> None:
    exact = sorted({value + index / 2**30 for index, value in enumerate(values)})
    found = decide(exact, MARGIN, looks=range(10, 61))

    if found.word in ("regressed", "improved", "ok"):
        assert found.estimate is not None
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.estimate <= found.high
        assert found.word != "regressed" or (found.low > 0 and found.estimate > MARGIN / 2)
        assert found.word != "improved" or (found.high < 0 and found.p_margin <= OK_ALPHA)
        assert found.word != "ok" or found.high <= MARGIN


@given(VALUES)
def test_exchanged_roles_mirror_the_numbers(values: list[float]) -> None:
    there = decide(values, MARGIN, looks=range(10, 61))
    back = decide([-value for value in values], MARGIN, looks=range(10, 61))

    assert (there.p_slower, there.p_faster) == (back.p_faster, back.p_slower)
    assert (there.word == "regressed") <= (back.word == "improved")
    assert (back.word == "regressed") <= (there.word == "improved")


def to_the_end(values: np.ndarray, looks: tuple[int, ...] = LOOKS) -> Decision:
    for look in looks:
        found = decide(values[:look].tolist(), MARGIN)
        if found.word is not None:
            return found
    raise AssertionError("the last look always decides")


def test_false_alarms_over_all_looks_stay_below_1_percent() -> None:
    """Heavy tails and a large spread, so that most runs take every look; the seed is fixed."""
    rng = np.random.default_rng(20)
    runs = [to_the_end(row) for row in 0.06 * rng.standard_t(3, (1500, LOOKS[-1]))]
    alarms = sum(run.word == "regressed" for run in runs)

    assert np.mean([run.pairs for run in runs]) > 36
    assert 0 < alarms / len(runs) <= 0.01


def test_a_slowdown_of_the_margin_is_seen_at_a_spread_of_1_7_percent() -> None:
    rng = np.random.default_rng(21)
    runs = [to_the_end(row) for row in rng.normal(MARGIN, 0.017, (600, LOOKS[-1]))]
    words = [run.word for run in runs]

    assert words.count("regressed") / len(runs) >= 0.95
    assert words.count("ok") / len(runs) <= 0.03  # one in a hundred at each of the looks at most
    assert np.mean([run.pairs for run in runs]) <= 16


@pytest.mark.parametrize("spiked", [0.0, 0.1])
def test_a_slowdown_of_the_margin_is_seen_at_a_spread_of_3_percent(spiked: float) -> None:
    """With spikes, one launch pair in ten has five times the spread."""
    rng = np.random.default_rng(21)
    noise = rng.normal(0.0, 0.03, (600, LOOKS[-1]))
    noise *= np.where(rng.random(noise.shape) < spiked, 5.0, 1.0)
    words = [to_the_end(MARGIN + row).word for row in noise]

    assert words.count("regressed") / len(words) >= 0.95
    assert words.count("ok") / len(words) <= 0.04


def test_to_settle_is_about_the_number_that_settles_it() -> None:
    rng = np.random.default_rng(22)
    told = decide(spread(10, 0.0, sd=0.03), MARGIN).to_settle
    assert told is not None
    settled = [
        decide(row.tolist(), MARGIN, looks=(told,)).word != "unsure"
        for row in rng.normal(0.0, 0.03, (300, told))
    ]

    assert 0.7 <= np.mean(settled) <= 0.92


# --- several cases


def fallen(p_values: list[float], alpha: float) -> list[bool]:
    limits = shared_alpha(p_values, alpha)
    return [p <= limit for p, limit in zip(p_values, limits, strict=True)]


def reference_holm(p_values: list[float], alpha: float) -> list[bool]:
    """Adjusted p-values: the running maximum of (K - i) p_(i)."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.maximum.accumulate(np.array(p_values)[order] * factors)
    return [bool(adjusted[order.tolist().index(i)] <= alpha) for i in range(len(p_values))]


@given(st.lists(st.integers(0, 64).map(lambda n: n / 512), max_size=7))
def test_holm_is_its_adjusted_p_values(p_values: list[float]) -> None:
    assert fallen(p_values, 0.0625) == (reference_holm(p_values, 0.0625) if p_values else [])


def test_a_case_spends_what_the_rejected_ones_hand_on() -> None:
    assert shared_alpha([0.5], 0.01) == (0.01,)
    assert shared_alpha([0.001, 0.5, 0.4], 0.012) == (0.004, 0.006, 0.006)
    assert shared_alpha([0.5, 0.4, 0.3], 0.012) == (0.004, 0.004, 0.004)
    assert shared_alpha([0.0, 1.0, 0.011], 0.012) == (0.004, 0.006, 0.006)  # 0: fell before
    assert fallen([0.001, 0.006, 0.012], 0.012) == [True, True, True]
    assert fallen([0.005, 0.006, 0.012], 0.012) == [False, False, False]


def test_three_equal_cases_cry_wolf_in_less_than_1_percent_together() -> None:
    """At each look Holm's shares; a case that fell takes its p of 0 along."""
    rng, alarms, comparisons = np.random.default_rng(24), 0, 600
    for cases in rng.standard_t(3, (comparisons, 3, LOOKS[-1])):
        fallen_before = [False] * 3
        for look in LOOKS:
            p_values = [
                0.0 if fell else signed_rank_p(d[:look].tolist())
                for d, fell in zip(cases, fallen_before, strict=True)
            ]
            fallen_before = fallen(p_values, ALPHA)
        alarms += any(fallen_before)
    # 99.9 % of runs of this test would count no more, were the rate 1 %.
    assert 0 < alarms <= 14


# --- how many rounds


def test_rounds_follow_kalibera_and_jones() -> None:
    assert rounds_per_launch(90, 3, launch_sd=0.01, round_sd=0.015) == 9  # sqrt(30) x 1.5 = 8.2
    assert rounds_per_launch(90, 3, launch_sd=0.01, round_sd=0.001) == 3
    assert rounds_per_launch(90, 3, launch_sd=0.001, round_sd=0.015) == 20
    assert rounds_per_launch(90, 3, launch_sd=0.0, round_sd=0.015) == 20
    assert rounds_per_launch(90, 3, launch_sd=0.0, round_sd=0.0) == 3
    assert rounds_per_launch(0.25, 0.01, launch_sd=0.01, round_sd=0.01) == 5


@given(st.floats(1, 500), st.floats(0.1, 20), st.floats(1e-4, 0.1), st.floats(1e-4, 0.1))
def test_no_other_number_of_rounds_is_better(
    launch_s: float, round_s: float, launch_sd: float, round_sd: float
) -> None:
    """Variance of a mean of one second: (launch_sd^2 + round_sd^2/m) (launch_s + m round_s)."""

    def cost(rounds: float) -> float:
        return (launch_sd**2 + round_sd**2 / rounds) * (launch_s + rounds * round_s)

    chosen = rounds_per_launch(launch_s, round_s, launch_sd, round_sd, low=1, high=10_000)

    if 1 < chosen < 10_000:  # the best real number lies in (chosen - 1, chosen]
        best = min(cost(rounds) for rounds in range(1, chosen + 3))
        assert min(cost(chosen), cost(chosen - 1)) <= best * (1 + 1e-9)


def test_the_spreads_are_those_the_rounds_were_made_of() -> None:
    rng = np.random.default_rng(23)
    pairs = [
        (launch + rng.normal(0, 0.02, rounds)).tolist()
        for launch, rounds in zip(rng.normal(0, 0.01, 800), rng.integers(2, 9, 800), strict=True)
    ]

    launch_sd, round_sd = spreads(pairs)

    assert launch_sd == pytest.approx(0.01, rel=0.1)
    assert round_sd == pytest.approx(0.02, rel=0.05)


def test_spreads_by_hand() -> None:
    launch_sd, round_sd = spreads([[0.0, 2.0], [4.0, 6.0], []])

    assert round_sd == pytest.approx(math.sqrt(2))  # 1 + 1 + 1 + 1, over 2
    assert launch_sd == pytest.approx(math.sqrt((16 - 2) / 2))
    assert spreads([[0.0, 2.0], [2.0, 0.0]])[0] == 0.0
    # Unequal: within 4/3, between 2 x 1.8^2 + 3 x 1.2^2, size 5 - 13/5.
    assert spreads([[0.0, 2.0], [3.0, 4.0, 5.0]])[0] == pytest.approx(
        math.sqrt((10.8 - 4 / 3) / 2.4)
    )


@pytest.mark.parametrize("pairs", [[], [[0.1, 0.2]], [[0.1], [0.2]]])
def test_spreads_of_too_little_are_refused(pairs: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="need two pairs"):
        spreads(pairs)
