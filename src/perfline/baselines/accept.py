"""May what a session measured become a baseline, and what exactly would be stored?

Rules only: pure functions of a record, a case as its YAML is today, and the stored baseline.
A baseline is what every later run is held to, so whatever would loosen it in silence is refused
with one line that names the file, the case, what is wrong and what to do. What regressed against
the stored baseline, its latest sessions or its anchors, passes with ``--accept-regression``; what
is invalid, incomplete, edited, timed beside other processes, or below the published accuracy never
does.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from perfline.baselines import baseline
from perfline.baselines.baseline import Baseline
from perfline.baselines.proposal import Candidate, Terms
from perfline.errors import BaselineError
from perfline.gates import accuracy as accuracy_gates
from perfline.gates import fidelity, performance
from perfline.gates.verdict import Verdict, signed, worst
from perfline.measure.record import Record
from perfline.metrics import Metric, pass_name, summary, task_of
from perfline.tasks.task import scoring

AGAIN = "run pytest again"
# What perfline writes of a metric, by the start of its name: anything else was edited in.
_EXPECTED = {
    "p_": ("tok/s", "higher"),
    "decode_bandwidth": ("GB/s", "info"),
    "decode": ("tok/s", "higher"),
    "itl_": ("s", "info"),
    "mbu": ("fraction", "info"),
    "mem": ("GiB", "lower"),
    "graph": ("count", "lower"),
    "recompiles": ("count", "lower"),
    "compile_time": ("s", "info"),
    "sm_clock": ("MHz", "info"),
}

_BESIDE_THROUGHPUT = ("_core_per_device", "_whole_one_rank")  # of several ranks; not judged


def waited_note(metric: str) -> str:
    """Return the name of the note on the CPU while a metric was timed; empty: no such."""
    if re.fullmatch(r"(decode|ttft)(_[bc]\d+)?(_val)?", metric):
        return f"cpu_waited_fraction_decode_{'val' if metric.endswith('_val') else 'infer'}"
    timed = re.fullmatch(r"p_([a-z0-9]+)_(core|whole)", metric)
    return f"cpu_waited_fraction_{timed[1]}" if timed else ""


def rounds_asked(candidate: Candidate, metric: Metric) -> int:
    """Return the rounds that the case asks for, less those that the device spoilt."""
    timed = waited_note(metric.name).removeprefix("cpu_waited_fraction_")
    thrown_out = candidate.measured.notes.get(f"rounds_thrown_out_{timed}")
    return candidate.case.throughput.rounds - (thrown_out if isinstance(thrown_out, int) else 0)


def contended(candidate: Candidate) -> dict[str, float]:
    """Return {note: fraction} of the timed rounds whose CPU other processes took."""
    timed = [name for session in candidate.new.sessions for name in session.metrics]
    notes = {note: candidate.measured.notes.get(note) for note in map(waited_note, timed)}
    return {
        note: float(waited)
        for note, waited in notes.items()
        if isinstance(waited, int | float) and waited > performance.MAX_CONTENTION_FRACTION
    }


def _edited(metric: Metric) -> str:
    """Say how a metric differs from what perfline writes; empty where it does not."""
    if metric.own:
        return ""
    expected = next(
        (each for start, each in _EXPECTED.items() if metric.name.startswith(start)), None
    )
    if metric.name.endswith(_BESIDE_THROUGHPUT):
        expected = ("tok/s", "info")
    found = (metric.unit, metric.direction)
    if expected is not None and found != expected:
        return f"{metric.name} is {' '.join(found)} (expected {' '.join(expected)})"
    if metric.unit == "tok/s" and metric.samples:
        median = statistics.median(metric.samples)
        if not math.isclose(metric.value, median, rel_tol=1e-6):
            return f"{metric.name} is {metric.value:g} tok/s, the median of its rounds {median:g}"
    return ""


def _contradicted(metrics: Mapping[str, Metric], verdicts: Iterable[Verdict]) -> Iterator[str]:
    """Yield where a verdict judged another number than the one that would be stored."""
    for verdict in verdicts:
        metric = metrics.get(verdict.metric)
        if metric is None or verdict.measured is None or verdict.gate == "paired":
            continue  # what a paired gate shows may be the farthest of several
        numbers = (metric.value, summary(metric.samples or (metric.value,))[0])
        if not any(math.isclose(verdict.measured, number, rel_tol=1e-6) for number in numbers):
            yield (
                f"{metric.name} is {metric.value:g} {metric.unit}, and its verdict is of "
                f"{verdict.measured:g}"
            )


def invalid(candidate: Candidate) -> Iterator[str]:
    """Yield what is wrong with the measurement itself; nothing overrides that."""
    measured, case = candidate.measured, candidate.case
    for line in measured.errors:
        yield f"a test ended without a result ({line}); fix it, then {AGAIN}"
    today = case.digest(measured.weights)
    asked = [Path(name).stem for name in measured.tasks]
    if measured.digest != today and asked and asked[0] != case.task_names[0]:
        yield (
            f"measured with --tasks={','.join(measured.tasks)}, and throughput is timed over the "
            f"first task's prompts, of which {case.source} has {case.tasks[0]} first; name that "
            "first, or write the tasks into the YAML"
        )
    elif measured.digest != today:
        yield (
            f"measured another definition of the case than {case.source} has now "
            f"({measured.digest}, now {today}); {AGAIN}, or restore the YAML"
        )
    new = candidate.new
    if not (new.sessions or new.accuracy or new.reference or new.fingerprints):
        yield "has nothing that a baseline holds; run `pytest -m 'perf or accuracy'`"
    for metric in measured.metrics.values():
        if edited := _edited(metric):
            yield f"{edited}: the record was edited; {AGAIN}"
    for told in dict.fromkeys(_contradicted(measured.metrics, measured.verdicts)):
        yield f"{told}: the record was edited; {AGAIN}"
    counts = [n for note, n in measured.notes.items() if note.startswith("throughput_ranks_")]
    if any(not candidate.new.machine.endswith(f"-x{n}") for n in counts):
        yield (
            f"timed on {counts[0]} ranks, and is of machine {candidate.new.machine}: the record "
            f"was edited; {AGAIN}"
        )
    if beside := contended(candidate):
        taken = [f"{100 * waited:.0f} % ({note})" for note, waited in beside.items()]
        ranks = any(note.startswith("throughput_ranks_") for note in measured.notes)
        who, cure = "other processes", ""
        if ranks:
            who, cure = "other processes or ranks", ", with no more ranks than cores"
        yield (
            f"{who} took {' and '.join(taken)} of the CPU during the timed rounds "
            f"(at most {100 * performance.MAX_CONTENTION_FRACTION:.0f} % may be); "
            f"run again on an idle machine{cure}"
        )
    for session in candidate.new.sessions:
        for metric in session.metrics.values():
            if (zero := impossible(metric)) is not None:
                yield f"{metric.name} holds {zero:g} {metric.unit}: no measurement; {AGAIN}"
            rounds = rounds_asked(candidate, metric)
            run = performance.Run(None, full_pass(candidate), rounds)
            if lacking := performance.too_few_rounds(metric, run):
                cure = "raise throughput.rounds, then " if rounds < performance.MIN_ROUNDS else ""
                yield f"{metric.name} was timed in {lacking}; {cure}{AGAIN}"


def full_pass(candidate: Candidate) -> bool:
    """Whether every question was timed, once: one long round, which is enough."""
    return candidate.measured.workload.get("full_pass") is True


def impossible(metric: Metric) -> float | None:
    """Return the first number that cannot have been measured; only a count may be 0.

    What a metric of the user's own can be, perfline does not know.
    """
    if metric.own:
        return None
    numbers = (metric.value, *metric.samples)
    return next((n for n in numbers if n < 0 or (n == 0 and metric.unit != "count")), None)


_SHOWN_CHANGE = 0.0005  # shows as 0.1 %


def record_problems(run: Path, record: Record, names: Iterable[str], reason: str) -> list[str]:
    """Say why nothing of a record may be stored; empty where its cases decide."""
    problems = []
    if not reason.strip():
        problems.append(f"{run}: --reason is empty; say why this run is the new normal")
    if record.partial:
        problems.append(
            f"{run}: is partial: the session was interrupted before its end; {AGAIN} to the end"
        )
    for name in names:
        if name not in record.cases:
            near = difflib.get_close_matches(name, list(record.cases), n=1, cutoff=0.5)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            there = ", ".join(record.cases) or "nothing"
            problems.append(f"{run}: case '{name}' was not measured{hint} (measured: {there})")
    return problems


def problems(candidate: Candidate, terms: Terms) -> list[str]:
    """Say, one line each, why a case's measurement may not be stored; empty where it may."""
    found = [
        *invalid(candidate),
        *_judged(candidate, terms),
        *([] if terms.add or terms.accept_regression else _losses(candidate)),
        *(_crept(candidate) if terms.add and not terms.accept_regression else []),
    ]
    return [f"{candidate.run}: case '{candidate.measured.case}': {line}" for line in found]


