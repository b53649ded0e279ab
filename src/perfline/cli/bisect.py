"""What does ``perfline bisect`` take, and what does it leave behind?

    perfline bisect tiny --good v1.4 --bad HEAD                    which commit of this project
    perfline bisect tiny --good v1.4 --bad main --repo ../kernels  which commit of another one
    perfline bisect tiny --package transformers --good 5.17.0 --bad 5.24.0
    perfline bisect tiny --good 2026-09-01 --bad 2026-11-01        which day of the package index

Exit status: 0 the bad end is no worse than the good one, 1 it is worse (what did it is named, or
what it lies among), or that could not be told, 2 wrong input, 130 interrupted. The record is
partial until the search has ended by itself; the same command goes on from a partial one.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from perfline.cli.compare import (
    LauncherOf,
    add_measuring,
    check_data,
    check_outputs,
    launchers,
    margin,
    say,
    stopped_politely,
    workload,
    write_markdown,
)
from perfline.cli.options import MAX_PAIRS, add_command

if TYPE_CHECKING:
    from perfline.cases.case import Case
    from perfline.compare.model import Side, SideName
    from perfline.compare.record import CaseComparison
    from perfline.search.bisect import Answer
    from perfline.search.candidates import Candidate, SideOf
    from perfline.search.record import Probe, Search

_EXAMPLES = """example:
  perfline bisect tiny --good v1.4 --bad HEAD
  perfline bisect tiny --good v1.4 --bad HEAD --metric graph_breaks
  perfline bisect tiny --package transformers --good 5.17.0 --bad 5.24.0
  perfline bisect tiny --good main~20 --bad main --repo ../kernels --install .

