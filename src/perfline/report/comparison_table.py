"""Which numbers of A and B stand side by side, as text and as Markdown?

Changes in per cent are B against A. Seconds a token are the judged ones; tokens a second, energy
and what a launch cost are shown beside them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from tabulate import tabulate

from perfline.compare.gates import highest, middle
from perfline.compare.model import SIDES
from perfline.compare.record import CaseComparison, PairRecord, Seconds
from perfline.compare.sequential import hodges_lehmann
from perfline.gates.verdict import Verdict, signed
from perfline.report.markdown import quoted
from perfline.report.text import number

_HEADERS = ["metric", "unit", "A", "B", "change", "limit", "verdict"]


def table(found: CaseComparison, tablefmt: str = "plain") -> str:
    """One row a number: A's, B's, and where it is judged the limit and the word."""
    rows = [_verdict_row(verdict) for verdict in found.verdicts if verdict.measured is not None]
    if found.counted:
        rows[1:1] = _speed_rows(found)
        judged = {verdict.metric for verdict in found.verdicts}
        rows += [row for row in _launch_rows(found) if row[0] not in judged]
    if tablefmt == "github":
        rows = [[quoted(cell) for cell in row] for row in rows]
    return tabulate(rows, _HEADERS, tablefmt, disable_numparse=True)


def percent(log_ratio: float) -> str:
    """A log ratio as people read it: ``+1.3 %``."""
    return signed(100 * math.expm1(log_ratio), "%")


def _digits(value: float | None) -> str:
    """Four significant digits, without an exponent where it can be."""
    if value is None:
        return ""
    if not value:
        return "0"
    if value < 1e-4:
        return f"{value:.2g}"
    return f"{value:.{max(0, 3 - math.floor(math.log10(value)))}f}"


def _verdict_row(verdict: Verdict) -> list[str]:
    values = (verdict.baseline, verdict.measured)
    if verdict.unit in ("us/tok", "logits"):
        shown = [_digits(value) for value in values]
    else:
        shown = [number(value, verdict.unit) for value in values]
    unit = "%" if verdict.unit == "fraction" else verdict.unit
    return [verdict.metric, unit, *shown, verdict.change, verdict.limit, verdict.word]


def _speed_rows(found: CaseComparison) -> list[list[str]]:
    """What is shown beside the judged seconds: whole rounds, tokens a second, energy."""
    rows: list[list[str]] = []
    prefix = "p_val" if found.engine == "eager" else "p_infer"
    kinds: tuple[tuple[str, Seconds], ...] = (("core", "core_s"), ("whole", "whole_s"))
    for kind, seconds in kinds:
        change = hodges_lehmann(found.log_ratios(seconds))
        values = [middle(found, side, seconds) for side in SIDES]
        if kind == "whole":
            whole = [_digits(1e6 * value) for value in values]
            rows.insert(0, ["whole_time", "us/tok", *whole, percent(change), "", ""])
        speeds = [_digits(1 / value) for value in values]
        rows.append([f"{prefix}_{kind}", "tok/s", *speeds, percent(-change), "", ""])
    joules = [_joules_per_token(found.counted, column) for column in (0, 1)]
    if joules[0] and joules[1]:
        change = math.log(joules[1] / joules[0])
        shown = [_digits(1e3 * value) for value in joules if value is not None]
        rows.append(["energy", "mJ/tok", *shown, percent(change), "", ""])
    return rows


def _joules_per_token(pairs: Sequence[PairRecord], column: int) -> float | None:
    """Of all kept rounds together; None unless every one of them was metered."""
    rounds = [both[column] for pair in pairs for both in pair.kept]
    joules = [r.joules for r in rounds if r.joules is not None]
    return sum(joules) / sum(r.tokens for r in rounds) if len(joules) == len(rounds) else None


def _launch_rows(found: CaseComparison) -> list[list[str]]:
    """What a launch cost, and compile counts that are not judged."""
    rows = []
    times = [("load_time", "load_s")]
    times += [("compile_time", "compile_s")] if found.engine == "inductor" else []
    for name, field in times:
        seconds = [
            statistics.median(getattr(pair.launch(side), field) for pair in found.counted)
            for side in SIDES
        ]
        rows.append([name, "s", *(f"{value:.1f}" for value in seconds), "", "", ""])
    if found.engine == "inductor":
        for name in ("graphs", "graph_breaks", "recompiles"):
            rows.append([name, "count", *map(str, highest(found, name)), "", "", ""])
    return rows
