"""What did one session measure? ``results/run.json``: written by pytest, read by the CLI.

A record is rewritten, whole and at once, after every test, and says ``partial`` until the session
has ended by itself: what an interrupt or a kill leaves behind can be read, and is never accepted
as a baseline.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from perfline import jsonfile
from perfline.cases.case import WeightsKind
from perfline.engines.engine import Fingerprint
from perfline.engines.environment import LAYOUT, Environment
from perfline.errors import RecordError
from perfline.fields import OPTIONAL, OUTSIDE, Node, Scalar, as_json
from perfline.gates.verdict import Verdict
from perfline.measure.notices import Notice
from perfline.metrics import Metric
from perfline.tasks.answers import StoredAnswers
from perfline.tasks.reference import Reference

SCHEMA = 1
ABSENT = "absent: "  # so begins what is said, once, of a case or task whose data are not there
_FIX = "run pytest again"
_CASE_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")  # it stands in paths, commands and tables


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
        errors: tests that ended without a verdict, one line each; see ``ABSENT``.
        reference: what was computed in fp32; None where that was not asked.
        fingerprints: what runs in a forward, by engine; ``<engine> decode``: in generated tokens.
        tasks: as ``--tasks`` named them; empty where it did not.
        not_asked: why tasks that were to be asked were not, by name: their questions are absent.
        token_times: seconds of the first token, the second, and so on, one by one behind a single
            prompt: the median of each over prompts and rounds; by engine.
    """

    case: str = field(metadata=OUTSIDE)
    title: str
    digest: str
    dtype: str
    weights: WeightsKind
    workload: Mapping[str, Scalar] = field(default_factory=dict)
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    accuracy: Mapping[str, StoredAnswers] = field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()
    notes: Mapping[str, Scalar] = field(default_factory=dict)
    facts: Mapping[str, Scalar] = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    reference: Reference | None = field(default=None, metadata=OPTIONAL)
    fingerprints: Mapping[str, Fingerprint] = field(default_factory=dict, metadata=OPTIONAL)
    token_times: Mapping[str, tuple[float, ...]] = field(default_factory=dict, metadata=OPTIONAL)
    tasks: tuple[str, ...] = field(default=(), metadata=OPTIONAL)
    not_asked: Mapping[str, str] = field(default_factory=dict, metadata=OPTIONAL)


@dataclass(frozen=True)
class Record:
    """What one pytest session measured: ``results/run.json``, by case."""

    created: str  # ISO 8601, UTC
    partial: bool
    environment: Environment
    cases: Mapping[str, CaseRecord]
    notices: tuple[Notice, ...] = field(default=(), metadata=OPTIONAL)  # what other packages said


def absence(why: str) -> str:
    """The error's line of a case, or a task, that is absent."""
    return ABSENT + why.partition("\n")[0]


def save(path: Path, record: Record) -> None:
    """Replace the file at once; RecordError where it cannot be written."""
    notices = as_json(record.notices)  # an empty list, too
    data = {"schema": SCHEMA, "notices": notices, **as_json(record)}
    jsonfile.write(path, data, RecordError)


def check_writable(path: Path) -> None:
    """Raise RecordError if :func:`save` could not work: before hours of measuring, not after."""
    jsonfile.check_writable(path, RecordError)


def load(path: Path | str) -> Record:
    """Read a record; RecordError says which key of the file is wrong."""
    node = jsonfile.read(Path(path), SCHEMA, RecordError, _FIX, "record")
    record = node.build(Record)
    check_names(node, record.cases)
    place = record.environment
    ends = LAYOUT.fullmatch(place.layout) and place.machine.endswith(f"-{place.layout}")
    if place.layout and not ends:
        node.fail(
            "environment.layout",
            f"is {place.layout[:40]!r}, and the machine {place.machine[:80]!r} (expected a layout "
            "such as 'x8' that ends the machine's name: the record was edited)",
        )
    return record


def check_names(node: Node, cases: Iterable[str]) -> None:
    """Refuse names of cases that perfline writes for none."""
    for name in cases:
        if not _CASE_NAME.fullmatch(name):
            node.fail("cases", f"has a case named {name[:40]!r} (expected {_CASE_NAME.pattern})")
