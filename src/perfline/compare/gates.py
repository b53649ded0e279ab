"""May A and B be compared, and is B slower, bigger, compiled worse, or wrong against A?

Time is judged by ``sequential`` over launch pairs, memory and compilation by ``gates``, answers by
``gates.accuracy``, task by task, what is computed in fp32 by ``gates.fidelity``; here stands which
numbers go there, and how far letters' log-probabilities may differ where there is no fp32. What
differs between A and B on purpose is no reason to refuse: only what makes the work another one is.

Compile health of two inductor sides: more ``graph_breaks`` or ``recompiles`` on B are always
``regressed``. The number of ``graphs`` is judged where torch and the ``engine`` settings are the
same; elsewhere it is how the compiler cuts the same work, and only shown.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from perfline.cases.case import Case, EngineName, GatesSpec, Precision, Scoring, engine_name
from perfline.compare.model import (
    BESIDE,
    SIDES,
    FidelityNumbers,
    GeneratedTokens,
    Ready,
    SideName,
    Timed,
)
from perfline.compare.record import AnswersRecord, CaseComparison, per_token
from perfline.compare.sequential import hodges_lehmann
from perfline.gates import accuracy as accuracy_gates
from perfline.gates import fidelity, performance
from perfline.gates.accuracy import ROUNDING_FRACTION, OtherToken
from perfline.gates.statistics import zero_flip_bound
from perfline.gates.verdict import Flip, Verdict, Word, signed
from perfline.metrics import Metric, answered, pass_name, suffix
from perfline.tasks.answers import Answers, Scored, accuracy
from perfline.tasks.reference import log_softmax
from perfline.tasks.task import scoring

TIME = "core_time"
DECODE, FIRST = "decode_time", "ttft"
TIMES = (TIME, DECODE, FIRST)  # the names of judged seconds
LETTERS = "letter_logprobs"
FIDELITY, DRIFT = fidelity.NAME, "drift"
_BOUND = 0.975
_NONE = -1e9  # the logit of a choice that a question does not have


def other_work(a: Case, b: Case) -> str:
    """Which setting makes the sides do different work; empty where none does."""
    same_on_both = {
        "tasks": (", ".join(a.tasks), ", ".join(b.tasks)),
        "mmlu.mmlu_dir": (a.mmlu.mmlu_dir, b.mmlu.mmlu_dir),
        "mmlu.few_shots": (a.mmlu.few_shots, b.mmlu.few_shots),
        "mmlu.max_prompt_tokens": (a.mmlu.max_prompt_tokens, b.mmlu.max_prompt_tokens),
        "mmlu.scoring": (a.mmlu.scoring, b.mmlu.scoring),
        "model.bos": (a.model.bos, b.model.bos),
        "decode.tokens": (a.decode.tokens, b.decode.tokens),
        "fidelity.prompts": (a.fidelity.prompts, b.fidelity.prompts),
        "fidelity.layers": (a.fidelity.layers, b.fidelity.layers),
        "throughput.sample": (a.throughput.sample, b.throughput.sample),
        "throughput.head": (a.throughput.head, b.throughput.head),
        "throughput.min_round_s": (a.throughput.min_round_s, b.throughput.min_round_s),
    }
    for key, (old, new) in same_on_both.items():
        if old != new:
            return f"'{key}' is {old} on A and {new} on B: set it on both sides, or on neither"
    return ""


def mismatch(ready: Mapping[SideName, Ready]) -> str:
    """Why two launches cannot be compared; empty where they can."""
    a, b = ready["baseline"], ready["candidate"]
    if a.machine != b.machine:
        return f"A ran on {a.machine}, B on {b.machine}: give both sides the same device"
    for name in dict.fromkeys((*a.facts, *b.facts)):
        old, new = a.facts.get(name, "unknown"), b.facts.get(name, "unknown")
        if old != new:
            return f"the {name} differ: A has {old}, B has {new}"
    if (a.prompts_digest, a.tokens) != (b.prompts_digest, b.tokens):
        return (
            f"the timed prompts differ: A has {a.prompts_digest} of {a.tokens} tokens, "
            f"B {b.prompts_digest} of {b.tokens} (does one side's tokenizer add a BOS?)"
        )
    return ""


def judge(
    found: CaseComparison, limits: GatesSpec, answered: tuple[Verdict, ...], stopped: Word | None
) -> tuple[Verdict, ...]:
    """All verdicts on what is measured so far; the first is that on time.

    ``answered`` is what :func:`answers` said; ``stopped`` is the word for a comparison that could
    not be carried through, for the reason in ``found.problem``.
    """
    if not found.counted:
        return (on_time(found, stopped), *answered)
    times = [on_time(found, stopped)]
    times += [on_time(found, stopped, seconds) for seconds in BESIDE[found.workload]]
    return (*times, *_memory(found, limits), *_health(found), *answered)


def middle(found: CaseComparison, side: SideName, seconds: Timed = "core_s") -> float:
    """Seconds a token of one side, in the middle of all counted launch pairs.

    A's is the median over its launches, B's is A's times the estimated ratio: on a machine whose
    speed wanders, the medians of both by themselves would not show what the pairs do.
    """
    middle_a = statistics.median(
        statistics.median(per_token(a, seconds) for a, _ in pair.kept) for pair in found.counted
    )
    if side == "baseline":
        return middle_a
    return middle_a * math.exp(hodges_lehmann(found.log_ratios(seconds)))


def answers(
    case: Case,
    engine: str,
    a: Answers,
    b: Answers,
    dtypes: tuple[str, str],
    known: bool = False,
) -> tuple[AnswersRecord, tuple[Verdict, ...]]:
    """Compare both sides' answers to the first task: accuracy where there are labels, and logits.

    Letters' log-probabilities that differ by more than the dtype's rounding are no proof of harm,
    but B does not compute what A does: ``unsure``, unless the questions are so many that the case's
    own accuracy margins judge it. Where ``known`` says that :func:`numbers` judges what is
    computed, they are looked at only in place of an accuracy.
    """
    task, logits = case.task_names[0], a.has_logits and b.has_logits
    record = _in_short(case, task, a, b, dtypes)
    word: Word = "missing"
    if a.ids != b.ids:
        word, reason = "incomparable", _other_questions(a, b)
    elif not a.ids:
        reason = "the answers were not compared; ask with --questions 200"
    elif record.baseline_correct is not None:
        judged = _accuracy(case, engine, task, a, b)  # with all flips
        alone = known or not logits
        return record, (judged,) if alone else (judged, _letters(case, record, a, b))
    elif logits:
        flips = accuracy_gates.same_answers(a, b, _coarser(case, dtypes)).flips
        return record, (_letters(case, record, a, b, flips),)
    else:
        reason = "the engine tells no letter logits, and dummy weights have no accuracy"
    return record, (Verdict(LETTERS, word, "paired", fidelity.UNIT, reason=reason),)


def more_answers(
    case: Case,
    engine: str,
    task: str,
    a: Answers | None,
    b: Answers | None,
    dtypes: tuple[str, str],
) -> tuple[AnswersRecord | None, Verdict]:
    """Compare both sides' answers to another task than the case's first: the accuracy alone.

    None of a side whose perfline answers the first task's questions only; then there is no record.
    """
    word: Word = "missing"
    record: AnswersRecord | None = None
    if a is None or b is None:
        side = "A" if a is None else "B"
        reason = f"the perfline of {side} is too old to answer any task but the case's first"
    else:
        record = _in_short(case, task, a, b, dtypes)
        if record.baseline_correct is not None:
            return record, _accuracy(case, engine, task, a, b)
        reason = (
            "no question with a known answer was answered; `perfline doctor` says whether the "
            f"questions of {task} are there"
        )
        if a.ids != b.ids:
            word, reason = "incomparable", _other_questions(a, b)
    return record, Verdict(accuracy_name(engine, task), word, "paired", "fraction", reason=reason)


def accuracy_name(engine: str, task: str) -> str:
    """What the accuracy of an engine's answers to a task is called, as in the suite."""
    return f"acc_{pass_name(answered(engine_name(engine), task))}"


