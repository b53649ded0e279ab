"""Is B slower than A, faster, the same, or wrong? Launch pairs until it is decided.

Several cases are compared one after the other, each to its own decision. Together they may cry
wolf no oftener than one would: each spends an equal share of a look's alpha, one that is found
``regressed`` hands its share on to those that come after it (Holm), and :func:`settle` lets those
before it have it too. With K cases ``regressed`` needs p <= alpha / K, which 10 launch pairs cannot
show (p is at least 2^-10) from K = 2 on: then it falls at the look after 14 pairs at the earliest.

How a launch pair runs says ``pair``.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from perfline.cases.case import ENGINE_NAMES, Case, with_settings
from perfline.compare import gates, sequential
from perfline.compare.explain import ROUNDS, Explanation, explain
from perfline.compare.model import (
    BESIDE,
    SIDES,
    Launcher,
    Ready,
    Side,
    SideName,
    Worker,
    Workload,
)
from perfline.compare.pair import Done, Task, interleaved, launched, whole_launches
from perfline.compare.record import (
    AnswersRecord,
    CaseComparison,
    FidelityRecord,
    SideRecord,
)
from perfline.compare.sequential import Decision
from perfline.compare.sides import describe
from perfline.errors import (
    CaseError,
    DeviceMemory,
    EngineError,
    MissingRanks,
    PerflineError,
    WorkerError,
)
from perfline.gates.fingerprint import differences
from perfline.gates.verdict import Verdict, Word

FIRST_ROUNDS = 6  # kept rounds a side and launch, until the spreads are known
SPREADS_AFTER = 4  # launch pairs
MAX_VOID = 3  # launch pairs
MAX_VOID_FRACTION = 0.25

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is to be compared, and when it is decided.

    Attributes:
        case: as its file says; the sides' settings come on top.
        margin_fraction: the slowdown that must be ruled out for ``ok``.
        max_pairs: launch pairs after which it is ``unsure``.
        rounds: kept rounds a side and launch; None: as the measured spreads ask for.
        alternate: whole launches in turn, A B B A, instead of rounds.
        alpha: of one look; ``ok_alpha``: of calling a slowdown of the margin ``ok``, at one look.
        fidelity: whether both sides run the case's fidelity prompts, where it has any.
        tasks: those whose accuracy is judged beside the first's; None for all of the case's.
        notes: what is to be noted before it starts, such as a requirement that an install broke.
        explain: whether profiled rounds are to say, once it is decided, which operators differ;
            ``traces`` is the directory that then keeps both sides' last one.
    """

    case: Case
    sides: Mapping[SideName, Side]
    workload: Workload
    margin_fraction: float
    max_pairs: int
    rounds: int | None = None
    alternate: bool = False
    alpha: float = sequential.ALPHA
    ok_alpha: float = sequential.OK_ALPHA
    fidelity: bool = True
    tasks: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    explain: bool = False
    traces: Path | None = None

    @property
    def looks(self) -> tuple[int, ...]:
        """After how many counted launch pairs it may be decided."""
        return sequential.looks_up_to(self.max_pairs)


class _Incomparable(Exception):  # noqa: N818 - never leaves this module
    """The sides do different work."""


