"""What does ``perfline isolate`` take, and what does it leave behind?

    perfline isolate tiny --baseline-python old/.venv --candidate-python new/.venv
    perfline isolate tiny --candidate-install "-r new.txt"      which package of an upgrade
    perfline isolate tiny --baseline-ref main --env OMP_NUM_THREADS=1

A and B are named as for ``perfline compare``. Exit status: 0 B is no worse than A, 1 it is worse
(what did it is named, where that can be told), or that could not be told, 2 wrong input, 130
interrupted. The record is partial until the search has ended by itself; the same command goes on
from a partial one.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from perfline.cli.bisect import Progress, add_metric, explaining, told
from perfline.cli.compare import (
    LauncherOf,
    add_measuring,
    add_sides,
    both_sides,
    check_data,
    check_outputs,
    command,
    launchers,
    margin,
    say,
    stopped_politely,
    workload,
    write_markdown,
)
from perfline.cli.options import add_command
from perfline.errors import InstallError

if TYPE_CHECKING:
    from perfline.cases.case import Case
    from perfline.compare.model import Side, SideName
    from perfline.search.groups import Group, Packages
    from perfline.search.probe import Environment
    from perfline.search.record import Probe, Search

_EXAMPLES = """example:
  perfline isolate tiny --baseline-python old/.venv --candidate-python new/.venv
  perfline isolate llama3-8b --dummy-weights --candidate-install "-r new.txt"
  perfline isolate tiny --baseline-ref main --env OMP_NUM_THREADS=1