def generated(
    case: Case,
    engine: str,
    a: Sequence[GeneratedTokens] | None,
    b: Sequence[GeneratedTokens] | None,
    dtypes: tuple[str, str],
) -> Verdict:
    """Hold B's tokens to A's, each prompt's up to its first other token.

    A token of B's is a tie where A's eager forward puts it beside the likeliest, within rounding.
    One that A does not tell of lies as far behind as the last that it does, or further.
    """
    name = f"decode_flips{suffix(engine_name(engine))}"
    if a is None or b is None:
        side = "A" if a is None else "B"
        reason = f"the perfline of {side} is too old to tell which tokens it generated"
        return Verdict(name, "missing", "paired", "count", reason=reason)
    lengths = [[len(each.tokens) for each in side] for side in (a, b)]
    if lengths[0] != lengths[1]:
        reason = f"A generated {sum(lengths[0])} tokens, B {sum(lengths[1])}"
        return Verdict(name, "incomparable", "paired", "count", reason=reason)
    others, compared = [], 0
    for number, (own, other) in enumerate(zip(a, b, strict=True)):
        pairs = enumerate(zip(own.tokens, other.tokens, strict=True))
        at = next((place for place, (before, after) in pairs if before != after), None)
        compared += len(own.tokens) if at is None else at + 1
        if at is not None:
            logits = own.logits[at]
            known = dict(zip(own.likeliest[at], logits, strict=True))
            gap = logits[0] - known.get(other.tokens[at], logits[-1])
            where = f"single/{number} token {at}"
            tokens = own.tokens[at], other.tokens[at]
            others.append(OtherToken(where, *tokens, gap, own.largest[at]))
    precision = _coarser(case, dtypes)
    return accuracy_gates.same_tokens(engine_name(engine), others, compared, precision, "A's")


