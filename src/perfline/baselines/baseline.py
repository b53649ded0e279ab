"""What did an accepted run measure? ``baselines/<machine>/<case>.json`` and its rules.

A baseline holds the answers of each engine, question by question, and the throughput of one or more
sessions with their raw rounds. Identity (case, machine, case digest, dtype) must match for a
verdict; context (versions, driver, commit) is shown beside it. Reading checks everything, so that a
torn or hand-edited file is one clear line.

Sessions are replaced by later ones that are no worse than the margin allows, and so a loss could
creep in, step by step. Hence the *anchor* of a metric: the sessions that were last accepted on
purpose - as the first ones, as an improvement, or with ``--accept-regression``. It is stored where
an ``ok`` run has replaced them, it stays until one of those three moves it, and a run is held to
the anchor as well as to the latest sessions.

An update goes::

    with locked(path):
        old = load(path) if path.exists() else None
        save(path, merge(old, measured, add=False))
"""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from perfline import jsonfile
from perfline.engines.engine import Fingerprint
from perfline.errors import BaselineError
from perfline.fields import OPTIONAL, Node, Scalar, as_json
from perfline.metrics import Metric
from perfline.tasks.answers import StoredAnswers
from perfline.tasks.reference import Reference

SCHEMA = 2  # 2: anchors
PUBLISHED_SCHEMA = 1
DUMMY_SUFFIX = "-dummy"  # of the baseline of a case measured with random weights
PUBLISHED = "published"  # the directory beside the machines'

# The known units of stored metrics, with the directions they can have.
_DIRECTIONS = {
    "tok/s": ("higher", "info"),
    "GiB": ("lower", "info"),
    "count": ("lower", "info"),
    "s": ("lower", "info"),
    "fraction": ("higher", "lower", "info"),
    "tok": ("info",),
    "questions": ("info",),
    "x": ("higher", "info"),
    "questions/s": ("higher", "info"),
}
_LEAST = {"tok/s": 1e-3, "GiB": 1e-6}  # below: a wrong unit, or a broken timer
_SLUG = re.compile(r"[a-z0-9][a-z0-9-]*")

_FIX = (
    "restore it with `git restore`; or remove it (`perfline baselines remove`), run again, "
    "and accept that run"
)


@dataclass(frozen=True)
class Session:
    """The timed metrics of one run, as they were accepted."""

    date: str  # ISO 8601
    commit: str | None
    reason: str
    context: Mapping[str, Scalar]  # versions, driver, clocks: shown, never compared
    workload: Mapping[str, Scalar]  # what was timed: sessions of other workloads do not compare
    metrics: Mapping[str, Metric]
    # With what it can be run again; None in files of an older perfline.
    packages: Mapping[str, str] | None = field(default=None, metadata=OPTIONAL)
    variables: Mapping[str, str] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Anchor:
    """What was last accepted on purpose of one metric, by sessions since replaced.

    Attributes:
        metric: its samples are the sessions' values, its value is their mean.
        date, commit, reason: of the last of those sessions.
    """

    metric: Metric
    date: str
    commit: str | None
    reason: str


@dataclass(frozen=True)
class Baseline:
    """All that is accepted for one case on one machine."""

    case: str
    machine: str
    case_digest: str
    dtype: str
    accuracy: Mapping[str, StoredAnswers] = field(default_factory=dict)  # by engine
    sessions: tuple[Session, ...] = ()
    anchors: Mapping[str, Anchor] = field(default_factory=dict)  # of metrics that have moved on
    reference: Reference | None = field(default=None, metadata=OPTIONAL)  # in fp32
    fingerprints: Mapping[str, Fingerprint] = field(default_factory=dict, metadata=OPTIONAL)

    @property
    def newest(self) -> Session | StoredAnswers | Reference | None:
        """What tells where the baseline came from: the last session, else answers, else fp32."""
        if self.sessions:
            return self.sessions[-1]
        return next(iter(self.accuracy.values()), self.reference)

    def anchor(self, metric: str) -> tuple[tuple[float, ...], str]:
        """Return the metric's anchor, a value a session, and its day; none: its sessions are it."""
        anchor = self.anchors.get(metric)
        return ((), "") if anchor is None else (tuple(anchor.metric.samples), anchor.date[:10])

    def values(self, metric: str) -> tuple[float, ...]:
        """Return the metric's value of every session that has it, oldest first."""
        return tuple(s.metrics[metric].value for s in self.sessions if metric in s.metrics)


@dataclass(frozen=True)
class Figure:
    """One published number.

    Attributes:
        judged: False where it is shown beside what is measured and no verdict rests on it, such as
            that of another framework.
    """

    value: float = field(metadata={"gt": 0})
    unit: Literal["tok/s", "fraction", "s", "GiB"]
    note: str = field(default="", metadata=OPTIONAL)
    judged: bool = field(default=True, metadata=OPTIONAL)


@dataclass(frozen=True)
class Published:
    """The published figures of a case, and the device they were measured on."""

    case: str
    source: str
    device: str | None  # a machine slug; None where the figures depend on no device
    dtype: str
    metrics: Mapping[str, Figure]


