"""What a session loads, writes and survives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

REPOSITORY = Path(__file__).parents[2]


def log(suite):
    return (suite.root / "opened.log").read_text().split("\n")[:-1]


def test_a_case_is_opened_once_and_closed_before_the_next(suite):
    suite.case("other")
    suite.run(cases="fake,other")
    assert log(suite) == ["open fake", "close fake", "open other", "close other"]


def test_collection_opens_nothing(suite):
    result = suite.run("--collect-only", "-q")
    result.stdout.fnmatch_lines(["*test_throughput[[]fake-inductor[]]*"])
    assert not (suite.root / "opened.log").exists()


COLLECT = """
import sys

import pytest

code = pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *sys.argv[1:]])
heavy = {"torch", "transformers", "pandas", "scipy", "numpy"}
print(sorted(heavy & set(sys.modules)), int(code))
"""


def collected(folder, *arguments):
    """The names of the tests that a pytest of its own finds; it imports nothing that is slow."""
    done = subprocess.run(
        [sys.executable, "-c", COLLECT, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    *lines, last = done.stdout.splitlines()
    assert last == "[] 0", done.stdout
    return [line for line in lines if "::" in line]


def test_collection_imports_neither_torch_nor_numpy(suite):
    (suite.root / "conftest.py").unlink()
    assert len(collected(suite.root, "--cases=fake", "--case-dir=cases")) == 6


def test_this_repository_s_pytest_collects_the_suite_alone_accuracy_first(monkeypatch):
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    found = [name.partition("::")[0] for name in collected(REPOSITORY, "--cases=tiny")]
    suite = (
        "tests/accuracy/test_mmlu.py",
        "tests/perf/test_decode.py",
        "tests/perf/test_throughput.py",
    )
    assert found == [suite[0]] * 5 + [suite[1]] * 2 + [suite[2]] * 4


def test_missing_weights_skip_with_the_command_and_fail_under_strict(suite):
    suite.script(**{"raise": ["MissingData"]})
    result = suite.run("-m", "perf")
    result.assert_outcomes(skipped=2, deselected=4)
    result.stdout.fnmatch_lines(["*scripted MissingData; get it with: hf download x*"])
    strict = suite.run("-m", "perf", "--strict")
    strict.assert_outcomes(errors=2, deselected=4)
    told = "\n".join(strict.outlines).partition("short test summary")[0]
    assert told.count("scripted MissingData") == 2  # the first test's message, and the table's
    strict.stdout.fnmatch_lines(
        ["case 'fake' is absent, as told above", "verdicts: 1 case absent", "next: run again*"]
    )
    strict.stdout.no_fnmatch_line("*could not be measured*")


@pytest.mark.parametrize("error", ["DeviceMemory", "EngineError", "DataError"])
def test_an_error_for_users_is_one_line_and_makes_the_record_unacceptable(suite, error, capsys):
    suite.script(**{"raise": [error]})
    result = suite.run("-m", "perf", "-k", "eager")
    result.assert_outcomes(errors=1, deselected=5)
    result.stdout.fnmatch_lines([f"scripted {error}"])
    assert "Traceback" not in result.stdout.str()
    assert suite.record()["cases"]["fake"]["errors"][0].endswith(f"scripted {error}")
    assert suite.update() != 0


def test_a_failing_forward_is_no_verdict(suite):
    suite.script(both={"nan": ["even/0"]})
    result = suite.run("-m", "accuracy", "-k", "eager and stored")
    result.assert_outcomes(failed=1, deselected=5)
    result.stdout.fnmatch_lines(["*logits of 1 of * prompts are not finite*"])
    assert suite.record()["cases"]["fake"]["verdicts"] == []


def test_results_that_cannot_be_written_are_told_before_anything_is_loaded(suite):
    (suite.root / "results").write_text("a file")
    result = suite.run("-m", "perf", "-k", "eager")
    result.assert_outcomes(errors=1, deselected=5)
    result.stdout.fnmatch_lines(["*results/run.json: cannot be written*"])
    assert not (suite.root / "opened.log").exists()


def test_a_session_that_measures_nothing_leaves_no_older_record_to_take_for_its_own(suite):
    suite.run("-m", "perf")
    assert suite.run("-m", "perf", "--setup-plan").ret == 0
    assert suite.record()["cases"]
    suite.script(**{"raise": ["MissingData"]})
    suite.run("-m", "perf")
    assert not (suite.root / "results" / "run.json").exists()


KILLED = {
    "before torch is imported": """
import os
def pytest_runtest_setup():
    os._exit(9)
""",
    "while a case is opened": """
import os
def opened(*case):
    os._exit(9)
""",
    "by a collection error": """
