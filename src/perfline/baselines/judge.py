"""Which gates does a measurement go through, against which baseline?

Given what a case run measured, the stored baseline and the published figures, these functions
choose the gate for every judged metric. The comparisons themselves stand in ``gates``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from perfline.baselines import baseline
from perfline.baselines.baseline import Baseline, Published
from perfline.cases.case import Case, WeightsKind
from perfline.engines.engine import EngineName, Fingerprint
from perfline.engines.environment import Environment
from perfline.fields import Scalar
from perfline.gates import accuracy, fidelity, fingerprint, performance, verdict
from perfline.gates.verdict import Verdict
from perfline.measure.accuracy import AccuracyPass
from perfline.measure.decode import Decoded
from perfline.measure.fidelity import Fidelity
from perfline.measure.throughput import Timings
from perfline.metrics import Metric, answered, pass_name, suffix
from perfline.tasks.answers import Answers, Scored, StoredAnswers
from perfline.tasks.task import scoring

# In a reference's context: how many layers the case asks for, where not all; the ways that ran.
FIRST_LAYERS, WAYS = "fidelity.layers", "fidelity.ways"
HEALTH = ("graphs", "graph_breaks", "recompiles")


@dataclass(frozen=True)
class Against:
    """What one case is compared with.

    Attributes:
        path: where its baseline is, or would be.
        stored: the baseline; None where there is none.
        published: the published figures; None where there are none.
        mismatch: why ``stored`` is not comparable; empty where it is.
        shown: ``path`` as messages show it.
        one_rank: the same for one rank on this machine, where this is for several.
    """

    path: Path
    stored: Baseline | None
    published: Published | None
    mismatch: str = ""
    shown: str = ""
    one_rank: Against | None = None

    def of_answers(self, name: str) -> Against:
        """Where the stored answers of that name (``metrics.answered``) are looked for.

        They depend on no number of ranks: where none are stored for several, those of one do.
        """
        return self._where(self.stored is not None and name in self.stored.accuracy)

    @property
    def of_reference(self) -> Against:
        """Where the stored fp32 numbers are looked for, which depend on no number of ranks."""
        return self._where(self.stored is not None and self.stored.reference is not None)

    def of_fingerprint(self, name: str) -> Against:
        """Where a stored fingerprint is looked for, by its name in the record; the same."""
        return self._where(self.stored is not None and name in self.stored.fingerprints)

    def _where(self, held: bool) -> Against:
        return self if held or self.one_rank is None else self.one_rank

    def relative(self, shown: Callable[[Path], str]) -> Against:
        """The same; ``shown`` says how messages show a path."""
        one_rank = None if self.one_rank is None else self.one_rank.relative(shown)
        return replace(self, shown=shown(self.path), one_rank=one_rank)


def against(root: Path, environment: Environment, case: Case, weights: WeightsKind) -> Against:
    """Load what ``case`` is compared with on this machine. BaselineError where a file is broken."""
    found = _against(root, environment.machine, case, weights)
    if environment.one_rank == environment.machine:
        return found
    return replace(found, one_rank=_against(root, environment.one_rank, case, weights))


def _against(root: Path, machine: str, case: Case, weights: WeightsKind) -> Against:
    path = baseline.path(root, machine, case.id, weights == "dummy")
    stored = baseline.load(path) if path.exists() else None
    published_path = root / baseline.PUBLISHED / f"{case.id}.json"
    published = baseline.load_published(published_path) if published_path.exists() else None
    mismatch = ""
    if stored is not None and stored.case_digest != case.digest(weights):
        cure = f"accept it anew, or restore {case.source.name}"
        if case.tasks_named_in:
            cure += f", or name the same task first in {case.tasks_named_in}"
        mismatch = (
            f"the case has changed since the baseline was accepted ({stored.case_digest} -> "
            f"{case.digest(weights)}): {cure}"
        )
    elif stored is not None and stored.dtype != case.model.precision:
        mismatch = (
            f"the baseline was measured in {stored.dtype}, this run in {case.model.precision}"
        )
    return Against(path, stored, published, mismatch, str(path))


def accuracy_against_published(
    case: Case, metric: Metric, done: AccuracyPass, published: Published
) -> list[Verdict]:
    """Is the recipe right? One sample against the published figure."""
    if fault := _path_fault(case, metric, done):
        return [verdict.invalid(metric, fault, "published")]
    figure = published.metrics[metric.name].value
    return [accuracy.accuracy_published(metric, len(done.answers.ids), figure, case.gates)]


def accuracy_against_baseline(
    case: Case, name: str, metric: Metric, done: AccuracyPass, against: Against
) -> list[Verdict]:
    """Did the answers ``name`` get worse? Paired, question by question, against the stored ones."""
    if fault := _path_fault(case, metric, done):
        return [verdict.invalid(metric, fault)]
    holder = against.of_answers(name)
    stored = _stored_answers(name, holder)
    if against.mismatch or holder.mismatch:
        return [verdict.incomparable(metric, against.mismatch or holder.mismatch)]
    if stored is None:
        places = dict.fromkeys((against.shown, holder.shown))
        return [verdict.missing(metric, f"no stored answers in {' or '.join(places)}")]
    asked_of = min(done.asked_of, len(stored.ids)) if done.looks > 1 else None
    judged = accuracy.accuracy_baseline(
        metric.name,
        stored.scored(scoring(case, name)),
        scored(case, name, done.answers),
        case.gates,
        done.looks,
        asked_of,
    )
    return [_from(judged, against, holder)]


def _path_fault(case: Case, metric: Metric, done: AccuracyPass) -> str:
    """Why the path that gave the answers cannot be trusted; empty where it can."""
    if done.uncompiled:
        return done.uncompiled
    plain = "; run again with --plain" if done.path != "plain" else ""
    if done.counts.graphs:
        return (
            f"{done.counts.graphs} graph(s) were compiled after the warm-up of the {done.path} "
            f"path{plain}"
        )
    if done.reference is None:
        return ""
    word, reason = accuracy.verified(
        f"{done.path} path", done.reference, done.answers, case.model.precision
    )
    return f"{reason}{plain}" if word == "invalid" else ""


def throughput(
    case: Case,
    timings: Timings,
    measured: Mapping[str, Metric],
    workload: Mapping[str, Scalar],
    environment: Environment,
    against: Against,
) -> list[Verdict]:
    """Is it slower, bigger, or compiled worse than the baseline, or slower than published?"""
    name = timings.engine
    names = *(f"p_{pass_name(name)}_{kind}" for kind in ("core", "whole")), f"mem{suffix(name)}"
    judged = [measured[metric] for metric in names if metric in measured]
    if name == "inductor":
        judged += [measured[metric] for metric in HEALTH]
    fault = _fault(timings, "raise throughput.sample so that warm-up meets every shape, or ")
    if fault:
        return [verdict.invalid(judged[0], fault)]
    verdicts = []
    if (published := against.published) is not None and not against.mismatch:
        same = published.device == environment.machine and published.dtype == case.model.precision
        for metric in judged:
            if metric.unit == "tok/s" and metric.name in published.metrics:
                figure = published.metrics[metric.name].value
                shown = performance.throughput_published(metric, figure, same, case.gates)
                verdicts += [shown] if shown is not None else []
    run = performance.Run(
        timings.waited_fraction,
        bool(workload["full_pass"]),
        case.throughput.rounds - len(timings.thrown_out),
    )
    return verdicts + [_against_stored(case, metric, run, workload, against) for metric in judged]


def decode(
    case: Case,
    decoded: Decoded,
    workload: Mapping[str, Scalar],
    against: Against,
) -> list[Verdict]:
    """Does it generate slower, with more memory or more graphs than the baseline, or other tokens?

    The tokens are held to the likeliest ones, by the model's own forward in the same run.
    """
    judged = [metric for metric in decoded.metrics() if metric.direction != "info"]
    fault = _fault(decoded, "") or performance.impossible_bandwidth(decoded.mbu)
    if fault:
        return [verdict.invalid(judged[0], fault)]
    rounds = case.throughput.rounds - len(decoded.thrown_out)
    run = performance.Run(decoded.waited_fraction, rounds=rounds)
    verdicts = [_against_stored(case, metric, run, workload, against) for metric in judged]
    if decoded.compared:
        others = decoded.others, decoded.compared
        verdicts.append(accuracy.same_tokens(decoded.engine, *others, case.model.precision))
    if decoded.fingerprint is not None:
        metric = f"{fingerprint.NAME}_decode{suffix(decoded.engine)}"
        held = against.stored is not None and bool(against.stored.values(f"{HEALTH[0]}_decode"))
        name = decoded.fingerprint_name
        verdicts.append(_runs_as_stored(metric, name, decoded.fingerprint, held, against))
    return verdicts


def model_numbers(found: Fidelity, facts: Mapping[str, Scalar], against: Against) -> list[Verdict]:
    """Does the model compute the same by every way, and as it did? In nats."""
    if found.uncompiled:
        invalid = Verdict(fidelity.WAYS, "invalid", "paired", fidelity.UNIT)
        return [replace(invalid, reason=found.uncompiled)]
    ways = found.ways, found.variations, found.most, found.without, found.apart
    verdicts = [fidelity.between_ways(*ways)]
    if (drift := found.drift) is not None:
        harmless = (drift.engines["eager"], *drift.variations.values())
        verdicts += [
            fidelity.drift(
                *(f"drift_{pass_name(name)}", errors, harmless, drift.rounded),
                names=tuple(found.prompts),
            )
            for name, errors in drift.engines.items()
        ]
    holder = against.of_reference
    stored = None if holder.stored is None else holder.stored.reference
    problem = against.mismatch or holder.mismatch
    if stored is not None and not problem:
        asked = stored.context.get(FIRST_LAYERS), found.first_layers
        held, run = ("all" if each is None else f"the first {each}" for each in asked)
        if held != run:
            problem = (
                f"{holder.shown} holds the numbers of {held} layers, and {run} were run "
                "(fidelity.layers): accept a run anew"
            )
    if problem:
        wrong = Verdict(fidelity.NAME, "incomparable", "baseline", fidelity.UNIT, reason=problem)
        return [*(fidelity.of_layers(each, found.first_layers) for each in verdicts), wrong]
    context: Mapping[str, Scalar] = {} if stored is None else stored.context
    before, after = context.get("weights"), facts.get("weights")
    changed = "" if before == after else f"the weights changed, too ({before} -> {after})"
    ways_held = str(context.get(WAYS, "")).split(", ")
    against_stored = fidelity.against_reference(
        {} if stored is None else stored.prompts,
        found.prompts,
        found.logits,
        fidelity.allowed(found.variations, found.most),
        found.layers_off,
        holder.shown,
        changed,
    )
    verdicts.append(fidelity.with_ways(against_stored, ways_held, found.without))
    return [fidelity.of_layers(each, found.first_layers) for each in verdicts]


def what_runs(
    name: EngineName, found: Fingerprint, timed: bool, against: Against, uncompiled: str = ""
) -> list[Verdict]:
    """Does another thing run inside a forward than did?

    ``timed``: throughput was, too. ``uncompiled``: why an engine that compiles ran eagerly.
    """
    held = against.stored is not None and bool(against.stored.values(HEALTH[0]))
    metric = f"{fingerprint.NAME}{suffix(name)}"
    if uncompiled:
        return [Verdict(metric, "invalid", "baseline", "count", reason=uncompiled)]
    return [_runs_as_stored(metric, name, found, timed and held, against)]


def _runs_as_stored(
    metric: str, name: str, found: Fingerprint, counts_judged: bool, against: Against
) -> Verdict:
    """Judge the fingerprint of that name; ``counts_judged``: elsewhere, those of compilation."""
    holder = against.of_fingerprint(name)
    if problem := against.mismatch or holder.mismatch:
        return Verdict(metric, "incomparable", "baseline", "count", reason=problem)
    stored = None if holder.stored is None else holder.stored.fingerprints.get(name)
    return fingerprint.against_stored(metric, stored, found, holder.shown, counts_judged)


def own_metric(
    case: Case, metric: Metric, workload: Mapping[str, Scalar], against: Against
) -> list[Verdict]:
    """Is a metric of the user's own worse than its stored sessions? Nothing for ``info``."""
    if metric.direction == "info":
        return []
    return [_against_stored(case, metric, performance.Run(), workload, against)]


