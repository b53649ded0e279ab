"""What does the page look like? Five sample sessions, made up, judged by the real gates.

    python scripts/page_samples.py OUT        writes OUT/<sample>/..., and OUT/<sample>.html

ok: all is well; regression: slower, throttled, answers flipped; compare: A against B; missing: no
baseline; history: 57 subjects and 200 past records. The numbers are invented and say so in their
reason; nothing here was measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import random
import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from perfline.baselines import baseline
from perfline.cases.case import Case, load_cases
from perfline.cases.data import find_mmlu
from perfline.compare import gates
from perfline.compare import record as compare_file
from perfline.compare.model import SIDES, Round
from perfline.compare.record import (
    AnswersRecord,
    CaseComparison,
    Comparison,
    LaunchRecord,
    PairRecord,
    SideRecord,
)
from perfline.compare.sequential import LOOKS, decide
from perfline.engines.environment import Environment
from perfline.gates import accuracy as accuracy_gates
from perfline.gates import performance, verdict
from perfline.gates.verdict import Verdict
from perfline.measure import record
from perfline.measure.record import CaseRecord, Record
from perfline.metrics import Metric, mfu
from perfline.tasks.answers import StoredAnswers
from perfline.tasks.prompts import load_subjects, question_set_digest

MACHINE = "nvidia-h100-80gb-hbm3"
CONTEXT = {
    "python": "3.11.7",
    "torch": "2.12.1",
    "triton": "3.5.1",
    "transformers": "5.22.0",
    "cuda": "13.0",
    "driver": "580.82.07",
    "commit": "1a2b3c4d5e6f",
}
NEWER = {"torch": "2.13.0", "triton": "3.6.0", "driver": "585.11.02", "commit": "9f8e7d6c5b4a"}
WORKLOAD = {"questions": 64, "tokens": 43000, "full_pass": False}
REPOSITORY = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Run:
    """How one made-up session goes.

    Attributes:
        factor: speed as a multiple of the usual one; drift: of the last round over the first.
        lost, gained: questions that flip against the usual answers.
    """

    date: str
    seed: int
    factor: float = 1.0
    drift: float = 0.0
    lost: int = 0
    gained: int = 0
    context: dict[str, str] = dataclasses.field(default_factory=lambda: dict(CONTEXT))


def questions_of(case: Case) -> list[tuple[str, str]]:
    """(id, label) of every question; of a case without data, by the real lengths per subject."""
    if case.id == "tiny":
        subjects = load_subjects(find_mmlu(case, None), case.mmlu.few_shots)
        return [(q.id, q.label) for subject in subjects for q in subject.test]
    text = resources.files("perfline.tasks").joinpath("mmlu_token_lengths.json").read_text("utf-8")
    labels = random.Random(0)
    return [
        (f"{subject}/{index}", labels.choice("ABCD"))
        for subject, lengths in sorted(json.loads(text)["subjects"].items())
        for index in range(len(lengths["question_tokens"]))
    ]


@functools.cache
def usual_answers(name: str) -> tuple[tuple[str, str, str, str, float], ...]:
    """The usual answers: about two thirds right, harder in some subjects than in others."""
    (case,) = load_cases([name])
    chance, rows = random.Random(1), []
    for name, label in questions_of(case):
        subject = name.rpartition("/")[0]
        ease = 0.45 + 0.45 * random.Random(subject).random()
        letter = label if chance.random() < ease else chance.choice("ABCD".replace(label, ""))
        rows.append((name, letter, letter, label, round(chance.expovariate(0.5), 2)))
    return tuple(rows)


@functools.cache
def order_of(name: str) -> tuple[int, ...]:
    """Which questions flip first: close ones, most of them in a few subjects."""
    rows = usual_answers(name)
    weights = {s: random.Random(f"{s} flips").random() for s in {_subject(row[0]) for row in rows}}
    return tuple(sorted(range(len(rows)), key=lambda i: rows[i][4] * weights[_subject(rows[i][0])]))


def _subject(question: str) -> str:
    return question.rpartition("/")[0]


def answers(case: Case, run: Run) -> StoredAnswers:
    """The usual answers with the run's flips."""
    rows = list(usual_answers(case.id))
    order = order_of(case.id)
    lost = [i for i in order if rows[i][1] == rows[i][3]][: run.lost]
    gained = [i for i in order if rows[i][1] != rows[i][3]][: run.gained]
    for i in lost:
        name, _, _, label, margin = rows[i]
        wrong = "ABCD"["ABCD".index(label) - 1]
        rows[i] = (name, wrong, wrong, label, margin)
    for i in gained:
        name, _, _, label, margin = rows[i]
        rows[i] = (name, label, label, label, margin)
    return StoredAnswers.of(
        rows, date=run.date, commit=run.context.get("commit"), reason="made up", context={}
    )


