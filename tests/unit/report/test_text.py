from __future__ import annotations

from dataclasses import replace

import pytest

import samples
from perfline.baselines.suggestions import next_steps, outcome
from perfline.engines.environment import Environment
from perfline.gates.verdict import Flip, Verdict
from perfline.measure.record import CaseRecord, Record
from perfline.metrics import Metric
from perfline.report.markdown import markdown
from perfline.report.table import number, verdict_table
from perfline.report.text import (
    Origin,
    case_table,
    context_change,
    counts_line,
    failure,
    rank_lines,
    session_lines,
)
from perfline.tasks.answers import StoredAnswers

SLOW = Verdict(
    metric="p_infer_core",
    word="regressed",
    gate="baseline",
    unit="tok/s",
    baseline=1302.1,
    baseline_error=6.0,
    measured=1179.8,
    measured_error=8.1,
    change_fraction=-0.094,
    limit="-2.0 %",
    reason="slower than chance allows (+-1.6 % between sessions, from 5 sessions)",
)
OK = Verdict("p_infer_whole", "ok", "baseline", "tok/s", 1300.0, 6.0, 1299.0, 7.0, -0.001)
ORIGIN = Origin("baselines/gpu/x.json", "2026-11-02T10:00:00Z", "1a2b3c4", {"torch": "2.9.1"})


def test_a_failure_tells_the_whole_story_in_80_columns():
    lines = failure([OK, SLOW], ORIGIN, {"torch": "2.10.0"}, "x", "--run r.json").split("\n")
    assert lines[0] == "p_infer_core regressed -9.4 % (limit -2.0 %)"
    assert lines[2].split() == [
        *("metric", "unit", "baseline", "measured", "change", "limit", "verdict")
    ]
    assert lines[4].split() == [
        *("p_infer_core", "tok/s", "1302", "+-", "6", "1180", "+-", "8"),
        *("-9.4", "%", "-2.0", "%", "regressed"),
    ]
    assert "  baseline  baselines/gpu/x.json (2026-11-02, commit 1a2b3c4)" in lines
    assert "  context   torch 2.9.1 -> 2.10.0" in lines
    assert max(len(line) for line in lines if "hint" not in line) <= 80
    assert lines[-1].startswith("  hint: to accept it: perfline baselines update x --run ")


def test_a_metric_judged_by_both_says_which_row_is_against_which():
    verdicts = [
        Verdict("acc_val", "ok", gate, "fraction", before, None, 0.8167, 0.0139, change_pp=0.0)
        for gate, before in (("published", 0.8167), ("baseline", 0.8125))
    ]
    stored, published = verdict_table(verdicts).split("\n\n")
    assert [line.split()[:4] for line in stored.split("\n")] == [
        ["metric", "unit", "baseline", "measured"],
        ["acc_val", "%", "81.25", "81.67"],
    ]
    assert [line.split()[:4] for line in published.split("\n")] == [
        ["metric", "unit", "published", "measured"],
        ["acc_val", "%", "81.67", "81.67"],
    ]
    assert "| published   |" in verdict_table(verdicts, "github")
    text = failure(verdicts[:1], ORIGIN, {}, "x", "")
    assert text.split("\n")[2].split()[2] == "published"


def flipped(gate, count):
    flips = tuple(Flip(f"law/{i}", "A", "A", "B", 0.5) for i in range(count))
    return Verdict("acc_val", "regressed", gate, "fraction", flips=flips)


def test_flips_are_listed_up_to_ten_and_then_counted():
    lines = failure([flipped("baseline", 13)], ORIGIN, {}, "x", "").split("\n")
    start = lines.index("  flipped questions: 13 right -> wrong")
    assert lines[start + 1] == "    law/0: A -> B (label A, stored margin 0.5 logits)"
    assert lines[start + 11] == "    ... and 3 more, in the record"


def test_nothing_is_right_or_wrong_where_the_eager_answer_stands_in_for_the_label():
    lines = failure([flipped("paired", 1)], ORIGIN, {}, "x", "").split("\n")
    start = lines.index("  flipped questions: 1 differ")
    assert lines[start + 1] == "    law/0: A -> B (stored margin 0.5 logits)"


