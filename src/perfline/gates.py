"""Is a measured number worse than it may be? Every comparison with a limit stands here.

Each gate is a pure function of plain values and the case's limits, and returns a
:class:`~perfline.verdict.Verdict`. Unless a gate can rule out a regression, it does not say ``ok``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from perfline.metrics import Metric, summary
from perfline.statistics import (
    detectable_drop_pp,
    drop_upper,
    half_width,
    mcnemar_p,
    prediction_interval,
    session_sd,
    zero_flip_bound,
)
from perfline.stored import Scored, question_key
from perfline.verdict import Flip, Gate, Verdict, Word, signed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from perfline.case import GatesSpec, Precision
    from perfline.mmlu import Answers

MIN_ROUNDS = 3
MAX_CONTENTION_FRACTION = 0.1  # of the CPU taken by other processes during the timed rounds

# What two correct engines may differ by in a letter logit, as a share of the largest one: rounding
# errors of some 30 layers, about 8 units in the last place of fp16 and bf16 (2^-11, 2^-8).
ROUNDING_FRACTION: dict[Precision, float] = {"fp32": 1e-4, "fp16": 4e-3, "bf16": 3e-2}

_BOUND_CONFIDENCE = 0.975  # to call something no worse
_ALARM_CONFIDENCE = 0.99  # to call something worse, or better
_PUBLISHED_STANDARD_ERRORS = 2.5
_MAX_USEFUL_SESSIONS = 30


def accuracy_published(
    metric: Metric, n: int, published_fraction: float, gates: GatesSpec
) -> Verdict:
    """Judge the accuracy over ``n`` questions against a published one: is the recipe right?

    One sample, so no finer than its standard error: 2.5 of them or the case's tolerance, whichever
    is larger, are let pass.
    """
    error = math.sqrt(published_fraction * (1 - published_fraction) / n)
    tolerance_pp = max(gates.published_tolerance_pp, 100 * _PUBLISHED_STANDARD_ERRORS * error)
    change_pp = 100 * (metric.value - published_fraction)
    word: Word = "ok"
    reason = f"within {tolerance_pp:.2f} pp of the published figure, over {n} questions"
    if change_pp < -tolerance_pp:
        word = "regressed"
        reason = f"{-change_pp:.2f} pp below the published figure: check weights, prompt and dtype"
    elif change_pp > tolerance_pp:
        word = "improved"
        reason = "above the published figure: the recipe may differ from the published one"
    return Verdict(
        metric=metric.name,
        word=word,
        gate="published",
        unit=metric.unit,
        baseline=published_fraction,
        measured=metric.value,
        measured_error=error,
        change_pp=change_pp,
        limit=signed(-tolerance_pp, "pp"),
        reason=reason,
    )


def accuracy_baseline(name: str, before: Scored, after: Scored, gates: GatesSpec) -> Verdict:
    """Judge answers against the stored ones, question by question.

    ``regressed``: McNemar's exact one-sided test at the case's alpha, and a drop of at least the
    case's margin. ``ok``: the 97.5 % upper bound of the drop is below the case's other margin. Both
    margins grow where the questions are too few to resolve them. The new run may ask fewer
    questions than the stored one; any other difference is ``incomparable``.
    """
    if mismatch := _question_mismatch(before, after):
        return Verdict(name, "incomparable", "baseline", "fraction", reason=mismatch)
    flips = _flips(before, after)
    n, lost = len(after.ids), sum(flip.kind == "right -> wrong" for flip in flips)
    gained = sum(flip.kind == "wrong -> right" for flip in flips)
    ok_pp = max(gates.accuracy_drop_ok_pp, 200 * zero_flip_bound(n, _BOUND_CONFIDENCE))
    margin_pp = gates.accuracy_drop_regressed_pp * ok_pp / gates.accuracy_drop_ok_pp
    drop_pp = 100 * (lost - gained) / n
    bound_pp = 100 * drop_upper(lost, gained, n, _BOUND_CONFIDENCE)
    p_lost, p_gained = mcnemar_p(lost, gained), mcnemar_p(gained, lost)

    asked = f"{n} questions" if n == len(before.ids) else f"{n} of {len(before.ids)} questions"
    counts = f"{lost} right -> wrong and {gained} wrong -> right in {asked}"
    word: Word
    if p_lost <= gates.accuracy_alpha and drop_pp >= margin_pp:
        word, reason = "regressed", f"{counts}, p = {p_lost:.2g}"
    elif p_gained <= gates.accuracy_alpha and -drop_pp >= margin_pp:
        word, reason = "improved", f"{counts}, p = {p_gained:.2g}"
    elif mcnemar_p(n, 0) > gates.accuracy_alpha:
        least = math.ceil(-math.log2(gates.accuracy_alpha))
        word, reason = "unsure", f"{counts}: too few to show any drop, ask at least {least}"
    elif bound_pp < ok_pp and drop_pp < margin_pp:
        word, reason = "ok", f"{counts}: a drop above {bound_pp:.2f} pp is ruled out"
    else:
        word = "unsure"
        reason = (
            f"{counts} (p = {p_lost:.2g}): a drop of up to {bound_pp:.2f} pp is not ruled out, "
            f"ok is below {ok_pp:.2f} pp; ask more questions, or judge the flips listed"
        )
    if ok_pp > gates.accuracy_drop_ok_pp:
        seen_pp = detectable_drop_pp(n, (lost + gained) / n, gates.accuracy_alpha)
        reason += (
            f"; margins scaled to {margin_pp:.2f} and {ok_pp:.2f} pp, since {n} questions see "
            f"a drop of {seen_pp:.2g} pp (80 % power)"
        )
    return Verdict(
        metric=name,
        word=word,
        gate="baseline",
        unit="fraction",
        baseline=(after.correct + lost - gained) / n,
        measured=after.correct / n,
        change_pp=-drop_pp,
        limit=signed(-margin_pp, "pp"),
        reason=reason,
        flips=flips,
    )


def throughput_baseline(
    metric: Metric,
    sessions: Sequence[float],
    gates: GatesSpec,
    contention_fraction: float | None = None,
    full_pass: bool = False,
) -> Verdict:
    """Judge the median of the timed rounds against the sessions of a baseline (all in tok/s).

    With d = log(median) - mean(log(session)), w(conf) the half width of the prediction interval for
    one more session, and delta = -log(1 - margin): ``ok`` iff d - w(.975) > -delta (a slowdown of
    the margin is ruled out), else ``regressed`` iff d + w(.99) < 0; ``improved`` iff d - w(.99) > 0
    and d > delta/2. ``regressed`` becomes ``unsure`` where other processes took
    more than a tenth of the CPU meanwhile. A full pass is one sample, and long enough to be one.
    """
    logs = [math.log(value) for value in sessions]
    prior_sd = gates.throughput_session_sd_fraction
    near = prediction_interval(logs, prior_sd, _BOUND_CONFIDENCE)
    far = prediction_interval(logs, prior_sd, _ALARM_CONFIDENCE)
    median, error = summary(metric.samples or (metric.value,))
    change = math.log(median) - near.mean
    margin = -math.log1p(-gates.throughput_margin_fraction)
    limit = -margin
    word = _throughput_word(change, margin, near.half_width, far.half_width)
    held = f"from {len(logs)} sessions"
    if len(logs) == 1:
        held = "spread declared in the case (1 session held)"
    spread = f"+-{100 * near.half_width:.1f} % between sessions, {held}"

    if len(metric.samples) < MIN_ROUNDS and not full_pass:
        word = "unsure"
        reason = f"too few samples: {len(metric.samples)} rounds, {MIN_ROUNDS} are needed"
    elif word == "improved":
        reason = f"faster than chance allows ({spread}): accept it as the new baseline"
    elif word == "ok":
        reason = f"a slowdown of the margin is ruled out ({spread})"
    elif word == "unsure":
        reason = f"too noisy to tell ({spread}): {_settled_by(change, margin, logs, prior_sd)}"
    elif contention_fraction is not None and contention_fraction > MAX_CONTENTION_FRACTION:
        word = "unsure"
        reason = (
            f"another process took {100 * contention_fraction:.0f} % of the CPU during the timed "
            "rounds: run again on an idle machine"
        )
    else:
        reason = f"slower than chance allows ({spread})"
        if change > limit:  # a sure slowdown that is smaller than the margin, yet not ruled out
            limit = near.half_width - margin
    return Verdict(
        metric=metric.name,
        word=word,
        gate="baseline",
        unit=metric.unit,
        baseline=math.exp(near.mean),
        baseline_error=math.exp(near.mean) * near.sd,
        measured=median,
        measured_error=error,
        change_fraction=math.expm1(change),
        limit=signed(100 * math.expm1(limit), "%"),
        reason=reason,
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


def against_sessions(
    metric: Metric,
    values: Sequence[float],
    gates: GatesSpec,
    contention_fraction: float | None = None,
    full_pass: bool = False,
) -> Verdict:
    """Judge a metric by the sessions of a baseline: its unit says which gate that is.

    Memory and counts have no spread to speak of: the largest accepted value is the baseline.
    """
    if metric.unit == "tok/s":
        return throughput_baseline(metric, values, gates, contention_fraction, full_pass)
    if metric.unit == "GiB":
        return memory_baseline(metric, max(values), gates)
    return compile_health(metric, max(values))


def compile_health(metric: Metric, baseline: float) -> Verdict:
    """Judge a count without noise (graph breaks, recompiles, graphs): any increase regresses."""
    more = metric.value - baseline
    word: Word = "regressed" if more > 0 else "improved" if more < 0 else "ok"
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


def same_answers(reference: Answers, answers: Answers, precision: Precision) -> Verdict:
    """Judge the compiled engine's answers by the eager engine's, in the same run.

    A differing answer counts, unless the two best letters of both engines lie within the rounding
    of the dtype, as a share of the question's largest letter logit: then either answer is as good.
    """
    tolerance = ROUNDING_FRACTION[precision]
    before = dict(zip(reference.ids, reference.letter_logits, strict=True))
    old_letters = dict(zip(reference.ids, reference.letters(), strict=True))
    flips, ties, largest = [], 0, 0.0
    for name, logits, letter in zip(
        answers.ids, answers.letter_logits, answers.letters(), strict=True
    ):
        old = before[name]
        largest = max(largest, float(abs(logits - old).max()))
        if letter == old_letters[name]:
            continue
        limit = tolerance * float(max(abs(old).max(), abs(logits).max()))
        if _margin(old) <= limit and _margin(logits) <= limit:
            ties += 1
        else:
            flips.append(Flip(name, old_letters[name], old_letters[name], letter, _margin(old)))
    reason = (
        f"{len(flips)} of {len(answers.ids)} timed answers differ from the eager engine's "
        f"({ties} more are ties); letter logits differ by {largest:.2g} at most"
    )
    return Verdict(
        metric="flips",
        word="regressed" if flips else "ok",
        gate="paired",
        unit="count",
        baseline=0,
        measured=len(flips),
        limit=signed(0, ""),
        reason=reason,
        flips=tuple(flips),
    )


def _margin(letter_logits: npt.NDArray[np.float32]) -> float:
    second, best = sorted(map(float, letter_logits))[-2:]
    return best - second


def _question_mismatch(before: Scored, after: Scored) -> str:
    """Say why two runs cannot be paired; empty if they can."""
    labels = dict(zip(before.ids, before.labels, strict=True))
    extra = [name for name in after.ids if name not in labels]
    if extra:
        return (
            f"{len(extra)} of {len(after.ids)} questions are not in the baseline, "
            f"such as {' and '.join(extra[:2])}"
        )
    changed = [
        name for name, label in zip(after.ids, after.labels, strict=True) if labels[name] != label
    ]
    if changed:
        return (
            f"{len(changed)} questions have another label than in the baseline, "
            f"such as {' and '.join(changed[:2])}"
        )
    return "" if after.ids else "the run answered no question"


def _flips(before: Scored, after: Scored) -> tuple[Flip, ...]:
    margins = before.margins or (None,) * len(before.ids)
    stored = dict(zip(before.ids, zip(before.answers, margins, strict=True), strict=True))
    flips = []
    for name, answer, label in zip(after.ids, after.answers, after.labels, strict=True):
        old, margin = stored[name]
        if answer != old:
            flips.append(Flip(name, label, old, answer, margin))
    return tuple(sorted(flips, key=lambda flip: question_key(flip.id)))


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


def _settled_by(change: float, margin: float, logs: Sequence[float], prior_sd: float) -> str:
    """Say what would turn ``unsure`` into a verdict, if the next sessions are like these."""
    add = "with `perfline baselines update CASE --add`"
    if len(logs) == 1:
        return f"measure the spread by adding sessions {add}"
    variance = statistics.variance(logs)
    for count in range(len(logs) + 1, _MAX_USEFUL_SESSIONS + 1):
        sd = session_sd((count - 1) * variance, count, prior_sd)
        near, far = (half_width(sd, count, c) for c in (_BOUND_CONFIDENCE, _ALARM_CONFIDENCE))
        if _throughput_word(change, margin, near, far) != "unsure":
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
