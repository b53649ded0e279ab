"""benchmarks/gate: how histories are drawn for the searches, and what the rules make of them."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from perfline import jsonfile
from perfline.errors import RecordError

sys.path.append(str(Path(__file__).parents[3] / "benchmarks" / "gate"))
import _recording
import bisect_replay
from bisect_replay import COMMITS, NAMES, History, Launches

GATE = Path(bisect_replay.__file__).parent
RECORDING = _recording.read(GATE / "data" / "tiny-cpu-2-cores.json")


@pytest.mark.parametrize("kind", bisect_replay.KINDS)
def test_a_history_ends_as_much_slower_as_it_says(kind: str):
    for seed in range(50):
        history = History.drawn(kind, 0.05, np.random.default_rng(seed))
        at = [history.effects[name] for name in NAMES]
        whole = math.log1p(0.05) * (2 if kind == "two" else 1)
        assert at[0] == 0.0
        assert at[-1] == pytest.approx(whole)
        known = [(n, value) for n, value in enumerate(at) if value is not None]
        rises = {NAMES[b] for (_, x), (b, y) in itertools.pairwise(known) if y > x + 1e-9}
        assert rises == history.guilty or None in at
        assert (None in at) == (kind == "skips")


def test_without_a_change_nobody_is_guilty():
    history = History.drawn("plain", 0.0, np.random.default_rng(1))
    assert set(history.effects.values()) == {0.0}
    assert not history.right((NAMES[3],))


def test_an_answer_is_right_with_what_does_not_build_before_it():
    effects = dict.fromkeys(NAMES, 0.0) | {"c4": None}
    history = History(effects, frozenset({"c5"}))
    assert history.right(("c5",))
    assert history.right(("c4", "c5"))
    assert not history.right(("c3", "c5"))
    assert not history.right(("c6",))


@pytest.mark.parametrize("rule", [bisect_replay.one_run, bisect_replay.golden_section])
def test_without_noise_every_rule_finds_a_large_step(rule):
    effects = {name: 1.0 * (number >= 20) for number, name in enumerate(NAMES)}
    launches = Launches(RECORDING, effects, np.random.default_rng(0))
    launches.all = np.zeros(1)
    assert rule(launches) == ("c20",)
    assert len(launches.taken) < COMMITS / 2


def test_the_plan_itself_is_replayed():
    tally = bisect_replay.run(bisect_replay.RULES[0], RECORDING, "plain", 0.05, 5, 48)
    assert (tally.runs, tally.right, tally.wrong) == (5, 5, 0)


def test_the_stored_rates_keep_what_is_promised_and_are_those_of_the_page():
    rows = jsonfile.read(GATE / "results" / "bisect.json", 1, RecordError, "").data["rows"]
    ours = {
        (row["slow-down"], row["history"]): row
        for row in rows
        if row["rule"] == bisect_replay.RULES[0]
    }
    assert ours["5 %", "all"]["right"] >= 95
    assert ours["3 %", "all"]["right"] >= 90
    assert ours["0 %", "no change"]["innocent named"] <= 1
    assert {row["how"] for row in rows} == {"replayed"}
    page = (GATE / "SEARCH.md").read_text()
    shown = [line for line in page.splitlines() if line.endswith("| replayed |")]
    assert [line.split("|")[5].strip() for line in shown] == [
        "" if row["right"] is None else f"{row['right']:g}" for row in rows
    ]
