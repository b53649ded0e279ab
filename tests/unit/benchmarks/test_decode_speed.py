"""benchmarks/decode_speed.py: its turns, its ratios, and what it calls too much."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import decode_speed  # noqa: E402


def test_every_other_round_runs_backwards_and_each_way_is_timed_once_a_round():
    log = []
    ways = {way: lambda way=way: log.append(way) for way in ("a", "b", "c")}
    seconds = decode_speed.in_turns(ways, 3)
    assert "".join(log) == "abccbaabc"
    assert {way: len(each["wall_s"]) for way, each in seconds.items()} == {"a": 3, "b": 3, "c": 3}


@pytest.mark.parametrize(
    ("cost", "rounds", "word"),
    [(1.001, 40, "ok"), (1.05, 40, "exceeded"), (1.01, 40, "unsure"), (1.05, 3, "unsure")],
)
def test_whole_over_core_needs_its_whole_interval(cost, rounds, word):
    draw = np.random.default_rng(0)
    drift = np.linspace(1, 3, rounds)  # of the machine, which weighs on both
    core = drift * draw.lognormal(0, 0.002, rounds)
    whole = drift * draw.lognormal(0, 0.002, rounds) * cost
    found = decode_speed.with_word(decode_speed.ratio(list(core), list(whole)))
    assert found["word"] == word
    assert found["estimate"] == pytest.approx(1 / cost, abs=0.002)
    if rounds > 3:
        assert found["low"] < found["estimate"] < found["high"]
    else:
        assert "too few rounds" in decode_speed.shown(found)


@pytest.mark.parametrize(
    ("fault", "is_one"),
    [({}, False), ({"tokens_differ": ["bare eager"]}, True), ({"recompiles": 1}, True)],
)
def test_wrong_tokens_and_recompiles_fail(fault, is_one):
    word = {"eager": {"word": "ok"}, "inductor": {"word": "unsure"}}
    found = {"tokens_differ": [], "recompiles": 0, "whole_over_core": word, **fault}
    assert decode_speed.failed(found) is is_one
    found["whole_over_core"]["eager"]["word"] = "exceeded"
    assert decode_speed.failed(found)
