"""How often does each gate cry wolf, and how often does it see a slowdown? On the same raw data.

Reads recordings (``data/*.json``, or the files named), lets every rule of ``rules.py`` judge the
same launches, and prints a table of false alarms at 0 % and power at each slow-down, with
Clopper-Pearson 95 % bounds, launch pairs and seconds to a verdict. How decisions are made of a
recording of N launch pairs, in the order of time:

- stored baselines: launch B of pair j is judged by the A launches of pairs before j;
- one pair: a rule made for two sets of rounds gets A and B of the same launch pair, interleaved as
  perfline records them; no tool does that, but it parts the rule from its baseline;
- A/B, consecutive: pairs as they came, a new comparison beginning where the last one ended;
- A/B, resampled: each comparison draws its pairs from all N with replacement. At 0 % each drawn
  pair's roles are exchanged by the toss of a coin, and once more for whole comparisons only.

``--write`` puts the tables between the markers of README.md and all numbers into evaluation.json::

    python benchmarks/gate/evaluate.py --write
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from _recording import Floats, Recording, read
from _table import (
    Cell,
    Claim,
    Evaluation,
    Row,
    evaluation_json,
    markdown,
    write_between_markers,
)
from rules import BENCHER_MOST, RULES, SESSIONS, Rule, ab_gate

from perfline.compare.sequential import LOOKS, Decision
from perfline.errors import PerflineError

HERE = Path(__file__).parent
DECISIONS = 2000  # resampled ones, at each slow-down
HISTORY = 30  # launches before the first that is judged, where a recording has twice as many
AT_LEAST_DECISIONS, MOST_FALSE_ALARMS = 299, 0.01
MULTIPLIED = (0.01, 0.02, 0.03, 0.05)  # into the rounds of a recording that has no slow-downs
SLOWDOWN, LEAST_POWER, MOST_PAIRS = 0.02, 0.95, 16.0
_BIAS_ALPHA = 0.01


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate, print, and write where asked to."""
    args = _arguments(arguments)
    begun = time.perf_counter()
    files = args.files or sorted((HERE / "data").glob("*.json"))
    try:
        if not files:
            raise PerflineError(f"no recording in {HERE / 'data'}: run benchmarks/gate/record.py")
        found = [evaluate(read(path), args.decisions, args.seed) for path in files]
        text = markdown(found)
        print(text)
        if args.json:
            args.json.write_text(evaluation_json(found), encoding="utf-8")
        if args.write:
            write_between_markers(HERE / "README.md", text)
            (HERE / "evaluation.json").write_text(evaluation_json(found), encoding="utf-8")
    except PerflineError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    print(f"{len(files)} recordings in {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    return 0


def evaluate(recording: Recording, decisions: int, seed: int) -> Evaluation:
    """Let every rule judge one recording; into one of A/A alone slow-downs are multiplied."""
    if recording.levels == (0.0,):
        recording = recording.slowed(MULTIPLIED)
    consecutive, resampled, whole = _ab_rows(recording, decisions, seed)
    rows = [resampled, whole, consecutive]
    rows += [_stored_row(rule, recording) for rule in RULES]
    rows += [_one_pair_row(rule, recording) for rule in RULES if rule.two_samples]
    return Evaluation(recording, rows, _claims(recording, resampled, whole), seed)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, help="recordings (default: data/*.json)")
    parser.add_argument("--decisions", type=int, default=DECISIONS, help="resampled, a slow-down")
    parser.add_argument("--seed", type=int, default=0, help="of the resampling")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--write", action="store_true", help="update README.md, evaluation.json")
    args = parser.parse_args(arguments)
    if args.decisions < 1:
        parser.error(f"--decisions is {args.decisions}; expected at least 1")
    return args


# --- rules that judge one launch


