"""How does a person read what was measured? Tables and sentences for terminal and Markdown.

Nothing is compared here: words come from ``verdict``, numbers from the record.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from perfline.baselines.baseline import Published
from perfline.baselines.suggestions import Refused, next_command, next_of, settling
from perfline.fields import Scalar
from perfline.gates.verdict import WORST_FIRST, Flip, Verdict, worst
from perfline.measure.record import CaseRecord, Record
from perfline.metrics import Metric, summary

WIDTH = 80
FLIPS_SHOWN = 10
_RANKS_SHOWN = 16
# Decimals of the units that have a usual size; all others are shown by four digits.
_DIGITS = {"fraction": 2, "GiB": 2, "tok/s": 1, "s": 1, "count": 0, "questions": 0, "tok": 0}
_DIGITS |= {"MHz": 0, "C": 0, "W": 0}
_OURS = {"val": "eager", "infer": "inductor"}

# The published table in its order: name, what it is called.
PUBLISHED_TABLE = (
    ("e2e_time", "e2e_time"),
    ("p_val_whole", "p_val_whole"),
    ("p_val_core", "p_val_core"),
    ("p_infer_whole", "p_infer_whole"),
    ("p_infer_core", "p_infer_core"),
    ("mfu", "MFU"),
    ("acc_infer", "acc infer"),
    ("acc_val", "acc val"),
    ("mem", "mem"),
)
BESIDE = (
    ("mfu_computed", "MFU computed"),
    ("load_peak", "load peak"),
    ("compile_time", "compile time"),
    ("graphs", "graphs"),
    ("graph_breaks", "graph breaks"),
    ("recompiles", "recompiles"),
    ("questions", "timed questions"),
    ("tokens", "tokens, all rounds"),
    ("tokens_per_joule", "tokens per joule"),
    ("p_val_core_per_device", "p_val_core per device"),
    ("p_infer_core_per_device", "p_infer_core per device"),
    ("scaling_efficiency_val", "scaling efficiency val"),
    ("scaling_efficiency_infer", "scaling efficiency infer"),
)


def own_engines(case: CaseRecord) -> list[str]:
    """The engines of the user's own that a case was measured with."""
    timed = (re.fullmatch(r"p_(.+)_core", name) for name in case.metrics)
    found = [*case.accuracy, *(each[1] for each in timed if each)]
    ours = {*_OURS, *_OURS.values()}
    names = (name for name in dict.fromkeys(found) if name not in ours)
    return [name for name in names if re.fullmatch(r"[a-z0-9]{1,30}", name)]  # else edited


def engine_kinds(case: CaseRecord) -> list[tuple[str, str]]:
    """(word in the names of metrics and notes, engine) of every engine that there may be."""
    return [*_OURS.items(), *((name, name) for name in own_engines(case))]


def shown_metrics(case: CaseRecord) -> list[tuple[str, str]]:
    """(name, what it is called) of what the terminal shows of a case, in order."""
    kinds = ("p_{}_whole", "p_{}_core", "mfu_{}", "acc_{}", "mem_{}")
    own = [kind.format(engine) for engine in own_engines(case) for kind in kinds]
    recorded = [name for name, metric in case.metrics.items() if metric.own]
    return [
        *PUBLISHED_TABLE,
        *((name, name) for name in own if name in case.metrics),
        *BESIDE,
        *((name, name) for name in recorded),
    ]


@dataclass(frozen=True)
class Origin:
    """Where a stored number comes from, and the context it was measured in."""

    path: str
    date: str | None = None
    commit: str | None = None
    context: Mapping[str, Scalar] | None = None


