"""What does ``perfline compare`` take, and what does it leave behind?

    perfline compare tiny --baseline-ref main              this work tree against main
    perfline compare tiny --baseline-python /venvs/old     two environments, such as two torches
    perfline compare tiny --candidate-install "--pre torch"   an upgrade, before it is made
    perfline compare tiny --set engine.mode=max-autotune   one setting, on B's side only
    perfline compare tiny --ranks 2                        two processes a side, under torchrun
    perfline compare tiny                                  A/A: how still is this machine?

A is the baseline, B the candidate; what is not said of a side is as it is here. Exit status: 0 B is
ok or improved (or unsure, without ``--strict``), 1 it is not, or it could not be told whether it
is, 2 wrong input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from perfline.cli.options import MAX_PAIRS, add_case_dir, add_command, add_data_dir

if TYPE_CHECKING:
    from perfline.cases.case import Case
    from perfline.compare.model import Launcher, Side, SideName, Workload
    from perfline.compare.record import Comparison
    from perfline.compare.run import Plan

LauncherOf = Callable[["Workload"], AbstractContextManager["Launcher"]]

_EXAMPLES = """example:
  perfline compare tiny --baseline-ref main
  perfline compare llama3-8b --dummy-weights --baseline-python /venvs/torch-2.12
  perfline compare tiny --candidate-install "transformers==5.24.0"
  perfline compare tiny --set engine.mode=max-autotune --markdown summary.md

