"""How does a session settle a stored verdict on time by itself, under ``--settle``?

The very command that is printed without the option is run, once the model of the suite is freed;
what it found takes the place of the gate's word, which stays beside it. A comparison that cannot
be made, or that does not end in time, changes no word.
"""

from __future__ import annotations

import math
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from perfline.baselines.settling import OF_MACHINE, Job, Made, SideA, differences
from perfline.cases.case import Case, engine_name
from perfline.compare import gates, record, sequential
from perfline.compare.record import CaseComparison, SideRecord
from perfline.errors import PerflineError, RecordError
from perfline.gates.verdict import Settled, Verdict, Word, signed

_GOES_AWAY_S = 60.0  # after a polite end: processes and work trees are removed


@dataclass(frozen=True)
class Command:
    """What is run: ``perfline``'s own arguments, and where."""

    arguments: tuple[str, ...]
    unset: tuple[str, ...]
    directory: Path
    limit_s: float


class SettleError(PerflineError):
    """Why a comparison said nothing, in one line."""


Runner = Callable[[Command], None]


def run_compare(command: Command) -> None:
    """Run it as a process of its own; SettleError where it did not end by itself, with its reason.

    That B is slower, or wrong, is no such reason: it stands in the record.
    """
    env = {name: text for name, text in os.environ.items() if name not in command.unset}
    words = [sys.executable, "-m", "perfline", *command.arguments]
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                words,
                cwd=command.directory,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
        except OSError as error:
            raise SettleError(f"perfline cannot be run: {error.strerror}") from error
        try:
            status = process.wait(command.limit_s)
        except subprocess.TimeoutExpired as error:
            raise SettleError("the time of --settle was over before it was decided") from error
        finally:
            _end(process)
        said.seek(0)
        lines = said.read().decode("utf-8", "replace").strip().splitlines()
    if status not in (0, 1):
        last = lines[-1] if lines else f"it ended with status {status}"
        raise SettleError(last.removeprefix("perfline: ").removeprefix("error: "))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what still runs, first as a cancelled job ends it: its work trees go, too."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_GOES_AWAY_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Compared:
    """What a comparison found, its record as typed from where pytest was started, its seconds."""

    found: CaseComparison
    path: str
    took_s: float


@dataclass
class Settler:
    """Settles verdicts until its time is used up.

    Attributes:
        seconds: in all, for the session.
        folder: where the comparisons' records go.
        directory: where pytest was started: paths in ``flags`` start there.
        flags: with which ``perfline compare`` finds what the session used.
    """

    seconds: float
    folder: Path
    directory: Path
    flags: str
    run: Runner = run_compare
    clock: Callable[[], float] = time.monotonic
    say: Callable[[str], None] = lambda line: None
    _used_s: float = 0.0

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return self.seconds - self._used_s

    def check(self, a: SideA, then: Made, now: Made) -> None:
        """SettleError where no comparison could tell, or none has time."""
        if a.impossible:
            raise SettleError(a.impossible)
        if a.empty:
            apart = differences(then, now, now.context, now.packages or {})
            named = f" ({'; '.join(apart.values())})" if apart else ""
            raise SettleError(
                "neither the code nor the packages differ from the baseline's, as far as it tells: "
                f"this machine, its driver, or chance{named}"
            )
        if self.left_s <= 0:
            raise SettleError(f"the {self.seconds / 60:g} minutes of --settle are used up")

    def compare(self, case: Case, job: Job, a: SideA) -> Compared:
        """Compare; SettleError where it said nothing."""
        name = f"{case.id}-{engine_name(job.engine)}-{job.workload}.json"
        path = Path(os.path.relpath(self.folder / name, self.directory))
        arguments = ["compare", case.id, *a.arguments, f"--engine={job.engine}"]
        arguments += [f"--workload={job.workload}", *shlex.split(self.flags), f"--out={path}"]
        self.say(
            f"settling {', '.join(job.seconds)}: perfline {shlex.join(arguments)} "
            f"(at most {self.left_s / 60:.1f} minutes)"
        )
        (self.directory / path).parent.mkdir(parents=True, exist_ok=True)
        (self.directory / path).unlink(missing_ok=True)  # never an older one's
        began = self.clock()
        try:
            self.run(Command(tuple(arguments), a.unset, self.directory, self.left_s))
        finally:
            took_s = self.clock() - began
            self._used_s += took_s
        try:
            found = record.load(self.directory / path)
        except RecordError as problem:
            raise SettleError(str(problem)) from problem
        if found.partial or case.id not in found.cases:
            raise SettleError(f"{path} is not whole: the comparison was interrupted")
        return Compared(found.cases[case.id], str(path), took_s)


