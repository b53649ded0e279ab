"""What has A to be, so that `perfline compare` in one job settles a stored verdict on time?

The code *and* the packages *and* the environment variables that the baseline was measured with, as
far as they are known: old code on new packages would clear a regression of the packages. What
cannot be had again (uncommitted changes, a driver) is told, and keeps ``regressed`` from becoming
``ok``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from perfline.baselines.baseline import Baseline
from perfline.cases.case import engine_name
from perfline.engines.environment import PACKAGES, Environment
from perfline.fields import Scalar
from perfline.gates import fidelity, fingerprint
from perfline.gates.verdict import Verdict
from perfline.metrics import pass_name, suffix

Seconds = Literal["core_s", "whole_s", "first_s"]  # of a comparison's rounds
# Of the machine: no side of a comparison can have another one's.
OF_MACHINE = frozenset({"device", "driver", "os", "runner", "threads"})
_PLACED = "VISIBLE_DEVICES"  # so end the variables that say which card


@dataclass(frozen=True)
class Made:
    """With what a measurement was made; None is what nobody noted."""

    context: Mapping[str, Scalar]  # versions, driver, weights, commit
    packages: Mapping[str, str] | None = None
    variables: Mapping[str, str] | None = None

    @classmethod
    def stored(cls, baseline: Baseline | None) -> Made | None:
        """That of a baseline's last session; None where it has none."""
        if baseline is None or not baseline.sessions:
            return None
        last = baseline.sessions[-1]
        commit = {} if last.commit is None else {"commit": last.commit}
        return cls({**last.context, **commit}, last.packages, last.variables)

    @classmethod
    def here(cls, environment: Environment, facts: Mapping[str, Scalar]) -> Made:
        """That of a session of today."""
        context = {**environment.context, **facts}
        return cls(context, environment.packages, environment.variables)

    @property
    def commit(self) -> str | None:
        """The short commit, without what says that files differ from it."""
        found = self.context.get("commit")
        return None if found is None else str(found).removesuffix("-dirty")


@dataclass(frozen=True)
class Job:
    """What one comparison times: ``seconds`` of its rounds, for each metric that it settles.

    ``explain``: what differs is to be told, too.
    """

    engine: str
    workload: Literal["prefill", "decode"]
    seconds: Mapping[str, Seconds]
    explain: bool = False


def job(verdicts: Iterable[Verdict], engines: Sequence[str]) -> Job | None:
    """The comparison that settles the first stored gate on time left ``unsure`` or ``regressed``.

    With it, what the same comparison settles beside; ``engines`` as the case names them. None where
    there is nothing that a comparison times: larger batches and longer contexts of decode, and
    metrics of the user's own.
    """
    open_ones = {v.metric for v in verdicts if _is_open(v)}
    for engine in dict.fromkeys((*engines, "inductor", "eager")):
        name = engine_name(engine)
        start, end = f"p_{pass_name(name)}", suffix(name)
        prefill: dict[str, Seconds] = {f"{start}_core": "core_s", f"{start}_whole": "whole_s"}
        decode: dict[str, Seconds] = {f"decode{end}": "core_s", f"ttft{end}": "first_s"}
        if found := {key: prefill[key] for key in prefill if key in open_ones}:
            return Job(engine, "prefill", found)
        if found := {key: decode[key] for key in decode if key in open_ones}:
            return Job(engine, "decode", found)
    return None


def noiseless(verdicts: Iterable[Verdict], engines: Sequence[str]) -> Job | None:
    """The comparison that shows what is behind a red ``fidelity`` or ``fingerprint``; else None."""
    names = (fidelity.NAME, fingerprint.NAME)
    red = [v.metric for v in verdicts if v.word == "regressed" and v.metric.startswith(names)]
    red = [metric for metric in red if metric != fidelity.WAYS]
    if not red:
        return None
    eager = "inductor" not in engines or all(metric.endswith("_val") for metric in red)
    decode = all("decode" in metric for metric in red)
    return Job("eager" if eager else "inductor", "decode" if decode else "prefill", {}, not decode)


def _is_open(verdict: Verdict) -> bool:
    judged = verdict.gate == "baseline" and verdict.word in ("regressed", "unsure")
    return judged and verdict.settled is None