def same_answers(
    case: Case, timings: Timings, reference: Answers | None, against: Against
) -> list[Verdict]:
    """Does the timed engine still answer as it should? Fast but wrong is never ok.

    The answers to the timed prompts are paired with the eager engine's (``reference``), unless they
    are its own or it does not run, and with the stored ones where there are any.
    """
    verdicts = []
    if timings.engine != "eager" and reference is not None:
        found = accuracy.same_answers(reference, timings.answers, case.model.precision)
        verdicts.append(replace(found, metric=f"{found.metric}{suffix(timings.engine)}"))
    name = answered(timings.engine, case.task_names[0])
    holder = against.of_answers(name)
    stored = _stored_answers(name, holder)
    comparable = not (against.mismatch or holder.mismatch)
    if stored is not None and comparable and timings.answers.labels is not None:
        judged = accuracy.accuracy_baseline(
            f"acc_{pass_name(name)}_timed",
            stored.scored(scoring(case, name)),
            scored(case, name, timings.answers),
            case.gates,
        )
        verdicts.append(_from(judged, against, holder))
    return verdicts


def _from(judged: Verdict, against: Against, holder: Against) -> Verdict:
    """The verdict, with the file that the answers are from, where it is not the layout's own."""
    if holder is against:
        return judged
    return replace(judged, reason=f"{judged.reason}; stored answers of {holder.shown}")


