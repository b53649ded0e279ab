"""What the model computes in fp32, from a first run to a damage that no answer shows."""

from __future__ import annotations

import pytest


@pytest.fixture
def asked(suite):
    """The suite, whose case asks for fidelity as a case does by default."""
    return suite.default("fidelity: {prompts: 0}")


def stored(suite):
    return suite.baseline()["reference"]


def test_accepted_then_the_same_then_a_damage_that_no_answer_shows(asked):
    asked.run("-m", "accuracy").assert_outcomes(skipped=5)
    assert asked.words()["fidelity.baseline"] == "missing"
    assert asked.words()["fidelity_ways.paired"] == "ok"
    assert asked.update() == 0
    first = stored(asked)
    assert len(first["prompts"]) == 16
    assert first["reason"] == "test"

    result = asked.run("-m", "accuracy")
    result.assert_outcomes(passed=3, skipped=2)
    assert asked.words()["fidelity.baseline"] == "ok"
    result.stdout.fnmatch_lines(["  fidelity_ways  nats  0 * ok", "  fidelity       nats  0 * ok"])
    assert asked.update() == 0
    assert stored(asked) == first  # what is ok leaves it: small drifts would add up

    asked.script(numbers={"damage": 1e-3, "layer": 2})
    result = asked.run("-m", "accuracy")
    result.assert_outcomes(passed=2, failed=1, skipped=2)
    result.stdout.fnmatch_lines(["fidelity regressed *e-* nats (limit *e-* nats)"])
    assert "first in layer 2 of 0 to 2" in " ".join(result.stdout.str().split())
    assert asked.update() == 2
    assert asked.update("--accept-regression") == 0
    assert stored(asked)["prompts"] != first["prompts"]
    asked.run("-m", "fidelity").assert_outcomes(passed=1)


def test_alone_it_is_a_baseline_too(asked, capsys):
    asked.run("-m", "fidelity").assert_outcomes(skipped=1)
    assert asked.update() == 0
    assert "fp32 numbers of 16 prompts: new" in capsys.readouterr().out
    asked.run("-m", "fidelity").assert_outcomes(passed=1)
    asked.script(numbers={"damage": 1e-3})
    asked.run("-m", "fidelity").assert_outcomes(failed=1)  # and says where the baseline is from


def test_shared_prefixes_that_give_way_are_seen_where_they_ran_before(asked):
    asked.script(numbers={"unshared": "it keeps a state"})
    asked.run("-m", "fidelity")
    assert asked.update() == 0
    asked.run("-m", "fidelity").assert_outcomes(passed=1)  # there never were any
    asked.script()
    asked.run("-m", "fidelity").assert_outcomes(passed=1)
    (asked.root / "baselines" / "fake-cpu" / "fake.json").unlink()
    asked.run("-m", "fidelity")
    assert asked.update() == 0
    asked.script(numbers={"unshared": "off by 0.3 after a prefix"})
    result = asked.run("-m", "fidelity")
    result.assert_outcomes(failed=1)
    told = " ".join(result.stdout.str().split())
    assert "eager shared gives way: off by 0.3 after a prefix; inductor shared gives way" in told
    assert asked.update() == 2


def test_fewer_layers_are_not_held_against_all_of_them(asked):
    asked.run("-m", "fidelity")
    assert asked.update() == 0
    path = asked.root / "cases" / "fake.yaml"
    path.write_text(f"{path.read_text()}fidelity: {{layers: 2}}\n")
    result = asked.run("-m", "fidelity")
    result.assert_outcomes(failed=1)
    told = " ".join(result.stdout.str().split())
    assert "holds the numbers of all layers, and the first 2 were run (fidelity.layers)" in told
    assert asked.words()["fidelity.baseline"] == "incomparable"
    assert asked.update() == 0
    asked.run("-m", "fidelity").assert_outcomes(passed=1)
    verdicts = asked.record()["cases"]["fake"]["verdicts"]
    (found,) = (each for each in verdicts if each["metric"] == "fidelity")
    assert found["reason"].endswith("; of the first 2 layers at most (fidelity.layers)")


def test_prompts_that_are_not_stored_are_missing_until_they_are_accepted(asked, capsys):
    """All of 16 prompts but one are not among 32: that one alone must not make it green."""
    asked.run("-m", "fidelity")
    assert asked.update() == 0
    path = asked.root / "cases" / "fake.yaml"
    path.write_text(f"{path.read_text()}fidelity: {{prompts: 32}}\n")
    result = asked.run("-m", "fidelity")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*missing: *holds the fp32 numbers of * of 32 prompts*"])
    assert asked.update() == 0
    assert "fp32 numbers of 32 prompts: replaced" in capsys.readouterr().out
    asked.run("-m", "fidelity").assert_outcomes(passed=1)


