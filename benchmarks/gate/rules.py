"""What would each tool's rule say about these timings?

Other tools' rules, as small pure functions of two arrays, and perfline's own two gates behind the
same shape. All times are seconds a token, in any one scale: more is slower. The names of files and
versions are those the rule was read in; only the rule is rebuilt, not the tool: how each tool
chooses its rounds and its baseline is not.

A rule of two arrays is ``rule(baseline, candidate) -> bool``, True for "slower"; what it gets as
baseline is the caller's choice. :data:`RULES` lists them with what they compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from perfline.cases.case import GatesSpec
from perfline.compare.sequential import LOOKS, Decision, decide
from perfline.gates.performance import throughput_baseline
from perfline.gates.verdict import Word
from perfline.metrics import Metric

Floats = npt.NDArray[np.float64]
TwoSamples = Callable[[Floats, Floats], bool]
Judge = Callable[[Sequence[Floats], Floats], Word]

MARGIN = GatesSpec().throughput_margin_fraction
SESSIONS = 8  # that our stored baseline is made of
BENCHER_MOST = 64  # --threshold-max-sample-size of bencher's documented recipe
_CRITERION_RESAMPLES = 2000  # its default is 100,000: only the last digit of a p-value differs


# --- thresholds on one number of each run


def pytest_benchmark_mean_5(baseline: Floats, candidate: Floats) -> bool:
    """pytest-benchmark 5.3.1, ``--benchmark-compare-fail=mean:5%``.

    ``utils.PercentageRegressionCheck``: current / compared * 100 - 100 > 5.
    """
    return bool(candidate.mean() / baseline.mean() * 100 - 100 > 5)


def pytest_benchmark_min_5(baseline: Floats, candidate: Floats) -> bool:
    """pytest-benchmark 5.3.1, ``--benchmark-compare-fail=min:5%``: as above, fastest rounds."""
    return bool(candidate.min() / baseline.min() * 100 - 100 > 5)


def pytorch_7(baseline: Floats, candidate: Floats) -> bool:
    """pytorch/benchmark at 061e0ec5, ``userbenchmark/torch-nightly/regression_detector.py``.

    (treatment - control) / control > 0.07, of the median latency of one run each. There a run that
    is as much faster alarms, too; here only a slower one does.
    """
    control, treatment = np.median(baseline), np.median(candidate)
    return bool((treatment - control) / control > 0.07)


def fixed_10(baseline: Floats, candidate: Floats) -> bool:
    """github-action-benchmark 1.22.0 with ``alert-threshold: 110%``, ``src/write.ts``.

    For pytest-benchmark's files it compares ``stats.ops`` = 1 / mean: previous / current > 1.1.
    """
    return bool(candidate.mean() / baseline.mean() > 1.1)


# --- tests on the rounds within one run


def welch_5(baseline: Floats, candidate: Floats) -> bool:
    """Hyperfine 327d5f4, ``scripts/welch_ttest.py``: Welch's t test, two-sided p < 0.05.

    pyperf's ``_compare.py`` does the same with a pooled variance at 95 %.
    """
    p = stats.ttest_ind(candidate, baseline, equal_var=False).pvalue
    return bool(p < 0.05 and candidate.mean() > baseline.mean())


def mann_whitney_5(baseline: Floats, candidate: Floats) -> bool:
    """google/benchmark 267a1115, ``tools/gbench/report.py``: Mann-Whitney U, two-sided p < 0.05.

    benchstat (golang/perf) does the same. Slower is a larger median.
    """
    return _u_test(baseline, candidate) < 0.05 and _median_ratio(baseline, candidate) > 1


def asv_factor_1_1(baseline: Floats, candidate: Floats) -> bool:
    """Airspeed velocity 7032df70, ``commands/compare.py:_is_result_better`` with factor 1.1.

    Slower iff ``_stats.is_different`` (Mann-Whitney U at p < 0.002, exact up to 20 samples, where
    1 / C(n + m, n) is below that) and the median ratio is above 1.1. With fewer samples it compares
    99 % intervals of the medians, which are infinite then: not different.
    """
    count, other = len(baseline), len(candidate)
    if 1 / math.comb(count + other, min(count, other)) >= 0.002:
        return False
    return _u_test(baseline, candidate) < 0.002 and _median_ratio(baseline, candidate) > 1.1


def criterion(baseline: Floats, candidate: Floats) -> bool:
    """criterion.rs 567405d, ``analysis/compare.rs`` and ``report.rs:compare_to_threshold``.

    Slower iff a bootstrapped two-sample t test of pooled rounds has p < 0.05 (two-sided) and the
    bootstrapped 95 % interval of the ratio of means lies wholly above the noise threshold of 1 %.
    """
    rng = np.random.default_rng(0)
    count, other = len(candidate), len(baseline)
    pooled = np.concatenate([candidate, baseline])
    drawn = pooled[rng.integers(0, len(pooled), (_CRITERION_RESAMPLES, len(pooled)))]
    observed = _t_statistic(candidate[None], baseline[None])[0]
    below = int((_t_statistic(drawn[:, :count], drawn[:, count:]) < observed).sum())
    if 2 * min(below, _CRITERION_RESAMPLES - below) / _CRITERION_RESAMPLES >= 0.05:
        return False
    new = candidate[rng.integers(0, count, (_CRITERION_RESAMPLES, count))].mean(axis=1)
    old = baseline[rng.integers(0, other, (_CRITERION_RESAMPLES, other))].mean(axis=1)
    return bool(np.quantile(new / old - 1, 0.025) > 0.01)


# --- the history of earlier runs


def bencher_t_99(history: Floats, candidate: float) -> bool:
    """Bencher 0.6.12, ``lib/bencher_boundary``: ``t_test`` with upper boundary 0.99.

    Its documented recipe for CI: slower iff the run's value is above mean + t s sqrt(1 + 1/n) of
    the last 64 runs' values, t the one-sided 0.99 quantile with n - 1 degrees of freedom. No
    boundary for fewer than 2 runs, or runs without any spread. (Older versions, such as 6ec7094,
    leave the root out and divide the squares by n: a lower boundary, with more alarms.)
    """
    recent = history[-BENCHER_MOST:]
    count = len(recent)
    if count < 2 or recent.std() == 0:
        return False
    t = float(stats.t.ppf(0.99, count - 1))
    return bool(candidate > recent.mean() + t * recent.std(ddof=1) * math.sqrt(1 + 1 / count))


# --- perfline's gates


def stored_gate(history: Sequence[Floats], candidate: Floats) -> Word:
    """Perfline's verdict against a stored baseline (``gates.throughput_baseline``).

    One session is one launch; its value is the median of its rounds, as ``pytest -m perf`` has it.
    """
    sessions = [float(np.median(1 / rounds)) for rounds in history]
    samples = tuple(float(rate) for rate in 1 / candidate)
    metric = Metric("p_infer_core", float(np.median(samples)), "tok/s", "higher", samples)
    return throughput_baseline(metric, sessions, GatesSpec()).word


def ab_gate(log_ratios: Sequence[float], margin: float = MARGIN) -> Decision | None:
    """Perfline's A/B verdict (``sequential.decide``) on launch pairs that come one by one.

    None where they run out before a verdict.
    """
    for look in LOOKS:
        if look > len(log_ratios):
            return None
        found = decide(log_ratios[:look], math.log1p(margin))
        if found.word is not None:
            return found
    return None


@dataclass(frozen=True)
class Rule:
    """A rule that judges one launch.

    Attributes:
        judge: (earlier launches' rounds, oldest first; this launch's rounds) -> word.
        needs: how many of the latest earlier launches it looks at.
        two_samples: the rule itself, where it takes the rounds of any two launches.
    """

    name: str
    needs: int
    judge: Judge
    two_samples: TwoSamples | None = None


def _against_latest(name: str, rule: TwoSamples) -> Rule:
    def judge(history: Sequence[Floats], candidate: Floats) -> Word:
        return "regressed" if rule(history[-1], candidate) else "ok"

    return Rule(name, 1, judge, rule)


def _bencher(history: Sequence[Floats], candidate: Floats) -> Word:
    means = np.array([rounds.mean() for rounds in history])
    return "regressed" if bencher_t_99(means, float(candidate.mean())) else "ok"


RULES: tuple[Rule, ...] = (
    Rule("perfline, stored baseline", SESSIONS, stored_gate),
    _against_latest("pytest-benchmark mean:5%", pytest_benchmark_mean_5),
    _against_latest("pytest-benchmark min:5%", pytest_benchmark_min_5),
    _against_latest("pytorch/benchmark 7 %", pytorch_7),
    _against_latest("fixed 10 % (github-action-benchmark)", fixed_10),
    _against_latest("Welch t 5 % (hyperfine)", welch_5),
    _against_latest("Mann-Whitney U 5 % (google/benchmark)", mann_whitney_5),
    _against_latest("asv factor 1.1, U test", asv_factor_1_1),
    _against_latest("criterion bootstrap, 1 % noise", criterion),
    Rule("bencher t-test 0.99", BENCHER_MOST, _bencher),
)


def _u_test(baseline: Floats, candidate: Floats) -> float:
    """Two-sided p, exact up to 20 samples a side (ties: as if there were none)."""
    method = "exact" if max(len(baseline), len(candidate)) <= 20 else "asymptotic"
    found = stats.mannwhitneyu(candidate, baseline, method=method, use_continuity=False)
    return float(found.pvalue)


def _median_ratio(baseline: Floats, candidate: Floats) -> float:
    return float(np.median(candidate) / np.median(baseline))


def _t_statistic(new: Floats, old: Floats) -> Floats:
    """Welch's t of each row; rounds without any spread give an infinite t, or none (NaN)."""
    variance = new.var(axis=1, ddof=1) / new.shape[1] + old.var(axis=1, ddof=1) / old.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        t: Floats = (new.mean(axis=1) - old.mean(axis=1)) / np.sqrt(variance)
    return t
