"""Does the model compute something else than it did? Every comparison of fp32 numbers with a limit.

KL divergence says how far two computations lie apart. What only re-orders the arithmetic (another
attention kernel, another batch, rounding) is measured in the same session. A thousand times the
largest of it is let pass: some 30 times in the logits, since KL is quadratic in them. No more,
however, than rounding can explain at all: where even a variation lies beyond that, a kernel is
broken.

Drift has noise: which way a 16-bit number is rounded. What the dtype costs by itself is measured in
the same session, by the fp32 model that rounds to it between its modules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from perfline.gates.verdict import Verdict, Word
from perfline.tasks.reference import REST, PromptReference, distances, distribution, numbers

NAME, WAYS, UNIT = "fidelity", "fidelity_ways", "nats"
_BEYOND_REORDERING = 1000.0  # in KL; 32 in the logits
_BEYOND_LAYER = 30.0  # of what the variations move a layer's number by
_BEYOND_ROUNDING = 1.25  # of the rounded fp32 model's error; docs/gate.md has what it sees
_MOST_LOOSENED = 2.0  # times, by variations that differ among themselves
_DRIFT_CONFIDENCE = 0.99
_TIE_NATS = 1e-3  # two tokens are as likely: what is told hangs on it, and no verdict
_FEW = 0.9  # of the summed KL in at most a quarter of the prompts: it sits there
_GROWS = 4.0  # times as far apart in the last third of a prompt's positions as in the first
_NOTHING = 1e-16  # nats: a KL below is rounding

Floats = npt.NDArray[np.floating]


def allowed(variations: Mapping[str, float], most: float) -> float:
    """Return the KL, nats, that re-ordered fp32 arithmetic explains."""
    return min(most, _BEYOND_REORDERING * max(variations.values()))


def between_ways(
    ways: Mapping[str, float],
    variations: Mapping[str, float],
    most: float,
    without: Mapping[str, str],
    by_prompt: Mapping[str, Mapping[str, Floats]] | None = None,
) -> Verdict:
    """Judge the ways of running the model by the eager one, each prompt by itself.

    ``ways`` and ``variations`` hold the largest KL(eager plain || way) of any position, nats;
    ``by_prompt`` that of each position, by way and question, to say where a way parts.
    """
    limit = allowed(variations, most)
    apart = {name: kl for name, kl in ways.items() if not kl <= limit}
    broken = {name: kl for name, kl in variations.items() if not kl <= most}
    told = ", ".join(f"{name} {kl:.1e}" for name, kl in ways.items()) or "eager alone was run"
    why = ", ".join(f"{name} {kl:.1e}" for name, kl in variations.items())
    left_out = "".join(f"; no {name}: {reason}" for name, reason in without.items())
    word: Word = "ok"
    reason = f"the same model by every way ({told}; re-ordered arithmetic: {why}){left_out}"
    if broken:
        word = "regressed"
        names = " and ".join(f"another {name}" for name in broken)
        reason = f"{names} gives other numbers than rounding explains ({why}, at most {most:.1e})"
    elif apart:
        word = "regressed"
        reason = (
            f"{' and '.join(apart)} computes something else than the eager model ({told}; "
            f"re-ordered arithmetic: {why})"
        )
        if rows := (by_prompt or {}).get(next(iter(apart))):
            reason += "".join(f"; {where}" for where in (_prompts(rows), _growth(rows)) if where)
    measured = max([*(broken or apart or ways).values(), 0.0])
    return replace(_verdict(word, measured, limit, reason), metric=WAYS, gate="paired")


def against_reference(
    stored: Mapping[str, PromptReference],
    now: Mapping[str, PromptReference],
    logits: Mapping[str, Floats],
    limit: float,
    layers_off: Sequence[float],
    shown: str,
    changed: str = "",
) -> Verdict:
    """Judge what was computed by what is stored of the same prompts.

    ``logits`` is (positions, vocabulary) by question, ``limit`` in nats. ``shown`` is the file,
    ``changed`` what else is known to have changed, such as the weights.
    """
    vocabulary = logits[next(iter(now))].shape[1]
    apart = distances(stored, now, logits)
    return by_distances(stored, now, apart, vocabulary, limit, layers_off, shown, changed)


def by_distances(
    stored: Mapping[str, PromptReference],
    now: Mapping[str, PromptReference],
    apart: Mapping[str, Floats],
    vocabulary: int,
    limit: float,
    layers_off: Sequence[float],
    shown: str,
    changed: str = "",
    what: str = "it did",
    fix: str = "accept a run anew",
) -> Verdict:
    """Judge ``apart``, the ``tasks.reference.distances`` of the prompts that both hold alike.

    ``what`` is what should have been computed, ``fix`` what helps where prompts are not alike.
    """
    held = len(stored.keys() & now.keys())
    if not now or held < len(now):
        some = f"{shown} holds the fp32 numbers of {held} of {len(now)} prompts: {fix}"
        reason = some if held else f"no stored fp32 numbers in {shown}"
        return _verdict("missing", None, limit, reason)
    other = [name for name in now if stored[name].prompt != now[name].prompt]
    if other:
        reason = (
            f"{len(other)} of {len(now)} prompts have other tokens than those of {shown}, such as "
            f"{other[0]}: the questions, the prompt's text or the tokenizer changed"
        )
        return _verdict("incomparable", None, limit, reason)
    if (beyond := max(stored[name].largest_token for name in now)) >= vocabulary:
        reason = (
            f"{shown} holds log-probabilities of token {beyond}, and the model has {vocabulary} "
            f"tokens: another vocabulary; {fix}"
        )
        return _verdict("incomparable", None, limit, reason)
    if moved := [name for name in now if len(apart.get(name, ())) != len(stored[name].at)]:
        reason = f"{shown} holds other positions of {moved[0]}: {fix}"
        return _verdict("incomparable", None, limit, reason)
    largest = float(np.max([each.max() for each in apart.values()]))
    mean = float(np.concatenate(list(apart.values())).mean())
    context = f"; {changed}" if changed else ""
    of_stored = f" of the {len(stored)} stored ones" if len(stored) > len(apart) else ""
    if largest <= limit:
        reason = (
            f"computes what {what}: KL at most {largest:.1e}, {mean:.1e} in the mean of "
            f"{len(apart)} prompts{of_stored}{context}"
        )
        return _verdict("ok", largest, limit, reason)
    where = [_likeliest(stored, now), _prompts(apart), _growth(apart)]
    where.append(_layer(stored, now, layers_off))
    reason = (
        f"computes something else than {what}: KL {mean:.1e} in the mean of {len(apart)} prompts; "
        f"{'; '.join(filter(None, where))}{context}"
    )
    return _verdict("regressed", largest, limit, reason)


def with_ways(verdict: Verdict, held: Sequence[str], without: Mapping[str, str]) -> Verdict:
    """A verdict on stored numbers, ``regressed`` where a way that was ``held`` gives way now."""
    gone = [f"{name} gives way: {why}" for name, why in without.items() if name in held]
    if not gone or verdict.measured is None:
        return verdict
    reason = f"{'; '.join(gone)} (it ran when the numbers were stored); {verdict.reason}"
    return replace(verdict, word="regressed", reason=reason)


def of_layers(verdict: Verdict, layers: int | None) -> Verdict:
    """Say of a measured verdict that so many of the first layers were run alone; None: all were."""
    if layers is None or verdict.measured is None:
        return verdict
    reason = f"{verdict.reason}; of the first {layers} layers at most (fidelity.layers)"
    return replace(verdict, reason=reason)


def drift(
    metric: str,
    errors: Sequence[float],
    harmless: Sequence[Sequence[float]],
    rounded: Sequence[float],
    floor: str = "what rounding costs",
    names: Sequence[str] = (),
) -> Verdict:
    """Judge an engine's error in the case's own dtype by what rounding to it costs.

    Mean squared errors against the fp32 model, nats^2, by prompt: of the engine, of the eager
    engine and its ``harmless`` variations, and of the ``rounded`` fp32 model. With q = rms(engine)
    / rms(rounded), ``regressed`` iff q is above the limit by more than the interval that a
    jackknife over the prompts gives log q (Efron 1982), ``unsure`` where it is above by less. The
    limit is 1.25, times what the harmless ones differ by (at most 2). ``floor`` is what ``rounded``
    is, in words, ``names`` the questions, to say where the error sits.
    """
    known = sum(rounded) > 0
    if not known or min(map(sum, harmless)) <= 0:
        reason = "rounding to the case's dtype changes no number: its error cannot be told"
        return Verdict(metric, "invalid", "paired", UNIT, reason=reason)
    ratio, low = _ratio(errors, rounded)
    sizes = [math.sqrt(sum(each)) for each in harmless]
    limit = _BEYOND_ROUNDING * min(max(sizes) / min(sizes), _MOST_LOOSENED)
    cost = math.sqrt(sum(rounded) / len(rounded))
    told = f"{ratio:.2f} times {floor}"
    word: Word = "ok"
    reason = f"{told}, {cost:.1e} {UNIT}"
    if low > limit:
        word = "regressed"
        reason = (
            f"{told} ({cost:.1e} {UNIT}), proven above {limit:.2f} times: something is computed in "
            "a shorter dtype than the case's, or a kernel is broken"
        )
        if names:
            beyond = np.maximum(0.0, np.asarray(errors) - limit**2 * np.asarray(rounded))
            reason += f"; {_prompts(dict(zip(names, beyond, strict=True)))}"
    elif ratio > limit:
        word = "unsure"
        reason = (
            f"{told} ({cost:.1e} {UNIT}), and above {limit:.2f} times by chance, perhaps: raise "
            "fidelity.prompts in the case's YAML"
        )
    return Verdict(
        metric=metric,
        word=word,
        gate="paired",
        unit=UNIT,
        baseline=cost,
        measured=ratio * cost,
        limit=f"{limit * cost:.1e} {UNIT}",
        reason=reason,
    )


def _ratio(errors: Sequence[float], rounded: Sequence[float]) -> tuple[float, float]:
    """(rms / rms, its lower bound by a jackknife over prompts); of one prompt the bound is 0."""
    from scipy.special import stdtrit

    n = len(errors)
    ratio = math.sqrt(sum(errors) / sum(rounded))
    over, under = (
        np.array([np.delete(each, i).sum() for i in range(n)]) for each in (errors, rounded)
    )
    if min(*over, *under) <= 0:
        return ratio, 0.0  # all of it in one prompt
    logs = np.log(over / under) / 2
    error = math.sqrt((n - 1) / n * float(((logs - logs.mean()) ** 2).sum()))
    return ratio, ratio * math.exp(-float(stdtrit(n - 1, _DRIFT_CONFIDENCE)) * error)


def _verdict(word: Word, measured: float | None, limit: float, reason: str) -> Verdict:
    known = measured is not None and math.isfinite(measured)
    return Verdict(
        metric=NAME,
        word=word,
        gate="baseline",
        unit=UNIT,
        baseline=0.0 if known else None,  # the same computation is no distance away
        measured=measured if known else None,
        limit=f"{limit:.1e} {UNIT}",
        reason=reason,
    )


def _likeliest(stored: Mapping[str, PromptReference], now: Mapping[str, PromptReference]) -> str:
    """Say at how many positions another token is the likeliest (top-1 agreement), ties apart."""
    positions = others = ties = 0
    for name, prompt in now.items():
        for position, told in prompt.at.items():
            before, after = distribution(stored[name].at[position]), distribution(told)
            was, other = (
                max((token for token in each if token != REST), key=each.__getitem__)
                for each in (before, after)
            )
            positions += 1
            if was != other:
                others += 1
                ahead = before[was] - before.get(other, -math.inf)
                ties += min(ahead, after[other] - after.get(was, -math.inf)) <= _TIE_NATS
    if not others:
        return f"the likeliest token is the same at all {positions} positions"
    of_them = f", {ties} of them ties" if ties else ""
    return f"another token is the likeliest at {others} of {positions} positions{of_them}"


def _prompts(apart: Mapping[str, Floats]) -> str:
    """Say in how many prompts it sits."""
    sums = sorted(((float(each.sum()), name) for name, each in apart.items()), reverse=True)
    few = max(1, len(sums) // 4)
    if sum(kl for kl, _ in sums[:few]) < _FEW * sum(kl for kl, _ in sums) or len(sums) < 4:
        return "in all prompts alike"
    return f"nearly all of it in {few} of {len(sums)} prompts, first {sums[0][1]}"


def _growth(apart: Mapping[str, Floats]) -> str:
    """Say whether the error grows along the prompt."""
    thirds = [np.array_split(each, 3) for each in apart.values() if len(each) >= 3]
    if not thirds:
        return ""
    first, last = (np.array([max(np.mean(each[i]), _NOTHING) for each in thirds]) for i in (0, 2))
    if np.median(last / first) > _GROWS:  # not the means: a single position can decide those
        return "it grows with the position (look at rotary embedding, mask and cache)"
    return "it does not grow with the position"


def _layer(
    stored: Mapping[str, PromptReference],
    now: Mapping[str, PromptReference],
    layers_off: Sequence[float],
) -> str:
    """Say which layer's hidden states part first."""
    pairs = [
        (numbers(stored[name].layers), numbers(each.layers))
        for name, each in now.items()
        if each.layers and stored[name].layers
    ]
    if not pairs or not layers_off:
        return ""
    if len({len(layers_off), *(len(each) for pair in pairs for each in pair)}) > 1:
        return "the model has another number of layers"
    for layer, off in enumerate(layers_off):
        largest = max(abs(before[layer]) for before, _ in pairs)
        floor = _BEYOND_LAYER * max(off, float(np.spacing(np.float32(largest))))
        if any(abs(after[layer] - before[layer]) > floor for before, after in pairs):
            return f"hidden states part first in layer {layer} of 0 to {len(layers_off) - 1}"
    return "hidden states of all layers are the same: look at the last norm and the head"
