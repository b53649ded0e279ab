from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from fake_workers import (
    FakeLauncher,
    Script,
    answers,
    fidelity,
    last,
    pair,
    plan,
    ready,
    states,
    with_side,
)
from perfline.compare import record
from perfline.compare import run as compare
from perfline.compare.record import CaseComparison, Comparison
from perfline.errors import WorkerError
from perfline.measure.notices import Notice
from perfline.report import comparison_text
from samples import packaged

COMMAND = "perfline compare tiny --baseline-ref main"


def whole(*cases: CaseComparison, partial: bool = False) -> Comparison:
    return Comparison("2026-11-22T10:00:00Z", partial, COMMAND, {case.case: case for case in cases})


def terminal(*cases: CaseComparison, partial: bool = False) -> str:
    return comparison_text.terminal(whole(*cases, partial=partial), "results/compare.json")


def slower(**changes: Any) -> CaseComparison:
    return dataclasses.replace(last(pair(1.0, 1.25, sd=0.01)), **changes)


def timed(found: CaseComparison, wall_s: float) -> CaseComparison:
    pairs = tuple(dataclasses.replace(pair, wall_s=wall_s) for pair in found.pairs)
    return dataclasses.replace(found, pairs=pairs)


def test_the_first_line_is_the_whole_story() -> None:
    first = terminal(slower()).splitlines()[0]

    assert re.fullmatch(
        r"tiny inductor regressed \+24\.\d % \[\+2\d\.\d, \+2\d\.\d\] in 10 pairs "
        r"\(proven above \+1\.0 %\)",
        first,
    )


@pytest.mark.parametrize(
    ("slowdown", "sd", "crossed"),
    [
        (1.015, 0.003, r"regressed \+1\.\d % .*\(proven above \+1\.0 %\)"),
        (1.015, 0.012, r"regressed \+1\.\d % .*\(above \+1\.0 %\)"),
        (1.0, 0.003, r"ok .*\(proven below \+2\.0 %\)"),
        (0.9, 0.003, r"improved .*\(proven below -1\.0 %\)"),
        (1.012, 0.06, r"unsure .*\(limit \+2\.0 %\)"),
    ],
)
def test_a_word_does_not_contradict_its_line(slowdown: float, sd: float, crossed: str) -> None:
    found = last(pair(1.0, slowdown, sd=sd))
    assert re.fullmatch(f"tiny inductor {crossed}", comparison_text.headline(found))
    assert found.verdicts[0].limit in comparison_text.headline(found)
    assert "the margin is 2 %: ok is proven below it" in " ".join(terminal(found).split())


def test_ranks_stand_in_the_story_and_the_opening_line() -> None:
    found = slower(ranks=4)
    assert terminal(found).startswith("tiny inductor on 4 ranks regressed +24.")
    assert comparison_text.opening_line(found).startswith("tiny inductor on 4 ranks, at most 48 ")
    assert "on 4 ranks of Fake GPU, both sides: torch" in " ".join(terminal(found).split())
    assert len(comparison_text.headline(slower(ranks=8, case="deepseek-7b"))) <= 80


def test_a_long_name_still_fits() -> None:
    assert len(comparison_text.headline(slower(case="deepseek-7b"))) <= 80


@pytest.mark.parametrize("partial", [False, True])
def test_no_line_of_text_is_longer_than_80_columns(partial: bool) -> None:
    launcher = pair(1.0, 1.25, sd=0.01)
    launcher.candidate.answers = answers(wrong={i: "ABCD"[(i + 1) % 4] for i in range(40)})
    launcher.baseline.joules = launcher.candidate.joules = 5.0

    text = terminal(last(launcher), partial=partial)

    lines = [line for line in text.splitlines() if not line.startswith("next: ")]
    assert max(map(len, lines)) <= 80


def test_fidelity_fits_the_table_and_shows_its_seconds() -> None:
    own = {"rounded": (1.0, 1.2), "eager": (1.0, 1.1), "inductor": (1.0, 1.1)}
    launcher = pair(1.0, 1.25)
    launcher.baseline.fidelity = fidelity(drift=own)
    launcher.candidate.fidelity = fidelity(
        kl=1e-3, drift={**own, "inductor": (90.0, 99.0)}, seconds=612.34
    )

    text = terminal(last(launcher))

    assert row(text, "fidelity_time") == ["fidelity_time", "s", "2.5", "612.3"]
    numbers = ["0", "1.0e-03", "1.0e-03", "1.0e-09", "regressed"]
    assert row(text, "fidelity_infer") == ["fidelity_infer", "nats", *numbers]
    assert row(text, "drift_infer")[-1] == "regressed"
    assert max(len(line) for line in text.splitlines() if not line.startswith("next: ")) <= 80


