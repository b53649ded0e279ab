"""How is an evaluation shown? Rows of rules as Markdown and JSON, and README.md's part of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from _recording import Recording

from perfline.compare.sequential import hodges_lehmann, interval
from perfline.errors import PerflineError
from perfline.gates.statistics import clopper_pearson

BEGIN, END = "<!-- evaluate.py begin -->", "<!-- evaluate.py end -->"
_CONFIDENCE = 0.95
_NOTES = """\
Cells: percentage that came out `regressed`, with Clopper-Pearson 95 % bounds as if decisions were
independent. They are not all: resampled ones share their launch pairs, neighbouring stored ones
share baselines. Pairs and seconds: means to a verdict; a stored rule takes one launch, half a pair,
and its baseline's launches are not counted. `unsure` is no alarm, and no power either."""


@dataclass(frozen=True)
class Cell:
    """What a rule said at one slow-down: counts of decisions, and means over them."""

    decisions: int
    regressed: int
    unsure: int
    mean_pairs: float | None  # launch pairs to a verdict; None without any decision
    mean_s: float | None  # seconds to a verdict

    @property
    def rate(self) -> float | None:
        """Fraction that came out ``regressed``."""
        return self.regressed / self.decisions if self.decisions else None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Clopper-Pearson's bounds of the rate, were the decisions independent."""
        if not self.decisions:
            return None
        return clopper_pearson(self.regressed, self.decisions, _CONFIDENCE)

    @property
    def text(self) -> str:
        """Return e.g. ``0.3 (0.1-0.6)``, in per cent."""
        if self.rate is None or self.bounds is None:
            return "-"
        low, high = self.bounds
        return f"{100 * self.rate:.1f} ({100 * low:.1f}-{100 * high:.1f})"


@dataclass(frozen=True)
class Row:
    """One rule with one way of making decisions, at every slow-down it was judged at."""

    rule: str
    decided_on: str
    cells: dict[float, Cell] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """One promise, what was found, and whether it holds; None where it was not measured."""

    text: str
    found: str
    holds: bool | None

    @property
    def answer(self) -> str:
        """Return ``holds``, ``does not hold`` or ``not measured``."""
        if self.holds is None:
            return "not measured"
        return "holds" if self.holds else "does not hold"


@dataclass(frozen=True)
class Evaluation:
    """All that is said about one recording."""

    recording: Recording
    rows: list[Row]
    claims: list[Claim]
    seed: int


def markdown(found: Sequence[Evaluation]) -> str:
    """Return every recording's claims and table, and what the cells mean."""
    return "\n\n".join([*map(_section, found), _NOTES]) + "\n"


def evaluation_json(found: Sequence[Evaluation]) -> str:
    """Return all numbers, with the conditions they were measured in."""
    return json.dumps({"schema": 1, "recordings": [_json(each) for each in found]}, indent=1) + "\n"


def write_between_markers(readme: Path, text: str) -> None:
    """Replace what stands between the markers; PerflineError where they are not both there."""
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise PerflineError(f"{readme}: lacks '{BEGIN}' or '{END}' after it; put them back")
    readme.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")


def _section(found: Evaluation) -> str:
    recording = found.recording
    head = [
        f"### {recording.name}: {recording.case}, {recording.engine}, on `{recording.machine}`",
        "",
        _conditions(recording),
        "",
    ]
    claims = [f"- **{claim.answer}**: {claim.text}: {claim.found}" for claim in found.claims]
    levels = recording.levels
    header = ["rule", "decided on", "decisions", *(f"{_percent(level)} %" for level in levels)]
    header += ["unsure %", "pairs", "seconds"]
    table = [_line(header), _line(["---"] * len(header))]
    table += [_line(_cells(row, levels)) for row in found.rows]
    shown = " / ".join(f"{_percent(level)} %" for level in _shown(levels))
    told = f"`unsure`, pairs and seconds are those at {shown}; the resampling's seed is "
    return "\n".join([*head, *claims, "", *table, "", f"{told}{found.seed}."])


