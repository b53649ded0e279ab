"""The page and the Markdown: what they say, what they leave out, and what stays text."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math
import os
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import samples
from perfline.baselines import baseline
from perfline.baselines.proposal import measured_baseline
from perfline.baselines.suggestions import outcome
from perfline.cli import report as report_cli
from perfline.compare.explain import Cause, Explanation
from perfline.compare.record import AnswersRecord, CaseComparison, Comparison, SideRecord
from perfline.errors import PerflineError
from perfline.fields import MOST
from perfline.gates.verdict import WORST_FIRST, Flip, Verdict, fails
from perfline.measure import record
from perfline.metrics import Metric
from perfline.report import charts, page, page_case, page_inputs
from perfline.report.markdown import MOST_CHARACTERS, markdown
from perfline.report.page_inputs import Inputs, Places, gather
from perfline.report.table import quoted
from perfline.tasks.answers import StoredAnswers
from perfline.tasks.prompts import Question
from samples import inputs

EVIL = "<script>alert(1)</script>\"'&|`*[x](y)@all\n```"


class Tags(HTMLParser):
    """All tags, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def shown(whole: record.Record, **options: bool) -> str:
    return Tags(page.html(inputs(whole), **options)).text


def tiny_record(**changes: object) -> record.Record:
    return samples.record(samples.case_record(**changes))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("word", WORST_FIRST)
def test_page_and_markdown_say_the_verdict_and_the_exit_status(word, strict):
    whole = tiny_record(verdicts=(samples.verdict("p_infer_core", word, reason="because"),))
    text = page.html(inputs(whole), strict=strict)
    header = text[text.index("<header") : text.index("</header>")]
    mark = markdown(inputs(whole), strict=strict)
    exits = f"pytest exits {int(fails(word, strict))}"
    assert Tags(header).text.split(" pytest")[0].split()[-1] == word
    assert exits in Tags(header).text
    assert mark.startswith(f"## perfline: {word}\n")
    assert exits in mark
    assert ('class="bad"' in header) == fails(word, strict)
    assert (f"perfline: {word}") in Tags(text).text


def test_what_could_not_be_measured_fails_whatever_the_verdicts_say():
    whole = tiny_record(verdicts=(samples.verdict("m", "ok"),), errors=("test_x: boom",))
    found = outcome(whole)
    assert (found.failed, found.title) == (True, "1 could not be measured, ok")
    assert markdown(inputs(whole)).startswith("## perfline: 1 could not be measured, ok\n")
    assert "test_x: boom" in shown(whole)
    assert "pytest exits 1" in shown(whole)


def test_a_stopped_session_has_not_passed():
    whole = samples.record(
        samples.case_record(verdicts=(samples.verdict("m", "ok"),)), partial=True
    )
    assert outcome(whole).failed
    assert "stopped before its end, ok" in shown(whole)
    assert "pytest exits 0" not in shown(whole)


def test_the_published_table_has_nine_metrics_with_units_and_engines(tmp_path):
    (tmp_path / "baselines").mkdir()
    path = samples.saved(tmp_path, tiny_record())
    published = Path(__file__).parents[3] / "baselines"
    found = gather([path], Places(published))
    view = page_case.case_view(found.cases["tiny"], found.record, 10, True)
    rows = {row.title: (row.engine, row.unit, row.measured, row.published) for row in view.rows}
    assert len(rows) == 9
    assert rows["p_infer_core"] == ("inductor", "tok/s", "1000", "")
    assert rows["p_val_core"] == ("eager", "tok/s", "500.0", "")
    assert rows["acc infer"] == ("inductor", "%", "70.00", "81.67")
    assert rows["e2e_time"] == ("both", "", "not measured", "")


def test_a_published_figure_of_another_task_stands_in_the_published_table(tmp_path):
    metric = Metric("acc_infer_ceval", 0.44, "fraction", "higher")
    measured = samples.case_record(
        "deepseek-7b", metrics={**samples.metrics(), metric.name: metric}
    )
    path = samples.saved(tmp_path, samples.record(measured))
    found = gather([path], Places(Path(__file__).parents[3] / "baselines"))
    view = page_case.case_view(found.cases["deepseek-7b"], found.record, 10, True)
    (row,) = [row for row in view.rows if row.title == metric.name]
    assert (row.unit, row.measured, row.published) == ("%", "44.00", "45.00")
    assert metric.name not in [row.title for row in view.beside]


