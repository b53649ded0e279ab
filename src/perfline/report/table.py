"""What stands in the tables of verdicts and metrics, and in the sentences below them?

One model for all that people read: terminal, Markdown and page only lay out these rows, findings
and flips. Nothing is compared here: words come from the verdicts, numbers from the record.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from perfline.baselines.baseline import Published
from perfline.errors import printable
from perfline.gates.verdict import WORST_FIRST, Flip, Verdict, Word, signed, worst
from perfline.measure.record import CaseRecord
from perfline.metrics import summary

# The published table in its order: name, what it is called.
PUBLISHED_TABLE = {
    "e2e_time": "e2e_time",
    "p_val_whole": "p_val_whole",
    "p_val_core": "p_val_core",
    "p_infer_whole": "p_infer_whole",
    "p_infer_core": "p_infer_core",
    "mfu": "MFU",
    "acc_infer": "acc infer",
    "acc_val": "acc val",
    "mem": "mem",
}
_BESIDE = {
    "fidelity_ways": "fidelity, ways",
    "fidelity_time": "fidelity time",
    "drift_val": "drift, eager",
    "drift_infer": "drift, compiled",
    "mfu_computed": "MFU computed",
    "load_peak": "load peak",
    "compile_time": "compile time",
    "graphs": "graphs",
    "graph_breaks": "graph breaks",
    "recompiles": "recompiles",
    "questions": "timed questions",
    "tokens": "tokens, all rounds",
    "tokens_per_joule": "tokens per joule",
    "p_val_core_per_device": "p_val_core per device",
    "p_infer_core_per_device": "p_infer_core per device",
    "scaling_efficiency_val": "scaling efficiency val",
    "scaling_efficiency_infer": "scaling efficiency infer",
}
# What decode measures, in order; behind each name the form (batch, context) and the engine.
_DECODE: tuple[str, ...] = (
    "decode",
    "ttft",
    "itl_p50",
    "itl_p99",
    "mbu",
    "decode_bandwidth",
    "decode_bandwidth_advertised",
    "mem_decode",
)
_DECODE += ("compile_time_decode", "graphs_decode", "graph_breaks_decode", "recompiles_decode")
_OURS = {"val": "eager", "infer": "inductor"}  # the word in names of metrics and notes
# Decimals of the units that have a usual size; all others are shown by four digits.
_DIGITS = {"fraction": 2, "GiB": 2, "tok/s": 1, "s": 1, "count": 0, "questions": 0, "tok": 0}
_DIGITS |= {"MHz": 0, "C": 0, "W": 0}
_FLIPS_SHOWN = 10
WIDTH = 80
_KINDS = ("right -> wrong", "wrong -> right", "wrong -> wrong", "differs")
_ENGINE_OF = {"p_val": "eager", "acc_val": "eager", "e2e_time": "both"}  # else inductor
_LONGEST = 1_000  # characters of one quoted text


@dataclass(frozen=True)
class VerdictRow:
    """One verdict as it is shown; empty text is what could not be had."""

    metric: str
    against: str  # the gate
    unit: str
    baseline: str
    measured: str
    change: str
    limit: str
    word: Word
    reason: str

    @property
    def cells(self) -> list[str]:
        """Return all but gate and reason: what a table of 80 columns takes."""
        numbers = [self.baseline, self.measured, self.change, self.limit]
        return [self.metric, self.unit, *numbers, self.word]


@dataclass(frozen=True)
class MetricRow:
    """One metric, measured, published and stored; empty text is what there is not.

    Attributes:
        measured: with its spread only where that is its own, and no verdict's.
        judged: the same with the spread that its verdict tells.
        change, limit, word: of the verdict on the stored baseline; a graver one goes before it.
    """

    title: str
    engine: str
    unit: str
    measured: str
    judged: str
    published: str
    baseline: str
    change: str
    limit: str
    word: Word | None


@dataclass(frozen=True)
class Finding:
    """Verdicts of one word and one reason: what a person must know first.

    Attributes:
        metrics: their names.
        title: the same, and its change with the limit where one stands alone.
    """

    word: Word
    metrics: str
    title: str
    reason: str


def verdict_rows(verdicts: Iterable[Verdict]) -> list[VerdictRow]:
    """Return one row a verdict, in their order."""
    return [
        VerdictRow(
            metric=v.metric,
            against=v.gate,
            unit=unit_shown(v.unit),
            baseline=number(v.baseline, v.unit, v.baseline_error),
            measured=number(v.measured, v.unit, v.measured_error),
            change=v.change.removesuffix(f" {v.unit}"),  # it has a column
            limit=v.limit.removesuffix(f" {v.unit}"),
            word=v.word,
            reason=v.reason,
        )
        for v in verdicts
    ]


def verdict_table(verdicts: Iterable[Verdict], tablefmt: str = "plain") -> str:
    """Lay out what each is compared with, what was measured, the limit and the word.

    What is compared with published figures has a table of its own, whose column says so: a metric
    may stand in both. Where a terminal is too narrow for the spreads, the baseline's goes first:
    the reason tells it.
    """
    rows = verdict_rows(verdicts)
    tables = []
    for against in ("baseline", "published"):
        some = [
            row.cells for row in rows if (row.against == "published") == (against == "published")
        ]
        headers = ["metric", "unit", against, "measured", "change", "limit", "verdict"]
        if some and tablefmt != "plain":
            tables.append(grid(headers, some, tablefmt))
        elif some:
            tables.append(fitted(headers, some, spreads=(2, 3)))
    return "\n\n".join(tables)


def own_engines(case: CaseRecord) -> list[str]:
    """Return the engines of the user's own, and the answers to other tasks (``val_ceval``)."""
    timed = (re.fullmatch(r"p_(.+)_core", name) for name in case.metrics)
    found = [*case.accuracy, *(each[1] for each in timed if each)]
    ours = {*_OURS, *_OURS.values()}
    names = (name for name in dict.fromkeys(found) if name not in ours)
    one = r"[a-z0-9]{1,30}(_[a-z][a-z0-9_]{0,29})?"  # a task other than MMLU is named behind it
    return [name for name in names if re.fullmatch(one, name)]  # else edited


