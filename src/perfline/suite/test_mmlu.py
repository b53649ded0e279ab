"""Does each engine still answer MMLU as well as published, and as well as before?

pytest -m accuracy --cases tiny
"""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.accuracy


def test_accuracy_is_the_published_one(line, engine_name):
    done = line.answer_all(engine_name)
    line.check(line.against_published(engine_name, done))


def test_answers_are_the_stored_ones(line, engine_name):
    done = line.answer_all(engine_name)
    line.check(line.against_baseline(engine_name, done))