def merged(candidate: Candidate, terms: Terms) -> Baseline:
    """Return what the file would hold; BaselineError where the two do not go together."""
    moved, new = _moved(candidate, terms), candidate.new
    kept = set() if terms.accept_regression else _answers_kept(candidate)
    accuracy = {name: each for name, each in new.accuracy.items() if name not in kept}
    stored = dataclasses.replace(
        new,
        accuracy=accuracy,
        reference=None if _reference_kept(candidate) else new.reference,
    )
    try:
        return baseline.merge(candidate.old, stored, add=terms.add, moved=moved)
    except BaselineError as problem:
        raise BaselineError(f"{candidate.path}: {problem}") from problem


def notes(candidate: Candidate, terms: Terms) -> list[str]:
    """Say what a reader of the table should know, one line each."""
    old, new = candidate.old, candidate.new
    lines = []
    if candidate.broken:
        lines.append(f"replaced: the file was broken ({candidate.broken})")
    elif old is None:
        lines.append("new: there was no baseline")
    elif not candidate.same_definition and not terms.add:
        lines.append(
            f"replaced: the stored baseline is of another definition of the case "
            f"({old.case_digest} -> {new.case_digest}, {old.dtype} -> {new.dtype})"
        )
    elif new.sessions:
        before = len(old.sessions)
        after = before + len(new.sessions) if terms.add else len(new.sessions)
        lines.append(f"{'added' if terms.add else 'replaced'}: sessions {before} -> {after}")
        if before > 1 and not terms.add:
            lines.append("the spread between sessions is measured anew; --add keeps them")
        if before and not candidate.same_workload and not terms.add:
            lines.append("the workload has changed: nothing timed before still compares")
    lines += _answers_not_asked(candidate, terms)
    if terms.add and old is not None and old.accuracy and new.accuracy:
        lines.append("the stored answers stay (--add adds throughput only)")
    if not terms.add:
        lines += _anchored(candidate, merged(candidate, terms))
    today = current(candidate)
    lines += [f"{v.metric}: {v.reason}" for v in today if v.word == "incomparable"]
    improved = [v.metric for v in today if v.word == "improved"]
    if terms.add and improved:
        lines.append(
            f"{', '.join(improved)} improved: replace the baseline (without --add) if the code got "
            "faster, else the change counts as spread"
        )
    commits = [s.commit for s in new.sessions] + [a.commit for a in new.accuracy.values()]
    if any(commit is not None and commit.endswith("-dirty") for commit in commits):
        lines.append("measured with uncommitted changes: nobody can check that commit out")
    return lines