@pytest.mark.parametrize(
    ("word", "unit", "command"),
    [
        ("ok", "tok/s", ""),
        ("missing", "tok/s", 'perfline baselines update x --run r.json --reason "first baseline"'),
        ("improved", "tok/s", 'perfline baselines update x --run r.json --reason "..."'),
        (
            "regressed",
            "tok/s",
            "to look: perfline baselines diff x --run r.json",
        ),
        (
            "unsure",
            "tok/s",
            'to widen the baseline: perfline baselines update x --run r.json --add --reason "..."',
        ),
        ("unsure", "fraction", ""),  # more sessions do not settle what the answers leave open
        (
            "incomparable",
            "tok/s",
            'to accept it anew: perfline baselines update x --run r.json --reason "..."',
        ),
        ("invalid", "tok/s", "run again once the cause above is gone"),
    ],
)
def test_every_verdict_has_its_next_command(word, unit, command):
    verdict = Verdict("acc_m" if unit == "fraction" else "m", word, "baseline", unit)
    assert next(iter(next_steps("x", [OK, verdict], "--run r.json")), "") == command


def test_a_fault_of_the_fast_path_has_its_way_out():
    fault = replace(Verdict("acc_m", "invalid", "baseline", "fraction"), reason="2 flips; --plain")
    assert next_steps("x", [OK, fault], "--run r.json", failed=True) == [
        "run again with --plain, which asks each question by itself"
    ]


def test_a_regression_is_looked_at_before_it_is_accepted():
    look, accept = next_steps("x", [SLOW], "--run r.json")
    assert look == "to look: perfline baselines diff x --run r.json"
    assert accept == (
        'to accept it: perfline baselines update x --run r.json --accept-regression --reason "..."'
    )


def test_wrong_answers_are_looked_at_and_never_accepted():
    wrong = replace(flipped("paired", 1), metric="flips")
    (step,) = next_steps("x", [wrong], "--run r.json")
    assert step.startswith("find out why the answers are wrong; `perfline prompt x ")


@pytest.mark.parametrize(
    ("errors", "notes", "expected"),
    [
        (("test_x: boom",), {}, "next: run again once the cause above is gone"),
        ((), {"settle_with": "perfline compare x F"}, "next: to settle it: perfline compare x F"),
    ],
    ids=["not measured", "to settle"],
)
def test_the_next_step_of_a_session_is_told_once(errors, notes, expected):
    whole = record(*([] if errors else [SLOW]), errors=errors)
    whole = replace(whole, cases={"x": replace(whole.cases["x"], notes=notes)})
    lines = session_lines(whole, {}, {}, "", {})
    assert lines[-1] == expected
    assert sum("perfline" in line or "run again" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("value", "unit", "error", "shown"),
    [
        (None, "tok/s", None, ""),
        (0.65199, "fraction", None, "65.20"),
        (0.652, "fraction", 0.004, "65.20 +- 0.40"),
        (12345.6, "tok/s", 7.8, "12346 +- 8"),
        (345.67, "tok/s", 1.25, "345.7 +- 1.2"),
        (1.234, "GiB", None, "1.23"),
        (3, "count", None, "3"),
        (12345.6, "us/tok", 31.2, "12346 +- 31.20"),
    ],
)
def test_numbers_are_shown_with_as_many_digits_as_they_have(value, unit, error, shown):
    assert number(value, unit, error) == shown


def test_context_names_what_changed_and_what_is_new_or_gone():
    before = {"torch": "2.9.1", "driver": "580.1", "cuda": "13.0", "commit": "a"}
    after = {"torch": "2.10.0", "driver": "580.1", "triton": "3.6", "commit": "b"}
    assert context_change(before, after) == (
        "torch 2.9.1 -> 2.10.0; cuda 13.0 -> absent; triton absent -> 3.6"
    )
    assert context_change(before, before) == "torch, driver and all other versions unchanged"


def record(*verdicts, errors=(), not_asked=None):
    metrics = {"p_infer_core": Metric("p_infer_core", 1179.8, "tok/s", "higher")}
    case = CaseRecord("x", "x", "d", "fp16", "real", {}, metrics, {}, verdicts, errors=errors)
    case = replace(case, not_asked=not_asked or {})
    return Record("2026-11-22T00:00:00Z", False, Environment("gpu", "GPU", "cuda"), {"x": case})


