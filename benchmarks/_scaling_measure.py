"""Is the model of ``scaling.py`` right: does it foretell a pass of questions it was not fitted to?

On this machine, with the embedded model on real MMLU questions, in three steps:

1. units of questions that are not asked later are timed in one process, then in two at once. The
   first fit the model; the second say by how much two processes on one machine slow each other
   (memory bandwidth, turbo): one factor, which no GPU of its own has;
2. the model says what a pass over the asked questions takes one process, and two;
3. pytest, and torchrun with two ranks, are run as users run them; the pass' seconds are those of
   their records.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from _scaling_cost import Cost, Work, fit, last_ends, left_out_error, work
from tabulate import tabulate

from perfline.cases import case as cases
from perfline.cases import data
from perfline.cases.case import Case, WeightsKind
from perfline.distributed.work_units import cut
from perfline.engines import environment
from perfline.engines.device import cpu_contention, current_device
from perfline.engines.engine import EngineName, run_pass
from perfline.measure import record
from perfline.measure.accuracy import AccuracyRun
from perfline.measure.case_run import CaseRun, LoadedCase, open_case
from perfline.measure.journal import Journal
from perfline.metrics import pass_name
from perfline.tasks.answers import Answers, union
from perfline.tasks.prompts import Prompt

ROOT = Path(__file__).parents[1]
SIZES = (8, 16, 4, 64, 32)  # questions of the timed units, in turn
VERIFIED = 32  # as pytest's --verify
CASE = "mmlu-by-tiny"
HALVES = ("asked", "calibration")
RANKS = (1, 2)
PROMISED = 0.15  # of the measured seconds
BUSY = 0.03  # of the timed units' seconds, spent waiting for a core: others use the machine


def everything(args: argparse.Namespace) -> dict[str, Any]:
    """Fit, foretell, measure, compare; writes ``OUT/scaling.json``."""
    engine: EngineName = args.engine or "eager"
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ.update(OMP_NUM_THREADS="1", XDG_CACHE_HOME=str(out / "cache"))
    lay_out(args.mmlu, out, args.every)
    one = _together(1, out, engine)[0]
    both = _together(2, out, engine)
    found = _fitted(one)
    slowdown = sum(sum(worker["seconds"]) for worker in both) / 2 / sum(one["seconds"])
    print(f"two processes at once: each {slowdown:.3f} times as slow", flush=True)
    cost = Cost(**found["model"])
    foretold = _foretell(cost, slowdown, out, engine)
    rows: list[dict[str, Any]] = []
    for ranks in RANKS:
        print(f"{ranks}: {foretold[ranks]:.1f} s foretold", flush=True)
        seconds, given = _pass(ranks, out, engine)
        rows.append(
            {
                "processes": ranks,
                "predicted_s": foretold[ranks],
                "measured_s": seconds,
                "error_fraction": foretold[ranks] / seconds - 1,
                "questions_by_rank": given,
            }
        )
    print(tabulate(rows, headers="keys", floatfmt=".3f"))
    within = all(abs(row["error_fraction"]) <= PROMISED for row in rows)
    print(f"within {PROMISED:.0%}: {'met' if within else 'MISSED'}")
    asked = {"asked_1_in": args.every, "slowdown_of_two_x": slowdown, "passes": rows}
    return _write(out, {**found, **asked, "case": CASE, "engine": engine, "dtype": "fp32"})


def calibration(args: argparse.Namespace) -> dict[str, Any]:
    """Fit to any case on this device; writes ``OUT/scaling.json``."""
    args.out.mkdir(parents=True, exist_ok=True)
    (case,) = cases.load_cases([args.case])
    engine: EngineName = args.engine or "inductor"
    weights: WeightsKind = "dummy" if args.dummy_weights else "real"
    opened = open_case(case, current_device(), args.data_dir, weights)
    try:
        found = _fitted(_timed(case, opened, engine, args.out))
    finally:
        opened.close()
    about = {"case": case.id, "engine": engine, "dtype": case.model.precision, "weights": weights}
    return _write(args.out, {**found, **about})


def _fitted(timed: dict[str, Any]) -> dict[str, Any]:
    """The model, and how well it tells the units apart from which it was fitted."""
    units = [Work(**unit) for unit in timed["units"]]
    terms = fit(units, timed["seconds"])
    times = {key: timed[key] for key in ("start_s", "cut_s", "tail_s")}
    return {
        "model": asdict(Cost(terms, **times)),
        "left_out_error_fraction": left_out_error(units, timed["seconds"], list(terms)),
        "units": [
            {**unit, "seconds": seconds}
            for unit, seconds in zip(timed["units"], timed["seconds"], strict=True)
        ],
    }


def _write(out: Path, found: dict[str, Any]) -> dict[str, Any]:
    about = environment.collect(ROOT)
    whole = {
        "schema": 1,
        "date": environment.today(),
        "command": shlex.join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
        "machine": about.machine,
        "device": about.device,
        "context": dict(about.context),
        **found,
    }
    path = out / "scaling.json"
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print(f"-> {path}")
    return whole


# 1. Timed units


def _together(workers: int, out: Path, engine: EngineName) -> list[dict[str, Any]]:
    """Time the same units in so many processes at once."""
    folder = out / f"workers-{workers}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    command = [sys.executable, __file__, str(out), engine, str(folder), str(workers)]
    running = [subprocess.Popen([*command, str(k)]) for k in range(workers)]
    try:
        statuses = [process.wait() for process in running]
        if any(statuses):
            raise SystemExit("a timed process failed; see above")
    finally:
        for process in running:
            process.kill()
    return [json.loads((folder / f"{k}.json").read_text()) for k in range(workers)]


def worker(out: Path, engine: EngineName, folder: Path, workers: int, number: int) -> None:
    """One of the processes of :func:`_together`."""

    def all_ready() -> None:
        (folder / f"{number}.ready").touch()
        while len(list(folder.glob("*.ready"))) < workers:
            time.sleep(0.01)

    case, opened = _open(out, "calibration")
    timed = _timed(case, opened, engine, folder, all_ready)
    (folder / f"{number}.json").write_text(json.dumps(timed), encoding="utf-8")


def _timed(
    case: Case,
    opened: LoadedCase,
    engine: EngineName,
    folder: Path,
    ready: Any = lambda: None,
) -> dict[str, Any]:
    """The seconds of units, and of what a pass takes beside them."""
    bench = CaseRun(case, opened, current_device(), say=print)
    begin = time.perf_counter()
    run = bench.helper(engine)
    start_s = (opened.load_s or 0.0) + time.perf_counter() - begin
    subjects: dict[str, list[Prompt]] = {}
    for prompt in opened.prompts:
        subjects.setdefault(prompt.subject, []).append(prompt)
    every = [members[: SIZES[i % len(SIZES)]] for i, members in enumerate(subjects.values())]
    journal = Journal(folder / f"timed-{os.getpid()}.jsonl", {})
    run.part(every[-1], None)
    ready()
    before = cpu_contention()
    seconds, parts = [], []
    for prompts in every:
        begin = time.perf_counter()
        part = run.part(prompts, journal.append)
        seconds.append(time.perf_counter() - begin)
        parts.append(part.answers)
    journal.finish()
    after = cpu_contention()
    waited = after[1] - before[1] if after and before else 0.0
    if waited > BUSY * sum(seconds):
        print(f"{waited:.1f} of {sum(seconds):.1f} s waited for a core: measure on an idle machine")
    return {
        "units": [asdict(_work(run, prompts)) for prompts in every],
        "seconds": seconds,
        "start_s": start_s,
        "cut_s": _seconds_of(lambda: cut(opened.prompts, 2, run.cost)) / len(opened.prompts),
        "tail_s": _tail_s(run, opened.prompts, parts),
    }


def _work(run: AccuracyRun, prompts: Sequence[Prompt]) -> Work:
    runner: Any = run.runner
    return work(runner.plan(prompts), runner.least_rows)


def _tail_s(run: AccuracyRun, prompts: Sequence[Prompt], parts: Sequence[Answers]) -> float:
    """Merging, and answering a sample again by the plain path."""
    sample = prompts[:: max(1, len(prompts) // VERIFIED)][:VERIFIED]
    run_pass(run.oracle, sample[:2], "last")
    return _seconds_of(lambda: (union(parts), run_pass(run.oracle, sample, "last")))


def _seconds_of(what: Any) -> float:
    begin = time.perf_counter()
    what()
    return time.perf_counter() - begin


# 2. What the pass should take


def _foretell(cost: Cost, slowdown: float, out: Path, engine: EngineName) -> dict[int, float]:
    """Seconds of the pass, by number of processes."""
    case, opened = _open(out, "asked")
    run = CaseRun(case, opened, current_device()).helper(engine)
    prompts = {prompt.id: prompt for prompt in opened.prompts}
    foretold = {1: cost.seconds(_work(run, opened.prompts))}
    for ranks in RANKS[1:]:
        units = cut(opened.prompts, ranks, run.cost)
        seconds = [
            slowdown * cost.seconds(_work(run, [prompts[name] for name in unit.ids]))
            for unit in units
        ]
        foretold[ranks] = cost.cut_s * len(prompts) + last_ends(seconds, ranks)
    opened.close()
    return foretold


# 3. What it takes


def _pass(ranks: int, out: Path, engine: EngineName) -> tuple[float, str]:
    """The pass' seconds, as the record of a session says, and the questions of each rank."""
    folder = out / f"session-{ranks}"
    shutil.rmtree(folder, ignore_errors=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [
        *(sys.executable, *(launcher if ranks > 1 else []), "-m", "pytest", "-q", "-m", "accuracy"),
        *("-k", engine, "-p", "no:cacheprovider", f"--cases={CASE}", f"--case-dir={out / 'cases'}"),
        *(f"--data-dir={out / 'asked'}", f"--results={folder / 'run.json'}"),
        *(f"--baselines={out / 'baselines'}", str(ROOT / "tests" / "accuracy")),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
    found, name = record.load(folder / "run.json").cases[CASE], pass_name(engine)
    everything = str(int(found.metrics[f"acc_{name}_questions"].value))
    given = str(found.notes.get(f"accuracy_questions_by_rank_{name}", everything))
    return found.metrics[f"acc_{name}_time"].value, given


# The case, and its questions in two halves


def lay_out(mmlu: Path, out: Path, every: int) -> None:
    """Write the case, and its data twice: the questions to ask, and those of the timed units.

    Asked is 1 of ``every`` questions of each subject, so that subjects are as unequal as they are;
    timed are questions that follow, of every second subject.
    """
    text = yaml.safe_load((cases.PACKAGED_CASES / "tiny.yaml").read_text())
    text["case"] = CASE
    text["mmlu"]["max_prompt_tokens"] = 4096  # the embedded tokenizer knows few words
    (out / "cases").mkdir(exist_ok=True)
    (out / "cases" / f"{CASE}.yaml").write_text(yaml.safe_dump(text), encoding="utf-8")
    tests = sorted((mmlu / "test").glob("*.csv"))
    if not tests:
        raise SystemExit(f"{mmlu}: holds no test/*.csv; --mmlu is the directory of the real MMLU")
    source = data.PACKAGED_DATA / text["model"]["case_dir"] / text["model"]["weight_dir"]
    for half in HALVES:
        home = out / half / text["model"]["case_dir"]
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(source, home / text["model"]["weight_dir"])
        questions = home / text["mmlu"]["mmlu_dir"]
        for split in ("dev", "test"):
            (questions / split).mkdir(parents=True)
        for path in tests if half == "asked" else tests[::2]:
            rows = read_rows(path)
            asked = -(-len(rows) // every)
            chosen = rows[:asked] if half == "asked" else rows[asked : asked + max(SIZES)]
            write_rows(questions / "test" / path.name, chosen)
            dev = path.name.replace("_test.csv", "_dev.csv")
            shutil.copy(mmlu / "dev" / dev, questions / "dev" / dev)


def read_rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def write_rows(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def _open(out: Path, half: str) -> tuple[Case, LoadedCase]:
    case = cases.load_case(out / "cases" / f"{CASE}.yaml")
    return case, open_case(case, current_device(), out / half, "real")


if __name__ == "__main__":
    place, name, shared, n, k = sys.argv[1:]
    worker(Path(place), "eager" if name == "eager" else "inductor", Path(shared), int(n), int(k))