def metrics(case: Case, run: Run, given: StoredAnswers) -> dict[str, Metric]:
    """What such a session would have measured."""
    noise = random.Random(run.seed)
    session = run.factor * math.exp(noise.gauss(0, 0.003))
    found = []
    for name, usual in (
        ("p_val_core", 15210.0),
        ("p_val_whole", 15060.0),
        ("p_infer_core", 18740.0),
        ("p_infer_whole", 18390.0),
    ):
        slope = run.drift if "infer" in name else 0.0
        rounds = tuple(
            usual * session * (1 + slope * i / 6) * math.exp(noise.gauss(0, 0.0015))
            for i in range(7)
        )
        found.append(Metric(name, sorted(rounds)[3], "tok/s", "higher", rounds))
    core = found[2].value
    clock = tuple(1980.0 * (1 + run.drift * i / 6) for i in range(7))
    accuracy = given.scored(case.mmlu.scoring).correct / len(given.ids)
    usage = mfu(core, case.model.nominal_parameters, 989e12)
    assert usage is not None
    found += [
        Metric("mfu", usage, "fraction", "info"),
        Metric("sm_clock", min(clock), "MHz", "info", clock),
        Metric("mem", 15.9 + noise.gauss(0, 0.002), "GiB", "lower"),
        Metric("mem_val", 15.6 + noise.gauss(0, 0.002), "GiB", "lower"),
        Metric("load_peak", 15.2, "GiB", "info"),
        Metric("graphs", 1, "count", "lower"),
        Metric("graph_breaks", 0, "count", "lower"),
        Metric("recompiles", 0, "count", "lower"),
        Metric("load_time", 21.4 + noise.gauss(0, 1), "s", "info"),
        Metric("compile_time", 48.0 + noise.gauss(0, 2), "s", "info"),
        Metric("warmup_time", 3.1, "s", "info"),
        Metric("warmup_time_val", 3.6, "s", "info"),
        Metric("timed_time", 16.4 / run.factor, "s", "info"),
        Metric("timed_time_val", 19.8 / run.factor, "s", "info"),
        Metric("acc_infer_time", 402.0, "s", "info"),
        Metric("acc_val_time", 466.0, "s", "info"),
        Metric("e2e_time", 1003.0 + noise.gauss(0, 6), "s", "info"),
        Metric("acc_infer", accuracy, "fraction", "higher"),
        Metric("acc_val", accuracy, "fraction", "higher"),
    ]
    return {metric.name: metric for metric in found}


