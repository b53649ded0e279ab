"""How do pytest and perfline meet? Options, fixtures, and what is shown and written.

Tests ask for ``case``: one case, opened once per session, with what it is compared with. pytest
only reads baselines; a session writes one file, the record (``--results``), after every test.
Collection loads YAML and nothing else: what measures is imported when a test first asks for a case.
"""

from __future__ import annotations

import argparse
import math
import os
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from perfline.cases import case as cases
from perfline.cases import data
from perfline.cases.case import Case
from perfline.distributed import group
from perfline.errors import CaseError, MissingData, MissingRanks, PerflineError, RecordError
from perfline.measure.notices import Notices

if TYPE_CHECKING:
    from perfline.plugin.session import CaseUnderTest, Options, Session

NOTICES = pytest.StashKey[Notices]()  # apart: what is imported to measure may warn already
LEFT_OUT = pytest.StashKey[list[str]]()  # lines on tests that cases do not run
SESSION = pytest.StashKey["Session"]()  # there once tests of a case are run


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """The command line; and, beside other ranks, what each of them does."""
    if group.launched():
        from perfline.plugin import ranks

        pluginmanager.register(ranks.Joined())
        pluginmanager.register(ranks.Serving(_options, _selected))
    options = parser.getgroup(
        "perfline", "LLM inference: accuracy and throughput against baselines"
    )
    options.addoption(
        "--cases",
        metavar="A,B",
        help="cases to measure, by id (default: the repository's own in cases/, else all known)",
    )
    options.addoption(
        "--case-dir",
        metavar="DIR",
        help="a directory with further cases, one YAML file each (default: cases/ beside pytest's "
        "configuration, where it holds any)",
    )
    options.addoption(
        "--data-dir",
        metavar="DIR",
        help="weights and MMLU, laid out as published (default: $PERFLINE_DATA_DIR)",
    )
    options.addoption(
        "--engines",
        metavar="A,B",
        help="engines to run each case with: eager, inductor, or one of your own as module:Class "
        "(default: the case's key 'engines'; without it eager,inductor)",
    )
    options.addoption(
        "--tasks",
        metavar="A,B",
        help="tasks to ask each case; throughput is timed over the first one's prompts (default: "
        "the case's key 'tasks'; without it mmlu)",
    )
    options.addoption("--baselines", metavar="DIR", help="stored baselines (default: baselines/)")
    options.addoption(
        "--results", metavar="FILE", help="the record to write (default: results/run.json)"
    )
    options.addoption(
        "--strict-verdicts",
        action="store_true",
        help="missing, unsure and absent weights or questions fail instead of skipping (pytest's "
        "own --strict on the command line implies it)",
    )
    options.addoption(
        "--full-pass",
        action="store_true",
        help="time one pass over all questions, as published, instead of a sample in rounds",
    )
    options.addoption(
        "--questions",
        type=_positive,
        metavar="N",
        help="accuracy over the first N of one fixed, subject-stratified order (default: all)",
    )
    options.addoption(
        "--sequential",
        action="store_true",
        help="stop asking as soon as the verdict against the stored answers is certain",
    )
    options.addoption(
        "--resume",
        action="store_true",
        help="continue an interrupted accuracy pass from its journal beside the results",
    )
    options.addoption(
        "--plain",
        action="store_true",
        help="accuracy by one forward a prompt, as published, instead of shared prefixes",
    )
    options.addoption(
        "--verify",
        type=_natural,
        default=32,
        metavar="N",
        help="give N answers of the shared-prefix path again the plain way (default: 32)",
    )
    options.addoption(
        "--rank-timeout",
        type=_positive,
        default=600,
        metavar="S",
        help="under torchrun: seconds for which a rank that is waited for may be silent "
        "(default: 600)",
    )
    options.addoption(
        "--settle",
        type=_minutes,
        metavar="MINUTES",
        help="settle a stored verdict on time that is unsure or regressed by `perfline compare` "
        "with the baseline's own commit and packages; so many minutes for the whole session",
    )
    options.addoption(
        "--dummy-weights",
        action="store_true",
        help="random weights on the device; throughput, memory and compilation only",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Markers, and what is wrong with the command line."""
    # --benchmark-compare with nothing stored, or by another machine: pytest-benchmark warns as it
    # is configured, and a policy of errors would end the session there.
    for text in ("Can't compare", "Benchmark machine_info is different"):
        warnings.filterwarnings("default", text, pytest.PytestWarning)
    config.addinivalue_line("markers", "perf: measures throughput, memory and compilation")
    config.addinivalue_line("markers", "accuracy: measures MMLU accuracy")
    config.addinivalue_line("markers", "fidelity: measures what the model computes in fp32")
    config.addinivalue_line("markers", "fingerprint: counts what runs inside a forward")
    config.addinivalue_line("markers", "quick: fidelity and fingerprint, which no noise disturbs")
    config.addinivalue_line("markers", "decode: measures tokens a second, one by one")
    config.stash[NOTICES] = Notices()
    config.pluginmanager.register(SessionEnd())
    _check_root(config)
    _check_whole(config)
    if any(map(config.getoption, ("cases", "case_dir", "data_dir", "engines", "tasks"))):
        _selected(config)  # a mistyped id, or place, is told before anything is collected


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per case, grouped by case so that one model is resident at a time.

    A test whose own ``case``, ``engine_name`` or ``task_name`` comes from somebody else's
    parameters keeps it.
    """
    given = {name for call in getattr(metafunc, "_calls", ()) for name in call.params}
    if "perfline_case_run" not in metafunc.fixturenames or "case" in given:
        return
    found = _parametrized(metafunc.config)
    ids = [case.id for case in found]
    metafunc.parametrize("perfline_case_run", found, ids=ids, indirect=True, scope="session")
    if "engine_name" in metafunc.fixturenames and "engine_name" not in given:
        names = dict.fromkeys(name for case in found for name in case.engine_names)
        metafunc.parametrize("engine_name", list(map(_Offered, names)), ids=list(names))
    if "task_name" in metafunc.fixturenames and "task_name" not in given:
        names = dict.fromkeys(name for case in found for name in case.task_names)
        metafunc.parametrize("task_name", list(map(_Offered, names)), ids=list(names))


_NO_DECODE_ON_RANKS = "decode is measured by one process: run it without torchrun"


class _Offered(str):
    """An engine's or a task's name that some case has, and that not every case need have."""

    __slots__ = ()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests, and the engines, that a case does not run."""
    config.stash[LEFT_OUT] = list(dict.fromkeys(filter(None, map(_switched_off, items))))
    items[:] = [item for item in items if not _is_not_run(item)]
    if group.launched():
        for item in items:
            if _case_of(item) is not None and item.get_closest_marker("decode") is not None:
                item.add_marker(pytest.mark.skip(reason=_NO_DECODE_ON_RANKS))


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> list[str]:
    """Say what a case does not run, but where its YAML asks for just that and others are left."""
    left_out = config.stash.get(LEFT_OUT, [])
    return [why for why in left_out if not items or "parallel.tensor" in why]


def _switched_off(item: pytest.Item) -> str:
    """Say which key of a case's YAML leaves a test out; empty where none does."""
    case = _case_of(item)
    if case is None:
        return ""
    keys = {
        "fidelity": "fidelity.prompts is 0" if case.fidelity.prompts == 0 else "",
        "fingerprint": "" if case.fingerprint else "fingerprint is false",
        "decode": "decode.tokens is 0" if case.decode.tokens == 0 else "",
    }
    for marker, why in keys.items():
        if item.get_closest_marker(marker) is not None:
            if not why and marker != "fidelity" and case.parallel.tensor > 1:
                why = f"parallel.tensor is {case.parallel.tensor}"
            return why and f"case '{case.id}' has no {marker}: {why} in {case.source}"
    return ""


def _is_not_run(item: pytest.Item) -> bool:
    case, callspec = _case_of(item), getattr(item, "callspec", None)
    params = {} if callspec is None else callspec.params
    name, task = params.get("engine_name"), params.get("task_name")
    if case is not None and item.get_closest_marker("fingerprint") is not None:
        runs = case.fingerprint and case.parallel.tensor == 1
        return not (runs and name in cases.ENGINE_NAMES and name in case.engine_names)
    if case is not None and item.get_closest_marker("fidelity") is not None:
        ours = any(engine in cases.ENGINE_NAMES for engine in case.engine_names)
        return not (ours and case.fidelity.prompts)
    if case is not None and item.get_closest_marker("decode") is not None:
        alone = case.parallel.tensor == 1
        if not alone or case.decode.tokens == 0 or name not in (None, *cases.ENGINE_NAMES):
            return True
    return case is not None and (
        (isinstance(name, _Offered) and name not in case.engine_names)
        or (isinstance(task, _Offered) and task not in case.task_names)
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Claim the record once something will be measured, before torch is even imported.

    A place that cannot be written is told by the first test that opens a case.
    """
    items = getattr(session, "items", ())  # xdist's controller has none
    dry = session.config.getoption("collectonly") or session.config.getoption("setupplan")
    if dry or all(_case_of(item) is None for item in items):
        return
    others: Any = getattr(session.config, "_benchmarksession", None)
    if getattr(others, "compare_fail", None) and not getattr(others, "compared_mapping", True):
        raise pytest.UsageError(
            "--benchmark-compare-fail: pytest-benchmark has nothing stored to compare with, and "
            "would fail after all is measured; leave it out once, with --benchmark-autosave"
        )
    if (task := group.lone_task()) is not None:
        number, told = task
        if number > 0:
            raise pytest.UsageError(told)
        session.config.stash[NOTICES].once([told])
    with suppress(RecordError):
        _session(session.config).claim()


@pytest.fixture(scope="session")
def perfline_opener() -> Callable[..., Any]:
    """What opens a case; a test of the suite itself overrides it with a scripted engine."""
    from perfline.measure.case_run import open_case

    return open_case


@pytest.fixture(scope="session")
def perfline_environment(pytestconfig: pytest.Config) -> Any:
    """The machine and its software."""
    from perfline.engines.environment import collect, limits

    pytestconfig.stash[NOTICES].once(limits(pytestconfig.rootpath))
    return collect(pytestconfig.rootpath)


@pytest.fixture(scope="session")
def perfline_device() -> Any:
    """The device that models run on."""
    from perfline.engines.device import current_device

    return current_device()


@pytest.fixture(scope="session")
def perfline_clock() -> Callable[[], float]:
    """The clock of all phases, in seconds."""
    return time.perf_counter


@pytest.fixture(scope="session")
def perfline_compare() -> Callable[..., None]:
    """What runs `perfline compare` under ``--settle``; see ``plugin.settle``."""
    from perfline.plugin.settle import run_compare

    return run_compare


@pytest.fixture(scope="session")
def perfline_tools(
    pytestconfig: pytest.Config,
    perfline_opener: Callable[..., Any],
    perfline_compare: Callable[..., None],
    perfline_environment: Any,
    perfline_device: Any,
    perfline_clock: Callable[[], float],
) -> Any:
    """What every case is measured with."""
    from perfline.engines import telemetry
    from perfline.plugin import ranks
    from perfline.plugin.session import Tools

    if silent := telemetry.silent(perfline_device):
        text = f"the device's clocks, heat and other users are not known: {silent}"
        pytestconfig.stash[NOTICES].once([text])
    coordinator = pytestconfig.stash.get(ranks.COORDINATOR, None)
    here = perfline_environment
    return Tools(
        opener=perfline_opener,
        environment=here if coordinator is None else here.of_ranks(coordinator.group.hosts()),
        device=perfline_device,
        clock=perfline_clock,
        progress=_progress(pytestconfig),
        say=_say(pytestconfig),
        notices=pytestconfig.stash[NOTICES],
        coordinator=coordinator,
        compare=perfline_compare,
    )


@pytest.fixture(scope="session")
def perfline_case_run(request: pytest.FixtureRequest, perfline_tools: Any) -> Iterator[Any]:
    """One case, opened; closed before the next one opens."""
    session = _session(request.config)
    yield session.open(request.param, perfline_tools)
    session.close(request.param)


@pytest.fixture
def case(request: pytest.FixtureRequest, perfline_case_run: Any) -> CaseUnderTest:
    """One case: measure with it, then ``check`` the verdicts."""
    from perfline.plugin.session import CaseUnderTest

    return CaseUnderTest(
        session=_session(request.config),
        opened=perfline_case_run,
        benchmark=lambda: request.getfixturevalue("benchmark"),
        note=_note(request),
        test=_test_id(request.node),
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """What other packages warn of while a case is measured is a notice, whatever the filters."""
    if "perfline_case_run" not in getattr(item, "fixturenames", ()):
        return (yield)
    with item.config.stash[NOTICES].listening():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Errors made for users are shown as their one line; absent weights skip."""
    if (case := _case_of(item)) is not None:
        if item.get_closest_marker("benchmark") and item.config.getoption("benchmark_skip", False):
            pytest.skip("--benchmark-skip: nothing is loaded, compiled or timed")
        _session(item.config).start(case, _test_id(item))
    return (yield from _one_line_errors(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """As for the set-up."""
    return (yield from _one_line_errors(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note in the record which tests failed by something else than their verdicts, and why."""
    report = yield
    case = _case_of(item)
    if case is not None and call.excinfo is not None and report.failed:
        first = (str(call.excinfo.value) or call.excinfo.typename).splitlines()[0]
        _session(item.config).add_error(case, _test_id(item), f"{item.name}: {first}")
    return report


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, object, object]:
    """A cache that pytest cannot write is a notice: it says nothing of what was measured.

    Innermost: inside of what pytest makes errors of warnings with.
    """
    if session.config.stash.get(SESSION, None) is None:
        return (yield)
    with session.config.stash[NOTICES].listening():
        return (yield)


class SessionEnd:
    """The same around what other plugins do at the end, since it is registered after them."""

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(
        self, session: pytest.Session, exitstatus: int
    ) -> Generator[None, object, object]:
        """Write the record for the last time, whatever else ends badly: complete, or partial."""
        if session.config.stash.get(SESSION, None) is None:
            return (yield)
        with session.config.stash[NOTICES].listening():
            try:
                return (yield)
            finally:
                _finish(session, exitstatus)


def _finish(session: pytest.Session, exitstatus: int) -> None:
    complete = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    stopped = bool(session.shouldstop or session.shouldfail)
    state = session.config.stash.get(SESSION, None)
    if state is None:
        return
    state.finish(partial=stopped or not complete)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary and state.measured:
        try:
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(state.markdown())
        except OSError as error:
            state.notices.once([f"GITHUB_STEP_SUMMARY={summary}: not written: {error.strerror}"])


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter,
) -> Generator[None, object, object]:
    """The table of every case that ran, counts of verdicts, and the one next command.

    Also where another plugin's summary ends in an error, as with ``--benchmark-compare-fail``.
    """
    try:
        return (yield)
    finally:
        state = terminalreporter.config.stash.get(SESSION, None)
        lines = state.summary() if state is not None else []
        if lines:
            terminalreporter.write_sep("=", "perfline")
            for text in lines:
                terminalreporter.write_line(text)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """What pytest-benchmark does not know: device, driver, torch."""
    state = config.stash.get(SESSION, None)
    environment = state.environment if state is not None else None
    if environment is not None:
        machine_info["perfline"] = {
            "machine": environment.machine,
            "device": environment.device,
            **environment.context,
        }


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_benchmark_compare_machine_info(compared_benchmark: dict[str, Any]) -> None:
    """What is ours is no difference: it is not known yet when pytest-benchmark compares."""
    compared_benchmark["machine_info"].pop("perfline", None)


def _session(config: pytest.Config) -> Session:
    """The session's state, made when it is first asked for."""
    if SESSION not in config.stash:
        from perfline.plugin.session import Session

        config.stash[SESSION] = Session(_options(config), notices=config.stash[NOTICES])
    return config.stash[SESSION]


def _check_root(config: pytest.Config) -> None:
    """Refuse ``--data-dir /data``: pytest looks for its configuration in /data then.

    It does so before it knows the options of plugins, and takes their values for test paths.
    """
    given = list(config.invocation_params.args)
    here = config.invocation_params.dir
    found = config.inipath is not None
    if found and (config.rootpath == here or config.rootpath in here.parents):
        return
    for option, value in pairwise(given):
        if option in ("--case-dir", "--data-dir", "--baselines", "--results"):
            raise pytest.UsageError(
                f"write {option}={value}, with '=': behind a blank pytest takes {value} for a "
                f"test path, and looked for its configuration in {config.rootpath}"
            )


def _check_whole(config: pytest.Config) -> None:
    given = config.getoption
    if given("full_pass") and (given("questions") or given("sequential")):
        raise pytest.UsageError("--full-pass asks all: leave out --questions and --sequential")
    if given("settle") is not None and group.launched():
        raise pytest.UsageError(
            "--settle is for one device: under torchrun the other ranks hold theirs; leave it out, "
            "and run the comparison that is printed"
        )
    if given("full_pass") and group.launched():
        raise pytest.UsageError(
            "--full-pass is for one device: under torchrun every rank would time all questions; "
            "leave it out, or run it without torchrun"
        )


def _options(config: pytest.Config) -> Options:
    from perfline.measure.accuracy import AccuracyOptions
    from perfline.plugin.session import Options

    given, home = config.getoption, _home(config)
    results = Path(given("results") or home / "results" / "run.json")
    return Options(
        data_dir=data.named(given("data_dir")),
        baselines=Path(given("baselines") or home / "baselines"),
        results=results,
        strict=given("strict_verdicts") or _pytest_is_strict(config),
        case_dir=given("case_dir") or _own_from_elsewhere(config),
        full_pass=given("full_pass"),
        weights="dummy" if given("dummy_weights") else "real",
        accuracy=AccuracyOptions(
            questions=given("questions"),
            verify=given("verify"),
            plain=given("plain"),
            sequential=given("sequential"),
            resume=given("resume") or group.attempt() > 0,
            journals=results.parent / "journals",
        ),
        shown_from=config.invocation_params.dir,
        ranks=group.ranks_here(),
        settle_minutes=given("settle"),
    )


def _home(config: pytest.Config) -> Path:
    """Where a repository's own cases, baselines and results are.

    The nearest directory with cases, from where pytest was started up to its root; else the root.
    """
    root, here = config.rootpath, config.invocation_params.dir
    upward = [each for each in (here, *here.parents) if each == root or root in each.parents]
    return next((each for each in upward if cases.own_cases(each)), root)


def _own_from_elsewhere(config: pytest.Config) -> str | None:
    """The directory of the repository's own cases, where a command typed here would not see it."""
    home, here = _home(config), config.invocation_params.dir
    if home == here or not cases.own_cases(home):
        return None
    return os.path.relpath(home / cases.OWN, here)


def _positive(text: str) -> int:
    number = _natural(text)
    if number == 0:
        raise argparse.ArgumentTypeError("expected a whole number of at least 1")
    return number


def _minutes(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}'; expected minutes, a number above 0")
    return found


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}'; expected a whole number")
    return int(text)


def _selected(config: pytest.Config) -> list[Case]:
    names, directory = config.getoption("cases"), config.getoption("case_dir")
    home = _home(config)
    own = {} if directory else cases.own_cases(home)
    directories = [Path(directory)] if directory else [home / cases.OWN] if own else []
    engines, tasks = config.getoption("engines"), config.getoption("tasks")
    try:
        data.directory(config.getoption("data_dir"))
        found = cases.load_cases(names.split(",") if names else list(own) or None, directories)
        if engines is not None:
            found = [case.with_engines(engines.split(","), "--engines") for case in found]
        return found if tasks is None else [_with_tasks(case, tasks.split(",")) for case in found]
    except PerflineError as error:
        raise pytest.UsageError(str(error)) from error


def _with_tasks(case: Case, names: list[str]) -> Case:
    """The case with the tasks that --tasks names; CaseError for one that is none."""
    from perfline.tasks.task import tasks_of

    found = case.with_tasks(names, "--tasks")
    try:
        tasks_of(found)
    except CaseError as error:
        raise CaseError(f"--tasks: {error}") from error
    return found


def _parametrized(config: pytest.Config) -> list[Case]:
    """The same while tests are collected, where pytest shows an error's line and no traceback."""
    try:
        return _selected(config)
    except pytest.UsageError as error:
        problem = str(error)
    pytest.fail(problem, pytrace=False)


def _case_of(item: pytest.Item) -> Case | None:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("perfline_case_run") if callspec is not None else None


def _test_id(item: pytest.Item) -> str:
    """The test, whichever of pytest-repeat's repetitions of it this is."""
    given = dict(getattr(getattr(item, "callspec", None), "params", {}))
    if given.pop("__pytest_repeat_step_number", None) is None:
        return item.nodeid
    names = (each.id if isinstance(each, Case) else str(each) for each in given.values())
    return f"{item.nodeid.partition('[')[0]}[{'-'.join(names)}]"


def _one_line_errors(item: pytest.Item) -> Generator[None, object, object]:
    try:
        return (yield)
    except PerflineError as error:
        problem = error
    # Outside of the handler, or pytest would show the error a second time as the context.
    case = _case_of(item)
    if isinstance(problem, MissingData | MissingRanks) and case is not None:
        session = _session(item.config)
        new = session.add_skipped(case, str(problem))
        if not session.options.strict:
            pytest.skip(str(problem))
        if not new:
            pytest.fail(f"case '{case.id}' is absent, as told above", pytrace=False)
    pytest.fail(str(problem), pytrace=False)


def _note(request: pytest.FixtureRequest) -> Callable[[str, object], None]:
    """Where a test's properties go: to its report, or to the JUnit file's test suite.

    In the family ``xunit2``, pytest's default, a test case may not have properties: Jenkins' xUnit
    plugin refuses the whole file (its ``junit-10.xsd``); a test suite may.
    """
    config = request.config
    junit = config.pluginmanager.hasplugin("junitxml") and config.getoption("xmlpath")
    if junit and config.getini("junit_family") == "xunit2":
        record: Callable[[str, object], None] = request.getfixturevalue("record_testsuite_property")
        return record
    properties = request.node.user_properties
    return lambda name, value: properties.append((name, value))


def _pytest_is_strict(config: pytest.Config) -> bool:
    """Whether pytest's own strict mode is on: its option, or its ini setting from pytest 9 on."""
    if "--strict" in config.invocation_params.args:
        return True
    try:
        return bool(config.getini("strict"))
    except (KeyError, ValueError):  # before pytest 9
        return False


def _write(config: pytest.Config) -> Callable[[str], None] | None:
    """Write to the real terminal, past pytest's capture; None where there is none."""
    reporter: Any = config.pluginmanager.getplugin("terminalreporter")
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    if reporter is None or capture is None:
        return None

    def write(text: str) -> None:
        with capture.global_and_fixture_disabled():
            reporter.write(text, flush=True)

    return write


def _say(config: pytest.Config) -> Callable[[str], None]:
    write = _write(config)
    return lambda line: write(f"\nperfline: {line}\n") if write is not None else None


def _progress(config: pytest.Config) -> Callable[[str], Callable[[int, int], None]] | None:
    """Progress of long passes."""
    write = _write(config)
    reporter: Any = config.pluginmanager.getplugin("terminalreporter")
    if write is None:
        return None
    from perfline.measure.progress import ProgressLine

    return lambda what: ProgressLine(what, write, reporter.isatty)
