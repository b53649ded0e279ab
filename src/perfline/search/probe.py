"""Is an environment as good as the good end of a search, as bad as its bad end, or not known?

A *probe* is one comparison of two :class:`Environment`, A against B, by the rule of ``perfline
compare`` and under :class:`Terms`: ``regressed`` is *bad*, ``ok`` is *good*, what is not decided
within the budget is *unsure*, and an environment that does not build, load or run is *skipped*.
Never by a stored number: A and B are always measured at the same time.

A plan knows :data:`Compare` alone, so that the very same code runs over live processes
(:class:`Live`) and over recorded or drawn log ratios (:func:`finding`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from perfline.cases.case import Case
from perfline.compare import gates, pair, run, sequential
from perfline.compare.model import SIDES, Kind, Launcher, Side, SideName, Timed, Worker, Workload
from perfline.compare.record import CaseComparison
from perfline.engines.engine import Fingerprint
from perfline.environments.installers import masked
from perfline.errors import EngineError, InstallError, SearchError, WorkerError
from perfline.fields import OPTIONAL, did_you_mean
from perfline.gates import fingerprint

Word = Literal["good", "bad", "unsure", "skipped"]

ERROR = 0.01  # of the whole answer: that it names what is innocent
CONFIDENCE = 0.98  # of the intervals that are shown, as ``perfline compare`` shows them


@dataclass(frozen=True)
class Sought:
    """A judged metric of a comparison that a search can follow.

    Attributes:
        noisy: whether it takes launch pairs until it is decided; else one launch of each tells.
        workload: what a round has to be for it.
        answers: whether questions have to be answered.
        fidelity: whether the case's fidelity prompts have to be run.
        task: whose accuracy it is; empty for that of the case's first, and for what is none.
        what: in a few words, for the help.
    """

    name: str
    what: str
    noisy: bool = False
    workload: Kind = "prefill"
    answers: bool = False
    fidelity: bool = False
    seconds: Timed = "core_s"
    task: str = ""


SOUGHT = {
    each.name: each
    for each in (
        Sought(gates.TIME, "seconds a token of the forwards", noisy=True),
        Sought(gates.DECODE, "seconds a generated token", noisy=True, workload="decode"),
        Sought(gates.FIRST, "seconds to the first token", True, "decode", seconds="first_s"),
        Sought("mem", "peak device memory"),
        Sought("graphs", "graphs that were compiled"),
        Sought("graph_breaks", "graph breaks"),
        Sought("recompiles", "graphs compiled anew"),
        Sought("acc", "accuracy, by answers that turned", answers=True),
        Sought("flips", "answers that turned and are no ties", answers=True),
        Sought("decode_flips", "generated tokens that turned, no ties", workload="decode"),
        Sought(gates.LETTERS, "letters' probabilities off by more than rounding", answers=True),
        Sought(gates.FIDELITY, "what is computed in fp32", fidelity=True),
        Sought(gates.DRIFT, "error of the case's own 16-bit dtype", fidelity=True),
        Sought("prompt_tokens", "tokens of the timed prompts"),
        Sought(fingerprint.NAME, "operators, kernels and weights of a forward"),
    )
}


def sought(name: str, tasks: Sequence[str] = ()) -> Sought:
    """The metric called ``name``, of a case with these ``tasks``: ``acc_ceval``, too.

    SearchError where a search knows none of that name.
    """
    known = SOUGHT | {f"acc_{task}": replace(SOUGHT["acc"], task=task) for task in tasks}
    if name not in known:
        hint = did_you_mean(name, known) or f" (known: {', '.join(known)})"
        raise SearchError(f"--metric {name}: is no metric that a comparison judges{hint}")
    return known[name]


def noisy(name: str) -> bool:
    """Whether it takes launch pairs; of a record, whose metric may have another name by now."""
    return name in SOUGHT and SOUGHT[name].noisy


@dataclass(frozen=True)
class Environment:
    """One of the environments that a search compares.

    Attributes:
        name: short and unlike any other's: a commit, a version, a date, names of packages.
        side: makes it, as either side; InstallError or WorkerError where that cannot be.
    """

    name: str
    side: Callable[[SideName], Side] = field(compare=False, repr=False)


@dataclass(frozen=True)
class Terms:
    """What a probe has to tell apart, and what it may spend on that.

    Attributes:
        margin_fraction: the slowdown that must be ruled out for ``good``.
        alpha: of calling what is no slower ``bad``, at one look; ``ok_alpha``: of calling what is
            slower by the margin ``good``, at one look.
        max_pairs: launch pairs after which it is ``unsure``.
    """

    margin_fraction: float
    alpha: float
    ok_alpha: float
    max_pairs: int


def terms(margin_fraction: float, max_pairs: int, probes: int) -> Terms:
    """The terms of one of ``probes`` probes that together err in at most :data:`ERROR`.

    By Bonferroni's inequality, over the probes and the looks of each. A probe errs one way only,
    as B is either slower by the margin or not, so both ways have its whole share. SearchError where
    ``max_pairs`` are too few to show anything so surely: p is at least 2^-pairs.
    """
    share = ERROR / probes / len(sequential.looks_up_to(max_pairs))
    least = math.ceil(-math.log2(share))
    if max_pairs < least:
        raise SearchError(
            f"--max-pairs {max_pairs}: cannot decide any of {probes} comparisons as surely as an "
            f"answer that is wrong in {100 * ERROR:g} % asks for; expected at least {least}"
        )
    return Terms(margin_fraction, share, share, max_pairs)


@dataclass(frozen=True)
class Finding:
    """What a probe found.

    Attributes:
        word: of B against A.
        reason: why it is unsure or skipped, or what differs; one line.
        estimate: log ratio of B to A, above 0 is worse; None without a number to compare.
        low, high: its interval at :data:`CONFIDENCE`; None where launch pairs are too few for one.
        change: as people read it: ``+5.1 %``, ``2 -> 3``.
        pairs: launch pairs, the void ones included.
        comparisons: the comparison, by its case's name; empty where none was needed.
    """

    word: Word
    reason: str = ""
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    change: str = ""
    pairs: int = 0
    minutes: float = field(default=0.0, metadata={"ge": 0.0})
    comparisons: dict[str, CaseComparison] = field(default_factory=dict, metadata=OPTIONAL)


class Compare(Protocol):
    """What a plan asks, as often as it needs."""

    def __call__(self, a: Environment, b: Environment, terms: Terms) -> Finding:
        """Compare B with A, at the same time, until it is decided or ``terms`` are spent.

        An error of A, which has been measured before, ends the search: WorkerError, InstallError.
        """


def finding(values: Sequence[float], word: sequential.Word | None) -> Finding:
    """What launch pairs with the log ratios ``values`` and their ``word`` say."""
    words: dict[str | None, Word] = {"regressed": "bad", "ok": "good", "improved": "good"}
    if not values:
        return Finding("unsure", "no launch pair counts")
    estimate = sequential.hodges_lehmann(values)
    low, high = sequential.interval(values, CONFIDENCE) or (None, None)
    return Finding(
        word=words.get(word, "unsure"),
        reason="improved" if word == "improved" else "",
        estimate=estimate,
        low=low,
        high=high,
        change=percent(estimate),
        pairs=len(values),
    )


def percent(log_ratio: float) -> str:
    """A log ratio as people read it: ``+1.3 %``."""
    return f"{100 * math.expm1(log_ratio):+.1f} %"


LauncherOf = Callable[[Workload], AbstractContextManager[Launcher]]
Launchers = Callable[[tuple[Side, Side]], AbstractContextManager[LauncherOf]]


@dataclass(frozen=True)
class Live:
    """:data:`Compare` by live processes.

    Attributes:
        workload: what both run; its kind and number of questions are the metric's.
        launchers: starts the processes of two sides.
        say: takes lines for the user; ``progress`` one after every launch pair, made of it.
        rounds, alternate: as of ``compare.run.Plan``.
        better: what is sought is where the metric got better: A and B swap their sides.
    """

    case: Case
    workload: Workload
    metric: Sought
    launchers: Launchers
    say: Callable[[str], None]
    progress: Callable[[CaseComparison], str]
    rounds: int | None = None
    alternate: bool = False
    better: bool = False

    def __call__(self, a: Environment, b: Environment, terms: Terms) -> Finding:
        """As ``Compare`` says."""
        began = time.monotonic()
        of_a: SideName = "candidate" if self.better else "baseline"
        of_b: SideName = "baseline" if self.better else "candidate"
        side_a = a.side(of_a)
        try:
            side_b = b.side(of_b)
        except (InstallError, WorkerError) as error:
            return _skipped(error, began)
        sides = (side_b, side_a) if self.better else (side_a, side_b)
        try:
            with self.launchers(sides) as launcher_of, launcher_of(self._workload()) as launcher:
                found = self._found(sides, of_b, terms, launcher)
        except (WorkerError, EngineError) as error:
            if not str(error).startswith(of_b):
                raise
            return _skipped(error, began)
        return replace(self._turned(found), minutes=(time.monotonic() - began) / 60)

    def _workload(self) -> Workload:
        questions = self.workload.questions if self.metric.answers else 0
        return replace(self.workload, kind=self.metric.workload, questions=questions)

    def _turned(self, found: Finding) -> Finding:
        """B against A again, where they had swapped sides."""
        if not self.better:
            return found
        if found.estimate is None:
            return replace(found, change=" -> ".join(reversed(found.change.split(" -> "))))
        low = None if found.high is None else -found.high
        high = None if found.low is None else -found.low
        turned = " -> ".join(reversed(found.change.split(" -> ")))
        shown = percent(-found.estimate) if self.metric.noisy else turned
        return replace(found, estimate=-found.estimate, low=low, high=high, change=shown)

    def _found(
        self, sides: tuple[Side, Side], of_b: SideName, terms: Terms, launcher: Launcher
    ) -> Finding:
        if self.metric.name in ("prompt_tokens", fingerprint.NAME):
            return _counted(self.metric, sides, launcher)
        noisy = self.metric.noisy
        metric, task = self.metric, self.metric.task
        if task:
            metric = replace(metric, name=gates.accuracy_name(self.workload.engine, task))
        plan = run.Plan(
            case=self.case,
            sides={side.name: side for side in sides},
            workload=self._workload(),
            margin_fraction=terms.margin_fraction,
            max_pairs=terms.max_pairs if noisy else 1,
            rounds=self.rounds if noisy else pair.MIN_ROUND_PAIRS,
            alternate=self.alternate,
            fidelity=self.metric.fidelity,
            tasks=(task,) if task else (),
            alpha=terms.alpha,
            ok_alpha=terms.ok_alpha,
        )
        compared = run.begin(plan)
        for compared in run.run(plan, launcher, self.say):
            if noisy and (line := self.progress(compared)):
                self.say(line)
        found = _of_comparison(metric, compared, of_b)
        return replace(found, pairs=len(compared.pairs), comparisons={compared.case: compared})


def _skipped(error: Exception, began: float) -> Finding:
    reason = masked(" ".join(str(error).split()))
    return Finding("skipped", reason, minutes=(time.monotonic() - began) / 60)


def _of_comparison(metric: Sought, compared: CaseComparison, of_b: SideName) -> Finding:
    """What a comparison that has ended says of one metric."""
    problem = " ".join(compared.problem.split())
    whose = problem.removeprefix("the ").partition(" ")[0].rstrip(":")
    if whose in SIDES and whose != of_b:
        raise WorkerError(problem)  # of the good end, which has been measured before
    if problem and whose != of_b and len(compared.counted) < len(compared.pairs):
        return Finding("unsure", problem)  # a restless device: void launch pairs
    if problem:
        return Finding("skipped", problem)
    if metric.noisy:
        first = metric.seconds == "core_s"
        decision = compared.decision if first else compared.beside[metric.seconds]
        word = None if decision is None else decision.word
        return finding(compared.log_ratios(metric.seconds), word)
    if metric.name == "flips":
        flips = [flip for verdict in compared.verdicts for flip in verdict.flips]
        return Finding("bad" if flips else "good", change=f"{len(flips)} flips")
    named = [verdict for verdict in compared.verdicts if verdict.metric == metric.name]
    if not named and not metric.task:  # ``acc``, of whichever engine
        start = f"{metric.name}_"
        named = [verdict for verdict in compared.verdicts if verdict.metric.startswith(start)]
    if not named or named[0].word in ("missing", "incomparable"):
        why = named[0].reason if named else "it is not measured on this device, by this engine"
        return Finding("skipped", f"{metric.name}: {why}")
    verdict = named[0]
    words: dict[str, Word] = {"ok": "good", "improved": "good", "regressed": "bad"}
    word_of = words.get(verdict.word, "unsure")
    if metric.name == gates.LETTERS and verdict.word == "unsure":
        word_of = "bad"  # beyond rounding: what a search for it looks for
    return Finding(word_of, verdict.reason, change=_values(verdict.baseline, verdict.measured))


def _values(before: float | None, after: float | None) -> str:
    return " -> ".join(f"{value:.4g}" for value in (before, after) if value is not None)


def _counted(metric: Sought, sides: tuple[Side, Side], launcher: Launcher) -> Finding:
    """Compare what a launch of each side tells of itself, without a timed round."""
    a, b = (_told(metric, side, launcher) for side in sides)
    if isinstance(a, int) and isinstance(b, int):
        ratio = math.log(b / a) if a > 0 and b > 0 else None
        word: Word = "bad" if b > a else "good"
        return Finding(word, "", ratio, ratio, ratio, f"{a} -> {b}")
    assert not isinstance(a, int)
    assert not isinstance(b, int)
    reason = fingerprint.against_stored(metric.name, a, b, "", timed=False).reason
    same = reason == fingerprint.SAME
    return Finding("good" if same else "bad", reason, change="same" if same else "other")


def _told(metric: Sought, side: Side, launcher: Launcher) -> int | Fingerprint:
    pending = launcher.start(side)
    worker: Worker | None = None
    try:
        worker = pending.wait_ready()
        if metric.name == "prompt_tokens":
            return worker.ready.tokens
        found = worker.fingerprint()
    finally:
        (worker or pending).close()
    if found is None:
        raise WorkerError(f"{side.name}: tells no fingerprint (another engine, or older perfline)")
    return found
