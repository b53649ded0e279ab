"""Fewer questions, a sequential verdict, an interrupted pass: what pytest says of them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fakes import prompts
from perfline.cases.case import GatesSpec
from perfline.gates.accuracy import accuracy_baseline, verified
from perfline.tasks.answers import Answers, Scored

WRONG = [f"even/{i}" for i in range(20)]


@pytest.fixture
def accepted(suite):
    suite.script(prompts=400, both={"wrong": WRONG})
    suite.run("-m", "accuracy")
    assert suite.update() == 0
    return suite


def test_a_run_of_n_is_compared_on_its_n_and_says_what_it_can_see(accepted):
    result = accepted.run("-m", "accuracy", "-k", "stored", "--questions=100", "--strict")
    result.assert_outcomes(passed=2, deselected=4)
    (first, _) = accepted.record()["cases"]["fake"]["verdicts"]
    assert first["word"] == "ok"
    assert "in 100 of 400 questions" in first["reason"]
    assert "100 questions see a drop of " in first["reason"]
    assert accepted.record()["cases"]["fake"]["metrics"]["acc_val_questions"]["value"] == 100


def test_fewer_answers_do_not_replace_all_of_them(accepted, capsys):
    accepted.run("-m", "accuracy", "--questions=100")
    assert accepted.update() == 2
    assert "answered 100 questions" in capsys.readouterr().err


def test_a_sequential_run_stops_early_on_a_clear_regression(accepted):
    wrong = WRONG + [f"odd/{i}" for i in range(200)]
    accepted.script(prompts=400, both={"wrong": wrong})
    accepted.run("-m", "accuracy", "-k", "stored", "--sequential")
    case = accepted.record()["cases"]["fake"]
    assert [v["word"] for v in case["verdicts"]] == ["regressed", "regressed"]
    assert case["metrics"]["acc_val_questions"]["value"] == 25
    assert "sequential, alpha and bounds split among 5 looks" in case["verdicts"][0]["reason"]


def test_a_sequential_run_of_the_same_answers_asks_what_ok_takes(accepted):
    accepted.run("-m", "accuracy", "-k", "stored", "--sequential")
    case = accepted.record()["cases"]["fake"]
    assert [v["word"] for v in case["verdicts"]] == ["ok", "ok"]
    assert case["metrics"]["acc_val_questions"]["value"] == 400


def test_an_interrupted_pass_is_resumed_and_leaves_no_journal(accepted):
    # The 60th answer of the fixed order is broken: the pass ends there, as by a crash.
    from perfline.measure.accuracy import choose

    crash = choose(prompts(400), None)[59].id
    accepted.script(prompts=400, both={"wrong": WRONG, "nan": [crash]})
    accepted.run("-m", "accuracy", "-k", "stored and eager").assert_outcomes(failed=1, deselected=5)
    journal = accepted.root / "results" / "journals" / "fake-eager.jsonl"
    assert journal.read_text().count("\n") == 1 + 3  # the header, three batches of 16
    accepted.script(prompts=400, both={"wrong": WRONG})
    accepted.run(
        "-m", "accuracy", "-k", "stored and eager", "--resume", "--strict"
    ).assert_outcomes(passed=1, deselected=5)
    assert not journal.exists()
    notes = accepted.record()["cases"]["fake"]["notes"]
    assert notes["accuracy_resumed_val"] == 48


@pytest.mark.parametrize("option", ["--questions=0", "--questions=x", "--verify=-1"])
def test_a_number_that_is_none_is_a_usage_error(suite, option):
    result = suite.run(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*expected a whole number*"])


def test_a_full_pass_asks_all(suite):
    result = suite.run("--full-pass", "--questions=10")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --full-pass asks all: *"])


def test_the_record_says_which_path_answered(accepted):
    notes = accepted.record()["cases"]["fake"]["notes"]
    assert notes["accuracy_path_val"] == "plain"  # the scripted engine shares no prefixes
    json.dumps(notes)


def answers(*rows):
    n = len(rows)
    ids = tuple(f"law/{i}" for i in range(n))
    logits = np.array(rows, dtype=np.float32)
    return Answers(ids, logits, np.zeros(n, np.int64), "A" * n, "A" * n, (5,) * n)


@pytest.mark.parametrize(
    ("shared", "word"),
    [((9.0, 1, 2, 3), "ok"), ((9.0005, 1, 2, 3), "ok"), ((9.01, 1, 2, 3), "invalid")],
)
def test_a_path_whose_logits_leave_the_rounding_of_fp32_is_invalid(shared, word):
    found, reason = verified("x", answers((9, 1, 2, 3)), answers(shared), "fp32")
    assert found == word
    assert "1 answers given again the plain way: 0 flips" in reason


def test_sequential_looks_are_stricter_than_one_look():
    ids = tuple(f"law/{i}" for i in range(400))
    before = Scored(ids, "A" * 400, "A" * 400)
    after = Scored(ids, "B" * 8 + "A" * 392, "A" * 400)
    assert accuracy_baseline("x", before, after, GatesSpec()).word == "regressed"
    assert accuracy_baseline("x", before, after, GatesSpec(), 5, 400).word == "unsure"
