"""benchmarks/gate/accuracy.py: its rules, its rates, its damage, and what it has recorded."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from perfline.cases.case import GatesSpec, load_cases
from perfline.gates.accuracy import accuracy_baseline
from perfline.gates.statistics import clopper_pearson
from perfline.tasks.answers import Scored

sys.path.append(str(Path(__file__).parents[3] / "benchmarks" / "gate"))
import _accuracy_rates as rates
import _accuracy_tables as tables
import _damage
from _accuracy_rules import GATE, UNPAIRED, Counts, alarms, count, fixed_tolerance, gate_word
from _accuracy_rules import unpaired_z as z_rule

GATES = GatesSpec()
SCRIPT = Path(_damage.__file__).with_name("accuracy.py")


def script() -> Any:
    """accuracy.py, under a name that tests/accuracy cannot take."""
    spec = importlib.util.spec_from_file_location("gate_accuracy", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


accuracy = script()


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    """The committed answers and results."""
    return json.loads(accuracy.OUT.read_text(encoding="utf-8"))


# --- rules ------------------------------------------------------------------------------------


def test_a_comparison_is_counted_by_what_was_and_is_right():
    counts = count("AABBC", "ABABD", "AAAAA")
    assert counts == Counts(both_right=1, lost=1, gained=1, both_wrong=2)
    assert (counts.n, counts.drop_pp) == (5, 0.0)


@pytest.mark.parametrize(("lost", "alarm"), [(9, False), (10, False), (11, True)])
def test_a_fixed_tolerance_lets_a_drop_of_its_own_size_pass(lost, alarm):
    assert fixed_tolerance(1.0)(Counts(900 - lost, lost, 0, 100)) is alarm


def test_the_unpaired_z_test_agrees_with_the_normal_distribution():
    from scipy.stats import norm

    counts = Counts(both_right=600, lost=70, gained=20, both_wrong=110)
    before, after = 670 / 800, 620 / 800
    spread = math.sqrt((before * (1 - before) + after * (1 - after)) / 799)
    p = 2 * norm.sf((before - after) / spread)
    assert 0.0001 < p < 0.01
    assert z_rule(p * 1.001)(counts)
    assert not z_rule(p * 0.999)(counts)


def test_the_unpaired_z_test_takes_no_gain_for_an_alarm():
    assert not z_rule(0.01)(Counts(600, 0, 150, 50))
    assert z_rule(0.01)(Counts(600, 150, 0, 50))
    assert z_rule(0.01)(Counts(0, 100, 0, 0))


@given(st.lists(st.tuples(*[st.sampled_from("ABCD-")] * 2, st.sampled_from("ABCD")), min_size=1))
def test_the_gate_heeds_no_more_than_the_counts(rows):
    before, after, labels = ("".join(column) for column in zip(*rows, strict=True))
    ids = tuple(f"law/{index}" for index in range(len(rows)))
    asked = accuracy_baseline(
        "acc_val", Scored(ids, before, labels), Scored(ids, after, labels), GATES
    )
    counts = count(before, after, labels)
    assert gate_word(counts.n, counts.lost, counts.gained, GATES) == asked.word


# --- rates ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [200, 780])
def test_fair_flips_raise_no_more_alarms_than_the_gate_promises(n):
    for flips in range(45):
        level = sum(
            math.comb(flips, lost) * (gate_word(n, lost, flips - lost, GATES) == "regressed")
            for lost in range(flips + 1)
        )
        assert level / 2**flips <= GATES.accuracy_alpha


def test_exact_rates_are_those_of_all_numbers_of_losses(monkeypatch):
    monkeypatch.setattr(rates, "SIZES", (200,))
    for row in rates.exact_null(0.8, GATES):
        flips, expected = row["flips"], dict.fromkeys((GATE, *UNPAIRED, "passes"), 0.0)
        for lost in range(flips + 1):
            share = math.comb(flips, lost) / 2**flips
            counts = Counts(160 - lost, lost, flips - lost, 40 - flips + lost)
            for name, raised in alarms(counts, GATES).items():
                expected[name] += share * raised
            word = gate_word(200, lost, flips - lost, GATES)
            expected["passes"] += share * (word in ("ok", "improved"))
        assert row["rates"] == pytest.approx(expected, abs=1e-12)


def test_drawing_anew_keeps_the_drop_as_it_is_and_takes_it_from_the_null():
    counts = Counts(both_right=500, lost=200, gained=0, both_wrong=80)
    found = rates.resample(counts, 400, GATES, np.random.default_rng(1), draws=200)
    tally = {row["which"]: row["tally"] for row in found}
    assert tally["as it is"][GATE] == 200
    assert tally["null"][GATE] <= 8  # 1 % of 200 is 2; P(more than 8) < 0.001
    # About 103 flips, so lost minus gained has sd 10.1: above 4 with P = 0.33, 65 +- 3 x 6.6.
    assert 45 <= tally["null"]["> 1.0 pp"] <= 85
    for row in tally.values():
        assert row[GATE] + row["unsure"] + row["passes"] == 200


def test_an_arm_that_lost_nothing_has_no_power_to_be_found():
    counts = Counts(both_right=500, lost=3, gained=3, both_wrong=274)
    found = rates.resample(counts, 200, GATES, np.random.default_rng(1), draws=20)
    assert [row["which"] for row in found] == ["null"]


def test_rates_are_pooled_over_the_arms_of_a_bin():
    names = (GATE, *UNPAIRED, "unsure", "passes")

    def row(drop_pp: float, alarms: int, which: str = "as it is") -> dict[str, Any]:
        tally = dict.fromkeys(names, alarms)
        return {"n": 200, "draws": 10, "drop_pp": drop_pp, "which": which, "tally": tally}

    rows = [row(0.5, 1), row(0.8, 3), row(1.0, 5), row(0.9, 10, "null")]
    low, high = rates.pooled(rows, "drop_pp", (0.0, 0.5, 1.0), "as it is")
    assert (low["arms"], low["rates"][GATE]["fraction"]) == (1, 0.1)
    assert (high["arms"], high["draws"], high["mean_drop_pp"]) == (2, 20, 0.9)
    bounds = (high["rates"][GATE]["low"], high["rates"][GATE]["high"])
    assert bounds == clopper_pearson(8, 20, 0.95)


def test_models_of_one_draw_are_paired_in_both_orders_and_once_apart():
    labels = "A" * 100
    arms = [
        {
            "family": "noise",
            "name": f"noise, seed {seed}",
            "answers": "B" * lost + "A" * (100 - lost),
        }
        for seed, lost in enumerate((0, 20, 0, 0))
    ]
    (found,) = rates.exchangeable(arms, labels, GATES)
    assert (found["ordered_pairs"], found["disjoint_pairs"]) == (12, 2)
    assert (found["ordered_alarms"][GATE], found["disjoint_alarms"][GATE]) == (3, 1)
    assert found["mean_flips"] == 10.0  # 6 of 12 pairs hold the bad one


# --- damage -----------------------------------------------------------------------------------


def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).requires_grad_(False).eval()


@pytest.mark.parametrize("per_channel", [True, False])
def test_rounded_weights_lie_on_their_grid_and_embeddings_stay(per_channel):
    whole, damaged = model(), model()
    _damage.rounded(damaged, bits=4, per_channel=per_channel)
    before = whole.model.layers[0].mlp.up_proj.weight
    after = damaged.model.layers[0].mlp.up_proj.weight
    scale = (before.abs().amax(1, keepdim=True) if per_channel else before.abs().max()) / 7
    steps = after / scale
    assert torch.allclose(steps, steps.round(), atol=1e-5)
    assert float(((after - before).abs() / scale).max()) <= 0.5001
    assert torch.equal(damaged.model.embed_tokens.weight, whole.model.embed_tokens.weight)


def test_noise_is_as_large_as_asked_and_the_same_for_a_seed():
    whole, damaged, again = model(), model(), model()
    _damage.noisy(damaged, percent=8, seed=3, layer=1)
    _damage.noisy(again, percent=8, seed=3, layer=1)
    before, after = (m.model.layers[1].mlp.up_proj.weight for m in (whole, damaged))
    assert float((after - before).std() / before.std()) == pytest.approx(0.08, rel=0.1)
    assert torch.equal(after, again.model.layers[1].mlp.up_proj.weight)
    untouched = [m.model.layers[0].mlp.up_proj.weight for m in (whole, damaged)]
    assert torch.equal(*untouched)


def test_rescaled_weights_are_other_numbers_and_the_same_function():
    whole, rescaled = model().double(), model().double()
    _damage.rescaled(rescaled, seed=0)
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        expected, found = whole(ids).logits, rescaled(ids).logits
    assert torch.allclose(found, expected, atol=1e-9)
    for name, weight in rescaled.named_parameters():
        assert torch.equal(weight, whole.get_parameter(name)) is (
            "embed" in name or name == "model.norm.weight"
        ), name


def test_rescaled_weights_are_rounded_but_not_the_frequencies():
    rescaled = model()
    _damage.rescaled(rescaled, seed=0, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in rescaled.parameters()} == {torch.bfloat16}
    assert rescaled.model.rotary_emb.inv_freq.dtype == torch.float32


def test_every_arm_is_compared_with_a_reference_that_ran_before():
    references, names = set(), []
    for arm in _damage.arms():
        if arm.family == "reference":
            assert arm.against in {arm.name, _damage.UNDAMAGED}
            references.add(arm.name)
        assert arm.against in references
        names.append(arm.name)
    assert len(set(names)) == len(names)


def test_a_cut_shot_loses_the_token_before_the_test_question():
    lab = _damage.Lab(load_cases(["tiny"])[0])
    tokenizer = lab.load().tokenizer
    for prompt in lab.prompts()[::260]:
        start = lab.question_start(prompt)
        assert tokenizer.decode(prompt.ids[start - 1 : start]) == "\n"
        assert tokenizer.decode(prompt.ids[start:]).endswith("\nAnswer:")
        assert len(_damage.shot_cut(lab, prompt)) == len(prompt.ids) - 1


# --- what was recorded ------------------------------------------------------------------------


def test_the_page_shows_the_recorded_tables(recorded):
    page = accuracy.PAGE.read_text(encoding="utf-8")
    assert page.partition(accuracy.BEGIN)[2].partition(accuracy.END)[0].strip() == (
        tables.markdown(recorded).strip()
    )


def test_the_recorded_words_are_the_gate_s_of_today(recorded):
    (case,) = load_cases(["tiny"])
    given = {arm["name"]: arm["answers"] for arm in recorded["arms"]}
    for arm in recorded["arms"]:
        counts = count(given[arm["against"]], arm["answers"], recorded["labels"])
        word = gate_word(counts.n, counts.lost, counts.gained, case.gates)
        assert word == arm["verdict"], arm["name"]


def test_json_takes_a_line_for_every_arm(recorded):
    text = accuracy.as_json(recorded)
    assert json.loads(text) == recorded
    assert sum('"answers":' in line for line in text.splitlines()) == len(recorded["arms"])


def test_no_damage_raised_no_alarm(recorded):
    arms = [arm for arm in recorded["results"]["arms"] if arm["family"] == "no damage"]
    assert len(arms) == 8
    assert {arm["verdict"] for arm in arms} == {"ok"}
    assert not any(any(arm["alarms"].values()) for arm in arms)


def test_every_drop_of_five_points_was_seen(recorded):
    large = [arm for arm in recorded["results"]["arms"] if arm["drop_pp"] >= 5]
    assert len(large) >= 8
    assert {arm["verdict"] for arm in large} == {"regressed"}


def test_no_arm_above_the_margin_was_called_ok(recorded):
    passed = [
        arm["drop_pp"]
        for arm in recorded["results"]["arms"]
        if arm["verdict"] in ("ok", "improved")
    ]
    assert max(passed) < 0.48  # the regression margin, scaled to 780 questions


def test_the_recorded_false_alarms_are_at_most_one_per_cent(recorded):
    exact = recorded["results"]["exact_null"]
    assert max(row["rates"][GATE] for row in exact) <= 0.01
    assert max(row["rates"]["> 0.5 pp"] for row in exact) > 0.2
    assert max(row["rates"][GATE]["fraction"] for row in recorded["results"]["null"]) <= 0.01