def path(root: Path, machine: str, case: str, dummy: bool) -> Path:
    """Return where the baseline of a case on a machine is kept below ``root``.

    BaselineError where either name is none, as in a hand-edited record: it could lead elsewhere.
    """
    _check_machine(machine)
    if not _SLUG.fullmatch(case):
        raise BaselineError(f"case is {case[:60]!r}; expected {_SLUG.pattern}; run the case anew")
    return root / machine / f"{case}{DUMMY_SUFFIX if dummy else ''}.json"


def load(path: Path | str) -> Baseline:
    """Read a baseline; BaselineError says what is wrong with the file, where, and what to do."""
    path = Path(path)
    baseline = _read(path)
    _check_place(path, baseline)
    return baseline


def _read(path: Path) -> Baseline:
    """The same of a file that may stand elsewhere."""
    node = jsonfile.read(path, SCHEMA, BaselineError, _FIX, "baseline")
    throughput = node.child("throughput")
    baseline = node.build(
        Baseline,
        sessions=throughput.get("sessions", tuple[Session, ...]),
        anchors={name: _anchor(name, n) for name, n in throughput.child("anchors").children()},
    )
    for key, _, problem in _not_plausible(baseline):
        throughput.fail(key, problem)
    if node.text("digest") != _digest(node.data):
        raise BaselineError(f"{path}: was edited by hand (its digest does not fit); {_FIX}")
    return baseline


def save(path: Path, baseline: Baseline) -> None:
    """Replace the file at once or not at all; raise BaselineError rather than store a non-number.

    What is written is read back before the old file goes: no record can make one that is broken.
    Hold :func:`locked` around reading the old file and this, or another update may get lost.
    """
    _check_place(path, baseline)
    for _, name, problem in _not_plausible(baseline):
        raise BaselineError(f"{path}: {name} {problem}; not stored")
    data = {"schema": SCHEMA, **as_json(baseline)}
    data["throughput"] = {"sessions": data.pop("sessions"), "anchors": data.pop("anchors")}

    def read_back(written: Path) -> None:
        try:
            _read(written)
        except BaselineError as problem:
            why = str(problem).removeprefix(f"{written}: ").removesuffix(f"; {_FIX}")
            raise BaselineError(
                f"{path}: could not be read again ({why}); not stored: run pytest again, do not "
                "edit its record"
            ) from problem

    jsonfile.write(path, data | {"digest": _digest(data)}, BaselineError, read_back)


def locked(path: Path) -> AbstractContextManager[None]:
    """Keep other updates of the machine's baselines waiting while this one reads and writes."""
    return jsonfile.locked(path, BaselineError)


def merge(
    old: Baseline | None, new: Baseline, *, add: bool = False, moved: Collection[str] = ()
) -> Baseline:
    """Return ``old`` with the parts that ``new`` has measured; accuracy and sessions on their own.

    Without ``add``, new sessions replace the old ones and new answers those of the same engine; if
    the case's digest or dtype changed, nothing old still compares and ``new`` stands alone. With
    ``add``, the one new session joins the old ones and the stored answers stay: BaselineError
    if it measured another case, dtype or workload, or is there already. The anchors stay, or the
    old sessions become one, but for the metrics in ``moved``.
    """
    if old is None:
        return new
    for name in ("case", "machine"):
        _check_same(name, getattr(old, name), getattr(new, name), "that is another baseline")
    if add:
        _check_addable(old, new)
        return dataclasses.replace(
            old,
            accuracy={**new.accuracy, **old.accuracy},
            sessions=old.sessions + new.sessions,
            anchors={name: each for name, each in old.anchors.items() if name not in moved},
            reference=old.reference or new.reference,
            fingerprints={**new.fingerprints, **old.fingerprints},
        )
    if (old.case_digest, old.dtype) != (new.case_digest, new.dtype):
        return new
    return dataclasses.replace(
        new,
        accuracy={**old.accuracy, **new.accuracy},
        sessions=new.sessions or old.sessions,
        anchors=_anchors(old, new, moved),
        reference=new.reference or old.reference,
        fingerprints={**old.fingerprints, **new.fingerprints},
    )


def unlike(stored: Baseline, metric: Metric) -> str:
    """Say how what is stored of ``metric`` is another number; empty where it is not."""
    for session in stored.sessions:
        held = session.metrics.get(metric.name, metric)
        if (held.unit, held.direction) != (metric.unit, metric.direction):
            return (
                f"the baseline holds it in {held.unit} ({held.direction}), this run in "
                f"{metric.unit} ({metric.direction}): accept it anew, or call it something else"
            )
    return ""


def load_published(path: Path) -> Published:
    """Read ``baselines/published/<case>.json``; BaselineError as for :func:`load`."""
    fix = "restore it with `git restore`"
    node = jsonfile.read(path, PUBLISHED_SCHEMA, BaselineError, fix, "published")
    published = node.build(Published)
    for name, figure in published.metrics.items():
        if figure.unit == "fraction" and figure.value > 1:
            node.fail(
                f"metrics.{name}.value", f"is {figure.value:g} as a fraction (expected 0 to 1)"
            )
    if published.case != path.stem:
        node.fail("case", f"is {published.case!r} (expected {path.stem!r}, the file's name)")
    return published