raise ImportError("not here")
""",
}


@pytest.mark.parametrize("end", KILLED)
def test_however_a_session_dies_no_older_record_stands_for_it(suite, capsys, end):
    suite.run("-m", "perf")
    assert suite.record()["partial"] is False
    if "collection" in end:
        (suite.root / "tests" / "test_broken.py").write_text(KILLED[end])
    else:
        conftest = suite.root / "conftest.py"
        conftest.write_text(conftest.read_text() + KILLED[end])
    assert suite.run("-m", "perf", no_reraise=True).ret != 0
    record = suite.record()
    assert (record["partial"], record["cases"]) == (True, {})
    assert suite.update() == 2
    assert "is partial: the session was interrupted" in capsys.readouterr().err


def test_a_claimed_record_can_be_reported_and_is_no_pass(suite, capsys):
    from perfline.cli.main import main

    conftest = suite.root / "conftest.py"
    conftest.write_text(conftest.read_text() + KILLED["before torch is imported"])
    suite.run("-m", "perf", no_reraise=True)
    assert main(["report", "results/run.json", "--format", "markdown"]) == 0
    assert "stopped before its end" in capsys.readouterr().out
    assert main(["history", "results"]) == 0
    assert main(["export", "results/run.json", "--format", "bencher"]) != 0
    assert main(["report", "results/run.json", "-o", "page.html"]) == 0


def test_an_error_before_the_machine_is_known_is_recorded(suite):
    conftest = suite.root / "conftest.py"
    conftest.write_text(
        conftest.read_text().replace("return ENVIRONMENT", "raise ImportError('no torch')")
    )
    result = suite.run("-m", "perf", "-k", "eager")
    result.assert_outcomes(errors=1, deselected=5)
    record = suite.record()
    assert (record["partial"], record["environment"]["machine"]) == (False, "unknown")
    assert record["cases"]["fake"]["errors"][0].endswith("no torch")


AGAIN = """
import pytest
from _pytest.runner import runtestprotocol

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):  # as pytest-rerunfailures does it
    if TRIES.pop(item.name, None) is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    runtestprotocol(item, nextitem=nextitem, log=False)
    item._initrequest()
    return None

TRIES = {"test_throughput[fake-eager]": 1}
"""


def test_verdicts_of_a_test_that_is_run_again_are_those_of_its_last_run(suite):
    conftest = suite.root / "conftest.py"
    conftest.write_text(conftest.read_text() + AGAIN)
    result = suite.run("-m", "perf")
    record = suite.record()
    verdicts = [(v["metric"], v["gate"]) for v in record["cases"]["fake"]["verdicts"]]
    assert sorted(set(verdicts)) == sorted(verdicts)
    told = "test_throughput[[]fake-eager] was run again: its last run counts"
    result.stdout.fnmatch_lines([f"notice: {told}"])
    assert record["notices"][-1]["text"] == told.replace("[[]", "[")


def test_an_error_of_a_first_try_goes_with_it(suite, capsys):
    fails_once = """
@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if pyfuncitem.name in FAIL and not FAIL.remove(pyfuncitem.name):
        raise RuntimeError("CUDA error: unspecified launch failure")

