"""Would the tests notice, were one of the decisions another one?

    make mutants                                         every module that decides, on one core
    make mutants ARGS="perfline.gates.accuracy.*"        the mutants whose names fit
    make mutants ARGS=--survivors                        what survived last time, once more
    make mutants ARGS=--show                             the score of what was run so far

mutmut changes one operator, number, word or condition at a time, or leaves an argument out, and
runs the tests of the module's room that reach the function, the quickest first (pyproject.toml
lists modules and tests). Left alone: prose (a string with a blank in it decides nothing), None in
place of a value (mypy sees that), ``strict=`` of zip (columns are checked where they are made),
decorated functions and what stands outside of functions (mutmut 3 cannot). Printed: what survived,
but for the equivalent ones of mutants_equivalent.txt, and the score by module.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import libcst as cst
from libcst import matchers
from mutmut import __main__ as mutmut
from mutmut.mutation import mutators
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.file_mutation import MutationVisitor
from mutmut.runners.harness import PytestRunner
from mutmut.state import state
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files

EQUIVALENT = Path(__file__).with_name("mutants_equivalent.txt")
NOTICED = ("killed", "timeout", "segfault")
STRICT = matchers.Arg(keyword=matchers.Name("strict"))


def words(node: cst.BaseString) -> Iterator[cst.BaseString]:
    if isinstance(node, cst.SimpleString) and " " not in node.value:
        yield from mutators.operator_string(node)


def arguments(node: cst.Call) -> Iterator[cst.Call]:
    strict = sum(matchers.matches(each, STRICT) for each in node.args)
    for mutant in mutators.operator_arg_removal(node):
        fewer = len(mutant.args) < len(node.args)
        if fewer and sum(matchers.matches(each, STRICT) for each in mutant.args) == strict:
            yield mutant


def skipped(self: MutationVisitor, node: cst.CSTNode) -> bool:
    return bool(matchers.matches(node, STRICT) or _skipped(self, node))


def quickest_first(self: PytestRunner, tests: Iterable[str]) -> list[str]:
    return list(
        _args(self, sorted(tests, key=lambda test: state().duration_by_test.get(test, 0.0)))
    )


def of_the_room(*args: Any, **kwargs: Any) -> None:
    _collect(*args, **kwargs)
    for function, tests in state().tests_by_mangled_function_name.items():
        room = f"tests/unit/{function.split('.')[1]}/"
        tests.intersection_update({test for test in tests if test.startswith(room)})


_args, _collect = PytestRunner._pytest_args_regular_run, mutmut.collect_or_load_stats
_skipped = MutationVisitor._skip_node_and_children
OTHERWISE = {
    mutators.operator_string: words,
    mutators.operator_arg_removal: arguments,
    mutators.operator_assignment: lambda node: (),
}


def found() -> Iterator[tuple[Path, str, str]]:
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        for name, code in data.exit_code_by_key.items():
            yield path, name, status_by_exit_code[code]


def changed(name: str, path: Path) -> str:
    """Return ``function: before => after`` of a mutant, with its spaces made one."""
    lines = get_diff_for_mutant(name, path=path).splitlines()[3:]
    sides = (" ".join(" ".join(x[1:] for x in lines if x[0] == side).split()) for side in "-+")
    return f"{name.rpartition('__mutmut_')[0].rpartition('.')[2]}: {' => '.join(sides)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--survivors", action="store_true")
    chosen = parser.parse_args()
    mutators.mutation_operators[:] = [
        (kind, OTHERWISE.get(each, each)) for kind, each in mutators.mutation_operators
    ]
    MutationVisitor._skip_node_and_children = skipped
    PytestRunner._pytest_args_regular_run = quickest_first
    mutmut.collect_or_load_stats = of_the_room
    survived = ("survived", "no tests")
    again = [name for _, name, status in found() if status in survived]
    if not chosen.show:
        mutmut._run(again if chosen.survivors else chosen.names, 1)
    patterns = [re.compile(each) for each in EQUIVALENT.read_text().splitlines() if each[:1] != "#"]
    scores: dict[Path, Counter[str]] = {}
    for path, name, status in found():
        score = scores.setdefault(path, Counter())
        if status not in ("not checked", *NOTICED):
            text = changed(name, path)
            if any(pattern.search(text) for pattern in patterns):
                status = "equivalent"
            else:
                print(f"{path.stem} {status} {name.rpartition('_')[2]} {text}")
        score[status] += 1
    for path, score in scores.items():
        noticed = sum(score[each] for each in NOTICED)
        judged = score.total() - score["equivalent"] - score["not checked"]
        share = f"{100 * noticed / judged:5.1f} %" if judged else "      -"
        print(f"{share} {noticed} of {judged}, {score['equivalent']} equivalent: {path}")


if __name__ == "__main__":
    main()