def test_a_task_that_was_not_asked_is_told_and_the_page_is_not_green():
    ok = (samples.verdict("m", "ok"),)
    assert 'class="good"' in page.html(inputs(tiny_record(verdicts=ok)))
    text = page.html(inputs(tiny_record(verdicts=ok, not_asked={"ceval": "no questions there"})))
    assert 'class="open"' in text
    assert "ceval was not asked: no questions there" in Tags(text).text
    assert "1 task not asked, ok" in Tags(text).text


def test_one_next_command_that_can_be_pasted():
    bad = samples.verdict("p_infer_core", "regressed", change_fraction=-0.1, limit="-2.0 %")
    text = page.html(inputs(tiny_record(verdicts=(bad,))))
    command = text[text.index('<pre class="command">') : text.index("</pre>")]
    assert Tags(command).text == "perfline baselines diff tiny --run run.json"
    assert "next, to look" in Tags(text).text


def test_what_several_ranks_did_is_on_the_page():
    notes = {
        "throughput_ranks_infer": 2,
        "straggler_infer": "rank 1 on node-b is 6.2 % slower than the median",
    }
    text = shown(tiny_record(notes=notes))
    assert "throughput, inductor: 2 ranks timed together" in text
    assert "p_infer: rank 1 on node-b is 6.2 % slower than the median" in text


@pytest.mark.parametrize(
    ("given", "flag"), [((), "--case-dir='my cases'"), ((Path("here"),), "--case-dir=here")]
)
def test_the_next_command_finds_the_cases_that_pytest_was_given(tmp_path, given, flag):
    (tmp_path / "here").mkdir()
    missing = samples.verdict("p_infer_core", "missing")
    whole = tiny_record(notes={"case_dir": "my cases"}, verdicts=(missing,))
    found = gather([samples.saved(tmp_path, whole)], Places(tmp_path, given))
    command = f" {flag} --baselines={tmp_path} --reason "
    assert command in markdown(found)


def test_a_hint_that_is_no_command_is_not_shown_as_one():
    bad = samples.verdict("p_infer_core", "invalid", reason="throttled")
    text = page.html(inputs(tiny_record(verdicts=(bad,))))
    assert "next, run again once the cause above is gone" in Tags(text).text
    assert '<pre class="command">' not in text


def hostile() -> record.Record:
    flip = Flip(f"{EVIL}/1", "A", "A", "B", 0.5)
    bad = samples.verdict("p_x", "regressed", reason=EVIL, limit=EVIL, unit=EVIL, flips=(flip,))
    bad = dataclasses.replace(bad, metric=EVIL)
    case = samples.case_record(
        title=EVIL,
        errors=(EVIL,),
        notes={EVIL: EVIL},
        facts={EVIL: EVIL},
        metrics={EVIL: Metric(EVIL, 1.0, EVIL, "info", (1.0, 2.0))},
        verdicts=(bad,),
    )
    whole = samples.record(case, created=EVIL)
    environment = dataclasses.replace(
        whole.environment, machine=EVIL, device=EVIL, context={EVIL: EVIL}
    )
    cases = {EVIL: dataclasses.replace(case, case=EVIL, dtype=EVIL, weights="real")}
    return dataclasses.replace(whole, environment=environment, cases=cases)


def test_hostile_text_stays_text_on_the_page():
    found = Tags(page.html(inputs(hostile(), path=Path(EVIL), left_out=(EVIL,))))
    assert "script" not in found.tags
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert found.text.count("<script>alert(1)</script>") > 10


def test_hostile_text_stays_text_in_markdown():
    before, fenced, text = markdown(inputs(hostile())).split("~~~~\n")
    assert len(fenced.splitlines()) == 1  # so that nothing in it can close the fence
    text = before + text
    assert "<script" not in text
    assert "@all" not in text
    assert "[x](y)" not in text.replace("\\[x](y)", "")
    assert text.count("<details>") == text.count("</details>")


def test_the_page_asks_no_network_and_runs_no_script():
    found = Tags(page.html(inputs(tiny_record())))
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert not [value for name, value in found.attributes if name in ("src", "href")]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in found.attributes


def many_flips(count: int) -> record.Record:
    flips = tuple(Flip(f"sky/{i}", "A", "A", "B", 1 / (1 + i)) for i in range(count))
    verdicts = [
        samples.verdict(f"acc_{i}", "regressed", flips=flips, reason="x " * 900) for i in "ab"
    ]
    cases = [
        samples.case_record(
            verdicts=tuple(verdicts), errors=tuple(f"e{i} " * 400 for i in range(9))
        )
    ]
    return samples.record(*cases)


