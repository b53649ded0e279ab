"""Beside other plugins of pytest, and their options: each pair works, or is refused in one line.

pytest-benchmark is always there. The others stand in an environment of their own, since they would
load themselves everywhere: `make test-plugins`.
"""

from __future__ import annotations

from collections import Counter
from importlib import metadata

import pytest

INSTALLED = {each.name: each.value for each in metadata.entry_points(group="pytest11")}


def run(suite, *arguments, plugins=()):
    """The suite with those plugins and no others."""
    if absent := [plugin for plugin in plugins if plugin not in INSTALLED]:
        pytest.skip(f"needs `make test-plugins` ({', '.join(absent)})")
    loaded = [f"-p{INSTALLED[name]}" for name in ("perfline", "benchmark", *plugins)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        result = suite.run(*loaded, *arguments)
    shown = result.stdout.str() + result.stderr.str()
    assert "INTERNALERROR" not in shown
    assert "Traceback" not in shown
    return result


def check_record(suite, samples=5, errors=0):
    """The record is whole, every verdict stands there once, and every round was timed."""
    record = suite.record()
    case = record["cases"]["fake"]
    assert record["partial"] is False
    assert len(case["errors"]) == errors
    verdicts = Counter((v["metric"], v["gate"]) for v in case["verdicts"])
    assert set(verdicts.values()) <= {1}
    assert len(case["metrics"].get("p_infer_core", {}).get("samples", ())) == samples


# Of pytest-benchmark, all options: what is given, and the line where it is refused.
BENCHMARK = {
    "--benchmark-min-time": "=0.1",
    "--benchmark-max-time": "=0.01",
    "--benchmark-min-rounds": "=50",
    "--benchmark-precision": "=0.02",
    "--benchmark-confidence": "=0.9",
    "--benchmark-sort": "=name",
    "--benchmark-group-by": "=func",
    "--benchmark-timer": "=time.process_time",
    "--benchmark-calibration-precision": "=5",
    "--benchmark-warmup": "=on",
    "--benchmark-warmup-iterations": "=5",
    "--benchmark-disable-gc": "",
    "--benchmark-skip": "",
    "--benchmark-disable": "",
    "--benchmark-enable": "",
    "--benchmark-only": "",
    "--benchmark-save": "=mine",
    "--benchmark-autosave": "",
    "--benchmark-save-data": "",
    "--benchmark-json": "=b.json",
    "--benchmark-compare": "",
    "--benchmark-compare-fail": "=mean:999999%",
    "--benchmark-cprofile": "=cumtime",
    "--benchmark-cprofile-loops": "=2",
    "--benchmark-cprofile-top": "=3",
    "--benchmark-cprofile-dump": "=dump",
    "--benchmark-time-unit": "=ms",
    "--benchmark-storage": "=elsewhere",
    "--benchmark-netrc": "=netrc",
    "--benchmark-verbose": "",
    "--benchmark-quiet": "",
    "--benchmark-columns": "=median",
    "--benchmark-name": "=short",
    "--benchmark-histogram": "=h",
}
NOT_TIMED = {
    "--benchmark-skip": "*--benchmark-skip: nothing is loaded, compiled or timed*",
    "--benchmark-only": "*Skipping non-benchmark (--benchmark-only active).*",
    "--benchmark-cprofile": "--benchmark-cprofile times one more round, under a profiler: *",
}


@pytest.mark.parametrize("option", BENCHMARK)
def test_an_option_of_pytest_benchmark(suite, option):
    arguments = ["-m", "perf", "-k", "inductor", f"{option}{BENCHMARK[option]}"]
    if option == "--benchmark-histogram":
        pytest.importorskip("pygal")
    if option == "--benchmark-compare-fail":
        arguments.append("--benchmark-compare")
        told = "ERROR: --benchmark-compare-fail: pytest-benchmark has nothing stored to compare *"
        run(suite, *arguments).stderr.fnmatch_lines([told])
        assert not (suite.root / "results").exists()
        run(suite, "-m", "perf", "-k", "inductor", "--benchmark-autosave")
        (stored,) = (suite.root / ".benchmarks").glob("*/*.json")
        stored.write_text(stored.read_text().replace('"system": "Linux"', '"system": "Other"'))
    if option in NOT_TIMED:
        run(suite, *arguments).stdout.fnmatch_lines([NOT_TIMED[option]])
        if option in ("--benchmark-only", "--benchmark-skip"):
            assert not (suite.root / "results" / "run.json").exists()
        else:
            check_record(suite, samples=0, errors=int("cprofile" in option))
        return
    result = run(suite, *arguments)
    check_record(suite)
    result.stdout.fnmatch_lines(["*= perfline =*"])


def test_no_option_of_pytest_benchmark_is_left_out(pytestconfig):
    known = {
        name
        for group in pytestconfig._parser._groups
        for option in group.options
        for name in option.names()
    }
    assert {name for name in known if name.startswith("--benchmark-")} <= set(BENCHMARK)


ALL, PERF = ("-m", "perf or accuracy"), ("-m", "perf")
PAIRS = {  # by plugin: what is given, and a line that shows it at work
    "rerunfailures": (["--reruns=1", "--strict-verdicts", *PERF], "*2 failed*2 rerun*"),
    "repeat": (["--count=2", *PERF], "notice: test_throughput[[]fake-inductor] was run again: *"),
    "randomly": (["--randomly-seed=3", *ALL], "Using --randomly-seed=3*"),
    "timeout": (["--timeout=60", *ALL], "timeout: 60.0s"),
    "pytest_cov": (["--cov=fakes", *ALL], "*fakes.py*"),
    "html": (["--html=report.html", *ALL], "*report.html*"),
    "sugar": (["--force-sugar", *ALL], "*Results*"),
    "instafail": (["--instafail", *ALL], "*= perfline =*"),
    "pytest_github_actions_annotate_failures": (ALL, "*= perfline =*"),
}
BESIDE = {"html": ["metadata", "html_fixtures"]}


@pytest.mark.parametrize("plugin", PAIRS)
def test_a_plugin_beside_ours(suite, monkeypatch, plugin):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    arguments, shown = PAIRS[plugin]
    result = run(suite, *arguments, plugins=[plugin, *BESIDE.get(plugin, ())])
    result.stdout.fnmatch_lines([shown])
    check_record(suite)


@pytest.mark.parametrize(
    "plugin", ["sugar", "instafail", "pytest_github_actions_annotate_failures"]
)
def test_a_verdict_is_shown_beside_a_plugin_that_shows_failures(suite, monkeypatch, plugin):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    given = ["--instafail"] if plugin == "instafail" else []
    result = run(suite, *PERF, "--strict-verdicts", *given, plugins=[plugin])
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "p_infer_core missing" in result.stdout.str() + result.stderr.str()
    check_record(suite)


def test_an_error_of_a_first_try_is_forgotten_with_reruns(suite):
    conftest = suite.root / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + """
FAIL = ["test_throughput[fake-inductor]"]

@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if pyfuncitem.name in FAIL and not FAIL.remove(pyfuncitem.name):
        raise RuntimeError("CUDA error: unspecified launch failure")
"""
    )
    assert run(suite, *PERF, "--reruns=1", plugins=["rerunfailures"]).ret == 0
    check_record(suite)
    assert "was run again" in suite.record()["notices"][-1]["text"]
    assert suite.update() == 0


def test_a_test_that_times_out_is_an_error_of_the_record(suite):
    conftest = suite.root / "conftest.py"
    conftest.write_text(
        conftest.read_text() + "\ndef pytest_pyfunc_call():\n    __import__('time').sleep(5)\n"
    )
    result = run(suite, *PERF, "-k", "inductor", "--timeout=0.2", plugins=["timeout"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    check_record(suite, samples=0, errors=1)


def test_xdist_is_refused_in_one_line_a_test_and_nothing_is_accepted(suite):
    result = run(suite, *PERF, "-n2", plugins=["xdist"])
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["one model at a time: run the perfline tests without pytest-xd*"])
    assert not (suite.root / "opened.log").exists()
    assert suite.update() == 2