def test_what_is_missing_in_fp32_takes_no_more_questions() -> None:
    launcher = pair(1.0, 1.0)
    launcher.candidate.fidelity = None

    found = last(launcher)

    assert found.word == "missing"
    assert comparison_text.next_command(whole(found)) == ""


def test_the_sign_is_explained() -> None:
    flat = " ".join(terminal(slower()).split())

    assert "change is B's seconds a token against A's (+ is slower): the Hodges-Lehmann" in flat
    assert "98 % interval; column B shows A's times changed by it" in flat


def test_one_pair_is_not_a_plural() -> None:
    one = last(pair(1.0, 1.0), plan(max_pairs=1))
    assert "at most 1 launch pair; B" in comparison_text.opening_line(one)
    assert "1 of 1 launch pair counted; " in terminal(one)
    assert "after 1 launch pair " in comparison_text.headline(dataclasses.replace(one, ended=False))


def row(text: str, name: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.strip().startswith(name))


def test_the_table_shows_both_sides_with_their_units() -> None:
    launcher = pair(1.0, 1.25)
    launcher.baseline.joules, launcher.candidate.joules = 4.0, 8.0  # for 4 passes of 1000 tokens

    text = terminal(last(launcher))

    core = row(text, "core_time")
    assert core == ["core_time", "us/tok", "10.00", "12.50", "+25.0", "%", "+1.0", "%", "regressed"]
    assert row(text, "whole_time") == ["whole_time", "us/tok", "11.00", "13.75", "+25.0", "%"]
    assert row(text, "p_infer_core") == ["p_infer_core", "tok/s", "100000", "80000", "-20.0", "%"]
    assert row(text, "energy") == ["energy", "mJ/tok", "1.000", "2.000", "+100.0", "%"]
    assert row(text, "mem")[:4] == ["mem", "GiB", "2.00", "2.00"]
    assert row(text, "acc_infer")[:4] == ["acc_infer", "%", "100.00", "100.00"]
    assert row(text, "compile_time") == ["compile_time", "s", "2.0", "2.0"]


@pytest.mark.parametrize(
    "word", ["ok", "improved", "regressed", "unsure", "missing", "incomparable", "invalid"]
)
def test_the_widest_real_values_fit_80_columns(word: Any) -> None:
    found = slower()
    wide = {"baseline": 123456.7, "measured": 106543.2, "change_fraction": -0.137, "word": word}
    verdicts = [dataclasses.replace(v, **wide) for v in found.verdicts]
    found = dataclasses.replace(found, verdicts=tuple(verdicts))
    assert max(map(len, comparison_text.table(found).split("\n"))) <= 78


def test_energy_is_absent_unless_every_round_was_metered() -> None:
    launcher = pair(1.0, 1.25)
    launcher.baseline.joules = 4.0

    assert "energy" not in terminal(last(launcher))


def test_counts_that_are_not_judged_are_still_shown() -> None:
    launcher = pair(1.0, 1.0)
    launcher.candidate.ready = ready(graphs=5, context={"torch": "2.14.0"})

    text = terminal(last(launcher))

    assert row(text, "graphs") == ["graphs", "count", "2", "5"]
    assert "torch 2.13.0 -> 2.14.0" in text


def test_what_was_compared_and_how_far_to_trust_it() -> None:
    candidate = with_side("candidate", ref="v2", settings=(("engine.mode", "max-autotune"),))
    launcher = pair(1.0, 1.0)
    launcher.baseline.faults = lambda launch, turn: ("throttled",) * (turn == 1)

    flat = " ".join(terminal(last(launcher, plan(sides=candidate))).split())

    assert "A /venvs/a/bin/python, working tree" in flat
    assert "B /venvs/b/bin/python, ref v2, engine.mode=max-autotune" in flat
    assert "engine.mode default -> max-autotune" in flat
    assert "round pairs were thrown out (throttled)" in flat
    assert "waited for a core: A 1.0 %, B 1.0 %" in flat
    assert "rounds alternate, all on core 7; " in flat


def test_where_a_round_takes_turns_it_says_in_how_many() -> None:
    script = Script(ready=ready(pass_s=8.0, parts=12))

    flat = " ".join(terminal(last(FakeLauncher(script, script))).split())

    assert "rounds alternate in 12 turns each, all on core 7; " in flat


def test_flips_are_listed() -> None:
    launcher = pair(1.0, 1.0)
    launcher.candidate.answers = answers(wrong={i: "ABCD"[(i + 1) % 4] for i in range(12)})

    text = terminal(last(launcher))

    assert "answers that differ, of 200: 12" in text
    assert "sky/3: D -> A (label D, A's margin 5 logits)" in text
    assert "... and 2 more, in the record" in text