def _stored_row(rule: Rule, recording: Recording) -> Row:
    first = min(HISTORY, len(recording.pairs) // 2)  # the same launches are judged by every rule
    cells = {}
    for level in recording.levels:
        words = []
        for index in range(first, len(recording.pairs)):
            earlier = recording.pairs[max(0, index - rule.needs) : index]
            history = [pair.levels[level].a for pair in earlier]
            words.append(rule.judge(history, recording.pairs[index].levels[level].b))
        cells[level] = _cell(words, [0.5] * len(words), recording)
    baseline = {
        1: "stored: the launch before",
        SESSIONS: f"stored: the {SESSIONS} launches before",
        BENCHER_MOST: f"stored: up to {BENCHER_MOST} launches before",
    }
    return Row(rule.name, baseline[rule.needs], cells)


def _one_pair_row(rule: Rule, recording: Recording) -> Row:
    assert rule.two_samples is not None
    cells = {}
    for level in recording.levels:
        rounds = [pair.levels[level] for pair in recording.pairs]
        words = ["regressed" if rule.two_samples(each.a, each.b) else "ok" for each in rounds]
        cells[level] = _cell(words, [1.0] * len(words), recording)
    return Row(rule.name, "one interleaved launch pair", cells)


# --- perfline's A/B gate


def _ab_rows(recording: Recording, decisions: int, seed: int) -> tuple[Row, Row, Row]:
    """(as the pairs came, resampled, resampled with the roles of whole comparisons exchanged)."""
    rng = np.random.default_rng(seed)
    rows = (
        Row("perfline A/B", "consecutive pairs as recorded"),
        Row("perfline A/B", "resampled pairs; at 0 % the roles of each pair exchanged at random"),
        Row("perfline A/B", "resampled pairs, roles exchanged for whole comparisons"),
    )
    for level in recording.levels:
        ratios = recording.log_ratios(level)
        single = np.ones((decisions, 1))
        whole = rng.choice([1.0, -1.0], (decisions, 1))
        each = rng.choice([1.0, -1.0], (decisions, LOOKS[-1]))
        drawn = ratios[rng.integers(0, len(ratios), (decisions, LOOKS[-1]))]
        rows[0].cells[level] = _ab_cell(_consecutive(ratios), recording)
        signs = single if level else each
        rows[1].cells[level] = _ab_cell(_resampled(drawn * signs), recording)
        if not level:
            rows[2].cells[level] = _ab_cell(_resampled(drawn * whole), recording)
    return rows


def _consecutive(ratios: Floats) -> Iterator[Decision]:
    """Comparisons of pairs as they came; the last ones, too few for a verdict, are left out."""
    begin = 0
    while (found := ab_gate(ratios[begin:].tolist())) is not None:
        yield found
        begin += found.pairs


def _resampled(drawn: Floats) -> Iterator[Decision]:
    for row in drawn:
        found = ab_gate(row.tolist())
        assert found is not None  # a row is as long as the last look
        yield found


def _ab_cell(found: Iterator[Decision], recording: Recording) -> Cell:
    decisions = list(found)
    words = [str(decision.word) for decision in decisions]
    return _cell(words, [float(decision.pairs) for decision in decisions], recording)


def _cell(words: Sequence[str], pairs: Sequence[float], recording: Recording) -> Cell:
    mean = float(np.mean(pairs)) if pairs else None
    per_pair = recording.seconds_per_pair
    return Cell(
        decisions=len(words),
        regressed=words.count("regressed"),
        unsure=words.count("unsure"),
        mean_pairs=mean,
        mean_s=mean * per_pair if mean is not None and per_pair is not None else None,
    )


# --- what was promised


def _claims(recording: Recording, resampled: Row, whole: Row) -> list[Claim]:
    """Hold what was found against the promises.

    Exchanging the roles of each pair makes the sides equal by construction, and so is a fair A/A
    only where they were equal before: a bias that shows over all pairs, and that makes false alarms
    where roles are exchanged for whole comparisons only, breaks the promise.
    """
    behind = f"resampled from {len(recording.pairs)} launch pairs"
    alarms, exchanged = resampled.cells[0.0], whole.cells[0.0]
    p_unbiased = recording.p_unbiased()
    biased = p_unbiased < _BIAS_ALPHA and (exchanged.rate or 0.0) > MOST_FALSE_ALARMS
    few = (alarms.rate or 0.0) <= MOST_FALSE_ALARMS and alarms.decisions >= AT_LEAST_DECISIONS
    kept = Claim(
        f"at most {_percent(MOST_FALSE_ALARMS)} false alarms over at least {AT_LEAST_DECISIONS} "
        "A/A decisions",
        f"{alarms.regressed} in {alarms.decisions} decisions {behind}, the roles of each pair "
        f"exchanged at random; {exchanged.regressed} in {exchanged.decisions} with roles "
        f"exchanged for whole comparisons only; p of no bias between the sides {p_unbiased:.2g}",
        few and not biased,
    )
    slow = _percent(SLOWDOWN)
    power = f"at least {_percent(LEAST_POWER)} power at a slowdown of {slow}"
    pairs = f"at most {MOST_PAIRS:.0f} launch pairs on average, at 0 % and at {slow}"
    slowed = resampled.cells.get(SLOWDOWN)
    if slowed is None:
        missing = f"{slow} was not recorded"
        return [kept, Claim(power, missing, None), Claim(pairs, missing, None)]
    still_pairs, slowed_pairs = alarms.mean_pairs or 0.0, slowed.mean_pairs or 0.0
    return [
        kept,
        Claim(
            power,
            f"{slowed.regressed} in {slowed.decisions} decisions {behind}",
            (slowed.rate or 0.0) >= LEAST_POWER,
        ),
        Claim(
            pairs,
            f"{still_pairs:.1f} at 0 %, {slowed_pairs:.1f} at {slow}",
            max(still_pairs, slowed_pairs) <= MOST_PAIRS,
        ),
    ]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"


if __name__ == "__main__":
    sys.exit(main())
