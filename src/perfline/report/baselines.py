"""How does a person, or a program, read what a baseline holds?

Tables for ``perfline baselines update``, ``diff`` and ``show``. Nothing is judged here.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from perfline import fields
from perfline.baselines import accept, baseline
from perfline.baselines.baseline import Baseline
from perfline.baselines.proposal import Candidate
from perfline.cases.case import Case, Scoring, WeightsKind
from perfline.metrics import Metric, pass_name
from perfline.report.table import change_shown, fitted, flip_counts, number, unit_shown
from perfline.report.text import context_change
from perfline.tasks.task import scoring

_UNIT_ORDER = ("tok/s", "fraction", "GiB", "count", "s")
_SCORINGS: tuple[Scoring, ...] = ("full-vocab", "letters")


def case_of(path: Path) -> str:
    """Return the id of the case whose baseline is at ``path``."""
    return path.stem.removesuffix(baseline.DUMMY_SUFFIX)


def kind_of(path: Path) -> WeightsKind:
    """Return the weights that the baseline at ``path`` was measured with."""
    return "dummy" if path.stem.endswith(baseline.DUMMY_SUFFIX) else "real"


def stored_value(stored: Baseline, name: str) -> float | None:
    """Return what a new value of the metric is compared with, as the gates do it."""
    values = stored.values(name)
    if not values:
        return None
    metric = _stored_metrics(stored)[name]
    if (metric.own or metric.unit == "tok/s") and len(values) > 1 and min(values) > 0:
        return math.exp(sum(map(math.log, values)) / len(values))
    return values[-1] if metric.direction == "info" else max(values)


def comparison(candidate: Candidate, result: Baseline) -> str:
    """Return the table old -> new, under the case, its weights and the machine.

    What stays in the ``result`` as it was has no row: it is named below the table as kept.
    """
    measured = candidate.measured
    case = candidate.case
    old = {} if candidate.old is None else _numbers(candidate.old, case)
    new = _numbers(candidate.new, case)
    some = _asked_some(candidate)
    old |= {name: (fraction, "fraction") for name, (fraction, _) in some.items()}
    kept = (old.keys() - new.keys()) & _numbers(result, case).keys()
    names = (old.keys() | new.keys()) - kept
    rows = []
    for name in sorted(names, key=lambda key: _order(key, (new.get(key) or old[key])[1])):
        unit = (new.get(name) or old[name])[1]
        before, after = (side[name][0] if name in side else None for side in (old, new))
        rows.append(
            [
                _label(name, candidate),
                unit_shown(unit),
                number(before, unit) or "-",
                number(after, unit) or "-",
                "" if before is None or after is None else change_shown(before, after, unit),
            ]
        )
    title = f"{measured.case} ({measured.dtype}, {measured.weights} weights)"
    title += f" on {candidate.new.machine}"
    headers = ["metric", "unit", "old", "new", "change"]
    told = [*_fp32_numbers(candidate, result), *_fingerprints(candidate)]
    nothing = [] if told else ["  nothing was measured"]
    lines = [title, *([_table(headers, rows, "llrrr")] if rows else nothing)]
    lines += [f"  {line}" for line in told]
    timed = [name for name in sorted(kept) if not name.startswith("acc_")]
    if timed and not candidate.new.sessions:
        kept = kept.difference(timed)
        lines.append("  throughput: kept")
    if kept:
        lines.append(f"  {', '.join(sorted(kept))}: kept")
    for asked in dict.fromkeys(asked for _, asked in some.values()):
        these = ", ".join(name for name, (_, other) in sorted(some.items()) if other == asked)
        lines.append(f"  {these}: over the {asked} stored questions that were asked")
    return "\n".join(lines)


def _fp32_numbers(candidate: Candidate, result: Baseline) -> Iterator[str]:
    """Say what becomes of what was computed in fp32."""
    old = None if candidate.old is None else candidate.old.reference
    if candidate.new.reference is not None and result.reference is not None:
        word = "the stored ones stay" if result.reference == old else "replaced" if old else "new"
        yield f"fp32 numbers of {len(result.reference.prompts)} prompts: {word}"


def _fingerprints(candidate: Candidate) -> Iterator[str]:
    """Say which fingerprints are new or replaced."""
    old = {} if candidate.old is None else candidate.old.fingerprints
    for engine, found in candidate.new.fingerprints.items():
        before = old.get(engine)
        word = "new" if before is None else "the same" if before == found else "replaced"
        yield f"fingerprint of {engine}: {word}"


def _asked_some(candidate: Candidate) -> dict[str, tuple[float, str]]:
    """Return {metric: (stored fraction, "n of all")} where fewer questions were asked than stored.

    The fraction is that of the very questions asked: others are easier or harder.
    """
    stored = {} if candidate.old is None else candidate.old.accuracy
    judged = {verdict.metric: verdict for verdict in accept.current(candidate)}
    found = {}
    for engine, answers in candidate.new.accuracy.items():
        name = f"acc_{pass_name(engine)}"
        before = judged[name].baseline if name in judged else None
        all_of_them = len(stored[engine].ids) if engine in stored else 0
        if before is not None and len(answers.ids) < all_of_them:
            found[name] = before, f"{len(answers.ids)} of {all_of_them}"
    return found


def _label(name: str, candidate: Candidate) -> str:
    """Return the metric's name; a compile time says whether the cache was cold this time."""
    cache = candidate.measured.notes.get("compile_cache")
    return f"{name} (new: {cache} cache)" if name == "compile_time" and cache else name


