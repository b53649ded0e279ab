"""How does a session, or a comparison, become one HTML file that a person opens, mails and prints?

It begins with the headline, as the Markdown does: the verdict in words, the exit status that pytest
or ``perfline compare`` had, and the one next command. The file holds everything: style sheet,
charts and texts; it asks no network and runs no script (a content security policy in it forbids
both), so that it opens from disk, and folding works through ``<details>`` alone. jinja2 escapes all
that comes from a record; only the charts, which :mod:`perfline.report.svg` escapes itself, are
passed as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from perfline import __version__
from perfline.baselines.suggestions import next_of, outcome
from perfline.compare.record import Comparison
from perfline.errors import PerflineError
from perfline.gates.verdict import WORST_FIRST, Word, fails, skips, worst
from perfline.report.comparison_text import next_command
from perfline.report.page_case import CaseView, case_view
from perfline.report.page_comparison import comparison_views
from perfline.report.page_inputs import Inputs
from perfline.report.table import verdict_rows
from perfline.report.text import counts_line

if TYPE_CHECKING:
    import jinja2


MOST_BYTES = 2_000_000
# What is left out, step by step, until a page is below the limit: flips of one verdict that are
# listed, and whether every metric has its history.
_STEPS = ((150, True), (150, False), (30, False), (5, False), (0, False))

_SYMBOLS: dict[Word, str] = {
    "ok": "✓",
    "improved": "▲",
    "regressed": "✕",
    "unsure": "?",
    "missing": "–",
    "incomparable": "≠",
    "invalid": "!",
}


def html(inputs: Inputs, *, strict: bool = False, limit: int = MOST_BYTES) -> str:
    """Return the page, below ``limit`` bytes; PerflineError without jinja2.

    What has to be left out for the limit is said on the page.
    """
    template = _template()
    page = ""
    for most_flips, every_plot in _STEPS:
        page = _rendered(template, inputs, strict, most_flips, every_plot)
        if len(page.encode()) < limit:
            return page
    raise PerflineError(
        f"{inputs.path}: the page takes {len(page.encode()):,} bytes with nothing but the verdicts "
        f"(limit {limit:,}); report on fewer cases, or use --format markdown"
    )


def _rendered(
    template: jinja2.Template, inputs: Inputs, strict: bool, most_flips: int, every_plot: bool
) -> str:
    record = inputs.record
    cases: list[CaseView] = []
    if record is not None:
        cases = [
            case_view(inputs.cases[name], record, most_flips, every_plot) for name in inputs.cases
        ]
        cases.sort(key=lambda case: (not case.measured.errors, WORST_FIRST.index(case.word)))
    compared = [view for each in inputs.comparisons for view in comparison_views(each, most_flips)]
    return template.render(
        headline=headline(inputs, strict),
        inputs=inputs,
        record=record,
        cases=cases,
        comparisons=compared,
        strict=strict,
        version=__version__,
    )


def _pretty(text: str) -> str:
    return text.replace("+-", "±").replace("->", "→")


@cache
def _template() -> jinja2.Template:
    try:
        import jinja2
    except ImportError as error:
        raise PerflineError(
            "the page needs jinja2, which is not installed; get it with: "
            "pip install 'perfline[report]'"
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["pretty"] = _pretty
    environment.globals.update(symbols=_SYMBOLS, verdict_rows=verdict_rows)
    return environment.get_template("page.html.j2")


@dataclass(frozen=True)
class Headline:
    """The verdict of a whole report.

    Attributes:
        word: the gravest of all.
        waiting: it passed, yet not everything was compared.
        next: what comes next as it is told; ``hint`` and ``command`` are its two parts, what to
            say and what to paste; any may be empty.
    """

    word: Word
    failed: bool
    waiting: bool
    title: str
    exit_line: str
    counts: str
    next: str
    hint: str
    command: str


def headline(inputs: Inputs, strict: bool) -> Headline:
    """Return what is said of the session and of the comparisons."""
    comparisons = [each.comparison for each in inputs.comparisons]
    words: list[Word] = []
    failed, titles, exits, counts, commands = False, [], [], [], []
    unasked = 0
    if inputs.record is not None:
        found = outcome(inputs.record, strict)
        words.append(found.word)
        failed, unasked = found.failed, found.tasks
        titles.append(found.title)
        exits.append(found.exit_line)
        counts.append(counts_line(inputs.record))
        commands.append(next_of(inputs.record, inputs.flags, inputs.refused))
    if comparisons or inputs.record is None:
        word, told, status = _compared(comparisons, strict)
        words.append(word)
        failed = failed or status != 0
        titles.append(f"compared: {told}" if titles else told)
        exits.append(f"perfline compare exits {status}")
        found_words = [case.word for each in comparisons for case in each.cases.values()]
        counted = [f"{found_words.count(w)} {w}" for w in WORST_FIRST if w in found_words]
        counts.append(f"compared cases: {', '.join(counted) or 'none'}")
        commands += map(next_command, comparisons)
    grave = min(words, key=WORST_FIRST.index)
    told = next((command for command in commands if command), "")
    hint, command = _split(told)
    return Headline(
        word=grave,
        failed=failed,
        waiting=bool(unasked) or skips(grave, strict),
        title="; ".join(titles),
        exit_line="; ".join(exits),
        counts="; ".join(counts),
        next=told,
        hint=hint,
        command=command,
    )


def _compared(comparisons: Sequence[Comparison], strict: bool) -> tuple[Word, str, int]:
    """The gravest word, what is said of it, and the exit status that it had."""
    word = worst(v for each in comparisons for case in each.cases.values() for v in case.verdicts)
    if any(each.partial for each in comparisons):
        return word, f"stopped before its end, {word}", 130
    strict = strict or any("--strict" in each.command.split() for each in comparisons)
    return word, word, int(fails(word, strict))


def _split(line: str) -> tuple[str, str]:
    """Split ``to accept it: perfline ...`` into what to say and what to paste; either may be ''."""
    said, colon, command = line.partition(": ")
    if line.startswith(("perfline ", "pytest ")):
        return "", line
    if colon and command.startswith(("perfline ", "pytest ", "env -u ")):
        return said, command
    return line, ""
