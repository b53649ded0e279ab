"""How does a person read what was measured, in the terminal? Tables and sentences.

Nothing is compared here: words come from ``verdict``, numbers from the record.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from perfline.baselines.baseline import Published
from perfline.baselines.suggestions import (
    Refused,
    comparing,
    next_of,
    next_steps,
    not_asked_lines,
    unmeasured,
    unmeasured_counts,
)
from perfline.errors import printable
from perfline.fields import Scalar
from perfline.gates import fingerprint
from perfline.gates.verdict import WORST_FIRST, Verdict, worst
from perfline.measure.record import CaseRecord, Record
from perfline.metrics import summary
from perfline.report.table import (
    WIDTH,
    engine_kinds,
    findings,
    fitted,
    flip_counts,
    flip_lines,
    grid,
    metric_row,
    number,
    shown_metrics,
    verdict_table,
)

_RANKS_SHOWN = 16


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
    settle: str = "",
    refused: Refused = lambda terms: "",
) -> str:
    """The message of a test that did not pass: the first line is the whole story.

    ``settle`` is the comparison that would settle a verdict on time; ``refused`` says why
    ``perfline baselines update`` would refuse what was measured.
    """
    grave = worst(verdicts)
    story = next(v for v in verdicts if v.word == grave)
    lines = [story.headline, "", textwrap.indent(verdict_table(verdicts), "  "), ""]
    lines += reason_lines(verdicts)
    lines += _flip_lines(verdicts)
    if all(verdict.gate == "published" for verdict in verdicts):
        lines.append("  baseline  the published figure")
    elif origin.date is not None:
        commit = f", commit {origin.commit}" if origin.commit else ""
        lines.append(f"  baseline  {origin.path} ({origin.date[:10]}{commit})")
        lines += paragraph(f"context   {context_change(origin.context or {}, context)}")
    else:
        lines.append(f"  baseline  none yet; it would be {origin.path}")
    hints = next_steps(case, verdicts, flags, refused, settle=settle)
    lines += [line for hint in hints for line in _advice(f"  hint: {hint}")]
    return "\n".join(lines)


def reason_lines(verdicts: Iterable[Verdict]) -> list[str]:
    """Why each verdict is not ``ok``; metrics with the same reason share it."""
    return [
        line
        for finding in findings(verdicts)
        if finding.reason
        for line in paragraph(f"{finding.metrics} {finding.word}: {finding.reason}")
    ]


def case_table(case: CaseRecord, published: Published | None, tablefmt: str = "plain") -> str:
    """The published table's metrics, measured and published, and what stands beside them."""
    figures = published.metrics if published is not None else {}
    rows = [
        metric_row(case, published, name, title)
        for name, title in shown_metrics(case).items()
        if name in case.metrics or name in figures
    ]
    headers, cells = ["metric", "unit", "measured"], [[r.title, r.unit, r.measured] for r in rows]
    if published is not None:
        apart = "\n" if tablefmt == "plain" else " "  # a device's name is long
        headers.append(f"published{apart}({published.device})" if published.device else "published")
        cells = [[*known, row.published] for known, row in zip(cells, rows, strict=True)]
    return fitted(headers, cells) if tablefmt == "plain" else grid(headers, cells, tablefmt)