A and B are compared first. Where B is worse, A runs with each group of B's
differences alone: packages that their own requirements tie together, the code,
a variable, a setting. A kill costs the comparison that was running: give the
same command again, and it goes on."""


def add_isolate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    purpose = "find which of B's packages, variables or code made it worse than A"
    more = "Each group of differences is moved alone, and compared by perfline compare's rule."
    parser = add_command(commands, "isolate", run, purpose, _EXAMPLES, more)
    parser.add_argument("cases", metavar="CASE", type=str.strip, nargs=1)
    add_sides(parser)
    add_metric(parser, "group")
    add_measuring(parser, "results/isolate.json")


def run(args: argparse.Namespace) -> int:
    """Search; print, save and return the exit status."""
    from perfline import jsonfile
    from perfline.cases.case import load_cases, with_settings
    from perfline.compare.gates import other_work
    from perfline.compare.sides import with_installed
    from perfline.environments import making
    from perfline.errors import RecordError, SearchError
    from perfline.report import search_text
    from perfline.search import candidates, groups, isolate, probe, record

    (case,) = load_cases(args.cases, args.case_dir)
    case = case.with_engines([args.engine], "--engine")
    sides = both_sides(args)
    set_up = [with_settings(case, side.settings) for side in sides]
    metric = probe.sought(args.metric, set_up[0].task_names)
    check_outputs(args)
    if problem := other_work(*set_up):
        raise SearchError(f"case '{case.id}': {problem} (--baseline-set and --set)")
    if not args.dummy_weights:
        check_data(case, sides, args.data_dir)
    with stopped_politely():
        (a, b), notes = with_installed(sides, say)
    for side in (a, b):
        candidates.check_needs(side.python)
    making.check_swap(a.python, b.python)
    ours, theirs = (making.contents(side.python) for side in (a, b))
    found = groups.differences(a, b, ours, theirs)
    installed = (groups.packages(ours), groups.packages(theirs))
    if left := groups.unswapped(ours, theirs):
        notes = (*notes, left)
    probe.terms(margin(args, case), args.max_pairs, isolate.probes(found))
    search = record.resumed(args.out, _fresh(args, case, (a, b), installed, found, notes))
    record.save(args.out, search)
    if args.markdown is not None:
        jsonfile.withdraw(args.markdown, RecordError)
    for line in search_text.groups_lines(search):
        say(line)
    if search.probes:
        say(f"{args.out}: {search_text.resumed_line(search)}")

    def started(both: tuple[Side, Side]) -> AbstractContextManager[LauncherOf]:
        return launchers(both, args.timeout)

    def mixed(some: Sequence[Group], name: SideName) -> Side:
        def swap(names: frozenset[str]) -> Path:
            return making.swap(a.python, b.python, names, say).python

        return groups.mixed(a, b, some, name, swap)

    def mix(name: str, some: Sequence[Group]) -> Environment:
        return probe.Environment(name, lambda of: mixed(some, of))

    live = probe.Live(
        case=case,
        workload=workload(args, case),
        metric=metric,
        launchers=started,
        say=say,
        progress=Progress(),
        rounds=args.rounds,
        alternate=args.alternate,
    )
    question = isolate.Question(
        a=probe.Environment("A", lambda of: a),
        b=probe.Environment("B", lambda of: b),
        groups=tuple(found),
        mix=mix,
        metric=metric,
        without_noise={
            role: replace(live, metric=probe.sought(name))
            for role, name in isolate.WITHOUT_NOISE.items()
        },
        margin_fraction=margin(args, case),
        max_pairs=args.max_pairs,
    )
    journal = record.Journal(args.out, search, live, _told)
    try:
        with stopped_politely():
            search = isolate.isolate(question, journal, say)
            guilty = _named(search, found) if isolate.compared(search) else []
            follow = ""
            with contextlib.suppress(InstallError):  # the answer stands without it
                follow = _next(args, a, mixed(guilty, "candidate")) if guilty else ""
    except KeyboardInterrupt:
        print("\nperfline: interrupted", file=sys.stderr)
        print(search_text.interrupted(journal.search, str(args.out)))
        return 130
    print(search_text.isolated(search, str(args.out), follow))
    if args.markdown is not None:
        write_markdown(args.markdown, search_text.isolated_markdown(search, follow))
    return int(isolate.worse(search))


def _fresh(
    args: argparse.Namespace,
    case: Case,
    sides: tuple[Side, Side],
    installed: tuple[Packages, Packages],
    found: Sequence[Group],
    notes: tuple[str, ...],
) -> Search:
    """The record of a search that has measured nothing yet."""
    import platform

    from perfline import jsonfile
    from perfline.compare.sides import git, resolve
    from perfline.engines.environment import git_commit, today
    from perfline.search.record import Search

    here = Path.cwd()
    refs = [side.ref and resolve(here, side.ref, side.name) for side in sides]
    uncommitted = git(here, "diff", "HEAD").stdout if git_commit(here) else ""
    request = {
        "options": {
            name: str(value)
            for name, value in vars(args).items()
            if name not in ("run_command", "out", "markdown", "own", "timeout")
        },
        "case": case.digest("dummy" if args.dummy_weights else "real"),
        "machine": platform.node(),
        "pythons": [str(side.python) for side in sides],
        "packages": [sorted(map(repr, each.values())) for each in installed],
        "code": [git_commit(here), uncommitted, refs],
    }
    return Search(
        created=today(),
        partial=True,
        command=command(args, "isolate", {"metric": "core_time"}),
        plan="isolate",
        request=jsonfile.digest(request),
        case=case.id,
        engine=args.engine,
        metric=args.metric,
        notes=notes,
        groups={group.name: group.what for group in found},
    )


def _told(found: Probe, known: bool) -> None:
    """Say what a comparison found, and what was counted where that is not the metric."""
    counted = found.role.partition(" ")[0]
    label = f"{found.b} ({counted})" if counted in ("tokens", "runs") else found.b
    told(replace(found, b=label), known)


def _named(search: Search, found: Sequence[Group]) -> list[Group]:
    """The groups that did it, or their parts; of merged ones all."""
    from perfline.search.groups import AND

    names = {name for named in search.named for name in named.split(AND)}
    every = list(found)
    for group in every:
        every += group.halves
    return [group for group in every if group.name in names]


def _next(args: argparse.Namespace, a: Side, b: Side) -> str:
    """The comparison that explains what the groups that did it cost."""
    from perfline.compare.record import shown_env

    words = ["perfline", "compare", *args.cases]
    for side, prefix in ((a, "baseline-"), (b, "")):
        words += [f"--{side.name}-python", str(side.python)]
        words += [f"--{side.name}-ref", side.ref] if side.ref is not None else []
        env = [f"{key}={text}" for key, text in shown_env(side.env).items()]
        settings = [f"{key}={text}" for key, text in side.settings]
        for option, values in (("env", env), ("set", settings), ("import", side.imports)):
            words += [word for value in values for word in (f"--{prefix}{option}", value)]
    words += ["--engine", args.engine] if args.engine != "inductor" else []
    words += ["--dummy-weights"] * args.dummy_weights
    words += ["--data-dir", str(args.data_dir)] if args.data_dir is not None else []
    words += [word for path in args.case_dir for word in ("--case-dir", str(path))]
    return shlex.join([*words, *explaining(args.metric)])