A is the baseline, B the candidate. Each launch pair starts one process of each
(with --ranks several, by torchrun) and times them in turn; after 10, 14, 18,
24, 36 and 90 pairs it is decided, if it can be."""


def add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    purpose = "settle whether B is slower, faster, the same, or wrong against A"
    more = "Both run at the same time, in turn."
    parser = add_command(commands, "compare", run, purpose, _EXAMPLES, more)
    add = parser.add_argument
    add("cases", metavar="CASE", type=str.strip, nargs="+")
    add_sides(parser)
    add(
        "--workload",
        choices=("prefill", "decode", "all"),
        default="prefill",
        help="what is timed: prompts, tokens generated one by one behind some, or both in turn "
        "(default: prefill)",
    )
    add("--strict", action="store_true", help="unsure fails, too")
    add(
        "--explain",
        action="store_true",
        help="once it is decided, profile both sides in turn and say which operator of which layer "
        "makes the difference; nothing that is timed is profiled",
    )
    add(
        "--traces",
        metavar="DIR",
        type=Path,
        help="with --explain: keep a profiled round of each side there, for Chrome's trace viewer",
    )
    add_measuring(parser, "results/compare.json")


def add_measuring(parser: argparse.ArgumentParser, out: str) -> None:
    """Add what every comparison needs to know beside its sides; ``out`` is the default record."""
    add = parser.add_argument
    add(
        "--engine",
        metavar="NAME",
        default="inductor",
        help="eager, inductor, or one of your own as module:Class (default: inductor)",
    )
    add(
        "--margin",
        metavar="PERCENT",
        type=_margin,
        help="slowdown of B that must be ruled out for ok, in per cent (default: the case's "
        "compare.margin_fraction, 2 %% where it has none)",
    )
    add(
        "--max-pairs",
        metavar="N",
        type=_at_least(1, 500),
        default=MAX_PAIRS,
        help=f"default: {MAX_PAIRS}",
    )
    add(
        "--rounds",
        metavar="N",
        type=_at_least(3),
        help="rounds a side and launch (default: 6, from the fifth launch pair on as the measured "
        "spreads ask for)",
    )
    add(
        "--questions",
        metavar="N",
        type=_at_least(0),
        help="questions of each task that both sides answer, once (default: the case's "
        "compare.questions, 200 where it has none); 0 leaves out what is computed in fp32, too",
    )
    add(
        "--ranks",
        metavar="N",
        type=_at_least(1, 1024),
        default=1,
        help="processes a side, started by its own torchrun on this machine, a device each, and "
        "timed together (default: 1); a case with parallel.tensor needs a multiple of that",
    )
    add(
        "--alternate",
        action="store_true",
        help="whole launches in turn, A B B A: for what does not fit on the device twice",
    )
    add(
        "--timeout",
        metavar="S",
        type=_at_least(1),
        default=3600,
        help="seconds a process may take to load, compile and warm up (default: 3600)",
    )
    add_data_dir(parser)
    add_case_dir(parser)
    add("--dummy-weights", action="store_true", help="random weights; accuracy is not judged")
    add(
        "-o",
        "--out",
        metavar="FILE",
        type=Path,
        default=Path(out),
        help=f"the record, with every round (default: {out})",
    )
    add("--markdown", metavar="FILE", type=Path, help='such as "$GITHUB_STEP_SUMMARY"')


def add_sides(parser: argparse.ArgumentParser) -> None:
    """Add what A and B are."""
    add = parser.add_argument_group("what A and B are").add_argument
    python, ref = "interpreter or virtual environment", "git revision of this project"
    add("--baseline-python", metavar="PYTHON", help=f"A's {python} (default: this one)")
    add("--candidate-python", metavar="PYTHON", help=f"B's {python} (default: this one)")
    add("--baseline-ref", metavar="REF", help=f"A's {ref} (default: the work tree as it is)")
    add("--candidate-ref", metavar="REF", help=f"B's {ref} (default: the work tree as it is)")
    for prefix, side in (("baseline", "A"), ("candidate", "B")):
        add(
            f"--{prefix}-install",
            metavar="REQUEST",
            action="append",
            default=[],
            help=f"install this beside {side}'s packages, in an environment of its own: as behind "
            '`pip install`, such as "transformers==5.24.0", "--pre torch" or "-r new.txt"; may be '
            "given again",
        )
    for option, metavar, meaning in (
        ("env", "K=V", "an environment variable"),
        ("set", "KEY=VALUE", "a setting of the case, such as engine.mode=max-autotune"),
        ("import", "MODULE", "a module to import first, such as one that swaps a kernel"),
    ):
        for prefix, side in (("baseline-", "A"), ("", "B")):
            add(
                f"--{prefix}{option}",
                dest=f"{'baseline' if prefix else 'candidate'}_{option}",
                metavar=metavar,
                action="append",
                default=[],
                help=f"{meaning}, for {side} only; may be given again",
            )


def run(args: argparse.Namespace) -> int:
    """Compare every case; print, save and return the exit status."""
    from perfline import jsonfile
    from perfline.compare import record
    from perfline.compare.record import Comparison
    from perfline.distributed.group import lone_task
    from perfline.engines.environment import today
    from perfline.errors import PerflineError, RecordError
    from perfline.gates import verdict
    from perfline.report import comparison_text

    task = lone_task()
    if task is not None and task[0] > 0:
        raise PerflineError(task[1])
    sides, plans = _plans(args)
    check_outputs(args)
    if args.traces is not None:
        _make_traces_directory(args)
    comparison = Comparison(today(), True, command(args), {})
    # However this ends, nobody takes the files of an older comparison for those of this one.
    record.save(args.out, comparison)
    if args.markdown is not None:
        jsonfile.withdraw(args.markdown, RecordError)
    if any(side.install for side in sides):
        with stopped_politely():
            sides, plans = _installed(sides, plans)
    try:
        with stopped_politely(), launchers(sides, args.timeout) as launcher_of:
            for so_far in _compared(plans, launcher_of, comparison):
                comparison = so_far
                record.save(args.out, comparison)
    except KeyboardInterrupt:
        print("\nperfline: interrupted", file=sys.stderr)
    except RecordError:  # a full disk, say: what was measured is told at least
        print(comparison_text.terminal(comparison, f"{args.out} (not written)"))
        raise
    print(comparison_text.terminal(comparison, str(args.out)))
    if args.markdown is not None:
        write_markdown(args.markdown, comparison_text.markdown(comparison))
    if comparison.partial:
        return 130
    words = [found.word for found in comparison.cases.values()]
    return int(any(verdict.fails(word, args.strict) for word in words))


@contextmanager
def stopped_politely() -> Iterator[None]:
    """Let SIGTERM (a cancelled job) and SIGHUP (a closed terminal) end it as Ctrl-C does."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def launchers(sides: Sequence[Side], timeout_s: float) -> Iterator[LauncherOf]:
    """What starts real processes, for any workload; work trees are gone at the end."""
    from perfline.compare.launch import Limits, ProcessLauncher
    from perfline.compare.sides import places

    with places(sides, Path.cwd()) as found:
        yield lambda workload: ProcessLauncher(workload, found, Limits(open_s=timeout_s))


