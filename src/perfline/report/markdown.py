"""How does a session, or a comparison, read as a step summary or a pull-request comment?

Verdict first, details folded. GitHub takes 65,536 characters; this keeps below that whatever the
record holds: text is made of blocks, gravest first, a block that does not fit is left out whole (so
that no table or fold is torn), and what was left out is said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from perfline.baselines.suggestions import gravest_first, not_asked_lines
from perfline.gates.verdict import WORST_FIRST
from perfline.measure.record import Record
from perfline.report.comparison_text import markdown_blocks
from perfline.report.page import headline
from perfline.report.page_case import context
from perfline.report.page_inputs import CaseInputs, Inputs
from perfline.report.table import findings, flip_counts, flip_lines, quoted, verdict_table
from perfline.report.text import case_table, rank_lines, run_otherwise, settled_lines, stragglers

MOST_CHARACTERS = 65_000
_FLIPS = 50  # of one verdict, in the folded list
_RESERVE = 400  # for the line that says what was left out, and the last line


def markdown(inputs: Inputs, *, strict: bool = False, limit: int = MOST_CHARACTERS) -> str:
    """Return the summary, under ``limit`` characters."""
    found, record = headline(inputs, strict), inputs.record
    command = " ".join(found.next.split())
    blocks = [f"## perfline: {found.title}\n\n{found.counts}\n\n{found.exit_line}.\n"]
    # A fence that the command's own text cannot close.
    blocks += [f"Next:\n\n~~~~\n{command}\n~~~~\n"] if command else []
    details, last = [], ""
    if record is not None:
        cases = [inputs.cases[case.case] for case in gravest_first(record)]
        blocks += [block for case in cases for block in _summary(case, record)]
        # What other packages said: no failure, but coming trouble.
        notices = [f"- {quoted(notice.line)}" for notice in record.notices]
        blocks += ["### Notices\n", *notices] if notices else []
        details = [block for case in cases for block in _details(case)]
        machine = _code(record.environment.machine)
        last = f"Machine {machine} at {quoted(record.created, 40)}.\n"
    for each in inputs.comparisons:
        blocks += markdown_blocks(each.comparison)
    return _fitted([*blocks, *details], last, limit)


def _summary(inputs: CaseInputs, record: Record) -> list[str]:
    """What a person must see of a case, one block a line: each may be left out by itself."""
    case, found = inputs.measured, context(inputs, record)
    kind = f"{quoted(case.dtype, 20)}, {quoted(case.weights, 20)} weights"
    lines = [f"### {quoted(case.case, 60)} ({kind})\n"]
    changed = [v for v in case.verdicts if v.word != "ok" and v.change]
    changed.sort(key=lambda verdict: WORST_FIRST.index(verdict.word))
    lines += [f"- **could not be measured**: {quoted(line)}" for line in case.errors]
    lines += [f"- **not measured**: {quoted(line)}" for line in not_asked_lines(case)]
    lines += [f"- **{quoted(v.headline)}**: {quoted(v.reason)}" for v in changed]
    lines += [
        f"- **{quoted(f'{found.metrics} {found.word}')}**: {quoted(found.reason)}"
        for found in findings(v for v in case.verdicts if not v.change)
    ]
    beside = (*settled_lines(case), *run_otherwise(case), *rank_lines(case))
    lines += [f"- {quoted(line)}" for line in beside]
    lines += [f"- **straggler**: {quoted(line)}" for line in stragglers(case)]
    if found.against:
        changes = "; ".join(f"{d.name} {d.before} -> {d.after}" for d in found.differences)
        told = f"against {found.against}: {changes or 'nothing differs'}"
        lines.append(f"- context: {quoted(told)}")
    return lines


def _details(inputs: CaseInputs) -> list[str]:
    case = inputs.measured
    name = quoted(case.case, 60)
    blocks = []
    if case.metrics:
        table = case_table(case, inputs.published, "github")
        blocks.append(_folded(f"{name}: measured", table))
    if case.verdicts:
        table = verdict_table(case.verdicts, "github")
        blocks.append(_folded(f"{name}: all {len(case.verdicts)} verdicts", table))
    for verdict in case.verdicts:
        if verdict.flips:
            title = f"{name}: {quoted(verdict.metric)}, flipped questions: {flip_counts([verdict])}"
            lines = flip_lines([verdict], "stored", _FLIPS)
            blocks.append(_folded(title, "\n".join(f"- {quoted(line)}" for line in lines)))
    return blocks


def _fitted(blocks: Sequence[str], last: str, limit: int) -> str:
    """Join blocks below ``limit`` characters: one that does not fit is left out, and counted."""
    kept, left_out, room = [], 0, limit - len(last) - _RESERVE
    for block in blocks:
        if len(block) + 1 <= room:
            kept.append(block)
            room -= len(block) + 1
        else:
            left_out += 1
    if left_out:
        kept.append(
            f"**Cut:** {left_out} more parts (reasons, tables, flips) do not fit into a comment; "
            "they are in the record, and in the page of `perfline report`.\n"
        )
    return "\n".join([*kept, last])


def _folded(title: str, body: str) -> str:
    """Return a block that opens at a click."""
    return f"\n<details><summary>{title}</summary>\n\n{body}\n\n</details>\n"


def _code(text: str) -> str:
    """A machine's name: nothing else is one, and nothing else can break out of the quote."""
    return f"`{re.sub(r'[^A-Za-z0-9._-]+', '?', text)[:80]}`"
