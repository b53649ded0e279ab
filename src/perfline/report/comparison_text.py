"""How does a person read a comparison of A and B? One line a pair, then the whole story.

A change in per cent is always B's seconds a token against A's: above 0, B is slower. Nothing is
judged here: words come from the verdicts, numbers from the record.

The tables put the numbers of A and B side by side, as text and as Markdown: seconds a token are the
judged ones; tokens a second, energy and what a launch cost are shown beside them.
"""

from __future__ import annotations

import math
import re
import statistics
import textwrap
from collections.abc import Sequence

from perfline.cases.case import ENGINE_NAMES, engine_name
from perfline.compare.explain import ALPHA, LITTLE_FRACTION, Explanation
from perfline.compare.gates import TIMES, bound, highest, middle
from perfline.compare.model import SIDES, Timed
from perfline.compare.record import CaseComparison, Comparison, PairRecord, SideRecord
from perfline.compare.sequential import LOOKS, hodges_lehmann
from perfline.gates.verdict import WORST_FIRST, Verdict, signed
from perfline.metrics import pass_name, task_of
from perfline.report.table import (
    WIDTH,
    fitted,
    flip_lines,
    four_digits,
    grid,
    quoted,
    verdict_rows,
)
from perfline.report.text import paragraph, reason_lines

_HEADERS = ["metric", "unit", "A", "B", "change", "limit", "verdict"]


def table(found: CaseComparison, tablefmt: str = "plain") -> str:
    """One row a number: A's, B's, and where it is judged the limit and the word."""
    shown = [verdict for verdict in found.verdicts if verdict.measured is not None]
    rows = [[cell.removesuffix(" nats") for cell in row.cells] for row in verdict_rows(shown)]
    if found.counted:
        times = sum(v.metric in TIMES for v in shown)
        rows[times:times] = _speed_rows(found)
        judged = {verdict.metric for verdict in found.verdicts}
        rows += [row for row in _launch_rows(found) if row[0] not in judged]
    return fitted(_HEADERS, rows) if tablefmt == "plain" else grid(_HEADERS, rows, tablefmt)


_LONG_NAME = re.compile(r"(\w{16})\w{3,}")
_EXPLAINED_HEADERS = ["operator", "module", "A", "B", "change"]


def explained_table(told: Explanation, tablefmt: str = "plain") -> str:
    """One row an operator whose difference is certain: us a token, and its share of A's time."""
    rows = explained_rows(told)
    if tablefmt == "plain":
        short = [[_LONG_NAME.sub(r"\1..", row[0]), *row[1:]] for row in rows]
        return fitted(_EXPLAINED_HEADERS, short)
    return grid(_EXPLAINED_HEADERS, rows, tablefmt)


def explained_rows(told: Explanation) -> list[list[str]]:
    """Operator, module, A's and B's us a token, change as a share of A's time."""
    return [
        [
            cause.operator,
            cause.module or "(model)",
            *(
                four_digits(1e6 * max(0.0, seconds) / told.tokens)
                for seconds in (cause.baseline_s, cause.candidate_s)
            ),
            _share(told, cause.change_s, cause.low_s, cause.high_s),
        ]
        for cause in told.causes
    ]


def explained_lines(told: Explanation) -> list[str]:
    """What the table comes to, and how it was found."""
    if told.problem:
        return [f"not explained: {told.problem}"]
    total = _share(told, told.change_s, told.low_s, told.high_s)
    found = told.explained
    if not told.causes:
        story = f"explains nothing of {total}: no operator's difference is certain"
    elif found is None:
        story = f"B is {total} under the profiler, no certain change; these operators' are"
    elif found < LITTLE_FRACTION:
        story = f"explains little: {100 * found:.0f} % of {total}"
    else:
        story = f"explains {100 * found:.0f} % of {total}"
    of = "the device" if told.on_device else "the CPU"
    exact = "; ".join(told.differences) or "nothing that can be counted"
    lines = [
        story,
        f"A, B: us a token of {of}; change: of all of A's time, the median of {told.rounds} "
        f"rounds in turn and its {100 * (1 - ALPHA):g} % interval for all {told.compared} "
        f"operators together; profiled after the verdict, in {told.seconds:.0f} s",
        f"differs exactly: {exact}",
    ]
    return lines + ([f"traces: {', '.join(told.traces)}"] if told.traces else [])


