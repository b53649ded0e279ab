"""What the accuracy gates promise: rates of false alarms, with looks and without; what is shown."""

from __future__ import annotations

import numpy as np
import pytest

from perfline.cases.case import GatesSpec
from perfline.gates.accuracy import accuracy_baseline, verified
from perfline.gates.statistics import mcnemar_p
from perfline.tasks.answers import Answers, Scored

GATES = GatesSpec()


def judged(lost, gained, n, looks=1, asked_of=None):
    same = n - lost - gained
    before = "A" * lost + "B" * gained + "A" * same
    after = "B" * lost + "A" * gained + "A" * same
    ids = tuple(f"law/{index}" for index in range(n))
    return accuracy_baseline(
        "acc_val",
        *(Scored(ids, before, "A" * n), Scored(ids, after, "A" * n), GATES),
        looks=looks,
        asked_of=asked_of,
    )


def test_the_shown_baseline_is_what_the_stored_answers_were():
    verdict = judged(lost=30, gained=10, n=1000)
    assert verdict.baseline == pytest.approx(0.990)  # 10 were wrong before
    assert verdict.measured == pytest.approx(0.970)  # 30 are wrong now
    assert verdict.change_pp == pytest.approx(-2.0)


def test_looks_share_the_error_among_them():
    """A p-value that is small enough for one look is not for five."""
    assert GATES.accuracy_alpha / 5 < mcnemar_p(41, 21) <= GATES.accuracy_alpha
    assert judged(41, 21, 2000).word == "regressed"
    assert judged(41, 21, 2000, looks=5).word == "unsure"
    assert mcnemar_p(50, 21) <= GATES.accuracy_alpha / 5
    assert judged(50, 21, 2000, looks=5).word == "regressed"
    assert "sequential, alpha and bounds split among 5 looks" in judged(50, 21, 2000, 5).reason


def test_ok_takes_more_at_five_looks_than_at_one():
    """Over 14,042 questions, 20 flips either way, how many more losses are still ok?"""
    most = [
        max(more for more in range(60) if judged(20 + more, 20, 14042, looks).word == "ok")
        for looks in (1, 5)
    ]
    assert most[1] < most[0]


@pytest.mark.parametrize("looks", [1, 5])
def test_an_unchanged_model_is_accused_in_at_most_1_percent(looks):
    """Flips of 8 % that go either way alike; a run stops at its first verdict, as --sequential."""
    rng, alarms, runs, whole = np.random.default_rng(20261125), 0, 600, 600
    at = [whole * (look + 1) // looks for look in range(looks)]
    for _ in range(runs):
        flips = rng.choice((-1, 0, 1), p=(0.04, 0.92, 0.04), size=whole)
        for n in at:
            lost, gained = int((flips[:n] == 1).sum()), int((flips[:n] == -1).sum())
            if (word := judged(lost, gained, n, looks, whole).word) != "unsure":
                alarms += word == "regressed"
                break
    # 99.9 % of runs of this test would count no more, were the rate 1 %.
    assert alarms <= 14


def answers(rows):
    letters = np.array(rows, dtype=np.float32)
    n = len(rows)
    ids = tuple(f"law/{index}" for index in range(n))
    return Answers(ids, letters, letters.argmax(axis=1), "A" * n, "A" * n, (5,) * n)


def test_questions_with_other_numbers_of_choices_are_compared_on_those_that_they_have():
    nan = float("nan")
    plain = answers([[0.0, 10.0, 5.0, nan, nan], [1.0, 2.0, 3.0, 4.0, 5.0]])
    shared = answers([[0.0, 10.0, 5.0, nan, nan], [1.0, 2.0, 3.0, 6.0, 5.0]])
    assert verified("shared path", plain, plain, "fp32")[0] == "ok"
    word, reason = verified("shared path", plain, shared, "fp32")
    assert (word, "1 flips" in reason, "within 0.4 of" in reason) == ("invalid", True, True)


@pytest.mark.parametrize(
    ("off", "word"), [(0.0, "ok"), (0.9e-3, "ok"), (1.1e-3, "invalid"), (1.0, "invalid")]
)
def test_the_shared_path_is_held_to_the_rounding_of_its_dtype(off, word):
    """fp32: 1e-4 of the question's largest letter logit, here 10."""
    plain = answers([[10.0, 1.0, 2.0, 3.0]] * 4)
    shared = answers([[10.0, 1.0, 2.0, 3.0 + off]] + [[10.0, 1.0, 2.0, 3.0]] * 3)
    found, reason = verified("shared path", plain, shared, "fp32")
    assert found == word
    assert "4 answers given again the plain way: 0 flips" in reason
