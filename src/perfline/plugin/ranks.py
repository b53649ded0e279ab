"""What does pytest do on each rank of a torchrun job?

On rank 0 all that it does without torchrun, on the others nothing but answering what rank 0 asks
(``parallel_accuracy``): no collection, no output, no file. Every rank exits with rank 0's status.
"""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from perfline.cases.case import Case
from perfline.distributed.group import Group, join
from perfline.engines.device import current_device
from perfline.engines.environment import collect
from perfline.errors import RankError
from perfline.measure.case_run import open_case
from perfline.measure.notices import Notices
from perfline.measure.parallel_accuracy import RankCoordinator
from perfline.measure.rank_worker import RankWorker, obey_all
from perfline.plugin.session import Options, Tools

GROUP = pytest.StashKey[Group]()
COORDINATOR = pytest.StashKey[RankCoordinator]()
_TESTED = (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)


class Joined:
    """Meets the other ranks before pytest does anything, and leaves them at its end."""

    _coordinator: RankCoordinator | None = None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_cmdline_main(
        self, config: pytest.Config
    ) -> Generator[None, int | pytest.ExitCode | None, int | pytest.ExitCode | None]:
        """Around everything; rank 0 tells the others how it ended."""
        try:
            group = config.stash[GROUP] = join(config.getoption("rank_timeout"))
            over = group.ended() is not None
        except RankError as error:
            raise pytest.UsageError(str(error)) from None
        if group.rank or over:
            return (yield)
        self._coordinator = coordinator = config.stash[COORDINATOR] = RankCoordinator(group)
        status: int | pytest.ExitCode | None = pytest.ExitCode.USAGE_ERROR
        with _terminated_is_interrupted():
            try:
                status = yield
            finally:
                status = _end(coordinator, status)
        return status

    @pytest.hookimpl
    def pytest_collectstart(self) -> None:
        """A file that is collected is a sign of life: there may be many."""
        self.pytest_runtest_logstart()

    @pytest.hookimpl
    def pytest_runtest_logstart(self) -> None:
        """A test that starts is a sign of life."""
        if self._coordinator is not None:
            with suppress(RankError):  # told where it matters: at the next shared pass, or the end
                self._coordinator.alive()


class Serving:
    """What a rank does instead of running tests."""

    def __init__(
        self,
        options: Callable[[pytest.Config], Options],
        selected: Callable[[pytest.Config], Sequence[Case]],
    ) -> None:
        """``options`` and ``selected`` read the command line."""
        self._options, self._selected = options, selected

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> int | None:
        """Answer, or do nothing where an earlier attempt came to its end; None on rank 0."""
        group = config.stash[GROUP]
        status = group.ended()
        if status is not None:
            if group.rank == 0:
                line = f"perfline: the job ended with status {status} already; not done again\n"
                sys.stdout.write(line)
            return status
        if group.rank == 0:
            return None
        try:
            cases = {case.id: case for case in self._selected(config)}
        except pytest.UsageError as error:  # rank 0 says its own, or this one
            _tell_crash(group, str(error))
            return int(pytest.ExitCode.USAGE_ERROR)
        with _unseen(config) as seen:
            helper = _helper(cases, self._options(config), config.rootpath)
            with Notices().listening():
                return _serve(group, helper, seen)


def _helper(cases: Mapping[str, Case], options: Options, root: Path) -> RankWorker:
    @cache  # what it takes is not imported before rank 0 opens a case
    def tools() -> Tools:
        return Tools(
            opener=open_case,
            environment=collect(root),
            device=current_device(),
            clock=time.perf_counter,
            progress=None,
            say=lambda line: None,
        )

    return RankWorker(
        cases,
        open=lambda case, replica: tools().open(case, options, replica),
        case_run=lambda case, found: tools().case_run(case, found, options),
    )


def _serve(group: Group, helper: RankWorker, seen: Callable[[str], None]) -> int:
    """Answer until rank 0 ends; ``seen`` shows a text on the terminal. Returns its exit status."""
    try:
        command = obey_all(group, helper)
        helper.close()
        group.leave()
        return int(command["status"])
    except KeyboardInterrupt:
        return int(pytest.ExitCode.INTERRUPTED)
    except RankError as error:
        seen(f"ERROR: {error}\n")
    except Exception as error:  # whatever it is: rank 0 and the terminal have to learn of it
        first = (str(error) or type(error).__name__).splitlines()[0]
        seen(f"ERROR: rank {group.rank} on {group.host}:\n{traceback.format_exc()}")
        _tell_crash(group, f"{type(error).__name__}: {first}")
    return int(pytest.ExitCode.TESTS_FAILED)


def _tell_crash(group: Group, text: str) -> None:
    """Tell rank 0, and wait for its end: torchrun would end it unheard."""
    with suppress(RankError):
        group.tell("crashed", text=text)
        while group.command()[1]["do"] != "end":
            pass
        group.leave()


def _end(
    coordinator: RankCoordinator, status: int | pytest.ExitCode | None
) -> int | pytest.ExitCode | None:
    """Tell the other ranks; the status to exit with, which is no success if one of them failed."""
    ended = status in (pytest.ExitCode.OK, *_TESTED)
    try:
        coordinator.end(int(status or 0), wait=ended)
    except RankError as error:
        sys.stderr.write(f"ERROR: {error}\n")
        return status or pytest.ExitCode.TESTS_FAILED
    return status


@contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """Let SIGTERM, which torchrun sends when another rank died, end pytest as Ctrl-C does.

    The record is then written, and marked partial.
    """

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt("SIGTERM: torchrun ends all ranks when one has failed")

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _unseen(config: pytest.Config) -> Iterator[Callable[[str], None]]:
    """Keep what is printed from the terminal; yields what still writes there."""
    capture: Any = config.pluginmanager.getplugin("capturemanager")

    def seen(text: str) -> None:
        with capture.global_and_fixture_disabled():
            sys.stderr.write(text)
            sys.stderr.flush()

    capture.resume_global_capture()
    try:
        yield seen
    finally:
        capture.suspend_global_capture(in_=True)
        capture.read_global_capture()