def test_each_task_is_shown_by_its_name() -> None:
    launcher = pair(1.0, 1.0)
    launcher.baseline.more = {"ceval": answers(n=100)}
    wrong = {i: "ABCD"[(i + 1) % 4] for i in range(40)}
    launcher.candidate.more = {"ceval": answers(wrong=wrong, n=100)}
    launcher.candidate.answers = answers(wrong={3: "A"})
    case = dataclasses.replace(packaged(), tasks=("mmlu", "ceval"))
    found = last(launcher, plan(case=case))

    text = terminal(found)

    assert text.startswith("tiny inductor regressed: acc_infer_ceval -40.00 pp (limit -")
    assert row(text, "acc_infer")[2:4] == ["100.00", "99.50"]
    assert row(text, "acc_infer_ceval")[2:4] == ["100.00", "60.00"]
    assert "answers to mmlu that differ, of 200: 1" in text
    assert "answers to ceval that differ, of 100: 40" in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("next: ")) <= 80
    summary = comparison_text.markdown(whole(found))
    assert "- answers to ceval that differ, of 100: 40" in summary
    assert "acc_infer_ceval regressed" in summary


def test_a_task_that_an_older_side_cannot_answer_takes_no_more_questions() -> None:
    launcher = pair(1.0, 1.0)
    launcher.candidate.ready = ready(by_task=False)
    case = dataclasses.replace(packaged(), tasks=("mmlu", "ceval"))

    found = last(launcher, plan(case=case))

    assert terminal(found).startswith("tiny inductor missing: the perfline of B is too old to")
    assert comparison_text.next_command(whole(found)) == ""


def test_flips_without_labels_claim_none() -> None:
    launcher = pair(1.0, 1.0)
    launcher.baseline.answers = answers(labels=False)
    launcher.candidate.answers = answers(wrong={3: "A"}, labels=False)

    assert "sky/3: D -> A (A's margin 5 logits)" in terminal(last(launcher))


def test_wrong_answers_come_first_and_are_never_accepted() -> None:
    launcher = pair(1.25, 1.0)
    launcher.candidate.answers = answers(wrong={i: "ABCD"[(i + 1) % 4] for i in range(40)})

    text = terminal(last(launcher))

    first = text.splitlines()[0]
    assert first == ("tiny inductor regressed: acc_infer -20.00 pp (limit -1.83 pp); time -20.0 %")
    assert "accept" not in text


def test_a_crash_shows_its_stderr_whole() -> None:
    launcher = pair(1.0, 1.0)
    launcher.candidate.round_fails = {2: WorkerError("candidate: crashed;\n  first\n  last")}

    text = terminal(last(launcher))

    assert text.splitlines()[0] == "tiny inductor invalid: candidate: crashed; first last"
    assert "  | candidate: crashed;\n  |   first\n  |   last\n" in text
    assert text.endswith(f"next: once the cause above is gone: {COMMAND}")


def test_sides_that_do_not_compare_have_no_table() -> None:
    launcher = pair(1.0, 1.0)
    launcher.candidate.ready = ready(machine="cpu")

    text = terminal(last(launcher))

    assert text.startswith("tiny inductor incomparable: A ran on fake-gpu, B on cpu: give")
    assert "metric" not in text


def test_interrupted() -> None:
    text = terminal(states(pair(1.0, 1.0))[7], partial=True)

    assert text.startswith("tiny inductor not decided: +0.0 % [+0.0, +0.0] after 8 launch pairs")
    assert "interrupted: the record is partial" in text
    assert text.endswith(f"next: {COMMAND}")


def test_interrupted_before_the_first_pair() -> None:
    text = terminal(compare.begin(plan()), partial=True)

    assert text.splitlines()[0] == (
        "tiny inductor unsure: not decided yet; launch pairs that count: 0"
    )


@pytest.mark.parametrize(
    ("factors", "sd", "expected"),
    [
        ((1.0, 1.25), 0.01, f"which operator of which layer: {COMMAND} --explain"),
        ((1.25, 1.0), 0.01, "to accept it: pytest -m perf, then perfline baselines update tiny"),
        ((1.0, 1.012), 0.06, f"{COMMAND} --max-pairs "),
        ((1.0, 1.012), 0.5, "too noisy for this margin"),
    ],
)
def test_the_next_command(factors: tuple[float, float], sd: float, expected: str) -> None:
    found = last(pair(*factors, sd=sd), plan(max_pairs=14))

    assert expected in comparison_text.next_command(whole(found))