def _share(told: Explanation, change_s: float, low_s: float, high_s: float) -> str:
    """``+6.0 % [+5.1, +7.0]`` of A's time."""
    change, low, high = (
        signed(100 * seconds / told.baseline_s, "%") for seconds in (change_s, low_s, high_s)
    )
    return f"{change} [{low.removesuffix(' %')}, {high.removesuffix(' %')}]"


def _percent(log_ratio: float) -> str:
    """A log ratio as people read it: ``+1.3 %``."""
    return signed(100 * math.expm1(log_ratio), "%")


def _speed_rows(found: CaseComparison) -> list[list[str]]:
    """What is shown beside the judged seconds: whole rounds, tokens a second, energy."""
    rows: list[list[str]] = []
    prefix = f"p_{pass_name(engine_name(found.engine))}"
    decode = found.workload == "decode"
    kinds: tuple[tuple[str, Timed], ...] = (("core", "core_s"), ("whole", "whole_s"))
    for kind, seconds in kinds:
        change = hodges_lehmann(found.log_ratios(seconds))
        values = [middle(found, side, seconds) for side in SIDES]
        if kind == "whole" and not decode:
            whole = [four_digits(1e6 * value) for value in values]
            rows.insert(0, ["whole_time", "us/tok", *whole, _percent(change), "", ""])
        speeds = [four_digits(1 / value) for value in values]
        name = "decode" if decode else f"{prefix}_{kind}"
        if not decode or kind == "core":  # all of a round of decode is no speed of anything
            rows.append([name, "tok/s", *speeds, _percent(-change), "", ""])
    joules = [_joules_per_token(found.counted, column) for column in (0, 1)]
    if joules[0] and joules[1]:
        change = math.log(joules[1] / joules[0])
        shown = [four_digits(1e3 * value) for value in joules if value is not None]
        rows.append(["energy", "mJ/tok", *shown, _percent(change), "", ""])
    return rows


def _joules_per_token(pairs: Sequence[PairRecord], column: int) -> float | None:
    """Of all kept rounds together; None unless every one of them was metered."""
    rounds = [both[column] for pair in pairs for both in pair.kept]
    joules = [r.joules for r in rounds if r.joules is not None]
    return sum(joules) / sum(r.tokens for r in rounds) if len(joules) == len(rounds) else None


def _launch_rows(found: CaseComparison) -> list[list[str]]:
    """What a launch cost, and compile counts that are not judged."""
    rows = []
    times = [("load_time", "load_s")]
    times += [("compile_time", "compile_s")] if found.engine == "inductor" else []
    for name, field in times:
        seconds = [
            statistics.median(getattr(pair.launch(side), field) for pair in found.counted)
            for side in SIDES
        ]
        rows.append([name, "s", *(f"{value:.1f}" for value in seconds), "", "", ""])
    if (told := found.fidelity) is not None:
        both = (f"{seconds:.1f}" for seconds in (told.baseline_s, told.candidate_s))
        rows.append(["fidelity_time", "s", *both, "", "", ""])
    if found.engine == "inductor":
        for name in ("graphs", "graph_breaks", "recompiles"):
            rows.append([name, "count", *map(str, highest(found, name)), "", "", ""])
    return rows


MOST_PAIRS = 500  # beyond it, a comparison is no answer to noise
_PAIRS_TIMED = 5  # the last ones say how long the next will take


def progress_line(found: CaseComparison) -> str:
    """What the newest launch pair has made of it, in 80 columns."""
    last, count = found.pairs[-1], len(found.pairs)
    if last.void:
        return textwrap.shorten(f"pair {count}: void, {last.void}", WIDTH, placeholder=" ...")
    left = max(0, found.looks[-1] - len(found.counted))
    seconds = left * statistics.median(pair.wall_s for pair in found.pairs[-_PAIRS_TIMED:])
    more = f"at most {counted_pairs(left)} left, about {_minutes(seconds)}"
    word = None if found.decision is None else found.decision.word
    end = "not decided" if word in (None, "unsure") else "decided"
    return f"pair {count}: B {_change(found)}, {end if found.ended else more}"