@pytest.mark.parametrize("limit", [2_000, 20_000, MOST_CHARACTERS])
def test_markdown_never_exceeds_its_limit_and_says_what_it_cut(limit):
    whole = many_flips(400)
    cases = {
        f"case{i}": dataclasses.replace(whole.cases["tiny"], case=f"case{i}") for i in range(60)
    }
    text = markdown(inputs(dataclasses.replace(whole, cases=cases)), limit=limit)
    assert len(text) < limit
    assert text.startswith("## perfline: 540 could not be measured, regressed\n")
    assert "**Cut:**" in text
    assert text.count("<details>") == text.count("</details>")


@settings(max_examples=50)
@given(st.text(max_size=3000), st.integers(1000, 5000))
def test_markdown_is_bounded_for_any_text(text, limit):
    odd = samples.verdict("p_infer_core", "unsure", reason=text)
    whole = samples.record(samples.case_record(verdicts=(odd,) * 9, errors=(text,) * 5))
    assert len(markdown(inputs(whole), limit=limit)) < limit


@given(st.text(max_size=300))
def test_quoted_text_is_one_line_without_markup(text):
    line = quoted(text)
    assert "\n" not in line
    assert "<" not in line
    assert "@" not in line
    assert line.replace("\\`", "").count("`") % 2 == 0


def test_markdown_lists_verdicts_before_details():
    text = markdown(inputs(many_flips(60)))
    assert text.index("acc_a, acc_b regressed") < text.index("<details>")
    assert "- ... and 10 more, in the record" in text


def with_answers(wrong: range, flips: tuple[Flip, ...], **changes: object) -> record.CaseRecord:
    given = samples.answers(wrong)
    judged = samples.verdict(
        "acc_infer", "regressed", change_pp=-1.0, limit="-0.25 pp", flips=flips
    )
    found = samples.metrics()
    accuracy = given.scored("full-vocab").correct / len(given.ids)
    for name in ("acc_infer", "acc_infer_full_vocab"):
        found[name] = Metric(name, accuracy, "fraction", "higher")
    return samples.case_record(
        accuracy={"inductor": given}, verdicts=(judged,), metrics=found, **changes
    )


def test_the_change_per_subject_is_that_of_the_verdict_s_flips():
    rows = [
        (f"{s}/{i}", "A", "A", "A" if i else "B", 1.0) for s in ("sky", "sea") for i in range(4)
    ]
    given = StoredAnswers.of(rows, date="d", commit=None, reason="r", context={})
    flips = (Flip("sky/0", "B", "B", "A", 2.0), Flip("sea/1", "A", "B", "A", None))
    case = dataclasses.replace(with_answers(range(0), flips), accuracy={"inductor": given})
    case.metrics["acc_infer"] = case.metrics["acc_infer_full_vocab"] = Metric(
        "acc_infer", 0.75, "fraction", "higher"
    )
    view = page_case.case_view(page_inputs.CaseInputs(case), samples.record(case), 10, True)
    (table,) = view.subjects
    assert [(r.name, r.before, r.now, r.change, r.lost, r.gained) for r in table.rows] == [
        ("sky", "100.00", "75.00", "-25.00", 1, 0),
        ("sea", "50.00", "75.00", "+25.00", 0, 1),
    ]
    assert (table.compared, table.changed, table.largest) == (True, 2, "25.00")


def test_flips_come_with_question_choices_and_who_took_which(tmp_path):
    from perfline.cases.data import find_mmlu
    from perfline.tasks.prompts import load_subjects, question_set_digest

    case = samples.packaged()
    subjects = load_subjects(find_mmlu(case, None), case.mmlu.few_shots)
    question = subjects[0].test[3]
    other = next(letter for letter in "ABCD" if letter != question.label)
    flip = Flip(question.id, question.label, question.label, other, 0.25)
    measured = with_answers(range(0), (flip,), facts={"mmlu": question_set_digest(subjects)})
    path = samples.saved(tmp_path, samples.record(measured))
    found = gather([path], Places(tmp_path))
    view = page_case.case_view(found.cases["tiny"], found.record, 10, True)
    (row,) = view.flips[0].rows
    assert (row.text, row.margin, row.kind) == (question.text, "0.25 logits", "right -> wrong")
    assert [choice.text for choice in row.choices] == list(question.choices)
    marks = {choice.letter: choice.marks for choice in row.choices}
    assert marks[question.label] == ("gold", "before")
    assert marks[other] == ("after",)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [({}, "does not say which questions"), ({"mmlu": "sha256:0"}, "holds others")],
)
def test_question_texts_of_other_questions_are_never_shown(tmp_path, facts, reason):
    flip = Flip("tiny_zoo/0", "A", "A", "B", 0.25)
    path = samples.saved(tmp_path, samples.record(with_answers(range(0), (flip,), facts=facts)))
    found = gather([path], Places(tmp_path)).cases["tiny"]
    assert found.questions == {}
    assert any(reason in line for line in found.absent)


