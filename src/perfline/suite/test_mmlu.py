"""Does each engine still answer as well as published, and does the model compute what it did?

pytest -m accuracy --cases tiny
"""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.accuracy


@pytest.mark.quick
@pytest.mark.fidelity
def test_fidelity(case):
    found = case.fidelity()
    case.check(case.judge_fidelity(found))


def test_accuracy_is_the_published_one(case, engine_name, task_name):
    done = case.answer_all(engine_name, task_name)
    case.check(case.against_published(engine_name, done))


def test_answers_are_the_stored_ones(case, engine_name, task_name):
    done = case.answer_all(engine_name, task_name)
    case.check(case.against_baseline(engine_name, done))