FAIL = ["test_throughput[fake-eager]"]
"""
    conftest = suite.root / "conftest.py"
    conftest.write_text(conftest.read_text() + AGAIN + fails_once)
    suite.run("-m", "perf").assert_outcomes(skipped=2, deselected=4)
    assert suite.record()["cases"]["fake"]["errors"] == []
    assert suite.update() == 0


def test_a_test_that_fails_after_good_verdicts_leaves_an_error(suite):
    (suite.root / "tests" / "test_own.py").write_text(
        "from perfline import Metric\n"
        "def test_own(case):\n"
        "    case.record(Metric('own', 1.0, 'count', 'info'))\n"
        "    assert not 'the end'\n"
    )
    suite.run("-k", "own").assert_outcomes(failed=1, deselected=6)
    assert "the end" in suite.record()["cases"]["fake"]["errors"][0]


def test_a_broken_baseline_is_told_before_anything_is_loaded(suite):
    (suite.root / "baselines" / "fake-cpu").mkdir(parents=True)
    (suite.root / "baselines" / "fake-cpu" / "fake.json").write_text('{"schema": 1, ')
    result = suite.run("-m", "perf", "-k", "eager")
    result.assert_outcomes(errors=1, deselected=5)
    result.stdout.fnmatch_lines(["*fake.json: is torn or not JSON at line 1*"])
    assert not (suite.root / "opened.log").exists()


def test_an_interrupt_leaves_a_partial_record_that_no_update_accepts(suite, capsys):
    test = suite.root / "tests" / "test_throughput.py"
    test.write_text(
        test.read_text() + "\n\ndef test_z_interrupt(case):\n    raise KeyboardInterrupt\n"
    )
    result = suite.run("-m", "perf", no_reraise=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    record = suite.record()
    assert record["partial"] is True
    assert "p_infer_core" in record["cases"]["fake"]["metrics"]
    assert suite.update() == 2
    assert "partial" in capsys.readouterr().err


def test_a_complete_session_is_not_partial_and_says_where_its_cases_are(suite):
    suite.run("-m", "perf")
    assert suite.record()["partial"] is False
    assert suite.record()["cases"]["fake"]["notes"]["case_dir"] == "cases"


def test_stopping_at_the_first_failure_is_partial(suite):
    suite.run("--strict", "-x")
    assert suite.record()["partial"] is True


def test_benchmark_json_holds_our_numbers_and_the_device(suite):
    suite.run("-m", "perf", "--benchmark-json=bench.json")
    data = json.loads((suite.root / "bench.json").read_text())
    assert data["machine_info"]["perfline"]["machine"] == "fake-cpu"
    by_name = {b["name"]: b for b in data["benchmarks"]}
    info = by_name["test_throughput[fake-inductor]"]["extra_info"]
    assert info["p_infer_core_tok_per_s"] == pytest.approx(10000)
    assert len(by_name["test_throughput[fake-eager]"]["stats"]["data"]) == 5


def properties(root, place):
    """What stands directly below every <testsuite> or <testcase>, by name."""
    found = ElementTree.parse(root / "junit.xml").iter(place)
    rows = [p for element in found for p in element.findall("properties/property")]
    names = [row.get("name") for row in rows]
    assert len(set(names)) == len(names)
    return {row.get("name"): row.get("value") for row in rows}


def test_junit_holds_metrics_with_units_and_verdicts(suite):
    suite.run("-m", "perf", "--junit-xml=junit.xml")
    found = properties(suite.root, "testsuite")
    assert found["fake.p_infer_core.baseline"] == "missing"
    assert float(found["fake.p_infer_core_tok_per_s"]) == pytest.approx(10000)
    assert found["fake.flips.paired"] == "ok"


def test_junit_of_pytest_s_default_family_has_no_properties_in_a_test_case(suite):
    """junit-10.xsd of Jenkins' xUnit plugin, that pytest's family xunit2 is written for."""
    suite.run("--junit-xml=junit.xml")
    allowed = {"skipped", "error", "failure", "system-out", "system-err"}
    cases = list(ElementTree.parse(suite.root / "junit.xml").iter("testcase"))
    assert len(cases) == 6
    assert {child.tag for case in cases for child in case} <= allowed


def test_junit_of_the_older_family_holds_them_in_the_test_case(suite):
    suite.run("-m", "perf", "--junit-xml=junit.xml", "-o", "junit_family=xunit1")
    assert properties(suite.root, "testcase")["fake.p_infer_core.baseline"] == "missing"
    assert properties(suite.root, "testsuite") == {}


def test_step_summary_is_appended(suite, monkeypatch):
    summary = suite.root / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    suite.run("-m", "perf")
    text = summary.read_text()
    assert text.startswith("before\n## perfline: missing\n")
    assert "| p_infer_core | tok/s | 10000" in " ".join(text.split())


def test_full_pass_times_every_question_once_and_serves_the_accuracy_too(suite):
    suite.run("--full-pass")
    record = suite.record()["cases"]["fake"]
    assert record["workload"]["full_pass"] is True
    assert record["metrics"]["questions"]["value"] == 40
    assert len(record["metrics"]["p_infer_core"]["samples"]) == 1
    assert record["metrics"]["acc_infer"]["value"] == 1.0


def test_all_nine_published_metrics_are_measured(suite):
    suite.run()
    measured = suite.record()["cases"]["fake"]["metrics"]
    assert {
        "e2e_time",
        "p_val_whole",
        "p_val_core",
        "p_infer_whole",
        "p_infer_core",
        "acc_infer",
        "acc_val",
        "mem",
    } <= set(measured)  # MFU is absent: the fake device has no known peak
    assert "mfu" not in measured


def test_dummy_weights_judge_no_accuracy(suite):
    result = suite.run("--dummy-weights", "-m", "accuracy")
    result.assert_outcomes(skipped=4, deselected=2)
    result.stdout.fnmatch_lines(["*accuracy is not judged under --dummy-weights*"])


def test_an_unknown_case_is_a_usage_error(suite):
    result = suite.run(cases="fakee")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*case 'fakee' is not known; did you mean 'fake'?*"])


def test_a_path_option_behind_a_blank_that_misleads_pytest_is_told(suite, tmp_path_factory):
    elsewhere = str(tmp_path_factory.mktemp("data"))
    result = suite.pytester.runpytest_inprocess("--cases=fake", "--data-dir", elsewhere)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: write --data-dir={elsewhere}, with '=': *"])


def test_a_data_directory_that_is_not_there_is_told_before_anything_is_opened(suite, monkeypatch):
    result = suite.run("--data-dir=/no/such")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    told = "which is not there; correct it, make that directory, or leave it out"
    result.stderr.fnmatch_lines([f"ERROR: --data-dir=/no/such, {told}"])
    monkeypatch.setenv("PERFLINE_DATA_DIR", "/nor/this")
    result = suite.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: $PERFLINE_DATA_DIR is /nor/this, {told}"])
    assert not (suite.root / "opened.log").exists()
    # What does not measure is left alone by a variable.
    other = suite.pytester.makepyfile(test_other="def test_other(): pass")
    suite.pytester.runpytest_inprocess("-p", "no:cacheprovider", other).assert_outcomes(passed=1)


def test_of_two_tasks_of_one_srun_the_second_stops_before_it_measures(suite, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    result = suite.run("-m", "perf")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: srun started this as task 1 of 2 (SLURM_PROCID, *"])
    assert not (suite.root / "opened.log").exists()
    assert not (suite.root / "results").exists()
    monkeypatch.setenv("SLURM_PROCID", "0")
    result = suite.run("-m", "perf", "-k", "eager")
    result.stdout.fnmatch_lines(["notice: srun started this as task 0 of 2 (SLURM_PROCID,*"])
    assert suite.record()["notices"][0]["text"].startswith("srun started this as task 0 of 2")
    # What measures nothing is nobody's affair.
    monkeypatch.setenv("SLURM_PROCID", "1")
    other = suite.pytester.makepyfile(test_other="def test_other(): pass")
    suite.pytester.runpytest_inprocess("-p", "no:cacheprovider", other).assert_outcomes(passed=1)


def test_xdist_is_refused(suite, monkeypatch):
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    result = suite.run("-m", "perf", "-k", "eager")
    result.stdout.fnmatch_lines(["*one model at a time: run the perfline tests without pytest-xd*"])


def test_without_perfline_tests_nothing_is_written_or_said(pytester):
    pytester.makepyfile("def test_it(): assert 1 + 1 == 2")
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=1)
    assert "= perfline =" not in result.stdout.str()
    assert not (pytester.path / "results").exists()


def test_an_interrupt_while_loading_leaves_no_older_record_to_accept(suite):
    suite.run("-m", "perf")
    conftest = suite.root / "conftest.py"
    conftest.write_text(
        conftest.read_text().replace(
            'script = json.loads(Path("script.json").read_text())', "raise KeyboardInterrupt"
        )
    )
    suite.run("-m", "perf", no_reraise=True)
    assert suite.record()["partial"] is True
    assert suite.update() == 2


def test_a_step_summary_that_cannot_be_written_is_one_line(suite, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "/nowhere/summary.md")
    result = suite.run("-m", "perf")
    result.assert_outcomes(skipped=2, deselected=4)
    result.stdout.fnmatch_lines(["notice: GITHUB_STEP_SUMMARY=/nowhere/summary.md: not written: *"])


def test_the_same_error_is_shown_once(suite):
    suite.script(**{"raise": ["EngineError"]})
    result = suite.run("-m", "perf", "-k", "eager")
    assert "another exception" not in result.stdout.str()


def test_an_error_under_strict_is_in_the_record_too(suite):
    suite.script(**{"raise": ["EngineError"]})
    suite.run("-m", "perf", "-k", "eager", "--strict").assert_outcomes(errors=1, deselected=5)
    (line,) = suite.record()["cases"]["fake"]["errors"]
    assert line.endswith("scripted EngineError")


@pytest.mark.parametrize("mark", ["perf", "accuracy"])
def test_an_engine_that_compiled_nothing_is_invalid_and_never_improved(suite, mark):
    suite.script(inductor={"graphs_at": [0]})
    suite.run("-m", "perf or accuracy")
    assert suite.update() == 0
    suite.script(inductor={"uncompiled": "torch.compile compiled nothing: X=1; unset it"})
    result = suite.run("-m", mark, "-k", "inductor and not published")
    result.assert_outcomes(failed=1, deselected=5)
    result.stdout.fnmatch_lines(["*invalid: torch.compile compiled nothing: X=1; unset it*"])
    judged = {name: word for name, word in suite.words().items() if "timed" not in name}
    judged.pop("flips.paired", "")
    assert set(judged.values()) == {"invalid"}
