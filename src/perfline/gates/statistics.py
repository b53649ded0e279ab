"""How sure can a verdict be? The exact binomial and Student-t statistics behind the gates.

Pure functions of counts and values; fractions in and out, never per cent. Notation of a paired
comparison over ``n`` questions: ``b`` went right -> wrong, ``c`` went wrong -> right, and the drop
is ``p_b - p_c``, estimated by ``(b - c) / n``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Weight of a case's declared spread between sessions, in degrees of freedom. Few sessions show no
# spread to speak of; from SHOWN on, what was measured weighs as much as what was declared, or more.
PRIOR_DEGREES = 8
LATER_DEGREES = 2
SHOWN = 3

# Share of the error that drop_upper spends on the flip rate; the rest goes to the flips' direction.
_RATE_SHARE = 0.2


def clopper_pearson(k: int, n: int, confidence: float) -> tuple[float, float]:
    """Return the exact two-sided interval of a proportion with ``k`` hits in ``n``.

    Clopper & Pearson, Biometrika 26 (1934): each side misses with at most (1 - confidence) / 2.
    """
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"{k} hits in {n}: expected 0 <= k <= n and n >= 1")
    tail = (1 - confidence) / 2
    return 1 - _upper(n - k, n, tail), _upper(k, n, tail)


def mcnemar_p(b: int, c: int) -> float:
    """Return P(Bin(b + c, 1/2) >= b): McNemar's exact one-sided p-value of "no worse".

    The smaller, the less do ``b`` losses against ``c`` gains look like chance; 1 without losses.
    """
    from scipy.special import betainc

    return float(betainc(b, c + 1, 0.5)) if b else 1.0


def drop_upper(b: int, c: int, n: int, confidence: float = 0.975) -> float:
    """Return an upper confidence bound of the drop ``p_b - p_c``, at least 0.

    The smaller of two exact bounds. (1) Clopper-Pearson's of ``p_b``, which is no less than the
    drop. (2) The drop is psi (2 theta - 1), with psi the rate of flips and theta the share of
    losses among them; given their number the losses are binomial in theta, so that
    Clopper-Pearson's bounds of both, at 0.2 and 0.8 of the error, bound the drop. (1) is sharp for
    few flips and is the whole bound at c = 0, (2) for many. That the smaller of the two still
    covers is shown by enumeration of every (b, c) in ``tests/unit/gates/test_statistics.py``.
    """
    if min(b, c) < 0 or b + c > n or n < 1:
        raise ValueError(f"{b} + {c} flips in {n} questions: expected 0 <= b + c <= n, n >= 1")
    error = 1 - confidence
    losses = _upper(b, n, error)
    rate = _upper(b + c, n, _RATE_SHARE * error)
    share = _upper(b, b + c, (1 - _RATE_SHARE) * error)
    return max(0.0, min(losses, rate * (2 * share - 1)))


def zero_flip_bound(n: int, confidence: float = 0.975) -> float:
    """Return the drop that ``n`` questions without a single flip still allow."""
    return drop_upper(0, 0, n, confidence)


def detectable_drop_pp(n: int, flip_rate: float, alpha: float = 0.01, power: float = 0.8) -> float:
    """Return the drop in pp that McNemar's test at ``alpha`` sees with probability ``power``.

    Normal approximation (z_alpha + z_power) sqrt(psi / n), with psi the fraction of questions that
    flip at all (Miettinen 1968, Connor 1987); a drop needs at least as many flips as it is large,
    so psi is no smaller than the drop itself. At most 100 pp.
    """
    from scipy.special import ndtri

    z = float(ndtri(1 - alpha) + ndtri(power))
    return 100 * min(1.0, max(z * math.sqrt(flip_rate / n), z * z / n))


@dataclass(frozen=True)
class Prediction:
    """Where the next session's value is expected: ``mean`` +- ``half_width``."""

    mean: float
    sd: float  # between sessions, prior included
    half_width: float


def prediction_interval(values: Sequence[float], prior_sd: float, confidence: float) -> Prediction:
    """Return where one more session's value lies, given the values of H >= 1 sessions.

    Half width t s sqrt(1 + 1/H), with s from :func:`session_sd` and t the one-sided ``confidence``
    quantile of Student's t. With one session it is the prior's alone. Pass logarithms to predict
    ratios.
    """
    if not values:
        raise ValueError("no session to predict from")
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    sd = session_sd(squares, len(values), prior_sd)
    return Prediction(mean, sd, half_width(sd, len(values), confidence))


def prior_degrees(sessions: int) -> int:
    """Return what the declared spread weighs beside that of ``sessions``."""
    return PRIOR_DEGREES if sessions < SHOWN else LATER_DEGREES


def session_sd(squares: float, sessions: int, prior_sd: float) -> float:
    """Return the spread between sessions from their squared deviations, pulled to a prior.

    A scaled inverse chi-square prior of nu = :func:`prior_degrees` on the variance (Gelman et al.,
    Bayesian Data Analysis, 3rd ed., section 2.6): s^2 = (nu prior_sd^2 + squares) / (nu + H - 1).
    Never below what the sessions themselves show: where they spread 15 times as far as declared,
    the pull alone would make a gate at 1 % cry wolf in 2.1 % of unchanged sessions at H = 8, and in
    1.3 % so.
    """
    degrees = prior_degrees(sessions)
    pooled = (degrees * prior_sd**2 + squares) / (degrees + sessions - 1)
    shown = squares / (sessions - 1) if sessions > 1 else 0.0
    return math.sqrt(max(pooled, shown))


def half_width(sd: float, sessions: int, confidence: float) -> float:
    """Return t sd sqrt(1 + 1/H), t with :func:`prior_degrees` + H - 1 degrees of freedom."""
    from scipy.special import stdtrit

    quantile = float(stdtrit(prior_degrees(sessions) + sessions - 1, confidence))
    return quantile * sd * math.sqrt(1 + 1 / sessions)


def _upper(k: int, n: int, error: float) -> float:
    """Return Clopper-Pearson's one-sided upper bound at 1 - ``error``."""
    from scipy.special import betaincinv

    return 1.0 if k >= n else float(betaincinv(k + 1, n - k, 1 - error))