def failure(
    verdicts: Sequence[Verdict],
    origin: Origin,
    context: Mapping[str, Scalar],
    case: str,
    flags: str,
    settle_flags: str = "",
    refused: Refused = lambda terms: "",
) -> str:
    """The message of a test that did not pass: the first line is the whole story.

    ``settle_flags`` are those with which ``perfline compare`` finds what pytest used; ``refused``
    says why ``perfline baselines update`` would refuse what was measured.
    """
    grave = worst(verdicts)
    story = next(v for v in verdicts if v.word == grave)
    lines = [story.headline, "", textwrap.indent(verdict_table(verdicts), "  "), ""]
    lines += reason_lines(verdicts)
    lines += flip_lines([flip for verdict in verdicts for flip in verdict.flips])
    if all(verdict.gate == "published" for verdict in verdicts):
        lines.append("  baseline  the published figure")
    elif origin.date is not None:
        commit = f", commit {origin.commit}" if origin.commit else ""
        lines.append(f"  baseline  {origin.path} ({origin.date[:10]}{commit})")
        lines += paragraph(f"context   {context_change(origin.context or {}, context)}")
    else:
        lines.append(f"  baseline  none yet; it would be {origin.path}")
    settle = settling(case, verdicts, (origin.commit, origin.context or {}), context, settle_flags)
    hints = [f"to settle it: {settle}"] if settle else []
    hints += filter(None, [next_command(case, verdicts, flags, refused)])
    lines += [line for hint in hints for line in _advice(f"  hint: {hint}")]
    return "\n".join(lines)


def reason_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Why each verdict is not ``ok``; metrics with the same reason share it."""
    shared: dict[tuple[str, str], list[str]] = {}
    for verdict in verdicts:
        if verdict.word != "ok" and verdict.reason:
            shared.setdefault((verdict.word, verdict.reason), []).append(verdict.metric)
    return [
        line
        for (word, reason), names in shared.items()
        for line in paragraph(f"{', '.join(dict.fromkeys(names))} {word}: {reason}")
    ]


def verdict_table(
    verdicts: Iterable[Verdict], tablefmt: str = "plain", quote: Callable[[str], str] = str
) -> str:
    """One row a verdict: what it is compared with, what was measured, the limit and the word.

    What is compared with published figures has a table of its own, whose column says so: a metric
    may stand in both. ``quote`` makes text from a record safe for the format of the table.
    """
    all_of_them = list(verdicts)
    stored = [verdict for verdict in all_of_them if verdict.gate != "published"]
    published = [verdict for verdict in all_of_them if verdict.gate == "published"]
    tables = []
    for against, some in (("baseline", stored), ("published", published)):
        rows = [
            [
                quote(verdict.metric),
                quote(unit_shown(verdict.unit)),
                number(verdict.baseline, verdict.unit, verdict.baseline_error),
                number(verdict.measured, verdict.unit, verdict.measured_error),
                verdict.change,
                quote(verdict.limit),
                verdict.word,
            ]
            for verdict in some
        ]
        headers = ["metric", "unit", against, "measured", "change", "limit", "verdict"]
        if rows:
            tables.append(tabulate(rows, headers, tablefmt, disable_numparse=True))
    return "\n\n".join(tables)


def flip_lines(flips: Sequence[Flip]) -> list[str]:
    """The first flipped questions, and how many more there are."""
    if not flips:
        return []
    kinds = Counter(flip.kind for flip in flips)
    lines = [f"  flipped questions: {', '.join(f'{n} {kind}' for kind, n in kinds.items())}"]
    for flip in flips[:FLIPS_SHOWN]:
        given = f"{flip.before} -> {flip.after} (label {flip.label}{margin_note(flip)})"
        lines.append(f"    {flip.id}: {given}")
    if len(flips) > FLIPS_SHOWN:
        lines.append(f"    ... and {len(flips) - FLIPS_SHOWN} more, in the record")
    return lines


def margin_note(flip: Flip) -> str:
    """How close the stored answer was; empty where that is not known."""
    return "" if flip.margin is None else f", stored margin {flip.margin:.3g} logits"


def case_table(
    case: CaseRecord,
    published: Published | None,
    tablefmt: str = "plain",
    quote: Callable[[str], str] = str,
) -> str:
    """The published table's metrics, measured and published, and what stands beside them."""
    figures = published.metrics if published is not None else {}
    rows = []
    for name, title in shown_metrics(case):
        metric = case.metrics.get(name)
        figure = figures.get(name)
        if metric is None and figure is None:
            continue
        unit = metric.unit if metric is not None else figure.unit if figure is not None else ""
        measured = "not measured" if metric is None else number(metric.value, unit)
        if metric is not None and name.startswith("scaling_efficiency") and metric.samples:
            measured = number(metric.value, unit, summary(metric.samples)[1])
        note = f" ({case.notes['compile_cache']} cache)" if _cache_known(name, case) else ""
        shown = "" if figure is None else number(figure.value, unit)
        rows.append([title, quote(unit_shown(unit)), quote(measured + note), shown])
    headers = ["metric", "unit", "measured"]
    if published is None:
        rows = [row[:-1] for row in rows]
    else:
        device = f" ({quote(published.device)})" if published.device else ""
        headers.append(f"published{device}")
    return tabulate(rows, headers, tablefmt, disable_numparse=True)