def _answers_not_asked(candidate: Candidate, terms: Terms) -> Iterator[str]:
    """Yield what becomes of stored answers to tasks that the session did not ask."""
    old = {} if candidate.old is None else candidate.old.accuracy
    asked = {task_of(word) for word in candidate.new.accuracy}
    others = [word for word in old if task_of(word) not in asked]
    kept = merged(candidate, terms).accuracy
    if gone := [word for word in others if word not in kept]:
        yield f"{', '.join(gone)}: the stored answers go, with the case's older definition"
    if stay := [word for word in _not_asked(candidate) if word in kept]:
        yield f"{', '.join(stay)}: the stored answers stay: the questions are absent, none asked"


def _not_asked(candidate: Candidate) -> list[str]:
    """The stored answers, by name, to tasks whose questions were absent in the session."""
    old = {} if candidate.old is None else candidate.old.accuracy
    absent = candidate.measured.not_asked
    return [w for w in old if task_of(w) in absent and w not in candidate.new.accuracy]


def _left_out(candidate: Candidate) -> list[str]:
    """The stored answers, by name, to tasks of the case that ``--tasks`` did not name."""
    old = {} if candidate.old is None else candidate.old.accuracy
    named = {Path(name).stem for name in candidate.measured.tasks}
    others = {*candidate.case.task_names} - named if named else set()
    return [word for word in old if task_of(word) in others]


def current(candidate: Candidate) -> list[Verdict]:
    """Judge the measurement against the file as it is now.

    A record holds the verdicts of its session, and the baseline may be younger than those: of two
    runs that both found it missing, the second is compared with the first here.
    """
    old, new, limits = candidate.old, candidate.new, candidate.case.gates
    case, stored = candidate.case, candidate.stored_answers
    verdicts = [
        accuracy_gates.accuracy_baseline(
            f"acc_{pass_name(engine)}",
            stored[engine].scored(scoring(case, engine)),
            answers.scored(scoring(case, engine)),
            limits,
        )
        for engine, answers in new.accuracy.items()
        if engine in stored
    ]
    for metric in _comparable(candidate):
        assert old is not None
        held = performance.Held(old.values(metric.name), *old.anchor(metric.name))
        verdicts.append(_settled(candidate, _verdict(candidate, metric, held)))
    return verdicts


