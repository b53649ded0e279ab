"""Does `fidelity` see every damage, and stay silent where only the arithmetic is re-ordered?

The embedded model's fp32 numbers are stored once. Then each damage of the two lists is done to the
loaded model, to the code or to a copy of the files, and the numbers are taken again and judged as
the suite does: by the stored ones, and every way by the eager one. What turns no number of the
model, but the reading of its answers, is judged by the gate on stored answers, as `-m accuracy`
does beside it; what the compiler did, by the fingerprint. Then undamaged runs with other threads,
attention kernels and batch shapes.

    python benchmarks/gate/damages.py               # print the table: 10 minutes on 2 cores
    python benchmarks/gate/damages.py --out FILE    # ... and keep it as JSON
    python benchmarks/gate/damages.py --precision bf16    # drift: faults of 16 bits alone
    python benchmarks/gate/damages.py --only epsilon --unchanged 0    # damages whose names fit

``--seed`` draws ten weight matrices, and the factors that they are scaled by.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from _fidelity_damage import (
    OF_COMPILATION,
    OF_DTYPE,
    OF_FILES,
    OF_MODEL,
    OF_PROMPTS,
    PROMISED,
    drawn,
    drawn_fp8,
)
from tabulate import tabulate
from torch.nn.attention import SDPBackend, sdpa_kernel

from perfline.baselines.judge import Against, model_numbers, scored, what_runs
from perfline.cases.case import Case, load_cases
from perfline.cases.data import PACKAGED_DATA
from perfline.engines.device import current_device
from perfline.engines.engine import Fingerprint, run_pass
from perfline.engines.full_precision import full_precision
from perfline.engines.hf import Model
from perfline.engines.torch_engine import TorchEngine
from perfline.gates import accuracy as accuracy_gate
from perfline.gates import fidelity as gate
from perfline.gates import fingerprint as fingerprint_gate
from perfline.gates.verdict import Verdict
from perfline.measure import fidelity
from perfline.measure.case_run import CaseRun, OpenCase, open_case
from perfline.tasks.answers import Scored

REORDERED = 100
KERNELS = (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION)
ROWS = (1, 2, 3, 5, 8)  # of a forward: each batch shape multiplies its matrices in another order
NOWHERE = Against(Path("x.json"), None, None)
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Lab:
    """The case, the undamaged model's numbers and answers."""

    case: Case
    fidelity: fidelity.Fidelity
    answers: Scored
    fingerprint: Fingerprint | None


def measure(opened: OpenCase, case: Case) -> fidelity.Fidelity:
    """Every way's numbers, in fp32."""
    prompts = fidelity.sample(case, opened.prompts)
    with opened.full_precision() as model:
        return fidelity.measure(model, ("eager", "inductor"), prompts)


def answers(opened: OpenCase, case: Case) -> Scored:
    """The answers to all questions."""
    return scored(case, "eager", run_pass(opened.engine("eager"), opened.prompts, "last").answers)


def judged(lab: Lab, found: fidelity.Fidelity) -> list[Verdict]:
    """The verdicts of the suite: on the stored numbers, and between the ways."""
    limit = gate.allowed(found.variations, found.most)
    stored = gate.against_reference(
        *(lab.fidelity.prompts, found.prompts, found.logits, limit, found.layers_off, "stored")
    )
    return [
        gate.with_ways(stored, tuple(lab.fidelity.ways), found.without),
        model_numbers(found, {}, NOWHERE)[0],  # between the ways
    ]


def row(lab: Lab, name: str, opened: OpenCase) -> dict[str, Any]:
    """Measure a damaged model, and say which gate is red."""
    found = measure(opened, lab.case)
    verdicts = judged(lab, found)
    if not any(each.word in ("regressed", "incomparable") for each in verdicts):
        verdicts.append(
            accuracy_gate.accuracy_baseline(
                "acc_val", lab.answers, answers(opened, lab.case), lab.case.gates
            )
        )
    red = [each for each in verdicts if each.word in ("regressed", "incomparable", "invalid")]
    return {
        "damage": name,
        "stored_nats": verdicts[0].measured,
        "ways_nats": verdicts[1].measured,
        "limit_nats": gate.allowed(found.variations, found.most),
        "red": [f"{each.metric} {each.word}" for each in red],
        "seconds": round(found.seconds, 1),
    }