def judged(
    case: Case, found: dict[str, Metric], given: StoredAnswers, stored: baseline.Baseline | None
) -> tuple[Verdict, ...]:
    """The verdicts of the suite's own gates."""
    verdicts = []
    for metric in found.values():
        if metric.direction == "info" or metric.name.startswith("acc_"):
            continue
        if stored is None:
            verdicts.append(verdict.missing(metric, "no stored value in baselines/"))
        else:
            held = performance.Held(stored.values(metric.name))
            verdicts.append(
                performance.against_sessions(metric, held, case.gates, performance.Run())
            )
    for engine, name in (("eager", "acc_val"), ("inductor", "acc_infer")):
        if stored is None:
            verdicts.append(verdict.missing(found[name], "no stored answers in baselines/"))
            continue
        before = stored.accuracy[engine].scored(case.mmlu.scoring)
        after = given.scored(case.mmlu.scoring)
        verdicts.append(accuracy_gates.accuracy_baseline(name, before, after, case.gates))
    return tuple(verdicts)


def session(case: Case, run: Run, stored: baseline.Baseline | None) -> Record:
    """One made-up session, judged."""
    given = answers(case, run)
    found = metrics(case, run, given)
    facts = {"weights": "sha256:0123456789abcdef"}
    if case.id == "tiny":
        facts["mmlu"] = question_set_digest(
            load_subjects(find_mmlu(case, None), case.mmlu.few_shots)
        )
    measured = CaseRecord(
        case=case.id,
        title=case.title,
        digest=case.digest(),
        dtype=case.model.precision,
        weights="real",
        workload=WORKLOAD,
        metrics=found,
        accuracy={"eager": given, "inductor": given},
        verdicts=judged(case, found, given, stored),
        notes={"compile_cache": "cold", "accuracy_path_infer": "shared-prefix"},
        facts=facts,
    )
    environment = Environment(MACHINE, "NVIDIA H100 80GB HBM3", "cuda", run.context)
    return Record(run.date, False, environment, {case.id: measured})


def accepted(case: Case, runs: Sequence[Run]) -> baseline.Baseline:
    """A baseline of such sessions."""
    sessions = []
    for run in runs:
        made = session(case, run, None).cases[case.id]
        kept = {
            name: metric
            for name, metric in made.metrics.items()
            if (metric.direction != "info" and not name.startswith("acc_"))
            or name == "compile_time"
        }
        context = {k: v for k, v in run.context.items() if k != "commit"} | dict(made.facts)
        sessions.append(
            baseline.Session(
                run.date, run.context["commit"], "made up", context, made.workload, kept
            )
        )
    given = answers(case, runs[-1])
    return baseline.Baseline(
        case=case.id,
        machine=MACHINE,
        case_digest=case.digest(),
        dtype=case.model.precision,
        accuracy={"eager": given, "inductor": given},
        sessions=tuple(sessions),
    )


def comparison(slowdown: float, pairs: int) -> Comparison:
    """A made-up comparison of two environments."""
    (case,) = load_cases(["llama3-8b"])
    noise = random.Random(7)
    sides = {
        name: SideRecord(
            python=f"/venvs/{'old' if name == 'baseline' else 'new'}/bin/python",
            ref=None,
            env={},
            settings={},
            imports=(),
            machine=MACHINE,
            device="NVIDIA H100 80GB HBM3",
            dtype="fp16",
            digest=case.digest(),
            context=CONTEXT if name == "baseline" else CONTEXT | NEWER,
            facts={"weights": "sha256:0123456789abcdef"},
        )
        for name in SIDES
    }

    def launch(factor: float, peak: float) -> LaunchRecord:
        rounds = tuple(
            Round(1.79e9 + i, 43000, 2.29 * factor * math.exp(noise.gauss(0, 0.002)), 2.4 * factor)
            for i in range(6)
        )
        return LaunchRecord(
            *(74.0, 21.0, 47.0 * factor, 3.1, 2.29), *(1, 0, 0), peak, rounds, rounds[:2]
        )

    made = []
    for number in range(pairs):
        side = math.exp(noise.gauss(0, 0.004))
        made.append(
            PairRecord(
                first=SIDES[number % 2],
                interleaved=True,
                wall_s=112.0,
                rounds_s=32.0,
                baseline=launch(side, 15.9),
                candidate=launch(side * (1 + slowdown) * math.exp(noise.gauss(0, 0.004)), 15.9),
                void="another process computes on the GPU (pid 4711)" if number == 4 else "",
            )
        )
    found = CaseComparison(
        case=case.id,
        title=case.title,
        engine="inductor",
        weights="real",
        questions=200,
        margin_fraction=0.02,
        looks=LOOKS,
        alpha=0.00166,
        rounds=6,
        rounds_reason="as the spreads ask for",
        sides=sides,
        difference="torch 2.12.1 -> 2.13.0",
        repeats=1,
        pairs=tuple(made),
        answers=AnswersRecord(200, 131, 130, 0.021, 0.0009, 0.004),
        ended=True,
    )
    found = dataclasses.replace(found, decision=decide(found.log_ratios(), math.log1p(0.02)))
    verdicts = gates.judge(found, case.gates, (), None)
    found = dataclasses.replace(found, verdicts=verdicts)
    command = (
        "perfline compare llama3-8b --baseline-python /venvs/old --set engine.mode=max-autotune"
    )
    return Comparison("2026-11-22T09:00:00Z", False, command, {case.id: found})


