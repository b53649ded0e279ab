"""How long do N GPUs take for MMLU, and what is lost to cutting and waiting?

A simulation on the real lengths of all 14,042 prompts: the units are those that perfline would cut
(``units.cut``), their costs those of perfline's own plans (``prefix.plan``), handed out longest
first to whoever is free. The speed, and the seconds before and after the pass, are of a record::

    python benchmarks/scaling.py --run results/run.json --case llama3-8b --engine inductor

or given: ``--tokens-per-s 20000 --start-s 60 --tail-s 5``. Without either, a second is a
thousand tokens, and only the efficiency counts.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from perfline import lengths, prefix, record
from perfline.engine import ENGINE_NAMES, EngineName
from perfline.mmlu import Prompt
from perfline.prefix import Limits
from perfline.throughput import PREFIX
from perfline.units import Unit, cut

VOCABULARY, MAX_PROMPT = 128_256, 2048  # Llama-3's
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# As shared_prefix.default_limits on a GPU with 40 GiB free, Llama-3-8B's keys and values in fp16.
LIMITS = Limits(8192, 12 * 2**30, 131_072, forward_cost_tokens=64, least_rows=2)


@dataclass(frozen=True)
class Speed:
    """What a run cost.

    Attributes:
        tokens_per_s: of the pass, padding included.
        start_s: every rank's load and warm-up.
        tail_s: what rank 0 does alone after the pass.
    """

    tokens_per_s: float = 1000.0
    start_s: float = 0.0
    tail_s: float = 0.0


def measured(path: Path, case: str, engine: EngineName) -> Speed:
    """The speed of a record of one process."""
    cases, name = record.load(path).cases, f"acc_{PREFIX[engine]}"
    if case not in cases or f"{name}_computed_tokens" not in cases[case].metrics:
        raise SystemExit(f"{path}: holds no accuracy pass of case '{case}' by the {engine} engine")
    metrics = cases[case].metrics
    run = metrics[f"{name}_computed_tokens"].value + metrics[f"{name}_padded_tokens"].value
    start = metrics["load_time"].value + metrics[f"{name}_warmup_time"].value
    return Speed(run / metrics[f"{name}_time"].value, start)


def seconds(costs: Iterable[float], ranks: int, speed: Speed) -> float:
    """When the last of ``ranks`` ends, the next unit always going to the first one that is free."""
    free = [speed.start_s] * ranks
    for cost in costs:
        heapq.heapreplace(free, free[0] + cost / speed.tokens_per_s)
    return max(free) + speed.tail_s


def tokens(prompts: Sequence[Prompt]) -> int:
    """What one rank would run to answer them."""
    plan = prefix.plan(prompts, LIMITS)
    return plan.computed_tokens + plan.padded_tokens


def remembered(cost: Callable[[Sequence[Prompt]], int]) -> Callable[[Sequence[Prompt]], int]:
    """The same, but every piece is planned once."""
    known: dict[tuple[str, str, int], int] = {}

    def looked_up(prompts: Sequence[Prompt]) -> int:
        key = (prompts[0].id, prompts[-1].id, len(prompts))
        if key not in known:
            known[key] = cost(prompts)
        return known[key]

    return looked_up


def table(prompts: Sequence[Prompt], speed: Speed, ranks: Sequence[int]) -> str:
    """Seconds and efficiency against one rank, by number of ranks and way of cutting."""
    cost = remembered(tokens)
    whole = sum(unit.cost for unit in cut(prompts, 1, cost))
    alone = seconds([whole], 1, speed)
    rows = []
    for n in ranks:
        by_subject: tuple[Unit, ...] = cut(prompts, 1, cost)
        split = cut(prompts, n, cost)
        row: list[object] = [n, len(split), sum(unit.cost for unit in split) / whole]
        for costs in (
            [unit.cost for unit in by_subject],
            [unit.cost for unit in split],
            [whole / n] * n,
        ):
            took = seconds(costs, n, speed)
            row += [took, alone / took / n]
        rows.append(row)
    headers = ["ranks", "units", "tokens x"]
    for way in ("subjects", "split", "ideal"):
        headers += [f"{way} s", f"{way} eff."]
    return tabulate(rows, headers, floatfmt=("d", "d", ".3f", *(".1f", ".3f") * 3))


def main() -> None:
    """Read the command line, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, help="a record of one process")
    parser.add_argument("--case", default="llama3-8b")
    parser.add_argument("--engine", choices=ENGINE_NAMES, default="inductor")
    parser.add_argument("--tokens-per-s", type=float, default=Speed.tokens_per_s)
    parser.add_argument("--start-s", type=float, default=0.0)
    parser.add_argument("--tail-s", type=float, default=0.0)
    args = parser.parse_args()
    speed = Speed(args.tokens_per_s, args.start_s, args.tail_s)
    if args.run is not None:
        speed = measured(args.run, args.case, args.engine)
    print(f"{speed.tokens_per_s:.0f} tok/s, start {speed.start_s:.1f} s, tail {speed.tail_s:.1f} s")
    print(table(lengths.dummy_prompts(VOCABULARY, MAX_PROMPT), speed, RANKS))


if __name__ == "__main__":
    main()
