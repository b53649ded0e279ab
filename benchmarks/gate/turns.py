"""How far do A and B differ by chance, by how long a turn of ``perfline compare`` is?

A against A, launch pair by launch pair; in each, rounds are timed once with every length of a turn
(10 s: whole rounds), in an order that moves on by one from pair to pair. Prints, by length, the
standard deviation over launch pairs of their log ratios, with its 95 % interval (chi-squared), and
that of rounds within a pair. 7 minutes on 2 cores::

    python benchmarks/gate/turns.py --pairs 10 --rounds 4 --turn-s 10,0.03
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from pathlib import Path

import slowdown
from record import ROOT, Recorder
from scipy import stats
from tabulate import tabulate

from perfline.cases.case import load_cases
from perfline.compare import pair
from perfline.compare.launch import ProcessLauncher
from perfline.compare.model import SIDES, Workload
from perfline.compare.sides import make_side, places


def main() -> int:
    """Time, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=6, help="kept, a side")
    parser.add_argument("--min-round-s", type=float, default=1.0)
    parser.add_argument("--turn-s", default="10,0.1,0.03", help="comma-separated")
    parser.add_argument("--engine", default="eager")
    args = parser.parse_args()
    lengths = [float(text) for text in args.turn_s.split(",")]
    (case,) = load_cases(["tiny"], [])
    sides = [make_side(name) for name in SIDES]
    work = Workload(case.id, (), None, "real", args.engine, questions=0)
    found: dict[float, list[list[float]]] = {length: [] for length in lengths}
    with (
        tempfile.TemporaryDirectory() as scratch,
        places(sides, ROOT) as where,
        ProcessLauncher(work, where) as launcher,
    ):
        unread = Path(scratch, slowdown.VARIABLE)  # nothing is slowed
        recorder = Recorder(launcher, sides, unread, case.engine.cpu_threads or 0)
        for number in range(args.pairs):
            first = number % len(lengths)
            with recorder.launched(args.min_round_s) as (workers, _):
                for length in lengths[first:] + lengths[:first]:
                    pair.TURN_S = length
                    done = recorder.rounds(workers, 0.0, args.rounds)
                    both = zip(done["a"], done["b"], strict=True)
                    found[length].append([math.log(b / a) for a, b in both])
            shown = (f"{100 * statistics.median(found[length][-1]):+.1f}" for length in lengths)
            print(f"pair {number}: {' '.join(shown)} %", flush=True)
    rows = [[length, args.pairs, _between(logs), _within(logs)] for length, logs in found.items()]
    heads = ["turn, s", "launch pairs", "between pairs, %", "between rounds, %"]
    print(tabulate(rows, headers=heads, tablefmt="github"))
    return 0


def _between(pairs: list[list[float]]) -> str:
    sd, degrees = statistics.stdev(map(statistics.median, pairs)), len(pairs) - 1
    low, high = (sd * math.sqrt(degrees / stats.chi2.ppf(p, degrees)) for p in (0.975, 0.025))
    return f"{100 * sd:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _within(pairs: list[list[float]]) -> float:
    return round(100 * math.sqrt(statistics.fmean(map(statistics.variance, pairs))), 1)


if __name__ == "__main__":
    raise SystemExit(main())