@dataclass(frozen=True)
class SideA:
    """What of the command line makes A the baseline, and what cannot be made.

    Attributes:
        arguments: of ``perfline compare``.
        unset: environment variables that the baseline did without.
        lacking: what A cannot be given, or what the baseline does not tell; a few words each.
        impossible: why such a comparison would not be of the baseline's code; empty where it would.
    """

    arguments: tuple[str, ...] = ()
    unset: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    impossible: str = ""

    @property
    def empty(self) -> bool:
        """Whether A would be B."""
        return not (self.arguments or self.unset)


@dataclass
class _Parts:
    arguments: list[str] = field(default_factory=list)
    unset: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    impossible: str = ""


def side_a(then: Made, now: Made) -> SideA:
    """How A becomes what the baseline was measured with, on this machine."""
    parts = _Parts()
    _code(then, now, parts)
    _packages(then, now, parts)
    _variables(then, now, parts)
    arguments, unset, lacking = map(tuple, (parts.arguments, parts.unset, parts.lacking))
    return SideA(arguments, unset, lacking, parts.impossible)


def _code(then: Made, now: Made, parts: _Parts) -> None:
    if then.commit is None:
        parts.impossible = "the baseline names no commit"
    keys = ("commit", "uncommitted")
    if all(then.context.get(key) == now.context.get(key) for key in keys):
        return
    if str(then.context.get("commit")).endswith("-dirty"):
        parts.impossible = "the baseline was measured with changes that nobody committed"
    if then.commit is not None:
        parts.arguments += ["--baseline-ref", then.commit]


def _packages(then: Made, now: Made, parts: _Parts) -> None:
    if then.packages is not None and now.packages is not None:
        before, after = then.packages, now.packages
        parts.lacking += [f"without {name}" for name in after if name not in before]
    else:
        before, after = _named(then), _named(now)
        parts.lacking.append("the packages beside torch and transformers, which it does not tell")
    pins = [f"{name}=={text}" for name, text in before.items() if after.get(name) != text]
    if pins:
        parts.arguments += ["--baseline-install", " ".join(pins)]


def _named(made: Made) -> dict[str, str]:
    """The packages that a context tells."""
    return {name: str(made.context[name]) for name in PACKAGES if name in made.context}


def _variables(then: Made, now: Made, parts: _Parts) -> None:
    if then.variables is None or now.variables is None:
        parts.lacking.append("the environment variables, which it does not tell")
        return
    for name in dict.fromkeys((*then.variables, *now.variables)):
        before, after = then.variables.get(name), now.variables.get(name)
        if before == after:
            continue
        if name.endswith(_PLACED):
            parts.lacking.append(f"{name} {before or 'unset'} -> {after or 'unset'}, another card")
        elif before is not None:
            parts.arguments += ["--baseline-env", f"{name}={before}"]
        else:
            parts.unset.append(name)
            parts.arguments += ["--env", f"{name}={after}"]


def command(case: str, job: Job, a: SideA, flags: str) -> str:
    """The command line of that comparison; ``flags`` say where data, cases and weights are."""
    unset = ["env", *(word for name in a.unset for word in ("-u", name))] if a.unset else []
    words = [*unset, "perfline", "compare", case, *a.arguments]
    words += ["--engine", job.engine] if job.engine != "inductor" else []
    words += ["--workload", job.workload] if job.workload != "prefill" else []
    words += ["--explain"] if job.explain and "--ranks" not in flags else []  # of one process
    return f"{shlex.join(words)} {flags}".strip()


def differences(
    then: Made, now: Made, a: Mapping[str, Scalar], packages: Mapping[str, str]
) -> dict[str, str]:
    """What of the difference between the baseline and today is not on A's side, ``old -> new``.

    ``a`` is the context that A told of itself, ``packages`` are those it has.
    """
    found = {}
    for before, after, real in (
        (then.context, now.context, a),
        (then.packages or {}, now.packages or {}, packages),
    ):
        for name in dict.fromkeys((*before, *after)):
            old, new = _text(before.get(name)), _text(after.get(name))
            if old != new and _text(real.get(name)) != old:
                found[name] = f"{name} {old or 'none'} -> {new or 'none'}"
    return found


def _text(value: Scalar) -> str:
    return "" if value is None else str(value)
