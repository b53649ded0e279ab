"""Is B slower than A, after so many launch pairs, or should one more look be taken?

Each launch pair gives one d = log(seconds B / seconds A): above 0, B is slower. Under "no
difference" A and B may swap roles, so d is symmetric about 0, whatever its distribution: the exact
signed-rank test (Wilcoxon, Biometrics Bulletin 1, 1945) needs no more than that. :func:`decide`
looks after 10, 14, 18, 24, 36 and 90 pairs, and spends 0.00166 of a false alarm at each look; by
Bonferroni's inequality a comparison of equals cries wolf in less than 1 % of all cases, however
noisy the machine::

    regressed  P(no slowdown) <= 0.00166, and the estimate is above half the margin
    improved   the same in the other direction
    ok         P(slowdown >= margin) <= 0.01
    unsure     none of these at the last look

Sequential tests with known or asymptotic variance (SPRT, asymptotic confidence sequences) stop
earlier, but miss their level at 4 to 60 pairs with heavy tails; so do t tests.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

Word = Literal["ok", "improved", "regressed", "unsure"]
Floats = npt.NDArray[np.float64]

LOOKS = (10, 14, 18, 24, 36, 90)  # launch pairs
ALPHA = 0.00166  # of a false alarm, at each look: less than 0.01 in all
OK_ALPHA = 0.01  # of calling a slowdown of the margin ok, at each look

# Asymptotic efficiency of the signed-rank test relative to the t test for normal values (Hodges &
# Lehmann, Annals of Mathematical Statistics 27, 1956); it is higher for heavier tails.
_EFFICIENCY = 3 / math.pi
_MAD_TO_SD = 1.4826  # for normal values
_LOG = {"ge": -50.0, "le": 50.0}  # B takes 5e21 times A's time
_POWER_Z = 0.8416  # of 80 %: the chance that ``to_settle`` pairs do settle it


@dataclass(frozen=True)
class Decision:
    """What the launch pairs so far say; every d is a log ratio of seconds.

    Attributes:
        word: None is "go on".
        estimate: Hodges-Lehmann estimate of the slowdown; None without pairs.
        low, high: its interval at ``confidence``; None where the pairs are too few for one. At a
            look, ``regressed`` has ``low`` above 0 and ``ok`` has ``high`` at most the margin.
        p_slower: of "no slowdown"; p_faster: of "no speed-up"; p_margin: of "at least the margin".
        alpha: what ``p_slower`` and ``p_faster`` were held against; 0 where this was no look.
        to_settle: pairs in all that settle it with a chance of 80 %, if the next ones are like
            these; None where it is settled, and for fewer than 2 pairs.
    """

    word: Word | None
    pairs: int
    estimate: float | None = field(metadata=_LOG)
    low: float | None = field(metadata=_LOG)
    high: float | None = field(metadata=_LOG)
    confidence: float
    p_slower: float
    p_faster: float
    p_margin: float
    alpha: float
    to_settle: int | None


def decide(
    values: Sequence[float],
    margin_log: float,
    looks: Sequence[int] = LOOKS,
    alpha: float = ALPHA,
    ok_alpha: float = OK_ALPHA,
) -> Decision:
    """Judge one d per launch pair, in any order; ``margin_log`` is log(1 + margin).

    A word falls at a look only: between looks ``word`` is None, however clear the case, or the
    error would not be bounded. At the last look and beyond it, what is not settled is ``unsure``.
    ``regressed`` goes before ``ok``: a sure slowdown of more than half the margin is told. With
    several cases, ``alpha`` comes from :func:`shared_alpha`. ValueError for a margin that is not
    above 0 and for values that are not finite.
    """
    if not margin_log > 0:
        raise ValueError(f"margin_log is {margin_log}; expected a number above 0")
    count, at_look = len(values), len(values) in looks
    confidence = 1 - 2 * ok_alpha
    mirrored = [-value for value in values]
    p_slower, p_faster = signed_rank_p(values), signed_rank_p(mirrored)
    p_margin = signed_rank_p(mirrored, at=-margin_log)
    estimate = hodges_lehmann(values) if count else None
    low, high = interval(values, confidence) or (None, None)

    word: Word | None = None
    if at_look and estimate is not None:
        if p_slower <= alpha and estimate > margin_log / 2:
            word = "regressed"
        elif p_faster <= alpha and estimate < -margin_log / 2:
            word = "improved"
        elif p_margin <= ok_alpha:
            word = "ok"
    to_settle = None if word else _to_settle(values, margin_log, alpha, ok_alpha)
    if word is None and count >= max(looks):
        word = "unsure"
    return Decision(
        word=word,
        pairs=count,
        estimate=estimate,
        low=low,
        high=high,
        confidence=confidence,
        p_slower=p_slower,
        p_faster=p_faster,
        p_margin=p_margin,
        alpha=alpha if at_look else 0.0,
        to_settle=to_settle,
    )


def looks_up_to(max_pairs: int) -> tuple[int, ...]:
    """After how many launch pairs it may be decided: six times at most.

    ``max_pairs`` takes the place of the last look, so that alpha is spent six times at most.
    """
    return (*(n for n in LOOKS[:-1] if n < max_pairs), max_pairs)


def signed_rank_p(values: Iterable[float], at: float = 0.0) -> float:
    """Return the exact one-sided p-value of "symmetric about ``at``", against "larger".

    P(W+ >= observed), W+ the sum of the ranks of |value - at| over the values above ``at``, with
    each sign as likely as the other. Values equal to ``at`` are dropped (Wilcoxon), ties take their
    mean rank, and the distribution is the conditional one given the ranks, so that it is exact then
    too (Pratt & Gibbons, Concepts of Nonparametric Theory, 1981, section 3.7). 1 where nothing is
    left.
    """
    away = _finite(values) - at
    away = away[away != 0]
    ranks = _twice_ranks(np.abs(away))
    observed = int(ranks[away > 0].sum())
    return min(1.0, float(_null(tuple(sorted(ranks.tolist())))[observed:].sum()))


def hodges_lehmann(values: Sequence[float]) -> float:
    """Return the median of the Walsh averages (x_i + x_j) / 2, i <= j (Hodges & Lehmann 1963)."""
    if not len(values):
        raise ValueError("no value to estimate from")
    return float(np.median(_walsh_averages(_finite(values))))


def interval(values: Sequence[float], confidence: float) -> tuple[float, float] | None:
    """Return the two-sided interval of the centre of symmetry that inverts the signed-rank test.

    With k the largest number such that P(W+ <= k) <= (1 - confidence) / 2, it reaches from the
    (k+1)-th smallest to the (k+1)-th largest Walsh average. Its coverage is 1 - 2 P(W+ <= k): at
    least ``confidence`` (98 % asked, 98.0 % to 98.3 % had at the looks), and with ties no less.
    None where even the smallest to the largest value covers less: 98 % takes 7 values. Pointwise:
    it does not make up for repeated looks.
    """
    count = len(values)
    cumulated = np.cumsum(_null(tuple(range(2, 2 * count + 1, 2)))[::2])
    cut = int(np.searchsorted(cumulated, (1 - confidence) / 2, side="right"))  # k + 1
    if not count or cut == 0:
        return None
    averages = np.sort(_walsh_averages(_finite(values)))
    return float(averages[cut - 1]), float(averages[-cut])


def shared_alpha(p_values: Sequence[float], alpha: float) -> tuple[float, ...]:
    """Return what each of K cases may spend of one look's ``alpha`` (Holm's step-down).

    The smallest p-value is held against alpha/K, the next against alpha/(K-1), and so on up to the
    first that fails; that one's limit holds for the rest. The chance of any false alarm among all
    cases is at most ``alpha`` a look, whatever their dependence (Holm, Scandinavian Journal of
    Statistics 6, 1979). At later looks a case that is ``regressed`` already passes p = 0, and one
    that ended otherwise p = 1: only what was rejected hands its share on (Maurer & Bretz,
    Statistics in Biopharmaceutical Research 5, 2013). ``ok`` is each case's own claim, and its
    level is not shared.
    """
    limits = [0.0] * len(p_values)
    limit, failed = 0.0, False
    for rejected, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if not failed:
            limit = alpha / (len(p_values) - rejected)
            failed = p_values[index] > limit
        limits[index] = limit
    return tuple(limits)


def rounds_per_launch(
    launch_s: float, round_s: float, launch_sd: float, round_sd: float, low: int = 3, high: int = 20
) -> int:
    """Return how many rounds a launch is worth, for the least variance in a given time.

    sqrt(launch_s / round_s) * round_sd / launch_sd, rounded up (Kalibera & Jones, Rigorous
    benchmarking in reasonable time, ISMM 2013, section 9), kept within ``low`` and ``high``: a
    dear launch or restless rounds ask for more of them, a spread between launches for fewer.
    """
    if launch_sd <= 0:
        return high if round_sd > 0 else low
    best = math.sqrt(max(launch_s, 0.0) / round_s) * round_sd / launch_sd
    return min(max(math.ceil(best), low), high)


def spreads(pairs: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return (launch_sd, round_sd) of the log ratios of each launch pair's rounds.

    One-way random effects by the method of moments, for unequal numbers of rounds (Searle,
    Casella & McCulloch, Variance Components, 1992, section 3.6); a negative variance between
    launches is 0. ValueError for fewer than two pairs, or without a pair of two rounds.
    """
    groups = [list(rounds) for rounds in pairs if len(rounds)]
    total = sum(map(len, groups))
    if len(groups) < 2 or total == len(groups):
        raise ValueError(
            f"{total} rounds in {len(groups)} launch pairs: their spreads need two pairs, and one "
            "with two rounds"
        )
    means = [statistics.fmean(rounds) for rounds in groups]
    grand = math.fsum(map(math.fsum, groups)) / total
    within = math.fsum(
        (x - mean) ** 2 for rounds, mean in zip(groups, means, strict=True) for x in rounds
    ) / (total - len(groups))
    between = math.fsum(
        len(rounds) * (mean - grand) ** 2 for rounds, mean in zip(groups, means, strict=True)
    ) / (len(groups) - 1)
    size = (total - sum(len(rounds) ** 2 for rounds in groups) / total) / (len(groups) - 1)
    return math.sqrt(max(0.0, (between - within) / size)), math.sqrt(within)