def begin(plan: Plan) -> CaseComparison:
    """The comparison before its first launch. CaseError where a side's settings are wrong.

    MissingRanks where a side's model is split over more processes than it gets.
    """
    cases = [with_settings(plan.case, plan.sides[name].settings) for name in SIDES]
    for tensor in sorted({case.parallel.tensor for case in cases}):
        if plan.workload.ranks % tensor:
            raise MissingRanks(
                f"case '{plan.case.id}' splits its model over {tensor} processes "
                f"(parallel.tensor), and --ranks is {plan.workload.ranks}: compare with "
                f"--ranks {tensor}, or a multiple of it"
            )
    for name in SIDES:
        for key, _ in plan.sides[name].settings:
            if key.startswith(("gates.", "compare.")) or key == "throughput.rounds":
                raise CaseError(
                    f"--set {key}: is no setting of a side; use --margin, --questions and --rounds "
                    "here, and the case's file for its gates"
                )
    if plan.workload.kind != "prefill":
        _check_decodes(plan)
    if plan.explain:
        _check_explains(plan)
    found = CaseComparison(
        case=plan.case.id,
        title=plan.case.title,
        engine=plan.workload.engine,
        weights=plan.workload.weights,
        questions=plan.workload.questions,
        margin_fraction=plan.margin_fraction,
        looks=plan.looks,
        alpha=plan.alpha,
        ok_alpha=plan.ok_alpha,
        rounds=plan.rounds or FIRST_ROUNDS,
        rounds_reason="asked for" if plan.rounds else "to begin with",
        sides={name: SideRecord.of(plan.sides[name]) for name in SIDES},
        difference=_difference(plan, ({}, {})),
        notes=plan.notes,
        ranks=plan.workload.ranks,
        workload=plan.workload.kind,
    )
    if problem := gates.other_work(*cases):
        return _stopped(plan, found, (), "incomparable", problem)
    return replace(found, verdicts=gates.judge(found, plan.case.gates, (), None))


def _check_explains(plan: Plan) -> None:
    """CaseError where nothing can be profiled."""
    for lacking, why in (
        (plan.workload.ranks > 1, "it profiles one process a side; leave out --ranks"),
        (plan.workload.engine not in ENGINE_NAMES, "the engines are eager and inductor"),
        (plan.workload.kind == "decode", "it profiles prompts; leave out --workload decode"),
    ):
        if lacking:
            raise CaseError(f"--explain: {why}")


def _check_decodes(plan: Plan) -> None:
    """CaseError where the case, or how it is run, has no decode."""
    for lacking, why in (
        (plan.workload.ranks > 1, "it runs in one process, without --ranks"),
        (plan.workload.engine not in ENGINE_NAMES, "the engines are eager and inductor"),
        (plan.case.decode.tokens == 0, f"{plan.case.source} leaves it out (decode.tokens: 0)"),
    ):
        if lacking:
            raise CaseError(f"--workload {plan.workload.kind}: {why}")


def run(plan: Plan, launcher: Launcher, say: Say) -> Iterator[CaseComparison]:
    """Run launch pairs until it is decided; yield what is known after each.

    A process that fails ends the comparison as ``invalid``: that is a finding, and never a time.
    ``say`` takes a line for the user.
    """
    found = begin(plan)
    answered: tuple[Verdict, ...] = ()
    interleave = not plan.alternate
    with ExitStack() as alive:
        workers: Mapping[SideName, Worker] = {}
        while not found.ended:
            alive.close()  # those of the pair before
            run_pair = interleaved if interleave else whole_launches
            try:
                done = run_pair(launcher, plan.sides, _task(plan, found))
            except DeviceMemory as error:
                if interleave:
                    interleave = False
                    note = (
                        f"A and B do not fit on the device at once ({error}): whole launches in "
                        "turn"
                    )
                    say(note)
                    found = replace(found, notes=(*found.notes, " ".join(note.split())))
                    continue
                found = _stopped(plan, found, answered, "invalid", str(error))
            except (WorkerError, EngineError) as error:
                found = _stopped(plan, found, answered, "invalid", str(error))
            except _Incomparable as problem:
                found = _stopped(plan, found, answered, "incomparable", str(problem))
            else:
                alive.enter_context(done.ends)
                workers = done.alive
                if done.answers:
                    found, answered = _with_answers(plan, found, done)
                found = _judged(plan, _with_pair(plan, found, done), answered)
            yield found
        if plan.explain and not found.problem:
            say(f"{found.verdicts[0].word}; now profiled, to explain it: {ROUNDS} rounds a side")
            yield replace(found, explanation=_explained(plan, launcher, found, workers, alive))