Both ends are compared first. Then the range is halved: each candidate is
compared with the good end, at the same time, and the step that is found once
more with its parent. A kill costs the comparison that was running: give the
same command again, and it goes on."""


def add_bisect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    purpose = "find the commit, version or day that made it slower, bigger or wrong"
    more = "Every candidate is compared with the good end, by perfline compare's rule."
    parser = add_command(commands, "bisect", run, purpose, _EXAMPLES, more)
    add = parser.add_argument
    add("case", metavar="CASE", type=str.strip)
    ends = "a git revision; with --package a version; else also a day, as 2026-09-01"
    add("--good", metavar="REF", required=True, help=ends)
    add("--bad", metavar="REF", required=True, help="the same; later than --good")
    add("--package", metavar="NAME", help="which of this package's released versions did it")
    add("--pre", action="store_true", help="with --package: pre-releases, too")
    add("--repo", metavar="DIR", type=Path, help="which commit of this repository did it")
    add(
        "--install",
        metavar="REQUEST",
        default=".",
        help="with --repo: what of each commit's tree to install, as behind `pip install` "
        "(default: .)",
    )
    add_metric(parser, "commit")
    add("--improved", action="store_true", help="find where it became better, not worse")
    both = parser.add_argument_group("what all candidates share").add_argument
    both("--python", metavar="PYTHON", help="interpreter or virtual environment (default: this)")
    for option, metavar, meaning in (
        ("env", "K=V", "an environment variable"),
        ("set", "KEY=VALUE", "a setting of the case, such as engine.mode=max-autotune"),
        ("import", "MODULE", "a module to import first"),
    ):
        again = f"{meaning}; may be given again"
        both(f"--{option}", metavar=metavar, action="append", default=[], help=again)
    add_measuring(parser, "results/bisect.json")


def add_metric(parser: argparse.ArgumentParser, probed: str) -> None:
    """Add which metric is searched by; ``probed`` is what gets a launch of its own."""
    parser.add_argument(
        "--metric",
        metavar="NAME",
        default="core_time",
        help="core_time (default), decode_time, ttft; without noise, and so one launch a "
        f"{probed}: mem, graphs, graph_breaks, recompiles, acc, acc_TASK, flips, decode_flips, "
        "letter_logprobs, fidelity, drift, prompt_tokens, fingerprint",
    )


def run(args: argparse.Namespace) -> int:
    """Search; print, save and return the exit status."""
    from perfline import jsonfile
    from perfline.cases.case import load_cases, with_settings
    from perfline.errors import RecordError
    from perfline.report import search_text
    from perfline.search import bisect, candidates, probe, record

    (case,) = load_cases([args.case], args.case_dir)
    case = case.with_engines([args.engine], "--engine")
    shared = _shared(args)
    tasks = with_settings(case, shared("baseline").settings).task_names
    metric = probe.sought(args.metric, tasks)
    check_outputs(args)
    candidates.check_needs(shared("baseline").python)
    if not args.dummy_weights:
        check_data(case, (shared("baseline"),), args.data_dir)
    kind, found = _candidates(args, shared)
    every = bisect.budget(len(found), margin(args, case), args.max_pairs)
    fresh = _fresh(args, case, found, shared("baseline"))
    search = record.resumed(args.out, fresh)
    record.save(args.out, search)
    if args.markdown is not None:
        jsonfile.withdraw(args.markdown, RecordError)
    say(search_text.opening_line(search, kind, [each.name for each in found]))
    if search.probes:
        say(f"{args.out}: {search_text.resumed_line(search)}")

    def sides(both: tuple[Side, Side]) -> AbstractContextManager[LauncherOf]:
        return launchers(both, args.timeout)

    live = probe.Live(
        case=case,
        workload=workload(args, case),
        metric=metric,
        launchers=sides,
        say=say,
        progress=Progress(),
        rounds=args.rounds,
        alternate=args.alternate,
        better=args.improved,
    )
    journal = record.Journal(args.out, search, live, told)
    shown = search_text.Shown(kind, {each.name: each for each in found}, args.improved)
    answer: Answer | None = None
    try:
        with stopped_politely():
            environments = [each.environment for each in found]
            answer = bisect.bisect(environments, journal.probe, every)
            journal.end(answer.named, search_text.sentence(answer, shown))
    except KeyboardInterrupt:
        print("\nperfline: interrupted", file=sys.stderr)
    if answer is None:
        print(search_text.interrupted(journal.search, str(args.out)))
        return 130
    follow = _next(args, answer, kind)
    print(search_text.terminal(journal.search, answer, shown, str(args.out), follow))
    if args.markdown is not None:
        write_markdown(args.markdown, search_text.markdown(journal.search, answer, shown, follow))
    return int(answer.outcome not in ("same", "better"))


def _shared(args: argparse.Namespace) -> SideOf:
    """A side as all candidates are, before what parts them."""
    from perfline.compare.sides import make_side

    def side(of: SideName) -> Side:
        return make_side(of, args.python, None, args.env, args.set, vars(args)["import"])

    return side


def _candidates(args: argparse.Namespace, shared: SideOf) -> tuple[str, list[Candidate]]:
    """What there is to search, and of which kind; SearchError where that cannot be searched."""
    from dataclasses import replace

    from perfline.compare.sides import git
    from perfline.environments.installers import find_installer
    from perfline.errors import SearchError
    from perfline.search import candidates

    here, python = Path.cwd(), shared("baseline").python
    if args.package is not None and args.repo is not None:
        raise SearchError("--package and --repo: name one of them")
    if args.pre and args.package is None:
        raise SearchError("--pre: is of --package, and none is named")
    if args.repo is None and args.install != ".":
        raise SearchError("--install: is of --repo, and none is named")
    ends = (args.good, args.bad)
    if args.package is not None:
        candidates.check_clean(here)
        find_installer(python)
        found = candidates.versions(python, args.package, ends, args.pre, shared, say)
        return "version", found
    if args.repo is None and all(map(candidates.is_day, ends)):
        candidates.check_clean(here)
        return "day", candidates.days(python, ends, shared, say)
    if args.repo is not None:
        if not args.repo.is_dir():
            raise SearchError(f"--repo {args.repo}: is no directory; name a git work tree")
        candidates.check_clean(here)
        find_installer(python)
        repo = args.repo.resolve()

        def built(commit: str) -> SideOf:
            return candidates.from_tree(repo, commit, args.install, shared, say)

        return "commit", candidates.commits(repo, *ends, built)

    def checked_out(commit: str) -> SideOf:
        return lambda of: replace(shared(of), ref=commit)

    found = candidates.commits(here, *ends, checked_out)
    if git(here, "status", "--porcelain", "--untracked-files=no").stdout:
        say("notice: changes that are not committed are in no commit, and are not measured")
    return "commit", found


def _fresh(args: argparse.Namespace, case: Case, found: list[Candidate], side: Side) -> Search:
    """The record of a search that has measured nothing yet."""
    import platform

    from perfline import jsonfile
    from perfline.engines.environment import today
    from perfline.environments.making import installed
    from perfline.search.record import Search

    request = {
        "candidates": [each.name for each in found],
        "options": {
            name: str(value)
            for name, value in vars(args).items()
            if name not in ("run_command", "out", "markdown", "own", "timeout", "good", "bad")
        },
        "case": case.digest("dummy" if args.dummy_weights else "real"),
        "machine": platform.node(),
        "python": str(side.python),
        "packages": installed(side.python),
    }
    return Search(
        created=today(),
        partial=True,
        command=command(args),
        plan="bisect",
        request=jsonfile.digest(request),
        case=case.id,
        engine=args.engine,
        metric=args.metric,
    )


def command(args: argparse.Namespace) -> str:
    """The command line that goes on, or does the same again; without values that look secret."""
    from perfline.compare.record import shown_env
    from perfline.environments.installers import masked

    words = ["perfline", "bisect", args.case, "--good", args.good, "--bad", args.bad]
    env = dict(text.partition("=")[::2] for text in args.env)
    words += [word for k, v in shown_env(env).items() for word in ("--env", f"{k}={v}")]
    for name in ("set", "import", "case_dir"):
        option = f"--{name.replace('_', '-')}"
        words += [word for value in vars(args)[name] for word in (option, str(value))]
    defaults: dict[str, object] = dict.fromkeys(
        ("package", "repo", "python", "margin", "rounds", "questions", "data_dir")
    )
    defaults |= {"install": ".", "metric": "core_time", "engine": "inductor"}
    defaults |= {"max_pairs": MAX_PAIRS, "ranks": 1, "timeout": 3600}
    defaults |= {"out": Path("results/bisect.json")}
    for name, default in defaults.items():
        if (value := vars(args)[name]) != default:
            text = f"{value:g}" if isinstance(value, float) else masked(str(value))
            words += [f"--{name.replace('_', '-')}", text]
    for name in ("pre", "improved", "alternate", "dummy_weights"):
        words += [f"--{name.replace('_', '-')}"] * vars(args)[name]
    return shlex.join(words)


def _next(args: argparse.Namespace, answer: Answer, kind: str) -> str:
    """The comparison that explains the step; empty where that takes more than options."""
    if answer.outcome != "step" or args.repo is not None or kind == "day":
        return ""
    words = ["perfline", "compare", args.case]
    for side, name in (("baseline", answer.parent), ("candidate", answer.named[-1])):
        pre = "--pre " * args.pre
        install = [f"--{side}-install", f"{pre}{args.package}=={name}"]
        words += install if kind == "version" else [f"--{side}-ref", name]
        words += [f"--{side}-python", args.python] if args.python is not None else []
    words += ["--engine", args.engine] if args.engine != "inductor" else []
    for name in ("env", "set", "import"):
        for value in vars(args)[name]:
            words += [f"--baseline-{name}", value, f"--{name}", value]
    words += ["--dummy-weights"] * args.dummy_weights
    words += ["--data-dir", str(args.data_dir)] if args.data_dir is not None else []
    words += [word for path in args.case_dir for word in ("--case-dir", str(path))]
    return shlex.join([*words, *explaining(args.metric)])


def explaining(metric: str) -> list[str]:
    """The options of ``perfline compare`` that show most of a metric."""
    from perfline.search.probe import SOUGHT

    found = SOUGHT.get(metric, SOUGHT["acc"])  # acc_TASK
    if found.workload == "decode":
        return ["--workload", "decode"]
    return [] if found.answers or found.fidelity else ["--explain"]


class Progress:
    """One line after every launch pair."""

    def __init__(self) -> None:
        """No launch pair was told yet."""
        self._pairs = 0

    def __call__(self, found: CaseComparison) -> str:
        """The line of the newest launch pair; empty where it was told already."""
        from perfline.report.comparison_text import progress_line

        before, self._pairs = self._pairs, len(found.pairs)
        return f"  {progress_line(found)}" if 0 < self._pairs != before else ""


def told(probe: Probe, known: bool) -> None:
    """Say what a comparison found, and whether that was known before."""
    from perfline.report.search_text import probe_line

    say(probe_line(probe) + (" (measured before)" if known else ""))