def _to_settle(
    values: Sequence[float], margin_log: float, alpha: float, ok_alpha: float
) -> int | None:
    """Return the pairs in all after which the nearest word falls with a chance of 80 %.

    n = ((z_level + z_power) sd / distance)^2 / efficiency, the t test's normal approximation over
    the signed-rank test's efficiency; sd from the median absolute deviation, since a stray launch
    moves that test little; distance is that of the estimate from 0 or from the margin.
    """
    if len(values) < 2:
        return None
    estimate = hodges_lehmann(values)
    sd = _MAD_TO_SD * statistics.median(abs(value - estimate) for value in values)
    targets = []
    if abs(estimate) > margin_log / 2:
        targets.append((alpha, abs(estimate)))
    if estimate < margin_log:
        targets.append((ok_alpha, margin_log - estimate))
    needed = []
    for level, distance in targets:
        z = statistics.NormalDist().inv_cdf(1 - level)
        pairs = ((z + _POWER_Z) * sd / distance) ** 2 / _EFFICIENCY
        needed.append(max(math.ceil(pairs), math.ceil(-math.log2(level))))  # p is at least 2^-n
    return max(min(needed), len(values) + 1)


def _finite(values: Iterable[float]) -> Floats:
    array = np.array(list(values), dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{array[~np.isfinite(array)][0]} among the values; expected finite ones")
    return array


def _walsh_averages(values: Floats) -> Floats:
    first, second = np.triu_indices(len(values))
    averages: Floats = (values[first] + values[second]) / 2
    return averages


def _twice_ranks(sizes: Floats) -> npt.NDArray[np.int64]:
    """Return twice the rank of each value, ties at their mean: whole numbers."""
    _, index, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: npt.NDArray[np.int64] = (2 * last - counts + 1)[index]
    return ranks


@lru_cache(maxsize=256)
def _null(ranks: tuple[int, ...]) -> Floats:
    """Return P(W = w) for w = 0, 1, ..., where each rank is in the sum by the toss of a coin."""
    chance = np.zeros(sum(ranks) + 1)
    chance[0] = 1.0
    reached = 0
    for rank in ranks:
        chance[rank : reached + rank + 1] += chance[: reached + 1].copy()
        chance /= 2
        reached += rank
    chance.setflags(write=False)
    return chance