def test_markdown_leads_with_the_gravest_verdict_and_escapes_what_it_quotes():
    odd = Verdict("m", "unsure", "baseline", "tok/s", reason="a | b <script>")
    text = markdown(samples.inputs(record(OK, SLOW, odd)))
    assert text.startswith("## perfline: regressed\n\nverdicts: 1 regressed, 1 unsure, 1 ok\n")
    assert "- **p_infer_core regressed -9.4 % (limit -2.0 %)**" in text
    assert "a \\| b &lt;script>" in text
    assert "<script>" not in text


def test_what_could_not_be_measured_is_counted_first():
    text = counts_line(record(OK, errors=("test_x: boom",)))
    assert text == "verdicts: 1 could not be measured, 1 ok"


def test_a_task_that_was_not_asked_is_counted_and_told_and_fails_where_that_is_asked_for():
    why = "no questions of task 'ceval'; get it with: x"
    whole = record(OK, not_asked={"ceval": why})
    assert counts_line(whole) == "verdicts: 1 task not asked, 1 ok"
    lines = session_lines(whole, {}, {}, "", {})
    assert [line for line in lines if "ceval" in line] == [f"  ceval was not asked: {why}"]
    text = markdown(samples.inputs(whole))
    assert f"- **not measured**: ceval was not asked: {why}" in text
    found = outcome(whole)
    assert (found.title, found.failed) == ("1 task not asked, ok", False)
    assert found.exit_line.startswith("pytest exits 0, and 1 under --strict-verdicts")
    assert outcome(whole, strict=True).failed
    was_strict = record(OK, not_asked={"ceval": why}, errors=(f"absent: {why}",))
    assert counts_line(was_strict) == "verdicts: 1 task not asked, 1 ok"
    assert outcome(was_strict).failed
    both = {"ceval": why, "cmmlu": why}
    in_one_line = record(OK, not_asked=both, errors=(f"absent: {why}",))
    assert counts_line(in_one_line) == "verdicts: 2 tasks not asked, 1 ok"
    assert outcome(was_strict).exit_line == "pytest exits 1 under --strict-verdicts"


def test_an_absent_case_is_counted_as_one_and_fails():
    whole = record(OK, errors=("absent: no weights; get it with: x", "test_x: boom"))
    assert counts_line(whole) == "verdicts: 1 could not be measured, 1 case absent, 1 ok"
    absent = outcome(record(OK, errors=("absent: no weights; get it with: x",)))
    assert (absent.title, absent.failed) == ("1 case absent, ok", True)
    assert absent.exit_line == "pytest exits 1"


WORDS = ("ok", "improved", "regressed", "unsure", "missing", "incomparable", "invalid")


@pytest.mark.parametrize("word", WORDS)
def test_the_widest_real_values_fit_80_columns(word):
    from perfline.baselines.baseline import Figure, Published

    wide = Verdict(
        "acc_infer_timed", word, "baseline", "tok/s", 123456.0, 12345.6, 106543.0, 10234.5, -0.137
    )
    wide = replace(wide, limit="-13.7 %")
    other = replace(wide, metric="acc_infer", unit="fraction", change_pp=-13.71, limit="-13.71 pp")
    own = replace(wide, metric="a" * 40, unit="m" * 12, word="ok")
    rows = verdict_table([wide, replace(other, baseline=0.65, measured=0.5), own]).split("\n")
    assert max(map(len, rows)) <= 78
    assert "106543" in rows[1]
    assert "123456" in rows[1]

    names = ("p_infer_core_per_device", "scaling_efficiency_infer")
    metrics = {
        name: Metric(name, 123456.7, "tok/s", "higher", (123456.0, 123457.0, 99999.0))
        for name in names
    }
    figures = {"p_infer_core": Figure(123456.0, "tok/s")}
    published = Published("x", "s", "nvidia-a100-sxm4-80gb-2g.10gb", "fp16", figures)
    case = CaseRecord("x", "x", "d", "fp16", "real", metrics=metrics, verdicts=(wide,))
    table = case_table(case, published)
    assert max(map(len, table.split("\n"))) <= 78


def test_spreads_are_shown_where_they_fit():
    short = replace(SLOW, metric="mem", measured=1.0, measured_error=0.1)
    assert "1302 +- 6" in verdict_table([short])