def session_lines(
    record: Record,
    published: Mapping[str, Published],
    skipped: Mapping[str, str],
    flags: str,
    refused: Mapping[str, Refused],
) -> list[str]:
    """The terminal section at the end of a session; see ``suggestions.next_of`` for ``refused``."""
    lines, wanted = [], next_of(record, flags, refused)
    for name, case in record.cases.items():
        lines += [f"{name} ({case.dtype}, {case.weights} weights) on {record.environment.machine}"]
        if case.metrics:
            lines += [textwrap.indent(case_table(case, published.get(name)), "  "), ""]
        compared = [verdict for verdict in case.verdicts if verdict.baseline is not None]
        if compared:
            lines += [textwrap.indent(verdict_table(compared), "  "), ""]
        lines += reason_lines(case.verdicts)
        told = (*settled_lines(case), *run_otherwise(case))
        lines += [line for text in told for line in paragraph(text)]
        lines += _flip_lines(case.verdicts)
        lines += [line for error in case.errors for line in paragraph(f"error: {error}")]
        lines += [line for text in not_asked_lines(case) for line in paragraph(text)]
        lines += thrown_out_lines(case)
        lines += [line for text in rank_lines(case) for line in paragraph(text)]
        lines += [line for text in stragglers(case) for line in paragraph(text)]
        settle = comparing(str(case.notes.get("settle_with")), case.verdicts)
        if "settle_with" in case.notes and settle != wanted:
            lines.append(f"  {settle}")
        lines.append("")
    for name, why in skipped.items():
        lines += [*paragraph(f"{name} was not measured: {why}", ""), ""]
    lines += [line for notice in record.notices for line in paragraph(f"notice: {notice.line}", "")]
    lines.append(counts_line(record))
    if wanted:
        lines += _advice(f"next: {wanted}")
    return lines


def settled_lines(case: CaseRecord) -> list[str]:
    """What a comparison has cleared: why it is ``ok`` is not told elsewhere."""
    return [f"{v.metric} ok: {v.reason}" for v in case.verdicts if v.settled and v.word == "ok"]


def run_otherwise(case: CaseRecord) -> list[str]:
    """What runs otherwise than the baseline says, and is no worse for it."""
    return [
        f"{v.metric}: {v.reason}"
        for v in case.verdicts
        if v.metric.startswith(fingerprint.NAME) and v.word == "ok" and v.reason != fingerprint.SAME
    ]


def thrown_out_lines(case: CaseRecord) -> list[str]:
    """How many timed rounds do not count, since the device slowed itself, by engine."""
    return [
        line
        for kind, _ in engine_kinds(case).items()
        if (count := case.notes.get(f"rounds_thrown_out_{kind}"))
        for line in paragraph(
            f"p_{kind}: {count} rounds thrown out; {case.notes.get(f'thrown_out_{kind}')}"
        )
    ]


def stragglers(case: CaseRecord) -> list[str]:
    """Which rank of a torchrun job held the others up, by engine."""
    return [
        f"p_{kind}: {finding}"
        for kind, _ in engine_kinds(case).items()
        if (finding := case.notes.get(f"straggler_{kind}"))
    ]


def rank_lines(case: CaseRecord) -> list[str]:
    """What several ranks did: who answered the questions, and how fast they were together."""
    lines = []
    hosts = case.notes.get("accuracy_hosts")
    on = f" on {hosts} host{'s' * (hosts != 1)}" if isinstance(hosts, int) else ""
    for kind, engine in engine_kinds(case).items():
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
    for kind, engine in engine_kinds(case).items():
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
    words = [*unmeasured(*unmeasured_counts(record)), *words]
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


def _flip_lines(verdicts: Sequence[Verdict]) -> list[str]:
    lines = [f"    {line}" for line in flip_lines(verdicts, "stored")]
    return [f"  flipped questions: {flip_counts(verdicts)}", *lines] if lines else []


def _advice(line: str) -> list[str]:
    """A line that holds a command stays whole, to be pasted; a sentence is folded."""
    command = ": perfline " in line or ": env -u " in line
    return [printable(line)] if command else paragraph(line, "")


def paragraph(text: str, indent: str = "  ", hang: str = "  ") -> list[str]:
    """Fold a sentence to the terminal's width; a path, or a command in backticks, stays whole."""
    shown = printable("".join(" " if sign.isspace() else sign for sign in text))
    whole = re.sub(r"`[^`]*`", lambda found: found[0].replace(" ", "\0"), shown)
    lines = textwrap.wrap(
        whole,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + hang,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\0", " ") for line in lines]
