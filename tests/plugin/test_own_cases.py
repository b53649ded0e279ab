"""A repository's own cases: found beside pytest's configuration, and meant where none is named."""

from __future__ import annotations

import pytest

from perfline.cli.main import main

COLLECT = ("-m", "perf", "--collect-only", "-q", "-p", "no:cacheprovider")


def collected(result: pytest.RunResult) -> set[str]:
    """The ids of the cases that would be measured."""
    names = [line.partition("[")[2] for line in result.outlines if "::test_throughput[" in line]
    return {name.rpartition("-")[0] for name in names}


@pytest.fixture
def repository(pytester: pytest.Pytester) -> pytest.Pytester:
    """What ``perfline init`` writes."""
    assert main(["init", "--case", "mine"]) == 0
    return pytester


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {"mine"}),
        (["--cases=tiny"], {"tiny"}),
        (["--cases=mine,tiny"], {"mine", "tiny"}),
        (["--case-dir=cases"], {"deepseek-7b", "llama3-8b", "mine", "tiny"}),
    ],
    ids=["own", "packaged", "both", "case-dir"],
)
def test_which_cases_are_collected(repository: pytest.Pytester, words, expected):
    assert collected(repository.runpytest_inprocess(*COLLECT, *words)) == expected


def test_without_own_cases_all_packaged_ones_are(repository: pytest.Pytester):
    (repository.path / "cases" / "mine.yaml").write_text("name: of another tool\n")
    found = collected(repository.runpytest_inprocess(*COLLECT))
    assert found == {"deepseek-7b", "llama3-8b", "tiny"}


def test_from_a_directory_below_they_are_found_and_named_in_commands(
    repository: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    repository.makepyprojecttoml("[tool.pytest.ini_options]\n")
    monkeypatch.chdir(repository.path / "tests")
    assert collected(repository.runpytest_inprocess(*COLLECT)) == {"mine"}
    from perfline.plugin.hooks import _options

    config = repository.parseconfigure()
    assert _options(config).case_dir == "../cases"
    monkeypatch.chdir(repository.path)
    assert _options(repository.parseconfigure()).case_dir is None


def test_below_the_configuration_of_a_larger_repository_they_are_found_and_kept_there(
    repository: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    """``perfline init inference`` in a repository whose pytest settings stand at its root."""
    below = repository.mkdir("inference")
    for name in ("cases", "tests", "baselines"):
        (repository.path / name).rename(below / name)
    repository.makepyprojecttoml("[tool.pytest.ini_options]\n")
    monkeypatch.chdir(below)
    assert collected(repository.runpytest_inprocess(*COLLECT)) == {"mine"}
    from perfline.plugin.hooks import _options

    options = _options(repository.parseconfigure())
    assert options.case_dir is None
    assert (options.baselines, options.results.parent) == (below / "baselines", below / "results")


def test_a_broken_case_of_ones_own_is_one_line(repository: pytest.Pytester):
    (repository.path / "cases" / "mine.yaml").write_text("case: mine\n")
    result = repository.runpytest_inprocess(*COLLECT)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    said = result.stdout.str()
    assert f"{repository.path}/cases/mine.yaml: key 'model' is missing (expected a mapping" in said
    assert "Traceback" not in said
    assert "hooks.py" not in said


def test_the_suite_runs_from_the_package(pytester: pytest.Pytester):
    result = pytester.runpytest_inprocess(
        "--pyargs", "perfline.suite", "--cases=tiny", "--collect-only", "-q"
    )
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*test_answers_are_the_stored_ones?tiny-inductor-mmlu?"])
    assert collected(result) == {"tiny"}


def test_somebody_s_own_parameters_named_as_ours_stay_theirs(suite):
    (suite.root / "tests" / "test_theirs.py").write_text(
        "import pytest\n"
        "def pytest_generate_tests(metafunc):\n"
        "    if metafunc.function.__name__ == 'test_by_hook':\n"
        "        metafunc.parametrize('case', ['x', 'y'])\n"
        "def test_by_hook(case):\n"
        "    assert case in ('x', 'y')\n"
        "@pytest.mark.parametrize('engine_name', ['vllm'])\n"
        "@pytest.mark.parametrize('case', ['x'])\n"
        "def test_by_mark(case, engine_name):\n"
        "    assert (case, engine_name) == ('x', 'vllm')\n"
    )
    suite.run("tests/test_theirs.py").assert_outcomes(passed=3)
