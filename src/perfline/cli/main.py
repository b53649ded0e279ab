"""Which commands does ``perfline`` have? Parsing and dispatch; the work is done elsewhere.

    perfline init ...            what does a repository need, to be measured?
    perfline doctor              is this machine ready to measure?
    perfline prompt ...          what exactly is the model asked?
    perfline baselines ...       what is accepted, and accept, compare, check or remove it
    perfline compare ...         is B slower, faster, the same, or wrong against A?
    perfline bisect ...          which commit, version or day made it slower, bigger or wrong?
    perfline isolate ...         which of B's packages, variables or code made it worse than A?
    perfline report ...          what does a person look at?
    perfline export ...          what do other services read of a record?
    perfline history ...         what did past sessions measure, and when did it change?

Exit status: 0 done, 1 ``check``, ``compare``, ``bisect``, ``isolate`` or ``doctor`` found something
wrong, 2 refused or wrong input, 130 interrupted, 141 the reader of its output left before there was
a status. Measuring is pytest's: ``pytest -m "perf or accuracy"``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from perfline import __version__
from perfline.cli.bisect import add_bisect
from perfline.cli.compare import add_compare
from perfline.cli.export import add_export
from perfline.cli.history import add_history
from perfline.cli.init import add_init
from perfline.cli.isolate import add_isolate
from perfline.cli.options import Run, add_baselines, add_case_dir, add_command, add_data_dir
from perfline.cli.report import add_report
from perfline.errors import PerflineError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; a user's mistake is one line on stderr."""
    args = _parser().parse_args(argv)
    run: Run = args.run_command
    status = 141  # of a reader that left before the end (SIGPIPE), as in any pipe: no pass
    try:
        if "data_dir" in args:
            from perfline.cases import data

            args.data_dir = data.directory(args.data_dir)
        if "case_dir" in args:
            from perfline.cases import case

            args.own = [] if args.case_dir else list(case.own_cases(Path()))
            args.case_dir = [Path(case.OWN)] if args.own else args.case_dir
        status = run(args)
        sys.stdout.flush()
        return status
    except PerflineError as error:
        for line in str(error).splitlines():
            print(f"perfline: error: {line}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `perfline ... | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return status
    except OSError as error:  # a path too long, not permitted, on a full disk
        what = f"{error.filename}: " if error.filename is not None else ""
        print(f"perfline: error: {PerflineError(what)}{error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("perfline: interrupted", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """As argparse does, with what was typed as it can be shown."""
        super().error(str(PerflineError(message)))


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="perfline",
        description="Hold the line on LLM inference. pytest measures; this command looks after\n"
        "the baselines.",
        epilog="example:\n  perfline doctor --data-dir /data/models",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"perfline {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_init(commands)
    _add_doctor(commands)
    _add_prompt(commands)
    add_compare(commands)
    add_bisect(commands)
    add_isolate(commands)
    add_report(commands)
    add_export(commands)
    add_history(commands)
    baselines = commands.add_parser(
        "baselines",
        help="show, compare, accept, check or remove baselines",
        description="Look after the baselines: the only writer of them, and it never measures.",
        epilog="example:\n  perfline baselines check",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).add_subparsers(metavar="COMMAND", required=True)
    _add_update(baselines)
    _add_diff(baselines)
    _add_show(baselines)
    _add_check(baselines)
    _add_remove(baselines)
    return parser


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "doctor",
        _doctor,
        "say whether this machine is ready, and what to type where it is not",
        "example:\n  perfline doctor --data-dir /data/models --cases llama3-8b,deepseek-7b",
    )
    add_data_dir(parser)
    parser.add_argument(
        "--cases",
        metavar="A,B",
        help="only these cases (default: the repository's own in cases/, else all)",
    )
    add_case_dir(parser)
    add_baselines(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_prompt(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "prompt",
        _prompt,
        "print the exact prompt of one question; its shots, tokens and label go to stderr",
        "example:\n  perfline prompt llama3-8b mmlu/anatomy/0 --data-dir /data > prompt.txt",
    )
    parser.add_argument("case", metavar="CASE", type=str.strip)
    parser.add_argument(
        "asked",
        metavar="TASK/SUBJECT/INDEX",
        help="such as mmlu/anatomy/0; or TASK/ID, by the row's own id",
    )
    parser.add_argument(
        "index",
        metavar="INDEX",
        type=int,
        nargs="?",
        help="the question's number, from 0, where only its subject is named before it",
    )
    add_data_dir(parser)
    parser.add_argument(
        "--mmlu", metavar="DIR", type=Path, help="questions from here: holds dev/ and test/"
    )
    add_case_dir(parser)
    parser.add_argument("--ids", action="store_true", help="print the token ids, not the text")


def _add_update(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "update",
        _update,
        "accept what a session has measured as the baseline",
        'example:\n  perfline baselines update tiny --run results/run.json --reason "torch 2.13"',
    )
    parser.add_argument("cases", metavar="CASE", type=str.strip, nargs="*")
    parser.add_argument("--all", action="store_true", help="every case of the record")
    _add_run(parser)
    parser.add_argument("--reason", metavar="TEXT", required=True, help="why it is the new normal")
    parser.add_argument(
        "--add", action="store_true", help="keep the stored sessions and add this one: shows spread"
    )
    parser.add_argument(
        "--accept-regression",
        action="store_true",
        help="accept what regressed or is unsure; replace a baseline that is broken",
    )
    add_case_dir(parser)
    add_baselines(parser)


def _add_diff(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "diff",
        _diff,
        "show what an update would change; writes nothing",
        "example:\n  perfline baselines diff tiny --run results/run.json",
    )
    parser.add_argument("case", metavar="CASE", type=str.strip)
    _add_run(parser)
    add_case_dir(parser)
    add_baselines(parser)


def _add_show(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "show",
        _show,
        "show what is accepted",
        "example:\n  perfline baselines show tiny",
    )
    parser.add_argument(
        "cases", metavar="CASE", type=str.strip, nargs="*", help="only these (default: all)"
    )
    add_baselines(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "check",
        _check,
        "find broken, stale, unused and missing baselines from the files alone",
        "example:\n  perfline baselines check --strict",
    )
    add_case_dir(parser)
    add_baselines(parser)
    parser.add_argument("--strict", action="store_true", help="a missing baseline is wrong, too")


def _add_remove(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "remove",
        _remove,
        "delete one baseline",
        "example:\n  perfline baselines remove old-case --machine nvidia-a100-sxm4-40gb",
    )
    parser.add_argument("case", metavar="CASE", type=str.strip)
    parser.add_argument("--machine", metavar="MACHINE", required=True, help="its directory's name")
    parser.add_argument("--dummy", action="store_true", help="the one of --dummy-weights")
    add_baselines(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run",
        metavar="FILE",
        type=Path,
        default=Path("results/run.json"),
        help="a session's record (default: results/run.json)",
    )


def _doctor(args: argparse.Namespace) -> int:
    from perfline.cases.case import load_cases
    from perfline.cli.doctor import doctor

    named = None if args.cases is None else [name.strip() for name in args.cases.split(",")]
    names = named or args.own or None
    cases = load_cases(names, args.case_dir)
    return doctor(cases, args.data_dir, args.baselines, args.json)


def _prompt(args: argparse.Namespace) -> int:
    from perfline.cases.case import load_cases
    from perfline.cli.prompt import prompt

    (case,) = load_cases([args.case], args.case_dir)
    return prompt(case, args.asked, args.index, args.data_dir, args.mmlu, args.ids)


def _update(args: argparse.Namespace) -> int:
    from perfline.baselines.proposal import Terms
    from perfline.cli.baselines import update
    from perfline.errors import BaselineError, printable

    if bool(args.cases) == args.all:
        raise BaselineError("name the cases to update, or --all for every case of the record")
    # One printable line, since it is read in tables: no newline, control character, lone surrogate.
    reason = " ".join(printable(args.reason, " ").split())
    terms = Terms(reason, args.add, args.accept_regression)
    return update(args.baselines, args.run, args.cases, args.case_dir, terms)


def _diff(args: argparse.Namespace) -> int:
    from perfline.cli.baselines import diff

    return diff(args.baselines, args.run, args.case, args.case_dir)


def _show(args: argparse.Namespace) -> int:
    from perfline.cli.baselines import show

    return show(args.baselines, args.cases, args.json)


def _check(args: argparse.Namespace) -> int:
    from perfline.cli.baselines import check

    return check(args.baselines, args.case_dir, args.strict, args.own)


def _remove(args: argparse.Namespace) -> int:
    from perfline.cli.baselines import remove

    return remove(args.baselines, args.case, args.machine, args.dummy)
