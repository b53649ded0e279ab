"""A metric of the user's own: recorded by a test, judged, accepted and reported as ours are."""

from __future__ import annotations

import json

import pytest

from perfline.cli.main import main
from perfline.gates.verdict import Verdict

TEST = """
import json
from pathlib import Path

import pytest

from perfline import Metric

pytestmark = pytest.mark.perf


def test_wait(case):
    told = json.loads(Path("wait.json").read_text())
    case.record(*(Metric(**each) for each in told))
"""
ROUNDS = [0.0301, 0.03, 0.0302, 0.03, 0.0299]
GATES = "gates: {throughput_session_sd_fraction: 0.002}\n"


@pytest.fixture
def own(suite):
    suite.case("fake", GATES)
    (suite.root / "tests" / "test_wait.py").write_text(TEST)
    tell(suite)
    return suite


def tell(suite, value=0.03, samples=ROUNDS, name="wait", unit="s", direction="lower", **more):
    told = {"name": name, "value": value, "unit": unit, "direction": direction} | more
    told |= {"samples": [value / 0.03 * each for each in samples]} if samples else {}
    (suite.root / "wait.json").write_text(json.dumps([told]))


def test_it_is_stored_judged_and_accepted(own, capsys):
    result = own.run("-k", "wait or throughput")
    result.assert_outcomes(skipped=3, deselected=4)
    result.stdout.fnmatch_lines(["  wait * s * 0.03*", "*missing: wait 0.03 s (no stored value*"])
    stored = own.record()["cases"]["fake"]["metrics"]["wait"]
    assert stored == {
        "value": 0.03,
        "unit": "s",
        "direction": "lower",
        "samples": ROUNDS,
        "own": True,
    }
    assert own.update() == 0
    assert "wait" in capsys.readouterr().out
    own.run("-k", "wait", "--strict-verdicts").assert_outcomes(passed=1, deselected=6)
    tell(own, 0.033)
    result = own.run("-k", "wait")
    result.assert_outcomes(failed=1, deselected=6)
    result.stdout.fnmatch_lines(["wait regressed +10.0 % (limit +2.0 %)"])
    tell(own, 0.027)
    own.run("-k", "wait").assert_outcomes(passed=1, deselected=6)
    assert own.words() == {"wait.baseline": "improved"}


def test_an_update_without_the_throughput_would_drop_it_and_is_refused(own, capsys):
    own.run("-m", "perf")
    assert own.update() == 0
    own.run("-k", "wait")
    assert own.update() == 2
    assert "p_infer_core, p_infer_whole" in capsys.readouterr().err
    own.run("-k", "throughput")
    assert own.update() == 2
    assert "wait of baselines/fake-cpu/fake.json was not measured" in capsys.readouterr().err


def test_higher_is_better_where_the_metric_says_so(own):
    tell(own, 3.0, unit="req/s", direction="higher")
    own.run("-k", "wait")
    assert own.update() == 0
    tell(own, 2.7, unit="req/s", direction="higher")
    own.run("-k", "wait").stdout.fnmatch_lines(["wait regressed -10.0 % (limit -2.0 %)"])


def test_info_is_reported_and_never_judged(own):
    tell(own, -4.0, unit="widgets", direction="info")
    result = own.run("-k", "wait")
    result.assert_outcomes(passed=1, deselected=6)
    result.stdout.fnmatch_lines(["  wait * widgets * -4"])
    assert own.update() == 0
    assert own.record()["cases"]["fake"]["verdicts"] == []


def test_without_samples_it_takes_sessions_to_judge(own):
    tell(own, samples=())
    own.run("-k", "wait")
    assert own.update() == 0
    tell(own, 0.0301, samples=())
    result = own.run("-k", "wait")
    result.assert_outcomes(skipped=1, deselected=6)
    result.stdout.fnmatch_lines(["*unsure: 0 samples and 1 sessions held say nothing of its*"])
    assert own.update() == 2
    assert own.update("--add") == 0
    tell(own, 0.03005, samples=())
    own.run("-k", "wait")
    assert own.update("--add") == 0
    tell(own, 0.0302, samples=())
    own.run("-k", "wait").assert_outcomes(passed=1, deselected=6)
    assert own.words() == {"wait.baseline": "ok"}


