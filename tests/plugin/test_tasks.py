"""Which tasks a session asks, and what becomes of one whose questions are absent."""

from __future__ import annotations

import shutil

import pytest

from doc_pages import REPOSITORY

ABSENT = "case fake: no questions of task 'ceval' at /data/ceval; get it with: hf download ceval"
BOTH = "--tasks=mmlu,ceval"
WRONG = [f"even/{i}" for i in range(10)]


def said(result: pytest.RunResult) -> str:
    """What is printed, its folded lines joined."""
    return " ".join(result.stdout.str().split())


def test_published_figures_of_other_tasks_stand_beside_what_is_measured_and_are_not_judged(suite):
    published = suite.root / "baselines" / "published"
    published.mkdir(parents=True)
    shutil.copy(REPOSITORY / "baselines" / "published" / "deepseek-7b.json", published)
    suite.script(both={"wrong": WRONG})

    result = suite.run(
        *("-m", "accuracy and not fidelity", "-k", "eager", "--tasks=mmlu,ceval,cmmlu"),
        cases="deepseek-7b",
    )

    rows = [line.split() for line in result.stdout.lines]
    assert [row for row in rows if row[:1] in (["acc_val_ceval"], ["acc_val_cmmlu"])][:2] == [
        ["acc_val_ceval", "%", "75.00", "45.00"],
        ["acc_val_cmmlu", "%", "75.00", "47.20"],
    ]
    assert "acc_val_ceval: 0.45 is published, not judged: DeepSeek-LLM's README" in said(result)
    judged = {k: v for k, v in suite.words("deepseek-7b").items() if k.endswith("published")}
    assert list(judged) == ["acc_val.published"]
    assert suite.record()["cases"]["deepseek-7b"]["tasks"] == ["mmlu", "ceval", "cmmlu"]


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("cevall", "--tasks: task 'cevall' is not known; did you mean 'ceval'? (known: arc_*"),
        ("mmlu,mmlu", "--tasks is mmlu, mmlu (expected each name once)"),
        ("", "--tasks names '' (expected a task's name, such as mmlu, or a file*"),
        ("mine.yaml", "--tasks: *mine.yaml: cannot be read: No such file or directory"),
    ],
)
def test_a_name_that_is_no_task_is_a_usage_error(suite, named, told):
    result = suite.run(f"--tasks={named}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *{told}".replace("[", "[[]")])


def test_a_session_with_more_tasks_than_the_baseline_is_as_a_case_that_gained_one(suite, capsys):
    suite.run()
    assert suite.update() == 0
    before = suite.baseline()

    suite.run("-m", "accuracy", "-k", "stored", BOTH)
    assert suite.words() == {
        "acc_val.baseline": "ok",
        "acc_infer.baseline": "ok",
        "acc_val_ceval.baseline": "missing",
        "acc_infer_ceval.baseline": "missing",
    }
    assert suite.update() == 0

    after = suite.baseline()
    assert after["case_digest"] == before["case_digest"]
    assert set(after["accuracy"]) == {"eager", "inductor", "val_ceval", "infer_ceval"}
    suite.run("-m", "accuracy", "--strict", "-k", "stored", BOTH).assert_outcomes(
        passed=4, deselected=6
    )
    suite.run("-m", "accuracy", "-k", "stored").assert_outcomes(passed=2, deselected=4)
    assert "tasks" not in suite.record()["cases"]["fake"]
    capsys.readouterr()
    assert suite.update() == 0  # of a session that did not ask it: its answers stay
    assert "acc_infer_ceval, acc_val_ceval: kept" in capsys.readouterr().out
    assert suite.baseline()["accuracy"]["val_ceval"] == after["accuracy"]["val_ceval"]


