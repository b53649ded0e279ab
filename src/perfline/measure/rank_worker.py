"""What does a rank other than the first do with what rank 0 asks?

It opens the cases that rank 0 opens, and takes part in its passes and rounds; under pytest
(``ranks``) and in ``perfline compare`` (``compare.serve``) alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from perfline.cases.case import Case
from perfline.distributed.group import Group
from perfline.distributed.replica import Replica, check_alike
from perfline.engines.engine import EngineName, run_pass
from perfline.errors import PerflineError, ReplicaLost
from perfline.measure.accuracy import AccuracyRun, SharedRunner
from perfline.measure.case_run import CaseRun, LoadedCase
from perfline.measure.parallel_accuracy import help_with
from perfline.measure.parallel_rounds import STEPS, serve


@dataclass
class RankWorker:
    """What a rank other than the first has open: one case at a time.

    Attributes:
        open: opens a case, over the ranks of a replica where the model is split.
        case_run: what measures an opened case.
    """

    cases: Mapping[str, Case]
    open: Callable[[Case, Replica | None], LoadedCase]
    case_run: Callable[[Case, LoadedCase], CaseRun]
    _case_run: CaseRun | None = None
    _opened: int = 0  # the last case that was opened, by rank 0's count

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
            assert self._case_run is not None
            timed = self._case_run.timed_run(command["engine"])
            check_alike(command["identity"], timed.identity)
            serve(group, number, timed)
        elif not group.is_over(number, len(command["units"])):
            run = self._prepare(group, case, engine, command["opened"])
            assert run is not None
            check_alike(command["identity"], run.identity)
            assert self._case_run is not None
            assert engine is not None
            asked = {prompt.id: prompt for prompt in self._case_run.prompts_of(engine)}
            help_with(group, number, command["units"], run, asked)

    def close(self) -> None:
        """Free what is open."""
        if self._case_run is not None:
            self._case_run.loaded.close()
            self._case_run = None

    def _prepare(
        self, group: Group, case: Case, engine: EngineName | None, opened: int
    ) -> AccuracyRun | None:
        """The case opened, and the engine ready, where one is named."""
        if self._case_run is None or self._opened != opened:
            self._open(group, case, opened)
        assert self._case_run is not None
        return None if engine is None else self._case_run.helper(engine)

    def _open(self, group: Group, case: Case, opened: int) -> None:
        self.close()
        self._opened = opened
        tensor = case.parallel.tensor
        found = self.open(case, None if tensor == 1 else Replica(group, tensor, opened))
        self._case_run = self.case_run(case, found)

    def _follow(self, group: Group, case: Case, opened: int) -> None:
        """Hold a share of the model, and run what the replica's first rank runs, to its close."""
        self.close()
        self._opened = opened
        replica = Replica(group, case.parallel.tensor, opened)
        try:
            found = self.open(case, replica)
        except PerflineError:
            return  # the replica's first rank knows, and tells
        try:
            follow(replica, self.case_run(case, found))
        finally:
            found.close()


def follow(replica: Replica, case_run: CaseRun) -> None:
    """Run what the replica's first rank runs, until it closes the case.

    What goes wrong on all ranks alike is told by the first, who meets it too.
    """
    loaded = case_run.loaded
    asked = [prompt for some in (loaded.prompts, *loaded.more.values()) for prompt in some]
    by_id = {(prompt.task, prompt.id): prompt for prompt in asked}  # two tasks may share an id
    runners: dict[EngineName, SharedRunner | None] = {}
    while (said := replica.hear())["do"] != "close":
        name: EngineName = said.get("engine", "")
        prompts = [by_id[said["task"], each] for each in said.get("prompts", ())]
        try:
            with replica.failing():
                if said["do"] == "fidelity":
                    runners.clear()  # it may begin with new engines, and end with them
                    case_run.fidelity()
                elif said["do"] == "pass":
                    run_pass(loaded.engine(name), prompts, said["head"])
                else:
                    if name not in runners:
                        runners[name] = loaded.shared(name, lambda line: None)
                    runner = runners[name]
                    assert runner is not None
                    runner.follow(said, prompts)
        except PerflineError:
            if replica.broken:
                raise ReplicaLost(replica.broken) from None


def obey_all(group: Group, helper: RankWorker) -> Mapping[str, Any]:
    """Do what rank 0 asks until it says that it is over; its last command.

    What goes wrong for a user is told to rank 0, and this rank goes on.
    """
    number, command = group.command()
    while command["do"] != "end":
        try:
            helper.obey(group, number, command)
        except ReplicaLost as error:
            group.tell("lost", text=str(error))
        except PerflineError as error:
            said = {"pass": number, "text": str(error), "error": type(error).__name__}
            group.tell("failed", **said)
        number, command = group.command()
    return command
