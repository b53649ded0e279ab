"""How does a person read a search: what did it, how sure that is, and what each comparison cost?

Nothing is judged here: words and numbers come from the answer and from the record.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from perfline.report.table import WIDTH, fitted, grid, quoted
from perfline.report.text import paragraph
from perfline.search import isolate
from perfline.search.bisect import Answer
from perfline.search.probe import CONFIDENCE, Finding, noisy, percent
from perfline.search.record import Probe, Search

_HEADERS = ["probe", "against", "found", "change", "98 % interval", "pairs", "minutes"]
_MOST_NAMED = 12
_MOST_SKIPPED = 4


class Named(Protocol):
    """What is known of a candidate beside its name."""

    @property
    def subject(self) -> str:
        """A commit's first line; empty for what has none."""

    @property
    def date(self) -> str:
        """A commit's day; empty for what has none."""


@dataclass(frozen=True)
class Shown:
    """How to speak of candidates: their ``kind``, such as ``commit``, and what is known of each."""

    kind: str
    candidates: Mapping[str, Named]
    improved: bool = False

    @property
    def word(self) -> str:
        """``bad``, or ``better`` where that is what was looked for."""
        return "better" if self.improved else "bad"

    def about(self, name: str) -> str:
        """A commit's day and subject; empty for a version or a day."""
        found = self.candidates[name]
        return " ".join(filter(None, (found.date, found.subject)))


def opening_line(search: Search, kind: str, names: Sequence[str]) -> str:
    """What will be searched, before the first comparison."""
    steps = len(names) - 1
    at_most = math.ceil(math.log2(max(1, steps)))
    line = (
        f"{search.case} {search.engine} {search.metric}: {steps} {kind}{'s' * (steps > 1)} behind "
        f"{names[0]}, some {at_most + 2} comparisons"
    )
    return textwrap.shorten(line, WIDTH, placeholder=" ...")


def resumed_line(search: Search) -> str:
    """What is not measured again."""
    return f"goes on behind {_comparisons(search)} measured before"


def _comparisons(search: Search) -> str:
    count = len(search.probes)
    return f"{count} comparison{'s' * (count != 1)}"


def probe_line(probe: Probe) -> str:
    """What one comparison found, in 80 columns."""
    found = probe.finding
    detail = " ".join(filter(None, (found.change, _interval(found)))) or found.reason
    line = f"{probe.b} against {probe.a}: {found.word}"
    line = f"{line}, {detail}" if detail else line
    return textwrap.shorten(line, WIDTH, placeholder=" ...")


def sentence(answer: Answer, shown: Shown) -> str:
    """The answer, in one line."""
    worse = "better" if shown.improved else "worse"
    if answer.outcome == "same":
        return f"the bad end is no {worse} than the good one: there is nothing to find"
    if answer.outcome == "better" and shown.improved:
        return "the bad end is worse than the good one: look without --improved"
    if answer.outcome == "better":
        return "the bad end is better than the good one: --improved finds where it became so"
    if answer.outcome == "unsure":
        return f"whether the bad end is {worse} could not be told: nothing was looked for"
    last = answer.named[-1]
    several = len(answer.named) > 1
    if answer.outcome == "range":
        return f"it lies between {answer.parent} and {last}: {answer.reason}"
    if several:
        return (
            f"one of {len(answer.named)} {shown.kind}s did it, up to {last}: those before it could "
            "not be measured"
        )
    return f"first {shown.word} {shown.kind}: {last}"


def terminal(search: Search, answer: Answer, shown: Shown, path: str, follow: str) -> str:
    """All of it for the terminal, in 80 columns; ``follow`` is the next command."""
    lines = paragraph(f"{_title(search)}: {sentence(answer, shown)}", "", "  ")
    for text in _facts(search, answer, shown):
        lines += paragraph(text)
    lines += ["", textwrap.indent(_table(search), "  "), "", f"record: {path}"]
    return "\n".join([*lines, f"next: {follow}"] if follow else lines)


def markdown(search: Search, answer: Answer, shown: Shown, follow: str) -> str:
    """All of it for GitHub's step summary."""
    lines = [f"## perfline bisect: {quoted(f'{_title(search)}: {sentence(answer, shown)}')}", ""]
    lines += [f"- {quoted(text)}" for text in _facts(search, answer, shown)]
    lines += ["", grid(_HEADERS, _rows(search), "github"), ""]
    if follow:
        lines += ["Next:", "", "~~~~", follow, "~~~~"]
    return "\n".join(lines) + "\n"


def interrupted(search: Search, path: str) -> str:
    """What a search that was stopped had measured."""
    lines = [f"{_title(search)}: not decided, after {_comparisons(search)}", ""]
    if search.probes:
        table = fitted(*_shares(search)) if search.groups else _table(search)
        lines += [textwrap.indent(table, "  "), ""]
    lines.append("interrupted: the record is partial; the same command goes on behind it")
    return "\n".join([*lines, f"record: {path}", f"next: {search.command}"])


_COLUMNS = ["moved to B's", "found", "change", "98 % interval", "B without it", "pairs", "minutes"]
_MOST_HELD = 6


def groups_lines(search: Search) -> list[str]:
    """What will be moved, a line a group, before the first comparison."""
    count = len(search.groups)
    title = f"{_title(search)}: A and B differ in {count} group{'s' * (count != 1)}"
    lines = (f"{name}: {_held(what)}" for name, what in search.groups.items())
    return [
        title,
        *(f"  {textwrap.shorten(line, WIDTH - 2, placeholder=' ...')}" for line in lines),
    ]


