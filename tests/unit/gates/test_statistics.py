from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from perfline.gates.statistics import (
    LATER_DEGREES,
    PRIOR_DEGREES,
    clopper_pearson,
    detectable_drop_pp,
    drop_upper,
    half_width,
    mcnemar_p,
    prediction_interval,
    session_sd,
    zero_flip_bound,
)

COUNTS = st.tuples(
    st.integers(0, 300), st.integers(0, 300), st.integers(0, 20_000), st.integers(1, 50)
).map(lambda t: (t[0], t[1], t[0] + t[1] + t[2] + t[3]))  # b, c, n


@pytest.mark.parametrize(
    ("k", "n"), [(0, 400), (400, 400), (1, 1), (7, 20), (9155, 14042), (1, 14042)]
)
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_clopper_pearson_equals_scipy(k: int, n: int, confidence: float) -> None:
    reference = scipy.stats.binomtest(k, n).proportion_ci(confidence, method="exact")

    assert clopper_pearson(k, n, confidence) == pytest.approx(tuple(reference), abs=1e-9)


def test_clopper_pearson_refuses_impossible_counts() -> None:
    with pytest.raises(ValueError, match="5 hits in 4"):
        clopper_pearson(5, 4, 0.95)


@pytest.mark.parametrize(("b", "c"), [(1, 0), (0, 1), (7, 0), (10, 4), (70, 70), (300, 20)])
def test_mcnemar_equals_scipys_binomial_test(b: int, c: int) -> None:
    reference = scipy.stats.binomtest(b, b + c, 0.5, alternative="greater").pvalue

    assert mcnemar_p(b, c) == pytest.approx(reference, rel=1e-9)


def test_mcnemar_without_flips_is_one() -> None:
    assert mcnemar_p(0, 0) == 1.0


@given(b=st.integers(0, 500), c=st.integers(0, 500))
def test_mcnemar_falls_with_losses_and_rises_with_gains(b: int, c: int) -> None:
    assert 0 < mcnemar_p(b, c) <= 1
    assert mcnemar_p(b + 1, c) <= mcnemar_p(b, c) <= mcnemar_p(b, c + 1)


def test_no_flip_among_400_still_allows_0_92_pp() -> None:
    assert 100 * drop_upper(0, 0, 400) == pytest.approx(0.918, abs=0.001)
    assert zero_flip_bound(400) == pytest.approx(1 - 0.025 ** (1 / 400), rel=1e-9)


@pytest.mark.parametrize(("b", "n"), [(0, 100), (3, 100), (45, 14042), (100, 100)])
def test_without_gains_the_bound_is_clopper_pearsons(b: int, n: int) -> None:
    assert drop_upper(b, 0, n) == pytest.approx(clopper_pearson(b, n, 0.95)[1], rel=1e-12)


def test_as_many_gains_as_losses_at_full_mmlu_leave_0_22_pp() -> None:
    assert 100 * drop_upper(70, 70, 14042) == pytest.approx(0.221, abs=0.001)


@given(COUNTS)
def test_the_bound_lies_between_the_estimate_and_the_losses(counts: tuple[int, int, int]) -> None:
    b, c, n = counts

    assert max(0.0, (b - c) / n) <= drop_upper(b, c, n) <= clopper_pearson(b, n, 0.95)[1] + 1e-12


@given(COUNTS)
def test_the_bound_grows_with_losses_and_confidence(counts: tuple[int, int, int]) -> None:
    b, c, n = counts

    assert drop_upper(b, c, n) <= drop_upper(b + 1, c, n) + 1e-12
    assert drop_upper(b, c, n, 0.9) <= drop_upper(b, c, n, 0.99) + 1e-12


def test_the_bound_refuses_impossible_counts() -> None:
    with pytest.raises(ValueError, match="3 \\+ 2 flips in 4 questions"):
        drop_upper(3, 2, 4)


