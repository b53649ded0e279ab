"""What did one session measure? ``results/run.json``: written by pytest, read by the CLI.

A record is rewritten, whole and at once, after every test, and says ``partial`` until the session
has ended by itself: what an interrupt or a kill leaves behind can be read, and is never accepted
as a baseline.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast, get_args

from perfline import jsonfile
from perfline.engines.environment import LAYOUT, Environment
from perfline.errors import MetricError, RecordError
from perfline.gates.verdict import Flip, Gate, Verdict, Word
from perfline.jsonfile import Node, Scalar
from perfline.measure.notices import Notice, read_notices
from perfline.metrics import Metric
from perfline.tasks.answers import StoredAnswers

SCHEMA = 1
_FIX = "run pytest again"
CASE_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")  # it stands in paths, commands and tables


@dataclass(frozen=True)
class CaseRecord:
    """What one session measured of one case.

    Attributes:
        weights: ``real``, or ``dummy`` under ``--dummy-weights``.
        workload: what the throughput was timed over; empty where it was not timed.
        metrics: by name.
        accuracy: answers to all questions, by engine.
        verdicts: in the order of the tests.
        notes: what was seen beside the metrics, such as ``compile_cache: cold``.
        facts: what was measured, such as the weights' digest; part of a baseline's context.
        errors: tests that ended without a verdict, one line each.
    """

    case: str
    title: str
    digest: str
    dtype: str
    weights: str
    workload: Mapping[str, Scalar] = field(default_factory=dict)
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    accuracy: Mapping[str, StoredAnswers] = field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()
    notes: Mapping[str, Scalar] = field(default_factory=dict)
    facts: Mapping[str, Scalar] = field(default_factory=dict)
    errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """What one pytest session measured: ``results/run.json``, by case."""

    created: str  # ISO 8601, UTC
    partial: bool
    environment: Environment
    cases: Mapping[str, CaseRecord]
    notices: tuple[Notice, ...] = ()  # what other packages said


def save(path: Path, record: Record) -> None:
    """Replace the file at once; RecordError where it cannot be written."""
    data: dict[str, object] = {
        "schema": SCHEMA,
        "created": record.created,
        "partial": record.partial,
        "environment": _environment_json(record.environment),
        "cases": {name: _case_json(case) for name, case in record.cases.items()},
        "notices": [asdict(notice) for notice in record.notices],
    }
    jsonfile.write(path, data, RecordError)


def check_writable(path: Path) -> None:
    """Raise RecordError if :func:`save` could not work: before hours of measuring, not after."""
    jsonfile.check_writable(path, RecordError)


def load(path: Path) -> Record:
    """Read a record; RecordError says which key of the file is wrong."""
    node = jsonfile.read(path, SCHEMA, RecordError, _FIX, "record")
    place = node.child("environment")
    environment = Environment(
        machine=place.text("machine"),
        device=place.text("device"),
        kind=place.text("kind"),
        context={key: str(value) for key, value in place.scalars("context").items()},
        layout=place.text("layout") if "layout" in place.data else "",
    )
    if environment.layout and not (
        LAYOUT.fullmatch(environment.layout)
        and environment.machine.endswith(f"-{environment.layout}")
    ):
        raise RecordError(
            f"{path}: key 'environment.layout' is {environment.layout[:40]!r}, and the machine "
            f"{environment.machine[:80]!r}; expected a layout such as 'x8' that ends the machine's "
            "name: the record was edited; run pytest again"
        )
    return Record(
        created=node.text("created"),
        partial=node.flag("partial"),
        environment=environment,
        cases={name: _case(name, child) for name, child in node.child("cases").children()},
        notices=read_notices(node),
    )


def _environment_json(environment: Environment) -> dict[str, object]:
    data = asdict(environment)
    if not environment.layout:
        del data["layout"]
    return data


def _case_json(case: CaseRecord) -> dict[str, object]:
    return {
        "title": case.title,
        "digest": case.digest,
        "dtype": case.dtype,
        "weights": case.weights,
        "workload": dict(case.workload),
        "metrics": {name: metric.to_json() for name, metric in case.metrics.items()},
        "accuracy": {engine: stored.to_json() for engine, stored in case.accuracy.items()},
        "verdicts": [asdict(verdict) for verdict in case.verdicts],
        "notes": dict(case.notes),
        "facts": dict(case.facts),
        "errors": list(case.errors),
    }


def _case(name: str, node: Node) -> CaseRecord:
    if not CASE_NAME.fullmatch(name) or node.text("weights") not in ("real", "dummy"):
        node.fail("weights", "or the case's name is none that perfline writes")
    metrics: dict[str, Metric] = {}
    for metric, child in node.child("metrics").children():
        try:
            metrics[metric] = Metric.from_json(metric, child.data)
        except MetricError as problem:
            node.fail(f"metrics.{metric}", f"is wrong ({problem})")
    return CaseRecord(
        case=name,
        title=node.text("title"),
        digest=node.text("digest"),
        dtype=node.text("dtype"),
        weights=node.text("weights"),
        workload=node.scalars("workload"),
        metrics=metrics,
        accuracy={
            engine: StoredAnswers.from_json(child)
            for engine, child in node.child("accuracy").children()
        },
        verdicts=tuple(read_verdict(child) for child in node.items("verdicts")),
        notes=node.scalars("notes"),
        facts=node.scalars("facts"),
        errors=node.texts("errors"),
    )


def read_verdict(node: Node) -> Verdict:
    """One verdict of a record or a comparison; the file's own error where a key is wrong."""
    numbers = ("baseline", "baseline_error", "measured", "measured_error")
    changes = ("change_fraction", "change_pp")
    word, gate = node.text("word"), node.text("gate")
    if word not in get_args(Word) or gate not in get_args(Gate):
        node.fail("word", f"is '{word}' of gate '{gate}'; this perfline knows neither or one")
    return Verdict(
        metric=node.text("metric"),
        word=cast("Word", word),
        gate=cast("Gate", gate),
        unit=node.text("unit"),
        limit=str(node.data.get("limit", "")),
        reason=str(node.data.get("reason", "")),
        flips=tuple(
            Flip(
                flip.text("id"),
                flip.text("label"),
                flip.text("before"),
                flip.text("after"),
                flip.optional_number("margin"),
            )
            for flip in node.items("flips")
        ),
        **{key: node.optional_number(key) for key in (*numbers, *changes)},
    )