def _settled(candidate: Candidate, verdict: Verdict) -> Verdict:
    """The verdict as a comparison settled it in the session, as long as the baseline is the same.

    It told of one code, and of one number stored.
    """
    for each in candidate.measured.verdicts:
        same = (each.metric, each.gate) == (verdict.metric, verdict.gate)
        numbers = (each.baseline, each.measured) == (verdict.baseline, verdict.measured)
        if same and numbers and each.settled is not None and each.settled.first == verdict.word:
            return dataclasses.replace(
                verdict, word=each.word, reason=each.reason, settled=each.settled
            )
    return verdict


def _comparable(candidate: Candidate) -> Iterator[Metric]:
    """Yield the judged metrics of the new session that the stored sessions hold as well."""
    if candidate.old is not None and candidate.same_workload:
        for metric in candidate.new.sessions[-1].metrics.values():
            old = candidate.old
            stored = old.values(metric.name) and not baseline.unlike(old, metric)
            if stored and metric.direction != "info" and impossible(metric) is None:
                yield metric


def _verdict(candidate: Candidate, metric: Metric, held: performance.Held) -> Verdict:
    waited = candidate.measured.notes.get(waited_note(metric.name))
    run = performance.Run(
        contention_fraction=float(waited) if isinstance(waited, int | float) else None,
        full_pass=full_pass(candidate),
        rounds=rounds_asked(candidate, metric),
    )
    return performance.against_sessions(metric, held, candidate.case.gates, run)


def _moved(candidate: Candidate, terms: Terms) -> frozenset[str]:
    """Return the metrics whose anchor the new session moves.

    What is ``ok``, or faster than the latest sessions alone, leaves it where it is. An improvement
    on the anchor moves it, and so does what passed with --accept-regression only.
    """
    old = candidate.old
    words = {verdict.metric: verdict.word for verdict in current(candidate)}
    moved = set()
    for metric in _comparable(candidate):
        assert old is not None
        anchor, _ = old.anchor(metric.name)
        held = performance.Held(anchor or old.values(metric.name))
        improved = _verdict(candidate, metric, held).word == "improved"
        # An added session moves no mean by itself: what is unsure, or faster, has to replace it.
        replaces = not terms.add and (words[metric.name] == "unsure" or improved)
        if words[metric.name] == "regressed" or replaces:
            moved.add(metric.name)
    return frozenset(moved)


def _answers_kept(candidate: Candidate) -> set[str]:
    """Return the engines whose answers are ``ok``: small losses would add up, were they stored."""
    ok = {v.metric for v in current(candidate) if v.word == "ok" and v.gate == "baseline"}
    old = {} if candidate.old is None else candidate.old.accuracy
    return {
        engine
        for engine, answers in candidate.new.accuracy.items()
        if f"acc_{pass_name(engine)}" in ok
        and engine in old
        and len(answers.ids) == len(old[engine].ids)
    }


def _reference_kept(candidate: Candidate) -> bool:
    """Whether the stored fp32 numbers stay: small drifts would add up, were they replaced.

    They go where the session was judged by them and is not ``ok``, which --accept-regression lets
    pass, or where the case was defined anew.
    """
    if candidate.old is None or candidate.old.reference is None or not candidate.same_definition:
        return False
    new = candidate.new.reference
    if new is not None and not new.prompts.keys() <= candidate.old.reference.prompts.keys():
        return False  # it would stay missing for ever
    return all(
        verdict.word in ("ok", "missing")
        for verdict in candidate.measured.verdicts
        if (verdict.metric, verdict.gate) == (fidelity.NAME, "baseline")
    )


def _anchored(candidate: Candidate, result: Baseline) -> Iterator[str]:
    """Yield what has been lost, step by step, since it was last accepted on purpose."""
    for metric in _comparable(candidate):
        anchor, since = result.anchor(metric.name)
        if anchor:
            change = _verdict(candidate, metric, performance.Held(anchor)).change_fraction
            if change is not None and abs(change) >= _SHOWN_CHANGE:
                yield (
                    f"{metric.name}: {signed(100 * change, '%')} since what was accepted on "
                    f"{since}, which stays the anchor"
                )


def _against_published(candidate: Candidate) -> list[Verdict]:
    """Judge the answers by the published accuracy, whatever verdicts the record holds."""
    figures = {} if candidate.published is None else candidate.published.metrics
    verdicts = []
    for engine, answers in candidate.new.accuracy.items():
        name, n = f"acc_{pass_name(engine)}", len(answers.ids)
        if name in figures and figures[name].judged:
            fraction = answers.scored(scoring(candidate.case, engine)).correct / n
            metric = Metric(name, fraction, "fraction", "higher")
            verdicts.append(
                accuracy_gates.accuracy_published(
                    metric, n, figures[name].value, candidate.case.gates
                )
            )
    return verdicts


