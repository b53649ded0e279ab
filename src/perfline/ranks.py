"""What does pytest do on each rank of a torchrun job?

On rank 0 all that it does without torchrun, on the others nothing but answering what rank 0 asks
(``parallel``): no collection, no output, no file. Every rank exits with rank 0's status.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from perfline.accuracy import AccuracyRun
from perfline.bench import Bench, open_case
from perfline.case import Case
from perfline.device import current_device
from perfline.engine import EngineName
from perfline.environment import collect
from perfline.errors import PerflineError, RankError
from perfline.group import Group
from perfline.line import Options, Tools
from perfline.mmlu import Prompt
from perfline.parallel import Lead, check_alike, help_with
from perfline.replica import Replica, follow
from perfline.rounds import STEPS, serve

GROUP = pytest.StashKey[Group]()
LEAD = pytest.StashKey[Lead]()
_TESTED = (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun, or what sets the same variables, started this process beside others."""
    return all(environ.get(name) for name in _NEEDED) and environ["WORLD_SIZE"] != "1"


def attempt(environ: Mapping[str, str] = os.environ) -> int:
    """How often torchrun has started the job again."""
    return int(environ.get("TORCHELASTIC_RESTART_COUNT") or 0)


def join(timeout_s: float) -> Group:
    """Meet the other ranks, and take this rank's device.

    RankError where they are not reached, or where the device is not to be had.
    """
    from torch.distributed.rendezvous import rendezvous

    environ, host = os.environ, socket.gethostname()
    rank, ranks = int(environ["RANK"]), int(environ["WORLD_SIZE"])
    try:
        store: Any = next(iter(rendezvous("env://", timeout=timedelta(seconds=timeout_s))))[0]
    except (RuntimeError, ValueError, OSError) as error:
        place = f"{environ['MASTER_ADDR']}:{environ['MASTER_PORT']}"
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise RankError(
            f"rank {rank} on {host} did not reach the store at {place} within {timeout_s:g} s "
            f"({first})"
        ) from error
    store = getattr(store, "underlying_store", store)  # some versions of torch prefix an attempt
    group = Group(rank, ranks, host, store, timeout_s, attempt())
    group.join()
    _take_device(group, int(environ.get("LOCAL_RANK") or 0))
    return group


def _take_device(group: Group, local_rank: int) -> None:
    """Make this rank's accelerator the current one; nothing to do on a CPU."""
    import torch

    if not torch.accelerator.is_available():
        return
    count = torch.accelerator.device_count()
    index = 0 if count == 1 else local_rank  # Slurm may show each task its own device alone
    if index < count:
        torch.accelerator.set_device_index(index)
        module: Any = torch.get_device_module()
        properties = module.get_device_properties(index)
        if group.claim(str(getattr(properties, "uuid", index))):
            return
    raise RankError(
        f"rank {group.rank} on {group.host} finds no device of its own: {count} there; start as "
        "many ranks as devices (--nproc-per-node=gpu)"
    )


class Joined:
    """Meets the other ranks before pytest does anything, and leaves them at its end."""

    _lead: Lead | None = None

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
        self._lead = lead = config.stash[LEAD] = Lead(group)
        status: int | pytest.ExitCode | None = pytest.ExitCode.USAGE_ERROR
        with _terminated_is_interrupted():
            try:
                status = yield
            finally:
                status = _end(lead, status)
        return status

    @pytest.hookimpl
    def pytest_runtest_logstart(self) -> None:
        """A test that starts is a sign of life."""
        if self._lead is not None:
            with suppress(RankError):  # told where it matters: at the next shared pass, or the end
                self._lead.alive()


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
        cases = {case.id: case for case in self._selected(config)}
        with _unseen(config) as seen:
            return _serve(group, Helper(cases, self._options(config), config.rootpath), seen)


