"""benchmarks/gate: how histories are drawn for the searches, and what the rules make of them."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from perfline import jsonfile
from perfline.errors import RecordError

sys.path.append(str(Path(__file__).parents[3] / "benchmarks" / "gate"))
import _recording
import bisect_replay
import isolate_replay
from bisect_replay import COMMITS, NAMES, History, Launches
from isolate_replay import Drawn

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
    rows = stored("bisect.json", bisect_replay.BEGIN, bisect_replay.END)
    ours = {
        (row["slow-down"], row["history"]): row
        for row in rows
        if row["rule"] == bisect_replay.RULES[0]
    }
    assert ours["5 %", "all"]["right"] >= 95
    assert ours["3 %", "all"]["right"] >= 90
    assert ours["0 %", "no change"]["innocent named"] <= 1


def stored(name: str, begin: str, end: str) -> list[dict[str, Any]]:
    """The rows of a file of rates, which are those of the page."""
    rows = jsonfile.read(GATE / "results" / name, 1, RecordError, "").data["rows"]
    assert isinstance(rows, list)
    assert {row["how"] for row in rows} == {"replayed"}
    page = (GATE / "SEARCH.md").read_text().split(begin)[1].split(end)[0]
    shown = [line for line in page.splitlines() if line.endswith("| replayed |")]
    assert [line.split("|")[5].strip() for line in shown] == [
        "" if row["right"] is None else f"{row['right']:g}" for row in rows
    ]
    return rows


@pytest.mark.parametrize("kind", isolate_replay.KINDS)
def test_groups_cost_what_the_whole_does(kind: str):
    for seed in range(50):
        drawn = Drawn.of(kind, 0.05, np.random.default_rng(seed))
        drawn.mix("B", isolate_replay.GROUPS)
        assert drawn.effects["B"] == pytest.approx(math.log1p(0.05))
        for group in isolate_replay.GROUPS:
            drawn.mix(group.name, [group])
            cost = drawn.effects[group.name]
            if group.name == drawn.broken:
                assert cost is None
            else:
                assert (cost != 0.0) == (group.name in drawn.guilty and kind != "together")
        assert len(drawn.guilty) == (2 if kind in ("two", "together") else 1)


def test_a_merged_group_is_right_with_an_innocent_neighbour_in_it():
    drawn = Drawn(dict.fromkeys(isolate_replay.NAMES, 0.0), frozenset({"torch"}))
    assert drawn.right(["torch"])
    assert drawn.right(["numpy + torch"])
    assert drawn.wrong(["torch", "numpy"])
    assert not drawn.right(["torch", "numpy"])
    assert not drawn.right([])
    assert not drawn.wrong([])


@pytest.mark.parametrize("kind", isolate_replay.KINDS)
def test_the_plan_of_isolate_itself_is_replayed(kind: str):
    tally = isolate_replay.run(isolate_replay.RULES[0], RECORDING, kind, 0.05, 3, 48)
    assert (tally.runs, tally.right, tally.wrong) == (3, 3, 0)


def test_one_launch_a_group_names_what_is_far_slower():
    costs = dict.fromkeys(isolate_replay.NAMES, 0.0) | {"numpy": 9.0}
    drawn = Drawn(costs, frozenset({"numpy"}))
    assert "numpy" in isolate_replay.one_run(drawn, RECORDING, np.random.default_rng(0))


def test_the_stored_rates_of_isolate_keep_what_is_promised():
    rows = stored("isolate.json", isolate_replay.BEGIN, isolate_replay.END)
    ours = {
        (row["slow-down"], row["groups"]): row
        for row in rows
        if row["rule"] == isolate_replay.RULES[0]
    }
    assert ours["5 %", "all"]["right"] >= 95
    for row in ours.values():  # of 250 or 1000: no more than chance makes of 1 %
        named = round(row["innocent named"] * row["runs"] / 100)
        assert binomtest(named, row["runs"], 0.01, alternative="greater").pvalue > 0.01
    assert max(row["innocent named"] for row in ours.values() if row["runs"] == 1000) <= 1
