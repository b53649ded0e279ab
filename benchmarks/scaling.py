"""How long do N GPUs take for MMLU, and what is lost to cutting and waiting?

A simulation on the real lengths of all 14,042 prompts: the units are those that perfline would cut
(``work_units.cut``), their work that of perfline's own plans (``prefix_plan.plan``), handed out
longest first to whoever is free. What work costs is fitted to units timed on one device::

    python benchmarks/scaling.py --calibrate --case llama3-8b --dummy-weights --out OUT
    python benchmarks/scaling.py --model OUT/scaling.json

or is one speed: a record's (``--run results/run.json --case llama3-8b --engine inductor``), or
given (``--tokens-per-s 20000 --start-s 60 --tail-s 5``). Without any, a second is a thousand
tokens, and only the efficiency counts.

Whether the model is right: fit it here, say what the pass takes 1 process and 2, then run both::

    python benchmarks/scaling.py --measure --mmlu ../shared/data/mmlu --out OUT
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from _scaling_cost import Cost, Work, last_ends, work
from tabulate import tabulate

from perfline.cases.case import ENGINE_NAMES
from perfline.distributed.work_units import Unit, cut
from perfline.engines import prefix_plan
from perfline.engines.engine import EngineName
from perfline.engines.prefix_plan import Limits
from perfline.measure import record
from perfline.metrics import pass_name
from perfline.tasks import prompt_lengths
from perfline.tasks.prompts import Prompt

VOCABULARY, MAX_PROMPT = 128_256, 2048  # Llama-3's
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# As shared_prefix.default_limits on a GPU with 40 GiB free, Llama-3-8B's keys and values in fp16.
LIMITS = Limits(8192, 12 * 2**30, 131_072, forward_cost_tokens=64, least_rows=2)


def recorded(path: Path, case: str, engine: EngineName) -> Cost:
    """The speed of a record of one process."""
    cases, name = record.load(path).cases, f"acc_{pass_name(engine)}"
    if case not in cases or f"{name}_computed_tokens" not in cases[case].metrics:
        raise SystemExit(f"{path}: holds no accuracy pass of case '{case}' by the {engine} engine")
    metrics = cases[case].metrics
    run = metrics[f"{name}_computed_tokens"].value + metrics[f"{name}_padded_tokens"].value
    start = metrics["load_time"].value + metrics[f"{name}_warmup_time"].value
    return Cost({"tokens": metrics[f"{name}_time"].value / run}, start)


def fitted(path: Path) -> Cost:
    """The model that ``--calibrate`` or ``--measure`` wrote."""
    try:
        return Cost(**json.loads(path.read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path}: no fitted model ({error}); --calibrate writes one") from error


class Planned:
    """The work of any piece of ``prompts``; every piece is planned once."""

    def __init__(self, prompts: Sequence[Prompt], limits: Limits) -> None:
        """Plan nothing yet."""
        self.prompts = prompts
        self._limits = limits
        self._known: dict[tuple[str, str, int], Work] = {}
        self._by_id = {prompt.id: prompt for prompt in prompts}

    def work(self, prompts: Sequence[Prompt]) -> Work:
        """What one rank would run to answer them."""
        key = (prompts[0].id, prompts[-1].id, len(prompts))
        if key not in self._known:
            plan = prefix_plan.plan(prompts, self._limits)
            self._known[key] = work(plan, self._limits.least_rows)
        return self._known[key]

    def units(self, ranks: int) -> list[Work]:
        """The work of the units for so many ranks, in the order in which they are handed out."""
        units: tuple[Unit, ...] = cut(self.prompts, ranks, lambda p: self.work(p).tokens)
        return [self.work([self._by_id[name] for name in unit.ids]) for unit in units]


def table(prompts: Sequence[Prompt], cost: Cost, ranks: Sequence[int]) -> str:
    """Seconds and efficiency against one rank, by number of ranks and way of cutting."""
    planned = Planned(prompts, LIMITS)
    cutting = cost.cut_s * len(prompts)

    def took(units: Sequence[float], n: int) -> float:
        return cost.start_s + (cutting if n > 1 else 0.0) + last_ends(units, n) + cost.tail_s

    subjects = planned.units(1)
    by_subject = [cost.seconds(unit) for unit in subjects]
    tokens, whole = sum(unit.tokens for unit in subjects), sum(by_subject)
    alone = took([whole], 1)
    rows = []
    for n in ranks:
        split = planned.units(n)
        row: list[object] = [n, len(split), sum(unit.tokens for unit in split) / tokens]
        for units in (by_subject, [cost.seconds(unit) for unit in split], [whole / n] * n):
            row += [took(units, n), alone / took(units, n) / n]
        rows.append(row)
    headers = ["ranks", "units", "tokens x"]
    for way in ("subjects", "split", "ideal"):
        headers += [f"{way} s", f"{way} eff."]
    return tabulate(rows, headers, floatfmt=("d", "d", ".3f", *(".1f", ".3f") * 3))


def described(cost: Cost) -> str:
    """The model in a line."""
    parts = [f"{seconds:.3g} s x {term}" for term, seconds in cost.terms.items()]
    return (
        f"{' + '.join(parts)} a unit; start {cost.start_s:.1f} s, cutting "
        f"{1e6 * cost.cut_s:.0f} us a question, tail {cost.tail_s:.1f} s"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a fitted model: OUT/scaling.json")
    parser.add_argument("--run", type=Path, help="a record of one process")
    parser.add_argument("--case", default="llama3-8b")
    parser.add_argument("--engine", choices=ENGINE_NAMES, help="default: inductor, or eager here")
    parser.add_argument("--tokens-per-s", type=float, default=1000.0)
    parser.add_argument("--start-s", type=float, default=0.0)
    parser.add_argument("--tail-s", type=float, default=0.0)
    parser.add_argument("--calibrate", action="store_true", help="fit a model to --case, here")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--dummy-weights", action="store_true")
    parser.add_argument("--measure", action="store_true", help="fit, predict, measure, compare")
    parser.add_argument("--mmlu", type=Path, help="directory with dev/ and test/, for --measure")
    parser.add_argument("--every", type=int, default=6, help="--measure asks 1 in so many")
    parser.add_argument("--out", type=Path, help="folder to build and write in")
    args = parser.parse_args()
    if (args.measure or args.calibrate) and args.out is None:
        parser.error("--measure and --calibrate need --out")
    if args.measure and args.mmlu is None:
        parser.error("--measure needs --mmlu, the directory of the real questions")
    return args


def main() -> None:
    """Read the command line; measure, or print the table."""
    args = _arguments()
    if args.measure or args.calibrate:
        import _scaling_measure as measure  # imports torch

        found = measure.everything(args) if args.measure else measure.calibration(args)
        cost = Cost(**found["model"])
        print(described(cost))
        return
    cost = Cost({"tokens": 1 / args.tokens_per_s}, args.start_s, tail_s=args.tail_s)
    if args.model is not None:
        cost = fitted(args.model)
    elif args.run is not None:
        cost = recorded(args.run, args.case, args.engine or "inductor")
    print(described(cost))
    print(table(prompt_lengths.dummy_prompts(VOCABULARY, MAX_PROMPT), cost, RANKS))


if __name__ == "__main__":
    main()