def headline(found: CaseComparison) -> str:
    """The whole story of a case, in 80 columns where its name is short."""
    name, time = f"{found.case} {found.engine}{found.on_ranks}", found.verdicts[0]
    grave = min(found.verdicts, key=lambda v: WORST_FIRST.index(v.word))
    pairs = counted_pairs(len(found.counted), "launch pair")
    if found.problem or grave.metric != time.metric or not time.change:
        why = f"{grave.metric} {grave.change} (limit {grave.limit})"
        story = (
            f"{name} {grave.word}: {why if grave.change and not found.problem else grave.reason}"
        )
        also = f"; time {time.change}" if grave.metric != time.metric and time.change else ""
        return textwrap.shorten(story, WIDTH - len(also), placeholder=" ...") + also
    if not found.ended:
        return f"{name} not decided: {_change(found)} after {pairs} (limit {time.limit})"
    said, crossed = f"{name} {time.word} {_change(found)}", _crossed(found)
    stories = [
        f"{said} in {pairs} ({crossed})",
        f"{said} in {counted_pairs(len(found.counted))} ({crossed})",
        f"{said} ({crossed})",
        f"{said} ({crossed.removeprefix('proven ')})",
    ]
    return next((story for story in stories if len(story) <= WIDTH), stories[-1])


def _crossed(found: CaseComparison) -> str:
    """``proven above +1.0 %``: the bound that the word on time stands on."""
    word, decision = found.verdicts[0].word, found.decision
    limit = bound(word, found.margin_fraction)
    shown = signed(100 * limit, "%")
    if decision is None or decision.low is None or decision.high is None or word == "unsure":
        return f"limit {shown}"
    above = word == "regressed"
    proven = math.expm1(decision.low) >= limit if above else math.expm1(decision.high) <= limit
    return f"{'proven ' * proven}{'above' if above else 'below'} {shown}"


def opening_line(found: CaseComparison) -> str:
    """What will be compared, before the first launch."""
    name = f"{found.case} {found.engine}{found.on_ranks}"
    most = counted_pairs(found.looks[-1], "launch pair")
    story = f"{name}, at most {most}; B against A: "
    return textwrap.shorten(story + found.difference, WIDTH, placeholder=" ...")


def terminal(comparison: Comparison, shown_path: str) -> str:
    """All of it for the terminal: every case's story, then where the record is and what is next."""
    lines: list[str] = []
    for found in _gravest_first(comparison):
        lines += [headline(found), "", *_body(found), ""]
    if comparison.partial:
        lines.append("interrupted: the record is partial, and says what was measured until then")
    lines.append(f"record: {shown_path}")
    command, accept = next_command(comparison), accept_command(comparison)
    lines += [f"next: {command}"] if command else []
    return "\n".join([*lines, f"or, {accept}"] if accept else lines)


def markdown(comparison: Comparison) -> str:
    """All of it for GitHub's step summary."""
    lines = markdown_blocks(comparison)
    if comparison.partial:
        lines += ["**Interrupted**: this is what was measured until then.", ""]
    command = next_command(comparison)
    if command:
        lines += ["Next:", "", "~~~~", " ".join(command.split()), "~~~~"]
    if accept := accept_command(comparison):
        lines += ["", f"Or, {quoted(accept)}"]
    return "\n".join(lines) + "\n"


def markdown_blocks(comparison: Comparison) -> list[str]:
    """Every case as Markdown, gravest first: title, table, and a block each for what is told."""
    blocks = []
    for found in _gravest_first(comparison):
        blocks.append(f"## perfline compare: {quoted(headline(found))}\n")
        blocks.append(f"{table(found, 'github')}\n")
        blocks += [f"- {quoted(text)}" for text in _facts(found)]
        if (told := found.explanation) is not None:
            blocks.append(f"\n{explained_table(told, 'github')}\n" if told.causes else "")
            blocks += [f"- {quoted(text)}" for text in explained_lines(told)]
        blocks += [
            f"- **{quoted(v.metric)} {v.word}**: {quoted(v.reason)}" for v in _notable(found)
        ]
        blocks += [f"- {quoted(line)}" for line in _flips(found)]
        if found.problem:
            fenced = found.problem.replace("~~~", "~ ~ ~")
            blocks.append(f"\n~~~~\n{fenced}\n~~~~")
        blocks[-1] += "\n"
    return blocks


def next_command(comparison: Comparison) -> str:
    """The one thing to do next; empty where nothing is."""
    if comparison.partial or not comparison.cases:
        return comparison.command
    found = _gravest_first(comparison)[0]
    time = found.verdicts[0].word
    if found.word == "invalid":
        return f"once the cause above is gone: {comparison.command}"
    if found.word == "regressed":
        if found.explanation is None and _can_be_explained(found):
            return f"which operator of which layer: {comparison.command} --explain"
        return "find the cause in what differs between A and B, above"
    if found.word == time == "improved":
        return _accepting(found)
    if found.word == "missing" and not (found.answers and found.answers.questions):
        return _with_option(comparison.command, "--questions", 200)
    if time != found.word or time != "unsure" or found.decision is None:
        return ""
    settle = found.decision.to_settle
    if len(found.counted) < LOOKS[0]:
        return _with_option(comparison.command, "--max-pairs", max(settle or 0, LOOKS[-1]))
    if settle is None or settle > MOST_PAIRS:
        return "too noisy for this margin: a machine left alone, or a wider --margin"
    return _with_option(comparison.command, "--max-pairs", settle)


