"""Every verdict, from the first run without a baseline on: what pytest says and returns."""

from __future__ import annotations

import itertools
import time

import pytest

PUBLISHED = """{
 "schema": 1, "case": "fake", "source": "this test", "device": null, "dtype": "fp32",
 "metrics": {"acc_infer": {"value": 0.95, "unit": "fraction"},
             "acc_val": {"value": 0.95, "unit": "fraction"}}
}"""


@pytest.fixture
def accepted(suite):
    """The suite after its first run was accepted as the baseline."""
    suite.script(prompts=400, both={"wrong": [f"even/{i}" for i in range(20)]})
    suite.run()
    assert suite.update() == 0
    return suite


def test_missing_skips_with_the_numbers_and_fails_under_strict(suite):
    result = suite.run()
    result.assert_outcomes(skipped=6)
    result.stdout.fnmatch_lines(
        [
            "next: perfline baselines update fake --run results/run.json --case-dir=cases *",
            "*missing: p_val_core 10000 tok/s, p_val_whole 10000 tok/s, mem_val 1.00 GiB*",
        ]
    )
    assert set(suite.words().values()) == {"missing", "ok"}  # ok: compiled answers as eager
    # No accuracy of this case is published: those two tests have nothing to fail by.
    suite.run("--strict").assert_outcomes(failed=4, skipped=2)
    suite.run("--strict-verdicts").assert_outcomes(failed=4, skipped=2)


@pytest.mark.parametrize("before", ["nothing", "a baseline"])
def test_no_update_is_offered_that_would_be_refused(suite, monkeypatch, capsys, before):
    if before == "a baseline":
        suite.run()
        assert suite.update() == 0
        suite.script(inductor={"token_s": 1.1e-4})
    ticks = iter(range(10**6))
    # Of every two seconds that are wanted, one is waited for.
    monkeypatch.setattr("perfline.measure.throughput.cpu_contention", lambda: (next(ticks),) * 2)
    result = suite.run("-m", "perf")
    shown = " ".join(result.stdout.str().split())
    assert (
        "next: run again on an idle machine: other processes took 50 % (cpu_waited_fraction_val) "
        "and 50 % (cpu_waited_fraction_infer) of the CPU during the timed rounds (at most 10 % may "
        "be)" in shown
    )
    assert "perfline baselines update" not in shown.replace("`perfline baselines update CASE", "")
    capsys.readouterr()
    assert suite.update() == 2
    told = capsys.readouterr().err
    assert told.rstrip().endswith("(at most 10 % may be); run again on an idle machine")
    markdown = suite.root / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(markdown))
    suite.run("-m", "perf")
    assert "Next:\n\n~~~~\nrun again on an idle machine: other" in markdown.read_text()


def test_a_stopped_session_offers_no_update(suite):
    result = suite.run("-m", "perf", "--strict-verdicts", "-x")
    result.stdout.fnmatch_lines(["next: run pytest again to the end: is partial: *"])


def test_strict_is_heeded_wherever_it_is_set(suite, monkeypatch):
    monkeypatch.setenv("PYTEST_ADDOPTS", "--strict")
    suite.run("-m", "perf").assert_outcomes(failed=2, deselected=4)


def test_update_then_ok(accepted):
    result = accepted.run("--strict", "-m", "perf")
    result.assert_outcomes(passed=2, deselected=4)
    assert set(accepted.words().values()) == {"ok"}
    assert accepted.words()["p_infer_core.baseline"] == "ok"


def test_a_wall_clock_that_jumps_changes_no_figure_and_no_verdict(accepted, monkeypatch):
    accepted.run("--strict", "-m", "perf")
    steady = accepted.record()["cases"]["fake"]["metrics"]
    jumps = itertools.cycle([2e9, 1e9, -1.0])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: int(next(jumps) * 1e9))
    accepted.run("--strict", "-m", "perf").assert_outcomes(passed=2, deselected=4)
    assert set(accepted.words().values()) == {"ok"}
    assert accepted.record()["cases"]["fake"]["metrics"] == steady


def test_accuracy_ok_against_both_gates(accepted):
    published = accepted.root / "baselines" / "published"
    published.mkdir()
    (published / "fake.json").write_text(PUBLISHED)
    accepted.run("--strict", "-m", "accuracy").assert_outcomes(passed=4, deselected=2)
    words = accepted.words()
    assert words["acc_infer.published"] == words["acc_infer.baseline"] == "ok"