@dataclass
class Helper:
    """What a rank other than the first has open: one case at a time."""

    cases: Mapping[str, Case]
    options: Options
    root: Path
    _tools: Tools | None = None
    _bench: Bench | None = None
    _opened: int = 0  # the last case that was opened, by rank 0's count
    _prompts: dict[str, Prompt] = field(default_factory=dict)

    def obey(self, group: Group, number: int, command: Mapping[str, Any]) -> None:
        """Do what rank 0 asks; a rank that follows another does what that one tells meanwhile."""
        if command["do"] in STEPS:  # of rounds in which this rank has failed
            return
        case, engine = self.cases[command["case"]], command.get("engine")
        if group.rank % case.parallel.tensor:
            if self._opened < command["opened"]:
                self._follow(group, case, command["opened"])
        elif command["do"] in ("open", "prepare"):
            # What goes wrong is told where rank 0 needs this rank: it may fail in the same way.
            with suppress(PerflineError):
                self._prepare(group, case, engine, command["opened"])
        elif command["do"] == "time":
            self._prepare(group, case, None, command["opened"])
            assert self._bench is not None
            timed = self._bench.timed_run(command["engine"])
            check_alike(command["identity"], timed.identity)
            serve(group, number, timed)
        elif not group.is_over(number, len(command["units"])):
            run = self._prepare(group, case, engine, command["opened"])
            assert run is not None
            check_alike(command["identity"], run.identity)
            help_with(group, number, command["units"], run, self._prompts)

    def close(self) -> None:
        """Free what is open."""
        if self._bench is not None:
            self._bench.opened.close()
            self._bench = None

    def _prepare(
        self, group: Group, case: Case, engine: EngineName | None, opened: int
    ) -> AccuracyRun | None:
        """The case opened, and the engine ready, where one is named."""
        if self._bench is None or self._opened != opened:
            self._open(group, case, opened)
        assert self._bench is not None
        return None if engine is None else self._bench.helper(engine)

    def _open(self, group: Group, case: Case, opened: int) -> None:
        self.close()
        self._opened = opened
        tensor, tools = case.parallel.tensor, self._get_tools()
        replica = None if tensor == 1 else Replica(group, tensor, opened)
        found = tools.open(case, self.options, replica)
        self._bench = tools.bench(case, found, self.options)
        self._prompts = {prompt.id: prompt for prompt in found.prompts}

    def _follow(self, group: Group, case: Case, opened: int) -> None:
        """Hold a share of the model, and run what the replica's first rank runs, to its close."""
        self.close()
        self._opened = opened
        replica = Replica(group, case.parallel.tensor, opened)
        try:
            found: Any = self._get_tools().open(case, self.options, replica)
        except PerflineError:
            return  # the replica's first rank knows, and tells
        try:
            follow(replica, found)
        finally:
            found.close()

    def _get_tools(self) -> Tools:
        if self._tools is None:
            self._tools = Tools(
                opener=open_case,
                environment=collect(self.root),
                device=current_device(),
                clock=time.perf_counter,
                progress=None,
                say=lambda line: None,
            )
        return self._tools


def _serve(group: Group, helper: Helper, seen: Callable[[str], None]) -> int:
    """Answer until rank 0 ends; ``seen`` shows a text on the terminal. Returns its exit status."""
    try:
        number, command = group.command()
        while command["do"] != "end":
            try:
                helper.obey(group, number, command)
            except PerflineError as error:
                group.tell(
                    "failed", error=type(error).__name__, **{"pass": number, "text": str(error)}
                )
            number, command = group.command()
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
        with suppress(RankError):
            group.tell("crashed", text=f"{type(error).__name__}: {first}")
            while group.command()[1]["do"] != "end":  # or torchrun would end rank 0 unheard
                pass
            group.leave()
    return int(pytest.ExitCode.TESTS_FAILED)


def _end(lead: Lead, status: int | pytest.ExitCode | None) -> int | pytest.ExitCode | None:
    """Tell the other ranks; the status to exit with, which is no success if one of them failed."""
    ended = status in (pytest.ExitCode.OK, *_TESTED)
    try:
        lead.end(int(status or 0), wait=ended)
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