def _explained(
    plan: Plan,
    launcher: Launcher,
    found: CaseComparison,
    workers: Mapping[SideName, Worker],
    ends: ExitStack,
) -> Explanation:
    """Have both live processes profile rounds in turn; a failure is told, and changes no verdict.

    Where there are no ``workers``, or they have died, one more pair is started.
    """
    begin = time.monotonic()
    task = _task(plan, found)

    def one_more() -> Mapping[SideName, Worker]:
        live = launched(launcher, plan.sides, task, ends)
        return {name: each.worker for name, each in live.items()}

    try:
        try:
            told = _profiled(plan, found, task, workers or one_more())
        except WorkerError:
            if not workers:
                raise
            ends.close()
            told = _profiled(plan, found, task, one_more())
    except DeviceMemory as error:
        return Explanation(problem=f"A and B do not fit on the device at once: {error}")
    except (PerflineError, _Incomparable, OSError) as error:
        return Explanation(problem=str(error))
    return replace(told, seconds=time.monotonic() - begin)


def _profiled(
    plan: Plan, found: CaseComparison, task: Task, workers: Mapping[SideName, Worker]
) -> Explanation:
    """What differs exactly, then rounds A B | B A under the profiler; raises what they do."""
    a, b = (workers[name].fingerprint() for name in SIDES)
    exact = tuple(differences(a, b)) if a is not None and b is not None else ()
    with _Traces(plan.traces, f"{found.case}-{found.engine}") as traces:
        for turn in range(-1, ROUNDS):  # the first of each may compile, and is dropped
            for name in task.order if turn % 2 == 0 else task.order[::-1]:
                trace = traces.written.get(name) if turn == ROUNDS - 1 else None
                if not workers[name].profile(trace):
                    which = "A" if name == "baseline" else "B"
                    raise EngineError(
                        f"{which}'s perfline cannot profile, as it is older than --explain"
                    )
        told = explain(*(workers[name].profiles()[1:] for name in SIDES))
        return replace(told, differences=exact, traces=traces.keep())


_MOST_TRACES = 1000  # of one case in a directory


