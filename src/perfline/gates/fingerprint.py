"""Does another thing run inside a forward than did? Counts without noise, compared exactly.

What means that something fell off the fast path (more prompt tokens, a weight on another device,
operators outside of compiled graphs, more graphs, breaks or recompiles) is ``regressed``. Any other
difference is told, and stays ``ok``: a new version may run other operators and be no worse.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from perfline.engines.engine import Fingerprint
from perfline.gates.verdict import Verdict

NAME = "fingerprint"
SAME = "runs what it did"
_WORSE = {
    "prompt_tokens": "tokens of the timed prompts",
    "weights_elsewhere": "weights on another device",
    "eager_ops": "operators outside of compiled graphs",
    "graphs": "graphs",
    "graph_breaks": "graph breaks",
    "recompiles": "recompiles",
}
_COMPILED = ("graphs", "graph_breaks", "recompiles")  # throughput judges them, where it is timed
_BY_SOFTWARE = ("eager_ops",)
_SHOWN = 6


def against_stored(
    metric: str, stored: Fingerprint | None, now: Fingerprint, shown: str, timed: bool
) -> Verdict:
    """Judge one engine's fingerprint by the stored one; ``shown`` is the baseline's file.

    ``timed``: other verdicts have judged what was compiled. A count that one of them lacks is not
    compared: absent is not 0.
    """
    verdict = Verdict(metric, "missing", "baseline", "count")
    if stored is None:
        return replace(verdict, reason=f"no stored fingerprint in {shown}")
    alike = _release(stored.software) == _release(now.software)
    left_out = (*(_COMPILED if timed else ()), *(() if alike else _BY_SOFTWARE))
    worse = [
        f"{what} {before:.12g} -> {after:.12g}"
        for name, what in _WORSE.items()
        if name not in left_out
        for before, after in [(stored.counts.get(name), now.counts.get(name))]
        if before is not None and after is not None and after > before
    ]
    told = "; ".join(_first(_changes(stored, now, alike)))
    verdict = replace(verdict, word="ok", baseline=0.0, measured=float(len(worse)), limit="+0")
    if not worse:
        reason = f"nothing fell off the fast path, but it runs otherwise: {told}" if told else SAME
        return replace(verdict, reason=reason)
    reason = "; ".join(filter(None, [f"fell off the fast path: {', '.join(worse)}", told]))
    return replace(verdict, word="regressed", reason=reason)


def differences(a: Fingerprint, b: Fingerprint) -> list[str]:
    """What differs between two stacks that ran the same prompt; empty where nothing does.

    Unlike by a stored one, operators are compared whatever the versions.
    """
    counts = [
        f"{what} {_shown(before)} -> {_shown(after)}"
        for name, what in _WORSE.items()
        for before, after in [(a.counts.get(name), b.counts.get(name))]
        if before != after
    ]
    return _first([*counts, *_changes(a, b, alike=True)])


def _release(software: str) -> str:
    """The versions without what a release was built for (``2.13.0+cpu``): the same code."""
    return re.sub(r"\+(cpu|xpu|cu\d+|rocm[\d.]+)\b", "", software)


def _shown(count: float | None) -> str:
    """A count, or that a stack does not tell it: that is not 0."""
    return "not counted" if count is None else f"{count:.12g}"


def _first(changes: Iterable[str]) -> list[str]:
    """The first of them, and how many more there are."""
    shown = list(changes)
    if len(shown) > _SHOWN:
        shown[_SHOWN:] = [f"and {len(shown) - _SHOWN} more"]
    return shown


def _changes(stored: Fingerprint, now: Fingerprint, alike: bool) -> Iterator[str]:
    """Yield what differs, a few words each."""
    for name in stored.weights.keys() | now.weights.keys():
        before, after = stored.weights.get(name, 0), now.weights.get(name, 0)
        if before != after:
            yield f"weights in {name} {before:.12g} -> {after:.12g}"
    if stored.prompt != now.prompt:
        yield "another prompt was run"
    else:
        yield from _flops(stored.flops, now.flops)
    if not alike:
        yield f"operators and kernels are not compared ({stored.software} -> {now.software})"
        return
    for before_of, after_of in ((stored.operators, now.operators), (stored.kernels, now.kernels)):
        for name in sorted(before_of.keys() | after_of.keys()):
            before, after = before_of.get(name, 0), after_of.get(name, 0)
            if before != after:
                yield f"{name} {before:.12g} -> {after:.12g}"


def _flops(before: Mapping[str, float], after: Mapping[str, float]) -> Iterator[str]:
    """Yield the modules whose FLOPs differ, without those that only hold such a one."""
    moved = {
        name for name in before.keys() | after.keys() if before.get(name, 0) != after.get(name, 0)
    }
    for name in sorted(moved):
        within = any(other.startswith(f"{name}.") for other in moved)
        if within or (name == "all" and len(moved) > 1):
            continue
        if before.get(name) and after.get(name):
            yield f"{name} x {after[name] / before[name]:.3g} FLOPs"
        else:
            yield f"{name} {before.get(name, 0):.12g} -> {after.get(name, 0):.12g} FLOPs"
