"""Does ``perfline compare --explain`` name what was put into a forward, and nothing else?

Each injection of ``injected.py`` is put into B, live, on the embedded model: one launch pair is
timed, then explained by its own processes. It is found where the first row names its operator and
its module, and explained where the rows named make at least 80 % of the change. Then A against A.

    python benchmarks/gate/explain.py                 # print the table: half an hour, 2 cores
    python benchmarks/gate/explain.py --out FILE      # ... and keep it as JSON, after every row
    python benchmarks/gate/explain.py --only upcast   # some of them, by a part of their names
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from injected import INJECTIONS, VARIABLE
from tabulate import tabulate

from perfline import jsonfile
from perfline.cases.case import load_cases
from perfline.compare import run as compare
from perfline.compare.explain import Explanation
from perfline.compare.launch import ProcessLauncher
from perfline.compare.model import Workload
from perfline.compare.record import CaseComparison
from perfline.compare.sides import make_side, places
from perfline.engines import environment
from perfline.errors import RecordError
from perfline.fields import as_json

HERE = Path(__file__).parent
EXPLAINED = (0.8, 1.25)  # shares of the change that are no surprise


def comparison(engine: str, name: str) -> CaseComparison:
    """One launch pair, timed and explained; ``name`` is in B, nothing where it is empty."""
    (case,) = load_cases(["tiny"])
    env, imports, settings = [], [], []
    if name:
        injection = INJECTIONS[name]
        env = [f"{VARIABLE}={name}", f"PYTHONPATH={HERE}"]
        imports = ["injected"]
        settings = [f"{key}={value}" for key, value in injection.settings]
    sides = (
        make_side("baseline", None, None, [], [], [], []),
        make_side("candidate", None, None, env, settings, imports, []),
    )
    plan = compare.Plan(
        case=case,
        sides={side.name: side for side in sides},
        workload=Workload("tiny", (), None, "real", engine, 0),
        margin_fraction=0.02,
        max_pairs=1,
        rounds=3,
        explain=True,
    )
    with places(sides, Path.cwd()) as found, ProcessLauncher(plan.workload, found) as launcher:
        *_, last = compare.run(plan, launcher, lambda line: None)
    return last


def row(engine: str, name: str) -> dict[str, Any]:
    """Measure one injection, or A against A, and hold its explanation against what is known."""
    found = comparison(engine, name)
    told = found.explanation or Explanation(problem=found.problem or "no explanation")
    first = told.causes[0] if told.causes else None
    result: dict[str, Any] = {
        "injection": name or "none",
        "engine": engine,
        "change": None if found.decision is None else found.decision.estimate,
        "first": None if first is None else [first.module, first.operator],
        "explained": told.explained,
        "explanation": as_json(told),
    }
    if name:
        known = INJECTIONS[name].eager if engine == "eager" else INJECTIONS[name].inductor
        assert known is not None
        result["named"] = first is not None and all(
            re.fullmatch(pattern, text)
            for pattern, text in zip(known, (first.module, first.operator), strict=True)
        )
        low, high = EXPLAINED
        result["enough"] = told.explained is not None and low <= told.explained <= high
    return result


def asked(only: Sequence[str], equals: int) -> Iterator[tuple[str, str]]:
    """(engine, injection) of all rows."""
    for name, injection in INJECTIONS.items():
        for engine in ("eager", "inductor"):
            there = injection.eager if engine == "eager" else injection.inductor
            if there is not None and (not only or any(part in name for part in only)):
                yield engine, name
    for number in range(equals):
        yield ("eager", "inductor")[number % 2], ""


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 where more than one of 20 is not named first, or an A/A names anything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", default=[], metavar="PART")
    parser.add_argument("--equals", type=int, default=10, metavar="RUNS", help="A against A")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    head = {
        "command": shlex.join(["python", "benchmarks/gate/explain.py", *sys.argv[1:]]),
        "created": environment.today(),
        "how": "live",
        "cores": os.cpu_count(),
    }
    for engine, name in asked(given.only, given.equals):
        start = time.perf_counter()
        rows.append(row(engine, name) | {"load_average": os.getloadavg()[0]})
        took = time.perf_counter() - start
        shown = {key: rows[-1].get(key) for key in ("first", "named", "explained")}
        print(f"{engine} {name or 'A/A'}: {json.dumps(shown)} in {took:.0f} s", file=sys.stderr)
        if given.out is not None:
            jsonfile.write(given.out, {**head, "rows": rows}, RecordError)
    keys = ("injection", "engine", "change", "first", "explained")
    print(tabulate([[each[key] for key in keys] for each in rows], keys, floatfmt=".3f"))
    injected, equal = [r for r in rows if "named" in r], [r for r in rows if "named" not in r]
    named = sum(each["named"] for each in injected)
    enough = sum(each["enough"] for each in injected)
    false = sum(each["first"] is not None for each in equal)
    print(
        f"named first: {named} of {len(injected)}; explained: {enough} of {len(injected)}; "
        f"A/A that name anything: {false} of {len(equal)}"
    )
    return int(named < 0.95 * len(injected) or false > 0)


if __name__ == "__main__":
    sys.exit(main())
