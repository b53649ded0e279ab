"""How long does a full MMLU pass by shared prefixes take here, and how near to the device's peak?

Random weights at full size, the token lengths and shared prefixes of the real questions: the whole
pass of one engine, after warm-up; a large matrix product in the same dtype, timed in the same run,
which says what this device really reaches; the published loop (one prompt a forward, the head at
all positions) over a length-stratified sample; and whether both paths answer alike. From the source
tree on a GPU machine, where nothing is installed::

    PYTHONPATH=src python3 benchmarks/full_pass.py llama3-8b deepseek-7b --out OUT

Prints a table and writes ``OUT/full_pass-CASE-ENGINE.json``; `tiny` tries it on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from tabulate import tabulate

from perfline.cases.case import ENGINE_NAMES, Case, load_cases
from perfline.engines import environment
from perfline.engines.device import Device, current_device
from perfline.engines.engine import EngineName, run_pass
from perfline.measure.accuracy import AccuracyOptions, AccuracyPass
from perfline.measure.case_run import CaseRun, open_case

ROOT = Path(__file__).parents[1]
MATRIX = 8192  # of the large product, a side; on a CPU an eighth of it


def main() -> int:
    """Measure every case asked for, one after the other."""
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    device = current_device()
    for case in load_cases(args.cases, []):
        found = measure(case, device, args)
        path = args.out / f"full_pass-{case.id}-{args.engine}.json"
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        rows = [(key, value) for key, value in found.items() if isinstance(value, (int, float))]
        print(f"\n{case.id}, {args.engine}, {case.model.precision} on {device.name} -> {path}")
        print(tabulate(rows, floatfmt=".5g"), flush=True)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--engine", choices=ENGINE_NAMES, default="inductor")
    parser.add_argument("--questions", type=int, help="the first N of the fixed order")
    parser.add_argument("--sample", type=int, default=32, help="prompts of the published loop")
    return parser.parse_args()


def measure(case: Case, device: Device, args: argparse.Namespace) -> dict[str, Any]:
    """One case: the pass, the product, the published loop; keys end in their units."""
    opened = open_case(case, device, None, "dummy")
    peak = environment.peak_flops(device.name, case.model.precision)
    options = AccuracyOptions(questions=args.questions)
    bench = CaseRun(case, opened, device, peak, say=print, options=options)
    try:
        name: EngineName = args.engine
        done = bench.answer_all(name)
        reached = product_flop_per_s(device, case)
        loop = run_pass(opened.engine(name), bench.sample[: args.sample], "all")
        found = environment.collect(ROOT)
        return {
            "schema": 1,
            "date": environment.today(),
            "command": shlex.join(["python3", os.path.relpath(__file__, ROOT), *sys.argv[1:]]),
            "machine": found.machine,
            "context": dict(found.context),
            "case": case.id,
            "engine": name,
            "dtype": case.model.precision,
            "weights": "dummy",
            **_pass(done, peak, reached),
            "product_flop_per_s": reached,
            "published_loop_questions": len(loop.answers.ids),
            "published_loop_tok_per_s": loop.tokens / loop.core_s,
            "over_published_loop_x": done.served_tokens / done.whole_s * loop.core_s / loop.tokens,
            "load_s": opened.load_s,
        }
    finally:
        opened.close()


def _pass(done: AccuracyPass, peak: float | None, reached: float) -> dict[str, Any]:
    """The pass in numbers; what is not known is left out."""
    found = {
        "questions": len(done.answers.ids),
        "served_tokens": done.served_tokens,
        "computed_tokens": done.computed_tokens,
        "padded_tokens": done.padded_tokens,
        "whole_s": done.whole_s,
        "core_fraction": done.core_s / done.whole_s,
        "questions_per_s": len(done.answers.ids) / done.whole_s,
        "served_tok_per_s": done.served_tokens / done.whole_s,
        "computed_tok_per_s": done.computed_tokens / done.whole_s,
        "warmup_s": done.warmup_s,
        "recompiles_count": done.counts.graphs,
        "halvings_count": done.halvings,
    }
    if done.flops:
        rate = done.flops / done.core_s
        found["computed_flop_per_s"] = rate
        found["of_the_product_fraction"] = rate / reached
        if peak is not None:
            found["mfu_computed_fraction"] = rate / peak
    return found


def product_flop_per_s(device: Device, case: Case) -> float:
    """Median FLOP/s of a large square product in the case's dtype, over 20 of them."""
    import torch

    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    side = MATRIX // 8 if device.kind == "cpu" else MATRIX
    left, right = (
        torch.randn(side, side, device=device.torch, dtype=dtypes[case.model.precision])
        for _ in range(2)
    )
    seconds = []
    for _ in range(23):
        device.synchronize()
        start = time.perf_counter()
        torch.mm(left, right)
        device.synchronize()
        seconds.append(time.perf_counter() - start)
    return float(2 * side**3 / statistics.median(seconds[3:]))


if __name__ == "__main__":
    sys.exit(main())