def test_published_figures_stand_beside_the_measured_ones_and_gaps_are_named():
    from perfline.baselines.baseline import Figure, Published

    figures = {"p_infer_core": Figure(9051.3, "tok/s"), "mfu": Figure(0.464, "fraction")}
    published = Published("x", "s", "nvidia-a100-sxm4-40gb", "fp16", figures)
    table = case_table(record().cases["x"], published).split("\n")
    assert table[0].split()[-1] == "published"
    assert table[1].split() == ["(nvidia-a100-sxm4-40gb)"]
    assert table[2].split() == ["p_infer_core", "tok/s", "1180", "9051"]
    assert table[3].split() == ["MFU", "%", "not", "measured", "46.40"]


def test_the_published_accuracy_of_another_task_stands_beside_its_own():
    from perfline.baselines.baseline import Figure, Published

    accuracy = Metric("acc_val_ceval", 0.4421, "fraction", "higher")
    figures = {"acc_val_ceval": Figure(0.45, "fraction", "another framework", judged=False)}
    stored = StoredAnswers.of(
        [("law/0", "A", "A", "A", 0.5)], date="2026-11-22", commit=None, reason="r", context={}
    )
    case = CaseRecord(
        *("x", "x", "d", "fp16", "real"),
        metrics={"acc_val_ceval": accuracy},
        accuracy={"val_ceval": stored},
    )
    (row,) = case_table(case, Published("x", "s", None, "fp16", figures)).split("\n")[1:]
    assert row.split()[-3:] == ["%", "44.21", "45.00"]


def test_a_failure_says_how_to_settle_it_and_how_to_accept_it():
    origin = Origin("b.json", "2026-11-01", "abc", {"torch": "2.13.0"})
    slow = Verdict("p_infer_core", "regressed", "baseline", "tok/s", 100.0, None, 90.0)
    command = "perfline compare x --baseline-ref abc --dummy-weights"
    lines = failure([slow], origin, {"commit": "def"}, "x", "--run r.json", command)
    settle, accept = lines.splitlines()[-2:]
    assert settle == f"  hint: to settle it: {command}"
    assert accept.startswith("  hint: to accept it: perfline baselines update x --run r.json --acc")


@pytest.mark.parametrize(
    ("notes", "lines"),
    [
        ({}, []),
        ({"accuracy_questions_by_rank_val": "1, edited"}, []),
        (
            {"accuracy_hosts": 2, "accuracy_questions_by_rank_infer": "201, 193, 190, 196"},
            [
                "accuracy, inductor: 4 ranks on 2 hosts answered 780 questions (rank 0: 201, "
                "1: 193, 2: 190, 3: 196)"
            ],
        ),
        (
            {"accuracy_questions_by_rank_val": ", ".join(map(str, [*range(30, 50), 7]))},
            [
                "accuracy, eager: 21 ranks answered 797 questions (7 on rank 20 to 49 on rank 19)",
            ],
        ),
    ],
)
def test_who_answered_is_told(notes, lines):
    case = CaseRecord("x", "x", "d", "fp16", "real", notes=notes)
    assert rank_lines(case) == lines

    whole = Record("2026", False, Environment("gpu", "GPU", "cuda"), {"x": case})
    told = "\n".join(session_lines(whole, {}, {}, "", {}))
    assert all(line in " ".join(told.split()) for line in lines)
    assert max(map(len, told.splitlines())) <= 80
    assert all(f"- {line}" in markdown(samples.inputs(whole)) for line in lines)


def test_what_ranks_did_together_is_told():
    alone = Metric("p_infer_whole_one_rank", 100.0, "tok/s", "info", (99.0, 100.0, 101.0))
    notes = {
        "throughput_ranks_infer": 4,
        "slowest_rank_infer": "rank 3 on node-b: 2.4 % below the median of the others",
    }
    case = CaseRecord(
        "x", "x", "d", "fp16", "real", notes=notes, metrics={"p_infer_whole_one_rank": alone}
    )
    assert rank_lines(case) == [
        "throughput, inductor: 4 ranks timed together; one rank by itself 100.0 +- 0.6 tok/s; "
        "slowest: rank 3 on node-b: 2.4 % below the median of the others"
    ]
    one_model = replace(case, metrics={}, notes={"throughput_ranks_infer": 4})
    assert rank_lines(one_model) == ["throughput, inductor: 4 ranks timed together"]