def test_an_answer_of_the_eager_engine_is_not_shown_as_gold():
    flip = Flip("sky/1", "C", "C", "B", 0.1)
    paired = samples.verdict("flips", "regressed", "paired", flips=(flip,))
    case = samples.case_record(verdicts=(paired,))
    view = page_case.case_view(page_inputs.CaseInputs(case), samples.record(case), 10, True)
    (row,) = view.flips[0].rows
    assert (row.gold, row.kind, row.text) == ("B", "differs", "")
    assert view.flips[0].counts == "1 differ"


def test_two_tasks_with_one_id_do_not_lend_each_other_texts_or_letters():
    case = dataclasses.replace(samples.packaged(), tasks=("mmlu", "cmmlu"))
    found = samples.answers(range(0))
    ours = dict(zip(found.ids, found.labels, strict=True))["sky/1"]
    other = next(letter for letter in "ABCD" if letter != ours)
    turned = dataclasses.replace(found, labels=other * len(found.ids))
    flips = (Flip("sky/1", "C", "C", "B", 0.1),)
    measured = samples.case_record(
        accuracy={"inductor": found, "infer_cmmlu": turned},
        verdicts=(
            samples.verdict("flips", "regressed", "paired", flips=flips),
            samples.verdict("acc_infer_cmmlu", "regressed", "paired", flips=flips),
        ),
    )
    texts = {
        (task, "sky/1"): Question("sky", 1, task, ("a", "b"), "A") for task in ("mmlu", "cmmlu")
    }

    def rows(case):
        given = page_inputs.CaseInputs(measured, case=case, questions=texts)
        view = page_case.case_view(given, samples.record(measured), 10, True)
        return [(row.text, row.gold) for flips in view.flips for row in flips.rows]

    assert rows(case) == [("mmlu", ours), ("cmmlu", other)]
    # Which task was first is not known without the case.
    assert rows(None) == [("", "not known"), ("cmmlu", other)]


def stored(directory: Path, *factors: float) -> baseline.Baseline:
    sessions = []
    for i, factor in enumerate(factors):
        case = samples.case_record(metrics=samples.metrics(1000.0 * factor))
        whole = samples.record(case, created=f"2026-11-{10 + i}T00:00:00Z")
        sessions += measured_baseline(whole, case, "test").sessions
    held = dataclasses.replace(measured_baseline(whole, case, "test"), sessions=tuple(sessions))
    baseline.save(baseline.path(directory, samples.MACHINE, "tiny", False), held)
    return held


def test_the_interval_of_decision_is_the_gate_s(tmp_path):
    from perfline.gates import performance

    held = stored(tmp_path, 1.0, 1.01, 0.99)
    case = samples.packaged()
    for factor in (0.3, 0.6, 0.8, 1.0, 1.2, 1.9):
        metric = samples.speed("p_infer_core", 1000.0 * factor)
        judged = performance.throughput_baseline(metric, held.values("p_infer_core"), case.gates)
        (row,) = [
            charts._interval(judged, judged.change_fraction, held.values("p_infer_core"), case)
        ]
        ruled_out, sure = row.low > row.limit, row.high < 0
        assert (judged.word in ("ok", "improved")) == ruled_out
        assert (judged.word == "regressed") == (sure and not ruled_out)


def test_an_interval_of_another_baseline_is_not_drawn(tmp_path):
    stored(tmp_path, 1.0, 1.01)
    bad = samples.verdict(
        "p_infer_core", "ok", baseline=900.0, measured=950.0, change_fraction=0.05
    )
    path = samples.saved(tmp_path, tiny_record(verdicts=(bad,)))
    found = gather([path], Places(tmp_path))
    figures, absent = charts.figures(found.cases["tiny"], found.record.created, True)
    assert "reach" not in figures["speed"][0].svg
    assert any("another baseline has been accepted" in line for line in absent)
    assert figures["speed"][0].caption.endswith("drawn without the baseline that judged this run.")


