"""What does ``perfline report`` read, and where does it write?"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from perfline.cli.options import add_baselines, add_case_dir, add_command, add_data_dir
from perfline.errors import PerflineError

_PAGE = Path("report.html")


def add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``report``."""
    parser = add_command(
        commands,
        "report",
        run,
        "show a session to people: one HTML page, or Markdown for a pull request",
        "example:\n"
        "  perfline report results/run.json -o report.html\n"
        "  perfline report results/run.json records/*.json -o report.html\n"
        '  perfline report --format markdown results/run.json >> "$GITHUB_STEP_SUMMARY"',
        "The page needs no network. The first record is what it is about, further ones are its "
        "history; records of `perfline compare` get a section each.",
    )
    parser.add_argument("records", metavar="RECORD", type=Path, nargs="+")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help=f"where to write (default: {_PAGE}; Markdown goes to the terminal)",
    )
    parser.add_argument("--format", choices=("html", "markdown"), default="html")
    add_baselines(parser)
    add_data_dir(parser, "holds the questions, to show flipped ones")
    add_case_dir(parser)
    parser.add_argument(
        "--strict",
        action="store_true",
        help="what was not compared counts as failed, as under pytest's --strict-verdicts",
    )


def run(args: argparse.Namespace) -> int:
    """Write the report; 0, whatever it says: the verdict's exit status is pytest's."""
    try:
        return _report(args)
    except UnicodeEncodeError as failure:  # a file's name that is no UTF-8, a terminal of ASCII
        sign = repr(failure.object[failure.start])
        raise PerflineError(
            f"the report would hold {sign}, which {failure.encoding} has not: give files and "
            "directories names in UTF-8, and write to a file (-o)"
        ) from failure


def _report(args: argparse.Namespace) -> int:
    from perfline import jsonfile
    from perfline.errors import printable
    from perfline.report import markdown, page, page_inputs

    target: Path | None = args.output
    if args.format == "html":
        target = target or _PAGE
    for path in args.records:
        if target is not None and _same(path, target):
            raise PerflineError(f"{target}: is one of the records; write the report elsewhere")
    if target is not None:
        jsonfile.withdraw(target, PerflineError)
    places = page_inputs.Places(args.baselines, tuple(args.case_dir), args.data_dir)
    inputs = page_inputs.gather(args.records, places)
    for line in inputs.left_out:
        shown = printable(f"perfline: left out of the history: {line}")
        print(shown, file=sys.stderr)
    write = page.html if args.format == "html" else markdown.markdown
    text = write(inputs, strict=args.strict)
    if target is None:
        sys.stdout.write(text)
        return 0
    jsonfile.write_text(target, text, PerflineError)
    print(printable(f"written: {shlex.quote(os.fspath(target))}"))
    return 0


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)