def engine_kinds(case: CaseRecord) -> dict[str, str]:
    """Return {word in the names of metrics and notes: engine} of all that there may be."""
    return _OURS | {name: name for name in own_engines(case)}


def shown_metrics(case: CaseRecord) -> dict[str, str]:
    """Return {name: what it is called} of what is shown of a case, in order."""
    kinds = ("p_{}_whole", "p_{}_core", "mfu_{}", "acc_{}", "mem_{}")
    own = [kind.format(engine) for engine in own_engines(case) for kind in kinds]
    recorded = {name: name for name, metric in case.metrics.items() if metric.own}
    decode = {
        name: name
        for base in _DECODE
        for name, metric in case.metrics.items()
        if re.fullmatch(rf"{base}(_[bc]\d+)?(_val)?", name) and not metric.own
    }
    engines = {name: name for name in own if name in case.metrics}
    return PUBLISHED_TABLE | engines | decode | _BESIDE | recorded


def metric_row(case: CaseRecord, published: Published | None, name: str, title: str) -> MetricRow:
    """Return what is known of a metric that was measured, published or neither."""
    metric = case.metrics.get(name)
    figure = published.metrics.get(name) if published is not None else None
    verdicts = [v for v in case.verdicts if v.metric == name]
    stored = on_baseline(case, name)
    gravest = min(verdicts, key=lambda v: WORST_FIRST.index(v.word), default=None)
    told = stored if stored is not None and stored.word == worst(verdicts) else gravest
    measured = judged = "not measured"
    if metric is not None:
        # Of ranks together and one by itself, whose spreads are in the samples alone.
        own = summary(metric.samples)[1] if _is_scaling(name) and metric.samples else None
        cache = case.notes.get("compile_cache") if name == "compile_time" else None
        note = "" if cache is None else f" ({cache} cache)"
        measured = judged = number(metric.value, metric.unit, own) + note
        if stored is not None and stored.measured_error is not None:
            judged = number(metric.value, metric.unit, stored.measured_error) + note
    return MetricRow(
        title=title,
        engine="" if metric is not None and metric.own else engine_of(name, case),
        unit=unit_shown(metric.unit if metric else figure.unit if figure else ""),
        measured=measured,
        judged=judged,
        published="" if figure is None else number(figure.value, figure.unit),
        baseline="" if stored is None else number(stored.baseline, stored.unit),
        change="" if told is None else told.change,
        limit="" if told is None else told.limit,
        word=None if told is None else told.word,
    )


def on_baseline(case: CaseRecord, name: str) -> Verdict | None:
    """Return the verdict on a metric against its stored baseline."""
    return next((v for v in case.verdicts if (v.metric, v.gate) == (name, "baseline")), None)


