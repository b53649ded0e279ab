"""How good were the answers of an accuracy pass, and what did they cost?"""

from __future__ import annotations

from perfline.cases.case import Case, Scoring
from perfline.engines.engine import EngineName
from perfline.measure.accuracy import AccuracyPass
from perfline.measure.throughput import PREFIX
from perfline.metrics import Metric
from perfline.tasks.answers import accuracy


def accuracy_metrics(
    case: Case, name: EngineName, done: AccuracyPass, peak: float | None
) -> list[Metric]:
    """Micro accuracy (correct / asked) as the case scores it and by both scorings, and its cost.

    The cost is of the forwards of this session: served tokens are the prompts', computed ones those
    really run; with shared prefixes the published MFU formula would read above 100 %, so only the
    FLOPs really executed are set against the peak.
    """
    answers = done.answers
    if answers.labels is None:
        return []
    prefix = f"acc_{PREFIX[name]}"
    scorings: tuple[Scoring, ...] = ("full-vocab", "letters")
    by_scoring = {
        scoring: correct / asked
        for scoring in scorings
        for correct, asked in [accuracy(answers, scoring)]
    }
    return [
        Metric(prefix, by_scoring[case.mmlu.scoring], "fraction", "higher"),
        Metric(f"{prefix}_full_vocab", by_scoring["full-vocab"], "fraction", "info"),
        Metric(f"{prefix}_letters", by_scoring["letters"], "fraction", "info"),
        Metric(f"{prefix}_questions", len(answers.ids), "questions", "info"),
        *_cost(prefix, done, peak),
    ]


def _cost(prefix: str, done: AccuracyPass, peak: float | None) -> list[Metric]:
    asked = len(done.answers.ids) - done.resumed
    if not (done.computed_tokens and done.core_s and done.whole_s):
        return []
    found = [
        Metric(f"{prefix}_served_tokens", done.served_tokens, "tok", "info"),
        Metric(f"{prefix}_computed_tokens", done.computed_tokens, "tok", "info"),
        Metric(f"{prefix}_padded_tokens", done.padded_tokens, "tok", "info"),
        Metric(f"{prefix}_reuse_factor", done.served_tokens / done.computed_tokens, "x", "info"),
        Metric(f"{prefix}_warmup_time", done.warmup_s, "s", "info"),
        Metric(f"{prefix}_time", done.whole_s, "s", "info"),
        Metric(f"{prefix}_questions_per_s", asked / done.whole_s, "questions/s", "info"),
        Metric(f"{prefix}_core", done.core_s / done.replicas / done.whole_s, "fraction", "info"),
    ]
    if peak is not None and done.flops:
        utilisation = done.flops / done.core_s / peak
        found.append(Metric(f"{prefix}_mfu_computed", utilisation, "fraction", "info"))
    return found