def command(
    args: argparse.Namespace, name: str = "compare", own: Mapping[str, object] | None = None
) -> str:
    """The command line that does the same again; values that look secret are left out.

    ``own`` are options that ``perfline NAME`` has beside ours, with their defaults.
    """
    from perfline.compare.record import shown_env
    from perfline.environments.installers import masked

    words = ["perfline", name, *args.cases]
    for option in ("baseline_python", "candidate_python", "baseline_ref", "candidate_ref"):
        if (value := getattr(args, option)) is not None:
            words += [f"--{option.replace('_', '-')}", value]
    for side in ("baseline", "candidate"):
        for text in getattr(args, f"{side}_install"):
            words += [f"--{side}-install", masked(text)]
    for prefix, side in (("baseline-", "baseline"), ("", "candidate")):
        env = dict(text.partition("=")[::2] for text in getattr(args, f"{side}_env"))
        given = {"env": [f"{key}={value}" for key, value in shown_env(env).items()]}
        given |= {option: getattr(args, f"{side}_{option}") for option in ("set", "import")}
        for option, values in given.items():
            words += [word for value in values for word in (f"--{prefix}{option}", value)]
    ours: dict[str, object] = {"workload": "prefill", "traces": None}
    ours |= {"explain": False, "strict": False}
    defaults: dict[str, object] = {"engine": "inductor", **(ours if own is None else own)}
    defaults |= {"margin": None, "max_pairs": MAX_PAIRS, "rounds": None, "questions": None}
    defaults |= {"ranks": 1, "timeout": 3600, "alternate": False, "dummy_weights": False}
    defaults |= {"data_dir": None, "out": Path(f"results/{name}.json")}
    for option, default in defaults.items():
        if (value := getattr(args, option)) == default:
            continue
        words.append(f"--{option.replace('_', '-')}")
        if value is not True:
            words.append(f"{value:g}" if isinstance(value, float) else str(value))
    words += [word for path in args.case_dir for word in ("--case-dir", str(path))]
    return shlex.join(words)


def workload(args: argparse.Namespace, case: Case) -> Workload:
    """What both sides run, as the options of :func:`add_measuring` say."""
    from perfline.compare.model import Workload

    return Workload(
        case=case.id,
        case_dirs=tuple(args.case_dir),
        data_dir=args.data_dir,
        weights="dummy" if args.dummy_weights else "real",
        engine=args.engine,
        questions=(case.compare.questions if args.questions is None else args.questions),
        ranks=args.ranks,
    )


def both_sides(args: argparse.Namespace) -> tuple[Side, Side]:
    """A and B, as the options of :func:`add_sides` say; nothing is installed yet."""
    from perfline.compare.sides import make_side

    def side(name: SideName) -> Side:
        whats = ("python", "ref", "env", "set", "import", "install")
        return make_side(name, *(getattr(args, f"{name}_{what}") for what in whats))

    return side("baseline"), side("candidate")


def margin(args: argparse.Namespace, case: Case) -> float:
    """The slowdown that must be ruled out, a fraction."""
    return case.compare.margin_fraction if args.margin is None else args.margin / 100


def _plans(args: argparse.Namespace) -> tuple[tuple[Side, Side], list[Plan]]:
    """What is asked for, checked as far as it can be before a process is started."""
    from dataclasses import replace

    from perfline.cases.case import load_cases
    from perfline.compare.run import Plan, begin

    cases = [
        case.with_engines([args.engine], "--engine")
        for case in load_cases(args.cases, args.case_dir)
    ]

    sides = both_sides(args)
    plans = [
        Plan(
            case=case,
            sides={side.name: side for side in sides},
            workload=replace(workload(args, case), kind=args.workload),
            margin_fraction=margin(args, case),
            max_pairs=args.max_pairs,
            rounds=args.rounds,
            alternate=args.alternate,
            fidelity=workload(args, case).questions > 0,
            explain=args.explain,
            traces=args.traces,
        )
        for case in cases
    ]
    for plan in plans:
        begin(plan)
        if not args.dummy_weights:
            check_data(plan.case, sides, args.data_dir)
    return sides, plans


