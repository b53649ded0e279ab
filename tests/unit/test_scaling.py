from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from perfline.mmlu import Prompt

FILE = Path(__file__).parents[2] / "benchmarks" / "scaling.py"


@pytest.fixture(scope="module")
def scaling():
    spec = importlib.util.spec_from_file_location("scaling", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["scaling"]


def test_the_next_unit_goes_to_whoever_is_free_first(scaling):
    speed = scaling.Speed(tokens_per_s=10.0, start_s=2.0, tail_s=0.5)
    assert scaling.seconds([70, 60, 50, 20], 2, speed) == 2.0 + 11.0 + 0.5  # 60 + 50 beside 70 + 20
    assert scaling.seconds([100], 4, speed) == 12.5


def test_cutting_is_between_whole_subjects_and_the_ideal(scaling):
    draw = np.random.default_rng(1)
    asked = []
    for subject, size in enumerate((400, 40, 40)):
        for k in range(size):
            ids = np.append(np.full(40, subject), draw.integers(9999, size=60))
            asked.append(Prompt(f"s{subject}/{k}", f"s{subject}", ids, 5, "A"))
    text = scaling.table(asked, scaling.Speed(), (1, 2, 4))
    rows = [[float(cell) for cell in line.split()] for line in text.splitlines()[2:]]
    assert [row[0] for row in rows] == [1, 2, 4]
    for _, _, tokens, whole_s, _, split_s, efficiency, ideal_s, ideal in rows:
        assert tokens >= 1
        assert ideal_s <= split_s <= whole_s
        assert efficiency <= ideal <= 1
    assert rows[0][4] == rows[0][6] == rows[0][8] == 1