@pytest.mark.parametrize("n", [12, 60, 110])
def test_the_bound_misses_the_drop_at_most_as_often_as_allowed(n: int) -> None:
    """Exact: the probability of every (b, c) whose bound is below the true drop, summed.

    The bound takes finitely many values, and between two of them the miss rate can only be largest
    just above the lower one; so those drops are tried, with p_c from none to a third.
    """
    alpha = 0.025
    pairs = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    b, c = np.array(pairs).T
    bound = np.array([drop_upper(int(i), int(j), n, 1 - alpha) for i, j in pairs])
    log_ways = scipy.special.gammaln(n + 1) - scipy.special.gammaln(
        [b + 1, c + 1, n - b - c + 1]
    ).sum(axis=0)
    drops = np.unique(bound.round(6))
    worst = 0.0
    for drop in drops[:: max(1, len(drops) // 120)] + 1e-6:
        missed = np.flatnonzero(bound < drop)
        for p_c in (0.0, 1e-4, 0.003, 0.01, 0.03, 0.08, 0.15, 0.22, 0.3, 1 / 3):
            if (p_b := p_c + drop) + p_c < 1:
                log_p = np.log([p_b, max(p_c, 1e-300), 1 - p_b - p_c])
                counts = np.array([b[missed], c[missed], (n - b - c)[missed]])
                worst = max(worst, float(np.exp(log_ways[missed] + log_p @ counts).sum()))

    assert 0.9 * alpha < worst <= alpha * (1 + 1e-3)  # exact at p_c = 0, conservative elsewhere


def test_detectable_drop_at_full_mmlu_and_one_per_cent_flips() -> None:
    assert detectable_drop_pp(14042, 0.01, alpha=0.05) == pytest.approx(0.21, abs=0.005)
    assert detectable_drop_pp(14042, 0.01) == pytest.approx(0.267, abs=0.001)
    assert detectable_drop_pp(14042, 0.0) == pytest.approx(0.0715, abs=0.0001)  # its own flips


@pytest.mark.parametrize(("n", "flip_rate"), [(14042, 0.02), (14042, 0.0), (400, 0.01), (400, 0.3)])
def test_detectable_drop_is_seen_by_the_exact_test_about_as_often_as_said(
    n: int, flip_rate: float
) -> None:
    """Exact power of McNemar's test at the drop that the approximation names."""
    drop = detectable_drop_pp(n, flip_rate) / 100
    rate = max(flip_rate, drop)
    power = 0.0
    for flips in range(1, n):
        p_flips = scipy.stats.binom.pmf(flips, n, rate)
        if p_flips > 1e-7:
            least = next(
                (b for b in range(flips // 2, flips + 1) if mcnemar_p(b, flips - b) <= 0.01), None
            )
            if least is not None:
                power += p_flips * scipy.stats.binom.sf(least - 1, flips, (1 + drop / rate) / 2)

    assert 0.7 < power < 0.95


@given(n=st.integers(1, 20_000), flip_rate=st.floats(0, 1))
def test_more_questions_see_smaller_drops(n: int, flip_rate: float) -> None:
    assert 0 < detectable_drop_pp(n + 1, flip_rate) <= detectable_drop_pp(n, flip_rate) <= 100


def test_one_session_is_predicted_from_the_declared_spread_alone() -> None:
    prediction = prediction_interval([math.log(9000)], prior_sd=0.01, confidence=0.975)

    assert prediction.mean == math.log(9000)
    assert prediction.sd == pytest.approx(0.01)
    t = scipy.stats.t.ppf(0.975, PRIOR_DEGREES)
    assert prediction.half_width == pytest.approx(t * 0.01 * math.sqrt(2))


def test_several_sessions_pull_the_spread_to_what_was_measured() -> None:
    values = [0.0, 0.002, 0.004, 0.006]
    prediction = prediction_interval(values, prior_sd=0.01, confidence=0.99)

    sd = math.sqrt((LATER_DEGREES * 0.01**2 + 0.00002) / 5)
    assert prediction.mean == pytest.approx(0.003)
    assert prediction.sd == pytest.approx(sd)
    t = scipy.stats.t.ppf(0.99, LATER_DEGREES + 3)
    assert prediction.half_width == pytest.approx(t * sd * math.sqrt(1.25))


def test_a_declared_spread_never_hides_a_larger_one_that_was_measured() -> None:
    values = [0.0, 0.02, 0.04, 0.06]
    assert prediction_interval(values, 0.01, 0.99).sd == pytest.approx(scipy.stats.tstd(values))


def test_many_quiet_sessions_narrow_the_interval() -> None:
    widths = [prediction_interval([1.0] * n, 0.01, 0.975).half_width for n in (1, 3, 9, 30)]

    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < widths[0] / 3


@given(
    values=st.lists(st.floats(-1, 1), min_size=1, max_size=8),
    prior_sd=st.floats(1e-4, 0.5),
    shift=st.floats(-5, 5),
)
def test_the_interval_moves_with_its_sessions(
    values: list[float], prior_sd: float, shift: float
) -> None:
    here = prediction_interval(values, prior_sd, 0.975)
    there = prediction_interval([value + shift for value in values], prior_sd, 0.975)

    assert there.mean == pytest.approx(here.mean + shift, abs=1e-9)
    assert there.half_width == pytest.approx(here.half_width, rel=1e-6)
    assert prediction_interval(values, prior_sd, 0.99).half_width > here.half_width > 0


def test_no_session_predicts_nothing() -> None:
    with pytest.raises(ValueError, match="no session"):
        prediction_interval([], 0.01, 0.975)


def test_prediction_covers_the_next_session_as_often_as_said() -> None:
    """A simulation with a fixed seed: spread drawn from the prior, sessions from the spread."""
    random = np.random.default_rng(7)
    draws, held = 20_000, 4
    sd = 0.01 * np.sqrt(LATER_DEGREES / random.chisquare(LATER_DEGREES, draws))
    sessions = random.normal(0, sd[:, None], (draws, held + 1))
    past, new = sessions[:, :held], sessions[:, held]
    squares = held * past.var(axis=1)
    sd = np.array([session_sd(found, held, 0.01) for found in squares.tolist()])
    width = half_width(1.0, held, 0.975) * sd

    # Exactly 2.5 % by the prior alone; what sessions show beyond it makes it less.
    assert 0.015 < np.mean(new - past.mean(axis=1) > width) < 0.029


def test_two_sessions_that_spread_far_are_believed() -> None:
    """Fifteen times what was declared: the pull to the declared spread would hide it."""
    assert session_sd(2 * 0.15**2, 2, 0.01) == pytest.approx(math.sqrt(2) * 0.15)


def test_no_flip_at_all_leaves_the_exact_bound_at_the_confidence_asked_for() -> None:
    """The rule of three: 1 - (1 - confidence)^(1/n)."""
    for confidence in (0.95, 0.995):
        for n in (1, 400):
            bound = 1 - (1 - confidence) ** (1 / n)
            assert zero_flip_bound(n, confidence) == pytest.approx(bound)