def make(out: Path) -> dict[str, list[str]]:
    """Write all samples below ``out``; return the arguments of ``perfline report`` for each."""
    llama, tiny = load_cases(["llama3-8b", "tiny"])
    before = [Run(f"2026-11-{10 + i}T02:00:00Z", 100 + i) for i in range(5)]
    now = "2026-11-22T02:00:00Z"
    made: dict[str, list[str]] = {}

    def add(name: str, case: Case, run: Run, runs: Sequence[Run], past: Sequence[Run] = ()) -> None:
        place = out / name
        stored = accepted(case, runs) if runs else None
        shutil.copytree(REPOSITORY / "baselines" / "published", place / "baselines" / "published")
        if stored is not None:
            path = baseline.path(place / "baselines", MACHINE, case.id, dummy=False)
            baseline.save(path, stored)
        record.save(place / "run.json", session(case, run, stored))
        files = []
        for i, each in enumerate(past):
            files.append(place / "records" / f"{i:03}.json")
            whole = session(case, each, stored)
            # A history does not read answers, and writing them 200 times takes a minute.
            bare = dataclasses.replace(whole.cases[case.id], accuracy={})
            record.save(files[-1], dataclasses.replace(whole, cases={case.id: bare}))
        where = [place / "run.json", *files]
        made[name] = [*map(str, where), f"--baselines={place / 'baselines'}"]

    add("ok", llama, Run(now, 1, lost=9, gained=8), before, before)
    slow = Run(now, 2, 0.71, -0.08, lost=46, gained=7, context=CONTEXT | NEWER)
    add("regression", tiny, slow, before, before)
    add("missing", tiny, Run(now, 3), ())
    nights = [
        Run(
            f"2026-{5 + i // 30:02}-{1 + i % 30:02}T02:00:00Z",
            1000 + i,
            factor=(0.97 if i < 80 else 1.0) * (0.9 if i == 140 else 1.0),
            lost=i % 7,
            gained=i % 5,
        )
        for i in range(200)
    ]
    night = dataclasses.replace(before[0], factor=1.0)
    add("history", llama, Run(now, 4, lost=60, gained=22), [*nights[150:153], night], nights)
    (out / "compare").mkdir(parents=True, exist_ok=True)
    compare_file.save(out / "compare" / "compare.json", comparison(0.031, 15))
    made["compare"] = [str(out / "compare" / "compare.json")]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    from perfline.cli import report as report_cli

    commands = argparse.ArgumentParser()
    report_cli.add_report(commands.add_subparsers())
    for name, arguments in make(out).items():
        args = commands.parse_args(["report", *arguments, "-o", str(out / f"{name}.html")])
        args.run_command(args)


if __name__ == "__main__":
    main()
