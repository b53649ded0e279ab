"""What runs inside a forward: from a first run to something that fell off the fast path."""

from __future__ import annotations

import pytest


@pytest.fixture
def asked(suite):
    """The suite, whose case asks for the fingerprint as a case does by default."""
    return suite.default("fingerprint: false")


def test_accepted_the_same_told_and_regressed(asked, capsys):
    asked.run("-m", "perf").assert_outcomes(skipped=4, deselected=4)
    assert asked.words()["fingerprint.baseline"] == "missing"
    assert asked.update() == 0
    assert "fingerprint of inductor: new" in capsys.readouterr().out
    assert asked.baseline()["fingerprints"]["inductor"]["counts"]["eager_ops"] == 40

    asked.run("-m", "perf").assert_outcomes(passed=4, deselected=4)
    assert asked.words()["fingerprint_val.baseline"] == "ok"

    asked.script(inductor={"more_mm": 3})
    result = asked.run("-m", "perf")
    result.assert_outcomes(passed=4, deselected=4)  # told, and no worse for it
    result.stdout.fnmatch_lines(["  fingerprint: nothing fell off the fast path,*"])
    assert "aten::mm 29 -> 32" in " ".join(result.stdout.str().split())

    asked.script(inductor={"eager_ops": 43})
    result = asked.run("-m", "quick")
    result.assert_outcomes(passed=1, failed=1, deselected=6)
    result.stdout.fnmatch_lines(["fingerprint regressed +1 (limit +0)"])
    assert asked.update() == 2
    assert asked.update("--accept-regression") == 0
    assert "fingerprint of inductor: replaced" in capsys.readouterr().out
    asked.run("-m", "quick").assert_outcomes(passed=2, deselected=6)


def test_alone_it_is_a_baseline_too_and_judges_what_was_compiled(asked):
    asked.script(inductor={"graphs_at": [0]})
    asked.run("-m", "fingerprint").assert_outcomes(skipped=2, deselected=6)
    assert asked.update() == 0
    assert "sessions" not in asked.baseline()
    asked.run("-m", "fingerprint").assert_outcomes(passed=2, deselected=6)
    asked.script(inductor={"graphs_at": [0], "breaks": 2})
    result = asked.run("-m", "fingerprint")
    result.assert_outcomes(passed=1, failed=1, deselected=6)
    told = " ".join(result.stdout.str().split())
    assert "fell off the fast path: graph breaks 0 -> 2" in told
    # Timed, too: no session is stored that could judge it, so that the fingerprint does.
    asked.run().assert_outcomes(failed=1, skipped=6, passed=1)


def test_engines_of_one_s_own_have_none(asked):
    result = asked.run("-m", "fingerprint", "--engines=eager")
    result.assert_outcomes(skipped=1, deselected=3)


def test_an_engine_that_compiled_nothing_is_invalid(asked):
    asked.run("-m", "fingerprint")
    assert asked.update() == 0
    asked.script(inductor={"uncompiled": "torch.compile compiled nothing: X=1; unset it"})
    result = asked.run("-m", "fingerprint")
    result.assert_outcomes(passed=1, failed=1, deselected=6)
    result.stdout.fnmatch_lines(["*invalid: torch.compile compiled nothing: X=1; unset it*"])
    assert asked.words()["fingerprint.baseline"] == "invalid"


def test_builds_of_one_release_are_compared(asked):
    asked.script(inductor={"software": "torch 2.13.0+cpu"})
    asked.run("-m", "fingerprint")
    assert asked.update() == 0
    asked.script(inductor={"software": "torch 2.13.0", "eager_ops": 44})
    asked.run("-m", "fingerprint").assert_outcomes(passed=1, failed=1, deselected=6)
    asked.script(inductor={"software": "torch 2.13.0+git50eac81", "eager_ops": 44})
    asked.run("-m", "fingerprint").assert_outcomes(passed=2, deselected=6)  # a source build
    asked.script(inductor={"software": "torch 2.13.1", "eager_ops": 44})
    asked.run("-m", "fingerprint").assert_outcomes(passed=2, deselected=6)