def test_a_percentile_is_judged_by_itself_and_not_by_its_samples(own):
    told = {"name": "wait_p99", "value": 0.09, "unit": "s", "direction": "lower"}
    (own.root / "wait.json").write_text(json.dumps([told | {"samples": ROUNDS}]))
    own.run("-k", "wait")
    assert own.update() == 0
    own.run("-k", "wait").assert_outcomes(passed=1, deselected=6)
    (own.root / "wait.json").write_text(json.dumps([told | {"samples": ROUNDS, "value": 0.1}]))
    own.run("-k", "wait").stdout.fnmatch_lines(["wait_p99 regressed +11.1 % (limit +2.0 %)"])


@pytest.mark.parametrize(
    "change",
    [{"unit": "ms"}, {"direction": "higher"}],
    ids=["unit", "direction"],
)
def test_another_unit_or_direction_compares_with_nothing(own, capsys, change):
    tell(own)
    own.run("-k", "wait")
    assert own.update() == 0
    tell(own, 0.06, **change)
    result = own.run("-k", "wait")
    result.assert_outcomes(failed=1, deselected=6)
    result.stdout.fnmatch_lines(["wait incomparable*the baseline holds it in s (lower), this run*"])
    capsys.readouterr()
    assert own.update("--add") == 2
    assert "wait: the baseline holds it in s (lower), this run in" in capsys.readouterr().err
    assert own.update() == 0
    own.run("-k", "wait", "--strict-verdicts").assert_outcomes(passed=1, deselected=6)


def test_what_is_judged_no_more_is_dropped_on_purpose_only(own, capsys):
    own.run("-k", "wait")
    assert own.update() == 0
    tell(own, direction="info")
    own.run("-k", "wait").assert_outcomes(passed=1, deselected=6)
    assert own.update() == 2
    assert "wait of baselines/fake-cpu/fake.json would not be judged" in capsys.readouterr().err
    assert own.update("--accept-regression") == 0


def test_nats_of_ones_own_are_no_distance_that_was_judged(own):
    tell(own, unit="nats")
    own.run("-k", "wait").stdout.fnmatch_lines(["*SKIPPED*missing: wait 3.0e-02 nats (no stored *"])
    (stored,) = own.record()["cases"]["fake"]["verdicts"]
    assert Verdict(**stored).headline.startswith("wait missing: no stored value in baselines/")


def test_zero_tokens_a_second_are_shown(own):
    for value, add in ((0.0, ()), (0.1, ("--add",))):
        tell(own, value, samples=(), unit="tok/s")
        own.run("-k", "wait")
        assert own.update(*add) == 0
    assert main(["baselines", "show", "fake"]) == 0


@pytest.mark.parametrize(
    ("call", "line"),
    [
        ("case.record()", "case.record() was given no metric, and so would pass; give it one"),
        (
            "case.record(*2 * [Metric('wait', 1, 's', 'lower')])",
            "wait: this test records it tw*",
        ),
        (
            "case.record(*(Metric(name, 1, 'ms', 'lower') for name in ('wait', 'wait_ms')))",
            "wait_ms and wait would both be 'wait_ms' in exports; rename one",
        ),
        ("case.record('a\\nb')", "case.record takes perfline.Metric, not 'a?nb'"),
        ("case.record(Metric('a\\nb', 1, 's', 'up'))", "a?nb: direction is 'up'; expected one of*"),
    ],
    ids=["nothing", "twice", "key", "text", "lines"],
)
def test_what_records_nothing_does_not_pass(own, call, line):
    (own.root / "tests" / "test_wait.py").write_text(
        f"from perfline import Metric\n\ndef test_wait(case):\n    {call}\n"
    )
    result = own.run("-k", "wait")
    result.assert_outcomes(failed=1, deselected=6)
    result.stdout.fnmatch_lines([line])
    assert own.words() == {}