def test_a_way_that_parts_is_never_accepted(asked, capsys):
    asked.script(numbers={"off": {"inductor shared": 1e-3}})
    result = asked.run("-m", "fidelity")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["fidelity_ways regressed *"])
    assert asked.update("--accept-regression") == 2
    assert "wrong answers are never a baseline" in capsys.readouterr().err


def test_an_engine_that_compiled_nothing_is_not_held_to_itself(asked):
    asked.script(numbers={"uncompiled": "torch.compile compiled nothing: X=1; unset it"})
    result = asked.run("-m", "fidelity")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*invalid: torch.compile compiled nothing: X=1; unset it*"])
    assert asked.words() == {"fidelity_ways.paired": "invalid"}
    assert asked.update() == 2


@pytest.mark.parametrize(
    ("off", "why"),
    [
        ({"inductor shared": 1e-3}, "that way computes other numbers than the eager engine"),
        ({}, "more is lost than rounding to the case's dtype costs"),
    ],
)
def test_what_comes_next_is_no_question_about_answers(asked, off, why):
    path = asked.root / "cases" / "fake.yaml"
    path.write_text(path.read_text().replace("precision: fp32", "precision: bf16"))
    drift = 0.02 if off else 0.06
    asked.script(numbers={"off": off, "dtype": {**ROUNDING, "inductor": drift}})
    said = " ".join(asked.run("-m", "fidelity").stdout.str().split())
    assert f"next: find out why {why}" in said


def test_where_fp32_does_not_fit_nothing_is_green_under_strict(asked):
    asked.script(numbers={"fp32": "the model in fp32 takes 16.1 GiB more"})
    result = asked.run("-m", "fidelity")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*missing: the model in fp32 takes 16.1 GiB more; `fidelity: *"])
    asked.run("-m", "fidelity", "--strict-verdicts").assert_outcomes(failed=1)


def test_plain_leaves_shared_prefixes_out(asked):
    asked.script(numbers={"off": {"inductor shared": 1e-3}})
    asked.run("-m", "fidelity", "--plain")
    assert asked.words()["fidelity_ways.paired"] == "ok"


def test_a_case_that_has_none_has_no_such_test(asked):
    path = asked.root / "cases" / "fake.yaml"
    path.write_text(f"{path.read_text()}fidelity: {{prompts: 0}}\n")
    result = asked.run("-m", "fidelity")
    result.assert_outcomes()
    told = "case 'fake' has no fidelity: fidelity.prompts is 0 in *fake.yaml"
    result.stdout.fnmatch_lines([told])


def test_a_split_model_has_it(asked):
    path = asked.root / "cases" / "fake.yaml"
    path.write_text(f"{path.read_text()}parallel: {{tensor: 2}}\n")
    said = asked.run("-m", "fidelity", "--collect-only").stdout.str()
    assert "test_fidelity[fake]" in said


def test_what_a_case_leaves_out_is_not_told_where_something_else_runs(suite):
    assert "has no fidelity" not in suite.run("-m", "accuracy").stdout.str()


def test_random_weights_are_held_against_themselves(asked):
    result = asked.run("-m", "fidelity", "--dummy-weights")
    result.assert_outcomes(skipped=1)
    assert asked.words() == {"fidelity_ways.paired": "ok", "fidelity.baseline": "missing"}


ROUNDING = {"rounded": 0.02, "eager": 0.02, "attention": 0.021, "batch": 0.02, "inductor": 0.02}


def test_drift_of_the_case_s_own_dtype(asked):
    path = asked.root / "cases" / "fake.yaml"
    path.write_text(path.read_text().replace("precision: fp32", "precision: bf16"))
    asked.script(numbers={"dtype": ROUNDING})
    result = asked.run("-m", "fidelity", "--dummy-weights")
    result.assert_outcomes(skipped=1)  # nothing is stored
    words = asked.words()
    assert (words["drift_val.paired"], words["drift_infer.paired"]) == ("ok", "ok")
    result.stdout.fnmatch_lines(["  drift, eager * nats *", "  drift, compiled * nats *"])

    asked.script(numbers={"dtype": {**ROUNDING, "inductor": 0.06}})
    asked.run("-m", "fidelity").assert_outcomes(failed=1)
    words = asked.words()
    assert (words["drift_val.paired"], words["drift_infer.paired"]) == ("ok", "regressed")
    assert asked.update("--accept-regression") == 2