def test_a_metric_of_one_s_own_is_drawn_beside_ours_and_right_is_better():
    wait = Metric("wait", 0.040, "s", "lower", (0.04,) * 7, own=True)
    slower = Verdict(
        *("wait", "regressed", "baseline", "s"), baseline=0.032, measured=0.040,
        change_fraction=0.25, limit="+5.0 %",
    )  # fmt: skip
    case = samples.case_record(metrics={"wait": wait}, verdicts=(slower,))
    figures, _ = charts.figures(page_inputs.CaseInputs(case, case=samples.packaged()), "2026", True)
    assert "wait (turned): -20.00 %, regressed" in figures["speed"][0].svg
    assert "margin -4.8 %" in figures["speed"][0].svg


def test_token_times_are_drawn_and_the_first_is_told():
    times = {"eager": (0.02, 0.004, 0.004), "inductor": (0.01, 0.002, 0.003)}
    case = samples.case_record(token_times=times)
    figures, _ = charts.figures(page_inputs.CaseInputs(case), "2026", True)
    drawn = next(figure for figure in figures["speed"] if figure.title == "Time of each token")
    assert "inductor, token 3: 3.00 ms" in drawn.svg
    assert drawn.caption.endswith("behind the prompt: inductor 10 ms, eager 20 ms.")
    assert [name for _, name in drawn.keys] == ["inductor", "eager"]
    for nothing in ({}, {"eager": (0.02,)}):
        bare = page_inputs.CaseInputs(samples.case_record(token_times=nothing))
        drawn, _ = charts.figures(bare, "2026", True)
        assert all(figure.title != "Time of each token" for figure in drawn["speed"])


def test_a_run_that_was_added_still_shows_the_interval_it_was_judged_by(tmp_path):
    held = stored(tmp_path, 1.0, 1.01, 0.9)  # the last of them is the run itself
    before = held.values("p_infer_core")[:2]
    mean = math.sqrt(before[0] * before[1])
    judged = samples.verdict(
        "p_infer_core", "unsure", baseline=mean, measured=900.0, change_fraction=900.0 / mean - 1
    )
    path = samples.saved(tmp_path, tiny_record(verdicts=(judged,)))
    found = gather([path], Places(tmp_path))
    figures, absent = charts.figures(found.cases["tiny"], found.record.created, True)
    row = charts._interval(judged, judged.change_fraction, before, samples.packaged())
    assert f"{row.low:+.2f}" in figures["speed"][0].svg
    assert "accepted sessions" in dict(figures["speed"][0].keys).values()
    assert absent == []


def test_the_context_is_set_against_the_baseline(tmp_path):
    stored(tmp_path, 1.0)
    whole = tiny_record()
    newer = dataclasses.replace(
        whole.environment, context={"torch": "2.14.0", "commit": "abc123456789", "driver": "580"}
    )
    path = samples.saved(tmp_path, dataclasses.replace(whole, environment=newer))
    found = gather([path], Places(tmp_path))
    context = page_case.context(found.cases["tiny"], found.record)
    assert context.against == "the baseline of 2026-11-10, commit abc123456789"
    assert [(d.name, d.before, d.after) for d in context.differences] == [
        ("torch", "2.13.0", "2.14.0"),
        ("driver", "absent", "580"),
    ]


def test_clocks_stand_beside_those_of_the_record_before(tmp_path):
    clock = {"sm_clock": Metric("sm_clock", 1980.0, "MHz", "info")}
    slow = {"sm_clock": Metric("sm_clock", 1410.0, "MHz", "info")}
    old = samples.saved(
        tmp_path,
        samples.record(samples.case_record(metrics=clock), created="2026-11-01T00:00:00Z"),
        "old.json",
    )
    path = samples.saved(tmp_path, tiny_record(metrics=slow))
    found = gather([path, old], Places(tmp_path))
    assert page_case.context(found.cases["tiny"], found.record).clocks == (
        "sm clock, lowest, inductor: 1410 MHz (the record before: 1980 MHz)",
    )


def past(directory: Path, number: int, **changes: object) -> Path:
    whole = samples.record(
        samples.case_record(metrics=samples.metrics(1000.0 + number), **changes),
        created=f"2026-{1 + number // 28:02}-{1 + number % 28:02}T00:00:00Z",
    )
    return samples.saved(directory, whole, f"past{number}.json")