def _numbers(stored: Baseline, case: Case) -> dict[str, tuple[float, str]]:
    """Return {metric: (value, unit)} of all that a baseline holds, accuracy included."""
    numbers = {
        name: (value, metric.unit)
        for name, metric in _stored_metrics(stored).items()
        if (value := stored_value(stored, name)) is not None
    }
    for engine, answers in stored.accuracy.items():
        fraction = answers.scored(scoring(case, engine)).correct / len(answers.ids)
        numbers[f"acc_{pass_name(engine)}"] = (fraction, "fraction")
    return numbers


def _stored_metrics(stored: Baseline) -> dict[str, Metric]:
    return {name: metric for session in stored.sessions for name, metric in session.metrics.items()}


def _order(name: str, unit: str) -> tuple[int, str]:
    place = _UNIT_ORDER.index(unit) if unit in _UNIT_ORDER else len(_UNIT_ORDER)
    return place, name


def _flips_line(candidate: Candidate, engine: str, asked: int) -> str:
    name = f"acc_{pass_name(engine)}"
    verdict = next((v for v in accept.current(candidate) if v.metric == name), None)
    if verdict is None or verdict.word == "incomparable":
        reason = verdict.reason if verdict is not None else "the case's definition has changed"
        return f"not comparable: {reason}"
    counts = f" ({flip_counts([verdict])})" if verdict.flips else ""
    return f"{len(verdict.flips)} of {asked} flipped{counts}"


def differences(candidate: Candidate) -> list[str]:
    """Return how many answers flipped, and what differs in versions and the like."""
    old, new = candidate.old, candidate.new
    if old is None:
        return [f"there is no baseline yet; it would be {candidate.path}"]
    lines = [
        f"{engine} answers: {_flips_line(candidate, engine, len(answers.ids))}"
        for engine, answers in new.accuracy.items()
        if engine in old.accuracy
    ]
    if old.sessions and new.sessions:
        before, after = old.sessions[-1].context, new.sessions[-1].context
        lines.append(f"context: {context_change(before, after)}")
    return lines


def description(path: Path, held: Baseline) -> str:
    """Return one baseline for reading: its sessions, metrics and answers."""
    lines = [f"{held.case} ({held.dtype}, {kind_of(path)} weights) on {held.machine}"]
    lines += [f"  {path}", f"  case {held.case_digest}"]
    if held.sessions:
        rows = [
            [s.date[:10], s.commit or "-", str(s.context.get("torch", "-")), s.reason]
            for s in held.sessions
        ]
        lines += ["", _table(["session", "commit", "torch", "reason"], rows, "llll"), ""]
        metrics = _stored_metrics(held)
        rows = [
            [name, unit_shown(unit), number(stored_value(held, name), unit), str(sessions)]
            for name in sorted(metrics, key=lambda name: _order(name, metrics[name].unit))
            for unit, sessions in [(metrics[name].unit, len(held.values(name)))]
        ]
        lines.append(_table(["metric", "unit", "stored", "sessions"], rows, "llrr"))
    if held.anchors:
        rows = [
            [name, unit_shown(m.unit), number(m.value, m.unit), a.date[:10], a.reason]
            for name, a in held.anchors.items()
            for m in [a.metric]
        ]
        lines += ["", _table(["anchor", "unit", "accepted", "date", "reason"], rows, "llrll")]
    if held.reference is not None:
        each = held.reference
        told = f"{each.date[:10]}, {each.reason}"
        lines += ["", f"  fp32 numbers of {len(each.prompts)} prompts ({told})"]
    for engine, found in held.fingerprints.items():
        lines.append(f"  fingerprint of {engine} ({found.software})")
    if held.accuracy:
        rows = [
            [engine, *(f"{k}/{n} = {100 * k / n:.2f} %" for k, n in counts), a.date[:10], a.reason]
            for engine, a in held.accuracy.items()
            for counts in [[(a.scored(s).correct, len(a.ids)) for s in _SCORINGS]]
        ]
        lines += ["", _table(["accuracy", *_SCORINGS, "date", "reason"], rows, "lrrll")]
    return "\n".join(lines)


def as_json(path: Path, held: Baseline) -> dict[str, object]:
    """Return what ``show --json`` prints of one baseline."""
    return {
        "path": str(path),
        "machine": held.machine,
        "case": held.case,
        "weights": kind_of(path),
        "dtype": held.dtype,
        "case_digest": held.case_digest,
        "sessions": [
            {
                "date": session.date,
                "commit": session.commit,
                "reason": session.reason,
                "context": dict(session.context),
                "workload": dict(session.workload),
            }
            for session in held.sessions
        ],
        "metrics": {
            name: {"value": stored_value(held, name), "unit": metric.unit}
            for name, metric in _stored_metrics(held).items()
        },
        "anchors": {
            name: {
                "value": anchor.metric.value,
                "unit": anchor.metric.unit,
                "date": anchor.date,
                "commit": anchor.commit,
                "reason": anchor.reason,
            }
            for name, anchor in held.anchors.items()
        },
        "reference": None
        if held.reference is None
        else {
            "date": held.reference.date,
            "commit": held.reference.commit,
            "reason": held.reference.reason,
            "prompts": len(held.reference.prompts),
        },
        "fingerprints": {
            engine: fields.as_json(found) for engine, found in held.fingerprints.items()
        },
        "accuracy": {
            engine: {
                "date": answers.date,
                "commit": answers.commit,
                "reason": answers.reason,
                "questions": len(answers.ids),
                "correct_full_vocab": answers.scored("full-vocab").correct,
                "correct_letters": answers.scored("letters").correct,
            }
            for engine, answers in held.accuracy.items()
        },
    }


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    fold = len(headers) - 1 if headers[-1] == "reason" else 0
    return textwrap.indent(fitted(headers, rows, fold, align), "  ")
