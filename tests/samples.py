"""Hand-built records for the tests of what reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from perfline.cases.case import Case, load_cases
from perfline.engines.environment import Environment
from perfline.gates.verdict import Gate, Verdict, Word
from perfline.measure import record as records
from perfline.measure.record import CaseRecord, Record
from perfline.metrics import Metric
from perfline.report.page_inputs import CaseInputs, Inputs
from perfline.tasks.answers import LETTERS, Answers, StoredAnswers

MACHINE = "cpu-test-2-cores"
CONTEXT = {"torch": "2.13.0", "commit": "abc123456789"}
WORKLOAD = {"questions": 64, "tokens": 9000, "full_pass": False}


def packaged(name: str = "tiny") -> Case:
    (case,) = load_cases([name])
    return case


def answers(wrong: Iterable[int] = (), n: int = 400, reason: str = "measured") -> StoredAnswers:
    """``n`` questions, all right but those in ``wrong``."""
    missed = set(wrong)
    rows = []
    for i in range(n):
        label = "ABCD"[i % 4]
        given = "ABCD"[(i + 1) % 4] if i in missed else label
        rows.append((f"sky/{i}", given, given, label, 1.5))
    return StoredAnswers.of(
        rows, date="2026-11-22T10:00:00Z", commit="abc123456789", reason=reason, context={}
    )


def given(wrong: int = 0, n: int = 400) -> Answers:
    """The same questions as an engine answers them, the first ``wrong`` wrongly."""
    right = [i % 4 for i in range(n)]
    chosen = np.array([(i + (i < wrong)) % 4 for i in range(n)])
    letters, labels = ("".join(LETTERS[i] for i in row) for row in (chosen, right))
    logits = 5 * np.eye(4, dtype=np.float32)[chosen]
    return Answers(tuple(f"sky/{i}" for i in range(n)), logits, chosen, letters, labels, (5,) * n)


def speed(name: str, tok_per_s: float, rounds: int = 7) -> Metric:
    samples = tuple(tok_per_s * (1 + (i - (rounds - 1) / 2) / 1000) for i in range(rounds))
    return Metric(name, tok_per_s, "tok/s", "higher", samples)


def metrics(tok_per_s: float = 1000.0, rounds: int = 7) -> dict[str, Metric]:
    found = [
        speed("p_val_core", tok_per_s / 2, rounds),
        speed("p_infer_core", tok_per_s, rounds),
        Metric("mem", 1.5, "GiB", "lower"),
        Metric("graphs", 2.0, "count", "lower"),
        Metric("graph_breaks", 0.0, "count", "lower"),
        Metric("compile_time", 9.5, "s", "info"),
        Metric("load_time", 0.3, "s", "info"),
        Metric("acc_infer", 0.7, "fraction", "higher"),
    ]
    return {metric.name: metric for metric in found}


def verdict(metric: str, word: Word, gate: Gate = "baseline", **values: Any) -> Verdict:
    unit = "tok/s" if metric.startswith("p_") else "fraction"
    return Verdict(**({"metric": metric, "word": word, "gate": gate, "unit": unit} | values))


def case_record(name: str = "tiny", weights: str = "real", **changes: Any) -> CaseRecord:
    case = packaged(name)
    whole = CaseRecord(
        case=name,
        title=case.title,
        digest=case.digest("dummy" if weights == "dummy" else "real"),
        dtype=case.model.precision,
        weights=weights,
        workload=WORKLOAD,
        metrics=metrics(),
        accuracy={} if weights == "dummy" else {"eager": answers(), "inductor": answers()},
    )
    return dataclasses.replace(whole, **changes)


def record(*cases: CaseRecord, **changes: Any) -> Record:
    whole = Record(
        created="2026-11-22T10:00:00Z",
        partial=False,
        environment=Environment(MACHINE, "Test CPU", "cpu", dict(CONTEXT)),
        cases={case.case: case for case in cases or (case_record(),)},
    )
    return dataclasses.replace(whole, **changes)


def saved(directory: Path, whole: Record, name: str = "run.json") -> Path:
    path = directory / name
    records.save(path, whole)
    return path


def inputs(whole: Record, **changes: Any) -> Inputs:
    """What a report of a record is made of, with nothing beside it but ``changes``."""
    cases = {name: CaseInputs(case) for name, case in whole.cases.items()}
    found = Inputs(Path("run.json"), whole, cases, flags="--run run.json")
    return dataclasses.replace(found, **changes)