def numbers(
    case: Case,
    engine: str,
    a: FidelityNumbers | None,
    b: FidelityNumbers | None,
    dtypes: tuple[str, str],
) -> tuple[Verdict, ...]:
    """Hold what B's engine computes to what A's does: in fp32, and in the case's own dtype.

    By the gates on stored numbers, with A's in their place. What re-ordered arithmetic does, and
    what the dtype costs, is what A measured. Where B is in another dtype on purpose its weights are
    rounded otherwise, in fp32 too: then its drift alone is judged, by what B measured that costs.
    """
    found = _numbers(case, engine_name(engine), a, b, dtypes)
    return tuple(fidelity.of_layers(verdict, case.fidelity.layers) for verdict in found)


def _numbers(
    case: Case,
    name: EngineName,
    a: FidelityNumbers | None,
    b: FidelityNumbers | None,
    dtypes: tuple[str, str],
) -> tuple[Verdict, ...]:
    metric = f"{FIDELITY}_{pass_name(name)}"
    for side, told in (("A", a), ("B", b)):
        if told is None or told.problem:
            why = "" if told is None else f"{side}: {told.problem}"
            why = why or f"the perfline of {side} is too old to tell"
            reason = f"{why}; `fidelity: {{prompts: 0}}` in {case.source} leaves it out"
            return (Verdict(metric, "missing", "paired", fidelity.UNIT, reason=reason),)
    assert a is not None
    assert b is not None
    if dtypes[0] != dtypes[1]:
        return _drift(name, b, b)
    verdict = _against_a(name, a, b)
    if verdict.word == "regressed" and name != "eager":  # where it begins is known of that alone
        eager = _against_a("eager", a, b)
        verdict = replace(verdict, reason=f"{verdict.reason}; the eager model {eager.reason}")
    verdict = replace(verdict, metric=metric, gate="paired")
    if verdict.word in ("missing", "incomparable"):
        return (verdict,)
    return (verdict, *_drift(name, a, b))


def _against_a(name: str, a: FidelityNumbers, b: FidelityNumbers) -> Verdict:
    return fidelity.by_distances(
        stored=a.references.get(name, {}),
        now=b.references.get(name, {}),
        apart={question: np.array(row) for question, row in b.apart.get(name, {}).items()},
        vocabulary=b.vocabulary,
        limit=fidelity.allowed(a.variations, a.most),
        layers_off=a.layers_off,
        shown="A",
        what="A does",
        fix="give both sides the same perfline",
    )


def _drift(name: str, a: FidelityNumbers, b: FidelityNumbers) -> tuple[Verdict, ...]:
    """What B's dtype costs; nothing where that is fp32. A fault that A has is none of B's."""
    if b.drift is None:
        return ()
    metric, own = f"{DRIFT}_{pass_name(name)}", a.drift
    errors = b.drift.engines.get(name, ())
    told = () if own is None else (own.engines.get(name, ()), own.rounded)
    if own is None or not errors or any(len(each) != len(errors) for each in told):
        reason = "A and B do not tell the drift of the same prompts: give both the same perfline"
        return (Verdict(metric, "incomparable", "paired", fidelity.UNIT, reason=reason),)
    floor, words = own.rounded, "what rounding costs"
    if own is not b.drift and sum(own.engines[name]) > sum(floor):
        floor, words = own.engines[name], "A's own error"
    harmless = (own.engines["eager"], *own.variations.values())
    names = tuple(b.references["eager"])
    known = names if len(names) == len(errors) else ()
    return (fidelity.drift(metric, errors, harmless, floor, words, known),)


