"""Warnings of other packages never decide a measurement: they are shown, counted and recorded."""

from __future__ import annotations

import json

import pytest


@pytest.mark.parametrize("more", [[], ["-W", "error"]], ids=["ini", "command line"])
def test_a_deprecation_is_a_notice_in_table_record_and_summary(suite, monkeypatch, tmp_path, more):
    suite.script(both={"deprecated": "`past_key_values` is deprecated"})
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    result = suite.run("-m", "perf or accuracy", *more)
    result.assert_outcomes(skipped=6)  # nothing stored yet
    result.stdout.fnmatch_lines(["notice: *: `past_key_values` is deprecated (seen * times *"])
    (beyond, found) = suite.record()["notices"]
    assert beyond == {
        "count": 1,
        "source": "perfline",
        "text": "torch 9.9 is newer than tested (2.15.0)",
    }
    assert found["text"] == "`past_key_values` is deprecated"
    # Two engines: compile and warm-up (1 + 8), and the eager answers to what inductor was timed
    # on; not one of the timed rounds.
    assert 0 < found["count"] < 100
    assert "is deprecated (seen" in (tmp_path / "summary.md").read_text()


def test_somebody_s_own_tests_keep_their_policy(suite):
    (suite.root / "tests" / "test_own.py").write_text(
        "import warnings\ndef test_own():\n    warnings.warn('mine', FutureWarning)\n"
    )
    result = suite.run("-k", "own")
    result.assert_outcomes(failed=1, deselected=6)


def test_a_cache_that_cannot_be_written_is_a_notice_and_the_session_ends_well(suite):
    """PytestCacheWarning at the very end, an error by the ini, left no table and a torn record."""
    (suite.root / "conftest.py").write_text(
        (suite.root / "conftest.py").read_text()
        + "\n\nimport warnings\n"
        + "def pytest_sessionfinish():\n"
        + "    warnings.warn(pytest.PytestCacheWarning('could not create cache path'))\n"
    )
    result = suite.run("-m", "perf")
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
    result.stdout.fnmatch_lines(["*= perfline =*", "notice: conftest: could not create cache path"])
    record = suite.record()
    assert record["partial"] is False
    assert record["notices"][-1]["text"] == "could not create cache path"


def test_a_session_that_breaks_at_its_end_leaves_a_whole_record(suite):
    (suite.root / "conftest.py").write_text(
        (suite.root / "conftest.py").read_text()
        + "\n\ndef pytest_sessionfinish():\n    raise RuntimeError('somebody else')\n"
    )
    suite.run("-m", "perf", no_reraise=True)
    assert suite.record()["partial"] is False


def test_records_without_notices_are_read(suite):
    from perfline.measure import record

    suite.run("-m", "perf")
    path = suite.root / "results" / "run.json"
    data = json.loads(path.read_text())
    del data["notices"]
    path.write_text(json.dumps(data))
    assert record.load(path).notices == ()


def test_a_comparison_with_nothing_stored_by_pytest_benchmark_is_measured(suite):
    result = suite.run("-m", "perf", "--benchmark-compare", "-W", "error")
    result.assert_outcomes(skipped=2, deselected=4)
    assert "INTERNALERROR" not in result.stdout.str()
    assert suite.record()["partial"] is False


def test_nothing_to_save_for_pytest_benchmark_ends_no_session(suite):
    suite.script(**{"raise": ["MissingData"]})
    result = suite.run("-m", "perf", "--benchmark-json=b.json", "-W", "error")
    result.assert_outcomes(skipped=2, deselected=4)
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
    assert "Traceback" not in result.stdout.str() + result.stderr.str()


def test_a_comparison_with_what_pytest_benchmark_stored_is_measured_on_another_machine_too(suite):
    suite.run("-m", "perf", "--benchmark-autosave")
    result = suite.run("-m", "perf", "--benchmark-compare", "-W", "error")
    result.assert_outcomes(skipped=2, deselected=4)
    assert "machine_info is different" not in result.stdout.str() + result.stderr.str()
    (stored,) = (suite.root / ".benchmarks").glob("*/*.json")
    stored.write_text(stored.read_text().replace('"system": "Linux"', '"system": "Other"'))
    with pytest.warns(pytest.PytestWarning, match="machine_info is different"):
        result = suite.run("-m", "perf", "--benchmark-compare", "-W", "error")
    result.assert_outcomes(skipped=2, deselected=4)
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()


def test_what_the_environment_keeps_from_a_run_is_a_notice(suite, monkeypatch):
    from fakes import ENVIRONMENT

    conftest = suite.root / "conftest.py"
    conftest.write_text(conftest.read_text().replace("def perfline_environment", "def theirs"))
    monkeypatch.setattr("perfline.engines.environment.collect", lambda root: ENVIRONMENT)
    monkeypatch.setattr("perfline.engines.environment.limits", lambda root: ["git refuses"])
    monkeypatch.setattr("perfline.engines.telemetry.silent", lambda device: "NVML does not start")
    suite.run("-m", "perf", "-k", "eager").assert_outcomes(skipped=1, deselected=5)
    texts = [notice["text"] for notice in suite.record()["notices"]]
    told = "the device's clocks, heat and other users are not known: NVML does not start"
    assert texts[:2] == ["git refuses", told]
