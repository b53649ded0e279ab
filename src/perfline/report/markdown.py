"""How does a session read as a step summary or a pull-request comment?

Verdict first, details folded. GitHub takes 65,536 characters; this keeps below that whatever the
record holds: text is made of blocks, gravest first, a block that does not fit is left out whole (so
that no table or fold is torn), and what was left out is said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from perfline.baselines.baseline import Published
from perfline.baselines.suggestions import Refused, gravest_first, next_of, outcome
from perfline.gates.verdict import WORST_FIRST
from perfline.measure.record import CaseRecord, Record
from perfline.report.table import findings, flip_counts, flip_lines, quoted, verdict_table
from perfline.report.text import case_table, counts_line, rank_lines, stragglers

MOST_CHARACTERS = 65_000
_FLIPS = 50  # of one verdict, in the folded list
_RESERVE = 400  # for the line that says what was left out, and the last line


def markdown(
    record: Record,
    published: Mapping[str, Published],
    flags: str,
    refused: Mapping[str, Refused],
    *,
    strict: bool = False,
    limit: int = MOST_CHARACTERS,
) -> str:
    """Return the summary of a session, under ``limit`` characters.

    See :func:`~perfline.baselines.suggestions.next_of` for ``refused``.
    """
    found = outcome(record, strict)
    command = next_of(record, flags, refused)
    first = heading(found.title, counts_line(record), found.exit_line, command)
    summaries, details = session_blocks(record, published, {})
    blocks = [*first, *summaries, *notice_blocks(record), *details]
    return fitted(blocks, last_line(record), limit)


def notice_blocks(record: Record) -> list[str]:
    """What other packages said, a block each: no failure, but coming trouble."""
    lines = [f"- {quoted(notice.line)}" for notice in record.notices]
    return ["### Notices\n", *lines, ""] if lines else []


def heading(title: str, counts: str, exit_line: str, command: str) -> list[str]:
    """The verdict and the next command, a block each."""
    line = " ".join(command.split())
    # A fence that the command's own text cannot close.
    fence = f"Next:\n\n~~~~\n{line}\n~~~~\n" if line else ""
    return [f"## perfline: {title}\n\n{counts}\n\n{exit_line}.\n", fence]


def session_blocks(
    record: Record, published: Mapping[str, Published], context: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """What a person must see of every case, and the details of it, gravest case first.

    ``context`` says for a case what differs from the context of its baseline.
    """
    cases = gravest_first(record)
    summaries = [block for case in cases for block in _summary(case, context.get(case.case, ""))]
    details = [block for case in cases for block in _details(case, published.get(case.case))]
    return summaries, details


def last_line(record: Record) -> str:
    """Where and when it was measured."""
    machine = _code(record.environment.machine)
    return f"Machine {machine} at {quoted(record.created, 40)}.\n"


def fitted(blocks: Sequence[str], last: str, limit: int = MOST_CHARACTERS) -> str:
    """Join blocks below ``limit`` characters: one that does not fit is left out, and counted."""
    kept, left_out, room = [], 0, limit - len(last) - _RESERVE
    for block in filter(None, blocks):
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


def _summary(case: CaseRecord, context: str) -> list[str]:
    """What a person must see of a case, one block a line: each may be left out by itself."""
    kind = f"{quoted(case.dtype, 20)}, {quoted(case.weights, 20)} weights"
    title = f"### {quoted(case.case, 60)} ({kind})\n"
    changed = [v for v in case.verdicts if v.word != "ok" and v.change]
    changed.sort(key=lambda verdict: WORST_FIRST.index(verdict.word))
    lines = [f"- **could not be measured**: {quoted(line)}" for line in case.errors]
    lines += [f"- **{quoted(v.headline)}**: {quoted(v.reason)}" for v in changed]
    lines += [
        f"- **{quoted(f'{found.metrics} {found.word}')}**: {quoted(found.reason)}"
        for found in findings(v for v in case.verdicts if not v.change)
    ]
    lines += [f"- {quoted(line)}" for line in rank_lines(case)]
    lines += [f"- **straggler**: {quoted(line)}" for line in stragglers(case)]
    if context:
        lines.append(f"- context: {quoted(context)}")
    return [title, *lines]


def _details(case: CaseRecord, published: Published | None) -> list[str]:
    name = quoted(case.case, 60)
    blocks = []
    if case.metrics:
        table = case_table(case, published, "github")
        blocks.append(folded(f"{name}: measured", table))
    if case.verdicts:
        table = verdict_table(case.verdicts, "github")
        blocks.append(folded(f"{name}: all {len(case.verdicts)} verdicts", table))
    for verdict in case.verdicts:
        if verdict.flips:
            title = f"{name}: {quoted(verdict.metric)}, flipped questions: {flip_counts([verdict])}"
            lines = flip_lines([verdict], "stored", _FLIPS)
            blocks.append(folded(title, "\n".join(f"- {quoted(line)}" for line in lines)))
    return blocks


def folded(title: str, body: str) -> str:
    """Return a block that opens at a click."""
    return f"\n<details><summary>{title}</summary>\n\n{body}\n\n</details>\n"


def _code(text: str) -> str:
    """A machine's name: nothing else is one, and nothing else can break out of the quote."""
    return f"`{re.sub(r'[^A-Za-z0-9._-]+', '?', text)[:80]}`"
