"""Is a measured number worse than it may be? Every comparison of a number with a limit stands here.

Each gate is a pure function of plain values and the case's limits, and returns a
:class:`~perfline.gates.verdict.Verdict`. Unless a gate can rule out a regression, it does not say
``ok``. The gates for answers stand in ``gates.accuracy``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from perfline.gates.statistics import Prediction, half_width, prediction_interval, session_sd
from perfline.gates.verdict import Gate, Verdict, Word, signed
from perfline.metrics import Metric, summary

if TYPE_CHECKING:
    from perfline.cases.case import GatesSpec

MIN_ROUNDS = 3
TIMED = ("tok/s", "s")  # the units of what is timed in rounds, where it is judged at all
MAX_CONTENTION_FRACTION = 0.1  # of the CPU taken by other processes during the timed rounds
MAX_MBU = 1.1  # of the bandwidth measured: above, the one or the other is wrong
MAX_THROWN_OUT_FRACTION = 0.2  # of the rounds, in which the device slowed itself

_BOUND_CONFIDENCE = 0.975  # to call something no worse
_ALARM_CONFIDENCE = 0.99  # to call something worse, or better
_PASS_CONFIDENCE = 0.95  # that an unchanged run passes
_MOST_SPREAD = 1.5  # of the declared one: so much more may sessions show by chance
_MAX_USEFUL_SESSIONS = 30


@dataclass(frozen=True)
class Run:
    """How the rounds behind a metric were timed.

    Attributes:
        contention_fraction: of the CPU seconds wanted, those spent waiting; None unknown.
        full_pass: every question was timed, once: one sample, and long enough to be one.
        rounds: how many there must be: those that the case asks for, less those thrown out.
    """

    contention_fraction: float | None = None
    full_pass: bool = False
    rounds: int = MIN_ROUNDS


@dataclass(frozen=True)
class Held:
    """What a baseline holds of a metric.

    Attributes:
        values: of its sessions.
        anchor: of the sessions that were explicitly accepted, where later ones have replaced them;
            see ``baseline``.
        since: date of the anchor.
    """

    values: Sequence[float]
    anchor: Sequence[float] = ()
    since: str = ""


def throughput_baseline(
    metric: Metric,
    sessions: Sequence[float],
    gates: GatesSpec,
    contention_fraction: float | None = None,
    full_pass: bool = False,
    rounds: int = MIN_ROUNDS,
) -> Verdict:
    """Judge the median of the timed rounds against the sessions of a baseline (all in one unit).

    With d = log(median) - mean(log(session)), w(conf) the half width of the prediction interval for
    one more session, and delta = -log(1 - margin), or more where the sessions resolve no less (see
    :func:`_resolved`): ``ok`` iff d - w(.975) > -delta (a slowdown of delta is ruled out), else
    ``regressed`` iff d + w(.99) < 0; ``improved`` iff d - w(.99) > 0 and d > delta/2. ``regressed``
    becomes ``unsure`` where other processes took more than a tenth of the CPU meanwhile. Fewer than
    ``rounds`` samples are ``unsure``; a full pass is one sample, and long enough to be one. d is
    turned around where lower is better. A metric of the user's own without ``MIN_ROUNDS`` samples
    needs as many sessions.
    """
    if min(*sessions, metric.value, *metric.samples) <= 0:
        return _no_ratio(metric)
    stands = _Standing.of(metric, sessions, gates)
    word, limit = stands.word(stands.change), -stands.margin
    if lacking := too_few_rounds(metric, Run(None, full_pass, rounds)):
        word, reason = "unsure", f"too few samples: {lacking}"
    elif metric.own and max(len(metric.samples), len(sessions)) < MIN_ROUNDS:
        word = "unsure"
        reason = (
            f"{len(metric.samples)} samples and {len(sessions)} sessions held say nothing of its "
            f"spread: record {MIN_ROUNDS} samples or more, or add sessions with `perfline "
            "baselines update CASE --add`"
        )
    elif word == "regressed" and stands.explained_by(contention_fraction):
        word = "unsure"
        reason = (
            f"another process took {100 * (contention_fraction or 0):.0f} % of the CPU during the "
            "timed rounds: run again on an idle machine"
        )
    else:
        reason = stands.reason(word)
        if word == "regressed" and stands.change > limit:
            # A sure slowdown that is smaller than the margin, yet not ruled out.
            limit = stands.near.half_width - stands.margin
    return Verdict(
        metric=metric.name,
        word=word,
        gate="baseline",
        unit=metric.unit,
        baseline=math.exp(stands.near.mean),
        baseline_error=math.exp(stands.near.mean) * stands.near.sd,
        measured=stands.median,
        measured_error=stands.error,
        change_fraction=math.expm1(stands.sign * stands.change),
        limit=signed(100 * math.expm1(stands.sign * limit), "%"),
        reason=reason,
    )


@dataclass(frozen=True)
class _Standing:
    """Where a metric stands against the sessions of a baseline.

    Attributes:
        sign: -1 where lower is better.
        median, error: of the metric.
        logs: of the sessions' values; ``prior_sd`` is their declared spread.
        near, far: prediction intervals of one more session, to call it no worse, and worse.
        change: log of the median over the sessions' mean, turned so that below 0 is worse.
        asked: the margin as a log ratio; ``margin``: more, where the sessions resolve no less.
    """

    metric: Metric
    sign: int
    median: float
    error: float | None
    logs: Sequence[float]
    prior_sd: float
    near: Prediction
    far: Prediction
    change: float
    asked: float
    margin: float

    @classmethod
    def of(cls, metric: Metric, sessions: Sequence[float], gates: GatesSpec) -> _Standing:
        """Of a metric and sessions that are all above 0."""
        sign = -1 if metric.direction == "lower" else 1
        logs, prior_sd = (
            [math.log(value) for value in sessions],
            gates.throughput_session_sd_fraction,
        )
        near = prediction_interval(logs, prior_sd, _BOUND_CONFIDENCE)
        median, error = summary(metric.samples or (metric.value,))
        if metric.own and metric.value != median:  # such as a percentile: sessions hold that, too
            median, error = metric.value, None
        asked = -math.log1p(-gates.throughput_margin_fraction)
        return cls(
            metric=metric,
            sign=sign,
            median=median,
            error=error,
            logs=logs,
            prior_sd=prior_sd,
            near=near,
            far=prediction_interval(logs, prior_sd, _ALARM_CONFIDENCE),
            change=sign * (math.log(median) - near.mean),
            asked=asked,
            margin=_resolved(asked, near.sd, len(logs), prior_sd),
        )

    def word(self, change: float) -> Word:
        """What a change says."""
        return _throughput_word(change, self.margin, self.near.half_width, self.far.half_width)

    def explained_by(self, contention_fraction: float | None) -> bool:
        """Whether the word is another one without what was waited for the CPU.

        That can explain no more than itself.
        """
        if contention_fraction is None or contention_fraction <= MAX_CONTENTION_FRACTION:
            return False
        without = self.change - math.log1p(-min(contention_fraction, 0.99))
        return self.word(without) != self.word(self.change)

    def reason(self, word: Word) -> str:
        """Why it is so called."""
        held = f"from {len(self.logs)} sessions"
        if len(self.logs) == 1:
            held = "spread declared in the case (1 session held)"
        spread = f"+-{100 * self.near.half_width:.1f} % between sessions, {held}"
        worse, better, loss = "slower", "faster", "slowdown"
        if self.metric.own:
            worse, better, loss = "worse", "better", "loss"
        if word == "improved":
            return f"{better} than chance allows ({spread}): accept it as the new baseline"
        if word == "unsure":
            needed = _settled_by(self.change, self.asked, self.logs, self.prior_sd)
            return f"too noisy to tell ({spread}): {needed}"
        if word == "regressed":
            return f"{worse} than chance allows ({spread})"
        if self.margin <= self.asked:
            return f"a {loss} of the margin is ruled out ({spread})"
        return (
            f"a {loss} of {-100 * math.expm1(-self.margin):.1f} % is ruled out ({spread}); for "
            f"{100 * (1 - math.exp(-self.asked)):.4g} % more sessions are needed, or a comparison"
        )


def _no_ratio(metric: Metric) -> Verdict:
    reason = (
        "the gate judges ratios, and 0 or less has none: record it with the direction 'info', or "
        "another number of the same thing"
    )
    return Verdict(
        metric.name, "unsure", "baseline", metric.unit, None, None, metric.value, reason=reason
    )


def throughput_published(
    metric: Metric, published: float, same_device: bool, gates: GatesSpec
) -> Verdict | None:
    """Judge tok/s against the published figure; None on other devices than the published one."""
    if not same_device:
        return None
    margin = gates.published_margin_fraction
    return _within(metric, published, margin, "published", "the published figure")


def memory_baseline(metric: Metric, baseline_gib: float, gates: GatesSpec) -> Verdict:
    """Judge peak memory (GiB): above the baseline by max(fraction, floor) is ``regressed``."""
    floor = gates.memory_floor_mib / 1024 / baseline_gib
    return _within(metric, baseline_gib, max(gates.memory_fraction, floor), "baseline", "baseline")


def too_few_rounds(metric: Metric, run: Run) -> str:
    """Say how many rounds a timed metric lacks; empty where it has all."""
    rounds, needed = len(metric.samples), max(MIN_ROUNDS, run.rounds)
    if (
        metric.own
        or metric.unit not in TIMED
        or metric.direction == "info"
        or run.full_pass
        or rounds >= needed
    ):
        return ""
    why = "were asked for" if run.rounds > MIN_ROUNDS else "are needed"
    return f"{rounds} rounds, {needed} {why}"


def too_many_thrown_out(rounds: int, thrown_out: Sequence[str]) -> str:
    """Say why what is left of ``rounds`` is no measurement; empty where it is one.

    ``thrown_out`` holds a sentence on every round that does not count.
    """
    left = rounds - len(thrown_out)
    few = len(thrown_out) <= MAX_THROWN_OUT_FRACTION * rounds
    if not thrown_out or (few and left >= MIN_ROUNDS):
        return ""
    return (
        f"{len(thrown_out)} of {rounds} rounds were thrown out (at most "
        f"{100 * MAX_THROWN_OUT_FRACTION:.0f} %, and {MIN_ROUNDS} must be left), the first with "
        f"{thrown_out[0]}"
    )


def impossible_bandwidth(mbu: Sequence[float]) -> str:
    """Say that a step read more than memory can give; empty where it did not."""
    if not mbu or (median := statistics.median(mbu)) <= MAX_MBU:
        return ""
    return (
        f"a step would read {100 * median:.0f} % of the memory bandwidth measured here (at most "
        f"{100 * MAX_MBU:.0f} % can be): tokens were not computed, a cache held the weights, or "
        "another process slowed the measurement of the bandwidth"
    )


def straggler(name: str, below_fraction: float, gates: GatesSpec) -> str:
    """Say that a rank is slower than the others' median by more than the margin; empty: it is not.

    A finding, no verdict: the same ranks' baseline may hold the slow device as well.
    """
    margin = gates.throughput_margin_fraction
    if below_fraction <= margin:
        return ""
    return (
        f"{name} is {100 * below_fraction:.1f} % slower than the median of the other ranks "
        f"(margin {100 * margin:.1f} %), and all wait for it: look at its clocks, heat and "
        "neighbours with `perfline doctor` there (CUDA_VISIBLE_DEVICES names the device)"
    )


def against_sessions(metric: Metric, held: Held, gates: GatesSpec, run: Run) -> Verdict:
    """Judge a metric by a baseline: by its latest sessions and by its anchor.

    What is ``ok`` against sessions that were themselves ``ok`` against older ones may still have
    crept away from what was last accepted on purpose: a sure loss against the anchor is
    ``regressed``, by the very same gate. One that the anchor's gate cannot be sure of stays the
    sessions' affair, so that the sum of all steps is bounded by what one gate resolves.
    """
    verdict = _by_unit(metric, held.values, gates, run)
    if not held.anchor:
        return verdict
    since = _by_unit(metric, held.anchor, gates, run)
    if since.word == "regressed" and verdict.word != "regressed":
        reason = f"{since.reason}; against what was accepted on {held.since}: small steps add up"
        return replace(since, reason=reason)
    sum_of_steps = f"{since.change} since what was accepted on {held.since}"
    return replace(verdict, reason=f"{verdict.reason}; {sum_of_steps}")


def _by_unit(metric: Metric, values: Sequence[float], gates: GatesSpec, run: Run) -> Verdict:
    """Judge by some sessions' values: the unit says which gate that is.

    A metric of the user's own goes where throughput goes, whatever its unit. Memory and counts have
    no spread to speak of: the largest accepted value is the baseline.
    """
    if metric.own or metric.unit in TIMED:
        contention = run.contention_fraction
        return throughput_baseline(metric, values, gates, contention, run.full_pass, run.rounds)
    if metric.unit == "GiB":
        return memory_baseline(metric, max(values), gates)
    return compile_health(metric, max(values))


def compile_health(metric: Metric, baseline: float) -> Verdict:
    """Judge a count without noise (graph breaks, recompiles, graphs): any increase regresses.

    Fewer graphs are no improvement by themselves: something may run outside of any.
    """
    more = metric.value - baseline
    fewer: Word = "ok" if metric.name.startswith("graphs") else "improved"
    word: Word = "regressed" if more > 0 else fewer if more < 0 else "ok"
    return Verdict(
        metric=metric.name,
        word=word,
        gate="baseline",
        unit=metric.unit,
        baseline=baseline,
        measured=metric.value,
        limit=signed(0, ""),
        reason=f"{metric.value:g} where the baseline has {baseline:g}; this count has no noise",
    )


def _throughput_word(change: float, margin: float, near: float, far: float) -> Word:
    """Return the word for a log-ratio; as it falls: improved, ok, unsure, regressed.

    The far half width exceeds the near one, so ``improved`` implies what ``ok`` demands. Where a
    slowdown is both sure and surely smaller than the margin, the margin decides: ``ok``. What is
    neither ``ok`` nor within the far half width is slower by more than half the margin.
    """
    if change > max(far, margin / 2):
        return "improved"
    if change > near - margin:
        return "ok"
    return "regressed" if change < -far else "unsure"


def _resolved(margin: float, sd: float, sessions: int, prior_sd: float) -> float:
    """Return the margin, or the smallest that an unchanged run shows 19 times in 20.

    That is w(.975) + w(.95), for a spread ``sd`` of at most 1.5 times the declared one: what
    spreads further is not as declared, and stays ``unsure``.
    """
    spread = min(sd, _MOST_SPREAD * prior_sd)
    return max(
        margin,
        sum(half_width(spread, sessions, c) for c in (_BOUND_CONFIDENCE, _PASS_CONFIDENCE)),
    )


def _settled_by(change: float, margin: float, logs: Sequence[float], prior_sd: float) -> str:
    """Say what would turn ``unsure`` into a verdict, if the next sessions are like these."""
    add = "with `perfline baselines update CASE --add`"
    if len(logs) == 1:
        return f"measure the spread by adding sessions {add}"
    variance = statistics.variance(logs)
    for count in range(len(logs) + 1, _MAX_USEFUL_SESSIONS + 1):
        sd = session_sd((count - 1) * variance, count, prior_sd)
        near, far = (half_width(sd, count, c) for c in (_BOUND_CONFIDENCE, _ALARM_CONFIDENCE))
        resolved = _resolved(margin, sd, count, prior_sd)
        if _throughput_word(change, resolved, near, far) != "unsure":
            return f"add {count - len(logs)} more like these {add}"
    return "sessions differ too much for the case's margin: more of them would not help"


def _within(metric: Metric, baseline: float, margin: float, gate: Gate, what: str) -> Verdict:
    """Judge a number by a fixed margin (a fraction of the baseline) to either side."""
    change = metric.value / baseline - 1
    worse = change if metric.direction == "lower" else -change
    word: Word = "ok"
    reason = f"within {100 * margin:.1f} % of {what}"
    if worse > margin:
        word, reason = "regressed", f"worse than {what} by more than {100 * margin:.1f} %"
    elif -worse > margin:
        word, reason = "improved", f"better than {what} by more than {100 * margin:.1f} %"
    return Verdict(
        metric=metric.name,
        word=word,
        gate=gate,
        unit=metric.unit,
        baseline=baseline,
        measured=metric.value,
        change_fraction=change,
        limit=signed(100 * (margin if metric.direction == "lower" else -margin), "%"),
        reason=reason,
    )
