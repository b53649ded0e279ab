"""What does a report say first? The verdict in words, the exit status, and the one next command.

Of a session what pytest's exit status says, of comparisons what that of ``perfline compare`` says;
the page and the Markdown both begin with this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perfline.baselines.suggestions import next_of, outcome
from perfline.compare.record import Comparison
from perfline.gates.verdict import WORST_FIRST, Word, fails, skips, worst
from perfline.report import comparison_text as compare_text
from perfline.report.page_inputs import Inputs
from perfline.report.text import counts_line


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
    if inputs.record is not None:
        found = outcome(inputs.record, strict)
        words.append(found.word)
        failed = found.failed
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
        commands += map(compare_text.next_command, comparisons)
    grave = min(words, key=WORST_FIRST.index)
    told = next((command for command in commands if command), "")
    hint, command = _split(told)
    return Headline(
        word=grave,
        failed=failed,
        waiting=skips(grave, strict),
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
    if colon and command.startswith(("perfline ", "pytest ")):
        return said, command
    return line, ""