def test_twice_as_slow_is_regressed_and_says_so_in_the_first_line(accepted):
    accepted.script(prompts=400, inductor={"token_s": 2e-4})
    result = accepted.run("-m", "perf")
    result.assert_outcomes(passed=1, failed=1, deselected=4)
    result.stdout.fnmatch_lines(
        [
            "p_infer_core regressed -50.0 % (limit -2.9 %)",
            "*metric*unit*baseline*measured*change*limit*verdict*",
            "*p_infer_core*tok/s*10000*5000*-50.0 %*-2.9 %*regressed*",
            "*baseline  baselines/fake-cpu/fake.json (*commit abc1234)",
            "*context   torch, driver and all other versions unchanged",
            "*hint: to accept it: perfline baselines update fake *--accept-regression*",
        ]
    )
    assert result.ret == 1


def test_wrong_answers_are_regressed_and_named(accepted):
    wrong = [f"even/{i}" for i in range(20)] + [f"odd/{i}" for i in range(12)]
    accepted.script(prompts=400, both={"wrong": wrong})
    result = accepted.run("-m", "accuracy", "-k", "stored")
    result.assert_outcomes(failed=2, deselected=4)
    result.stdout.fnmatch_lines(
        [
            "acc_val regressed -3.00 pp (limit *",
            "*flipped questions: 12 right -> wrong",
            "*odd/0: B -> C (label B, stored margin * logits)",
        ]
    )


def test_fast_but_wrong_is_never_ok(accepted):
    accepted.script(
        prompts=400, inductor={"token_s": 1e-5, "wrong": [f"odd/{i}" for i in range(200)]}
    )
    result = accepted.run("-m", "perf", "-k", "inductor")
    timed = {v["metric"]: v["word"] for v in accepted.record()["cases"]["fake"]["verdicts"]}
    assert timed["p_infer_core"] == "improved"
    assert timed["flips"] == "regressed"
    result.assert_outcomes(failed=1, deselected=5)


def test_another_case_definition_is_incomparable(accepted):
    accepted.case("fake", "engine: {dynamic: false}\n")
    result = accepted.run()
    assert result.ret == 1
    words = accepted.words()
    assert words["p_infer_core.baseline"] == words["acc_infer.baseline"] == "incomparable"
    result.stdout.fnmatch_lines(["*the case has changed since the baseline was accepted*"])


def test_another_workload_is_incomparable(accepted):
    accepted.run("-m", "perf", "--full-pass")
    assert accepted.words()["p_infer_core.baseline"] == "incomparable"


def test_a_recompile_in_the_timed_region_is_invalid(accepted):
    accepted.script(prompts=400, inductor={"graphs_at": [12]})
    result = accepted.run("-m", "perf", "-k", "inductor")
    result.assert_outcomes(failed=1, deselected=5)
    result.stdout.fnmatch_lines(["p_infer_core invalid: 1 graph(s) were compiled inside*"])
    assert accepted.words()["p_infer_core.baseline"] == "invalid"


def test_faster_passes_as_improved_and_asks_for_an_update(accepted):
    accepted.script(
        prompts=400,
        both={"token_s": 5e-5, "wrong": [f"even/{i}" for i in range(20)]},
    )
    result = accepted.run("-m", "perf", "--strict")
    result.assert_outcomes(passed=2, deselected=4)
    result.stdout.fnmatch_lines(["next: perfline baselines update fake*"])
    assert accepted.words()["p_infer_core.baseline"] == "improved"


def test_what_the_spread_may_explain_is_unsure(accepted):
    gates = "gates: {throughput_session_sd_fraction: 0.02}\n"
    accepted.script(prompts=400, both={"token_s": 1.07e-4})
    accepted.case("fake", gates)
    result = accepted.run("-m", "perf")
    result.assert_outcomes(skipped=2, deselected=4)
    assert accepted.words()["p_infer_core.baseline"] == "unsure"
    accepted.run("-m", "perf", "--strict").assert_outcomes(failed=2, deselected=4)