def test_a_slowdown_is_accepted_second() -> None:
    *_, cause, accept = terminal(slower()).splitlines()

    assert cause.startswith("next: which operator of which layer")
    assert accept.startswith("or, to accept it: pytest -m perf, then perfline baselines update")
    assert accept.endswith(" --accept-regression")


def test_nothing_is_next_after_ok() -> None:
    assert comparison_text.next_command(whole(last(pair(1.0, 1.0)))) == ""


def test_the_gravest_case_comes_first() -> None:
    fine = dataclasses.replace(last(pair(1.0, 1.0)), case="fine")

    assert terminal(fine, slower()).startswith("tiny inductor regressed")


def test_a_line_for_every_pair() -> None:
    found = [timed(state, 15.2) for state in states(pair(1.0, 1.25, sd=0.01))]

    lines = [comparison_text.progress_line(state) for state in found]

    assert re.fullmatch(
        r"pair 1: B \+2\d\.\d % \(no interval yet\), at most 47 pairs left, about 12 min", lines[0]
    )
    assert re.fullmatch(
        r"pair 9: B \+2\d\.\d % \[\+2\d\.\d, \+2\d\.\d\], at most 39 pairs left, about 10 min",
        lines[8],
    )
    assert lines[9].endswith("], decided")
    assert max(map(len, lines)) <= 80
    unsure = last(pair(1.0, 1.012, sd=0.06), plan(max_pairs=1))
    assert comparison_text.progress_line(unsure).endswith("(no interval yet), not decided")


def test_a_void_pair_says_so() -> None:
    launcher = pair(1.0, 1.0)
    launcher.candidate.faults = lambda launch, turn: ("clocks throttled " * 9,)

    line = comparison_text.progress_line(states(launcher)[0])

    assert line.startswith("pair 1: void, 6 of 6 round pairs thrown out: clocks throttled")
    assert len(line) <= 80


def test_markdown_says_the_same_and_quotes_what_it_shows() -> None:
    launcher = pair(1.0, 1.25)
    launcher.candidate.faults = lambda launch, turn: ("a <b> | c",) * (launch + turn == 1)
    crashed = pair(1.0, 1.0)
    crashed.candidate.round_fails = {0: WorkerError("gone\n~~~~\n# title")}
    wrong = dataclasses.replace(last(crashed), case="other")

    text = comparison_text.markdown(whole(last(launcher), wrong))

    assert text.startswith("## perfline compare: tiny inductor regressed +25.0 %")
    assert "| core_time " in text
    assert "(a &lt;b> \\| c)" in text
    assert "<b>" not in text
    assert (
        text.splitlines().count("~~~~") == 4
    )  # one fence for the stderr, one for the next command


def test_the_next_command_has_each_option_once() -> None:
    found = last(pair(1.0, 1.012, sd=0.06), plan(max_pairs=14))
    comparison = dataclasses.replace(whole(found), command="perfline compare tiny --max-pairs 14")

    assert re.fullmatch(
        r"perfline compare tiny --max-pairs \d{2,3}", comparison_text.next_command(comparison)
    )


def test_a_wandering_machine_does_not_show_a_difference_that_the_pairs_do_not() -> None:
    def wandering(launch: int, turn: int) -> float:
        return 1e-5 * (1 + launch)

    found = last(FakeLauncher(Script(token_s=wandering), Script(token_s=wandering)))

    assert row(terminal(found), "core_time")[:5] == [
        "core_time",
        "us/tok",
        "55.00",
        "55.00",
        "+0.0",
    ]


def test_no_line_of_a_problem_is_a_command_of_github_s() -> None:
    text = terminal(slower(problem="candidate: crashed\n::error::a\n    b ##[error]c"))

    shown = [line for line in text.splitlines() if line.startswith("  | ")]
    assert shown == ["  | candidate: crashed", "  | ::error::a", "  |     b ## [error]c"]
    assert not any(line.strip().startswith("::") for line in text.splitlines())


def test_what_other_packages_said_is_told_with_the_side_that_heard_it(tmp_path) -> None:
    deprecated = Notice("transformers", "`x` is deprecated", 3)
    both = Notice("torch", "TF32 is off")
    found = slower()
    said = {"baseline": (both,), "candidate": (both, deprecated)}
    sides = {
        name: dataclasses.replace(side, notices=said[name]) for name, side in found.sides.items()
    }
    found = dataclasses.replace(found, sides=sides)
    lines = terminal(found)
    assert "notice, A and B: torch: TF32 is off" in lines
    assert "notice, B: transformers: `x` is deprecated (seen 3 times" in lines
    path = tmp_path / "compare.json"
    record.save(path, whole(found))
    assert record.load(path).cases["tiny"].sides == sides