def scored(case: Case, name: str, answers: Answers) -> Scored:
    """Answers as their task's scoring sees them."""
    given = answers.letters() if scoring(case, name) == "letters" else answers.argmax_letter
    return Scored(answers.ids, given, answers.labels or "")


def _stored_answers(name: str, against: Against) -> StoredAnswers | None:
    return against.stored.accuracy.get(name) if against.stored is not None else None


def _fault(timed: Timings | Decoded, cure: str) -> str:
    """Why the run itself cannot be judged; empty where it can."""
    if timed.timed.graphs:
        return (
            f"{timed.timed.graphs} graph(s) were compiled inside the timed region: {cure}see "
            "TORCH_LOGS=recompiles"
        )
    return "; ".join(filter(None, (timed.ready.uncompiled, *timed.faults)))


def _against_stored(
    case: Case,
    metric: Metric,
    run: performance.Run,
    workload: Mapping[str, Scalar],
    against: Against,
) -> Verdict:
    if against.mismatch:
        return verdict.incomparable(metric, against.mismatch)
    stored = against.stored
    if stored is None or not stored.values(metric.name):
        return verdict.missing(metric, f"no stored value in {against.shown}")
    if unlike := baseline.unlike(stored, metric):
        return verdict.incomparable(metric, unlike)
    if dict(stored.sessions[-1].workload) != dict(workload):
        return verdict.incomparable(
            metric,
            f"the baseline was timed over {_shown(stored.sessions[-1].workload)}, "
            f"this run over {_shown(workload)}",
        )
    return performance.against_sessions(
        metric,
        performance.Held(stored.values(metric.name), *stored.anchor(metric.name)),
        case.gates,
        run,
    )


def _shown(workload: Mapping[str, Scalar]) -> str:
    kind = "a full pass" if workload.get("full_pass") else "a sample"
    return f"{kind} of {workload.get('questions')} questions, {workload.get('tokens')} tokens"


def stored_answers(
    answers: Answers, date: str, commit: str | None, context: Mapping[str, Scalar]
) -> StoredAnswers | None:
    """Answers in the form that records and baselines keep; None where there are no labels."""
    if answers.labels is None:
        return None
    margins = answers.margins() or (None,) * len(answers.ids)
    rows = list(
        zip(
            *(answers.ids, answers.letters(), answers.argmax_letter, answers.labels, margins),
            strict=True,
        )
    )
    return StoredAnswers.of(rows, date=date, commit=commit, reason="measured", context=context)