class _Traces:
    """Where both sides write their traces, and their way into the user's directory."""

    def __init__(self, directory: Path | None, stem: str) -> None:
        """None keeps nothing."""
        self._directory, self._stem = directory, stem
        self.written: dict[SideName, Path] = {}

    def __enter__(self) -> _Traces:
        """Make a directory beside them: what is half written has no name of theirs."""
        self._scratch = ExitStack()
        if self._directory is not None:
            made = tempfile.TemporaryDirectory(prefix=".perfline-", dir=self._directory)
            scratch = Path(self._scratch.enter_context(made)).absolute()
            self.written = {name: scratch / f"{name}.json" for name in SIDES}
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing behind that was not kept."""
        self._scratch.close()

    def keep(self) -> tuple[str, ...]:
        """Give both files the first names that no file has."""
        if self._directory is None:
            return ()
        for more in ("", *(f"-{number}" for number in range(2, _MOST_TRACES))):
            names = {n: self._directory / f"{self._stem}-{n}{more}.json" for n in SIDES}
            try:
                for name, path in names.items():
                    path.hardlink_to(self.written[name])  # at once, and never over another file
            except FileExistsError:
                continue
            return tuple(map(str, names.values()))
        raise WorkerError(f"{self._directory}: holds too many traces of {self._stem}; remove some")


def share(alpha: float, cases: int, regressed: int) -> float:
    """What the next of ``cases`` may spend of ``alpha``, where ``regressed`` of them are so."""
    p_values = [0.0] * regressed + [1.0] * (cases - regressed)
    return sequential.shared_alpha(p_values, alpha)[-1]


def settle(
    found: Sequence[CaseComparison], alpha: float = sequential.ALPHA
) -> tuple[CaseComparison, ...]:
    """Let cases that are ``unsure`` have what later ones handed on: Holm over all of them."""
    p_values = [_p_value(case) for case in found]
    return tuple(
        _settled(case, limit)
        for case, limit in zip(found, sequential.shared_alpha(p_values, alpha), strict=True)
    )


def _task(plan: Plan, found: CaseComparison) -> Task:
    case, other = (with_settings(plan.case, plan.sides[name].settings) for name in SIDES)
    ours = plan.workload.engine in ENGINE_NAMES
    threads = [side.engine.cpu_threads or 0 for side in (case, other)]
    asked = plan.fidelity and case.fidelity.prompts > 0 and ours
    return Task(
        first=SIDES[len(found.pairs) % 2],
        rounds=found.rounds,
        repeats=found.repeats,
        min_round_s=case.throughput.min_round_s,
        tasks=_asked(plan, case) if found.answers is None else (),
        check=lambda ready: _check(found, ready),
        workload=found.workload,
        fidelity=asked and found.answers is None,
        threads=max(threads) if all(threads) and ours and plan.workload.ranks == 1 else 0,
        keep=plan.explain,
    )


def _asked(plan: Plan, case: Case) -> tuple[str, ...]:
    """The tasks whose questions are asked: the first alone where there is no accuracy."""
    first, *others = case.task_names
    if plan.workload.weights == "dummy" or not plan.workload.questions:
        return (first,)
    return (first, *(name for name in others if plan.tasks is None or name in plan.tasks))


def _check(found: CaseComparison, ready: Mapping[SideName, Ready]) -> None:
    """Refuse sides that do different work, and a side that changed on the way."""
    if problem := gates.mismatch(ready):
        raise _Incomparable(problem)
    for name in SIDES:
        first, now = found.sides[name], ready[name]
        known = (first.digest, dict(first.facts), dict(first.context))
        if first.digest and known != (now.digest, dict(now.facts), dict(now.context)):
            raise _Incomparable(
                f"the {name} changed while it was compared (its case, data, code or versions): "
                "leave them alone, and compare again"
            )


def _with_answers(
    plan: Plan, found: CaseComparison, done: Done
) -> tuple[CaseComparison, tuple[Verdict, ...]]:
    a, b = (done.answers[name] for name in SIDES)
    dtypes = (done.ready["baseline"].dtype, done.ready["candidate"].dtype)
    case = with_settings(plan.case, plan.sides["baseline"].settings)
    numbers: tuple[Verdict, ...] = ()
    if done.fidelity:
        of_a, of_b = (done.fidelity[name] for name in SIDES)
        numbers = gates.numbers(case, found.engine, of_a, of_b, dtypes)
        if of_a is not None and of_b is not None and not (of_a.problem or of_b.problem):
            prompts = len(of_b.references["eager"])
            found = replace(found, fidelity=FidelityRecord(prompts, of_a.seconds, of_b.seconds))
    known = any(v.metric.startswith(gates.FIDELITY) and v.word != "missing" for v in numbers)
    first, *others = _asked(plan, case)
    record, answered = gates.answers(case, found.engine, a[first], b[first], dtypes, known)
    more: dict[str, AnswersRecord] = {}
    for task in others:
        both = a.get(task), b.get(task)
        told, verdict = gates.more_answers(case, found.engine, task, *both, dtypes)
        answered += (verdict,)
        more |= {} if told is None else {task: told}
    if done.generated:
        tokens_a, tokens_b = (done.generated[name] for name in SIDES)
        answered += (gates.generated(case, found.engine, tokens_a, tokens_b, dtypes),)
    return replace(found, answers=record, more_answers=more), (*answered, *numbers)


def _with_pair(plan: Plan, found: CaseComparison, done: Done) -> CaseComparison:
    """Add a launch pair; after the fourth that counts, choose the rounds of all others."""
    if not found.pairs:
        installed = any(side.install for side in plan.sides.values())
        told = {
            name: done.ready[name] if installed else replace(done.ready[name], packages={})
            for name in SIDES
        }
        versions = [{**told[name].packages, **told[name].context} for name in SIDES]
        found = replace(
            found,
            repeats=done.repeats,
            sides={name: _introduced(found.sides[name], told[name]) for name in SIDES},
            difference=_difference(plan, (versions[0], versions[1])),
        )
    found = replace(found, pairs=(*found.pairs, done.pair))
    if plan.rounds is None and not done.pair.void and len(found.counted) == SPREADS_AFTER:
        return _with_rounds(found)
    return found


def _with_rounds(found: CaseComparison) -> CaseComparison:
    counted = found.counted
    launch_s = statistics.median(pair.wall_s - pair.rounds_s for pair in counted)
    round_s = statistics.median(pair.rounds_s / len(pair.baseline.rounds) for pair in counted)
    launch_sd, round_sd = sequential.spreads([pair.round_log_ratios() for pair in counted])
    rounds = sequential.rounds_per_launch(launch_s, max(round_s, 1e-9), launch_sd, round_sd)
    return replace(
        found,
        rounds=rounds,
        rounds_reason=f"Kalibera-Jones: log ratios spread by {100 * launch_sd:.2g} % between "
        f"launches and {100 * round_sd:.2g} % between rounds; a launch pair takes {launch_s:.1f} s "
        f"to start, a round pair {round_s:.1f} s",
    )


def _difference(plan: Plan, contexts: tuple[Mapping[str, str], Mapping[str, str]]) -> str:
    """How B differs from A, without what looks secret."""
    shown = {name: SideRecord.of(side) for name, side in plan.sides.items()}
    a, b = (
        replace(plan.sides[name], env=shown[name].env, install=shown[name].install)
        for name in SIDES
    )
    return describe(a, b, contexts, plan.case)


def _introduced(side: SideRecord, ready: Ready) -> SideRecord:
    return replace(
        side,
        machine=ready.machine,
        device=ready.device,
        dtype=ready.dtype,
        digest=ready.digest,
        context=dict(ready.context),
        facts=dict(ready.facts),
        packages=dict(ready.packages),
        notices=ready.notices,
    )


def _judged(plan: Plan, found: CaseComparison, answered: tuple[Verdict, ...]) -> CaseComparison:
    """Decide, if this is a look; end where it is decided, or where too many pairs are void."""
    values, voids = found.log_ratios(), len(found.pairs) - len(found.counted)
    if values:
        margin = math.log1p(plan.margin_fraction)

        def decided(before: Decision | None, some: Sequence[float]) -> Decision:
            if before is not None and before.word is not None:
                return before  # the look at which a word falls is its last
            return sequential.decide(some, margin, found.looks, found.alpha_each, found.ok_alpha)

        decision = decided(found.decision, values)
        beside: dict[str, Decision] = {
            name: decided(found.beside.get(name), found.log_ratios(name))
            for name in BESIDE[found.workload]
        }
        words = [each.word for each in (decision, *beside.values())]
        found = replace(found, decision=decision, beside=beside, ended=None not in words)
    if voids > MAX_VOID or (found.ended and voids > MAX_VOID_FRACTION * len(found.pairs)):
        reasons = dict.fromkeys(pair.void for pair in found.pairs if pair.void)
        problem = (
            f"{voids} of {len(found.pairs)} launch pairs do not count "
            f"({'; '.join(list(reasons)[:3])}): compare again once the device is left alone"
        )
        return _stopped(plan, found, answered, "invalid", problem)
    return replace(found, verdicts=gates.judge(found, plan.case.gates, answered, None))


def _stopped(
    plan: Plan, found: CaseComparison, answered: tuple[Verdict, ...], word: Word, problem: str
) -> CaseComparison:
    found = replace(found, problem=problem, ended=True)
    verdicts = gates.judge(found, plan.case.gates, answered, word)
    return replace(found, verdicts=verdicts)


def _p_value(case: CaseComparison) -> float:
    word = case.verdicts[0].word
    if word == "regressed":
        return 0.0
    return case.decision.p_slower if word == "unsure" and case.decision is not None else 1.0


def _settled(case: CaseComparison, alpha: float) -> CaseComparison:
    """Decide an ``unsure`` case anew with the alpha that it has in the end."""
    if case.verdicts[0].word != "unsure" or case.decision is None or alpha <= case.alpha:
        return case
    margin = math.log1p(case.margin_fraction)
    found = replace(case, alpha=alpha)
    decision = sequential.decide(
        case.log_ratios(), margin, case.looks, found.alpha_each, found.ok_alpha
    )
    if decision.word != "regressed":
        return case
    found = replace(found, decision=decision)
    return replace(found, verdicts=(gates.on_time(found), *case.verdicts[1:]))
