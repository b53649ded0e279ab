"""The gate on what a model computes in fp32: what is let pass, what is not, and where to look."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import fakes
from perfline.gates import fidelity as gate
from perfline.measure import fidelity
from perfline.tasks.reference import PromptReference

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
        assert found.measured == (kl if kl == kl else None)


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


# --- by hand: prompts of two tokens, and how far apart they are


def prompt(*rows, layers="", tokens="t"):
    """A prompt whose n-th position has this log-odds of its first of two tokens."""
    at = {}
    for position, odds in enumerate(rows):
        first = -np.log1p(np.exp(-odds))
        at[str(position)] = f"0:{first} 1:{first - odds}"
    return PromptReference(tokens, at, layers)


def against(stored, now, limit=1e-6, layers_off=(), changed=""):
    """``stored`` and ``now`` by name: log-odds by position."""
    logits = {
        name: np.array([[odds, 0.0] for odds in rows], np.float64) for name, rows in now.items()
    }
    held = {name: each if hasattr(each, "at") else prompt(*each) for name, each in stored.items()}
    references = {name: prompt(*rows) for name, rows in now.items()}
    return gate.against_reference(held, references, logits, limit, layers_off, "x.json", changed)


def test_top_1_agreement_is_told_ties_apart():
    before = {"law/0": [1.0, 2.0], "law/1": [4e-4, 2.0]}
    other = against(before, {"law/0": [-1.0, 2.5], "law/1": [-0.5, 2.0]})
    assert "another token is the likeliest at 2 of 4 positions, 1 of them ties;" in other.reason
    same = against(before, {"law/0": [1.5, 2.5], "law/1": [0.5, 2.0]})
    assert "the likeliest token is the same at all 4 positions;" in same.reason


def test_what_lies_apart_is_shown_beside_what_is_let_pass():
    same = against({"law/0": [0.0, 1.0]}, {"law/0": [0.0, 1.0]}, changed="weights too")
    assert (same.word, same.metric, same.gate, same.unit) == ("ok", "fidelity", "baseline", "nats")
    assert (same.baseline, same.limit) == (0.0, "1.0e-06 nats")
    assert same.measured == pytest.approx(0, abs=1e-12)
    assert same.reason.endswith("in the mean of 1 prompts; weights too")
    # KL(1/2, 1/2 || p, 1 - p) = -log(4 p (1 - p)) / 2, with p = 1 / (1 + 1/e)
    apart = against({"law/0": [0.0, 0.0]}, {"law/0": [1.0, 0.0]})
    assert apart.word == "regressed"
    assert apart.measured == pytest.approx(0.1201, abs=1e-4)
    assert "KL 6.0e-02 in the mean of 1 prompts; " in apart.reason
    assert "; in all prompts alike" in apart.reason
    exactly = against({"law/0": [0.0]}, {"law/0": [1.0]}, limit=apart.measured)
    assert exactly.word == "ok"
    assert exactly.reason == (
        "computes what it did: KL at most 1.2e-01, 1.2e-01 in the mean of 1 prompts"
    )


def test_prompts_that_are_not_stored_and_other_positions_are_told():
    some = against({"law/0": [0.0]}, {"law/0": [0.0], "law/1": [0.0]})
    assert (some.word, some.measured, some.baseline) == ("missing", None, None)
    assert some.reason == "x.json holds the fp32 numbers of 1 of 2 prompts: accept a run anew"
    assert against({}, {"law/0": [0.0]}).reason == "no stored fp32 numbers in x.json"
    moved = against({"law/0": [0.0, 0.0]}, {"law/0": [0.0]})
    assert (moved.word, moved.limit) == ("incomparable", "1.0e-06 nats")
    assert moved.reason == "x.json holds other positions of law/0: accept a run anew"
    for token in (2, 7):  # of two: 0 and 1
        beyond = {"law/0": PromptReference("t", {"0": f"0:-0.6931 {token}:-0.6931"})}
        gone = against(beyond, {"law/0": [0.0]})
        assert f"of token {token}, and the model has 2 tokens" in gone.reason
        assert (gone.word, gone.measured, gone.baseline) == ("incomparable", None, None)


@pytest.mark.parametrize(
    ("before", "after", "ties"),
    [
        ("0:-0.1 *:-2.35", "1:-0.1 0:-2.35", ""),  # what is not told is no tie
        ("0:-0.1 1:-2.35", "1:-0.1 *:-2.35", ""),
        ("0:-0.6931 1:-0.6935 *:-9", "1:-0.1 0:-2.35", ", 1 of them ties"),
        ("0:-0.1 1:-2.35", "1:-0.6931 0:-0.6935 *:-9", ", 1 of them ties"),
    ],
)
def test_another_likeliest_token_is_a_tie_where_either_side_has_both_alike(before, after, ties):
    stored, now = ({"law/0": PromptReference("t", {"0": each})} for each in (before, after))
    apart = {"law/0": np.array([1.0])}
    reason = gate.by_distances(stored, now, apart, 2, 1e-6, (), "x.json").reason
    assert f"; another token is the likeliest at 1 of 1 positions{ties}; in all" in reason
    alike = gate.by_distances(stored, now, apart, 2, 1.0, (), "x.json").reason
    assert alike.endswith(" in the mean of 1 prompts")


def test_of_a_model_cut_short_the_verdict_says_so():
    ok = judged(measured(), measured())
    assert gate.of_layers(ok, None) == ok
    assert gate.of_layers(ok, 4) == dataclasses.replace(
        ok, reason=f"{ok.reason}; of the first 4 layers at most (fidelity.layers)"
    )
    missing = against({}, {"law/0": [0.0]})
    assert gate.of_layers(missing, 4) == missing


@pytest.mark.parametrize(
    ("off", "said"),
    [
        ([1.0, 1.0, 1.0, 1.0], "in all prompts alike"),
        ([0.0, 0.0, 1.0, 0.0], "nearly all of it in 1 of 4 prompts, first law/2"),
        ([0.0, 0.0, 1.0], "in all prompts alike"),  # of three, one is no pattern
        ([1.0, 1.0] + [0.0] * 6, "nearly all of it in 2 of 8 prompts, first law/1"),
        ([1.0, 1.0, 1.0] + [0.0] * 5, "in all prompts alike"),
    ],
)
def test_few_prompts_are_at_most_a_quarter_with_nine_tenths_of_it(off, said):
    stored = {f"law/{i}": [0.0] for i in range(len(off))}
    verdict = against(stored, {f"law/{i}": [each] for i, each in enumerate(off)})
    assert said in verdict.reason


@pytest.mark.parametrize(
    ("off", "said"),
    [
        ([0.1, 0.1, 0.1], "it does not grow with the position"),
        ([0.1, 0.1, 0.19], "it does not grow with the position"),  # 3.6 times the KL
        ([0.1, 0.1, 0.21], "it grows with the position"),  # 4.4 times
        ([0.1, 0.0, 0.0, 0.0, 0.0, 0.1], "it does not grow with the position"),
        ([0.1, 0.1, 0.1, 0.3], "it grows with the position"),
        ([0.1, 0.3], ""),  # of two positions none can tell
    ],
)
def test_growth_is_the_last_third_against_the_first(off, said):
    verdict = against({"law/0": [0.0] * len(off)}, {"law/0": off})
    assert said in verdict.reason
    assert ("with the position" in verdict.reason) is bool(said)
    assert said or verdict.reason.endswith("in all prompts alike")


def test_growth_is_that_of_most_prompts():
    """One position can be a thousand times as far off as all others together."""
    flat, steep = [0.1, 0.1, 0.1], [0.1, 0.1, 3.0]
    for off, said in (([steep, flat, flat], "does not grow"), ([steep, steep, flat], "it grows")):
        stored = {f"law/{i}": [0.0] * 3 for i in range(3)}
        assert said in against(stored, {f"law/{i}": each for i, each in enumerate(off)}).reason


def layered(before, after, layers_off):
    stored, now = prompt(0.0, layers=before), prompt(1.0, layers=after)
    logits = {"law/0": np.array([[1.0, 0.0]])}
    return gate.against_reference(
        {"law/0": stored}, {"law/0": now}, logits, 1e-6, layers_off, "x.json"
    ).reason


@pytest.mark.parametrize(
    ("before", "after", "off", "said"),
    [
        ("1 2 3", "1 2.1 3.1", [1e-3] * 3, "hidden states part first in layer 1 of 0 to 2"),
        ("1 2 3", "1 2.02 3.04", [1e-3] * 3, "hidden states part first in layer 2 of 0 to 2"),
        ("-1 2", "-1.02 2.02", [1e-3] * 2, "hidden states of all layers are the same: look at the"),
        ("1 2", "1 2", [1e-3] * 3, "the model has another number of layers"),
        ("1 2", "1 2 3", [1e-3] * 2, "the model has another number of layers"),
        ("0", "1e-44", [0.0], "hidden states of all layers are the same"),
        # Nothing moved: then some of what fp32 can tell, 30 x 2^-23 of 1, is let pass.
        ("1", "1.000003", [0.0], "hidden states of all layers are the same"),
        ("1", "1.000004", [0.0], "hidden states part first in layer 0 of 0 to 0"),
    ],
)
def test_the_first_layer_that_parts_by_more_than_rounding_is_named(before, after, off, said):
    assert said in layered(before, after, off)


@pytest.mark.parametrize(
    ("before", "after", "off"), [("", "1", [0.1]), ("1", "", [0.1]), ("1", "9", [])]
)
def test_without_layers_none_is_named(before, after, off):
    assert layered(before, after, off).endswith("in all prompts alike")


def test_ways_are_told_with_what_they_were_held_against():
    ok = gate.between_ways({"eager shared": 1e-9}, VARIED, 1e-6, {})
    assert (ok.measured, ok.limit, ok.unit, ok.baseline) == (1e-9, "4.0e-09 nats", "nats", 0.0)
    assert ok.reason == (
        "the same model by every way (eager shared 1.0e-09; re-ordered arithmetic: attention "
        "4.0e-12, batch 0.0e+00, rounding 2.0e-12)"
    )
    lacking = gate.between_ways({}, VARIED, 1e-6, {"x": "no", "y": "neither"})
    assert lacking.reason.endswith("; no x: no; no y: neither")
    alone = gate.between_ways({}, VARIED, 1e-6, {})
    assert (alone.measured, "(eager alone was run; re-ordered" in alone.reason) == (0.0, True)
    both = gate.between_ways({"a": 1e-3, "b": 2e-3, "c": 0.0}, VARIED, 1e-6, {})
    assert (both.word, both.measured) == ("regressed", 2e-3)
    assert both.reason.startswith("a and b computes something else than the eager model (a 1.0e-03")
    broken = gate.between_ways({"a": 1e-3}, {"batch": 2e-6, "rounding": 1e-6}, 1e-6, {})
    assert (broken.measured, broken.limit) == (2e-6, "1.0e-06 nats")
    assert broken.reason.startswith(
        "another batch gives other numbers than rounding explains (batc"
    )
    exactly = gate.between_ways({"a": 1e-6}, {"batch": 1e-6}, 1e-6, {})
    assert exactly.word == "ok"


def test_a_way_that_gives_way_is_told_where_it_ran_before():
    ok = judged(measured(), measured())
    why = {"eager shared": "logits are off by 0.3 after a prefix"}
    gone = gate.with_ways(ok, ["eager shared", "inductor plain"], why)
    assert gone.word == "regressed"
    assert gone.reason.startswith(
        "eager shared gives way: logits are off by 0.3 after a prefix (it"
    )
    assert gate.with_ways(ok, ["inductor plain"], why) == ok  # it has never run
    assert gate.with_ways(ok, [""], {}) == ok


def test_a_way_that_parts_says_where():
    def told(rows):
        way = {"inductor plain": {f"law/{i}": np.array(row) for i, row in enumerate(rows)}}
        found = gate.between_ways({"inductor plain": 1e-3}, VARIED, 1e-6, {}, way)
        return found.reason.partition("rounding 2.0e-12)")[2]

    grows = "; in all prompts alike; it grows with the position (look at rotary embedding, mask and"
    assert told([[0.0, 1e-5, 1e-3]] * 4) == f"{grows} cache)"
    one = [[1e-3] * 3, *[[0.0] * 3] * 3]
    assert told(one) == (
        "; nearly all of it in 1 of 4 prompts, first law/0; it does not grow with the position"
    )
    assert told([[1e-3]] * 4) == "; in all prompts alike"  # shared: of one position each
    found = measured(off={"inductor plain": 1e-3})
    ways = found.ways, found.variations, found.most, found.without, found.apart
    assert "; in all prompts alike; it does not" in gate.between_ways(*ways).reason


def squares(ratio, seed=0, prompts=16, spread=0.3):
    """Mean squared errors by prompt, ``ratio`` times 0.04 nats in the root."""
    sizes = np.random.default_rng(seed).lognormal(0, spread, prompts)
    return (0.04 * ratio) ** 2 * sizes / sizes.mean()


def drift(ratio, harmless=(1.0, 1.0), **how):
    rounded = squares(1.0, 1, **how)
    all_of = [squares(each, 2 + i, **how) for i, each in enumerate(harmless)]
    return gate.drift("drift_val", squares(ratio, 7, **how), all_of, rounded)


@pytest.mark.parametrize(
    ("ratio", "word"), [(0.7, "ok"), (1.0, "ok"), (1.2, "ok"), (1.3, "unsure"), (2.0, "regressed")]
)
def test_drift_is_held_to_what_rounding_costs(ratio, word):
    verdict = drift(ratio)
    assert (verdict.metric, verdict.gate, verdict.word) == ("drift_val", "paired", word)
    assert verdict.measured == pytest.approx(0.04 * ratio)
    assert verdict.baseline == pytest.approx(0.04)
    assert verdict.limit == "5.0e-02 nats"


def test_drift_says_in_which_prompts_it_sits():
    names = [f"law/{i}" for i in range(16)]
    every = gate.drift("drift_val", squares(2.0), [squares(1.0)], squares(1.0, 1), names=names)
    assert every.reason.endswith("kernel is broken; in all prompts alike")
    errors = squares(1.0)
    errors[:4] *= 30
    some = gate.drift("drift_val", errors, [squares(1.0)], squares(1.0, spread=0.0), names=names)
    assert some.word == "regressed"
    assert "; nearly all of it in 4 of 16 prompts, first law/" in some.reason
    beyond = [5.0] * 4 + [1.9] * 12  # times what rounding costs: those are above 1.25 squared, too
    every = gate.drift("drift_val", beyond, [[1.0] * 16], [1.0] * 16, names=names)
    assert every.reason.endswith("kernel is broken; in all prompts alike")


def test_harmless_variations_that_differ_loosen_it_to_a_point():
    assert drift(2.0, harmless=(1.0, 1.8)).word == "ok"
    assert drift(2.3, harmless=(1.0, 1.8)).word == "unsure"
    assert drift(5.0, harmless=(1.0, 50.0)).word == "regressed"


def test_a_fault_of_all_variations_alike_is_no_excuse():
    assert drift(2.0, harmless=(2.0, 2.0, 2.0)).word == "regressed"


@pytest.mark.parametrize(
    ("errors", "word"), [((4.115, 3 * 3.885), "regressed"), ((4.125, 3 * 3.875), "unsure")]
)
def test_two_prompts_prove_it_where_they_are_alike(errors, word):
    """2 exp(-31.82 log(a / b) / 4), by Student's t of one degree of freedom, is 1.25 at 1.06."""
    assert gate.drift("drift_val", errors, [(1.0, 3.0)], (1.0, 3.0)).word == word