def test_history_is_of_this_machine_case_and_definition_only(tmp_path):
    path = samples.saved(tmp_path, tiny_record())
    here = samples.record(created="2026-10-01T00:00:00Z")
    elsewhere = dataclasses.replace(
        here, environment=dataclasses.replace(here.environment, machine="other")
    )
    torn = tmp_path / "torn.json"
    torn.write_text('{"schema": 1,')
    files = [
        path,
        past(tmp_path, 3),
        past(tmp_path, 1),
        past(tmp_path, 2, digest="sha256:other"),
        past(tmp_path, 4, weights="dummy", accuracy={}),
        samples.saved(tmp_path, elsewhere, "elsewhere.json"),
        samples.saved(tmp_path, tiny_record(), "copy.json"),
        torn,
    ]
    found = gather(files, Places(tmp_path))
    case = found.cases["tiny"]
    assert [each.created[:10] for each in case.past] == ["2026-01-02", "2026-01-04"]
    assert "1 past records of other definitions of the case are left out." in case.absent
    assert len(found.left_out) == 2
    assert "torn.json: is torn or not JSON" in found.left_out[0]
    assert found.left_out[1] == "1 record of other machines"


def test_a_history_of_200_records_and_57_subjects_stays_below_2_mb(tmp_path):
    rows = [(f"subject_{s}/{i}", "A", "A", "A", 1.0) for s in range(57) for i in range(40)]
    given = StoredAnswers.of(rows, date="d", commit=None, reason="r", context={})
    files = [samples.saved(tmp_path, tiny_record(accuracy={"inductor": given, "eager": given}))]
    files += [past(tmp_path, i, accuracy={}) for i in range(200)]
    text = page.html(gather(files, Places(tmp_path)))
    assert len(text.encode()) < 1_000_000
    assert "History: 200 past records" in text


def test_a_page_too_large_leaves_out_and_says_so():
    text = page.html(inputs(many_flips(2_000)), limit=80_000)
    assert len(text.encode()) < 80_000
    assert "more, in the record." in Tags(text).text
    with pytest.raises(PerflineError, match=r"run\.json: the page takes"):
        page.html(inputs(many_flips(2_000)), limit=5_000)


