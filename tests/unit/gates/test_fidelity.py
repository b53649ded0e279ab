"""The gate on what a model computes in fp32: what is let pass, what is not, and where to look."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import fakes
from perfline.gates import fidelity as gate
from perfline.measure import fidelity

PROMPTS = fakes.prompts(16)
VARIED = {"attention": 4e-12, "batch": 0.0, "rounding": 2e-12}


def measured(**script):
    return fidelity.measure(fakes.FakeLogits(**script), ("eager", "inductor"), PROMPTS)


def judged(before, after, changed=""):
    limit = gate.allowed(after.variations, after.most)
    return gate.against_reference(
        before.prompts, after.prompts, after.logits, limit, after.layers_off, "x.json", changed
    )


def test_a_thousand_times_what_reordering_does_is_let_pass_and_no_more():
    assert gate.allowed(VARIED, 1e-6) == pytest.approx(4e-9)
    assert gate.allowed(VARIED, 1e-10) == 1e-10
    for kl, word in ((3.9e-9, "ok"), (4.1e-9, "regressed"), (float("nan"), "regressed")):
        found = gate.between_ways({"inductor plain": kl}, VARIED, 1e-6, {})
        assert (found.metric, found.gate, found.word) == ("fidelity_ways", "paired", word)


def test_a_variation_that_rounding_cannot_explain_hides_nothing():
    found = gate.between_ways({"eager shared": 1e-13}, VARIED | {"attention": 1e-3}, 1e-6, {})
    assert found.word == "regressed"
    assert "another attention gives other numbers than rounding explains" in found.reason


def test_a_way_that_the_model_does_not_have_is_said():
    found = gate.between_ways({}, VARIED, 1e-6, {"eager shared": "it keeps a state"})
    assert found.word == "ok"
    assert "no eager shared: it keeps a state" in found.reason


@pytest.mark.parametrize("way", ["inductor plain", "eager shared", "inductor shared"])
def test_each_way_is_seen(way):
    found = measured(off={way: 1e-3})
    verdict = gate.between_ways(found.ways, found.variations, found.most, found.without)
    assert verdict.word == "regressed"
    assert verdict.reason.startswith(f"{way} computes something else")
    assert verdict.headline.startswith("fidelity_ways regressed ")
    fine = measured()
    assert gate.between_ways(fine.ways, fine.variations, fine.most, {}).word == "ok"


def test_the_same_model_is_ok_and_a_damaged_one_is_not():
    before = measured()
    assert judged(before, measured()).word == "ok"
    verdict = judged(before, measured(damage=1e-3, layer=2), "the weights changed, too")
    assert verdict.word == "regressed"
    assert "hidden states part first in layer 2 of 0 to 2" in verdict.reason
    assert "in all prompts alike" in verdict.reason
    assert verdict.reason.endswith("; the weights changed, too")


def test_one_prompt_that_is_off_is_named():
    before, after = measured(), measured()
    logits = dict(after.logits)
    logits["odd/3"] = logits["odd/3"] + np.linspace(0, 1, 30, dtype=np.float32)
    verdict = judged(before, dataclasses.replace(after, logits=logits))
    assert "nearly all of it in 4 of 16 prompts, first odd/3" in verdict.reason
    assert "hidden states of all layers are the same" in verdict.reason


def test_an_error_that_grows_along_the_prompt_is_told():
    before, after = measured(), measured()
    signs = np.random.default_rng(0).choice((-1, 1), size=(fidelity.POSITIONS, 30))
    ramp = np.linspace(0, 0.1, fidelity.POSITIONS)[:, None] * signs
    logits = {name: rows + ramp.astype(np.float32) for name, rows in after.logits.items()}
    verdict = judged(before, dataclasses.replace(after, logits=logits))
    assert "it grows with the position" in verdict.reason


def test_other_tokens_are_incomparable_and_none_stored_are_missing():
    before = measured()
    longer = [dataclasses.replace(p, ids=p.ids + 1) for p in PROMPTS]
    after = fidelity.measure(fakes.FakeLogits(), ("eager",), longer)
    verdict = judged(before, after)
    assert verdict.word == "incomparable"
    assert (
        "16 of 16 prompts have other tokens than those of x.json, such as even/0" in verdict.reason
    )
    empty = dataclasses.replace(before, prompts={})
    assert judged(empty, after).word == "missing"


def test_a_smaller_vocabulary_is_incomparable_and_says_so():
    before, after = measured(), measured()
    few = {name: rows[:, :12] for name, rows in after.logits.items()}
    verdict = judged(before, dataclasses.replace(after, logits=few))
    assert (verdict.word, verdict.measured) == ("incomparable", None)
    assert "and the model has 12 tokens: another vocabulary" in verdict.reason