def _installed(sides: tuple[Side, Side], plans: list[Plan]) -> tuple[tuple[Side, Side], list[Plan]]:
    """The same, in the environments that the sides ask for: the last thing before measuring."""
    from dataclasses import replace

    from perfline.compare.sides import with_installed

    sides, notes = with_installed(sides, say)
    by_name = {side.name: side for side in sides}
    return sides, [replace(plan, sides=by_name, notes=notes) for plan in plans]


def check_data(case: Case, sides: Sequence[Side], data_dir: Path | None) -> None:
    """MissingData, with the command that gets it; an archive is unpacked now, by one process."""
    from perfline.cases import data
    from perfline.cases.case import with_settings

    for side in sides:
        data.locate(with_settings(case, side.settings), data_dir)


def _compared(
    plans: Sequence[Plan], launcher_of: LauncherOf, comparison: Comparison
) -> Iterator[Comparison]:
    """Compare one case after the other; yield the record after every launch pair."""
    from dataclasses import replace

    from perfline.compare import run as compare
    from perfline.report.comparison_text import opening_line, progress_line

    for plan in plans:
        regressed = sum(f.verdicts[0].word == "regressed" for f in comparison.cases.values())
        plan = replace(plan, alpha=compare.share(plan.alpha, len(plans), regressed))
        name, pairs = plan.case.id, 0
        comparison = replace(comparison, cases={**comparison.cases, name: compare.begin(plan)})
        yield comparison
        say(opening_line(comparison.cases[name]))
        with launcher_of(plan.workload) as launcher:
            for found in compare.run(plan, launcher, say):
                comparison = replace(comparison, cases={**comparison.cases, name: found})
                yield comparison
                if len(found.pairs) > pairs:
                    pairs = len(found.pairs)
                    say(f"{name} " * (len(plans) > 1) + progress_line(found))
    settled = compare.settle(list(comparison.cases.values()))
    yield replace(comparison, partial=False, cases={found.case: found for found in settled})


def check_outputs(args: argparse.Namespace) -> None:
    """RecordError where a file cannot be written, or one would be two: told before the hour."""
    from perfline.compare import record
    from perfline.errors import RecordError

    if args.markdown is not None and args.markdown.resolve() == args.out.resolve():
        raise RecordError(f"{args.out}: is named by --out and by --markdown; name two files")
    for path in filter(None, (args.out, args.markdown)):
        record.check_writable(path)


def say(line: str) -> None:
    """A line for the user, beside what goes to standard output."""
    print(line, file=sys.stderr, flush=True)


def _make_traces_directory(args: argparse.Namespace) -> None:
    """Before an hour of measuring, not after."""
    from perfline.errors import CaseError, RecordError

    if not args.explain:
        raise CaseError("--traces: keeps what --explain profiles; add --explain")
    try:
        args.traces.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(f"{args.traces}: cannot be made: {error.strerror}") from error
    if not os.access(args.traces, os.W_OK | os.X_OK):
        raise RecordError(f"{args.traces}: cannot be written to; name another directory")


def write_markdown(path: Path, text: str) -> None:
    """Write the summary; to GitHub's own file, which other steps' tools share, append it."""
    from perfline.errors import RecordError

    shared = str(path) == os.environ.get("GITHUB_STEP_SUMMARY")
    try:
        with path.open("a" if shared else "w", encoding="utf-8") as file:
            file.write(text)
    except (OSError, UnicodeEncodeError) as error:
        raise RecordError(
            f"{path}: cannot be written: {getattr(error, 'strerror', error)}"
        ) from error


def _margin(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(f"{text!r} (expected per cent above 0, below 100)")
    return value


def _at_least(least: int, most: int = 10**6) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not (text.isdecimal() and len(text) < 9 and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(
                f"{text[:20]!r} (expected a whole number from {least} to {most})"
            )
        return int(text)

    return whole