def test_another_first_task_is_another_case_and_no_baseline_of_this_one(suite, capsys):
    suite.run()
    assert suite.update() == 0

    result = suite.run("-m", "accuracy", "-k", "stored", "--tasks=ceval,mmlu")

    assert set(suite.words().values()) == {"incomparable"}
    assert "or name the same task first in --tasks" in said(result)
    assert suite.update() == 2
    told = capsys.readouterr().err
    assert "measured with --tasks=ceval,mmlu, and throughput is timed over the first" in told


def test_an_absent_task_is_skipped_alone_told_once_and_never_ok(suite, capsys):
    suite.run(BOTH)
    assert suite.update() == 0
    stored = suite.baseline()["accuracy"]["val_ceval"]
    suite.script(absent={"ceval": ABSENT})

    result = suite.run(BOTH, "-k", "stored or throughput")

    result.assert_outcomes(passed=4, skipped=2, deselected=4)
    record = suite.record()["cases"]["fake"]
    assert record["not_asked"] == {"ceval": ABSENT}
    assert record["errors"] == []
    assert set(record["accuracy"]) == {"eager", "inductor"}
    assert not [name for name in record["metrics"] if "ceval" in name]
    summary = said(result).partition(" perfline ===")[2].partition(" short test summary ")[0]
    assert summary.count("no questions of task 'ceval'") == 1
    assert f"ceval was not asked: {ABSENT}" in summary
    assert "verdicts: 1 task not asked, " in summary
    capsys.readouterr()
    assert suite.update() == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "infer_ceval, val_ceval: the stored answers stay: the questions are absent" in told
    assert suite.baseline()["accuracy"]["val_ceval"] == stored


def test_an_absent_task_fails_alone_where_that_is_asked_for(suite):
    suite.run(BOTH)
    assert suite.update() == 0
    suite.script(absent={"ceval": ABSENT})

    result = suite.run(BOTH, "--strict", "-m", "accuracy", "-k", "stored")

    result.assert_outcomes(passed=2, failed=2, deselected=6)
    record = suite.record()["cases"]["fake"]
    assert record["errors"] == [f"absent: {ABSENT}"]
    assert record["not_asked"] == {"ceval": ABSENT}
    told = said(result)
    assert "the questions of task 'ceval' are absent, as told above" in told
    assert "verdicts: 1 task not asked, 2 ok" in told
    assert "ceval was not asked: " not in told  # the error says so


def test_answers_to_an_absent_task_are_not_dropped_in_silence(suite, capsys):
    suite.run(BOTH)
    assert suite.update() == 0
    suite.default("throughput: {sample: 8, rounds: 5, min_round_s: 0.001}")  # another definition
    suite.script(absent={"ceval": ABSENT})
    suite.run(BOTH)
    capsys.readouterr()

    assert suite.update() == 2
    told = capsys.readouterr().err
    assert "answers infer_ceval, val_ceval of baselines/fake-cpu/fake.json would go with" in told
    assert "val_ceval" in suite.baseline()["accuracy"]
    assert suite.update("--accept-regression") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "infer_ceval, val_ceval: the stored answers go, with the case's older def" in told
    assert set(suite.baseline()["accuracy"]) == {"eager", "inductor"}


def test_answers_to_a_task_that_was_left_out_are_not_dropped_in_silence(suite, capsys):
    path = suite.root / "cases" / "fake.yaml"
    path.write_text(f"{path.read_text()}tasks: [mmlu, ceval]\n")
    suite.run("-m", "accuracy")
    assert suite.update() == 0
    suite.default("throughput: {sample: 8, rounds: 5, min_round_s: 0.001}")  # another definition
    suite.run("--tasks=mmlu")
    capsys.readouterr()

    assert suite.update() == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "would go with the case's older definition, and their questions were not asked" in told


def test_without_its_first_task_nothing_of_a_case_is_measured(suite):
    suite.script(**{"raise": ["MissingData"]}, absent={"ceval": ABSENT})
    result = suite.run(BOTH)
    assert result.parseoutcomes().keys() == {"skipped"}
    assert "fake was not measured: scripted MissingData" in said(result)
