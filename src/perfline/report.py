"""How does a person read what was measured? Tables and sentences for terminal and Markdown.

Nothing is compared here: words come from ``verdict``, numbers from the record.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from perfline.baseline import Published
from perfline.jsonfile import Scalar
from perfline.metrics import Metric
from perfline.record import CaseRecord, Record
from perfline.verdict import WORST_FIRST, Flip, Verdict, worst

WIDTH = 80
FLIPS_SHOWN = 10

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
)


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
) -> str:
    """The message of a test that did not pass: the first line is the whole story."""
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
        lines += _paragraph(f"context   {context_change(origin.context or {}, context)}")
    else:
        lines.append(f"  baseline  none yet; it would be {origin.path}")
    hint = next_command(case, verdicts, flags)
    if hint:
        lines.append(f"  hint: {hint}")
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
        for line in _paragraph(f"{', '.join(dict.fromkeys(names))} {word}: {reason}")
    ]


def verdict_table(verdicts: Iterable[Verdict], tablefmt: str = "plain") -> str:
    """One row a verdict: what was stored, what was measured, the limit and the word."""
    rows = [
        [
            verdict.metric,
            _unit(verdict.unit),
            number(verdict.baseline, verdict.unit, verdict.baseline_error),
            number(verdict.measured, verdict.unit, verdict.measured_error),
            verdict.change,
            verdict.limit,
            verdict.word,
        ]
        for verdict in verdicts
    ]
    headers = ["metric", "unit", "baseline", "measured", "change", "limit", "verdict"]
    return tabulate(rows, headers, tablefmt, disable_numparse=True)


def flip_lines(flips: Sequence[Flip]) -> list[str]:
    """The first flipped questions, and how many more there are."""
    if not flips:
        return []
    kinds = Counter(flip.kind for flip in flips)
    lines = [f"  flipped questions: {', '.join(f'{n} {kind}' for kind, n in kinds.items())}"]
    for flip in flips[:FLIPS_SHOWN]:
        margin = "" if flip.margin is None else f", stored margin {flip.margin:.3g} logits"
        lines.append(f"    {flip.id}: {flip.before} -> {flip.after} (label {flip.label}{margin})")
    if len(flips) > FLIPS_SHOWN:
        lines.append(f"    ... and {len(flips) - FLIPS_SHOWN} more, in the record")
    return lines


def case_table(case: CaseRecord, published: Published | None, tablefmt: str = "plain") -> str:
    """The published table's metrics, measured and published, and what stands beside them."""
    figures = published.metrics if published is not None else {}
    rows = []
    for name, title in (*PUBLISHED_TABLE, *BESIDE):
        metric = case.metrics.get(name)
        figure = figures.get(name)
        if metric is None and figure is None:
            continue
        unit = metric.unit if metric is not None else figure.unit if figure is not None else ""
        measured = "not measured" if metric is None else number(metric.value, unit)
        note = f" ({case.notes['compile_cache']} cache)" if _cache_known(name, case) else ""
        shown = "" if figure is None else number(figure.value, unit)
        rows.append([title, _unit(unit), measured + note, shown])
    headers = ["metric", "unit", "measured"]
    if published is None:
        rows = [row[:-1] for row in rows]
    else:
        headers.append(f"published ({published.device})" if published.device else "published")
    return tabulate(rows, headers, tablefmt, disable_numparse=True)


def session_lines(
    record: Record, published: Mapping[str, Published], skipped: Mapping[str, str], flags: str
) -> list[str]:
    """The terminal section at the end of a session."""
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
        lines += [line for error in case.errors for line in _paragraph(f"error: {error}")]
        lines.append("")
    for name, why in skipped.items():
        lines += [*_paragraph(f"{name} was not measured: {why}", ""), ""]
    lines.append(counts_line(record))
    commands = [next_command(n, case.verdicts, flags) for n, case in record.cases.items()]
    wanted = [command for command in commands if command]
    if wanted:
        lines.append(f"next: {wanted[0]}")
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


def markdown(record: Record, published: Mapping[str, Published], flags: str) -> str:
    """The summary for ``$GITHUB_STEP_SUMMARY``: verdicts first."""
    word = worst([v for case in record.cases.values() for v in case.verdicts])
    lines = [f"## perfline: {word}", "", counts_line(record), ""]
    for name, case in record.cases.items():
        lines += [f"### {name} ({case.dtype}, {case.weights} weights)", ""]
        lines += [f"- **could not be measured**: {_escaped(line)}" for line in case.errors]
        notable = [v for v in case.verdicts if v.word != "ok"]
        lines += [f"- **{_escaped(v.headline)}**: {_escaped(v.reason)}" for v in notable]
        compared = [verdict for verdict in case.verdicts if verdict.baseline is not None]
        if case.metrics:
            lines += ["", case_table(case, published.get(name), "github"), ""]
        if compared:
            lines += [verdict_table(compared, "github"), ""]
        hint = next_command(name, case.verdicts, flags)
        if hint:
            lines += ["```", hint, "```", ""]
    lines.append(f"Machine `{record.environment.machine}` at {record.created}.")
    return "\n".join(lines) + "\n"


def next_command(case: str, verdicts: Sequence[Verdict], flags: str) -> str:
    """The one command that comes next for a case; empty where there is nothing to do.

    ``flags`` are those that ``perfline baselines update`` needs to find what pytest used.
    """
    words = {v.word for v in verdicts}
    update = f"perfline baselines update {case} {flags}"
    if "invalid" in words:
        return "run again once the cause above is gone"
    wrong = [v for v in verdicts if v.word == "regressed" and v.gate != "baseline"]
    if any(v.unit != "tok/s" for v in wrong):
        return ""  # wrong answers are never a baseline
    if "regressed" in words:
        return f'to accept it: {update} --accept-regression --reason "..."'
    if "incomparable" in words:
        return f'to accept it anew: {update} --reason "..."'
    if any(v.word == "unsure" and v.unit == "tok/s" for v in verdicts):
        return f'to widen the baseline: {update} --add --reason "..."'
    if "missing" in words:
        return f'{update} --reason "first baseline"'
    if "improved" in words:
        return f'{update} --reason "..."'
    return ""


def context_change(before: Mapping[str, Scalar], after: Mapping[str, Scalar]) -> str:
    """What differs between two contexts: ``torch 2.9.1 -> 2.10.0; driver unchanged``."""
    quiet = {"commit", "runner", "os"}
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
    digits = {"fraction": 2, "GiB": 2, "tok/s": 1, "s": 1}.get(unit, 0)
    if unit == "tok/s" and value >= 1000:
        digits = 0
    shown = f"{scale * value:.{digits}f}"
    return shown if error is None else f"{shown} +- {scale * error:.{digits}f}"


def keyed_by_unit(metrics: Iterable[Metric]) -> dict[str, float]:
    """``{name_unit: value}``, such as ``p_infer_core_tok_per_s``: the unit is in the key."""
    suffixes = {"tok/s": "tok_per_s", "GiB": "gib", "tok": "tokens"}
    keyed = {}
    for metric in metrics:
        suffix = suffixes.get(metric.unit, metric.unit)
        name = metric.name if metric.name.endswith(suffix) else f"{metric.name}_{suffix}"
        keyed[name] = metric.value
    return keyed


def _unit(unit: str) -> str:
    return "%" if unit == "fraction" else unit


def _cache_known(name: str, case: CaseRecord) -> bool:
    return name == "compile_time" and "compile_cache" in case.notes


def _paragraph(text: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
