"""What should a person type next? The one command that settles or accepts a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from perfline.jsonfile import Scalar
from perfline.verdict import Verdict


def settling(
    case: str,
    verdicts: Sequence[Verdict],
    baseline: tuple[str | None, Mapping[str, Scalar]],
    context: Mapping[str, Scalar],
    flags: str,
) -> str:
    """The comparison in one job that settles a verdict on time; empty where there is none to make.

    ``baseline`` is the commit and the context it was measured in, ``context`` that of now. A is the
    code that the baseline was measured with; where only torch has changed, an environment with the
    old one.
    """
    judged = [v for v in verdicts if v.unit == "tok/s" and v.gate == "baseline"]
    if not any(v.word in ("regressed", "unsure") for v in judged):
        return ""
    commit, old = baseline
    if commit and commit != context.get("commit"):
        side = f"--baseline-ref {commit.removesuffix('-dirty')}"
    elif old.get("torch") != context.get("torch"):
        side = f"--baseline-python DIR_OF_A_VENV_WITH_TORCH_{old.get('torch')}"
    else:
        return ""
    engine = " --engine eager" if all(v.metric.startswith("p_val") for v in judged) else ""
    return f"perfline compare {case} {side}{engine} {flags}".strip()


def next_command(case: str, verdicts: Sequence[Verdict], flags: str) -> str:
    """The one command that comes next for a case; empty where there is nothing to do.

    ``flags`` are those that ``perfline baselines update`` needs to find what pytest used.
    """
    words = {v.word for v in verdicts}
    update = f"perfline baselines update {case} {flags}"
    if "invalid" in words:
        return "run again once the cause above is gone"
    wrong = [v for v in verdicts if v.word == "regressed" and v.gate != "baseline"]
    if any(v.unit != "tok/s" for v in wrong):
        return ""  # wrong answers are never a baseline
    if "regressed" in words:
        return f'to accept it: {update} --accept-regression --reason "..."'
    if "incomparable" in words:
        return f'to accept it anew: {update} --reason "..."'
    if any(v.word == "unsure" and v.unit == "tok/s" for v in verdicts):
        return f'to widen the baseline: {update} --add --reason "..."'
    if "missing" in words:
        return f'{update} --reason "first baseline"'
    if "improved" in words:
        return f'{update} --reason "..."'
    return ""