def _accuracy(case: Case, engine: str, task: str, a: Answers, b: Answers) -> Verdict:
    before, after = (_scored(_scoring(case, task), side) for side in (a, b))
    return accuracy_gates.accuracy_baseline(accuracy_name(engine, task), before, after, case.gates)


def _in_short(
    case: Case, task: str, a: Answers, b: Answers, dtypes: tuple[str, str]
) -> AnswersRecord:
    """Both sides' answers to a task; of no question where they are not to the same ones."""
    tolerance = ROUNDING_FRACTION[_coarser(case, dtypes)]
    found = AnswersRecord(0, None, None, 0.0, 0.0, tolerance)
    if a.ids != b.ids or not a.ids:
        return found
    found = replace(found, questions=len(a.ids))
    if a.labels is not None and b.labels is not None:
        right = [accuracy(side, _scoring(case, task))[0] for side in (a, b)]
        found = replace(found, baseline_correct=right[0], candidate_correct=right[1])
    if not (a.has_logits and b.has_logits):
        return found
    differences = np.nanmax(np.abs(a.letter_logits - b.letter_logits), axis=1)
    largest = np.maximum(a.rounding_scales, b.rounding_scales)
    return replace(
        found,
        largest_difference=float(differences.max()),
        share=float((differences / np.maximum(largest, 1e-6)).max()),
    )


def _other_questions(a: Answers, b: Answers) -> str:
    return f"A answered {len(a.ids)} questions, B {len(b.ids)}, and not the same ones"


def on_time(
    found: CaseComparison, stopped: Word | None = None, seconds: Timed = "core_s"
) -> Verdict:
    """What the launch pairs say of B's time: in forwards, or of those beside them."""
    decision, margin = found.decision, found.margin_fraction
    name, unit, scale = (DECODE if found.workload == "decode" else TIME), "us/tok", 1e6
    if seconds != "core_s":
        decision = found.beside.get(seconds)
        name = DECODE
    if seconds == "first_s":
        name, unit, scale = FIRST, "s", 1.0
    word: Word = "unsure" if decision is None or decision.word is None else decision.word
    limit = signed(100 * bound(word, margin), "%")
    verdict = Verdict(name, word, "paired", unit, limit=limit)
    if decision is not None and decision.estimate is not None:
        verdict = replace(
            verdict,
            baseline=scale * middle(found, "baseline", seconds),
            measured=scale * middle(found, "candidate", seconds),
            change_fraction=math.expm1(decision.estimate),
        )
    if stopped is not None:
        return replace(verdict, word=stopped, reason=" ".join(found.problem.split())[:400])
    if decision is None or decision.word is None:
        reason = f"not decided yet; launch pairs that count: {len(found.counted)}"
        return replace(verdict, reason=reason)
    reasons = {
        "regressed": f"slower than chance allows (p = {decision.p_slower:.2g}), by more than half "
        f"the margin of {100 * margin:g} %",
        "improved": f"faster than chance allows (p = {decision.p_faster:.2g})",
        "ok": f"a slowdown of {100 * margin:g} % is ruled out (p = {decision.p_margin:.2g})",
        "unsure": f"a slowdown of {100 * margin:g} % is neither shown nor ruled out"
        + (f"; about {decision.to_settle} launch pairs would tell" if decision.to_settle else ""),
    }
    return replace(verdict, reason=reasons[decision.word])


def bound(word: Word, margin_fraction: float) -> float:
    """The slowdown that a word on time stands on: half the margin, or for ``ok`` all of it."""
    half = math.log1p(margin_fraction) / 2
    bounds = {"regressed": math.expm1(half), "improved": math.expm1(-half)}
    return bounds.get(word, margin_fraction)


