"""What stands on the page about one comparison of A and B?"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from perfline.compare import sequential
from perfline.compare.model import SIDES
from perfline.compare.record import (
    AnswersRecord,
    CaseComparison,
    Comparison,
    LaunchRecord,
    PairRecord,
)
from perfline.report.charts import Bar, Estimate, Figure, bars, converging
from perfline.report.comparison_text import (
    counted_pairs,
    explained_lines,
    explained_rows,
    headline,
    notice_lines,
)
from perfline.report.page_case import Difference, FlipList, flip_lists
from perfline.report.page_inputs import CompareInputs
from perfline.report.table import Finding, findings

_BARS, _NAME = 12, 28  # operators in the picture, characters of the name of one


@dataclass(frozen=True)
class PairRow:
    """One launch pair, for the table of all of them."""

    number: int
    first: str
    slowdown: str
    rounds: int
    remark: str


@dataclass(frozen=True)
class ComparisonView:
    """All that the page shows of one compared case."""

    case: CaseComparison
    whole: Comparison
    path: Path
    headline: str
    story: str
    ended: bool
    findings: tuple[Finding, ...]
    differences: tuple[Difference, ...]
    figures: tuple[Figure, ...]
    pairs: tuple[PairRow, ...]
    causes: tuple[list[str], ...]
    explained: tuple[str, ...]
    answers: tuple[str, ...]
    flips: tuple[FlipList, ...]
    notes: tuple[str, ...]
    absent: tuple[str, ...]


def comparison_views(inputs: CompareInputs, most_flips: int) -> list[ComparisonView]:
    """One view a compared case."""
    whole = inputs.comparison
    return [_view(inputs, whole, case, most_flips) for case in whole.cases.values()]


def _view(
    inputs: CompareInputs, whole: Comparison, case: CaseComparison, most_flips: int
) -> ComparisonView:
    told = case.explanation
    return ComparisonView(
        case=case,
        whole=whole,
        path=inputs.path,
        headline=headline(case),
        story=_story(case),
        ended=case.ended and not whole.partial,
        findings=tuple(findings(case.verdicts)),
        differences=tuple(_differences(case)),
        figures=tuple(_figures(case)),
        pairs=tuple(_pair_row(i, pair) for i, pair in enumerate(case.pairs, 1)),
        causes=tuple(explained_rows(told) if told is not None else ()),
        explained=tuple(explained_lines(told) if told is not None else ()),
        answers=tuple(_answers(case)),
        flips=tuple(
            flip_lists(
                case.verdicts,
                {},
                inputs.questions.get(case.case, {}),
                most_flips,
                None,
                "the baseline's answers (A) → the candidate's (B)",
            )
        ),
        notes=(*case.notes, *notice_lines(case)),
        absent=inputs.absent.get(case.case, ()),
    )


def _story(case: CaseComparison) -> str:
    """The estimate in a sentence."""
    values = case.log_ratios()
    if not values:
        return "No launch pair counts yet: nothing is known."
    now = _decided(case, values)
    assert now.estimate is not None
    side = "slower" if now.estimate > 0 else "faster"
    pairs = counted_pairs(now.pairs)
    story = f"The candidate is {abs(_per_cent(now.estimate)):.2f} % {side} after {pairs}"
    if now.low is not None and now.high is not None:
        story += (
            f" ({100 * now.confidence:.0f} % interval of the slowdown: "
            f"{_per_cent(now.low):+.2f} to {_per_cent(now.high):+.2f} %)"
        )
    story += f"; the margin is {100 * case.margin_fraction:.1f} %."
    if case.decision is not None and case.decision.to_settle is not None:
        story += f" {case.decision.to_settle} pairs in all are expected to settle it."
    return story


def _decided(case: CaseComparison, values: list[float]) -> sequential.Decision:
    margin = math.log1p(case.margin_fraction)
    return sequential.decide(values, margin, case.looks, case.alpha_each)


def _per_cent(log_ratio: float) -> float:
    return 100 * math.expm1(min(log_ratio, 50.0))


def _differences(case: CaseComparison) -> list[Difference]:
    """What differs between the sides: what was asked of them and what they told."""
    told = [
        {
            "python": side.python,
            "git revision": side.ref or "the working tree",
            **{f"${name}": value for name, value in side.env.items()},
            **side.settings,
            **({"imports": ", ".join(side.imports)} if side.imports else {}),
            **({"installed": " ".join(side.install)} if side.install else {}),
            **side.packages,
            **side.context,
            **side.facts,
        }
        for side in (case.sides[name] for name in SIDES)
    ]
    before, after = told
    return [
        Difference(key, before.get(key, "absent"), after.get(key, "absent"))
        for key in dict.fromkeys((*before, *after))
        if before.get(key) != after.get(key)
    ]


def _figures(case: CaseComparison) -> list[Figure]:
    values = case.log_ratios()
    found = []
    if values:
        steps = []
        for count in range(1, len(values) + 1):
            so_far = _decided(case, values[:count])
            assert so_far.estimate is not None
            steps.append(
                Estimate(
                    pairs=count,
                    pair=_per_cent(values[count - 1]),
                    estimate=_per_cent(so_far.estimate),
                    low=None if so_far.low is None else _per_cent(so_far.low),
                    high=None if so_far.high is None else _per_cent(so_far.high),
                    look=count in case.looks,
                )
            )
        looks = ", ".join(map(str, case.looks))
        found.append(
            Figure(
                "The estimate, pair by pair",
                converging(steps, 100 * case.margin_fraction),
                f"Above 0 the candidate is slower. It is decided at {looks} pairs only; very wide "
                "early intervals are cut.",
                (
                    ("line a", "estimate (Hodges-Lehmann)"),
                    ("whisker", "its interval"),
                    ("point b", "single pairs"),
                    ("limit", "margin"),
                ),
            )
        )
    return found + _shares(case) + _costs(case)


def _shares(case: CaseComparison) -> list[Figure]:
    """What each operator that is certain makes of the change."""
    told = case.explanation
    if told is None or not told.causes:
        return []
    rows = [
        Bar(
            f"{cause.operator} {cause.module.removeprefix('layers.')}"[:_NAME],
            100 * cause.change_s / told.baseline_s,
        )
        for cause in told.causes[:_BARS]
    ]
    chart = bars("change by operator", "change, of all of A's time", "%", rows)
    return [Figure("Which operator, which layer", chart, f"{told.rounds} profiled rounds a side.")]


def _costs(case: CaseComparison) -> list[Figure]:
    if not case.counted:
        return []
    sides = {name: [pair.launch(name) for pair in case.counted] for name in SIDES}
    phases = [
        Bar(f"{title}, {name}", statistics.median(getattr(launch, key) for launch in launches))
        for key, title in (("load_s", "load"), ("compile_s", "compile"), ("warmup_s", "warm-up"))
        for name, launches in sides.items()
    ]
    found = [
        Figure(
            "Time by phase",
            bars("time by phase", "time", "s", phases),
            "Medians over the launches.",
        )
    ]
    memory = [
        Bar(name, peak) for name, launches in sides.items() if (peak := _peak(launches)) is not None
    ]
    if memory:
        chart = bars("peak memory", "peak memory", "GiB", memory)
        found.append(Figure("Peak memory", chart, "The largest of the launches."))
    return found


def _peak(launches: list[LaunchRecord]) -> float | None:
    known = [each.peak_memory_gib for each in launches if each.peak_memory_gib is not None]
    return max(known, default=None)


def _pair_row(number: int, pair: PairRecord) -> PairRow:
    ratio = pair.log_ratio()
    remarks = [f"void: {pair.void}"] if pair.void else []
    remarks += [] if pair.interleaved else ["one launch after the other"]
    remarks += pair.faults
    return PairRow(
        number=number,
        first=pair.first,
        slowdown="" if ratio is None else f"{_per_cent(ratio):+.2f}",
        rounds=len(pair.kept),
        remark="; ".join(remarks),
    )


def _answers(case: CaseComparison) -> list[str]:
    """A line a task, with its name where there are several."""
    if case.answers is None:
        return []
    first, more = _line(case.answers), case.more_answers
    several = [f"{task}: {_line(told)}" for task, told in more.items()]
    return [f"first task: {first}", *several] if several else [first]


def _line(found: AnswersRecord) -> str:
    line = f"{found.questions} questions were answered by both sides"
    if found.baseline_correct is not None and found.candidate_correct is not None:
        line += f": {found.baseline_correct} right before, {found.candidate_correct} after"
    return (
        f"{line}; letter logits differ by {found.largest_difference:.2g} at most, "
        f"{found.share:.1g} of the largest (rounding allows {found.tolerance:g})."
    )