@pytest.mark.filterwarnings("error")
def test_one_prompt_has_no_interval_and_proves_nothing():
    one = [1.0, *[0.0] * 15]
    assert gate.drift("drift_val", one, [squares(0.1)], squares(0.1)).word == "unsure"
    assert gate.drift("drift_val", squares(9.0), [one], one).word == "unsure"
    assert drift(2.0, prompts=1).word == "unsure"
    assert drift(1.0, prompts=1).word == "ok"


def test_an_error_that_sits_in_one_prompt_is_not_proven():
    errors = squares(1.0)
    errors[3] *= 200
    assert gate.drift("drift_val", errors, [squares(1.0)], squares(1.0)).word == "unsure"


@pytest.mark.parametrize("broken", ["rounded", "harmless"])
def test_a_dtype_that_changes_nothing_was_not_measured(broken):
    none = [0.0] * 16
    given = ([squares(1.0)], none) if broken == "rounded" else ([none], squares(1.0))
    found = gate.drift("drift_val", squares(1.0), *given)
    assert (found.metric, found.word, found.gate) == ("drift_val", "invalid", "paired")
    assert found.reason == (
        "rounding to the case's dtype changes no number: its error cannot be told"
    )


def test_an_engine_without_any_error_is_ok():
    assert gate.drift("drift_infer", [0.0] * 16, [squares(1.0)], squares(1.0)).word == "ok"


def test_drift_s_false_alarms_are_rare_at_the_limit_itself():
    """1000 sessions whose true ratio is the limit: 1 in 70 is regressed; below it, fewer."""
    rng = np.random.default_rng(3)
    red = 0
    for _ in range(1000):
        sizes = rng.lognormal(0, 0.5, 16)
        errors, rounded = sizes * rng.lognormal(0, 0.3, (2, 16))
        verdict = gate.drift("drift_val", 1.25**2 * errors, [rounded, rounded], rounded)
        red += verdict.word == "regressed"
    assert red <= 20