def command(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    report_cli.add_report(parser.add_subparsers())
    args = parser.parse_args(["report", *map(str, arguments)])
    return args.run_command(args)


def test_no_older_page_stands_for_a_record_that_cannot_be_read(tmp_path, monkeypatch):
    target = tmp_path / "report.html"
    path = samples.saved(tmp_path, tiny_record())
    command(path, "-o", target, "--baselines", tmp_path)
    path.write_text("{")
    with pytest.raises(PerflineError, match="is torn"):
        command(path, "-o", target, "--baselines", tmp_path)
    assert not target.exists()
    target.write_text("# what other steps wrote\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(target))
    with pytest.raises(PerflineError, match="is torn"):
        command(path, "-o", target, "--baselines", tmp_path, "--format", "markdown")
    assert target.exists()


def test_the_command_writes_a_page_and_prints_markdown(tmp_path, capsys):
    path = samples.saved(tmp_path, tiny_record(verdicts=(samples.verdict("m", "regressed"),)))
    target = tmp_path / "deep" / "report.html"
    assert command(path, "-o", target, "--baselines", tmp_path) == 0
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert capsys.readouterr().out == f"written: {target}\n"
    assert command(path, "--format", "markdown", "--baselines", tmp_path) == 0
    assert capsys.readouterr().out.startswith("## perfline: regressed\n")
    assert [file.name for file in target.parent.iterdir()] == ["report.html"]


def test_the_command_never_overwrites_a_record(tmp_path):
    path = samples.saved(tmp_path, tiny_record())
    before = path.read_bytes()
    with pytest.raises(PerflineError, match="is one of the records"):
        command(path, "-o", path)
    assert path.read_bytes() == before


def test_a_record_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(PerflineError, match=r"none\.json: is not there"):
        command(tmp_path / "none.json", "-o", tmp_path / "x.html")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    path = samples.saved(tmp_path, tiny_record())
    (tmp_path / "taken").mkdir()
    with pytest.raises(PerflineError, match="taken: cannot be written"):
        command(path, "-o", tmp_path / "taken")


def test_without_jinja2_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    page._template.cache_clear()
    with pytest.raises(PerflineError, match=r"pip install 'perfline\[report\]'"):
        page.html(inputs(tiny_record()))


def compared(*verdicts: Verdict, partial: bool = False) -> page_inputs.CompareInputs:
    side = SideRecord("/venv/bin/python", None, {}, {}, (), "cpu-test")
    case = CaseComparison(
        case="tiny",
        title=EVIL,
        engine="inductor",
        weights="real",
        questions=200,
        margin_fraction=0.02,
        looks=(10, 14),
        alpha=0.00166,
        rounds=6,
        rounds_reason="as asked",
        sides={"baseline": side, "candidate": dataclasses.replace(side, context={"torch": EVIL})},
        difference=EVIL,
        verdicts=verdicts,
        notes=(EVIL,),
        ended=not partial,
    )
    whole = Comparison("2026-11-22", partial, "perfline compare tiny", {"tiny": case})
    return page_inputs.CompareInputs(Path("compare.json"), whole)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("word", WORST_FIRST)
def test_a_comparison_s_verdict_is_that_of_its_exit_status(word, strict):
    judged = Verdict("core_time", word, "paired", "us/tok", reason=EVIL)
    found = Inputs(None, None, {}, (compared(judged),))
    tags = Tags(page.html(found, strict=strict))
    assert f"perfline compare exits {int(fails(word, strict))}" in tags.text
    assert f"perfline: {word}" in tags.text
    assert "script" not in tags.tags
    text = markdown(found, strict=strict)
    assert text.startswith(f"## perfline: {word}\n")
    assert f"perfline compare exits {int(fails(word, strict))}." in text
    assert "<script" not in text


def test_every_version_that_an_install_changed_is_on_the_page():
    found = compared(Verdict("core_time", "ok", "paired", "us/tok"))
    case = found.comparison.cases["tiny"]
    a, b = case.sides["baseline"], case.sides["candidate"]
    old, new = {"numpy": "1", "gone": "3", "kept": "1"}, {"numpy": "2", "new": "4", "kept": "1"}
    both = {
        "baseline": dataclasses.replace(a, packages=old),
        "candidate": dataclasses.replace(b, packages=new, install=("numpy>=2",)),
    }
    whole = dataclasses.replace(
        found.comparison, cases={"tiny": dataclasses.replace(case, sides=both)}
    )
    page_of = Inputs(None, None, {}, (page_inputs.CompareInputs(Path("compare.json"), whole),))
    text = " ".join(Tags(page.html(page_of)).text.split())
    for shown in ("numpy 1 2", "gone 3 absent", "new absent 4", "installed absent numpy>=2"):
        assert shown in text
    assert "kept 1" not in text


def test_the_answers_to_each_task_are_on_the_page():
    found = compared(Verdict("core_time", "ok", "paired", "us/tok"))
    first, other = (AnswersRecord(n, n - 1, n - 2, 0.02, 0.001, 0.004) for n in (200, 90))
    case = dataclasses.replace(found.comparison.cases["tiny"], answers=first)
    for more, shown in (({}, "200 questions"), ({EVIL: other}, "first task: 200 questions")):
        told = dataclasses.replace(case, more_answers=more)
        whole = dataclasses.replace(found.comparison, cases={"tiny": told})
        page_of = Inputs(None, None, {}, (page_inputs.CompareInputs(Path("compare.json"), whole),))
        tags = Tags(page.html(page_of))
        text = " ".join(tags.text.split())
        assert f"{shown} were answered by both sides: 199 right before, 198 after;" in text
        assert (": 90 questions were answered" in text) == bool(more)
        assert "script" not in tags.tags


def test_what_explains_a_comparison_is_on_the_page_with_its_picture():
    found = compared(Verdict("core_time", "regressed", "paired", "us/tok"))
    causes = (
        Cause("layers.*.mlp", f"silu -> {EVIL}", 0.1, 0.15, 0.05, 0.04, 0.06),
        Cause("", "(launch gaps, Python)", 0.2, 0.18, -0.02, -0.03, -0.01),
    )
    told = Explanation("", (EVIL,), 20, 1000, False, 1.0, 0.04, 0.02, 0.05, 30, causes, 12.0)
    case = dataclasses.replace(found.comparison.cases["tiny"], explanation=told)
    whole = dataclasses.replace(found.comparison, cases={"tiny": case})
    page_of = Inputs(None, None, {}, (page_inputs.CompareInputs(Path("compare.json"), whole),))
    tags = Tags(page.html(page_of))
    text = " ".join(tags.text.split())
    assert "Which operator, which layer" in text
    assert "explains 75 % of +4.0 % [+2.0, +5.0]" in text
    assert "layers.*.mlp 100.0 150.0 +5.0 % [+4.0, +6.0]" in text
    assert "(launch gaps, Python) (model) 200.0 180.0 -2.0 % [-3.0, -1.0]" in text
    assert "script" not in tags.tags
    assert 'aria-label="change by operator, %"' in page.html(page_of)
    assert "Which operator" not in Tags(page.html(Inputs(None, None, {}, (found,)))).text


def test_a_session_that_passes_beside_a_comparison_that_does_not_has_not_passed():
    judged = Verdict("core_time", "regressed", "paired", "us/tok", reason="slow")
    whole = tiny_record(verdicts=(samples.verdict("m", "ok"),))
    found = inputs(whole, comparisons=(compared(judged),))
    text = page.html(found)
    assert "ok; compared: regressed" in Tags(text).text
    assert "pytest exits 0; perfline compare exits 1" in Tags(text).text
    assert 'class="bad"' in text
    assert markdown(found).startswith("## perfline: ok; compared: regressed\n")


def test_a_comparison_that_was_stopped_says_so():
    judged = Verdict("core_time", "ok", "paired", "us/tok")
    text = Tags(page.html(Inputs(None, None, {}, (compared(judged, partial=True),)))).text
    assert "stopped before its end, ok" in text
    assert "perfline compare exits 130" in text
    assert "It has not ended" in text


@settings(max_examples=60)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=6))
def test_any_number_of_a_record_makes_a_page(values):
    taken = [
        max(-MOST, min(value, MOST)) for value in values
    ]  # others are refused as they are made
    found = {
        name: Metric(name, taken[0], unit, "info", tuple(taken))
        for name, unit in (("p_infer_core", "tok/s"), ("mem", "GiB"), ("acc_infer", "fraction"))
    }
    odd = samples.verdict(
        "p_infer_core", "unsure", baseline=values[0], measured=values[-1], change_fraction=values[0]
    )
    case = samples.case_record(metrics=found, verdicts=(odd,))
    past = page_inputs.Past("2026", {}, None, {"mem": values[-1]}, {"mem": values[0]}, {})
    whole = samples.record(case)
    cases = {"tiny": page_inputs.CaseInputs(case, past=(past, past))}
    assert "unsure" in page.html(Inputs(Path("run.json"), whole, cases))