def _conditions(recording: Recording) -> str:
    """Say how much was measured, how restless it was, and what A/A and the slow-downs came to."""
    still = recording.log_ratios(0.0).tolist()
    launch_sd, round_sd = recording.spreads()
    slowed = [level for level in recording.levels if level]
    bounds = interval(still, 0.98)
    within = f", 98 % interval {_signed(bounds[0])} to {_signed(bounds[1])}" if bounds else ""
    centres = {level: hodges_lehmann(recording.log_ratios(level).tolist()) for level in slowed}
    reached = ", ".join(f"{_percent(x)} % came to {_signed(y)}" for x, y in centres.items())
    rounds = len(recording.pairs[0].levels[0.0].a)
    taken = recording.seconds_per_pair
    sentences = [
        f"{len(recording.pairs)} launch pairs of {rounds} rounds a side and slow-down"
        + (f", {taken:.0f} s a pair and slow-down" if taken is not None else "")
        + f", recorded {recording.created}.",
        recording.note and f"{recording.note.removesuffix('.')}.",
        f"Spread of the log ratio at 0 %: {100 * launch_sd:.2f} % between launch pairs, "
        f"{100 * round_sd:.2f} % between rounds.",
        f"A against A over all pairs: {_signed(hodges_lehmann(still))}{within}; p of no bias "
        f"between the sides {recording.p_unbiased():.2g}.",
        "The slow-downs are multiplied into B's rounds, not measured."
        if recording.multiplied
        else f"The slow-downs as measured: {reached}.",
    ]
    return " ".join(filter(None, sentences))


def _cells(row: Row, levels: Sequence[float]) -> list[str]:
    counts = {cell.decisions for cell in row.cells.values()}
    shown = [row.cells.get(level) for level in _shown(levels)]
    return [
        row.rule,
        row.decided_on,
        str(counts.pop()) if len(counts) == 1 else f"{min(counts)}-{max(counts)}",
        *(row.cells[level].text if level in row.cells else "" for level in levels),
        " / ".join(
            f"{100 * cell.unsure / cell.decisions:.1f}" if cell and cell.decisions else "-"
            for cell in shown
        ),
        " / ".join(_number(cell.mean_pairs if cell else None, 1) for cell in shown),
        " / ".join(_number(cell.mean_s if cell else None, 0) for cell in shown),
    ]


def _shown(levels: Sequence[float]) -> list[float]:
    """The levels whose costs the table has room for."""
    return [level for level in levels if level in (0.0, 0.02)]


def _number(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _percent(level: float) -> str:
    return f"{100 * level:g}"


def _signed(log_ratio: float) -> str:
    return f"{100 * math.expm1(log_ratio):+.2f} %"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _json(found: Evaluation) -> dict[str, object]:
    recording = found.recording
    launch_sd, round_sd = recording.spreads()
    return {
        "recording": recording.name,
        "machine": recording.machine,
        "case": recording.case,
        "engine": recording.engine,
        "created": recording.created,
        "launch_pairs": len(recording.pairs),
        "seconds_per_pair": recording.seconds_per_pair,
        "launch_sd_fraction": launch_sd,
        "round_sd_fraction": round_sd,
        "seed": found.seed,
        "claims": [
            {"claim": claim.text, "found": claim.found, "holds": claim.holds}
            for claim in found.claims
        ],
        "rows": [
            {
                "rule": row.rule,
                "decided_on": row.decided_on,
                "levels": {str(level): _cell_json(cell) for level, cell in row.cells.items()},
            }
            for row in found.rows
        ],
    }


def _cell_json(cell: Cell) -> dict[str, object]:
    low, high = cell.bounds or (None, None)
    return {
        "decisions": cell.decisions,
        "regressed": cell.regressed,
        "unsure": cell.unsure,
        "regressed_fraction": cell.rate,
        "low_fraction": low,
        "high_fraction": high,
        "mean_pairs": cell.mean_pairs,
        "mean_s": cell.mean_s,
    }