def session_lines(
    record: Record,
    published: Mapping[str, Published],
    skipped: Mapping[str, str],
    flags: str,
    refused: Mapping[str, Refused],
) -> list[str]:
    """The terminal section at the end of a session; see ``suggestions.next_of`` for ``refused``."""
    lines = []
    for name, case in record.cases.items():
        lines += [f"{name} ({case.dtype}, {case.weights} weights) on {record.environment.machine}"]
        if case.metrics:
            lines += [textwrap.indent(case_table(case, published.get(name)), "  "), ""]
        compared = [verdict for verdict in case.verdicts if verdict.baseline is not None]
        if compared:
            lines += [textwrap.indent(verdict_table(compared), "  "), ""]
        lines += reason_lines(case.verdicts)
        lines += flip_lines([flip for verdict in case.verdicts for flip in verdict.flips])
        lines += [line for error in case.errors for line in paragraph(f"error: {error}")]
        lines += thrown_out_lines(case)
        lines += [line for text in rank_lines(case) for line in paragraph(text)]
        lines += [line for text in stragglers(case) for line in paragraph(text)]
        if "settle_with" in case.notes:
            lines.append(f"  to settle it: {case.notes['settle_with']}")
        lines.append("")
    for name, why in skipped.items():
        lines += [*paragraph(f"{name} was not measured: {why}", ""), ""]
    lines += [line for notice in record.notices for line in paragraph(f"notice: {notice.line}", "")]
    lines.append(counts_line(record))
    if wanted := next_of(record, flags, refused):
        lines += _advice(f"next: {wanted}")
    return lines


def thrown_out_lines(case: CaseRecord) -> list[str]:
    """How many timed rounds do not count, since the device slowed itself, by engine."""
    return [
        line
        for kind, _ in engine_kinds(case)
        if (count := case.notes.get(f"rounds_thrown_out_{kind}"))
        for line in paragraph(
            f"p_{kind}: {count} rounds thrown out; {case.notes.get(f'thrown_out_{kind}')}"
        )
    ]


def stragglers(case: CaseRecord) -> list[str]:
    """Which rank of a torchrun job held the others up, by engine."""
    return [
        f"p_{kind}: {finding}"
        for kind, _ in engine_kinds(case)
        if (finding := case.notes.get(f"straggler_{kind}"))
    ]


def rank_lines(case: CaseRecord) -> list[str]:
    """What several ranks did: who answered the questions, and how fast they were together."""
    lines = []
    hosts = case.notes.get("accuracy_hosts")
    on = f" on {hosts} host{'s' * (hosts != 1)}" if isinstance(hosts, int) else ""
    for kind, engine in engine_kinds(case):
        by = "rank" if f"accuracy_questions_by_rank_{kind}" in case.notes else "replica"
        given = str(case.notes.get(f"accuracy_questions_by_{by}_{kind}", "")).split(", ")
        if not all(map(str.isdecimal, given)):
            continue  # one process, or a record that was edited
        counts = list(map(int, given))
        ranks = case.notes.get(f"accuracy_ranks_{kind}", len(counts))
        shown = ", ".join(f"{f'{by} ' * (not i)}{i}: {count}" for i, count in enumerate(counts))
        if len(counts) > _RANKS_SHOWN:
            few, many = min(counts), max(counts)
            shown = f"{few} on {by} {counts.index(few)} to {many} on {by} {counts.index(many)}"
        lines.append(
            f"accuracy, {engine}: {ranks} ranks{on} answered {sum(counts)} questions ({shown})"
        )
    return lines + _timed_rank_lines(case)