def compiled_row(lab: Lab, name: str, opened: OpenCase) -> dict[str, Any]:
    """Judge what the compiler made of a model as the suite does."""
    start = time.perf_counter()
    run = CaseRun(lab.case, opened, opened.device)
    found, why = run.fingerprint("inductor"), run.ready("inductor").uncompiled
    assert found is not None
    (verdict,) = what_runs("inductor", found, False, NOWHERE, why)
    if not why:
        metric = verdict.metric
        verdict = fingerprint_gate.against_stored(metric, lab.fingerprint, found, "stored", False)
    return {
        "damage": name,
        "stored_nats": None,
        "ways_nats": None,
        "limit_nats": None,
        "red": [f"{verdict.metric} {verdict.word}"] if verdict.word != "ok" else [],
        "why": verdict.reason,
        "seconds": round(time.perf_counter() - start, 1),
    }


@contextmanager
def reordered(run: int) -> Iterator[dict[str, int]]:
    """Other threads, another attention kernel and another batch shape, by the number of a run."""
    threads, rows = 1 + run % 4, ROWS[run % len(ROWS)]
    before, prepare = torch.get_num_threads(), TorchEngine.prepare
    torch.set_num_threads(threads)
    several = lambda engine, prompt: prepare(engine, prompt).repeat(rows, 1)  # noqa: E731
    try:
        with sdpa_kernel(KERNELS[run // 4 % 2]), patch.object(TorchEngine, "prepare", several):
            yield {"threads": threads, "rows": rows}
    finally:
        torch.set_num_threads(before)


@contextmanager
def damaged_files(damage: Callable[[Path], None]) -> Iterator[Path]:
    """A data directory with a damaged copy of the embedded model."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(PACKAGED_DATA / "tiny_mmlu", Path(folder) / "tiny_mmlu")
        damage(Path(folder) / "tiny_mmlu" / "tiny_hf")
        yield Path(folder)


def unchanged(lab: Lab, opened: OpenCase, model: Model, runs: int) -> list[dict[str, Any]]:
    """Undamaged runs in re-ordered arithmetic, the compiled engine in every second one."""
    found = []
    for run in range(runs):
        names = ("eager", "inductor")[: 1 + run % 2]
        with reordered(run) as how, full_precision(model) as numbers:
            prompts = fidelity.sample(lab.case, opened.prompts)
            done = fidelity.measure(numbers, names, prompts, shared=run % 3 == 0)
        verdicts = judged(lab, done)
        words = [verdict.word for verdict in verdicts]
        found.append({**how, "words": words, "nats": [v.measured for v in verdicts]})
    return found


def drifted(opened: OpenCase, case: Case, compiled: bool = False) -> list[dict[str, Any]]:
    """What the suite says of each engine's drift, and how far off it is."""
    prompts, names = fidelity.sample(case, opened.prompts), ("inductor",) if compiled else ()
    with opened.full_precision() as model:
        found = fidelity.measure(model, (), prompts, shared=False)
    with opened.own_precision() as own:
        found = fidelity.with_drift(found, own, names, prompts)
    return [
        {
            "metric": verdict.metric,
            "word": verdict.word,
            "nats": verdict.measured,
            "rounding": verdict.baseline,
            "limit": verdict.limit,
        }
        for verdict in model_numbers(found, {}, NOWHERE)
        if verdict.metric.startswith("drift_")
    ]


def fitting(damages: Mapping[str, Kind], only: str) -> Iterator[tuple[str, Kind]]:
    """The damages whose names hold the regular expression, as each begins."""
    for name, damage in damages.items():
        if re.search(only, name):
            print(name, file=sys.stderr)
            yield name, damage


def of_dtype(case: Case, seed: int, runs: int, only: str, out: Path | None) -> int:
    """Print what drift says of faults of 16 bits; 1 where one that is promised was not seen."""
    opened = open_case(case, current_device(), None, "real")
    model: Any = opened.engine("eager")._model  # type: ignore[attr-defined]
    rows, quiet = [], []
    for name, damage in fitting({**OF_DTYPE, **drawn_fp8(seed, model)}, only):
        with ExitStack() as stack:
            damage(stack, model)
            found = drifted(opened, case, name.startswith("compiled"))[-1]
        rows.append({"damage": name, "promised": name in PROMISED, **found})
    for run in range(runs):
        with reordered(run) as how:
            quiet += [{**how, **each} for each in drifted(opened, case, run % 4 == 0)]
    opened.close()
    table = [
        [
            each["damage"],
            each["metric"],
            f"{each['nats'] / each['rounding']:.2f}",
            f"{float(each['limit'].split()[0]) / each['rounding']:.2f}",
            each["word"],
        ]
        for each in rows
    ]
    print(tabulate(table, ["damage", "metric", "x rounding", "limit", "word"], floatfmt=".2f"))
    red = [each for each in quiet if each["word"] != "ok"]
    missed = [each["damage"] for each in rows if each["promised"] and each["word"] != "regressed"]
    print(f"\nunchanged: {len(quiet)} verdicts, {len(red)} not ok; promised, not seen: {missed}")
    if out is not None:
        kept = {"case": case.id, "precision": case.model.precision, "seed": seed}
        kept |= {"torch": torch.__version__, "damages": rows, "unchanged": quiet}
        out.write_text(json.dumps(kept, indent=1) + "\n")
    return 1 if missed or red else 0


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 where a damage was not seen, or an unchanged run was red."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=20261125)
    parser.add_argument("--unchanged", type=int, default=REORDERED, metavar="RUNS")
    parser.add_argument("--precision", choices=("bf16", "fp16"))
    parser.add_argument("--only", default="", metavar="REGEX")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    device, (case,) = current_device(), load_cases(["tiny"])
    if given.precision is not None:
        short = dataclasses.replace(case.model, precision=given.precision)
        case = dataclasses.replace(case, model=short)
        return of_dtype(case, given.seed, given.unchanged, given.only, given.out)
    opened = open_case(case, device, None, "real")
    model: Any = opened.engine("eager")._model  # type: ignore[attr-defined]
    start = time.perf_counter()
    stack_runs = CaseRun(case, opened, device).fingerprint("inductor")
    lab = Lab(case, measure(opened, case), answers(opened, case), stack_runs)
    rows = []
    for name, damage in fitting({**OF_MODEL, **drawn(given.seed, model)}, given.only):
        with ExitStack() as stack:
            damage(stack, model)
            rows.append(row(lab, name, opened))
    for name, damage in fitting(OF_COMPILATION, given.only):
        with ExitStack() as stack:
            damage(stack, model)
            rows.append(compiled_row(lab, name, opened))
    quiet = unchanged(lab, opened, model, given.unchanged)
    opened.close()
    for name, damage in fitting(OF_PROMPTS, given.only):
        with ExitStack() as stack, patch("perfline.tasks.prompt_cache.cached_prompts", _uncached):
            damage(stack, model)
            other = open_case(case, device, None, "real")
            rows.append(row(lab, name, other))
            other.close()
    for name, change in fitting(OF_FILES, given.only):
        with damaged_files(change) as folder:
            other = open_case(case, device, folder, "real")
            rows.append(row(lab, name, other))
            other.close()
    table = [
        [
            each["damage"],
            *map(_nats, (each["stored_nats"], each["ways_nats"], each["limit_nats"])),
            ", ".join(each["red"]) or "NOT SEEN",
        ]
        for each in rows
    ]
    print(tabulate(table, ["damage", "stored, nats", "ways, nats", "limit", "red"]))
    red = [each for each in quiet if set(each["words"]) != {"ok"}]
    missed = [each["damage"] for each in rows if not each["red"]]
    values = {value for each in quiet for value in each["nats"]}
    print(f"\nunchanged: {len(quiet)} runs of {len(values)} different KL, {len(red)} red")
    print(f"{len(rows)} damages, {len(missed)} not seen; {time.perf_counter() - start:.0f} s")
    if given.out is not None:
        found = {
            "seed": given.seed,
            "torch": torch.__version__,
            "damages": rows,
            "unchanged": quiet,
        }
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if missed or red else 0


def _uncached(_: Any, __: Any, ___: Any, build: Callable[[], Any], **____: Any) -> Any:
    return build()


def _nats(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


if __name__ == "__main__":
    sys.exit(main())
