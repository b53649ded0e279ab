"""Are the answers worse than they may be? Every comparison of answers with a limit stands here.

Three questions: is the accuracy the published one (one sample), are the answers as good as the
stored ones (paired), and does the compiled engine answer as the eager one (paired, same run)?
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from perfline.cases.case import ROUNDING_FRACTION as ROUNDING_FRACTION
from perfline.gates.statistics import detectable_drop_pp, drop_upper, mcnemar_p, zero_flip_bound
from perfline.gates.verdict import Flip, Verdict, Word, signed
from perfline.metrics import Metric, suffix
from perfline.tasks.answers import Scored, question_key, subset

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from perfline.cases.case import GatesSpec, Precision
    from perfline.tasks.answers import Answers

_BOUND_CONFIDENCE = 0.975  # to call something no worse


_PUBLISHED_STANDARD_ERRORS = 2.5


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


def accuracy_baseline(
    name: str,
    before: Scored,
    after: Scored,
    gates: GatesSpec,
    looks: int = 1,
    asked_of: int | None = None,
) -> Verdict:
    """Judge answers against the stored ones, question by question.

    ``regressed``: McNemar's exact one-sided test at the case's alpha, and a drop of at least the
    case's margin. ``ok``: the 97.5 % upper bound of the drop is below the case's other margin. Both
    margins grow where the questions are too few to resolve them. The new run may ask fewer
    questions than the stored one; any other difference is ``incomparable``.

    A sequential run looks up to ``looks`` times on its way to ``asked_of`` questions: every error
    rate is split evenly among the looks (Bonferroni), and the margins are those of ``asked_of``.
    """
    if mismatch := _question_mismatch(before, after):
        return Verdict(name, "incomparable", "baseline", "fraction", reason=mismatch)
    flips = _flips(before, after)
    n, lost = len(after.ids), sum(flip.kind == "right -> wrong" for flip in flips)
    gained = sum(flip.kind == "wrong -> right" for flip in flips)
    alpha, confidence = gates.accuracy_alpha / looks, 1 - (1 - _BOUND_CONFIDENCE) / looks
    ok_pp = max(gates.accuracy_drop_ok_pp, 200 * zero_flip_bound(asked_of or n, _BOUND_CONFIDENCE))
    margin_pp = gates.accuracy_drop_regressed_pp * ok_pp / gates.accuracy_drop_ok_pp
    drop_pp = 100 * (lost - gained) / n
    bound_pp = 100 * drop_upper(lost, gained, n, confidence)
    p_lost, p_gained = mcnemar_p(lost, gained), mcnemar_p(gained, lost)

    asked = f"{n} questions" if n == len(before.ids) else f"{n} of {len(before.ids)} questions"
    counts = f"{lost} right -> wrong and {gained} wrong -> right in {asked}"
    word: Word
    if p_lost <= alpha and drop_pp >= margin_pp:
        word, reason = "regressed", f"{counts}, p = {p_lost:.2g}"
    elif p_gained <= alpha and -drop_pp >= margin_pp:
        word, reason = "improved", f"{counts}, p = {p_gained:.2g}"
    elif mcnemar_p(n, 0) > alpha:
        least = math.ceil(-math.log2(alpha))
        word, reason = "unsure", f"{counts}: too few to show any drop, ask at least {least}"
    elif bound_pp < ok_pp and drop_pp < margin_pp:
        word, reason = "ok", f"{counts}: a drop above {bound_pp:.2f} pp is ruled out"
    else:
        word = "unsure"
        reason = (
            f"{counts} (p = {p_lost:.2g}): a drop of up to {bound_pp:.2f} pp is not ruled out, "
            f"ok is below {ok_pp:.2f} pp; ask more questions, or judge the flips listed"
        )
    seen_pp = detectable_drop_pp(n, (lost + gained) / n, alpha)
    reason += f"; {n} questions see a drop of {seen_pp:.2g} pp (80 % power)"
    if ok_pp > gates.accuracy_drop_ok_pp:
        reason += f": margins scaled to {margin_pp:.2f} and {ok_pp:.2f} pp"
    if looks > 1:
        reason += f"; sequential, alpha and bounds split among {looks} looks"
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


def same_answers(reference: Answers, answers: Answers, precision: Precision) -> Verdict:
    """Judge the compiled engine's answers by the eager engine's, in the same run.

    A differing answer counts, unless the two best letters of both engines lie within the rounding
    of the dtype, as a share of the question's largest logit (``Answers.rounding_scales``), as
    :func:`same_tokens`: then either answer is as good.
    An engine that tells no letter logits is held to the full-vocabulary answers, ties and all.
    """
    if not answers.has_logits:
        return _same_letters(reference, answers)
    tolerance = ROUNDING_FRACTION[precision]
    before = dict(zip(reference.ids, reference.letter_logits, strict=True))
    scales = dict(zip(reference.ids, reference.rounding_scales, strict=True))
    old_letters = dict(zip(reference.ids, reference.letters(), strict=True))
    flips, ties, largest = [], 0, 0.0
    for name, logits, scale, letter in zip(
        answers.ids,
        answers.letter_logits,
        answers.rounding_scales,
        answers.letters(),
        strict=True,
    ):
        old, logits = _told(before[name]), _told(logits)
        largest = max(largest, float(abs(logits - old).max()))
        if letter == old_letters[name]:
            continue
        limit = tolerance * float(max(scales[name], scale))
        if _margin(old) <= limit and _margin(logits) <= limit:
            ties += 1
        else:
            flips.append(Flip(name, old_letters[name], old_letters[name], letter, _margin(old)))
    return _flipped(
        flips,
        f"{len(flips)} of {len(answers.ids)} timed answers differ from the eager engine's "
        f"({ties} more are ties); letter logits differ by {largest:.2g} at most",
    )


@dataclass(frozen=True)
class OtherToken:
    """A generated token that is not the likeliest one.

    Attributes:
        where: such as ``single/2 token 5``.
        before, after: the likeliest token by the eager engine's logits, and the one in its place.
        gap: how far the logit of the one is above that of the other.
        largest: the largest logit there, without sign.
    """

    where: str
    before: int
    after: int
    gap: float
    largest: float


def same_tokens(
    engine: str,
    others: Sequence[OtherToken],
    compared: int,
    precision: Precision,
    whose: str = "the likeliest by a forward without a cache",
) -> Verdict:
    """Judge the tokens that an engine generated by ``whose``.

    Another token counts, unless the logits of the two lie within the rounding of the dtype, as a
    share of the largest one there: then either token is as good.
    """
    flips = [
        Flip(each.where, str(each.before), str(each.before), str(each.after), each.gap)
        for each in others
        if not each.gap <= ROUNDING_FRACTION[precision] * each.largest  # NaN counts, too
    ]
    told = (
        f"{len(flips)} of {compared} generated tokens differ from {whose} "
        f"({len(others) - len(flips)} more are ties)"
    )
    return replace(_flipped(flips, told), metric=f"decode_flips{suffix(engine)}")


def _same_letters(reference: Answers, answers: Answers) -> Verdict:
    before = dict(zip(reference.ids, reference.argmax_letter, strict=True))
    flips = [
        Flip(name, before[name], before[name], letter, None)
        for name, letter in zip(answers.ids, answers.argmax_letter, strict=True)
        if letter != before[name]
    ]
    return _flipped(
        flips,
        f"{len(flips)} of {len(answers.ids)} timed answers differ from the eager engine's (full "
        "vocabulary: the engine tells no letter logits)",
    )


def _flipped(flips: list[Flip], reason: str) -> Verdict:
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


def verified(
    name: str, reference: Answers, answers: Answers, precision: Precision
) -> tuple[Word, str]:
    """Judge the shared-prefix path by the plain path's answers to the same questions.

    ``invalid`` where letter logits differ by more than the rounding of the dtype (a share of the
    question's largest logit), or an answer differs that is no tie: the path is broken, and
    what it measured says nothing about the model.
    """
    after = dict(zip(answers.ids, answers.letter_logits, strict=True))
    share = 0.0
    for question, plain, scale in zip(
        reference.ids, reference.letter_logits, reference.rounding_scales, strict=True
    ):
        told, now = _told(plain), _told(after[question])
        share = max(share, float(abs(now - told).max()) / max(float(scale), 1e-6))
    tolerance = ROUNDING_FRACTION[precision]
    found = same_answers(reference, subset(answers, reference.ids), precision)
    reason = (
        f"{name}: {len(reference.ids)} answers given again the plain way: "
        f"{len(found.flips)} flips, "
        f"letter logits within {share:.1g} of the largest (allowed {tolerance:g})"
    )
    return ("invalid" if share > tolerance or found.flips else "ok"), reason


def _told(letter_logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The logits of the choices that the question has: behind them stands NaN."""
    told: npt.NDArray[np.float32] = letter_logits[letter_logits == letter_logits]
    return told


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