def accept_command(comparison: Comparison) -> str:
    """What stores a slowdown that is wanted; empty where it is none, or the answers are wrong."""
    if comparison.partial or not comparison.cases:
        return ""
    found = _gravest_first(comparison)[0]
    red = {verdict.metric for verdict in found.verdicts if verdict.word == "regressed"}
    return f"{_accepting(found)} --accept-regression" if red and red <= {*TIMES} else ""


def _accepting(found: CaseComparison) -> str:
    update = f'perfline baselines update {found.case} --run results/run.json --reason "..."'
    return f"to accept it: pytest -m perf, then {update}"


def _can_be_explained(found: CaseComparison) -> bool:
    """Whether the slowdown is of something that is profiled."""
    slower = found.verdicts[0].word == "regressed" and found.workload != "decode"
    return slower and found.engine in ENGINE_NAMES and found.ranks == 1


def _with_option(command: str, option: str, value: int) -> str:
    return f"{re.sub(f' {option} [0-9]+', '', command)} {option} {value}"


def _gravest_first(comparison: Comparison) -> list[CaseComparison]:
    return sorted(comparison.cases.values(), key=lambda case: WORST_FIRST.index(case.word))


def _body(found: CaseComparison) -> list[str]:
    measured = any(verdict.measured is not None for verdict in found.verdicts)
    lines = [textwrap.indent(table(found), "  "), ""] if measured else []
    for text in _facts(found):
        lines += paragraph(text)
    lines += reason_lines([v for v in _notable(found) if v.reason and not found.problem])
    lines += [f"  {line}" for line in _flips(found)]
    if (told := found.explanation) is not None:
        lines += ["", textwrap.indent(explained_table(told), "  "), ""] if told.causes else [""]
        for text in explained_lines(told):
            lines += paragraph(text)
    if found.problem:
        problem = found.problem.replace("##[", "## [")  # GitHub's runner obeys it, as it does ::
        lines += [f"  | {line}" for line in problem.splitlines()]
    return lines


def _notable(found: CaseComparison) -> list[Verdict]:
    return [v for v in found.verdicts if v.word != "ok" or v.metric in TIMES]


def _facts(found: CaseComparison) -> list[str]:
    """What was compared, and how far it can be trusted."""
    a, b = (found.sides[name] for name in SIDES)
    meaning = (
        "change is B's seconds a token against A's (+ is slower): the Hodges-Lehmann estimate over "
        "launch pairs"
    )
    if found.decision is not None and found.decision.low is not None:
        meaning += f", with its {100 * found.decision.confidence:g} % interval"
    facts = [
        *([f"{meaning}; column B shows A's times changed by it"] if found.counted else []),
        *([_margin(found)] if found.counted else []),
        f"A  {_side(a)}",
        f"B  {_side(b)}",
        f"B against A: {found.difference}",
        *([f"on {_place(found)}, both sides: {_context(a, b)}"] if a.machine else []),
    ]
    if found.pairs:
        facts += [_validity(found), _rounds(found)]
    return [*facts, *found.notes, *notice_lines(found)]


def _margin(found: CaseComparison) -> str:
    margin = found.margin_fraction
    half = signed(100 * bound("regressed", margin), "%")
    return (
        f"the margin is {100 * margin:g} %: ok is proven below it; regressed is slower for sure "
        f"and above half of it, {half}; between the two either word is right"
    )


def notice_lines(found: CaseComparison) -> list[str]:
    """What other packages said, and on which side: what only B says is an upgrade's news."""
    a, b = (
        {(notice.source, notice.text): notice for notice in found.sides[name].notices}
        for name in SIDES
    )
    return [
        f"notice, {'A and B' if key in a and key in b else 'B' if key in b else 'A'}: {notice.line}"
        for key, notice in {**a, **b}.items()
    ]


def _place(found: CaseComparison) -> str:
    a = found.sides["baseline"]
    place = a.device or a.machine
    return f"{found.ranks} ranks of {place}" if found.ranks > 1 else place