@pytest.mark.parametrize("where", ["value", "samples.0"])
def test_numbers_that_no_chart_takes_are_one_line(tmp_path, where):
    found = samples.metrics()["p_infer_core"]
    path = samples.saved(tmp_path, tiny_record(metrics={found.name: found}))
    whole = json.loads(path.read_text())
    whole["cases"]["tiny"]["metrics"][found.name] |= (
        {"value": -1e308} if where == "value" else {"samples": [-1e308] * 7}
    )
    path.write_text(json.dumps(whole))
    with pytest.raises(PerflineError) as raised:
        command(path, "-o", tmp_path / "report.html")
    assert str(raised.value) == (
        f"{path}: key 'cases.tiny.metrics.p_infer_core.{where}' is -1e+308 "
        "(expected a number from -1e+30 to 1e+30); run pytest again"
    )


@pytest.mark.parametrize("place", [0, 1])
def test_a_fifo_is_refused_at_once(tmp_path, place):
    path, fifo = samples.saved(tmp_path, tiny_record()), tmp_path / "fifo"
    os.mkfifo(fifo)
    paths = [path]
    paths.insert(place, fifo)
    with pytest.raises(PerflineError, match=r"fifo: is no regular file; save it to one"):
        command(*paths, "-o", tmp_path / "report.html")


def test_the_page_goes_through_a_link_and_into_a_device(tmp_path, capsys):
    path = samples.saved(tmp_path, tiny_record())
    link = tmp_path / "latest.html"
    link.symlink_to(tmp_path / "deep" / "report.html")
    assert command(path, "-o", link) == 0
    assert link.is_symlink()
    assert (tmp_path / "deep" / "report.html").read_text("utf-8").startswith("<!doctype html>")
    assert command(path, "-o", "/dev/null") == 0
    assert Path("/dev/null").is_char_device()


def test_names_of_files_that_are_no_utf_8_are_one_line(tmp_path, monkeypatch):
    path = samples.saved(tmp_path, tiny_record(errors=("é",)), "\udcff.json")
    with pytest.raises(
        PerflineError, match=r"^the report would hold '.udcff', which utf-8 has not"
    ):
        command(path, "-o", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    with pytest.raises(PerflineError, match=r"^the report would hold .*, which ascii has not"):
        command(path, "--format", "markdown")


def test_what_is_left_out_is_told_in_printable_characters(tmp_path, capsys):
    path = samples.saved(tmp_path, tiny_record())
    (tmp_path / "a\x1b]0;x\x07.json").write_text("{")
    assert command(path, tmp_path / "a\x1b]0;x\x07.json", "-o", tmp_path / "report.html") == 0
    assert (
        f"left out of the history: {tmp_path}/a\\x1b]0;x\\x07.json: is" in capsys.readouterr().err
    )