def _judged(candidate: Candidate, terms: Terms) -> Iterator[str]:
    """Yield what the verdicts of the session, or those of today, forbid."""
    by_gate: dict[tuple[str, str], list[Verdict]] = {}
    today = (*_against_published(candidate), *current(candidate))
    for verdict in (*candidate.measured.verdicts, *today):
        by_gate.setdefault((verdict.metric, verdict.gate), []).append(verdict)
    beside = contended(candidate)
    for verdicts in by_gate.values():
        grave = worst(verdicts)
        if grave != "invalid" and waited_note(verdicts[0].metric) in beside:
            continue  # refused already, and its cure is another: an idle machine
        verdict = next(v for v in reversed(verdicts) if v.word == grave)
        story = verdict.headline if verdict.change else f"{verdict.metric} {verdict.word}"
        story += f": {verdict.reason}" if verdict.reason else ""
        if grave == "invalid":
            yield f"{story}; {AGAIN} undisturbed"
        elif grave == "regressed" and final(verdict):
            yield f"{story}; wrong answers are never a baseline, fix them"
        elif grave == "regressed" and not terms.accept_regression:
            yield f"{story}; fix it, or accept it with --accept-regression"
        elif (
            grave == "unsure"
            and (candidate.old or candidate.one_rank) is not None
            and not terms.accept_regression
            and not (terms.add and more_sessions_settle(verdict))
        ):
            add = "gather sessions with --add, or " if more_sessions_settle(verdict) else ""
            yield f"{story}; {add}replace the baseline with --accept-regression"


def _crept(candidate: Candidate) -> Iterator[str]:
    """Yield what added sessions have lost, step by step, since the first of them."""
    told = {verdict.metric for verdict in current(candidate) if verdict.word == "regressed"}
    for metric in _comparable(candidate):
        assert candidate.old is not None
        first = candidate.old.values(metric.name)[:1]
        verdict = _verdict(candidate, metric, performance.Held(first))
        if verdict.word == "regressed" and metric.name not in told:
            yield (
                f"{verdict.headline} against the first session held: added steps add up; fix it, "
                "or replace the baseline with --accept-regression"
            )


def more_sessions_settle(verdict: Verdict) -> bool:
    """Whether what is ``unsure`` is so for the spread between sessions."""
    return verdict.gate == "baseline" and not verdict.metric.startswith("acc_")


def final(verdict: Verdict) -> bool:
    """Whether a regression cannot be accepted: answers that are wrong by another measure."""
    return verdict.gate != "baseline" and verdict.unit != "tok/s"


def _losses(candidate: Candidate) -> Iterator[str]:
    """Yield what the stored baseline guards and the new one would not."""
    old, new, stored = candidate.old, candidate.new, candidate.stored_answers
    for engine, answers in new.accuracy.items():
        if engine in stored and len(answers.ids) < (before := len(stored[engine].ids)):
            own = old is not None and candidate.same_definition and engine in old.accuracy
            holder = candidate.path if own else "the baseline of one rank"
            yield (
                f"{engine} answered {len(answers.ids)} questions where {holder} holds "
                f"{before}; ask all of them, or drop the others with --accept-regression"
            )
    lost = [] if candidate.same_definition else _not_asked(candidate) + _left_out(candidate)
    if lost:
        yield (
            f"the answers {', '.join(lost)} of {candidate.path} would go with the case's older "
            "definition, and their questions were not asked; ask them, or drop those answers "
            "with --accept-regression"
        )
    if old is not None and candidate.same_workload:
        guarded = [name for session in old.sessions for name in _guarded(session.metrics)]
        there = new.sessions[-1].metrics
        gone = [name for name in dict.fromkeys(guarded) if name not in there]
        if gone:
            yield (
                f"{', '.join(gone)} of {candidate.path} was not measured; run all of "
                "`pytest -m perf`, or drop it with --accept-regression"
            )
        kept = (name for name in dict.fromkeys(guarded) if name in there)
        if info := [name for name in kept if there[name].direction == "info"]:
            yield (
                f"{', '.join(info)} of {candidate.path} would not be judged any more (it is 'info' "
                "now); record it as before, or drop it with --accept-regression"
            )


def _guarded(metrics: Mapping[str, Metric]) -> list[str]:
    return [name for name, metric in metrics.items() if metric.direction != "info"]
