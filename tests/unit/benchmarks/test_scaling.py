"""benchmarks/scaling.py: its cost model, its simulation, and what was measured of both."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfline.engines import prefix_plan
from perfline.tasks.prompts import Prompt

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import _scaling_cost as model  # noqa: E402
import _scaling_measure as measure  # noqa: E402
import scaling  # noqa: E402


def asked(*sizes: int) -> list[Prompt]:
    """A subject of each size: 40 tokens in common, 60 of each prompt's own."""
    draw, found = np.random.default_rng(1), []
    for subject, size in enumerate(sizes):
        for k in range(size):
            ids = np.append(np.full(40, subject), draw.integers(9999, size=60))
            found.append(Prompt(f"s{subject}/{k}", f"s{subject}", ids, 5, "A"))
    return found


def works(n: int) -> list[model.Work]:
    """Units of unlike make-up, so that every term can be told from the others."""
    draw = np.random.default_rng(2)
    return [
        model.Work(
            tokens=int(draw.integers(500, 50_000)),
            forwards=int(draw.integers(2, 60)),
            pairs=int(draw.integers(10**5, 10**8)),
        )
        for _ in range(n)
    ]


def test_the_work_of_a_plan_is_that_of_its_forwards():
    prompts = asked(3)  # one node of 40 tokens, three suffixes of 60 behind it
    plan = prefix_plan.plan(prompts, prefix_plan.Limits(forward_cost_tokens=16))
    found = model.work(plan, least_rows=1)
    assert found == model.Work(tokens=40 + 3 * 60, forwards=2, pairs=40 * 40 + 3 * 60 * 100)
    two_rows = prefix_plan.plan(prompts, prefix_plan.Limits(forward_cost_tokens=16, least_rows=2))
    assert model.work(two_rows, least_rows=2) == replace(
        found, tokens=2 * 40 + 3 * 60, pairs=2 * 40 * 40 + 3 * 60 * 100
    )


cost_of = st.floats(0.2, 5)  # so that no term is drowned by the others


@settings(max_examples=8)
@given(cost_of, cost_of, cost_of, cost_of)
def test_a_fit_finds_what_units_cost(token, forward, pair, unit):
    terms = {
        "tokens": token * 1e-4,
        "forwards": forward * 5e-2,
        "pairs": pair * 2e-8,
        "units": unit * 0.5,
    }
    units = works(30)
    cost = model.Cost(terms)
    found = model.fit(units, [cost.seconds(each) for each in units])
    assert found == pytest.approx(terms, rel=1e-6)


def test_a_term_that_explains_nothing_is_left_out_and_noise_makes_none_negative():
    units, noise = works(40), np.random.default_rng(3).normal(1, 0.02, 40)
    cost = model.Cost({"tokens": 1e-4, "pairs": 2e-8})
    seconds = [cost.seconds(each) * factor for each, factor in zip(units, noise, strict=True)]
    found = model.fit(units, seconds)
    assert set(found) == {"tokens", "pairs"}
    assert found == pytest.approx(cost.terms, rel=0.05)
    assert 0.01 < model.left_out_error(units, seconds, list(found)) < 0.04


def test_the_next_unit_goes_to_whoever_is_free_first():
    assert model.last_ends([7, 6, 5, 2], 2) == 11  # 6 + 5 beside 7 + 2
    assert model.last_ends([10], 4) == 10


@settings(max_examples=50)
@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=30), st.integers(2, 9))
def test_more_ranks_end_between_an_even_share_and_alone(seconds, ranks):
    alone = model.last_ends(seconds, 1)
    assert alone == pytest.approx(sum(seconds))
    together = model.last_ends(sorted(seconds, reverse=True), ranks)
    least = max(max(seconds), sum(seconds) / ranks)
    assert least <= together * (1 + 1e-9)
    assert together <= 2 * least * (1 + 1e-9)  # Graham's bound for any order


def rows(text: str) -> list[list[float]]:
    return [[float(cell) for cell in line.split()] for line in text.splitlines()[2:]]


def test_cutting_is_between_whole_subjects_and_the_ideal():
    found = rows(scaling.table(asked(400, 40, 40), model.Cost(), (1, 2, 4)))
    assert [row[0] for row in found] == [1, 2, 4]
    for _, _, tokens, whole_s, _, split_s, efficiency, ideal_s, ideal in found:
        assert tokens >= 1
        assert ideal_s <= split_s <= whole_s
        assert efficiency <= ideal <= 1
    assert found[0][4] == found[0][6] == found[0][8] == 1


def test_start_cutting_and_tail_do_not_shrink_with_ranks():
    prompts = asked(64, 64)
    bare = rows(scaling.table(prompts, model.Cost(), (1, 2)))
    cost = model.Cost(start_s=10, cut_s=0.5, tail_s=3)
    slow = rows(scaling.table(prompts, cost, (1, 2)))
    assert slow[0][7] - bare[0][7] == pytest.approx(13, abs=0.11)  # one rank cuts nothing
    assert slow[1][7] - bare[1][7] == pytest.approx(13 + 0.5 * 128, abs=0.11)


def test_a_fitted_model_is_read_and_anything_else_refused(tmp_path: Path):
    path = tmp_path / "scaling.json"
    cost = model.Cost({"tokens": 1e-4, "units": 0.1}, start_s=60.0)
    path.write_text(json.dumps({"model": asdict(cost)}))
    assert scaling.fitted(path) == cost
    path.write_text("{}")
    with pytest.raises(SystemExit, match="no fitted model"):
        scaling.fitted(path)


def test_timed_questions_are_none_of_those_asked(tmp_path: Path):
    mmlu, out = tmp_path / "mmlu", tmp_path / "out"
    out.mkdir()
    for split, n in (("dev", 5), ("test", 100)):
        (mmlu / split).mkdir(parents=True)
        for subject in ("biology", "law"):
            cells = "".join(f'"{subject} ""{k}""\nwhy?",1,2,3,4,A\n' for k in range(n))
            (mmlu / split / f"{subject}_{split}.csv").write_text(cells)
    measure.lay_out(mmlu, out, every=6)
    below = "tiny_mmlu/mmlu_dataset/data/test"
    halves = [measure.read_rows(out / half / below / "biology_test.csv") for half in measure.HALVES]
    whole = measure.read_rows(mmlu / "test" / "biology_test.csv")
    assert halves == [whole[:17], whole[17 : 17 + 64]]
    assert not (out / "calibration" / below / "law_test.csv").exists()  # every second subject
    assert (out / "asked" / below / "law_test.csv").exists()