def _anchors(old: Baseline, new: Baseline, moved: Collection[str]) -> dict[str, Anchor]:
    """Return the anchors once ``new`` has replaced the sessions of ``old``."""
    if not new.sessions or not old.sessions:
        return dict(old.anchors)
    before, after = old.sessions[-1], new.sessions[-1]
    anchors: dict[str, Anchor] = {}
    if dict(before.workload) != dict(after.workload):
        return anchors
    for name, metric in after.metrics.items():
        values = old.values(name)
        if name in moved or metric.direction == "info" or unlike(old, metric):
            continue
        if name in old.anchors:
            anchors[name] = old.anchors[name]
        elif values and set(values) != {metric.value}:
            mean = dataclasses.replace(metric, value=statistics.fmean(values), samples=values)
            anchors[name] = Anchor(mean, before.date, before.commit, before.reason)
    return anchors


def _anchor(name: str, node: Node) -> Anchor:
    anchor = node.build(Anchor, metric=node.child("metric").build(Metric, name=name))
    if not anchor.metric.samples:
        node.fail("metric.samples", "is missing (expected a list of numbers)")
    return anchor


def _not_plausible(baseline: Baseline) -> Iterator[tuple[str, str, str]]:
    """(key below ``throughput``, metric, what is wrong with it) of each that is."""
    stored = {
        f"sessions.{number}.metrics.{name}": metric
        for number, session in enumerate(baseline.sessions)
        for name, metric in session.metrics.items()
    }
    anchors = {f"anchors.{name}.metric": each.metric for name, each in baseline.anchors.items()}
    for key, metric in (stored | anchors).items():
        if problem := _problem(metric):
            yield key, metric.name, problem


def _problem(metric: Metric) -> str:
    """Say what is wrong with a number: only counts and unjudged numbers may be 0.

    What a metric of the user's own can be, perfline does not know.
    """
    if metric.own:
        return ""
    if metric.unit not in _DIRECTIONS:
        return f"has unit {metric.unit!r} (expected one of {', '.join(_DIRECTIONS)})"
    if metric.direction not in _DIRECTIONS[metric.unit]:
        valid = " or ".join(_DIRECTIONS[metric.unit])
        return f"has direction {metric.direction!r} (expected {valid} for {metric.unit})"
    may_be_zero = metric.unit == "count" or metric.direction == "info"
    for value in (metric.value, *metric.samples):
        if value < 0 or (value == 0 and not may_be_zero):
            expected = "at least" if may_be_zero else "above"
            return f"is {value:g} {metric.unit} (expected a number {expected} 0)"
        if 0 < value < (least := _LEAST.get(metric.unit, 0)):
            return f"is {value:g} {metric.unit}, not plausible (expected at least {least:g})"
    return ""


def _check_machine(machine: str) -> None:
    if not _SLUG.fullmatch(machine) or machine == PUBLISHED:
        raise BaselineError(
            f"machine is {machine[:60]!r}; expected {_SLUG.pattern}, not {PUBLISHED!r}; "
            "measure anew, do not edit"
        )


def _check_place(path: Path, baseline: Baseline) -> None:
    _check_machine(baseline.machine)
    if path.stem.removesuffix(DUMMY_SUFFIX) != baseline.case:
        raise BaselineError(
            f"{path}: holds the baseline of case {baseline.case!r} (expected "
            f"{path.stem.removesuffix(DUMMY_SUFFIX)!r}, the file's name); move it back"
        )
    if path.parent.name != baseline.machine:
        raise BaselineError(
            f"{path}: holds the baseline of machine {baseline.machine!r} (expected "
            f"{path.parent.name!r}, the directory's name); measure on this machine, do not copy"
        )


def _check_addable(old: Baseline, new: Baseline) -> None:
    replace = "update without --add to replace the baseline"
    for name in ("case_digest", "dtype"):
        _check_same(name, getattr(old, name), getattr(new, name), replace)
    if not new.sessions:
        raise BaselineError(f"{new.case}: the run has no throughput to add; run `pytest -m perf`")
    for added in new.sessions:
        for session in old.sessions:
            if added.metrics == session.metrics:
                raise BaselineError(
                    f"{new.case}: the session of {added.date} is in the baseline already, "
                    "and the same rounds twice would fake a small spread; add another run"
                )
            _check_same("workload", dict(session.workload), dict(added.workload), replace)
        for metric in added.metrics.values():
            if problem := unlike(old, metric):
                raise BaselineError(f"{new.case}: {metric.name}: {problem}; {replace}")


def _check_same(name: str, old: object, new: object, fix: str) -> None:
    if old != new:
        raise BaselineError(f"the baseline's {name} is {old}, the run's is {new}; {fix}")


def _digest(data: Mapping[str, object]) -> str:
    return jsonfile.digest({key: value for key, value in data.items() if key != "digest"})