def test_what_settles_it_stands_in_the_message_the_summary_and_the_record(accepted):
    accepted.case("fake", "gates: {throughput_session_sd_fraction: 0.02}\n")
    accepted.script(prompts=400, both={"token_s": 1.07e-4})
    conftest = accepted.root / "conftest.py"
    context = "{'torch': '9.9', 'commit': 'def5678'}"
    now = f"return type(ENVIRONMENT)('fake-cpu', 'Fake CPU', 'cpu', {context})"
    conftest.write_text(conftest.read_text().replace("return ENVIRONMENT", now))
    result = accepted.run("-m", "perf", "--strict")
    command = "perfline compare fake --baseline-ref abc1234 --case-dir=cases"
    result.stdout.fnmatch_lines(
        [f"*hint: to settle it: {command}", f"next: to settle it: {command}"]
    )
    assert accepted.record()["cases"]["fake"]["notes"]["settle_with"] == command


def test_a_second_session_is_added(accepted):
    accepted.script(prompts=400, both={"token_s": 1.01e-4})
    accepted.run("-m", "perf")
    assert accepted.update("--add") == 0
    from perfline.baselines import baseline

    stored = baseline.load(accepted.root / "baselines" / "fake-cpu" / "fake.json")
    assert len(stored.sessions) == 2
    assert stored.values("p_infer_core") == pytest.approx((10000, 10000 / 1.01))


def test_a_bigger_model_is_regressed(accepted):
    accepted.script(prompts=400, both={"memory_gib": 1.2})
    accepted.run("-m", "perf")
    assert accepted.words()["mem.baseline"] == "regressed"


def test_one_more_graph_is_regressed(accepted):
    accepted.script(prompts=400, inductor={"graphs_at": [0]})
    accepted.run("-m", "perf")
    assert accepted.words()["graphs.baseline"] == "regressed"


def test_a_case_without_published_figures_is_green_under_strict_once_accepted(accepted):
    accepted.run("--strict").assert_outcomes(passed=4, skipped=2)


def test_a_full_pass_compares_the_engines_over_all_questions(accepted):
    wrong = [f"odd/{i}" for i in range(3)]
    accepted.script(prompts=40, inductor={"wrong": wrong})
    accepted.run("-m", "perf", "-k", "inductor", "--full-pass")
    verdicts = accepted.record()["cases"]["fake"]["verdicts"]
    (flips,) = [v for v in verdicts if v["metric"] == "flips"]
    assert (flips["word"], flips["measured"]) == ("regressed", 3)


def test_wrong_answers_are_never_offered_for_acceptance(accepted):
    published = accepted.root / "baselines" / "published"
    published.mkdir()
    (published / "fake.json").write_text(PUBLISHED)
    accepted.script(prompts=400, both={"wrong": [f"odd/{i}" for i in range(200)]})
    result = accepted.run("-m", "accuracy", "-k", "published and eager")
    result.assert_outcomes(failed=1, deselected=5)
    result.stdout.fnmatch_lines(["*baseline  the published figure"])
    assert "to accept it" not in result.stdout.str()


def test_a_published_figure_may_be_shown_and_not_judged(accepted):
    published = accepted.root / "baselines" / "published"
    published.mkdir()
    shown = '"unit": "fraction", "judged": false, "note": "by another framework"'
    (published / "fake.json").write_text(PUBLISHED.replace('"unit": "fraction"', shown))
    accepted.script(prompts=400, both={"wrong": [f"odd/{i}" for i in range(200)]})
    result = accepted.run("-m", "accuracy", "-k", "published and eager", "-rs")
    result.assert_outcomes(skipped=1, deselected=5)
    result.stdout.fnmatch_lines(["*acc_val: 0.95 is published, not judged: by another framework*"])


def test_a_slowdown_that_waiting_does_not_explain_is_regressed_all_the_same():
    from perfline.cases.case import GatesSpec
    from perfline.gates.performance import throughput_baseline
    from perfline.metrics import Metric

    def judged(value, waited):
        metric = Metric("p_infer_core", value, "tok/s", "higher", (value,) * 5)
        return throughput_baseline(metric, [100.0], GatesSpec(), waited).word

    assert judged(60.0, None) == "regressed"
    assert judged(60.0, 0.45) == "unsure"  # 55 % of the time for the work would be 55 tok/s
    assert judged(30.0, 0.5) == "regressed"  # waiting explains half, not two thirds


def test_benchmark_skip_loads_nothing(suite):
    suite.run("-m", "perf", "--benchmark-skip").assert_outcomes(skipped=2, deselected=4)
    assert not (suite.root / "opened.log").exists()