def check_b(found: CaseComparison, now: Made, machine: str) -> None:
    """SettleError where B is not this very session: another card, or code edited meanwhile."""
    b = found.sides["candidate"]
    told = {**_told(b), "machine": b.machine}
    here = {**now.context, "machine": machine}
    other = [
        f"{name} {text} -> {told[name]}"
        for name, text in here.items()
        if name in told and told[name] != str(text)
    ]
    if other:
        raise SettleError(f"B ran otherwise than this session: {'; '.join(other)}")


def settled(
    verdict: Verdict,
    job: Job,
    a: SideA,
    compared: Compared,
    then: Made,
    now: Made,
    crept: str = "",
) -> Verdict:
    """The verdict once a comparison of today with the baseline's side ``a`` has been made.

    ``crept`` says that the anchor, which is older than what was compared, holds the metric, too:
    that loss is no affair of the comparison. SettleError where it could not be carried through.
    """
    found = compared.found
    word, summary = _said(found, job, verdict.metric)
    side = found.sides["baseline"]
    packages = side.packages or now.packages or {}
    apart = differences(then, now, _told(side), packages)
    new: Word = verdict.word
    if word == "regressed":
        new, why = "regressed", "which is the code, the packages or the variables"
    elif word == "unsure":
        why = "which leaves the first verdict"
    elif a.lacking or not apart.keys() <= OF_MACHINE:
        lacking = "; ".join((*apart.values(), *a.lacking))
        why = f"yet A is not all that the baseline was, for it lacks: {lacking}"
    elif apart:
        named = "; ".join(apart.values())
        why = f"not the code, not the packages: this machine, or its driver ({named})"
    elif crept:
        why = crept
    else:
        new, why = "ok", "all that differs from the baseline is on A's side, too"
    path, took_s = compared.path, compared.took_s
    reason = (
        f"first {verdict.word}: {verdict.reason}; compared with {_shown(a, then)}: {summary}, "
        f"{why}; this verdict took {took_s / 60:.1f} minutes of this device ({path})"
    )
    return replace(
        verdict, word=new, reason=reason, settled=Settled(verdict.word, word, took_s, path)
    )


def unsettled(verdict: Verdict, why: str) -> Verdict:
    """The verdict as it was, and why no comparison changed it."""
    return replace(verdict, reason=f"{verdict.reason}; not settled: {' '.join(why.split())[:300]}")


def _said(found: CaseComparison, job: Job, metric: str) -> tuple[Word, str]:
    """The comparison's word on a metric, and the sentence for it."""
    if found.problem or not found.ended or not found.counted:
        raise SettleError(found.problem or "the comparison ended before it was decided")
    seconds = job.seconds[metric]
    margin = math.log1p(found.margin_fraction)
    if seconds == "core_s":
        decision = found.decision
    elif seconds == "whole_s":  # not judged by compare itself: by its rule, at its last look
        rule = margin, found.looks, found.alpha_each
        decision = sequential.decide(found.log_ratios("whole_s"), *rule)
    else:
        decision = found.beside.get(seconds)
    if decision is None or decision.estimate is None:
        raise SettleError(f"the comparison says nothing of {metric}")
    word: Word = decision.word or "unsure"
    bound = signed(100 * gates.bound(word, found.margin_fraction), "%")
    time_shown = signed(100 * math.expm1(decision.estimate), "%")
    return word, f"{word}, time {time_shown} (limit {bound}, {decision.pairs} launch pairs)"


def _told(side: SideRecord) -> Mapping[str, str]:
    return {**side.context, **side.facts}


def _shown(a: SideA, then: Made) -> str:
    """What A was, in a few words."""
    words = [f"commit {then.commit}"] if "--baseline-ref" in a.arguments else []
    words += ["its packages"] if "--baseline-install" in a.arguments else []
    words += ["its variables"] if "--baseline-env" in a.arguments or a.unset else []
    return " and ".join(words)


def worth(verdicts: Sequence[Verdict]) -> bool:
    """Whether the time is: what is broken, or another case, has no time to be settled."""
    return not any(each.word in ("invalid", "incomparable") for each in verdicts)