def findings(verdicts: Iterable[Verdict]) -> list[Finding]:
    """Return every verdict but ``ok``, gravest first; those of one word and reason share one."""
    shared: dict[tuple[Word, str], list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.word != "ok":
            shared.setdefault((verdict.word, verdict.reason), []).append(verdict)
    found = []
    for (word, reason), each in shared.items():
        metrics = ", ".join(dict.fromkeys(v.metric for v in each))
        alone = len(each) == 1 and each[0].change
        change = f" {each[0].change} (limit {each[0].limit})" if alone else ""
        found.append(Finding(word, metrics, metrics + change, reason))
    return sorted(found, key=lambda finding: WORST_FIRST.index(finding.word))


def flip_kind(verdict: Verdict, flip: Flip) -> str:
    """Return what a flip did; nothing is right or wrong where eager's answer is the label."""
    return "differs" if verdict.gate == "paired" else flip.kind


def flip_counts(verdicts: Iterable[Verdict]) -> str:
    """Return how many flips did what: ``3 right -> wrong, 1 wrong -> right``."""
    kinds = Counter(flip_kind(v, flip) for v in verdicts for flip in v.flips)
    counted = [f"{kinds[kind]} {kind}" for kind in _KINDS if kinds[kind]]
    return ", ".join(counted).replace("differs", "differ")


def flip_lines(verdicts: Iterable[Verdict], whose: str, most: int = _FLIPS_SHOWN) -> list[str]:
    """Return the first flips, a line each, and how many more there are; ``whose`` margin it is."""
    flips = [(verdict, flip) for verdict in verdicts for flip in verdict.flips]
    lines = []
    for verdict, flip in flips[:most]:
        about = [] if verdict.gate == "paired" else [f"label {flip.label}"]
        about += [] if flip.margin is None else [f"{whose} margin {flip.margin:.3g} logits"]
        told = f" ({', '.join(about)})" if about else ""
        lines.append(f"{flip.id}: {flip.before} -> {flip.after}{told}")
    if len(flips) > most:
        lines.append(f"... and {len(flips) - most} more, in the record")
    return lines


def number(value: float | None, unit: str, error: float | None = None) -> str:
    """Return a value as people read it; fractions in per cent; empty where there is none."""
    if value is None:
        return ""
    digits = 0 if unit == "tok/s" and value >= 1000 else _DIGITS.get(unit, 0)
    small = unit == "s" and 0 < abs(value) < 0.1

    def shown(some: float) -> str:
        if unit == "nats":
            return f"{some:.1e}" if some else "0"
        if unit in ("us/tok", "logits") and some >= 0:
            return four_digits(some)
        if unit not in _DIGITS or small:
            return f"{some:.4g}"
        return f"{100 * some if unit == 'fraction' else some:.{digits}f}"

    return shown(value) if error is None else f"{shown(value)} +- {shown(error)}"


def change_shown(before: float, after: float, unit: str) -> str:
    """Return a change: pp for fractions, a number for counts and from 0, else per cent."""
    if unit == "fraction":
        return signed(100 * (after - before), "pp")
    if unit == "count" or before == 0:
        return f"{after - before:+g}"
    return signed(100 * (after / before - 1), "%")


def four_digits(value: float) -> str:
    """Return four significant digits, without an exponent where it can be."""
    if not value:
        return "0"
    if value < 1e-4:
        return f"{value:.2g}"
    return f"{value:.{max(0, 3 - math.floor(math.log10(value)))}f}"


def unit_shown(unit: str) -> str:
    """Return the unit as people read it."""
    return "%" if unit == "fraction" else unit


def grid(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    tablefmt: str = "plain",
    align: str = "",
    widths: Sequence[int | None] = (),
) -> str:
    """Lay out text cells for the terminal, or as Markdown (``github``), where all are quoted.

    ``align`` is a letter a column, ``l`` or ``r``; all stand left without it. ``widths`` are those
    that columns are folded to.
    """
    cells = [list(headers), *map(list, rows)]
    if tablefmt == "github":
        cells = [[quoted(cell) for cell in row] for row in cells]
    else:
        cells[1:] = [[printable(cell) for cell in row] for row in rows]
        headers = ()  # as any other row: tabulate would make a header's column wider
    sides = [{"l": "left", "r": "right"}[letter] for letter in align]
    return tabulate(
        cells if tablefmt == "plain" else cells[1:],
        headers and cells[0],
        tablefmt,
        disable_numparse=True,
        colalign=sides or None,
        maxcolwidths=list(widths) or None,
    )


def fitted(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    fold: int = 0,
    align: str = "",
    spreads: Sequence[int] = (),
) -> str:
    """Lay out cells for the terminal's width, less an indent of 2.

    What is too wide loses the ``+-`` of the columns ``spreads``, one by one; then the column
    ``fold`` is folded.
    """
    cells = [list(row) for row in rows]
    for column in (None, *spreads):
        if column is not None:
            cells = [
                [text.split(" +- ")[0] if i == column else text for i, text in enumerate(row)]
                for row in cells
            ]
        laid = grid(headers, cells, align=align)
        if (over := max(map(len, laid.splitlines())) - (WIDTH - 2)) <= 0:
            return laid
    longest = max(len(row[fold]) for row in cells)
    widths = [None] * fold + [max(longest - over, len(headers[fold]))]
    return grid(headers, cells, align=align, widths=widths)


def quoted(text: str, longest: int = _LONGEST) -> str:
    """Return text from a record as one line that Markdown shows as it is."""
    line = " ".join(text.split())
    if len(line) > longest:
        line = f"{line[:longest]} ... (cut)"
    for sign, shown in (
        ("&", "&amp;"),
        ("\\", "&#92;"),
        ("<", "&lt;"),
        ("|", "\\|"),
        ("*", "\\*"),
        ("[", "\\["),
        ("@", "&#64;"),
    ):
        line = line.replace(sign, shown)
    # Commands in reasons are quoted; a lone backtick would swallow what follows.
    return line if line.count("`") % 2 == 0 else line.replace("`", "\\`")


def _is_scaling(name: str) -> bool:
    return name.startswith("scaling_efficiency")


def engine_of(name: str, case: CaseRecord) -> str:
    """Return the engine that a metric is of, by its name."""
    for engine in own_engines(case):
        if engine in name.split("_"):
            return engine
    starts = (engine for start, engine in _ENGINE_OF.items() if name.startswith(start))
    return next(starts, "eager" if name.endswith("_val") else "inductor")