def _side(side: SideRecord) -> str:
    parts = [side.python, f"ref {side.ref}" if side.ref else "working tree"]
    parts += [f"{key}={value}" for key, value in {**side.env, **side.settings}.items()]
    parts += [f"import {name}" for name in side.imports]
    parts += [f"installed {text}" for text in side.install]
    return ", ".join(parts)


def _context(a: SideRecord, b: SideRecord) -> str:
    """What the sides share of the software that decides speed."""
    names = ("torch", "transformers", "triton", "cuda", "hip", "driver", "commit")
    shared = [n for n in names if n in a.context and a.context[n] == b.context.get(n)]
    same = [f"{name} {a.context[name]}" for name in shared]
    return ", ".join(same) or "no version in common"


def _validity(found: CaseComparison) -> str:
    pairs = found.pairs
    asked = sum(len(pair.baseline.rounds) for pair in pairs)
    thrown = asked - sum(len(pair.kept) for pair in pairs)
    text = (
        f"{len(found.counted)} of {counted_pairs(len(pairs), 'launch pair')} counted; "
        f"{thrown} of {asked} round pairs were thrown out"
    )
    faults = list(dict.fromkeys(fault for pair in pairs for fault in pair.faults))
    if faults:
        text += f" ({'; '.join(faults[:3])}{'; ...' * (len(faults) > 3)})"
    waited = [_waited(found.counted, column) for column in (0, 1)]
    known = [
        f"{name} {100 * w:.1f} %" for name, w in zip("AB", waited, strict=True) if w is not None
    ]
    return f"{text}; waited for a core: {', '.join(known)}" if len(known) == 2 else text


def _waited(pairs: Sequence[PairRecord], column: int) -> float | None:
    rounds = [both[column] for pair in pairs for both in pair.kept]
    known = [r.waited_fraction for r in rounds if r.waited_fraction is not None]
    return statistics.fmean(known) if known and len(known) == len(rounds) else None


def _rounds(found: CaseComparison) -> str:
    in_turn = all(pair.interleaved for pair in found.pairs)
    how = "rounds alternate" if in_turn else "whole launches alternate"
    turns = sorted({pair.turns for pair in found.pairs})
    if in_turn and turns and turns[-1] > 1:
        how += f" in {turns[0]}" + f" to {turns[-1]}" * (len(turns) > 1) + " turns each"
    launches = [launch for pair in found.pairs for launch in (pair.baseline, pair.candidate)]
    held = {launch.cores for launch in launches}
    if len(held) == 1 and (cores := held.pop()):
        how += f", all on core{'s' * (len(cores) > 1)} {', '.join(map(str, cores))}"
    return (
        f"{how}; {found.rounds} kept rounds a side and launch, {found.repeats} "
        f"{'pass' if found.repeats == 1 else 'passes'} each "
        f"({found.rounds_reason})"
    )


def _flips(found: CaseComparison) -> list[str]:
    lines = []
    for verdict in found.verdicts:
        if verdict.flips:
            tokens = verdict.metric.startswith("decode_flips")
            what = "first tokens that differ" if tokens else _answers(found, verdict.metric)
            lines.append(f"{what}: {len(verdict.flips)}")
            lines += [f"  {line}" for line in flip_lines([verdict], "A's")]
    return lines


def _answers(found: CaseComparison, metric: str) -> str:
    """``answers that differ, of 200``; of several tasks, to which."""
    told, to = found.answers, ""
    if found.more_answers and metric.startswith("acc_"):
        task = task_of(metric.removeprefix("acc_"))
        told, to = found.more_answers.get(task, told), f" to {task}"
    return f"answers{to} that differ, of {found.questions if told is None else told.questions}"


def _change(found: CaseComparison) -> str:
    """``+1.3 % [+0.4, +2.2]``; the estimate alone while the pairs are too few for an interval."""
    decision = found.decision
    if decision is None or decision.estimate is None:
        return "not measured"
    if decision.low is None or decision.high is None:
        return f"{_percent(decision.estimate)} (no interval yet)"
    low, high = (_percent(value).removesuffix(" %") for value in (decision.low, decision.high))
    return f"{_percent(decision.estimate)} [{low}, {high}]"


def counted_pairs(count: int, noun: str = "pair") -> str:
    """``1 pair``, ``2 pairs``."""
    return f"{count} {noun}{'s' * (count != 1)}"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