def _timed_rank_lines(case: CaseRecord) -> list[str]:
    lines = []
    for kind, engine in engine_kinds(case):
        if not (ranks := case.notes.get(f"throughput_ranks_{kind}")):
            continue
        parts = [f"throughput, {engine}: {ranks} ranks timed together"]
        if alone := case.metrics.get(f"p_{kind}_whole_one_rank"):
            by = "rank" if f"slowest_rank_{kind}" in case.notes else "replica"
            value, error = summary(alone.samples)
            parts.append(f"one {by} by itself {number(value, alone.unit, error)} tok/s")
            parts.append(f"slowest: {case.notes.get(f'slowest_{by}_{kind}')}")
        lines.append("; ".join(parts))
    return lines


def counts_line(record: Record) -> str:
    """How many verdicts of each word, gravest first."""
    verdicts = [v for case in record.cases.values() for v in case.verdicts]
    counts = Counter(v.word for v in verdicts)
    words = [f"{counts[word]} {word}" for word in WORST_FIRST if counts[word]]
    errors = sum(len(case.errors) for case in record.cases.values())
    if errors:
        words.insert(0, f"{errors} could not be measured")
    return f"verdicts: {', '.join(words) or 'none'}"


def context_change(before: Mapping[str, Scalar], after: Mapping[str, Scalar]) -> str:
    """What differs between two contexts: ``torch 2.9.1 -> 2.10.0; driver unchanged``."""
    quiet = {"commit", "uncommitted", "runner", "os"}
    keys = [key for key in dict.fromkeys((*before, *after)) if key not in quiet]
    changed = [
        f"{key} {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in keys
        if before.get(key) != after.get(key)
    ]
    return "; ".join(changed) if changed else "torch, driver and all other versions unchanged"


def number(value: float | None, unit: str, error: float | None = None) -> str:
    """A value as people read it; fractions in per cent; empty where there is none."""
    if value is None:
        return ""
    scale = 100 if unit == "fraction" else 1
    digits = _DIGITS.get(unit, 0)
    if unit == "tok/s" and value >= 1000:
        digits = 0
    form = f".{digits}f"
    if unit not in _DIGITS or (unit == "s" and 0 < abs(value) < 0.1):
        form = ".4g"
    shown = f"{scale * value:{form}}"
    return shown if error is None else f"{shown} +- {scale * error:{form}}"


def keyed_by_unit(metrics: Iterable[Metric]) -> dict[str, float]:
    """``{name_unit: value}``, such as ``p_infer_core_tok_per_s``: the unit is in the key."""
    suffixes = {"tok/s": "tok_per_s", "GiB": "gib", "tok": "tokens", "tok/J": "tok_per_joule"}
    suffixes |= {"questions/s": "questions_per_s", "MHz": "mhz", "C": "c", "W": "w"}
    keyed = {}
    for metric in metrics:
        suffix = suffixes.get(metric.unit, metric.unit)
        name = metric.name if metric.name.endswith(suffix) else f"{metric.name}_{suffix}"
        keyed[name] = metric.value
    return keyed


def unit_shown(unit: str) -> str:
    """The unit as people read it."""
    return "%" if unit == "fraction" else unit


def _cache_known(name: str, case: CaseRecord) -> bool:
    return name == "compile_time" and "compile_cache" in case.notes


def _advice(line: str) -> list[str]:
    """A line that holds a command stays whole, to be pasted; a sentence is folded."""
    return [line] if ": perfline " in line else paragraph(line, "")


def paragraph(text: str, indent: str = "  ", hang: str = "  ") -> list[str]:
    """Fold a sentence to the terminal's width; a path, or a command in backticks, stays whole."""
    whole = re.sub(r"`[^`]*`", lambda found: found[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(
        whole,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + hang,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\0", " ") for line in lines]