def test_zero_is_unsure_and_says_why(own):
    tell(own, 0.0, samples=(), unit="errors")
    own.run("-k", "wait")
    assert own.update() == 0
    result = own.run("-k", "wait")
    result.assert_outcomes(skipped=1, deselected=6)
    result.stdout.fnmatch_lines(["*unsure: wait 0 errors (the gate judges ratios, and 0 or less*"])


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"name": "p_infer_core"}, "p_infer_core: perfline's own metrics are called so*"),
        ({"name": "mem_free"}, "mem_free: perfline's own metrics are called so*"),
        ({"name": "Tt Ft"}, "a metric is called 'Tt Ft'; expected small letters*"),
        ({"direction": "down"}, "wait: direction is 'down'; expected one of higher, lower, info"),
        ({"unit": "x" * 13}, "wait: unit is 'xxxxxxxxxxxxx'; expected text of at most 12*"),
        ({"unit": ""}, "wait: has no unit; a number without one is 'count'*"),
        ({"unit": "  "}, "wait: has no unit; a number without one is 'count'*"),
        ({"name": "fidelity_ways"}, "fidelity_ways: perfline's own metrics are called so*"),
        ({"name": "flips_mine"}, "flips_mine: perfline's own metrics are called so*"),
        ({"name": "__proto__"}, "a metric is called '__proto__'; expected small letters*"),
    ],
    ids=[
        *("ours", "like-ours", "no-name", "direction", "long-unit", "no-unit", "blank-unit"),
        *("fidelity", "flips", "proto"),
    ],
)
def test_what_is_no_metric_is_one_line(own, change, line):
    tell(own, **change)
    result = own.run("-k", "wait")
    result.assert_outcomes(failed=1, deselected=6)
    result.stdout.fnmatch_lines([line])
    assert "Traceback" not in result.stdout.str()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", True, None])
def test_what_is_no_number_is_one_line(own, value):
    told = [{"name": "wait", "value": value, "unit": "s", "direction": "lower"}]
    (own.root / "wait.json").write_text(json.dumps(told))
    result = own.run("-k", "wait")
    result.assert_outcomes(failed=1, deselected=6)
    result.stdout.fnmatch_lines(["wait: * is no *"])


def test_two_tests_do_not_record_one_metric(own):
    (own.root / "tests" / "test_again.py").write_text(TEST)
    result = own.run("-k", "wait")
    result.assert_outcomes(failed=1, skipped=1, deselected=6)
    result.stdout.fnmatch_lines(["wait: tests/test_again.py::test_wait*records it too; give one*"])


def test_it_stands_in_the_report_and_every_export(own, capsys):
    own.run("-k", "wait or throughput")
    assert own.update() == 0
    tell(own, 0.033)
    own.run("-k", "wait or throughput")
    capsys.readouterr()
    for words in (
        ["report", "--format=markdown", "results/run.json"],
        ["export", "results/run.json", "--format=customSmallerIsBetter"],
        ["export", "results/run.json", "--format=bencher"],
        ["baselines", "show", "fake"],
        ["history", "results", "--metric=wait"],
    ):
        assert main(words) == 0
        assert "wait" in capsys.readouterr().out, words
    assert main(["report", "results/run.json", "-o", "report.html"]) == 0
    page = (own.root / "report.html").read_text()
    assert "Rounds over time: wait" in page
    assert "+10.0 %" in page


def test_an_edited_baseline_cannot_make_ours_somebodys_own(own, capsys):
    own.run("-m", "perf")
    record = own.root / "results" / "run.json"
    data = json.loads(record.read_text())
    data["cases"]["fake"]["metrics"]["p_infer_core"]["own"] = True
    record.write_text(json.dumps(data))
    assert own.update() == 2
    assert "p_infer_core: perfline's own metrics are called so" in capsys.readouterr().err