def _memory(found: CaseComparison, limits: GatesSpec) -> list[Verdict]:
    """Peak device memory: the median over launches of each side."""
    peaks = {
        side: [
            peak
            for pair in found.counted
            if (peak := pair.launch(side).peak_memory_gib) is not None
        ]
        for side in SIDES
    }
    if not all(peaks.values()):
        return []
    before, after = (statistics.median(peaks[side]) for side in SIDES)
    if before <= 0:
        return []
    name = f"mem{suffix(engine_name(found.engine))}"
    return [performance.memory_baseline(Metric(name, after, "GiB", "lower"), before, limits)]


def _health(found: CaseComparison) -> list[Verdict]:
    """Compile counts: the highest of any counted launch of each side."""
    if found.engine != "inductor":
        return []
    names = ["graph_breaks", "recompiles"]
    if _compiled_alike(found):
        names.insert(0, "graphs")
    return [
        performance.compile_health(Metric(name, float(after), "count", "lower"), float(before))
        for name in names
        for before, after in [highest(found, name)]
    ]


def highest(found: CaseComparison, count: str) -> tuple[int, int]:
    """The highest of a compile count over the counted launches: A's, B's."""
    a, b = (max(getattr(p.launch(side), count) for p in found.counted) for side in SIDES)
    return a, b


def _compiled_alike(found: CaseComparison) -> bool:
    a, b = found.sides["baseline"], found.sides["candidate"]
    engine = [
        {key: text for key, text in side.settings.items() if key.startswith("engine.")}
        for side in (a, b)
    ]
    return engine[0] == engine[1] and a.context.get("torch") == b.context.get("torch")


def _letters(
    case: Case, record: AnswersRecord, a: Answers, b: Answers, flips: tuple[Flip, ...] = ()
) -> Verdict:
    """The root mean square of what letters' log-probabilities differ by, over all questions.

    ``flips``: of answers without labels. The limit is the dtype's share of a question's largest
    logit (``Answers.rounding_scales``), root mean square, too: an error of that size in each
    of two logits.
    """
    known = ~np.isnan(a.letter_logits)  # B's, too: to the same questions
    told = [log_softmax(np.where(known, side.letter_logits, _NONE)) for side in (a, b)]
    measured = math.sqrt(float(np.mean((told[1] - told[0])[known] ** 2)))
    largest = np.maximum(a.rounding_scales, b.rounding_scales)
    limit = record.tolerance * math.sqrt(float(np.mean(largest**2)))
    beyond = not measured <= limit  # what is no number, too
    word: Word = "ok"
    reason = (
        f"letters' log-probabilities differ by {measured:.1e} {fidelity.UNIT} (rms; rounding "
        f"explains {limit:.1e})"
    )
    if record.baseline_correct is None:
        reason += f"; {len(flips)} of {record.questions} answers differ and are no ties"
    if beyond and record.baseline_correct is not None and _resolved(record.questions, case.gates):
        reason += ": more than rounding, so the accuracy decides"
    elif beyond:
        word = "unsure"
        reason += ": more than rounding, B computes something else"
        if record.baseline_correct is not None:
            reason += f"; --questions {_resolving(case.gates)} lets the accuracy decide"
    return Verdict(
        metric=LETTERS,
        word=word,
        gate="paired",
        unit=fidelity.UNIT,
        measured=measured,
        limit=f"{limit:.1e} {fidelity.UNIT}",
        reason=reason,
        flips=flips,
    )


def _coarser(case: Case, dtypes: tuple[str, str]) -> Precision:
    """The dtype that rounds more."""
    known = [name for name in ROUNDING_FRACTION if name in dtypes] or [case.model.precision]
    return max(known, key=ROUNDING_FRACTION.__getitem__)


def _resolved(questions: int, limits: GatesSpec) -> bool:
    """Whether so many questions are judged by the case's own margins, not by wider ones."""
    return 200 * zero_flip_bound(questions, _BOUND) <= limits.accuracy_drop_ok_pp


def _resolving(limits: GatesSpec) -> int:
    """How many questions it takes for that: the inverse of ``zero_flip_bound``."""
    per_cent = limits.accuracy_drop_ok_pp / 200
    return math.ceil(math.log(1 - _BOUND) / math.log1p(-per_cent))


def _scoring(case: Case, task: str) -> Scoring:
    return scoring(case, answered("eager", task))


def _scored(by: Scoring, given: Answers) -> Scored:
    letters = given.letters() if by == "letters" else given.argmax_letter
    return Scored(given.ids, letters, given.labels or "", given.margins())
