"""What should a person type next? The one command that settles or accepts a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from perfline.baselines.proposal import Terms
from perfline.gates.verdict import Verdict
from perfline.jsonfile import Scalar

Refused = Callable[[Terms], str]  # why an update with these terms is refused; empty where not


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


def next_command(
    case: str, verdicts: Sequence[Verdict], flags: str, refused: Refused = lambda terms: ""
) -> str:
    """The one command that comes next for a case; empty where there is nothing to do.

    ``flags`` are those that ``perfline baselines update`` needs to find what pytest used. Where it
    would be ``refused``, its cure comes next, and what it is the cure of.
    """
    if any(v.word == "invalid" for v in verdicts):
        return "run again once the cause above is gone"
    offer = _offer(verdicts)
    if offer is None:
        return ""
    said, terms = offer
    if line := refused(terms):
        cause, _, cure = line.rpartition("; ")
        return f"{cure}: {cause}" if cause else cure
    options = ["--add"] if terms.add else []
    options += ["--accept-regression"] if terms.accept_regression else []
    words = [f"perfline baselines update {case} {flags}", *options, f'--reason "{terms.reason}"']
    return said + " ".join(words)


def _offer(verdicts: Sequence[Verdict]) -> tuple[str, Terms] | None:
    """What accepts these verdicts, and what is said before it; None where nothing does."""
    words = {v.word for v in verdicts}
    wrong = [v for v in verdicts if v.word == "regressed" and v.gate != "baseline"]
    if any(v.unit != "tok/s" for v in wrong):
        return None  # wrong answers are never a baseline
    if "regressed" in words:
        return "to accept it: ", Terms("...", accept_regression=True)
    if "incomparable" in words:
        return "to accept it anew: ", Terms("...")
    if any(v.word == "unsure" and v.unit == "tok/s" for v in verdicts):
        return "to widen the baseline: ", Terms("...", add=True)
    if "missing" in words:
        return "", Terms("first baseline")
    return ("", Terms("...")) if "improved" in words else None
