"""Does each engine still answer MMLU as well as published, and as well as before?

pytest -m accuracy --cases tiny
"""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.accuracy


def test_accuracy_is_the_published_one(case, engine_name):
    done = case.answer_all(engine_name)
    case.check(case.against_published(engine_name, done))


def test_answers_are_the_stored_ones(case, engine_name):
    done = case.answer_all(engine_name)
    case.check(case.against_baseline(engine_name, done))