def isolated(search: Search, path: str, follow: str) -> str:
    """What ``perfline isolate`` found, for the terminal, in 80 columns."""
    lines = paragraph(f"{_title(search)}: {search.answer}", "", "  ")
    for text in _isolation(search):
        lines += paragraph(text)
    columns, rows = _shares(search)
    lines += ["", textwrap.indent(fitted(columns, rows), "  "), "", f"record: {path}"]
    return "\n".join([*lines, f"next: {follow}"] if follow else lines)


def isolated_markdown(search: Search, follow: str) -> str:
    """All of it for GitHub's step summary."""
    lines = [f"## perfline isolate: {quoted(f'{_title(search)}: {search.answer}')}", ""]
    lines += [f"- {quoted(text)}" for text in _isolation(search)]
    lines += ["", grid(*_shares(search), "github"), ""]
    if follow:
        lines += ["Next:", "", "~~~~", follow, "~~~~"]
    return "\n".join(lines) + "\n"


def _isolation(search: Search) -> list[str]:
    """What stands beside the answer: groups, what runs in a forward, notes, the cost."""
    facts = [f"{name}: {_held(what)}" for name, what in search.groups.items()]
    for probe in search.probes:
        if probe.role in (isolate.RUNS, isolate.RUNS_OF_ENDS) and probe.finding.word == "bad":
            facts.append(f"a forward of {probe.b}: {probe.finding.reason}")
    facts += search.notes
    facts.append(f"{_comparisons(search)}, {_minutes(search)} in all")
    if noisy(search.metric) and search.named and isolate.compared(search):
        facts.append("an answer names what is innocent in at most 1 % of searches (docs/gate.md)")
    return facts


def _held(what: Sequence[str]) -> str:
    more = len(what) - _MOST_HELD
    return ", ".join(what[:_MOST_HELD]) + (f" and {more} more" if more > 0 else "")


def _shares(search: Search) -> tuple[list[str], list[list[str]]]:
    """A row for all of B, and for each group: alone, and what is left of the change without it.

    With the headers; without columns that are empty.
    """
    by = {(probe.role, probe.b): probe.finding for probe in search.probes}
    of_b, alone = isolate.TOKENS_OF_ENDS, isolate.TOKENS
    if isolate.compared(search):
        of_b, alone = isolate.ENDS, isolate.ALONE
    rows = []
    for name, role in (("B", of_b), *((group, alone) for group in search.groups)):
        found = by.get((role, name))
        if found is None:
            continue
        left = by.get((isolate.WITHOUT, f"B without {name}"))
        rows.append(
            [
                "all" if name == "B" and role == of_b else name,
                found.word,
                found.change,
                _interval(found).strip("[]"),
                "" if left is None else left.change or left.word,
                str(found.pairs) if found.pairs else "",
                f"{found.minutes:.1f}",
            ]
        )
    kept = [number for number in range(len(_COLUMNS)) if any(row[number] for row in rows)]
    return [_COLUMNS[number] for number in kept], [[row[n] for n in kept] for row in rows]


def _title(search: Search) -> str:
    return f"{search.case} {search.engine} {search.metric}"


def _facts(search: Search, answer: Answer, shown: Shown) -> list[str]:
    facts = []
    if answer.named:
        facts += [f"{name}  {shown.about(name)}".rstrip() for name in answer.named[-_MOST_NAMED:]]
    ends = _change(answer.ends)
    if (step := answer.step) is not None and answer.outcome == "step":
        facts.append(
            f"{answer.named[-1]} against its parent {answer.parent}: {_change(step)}, of {ends} "
            "from the good end to the bad one"
        )
    else:
        facts.append(f"the bad end against the good one: {ends}")
    if answer.several:
        facts.append("it is surely less than the whole: there is more than one step in the range")
    differences = [
        compared.difference
        for probe in search.probes[-1:]
        for compared in probe.finding.comparisons.values()
    ]
    if answer.outcome == "step" and shown.kind != "commit" and not shown.improved:
        facts += [f"what differs between them: {text}" for text in differences]
    skipped = [probe for probe in search.probes if probe.finding.word == "skipped"]
    facts += [f"skipped {probe.b}: {probe.finding.reason}" for probe in skipped[:_MOST_SKIPPED]]
    facts.append(f"{_comparisons(search)}, {_minutes(search)} in all")
    if noisy(search.metric) and answer.outcome == "step":
        facts.append("an answer names what is innocent in at most 1 % of searches (docs/gate.md)")
    return facts


def _minutes(search: Search) -> str:
    count = round(search.minutes)
    return f"{count} minute{'' if count == 1 else 's'}"


def _change(found: Finding) -> str:
    return " ".join(filter(None, (found.change, _interval(found)))) or found.reason or found.word


def _interval(found: Finding) -> str:
    """``[+3.9 %, +6.4 %]``; empty without one, or where it is a point."""
    if found.low is None or found.high is None or found.low == found.high:
        return ""
    return f"[{percent(found.low)}, {percent(found.high)}]"


def _table(search: Search) -> str:
    return fitted(_HEADERS, _rows(search), fold=0)


def _rows(search: Search) -> list[list[str]]:
    rows = []
    for probe in search.probes:
        found = probe.finding
        rows.append(
            [
                probe.b,
                probe.a,
                found.word,
                found.change,
                _interval(found).strip("[]"),
                str(found.pairs) if found.pairs else "",
                f"{found.minutes:.1f}",
            ]
        )
    return rows


assert CONFIDENCE == 0.98  # as the column says
