"""What each rank does, without torchrun: tests/e2e/test_torchrun.py has the real one."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass, field

import pytest

from fake_ranks import groups
from perfline.distributed import group
from perfline.distributed.group import Group
from perfline.errors import EngineError, RankError
from perfline.measure.accuracy import AccuracyOptions
from perfline.measure.parallel_accuracy import RankCoordinator
from perfline.plugin import ranks
from perfline.plugin.session import Options

ENVIRON = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def test_only_a_rank_beside_others_is_one():
    assert group.launched(ENVIRON)
    assert not group.launched({**ENVIRON, "WORLD_SIZE": "1"})
    assert not group.launched({"RANK": "0", "WORLD_SIZE": "2"})
    assert not group.launched({})


@pytest.mark.parametrize(
    ("environ", "task", "who"),
    [
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, 1, "srun started this as task 1 of 2"),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, 0, "Open MPI started"),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, 1, "MPI started"),
        ({"MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_RANK": "1"}, 1, "MVAPICH started"),
        ({"PET_NNODES": "2", "PET_NODE_RANK": "1"}, 1, "PyTorchJob started"),
        (
            {"WORLD_SIZE": "2", "RANK": "1"},
            1,
            "(RANK, WORLD_SIZE), without what ranks meet by (MAS",
        ),
        # One replica of a PyTorchJob in each of two tasks.
        (
            {**ENVIRON, "WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"},
            1,
            "without what ranks meet by (WORLD_SIZE above 1)",
        ),
    ],
)
def test_one_of_several_tasks_that_do_not_meet_is_told_by_its_launcher(environ, task, who):
    found = group.lone_task(environ)
    assert found is not None
    assert found[0] == task
    assert who in found[1]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        ENVIRON,
        {**ENVIRON, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"},
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {"SLURM_NTASKS": "2", "SLURM_PROCID": "0"},  # sbatch's own script
        {"PET_NNODES": "1:4", "PET_NODE_RANK": "0"},
        {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "here", "MASTER_PORT": "1"},
    ],
)
def test_who_is_alone_or_meets_the_others_is_no_lone_task(environ):
    assert group.lone_task(environ) is None


def test_ranks_of_this_host_are_those_that_one_command_can_start_here():
    assert group.ranks_here({}) == 1
    assert group.ranks_here(ENVIRON) == 2
    two_nodes = {**ENVIRON, "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}
    assert group.ranks_here(two_nodes) == 8


def test_what_settles_a_verdict_of_ranks_starts_as_many(tmp_path):
    nowhere, options = tmp_path / "nowhere", AccuracyOptions()
    found = Options(None, nowhere, nowhere, False, False, "dummy", options, None, tmp_path, ranks=8)
    assert found.settle_flags == "--dummy-weights --ranks=8"


def test_restarts_are_counted():
    assert group.attempt({}) == 0
    assert group.attempt({"TORCHELASTIC_RESTART_COUNT": "2"}) == 2


@dataclass
class Scripted:
    """``rank_worker.RankWorker`` that raises what it is told to, once."""

    error: Exception | None = None
    asked: list[dict] = field(default_factory=list)

    def obey(self, group, number, command):
        self.asked.append(command)
        if self.error is not None:
            raise self.error

    def close(self):
        self.asked.append({"do": "close"})


def served(helper, commands, status=0, shown=None):
    """A serving rank beside a rank 0 that asks ``commands``; what it showed, its status."""
    first, other = groups(2)
    shown = [] if shown is None else shown
    found: list[int] = []
    thread = threading.Thread(
        target=lambda: found.append(ranks._serve(other, helper, shown.append))
    )
    thread.start()
    lead = RankCoordinator(first)
    for command in commands:
        first.post(command)
    try:
        lead.end(status, wait=True)
    finally:
        thread.join(timeout=20)
    return shown, found


def test_a_rank_exits_with_rank_0_s_status_and_shows_nothing():
    helper = Scripted()
    shown, found = served(helper, [{"do": "prepare", "case": "x", "engine": None}], status=1)
    assert (shown, found, len(helper.asked)) == ([], [1], 2)
    assert helper.asked[-1] == {"do": "close"}


def test_an_error_for_users_is_told_to_rank_0_alone_and_the_rank_goes_on():
    helper = Scripted(EngineError("logits are not finite"))
    shown, found = served(helper, [{"do": "answer"}, {"do": "answer"}])
    assert (shown, found, len(helper.asked)) == ([], [0], 3)


def test_a_crash_is_shown_told_and_fails_the_job():
    helper = Scripted(ZeroDivisionError("division by zero"))
    shown: list[str] = []
    with pytest.raises(RankError, match="rank 1 on host-1 crashed: ZeroDivisionError: division"):
        served(helper, [{"do": "answer"}], shown=shown)
    assert shown[0].startswith("ERROR: rank 1 on host-1:\nTraceback")
    assert "ZeroDivisionError" in shown[0]


def test_a_rank_whose_rank_0_is_silent_says_so_and_fails():
    _, other = groups(2, timeout_s=0.1)
    shown: list[str] = []
    assert ranks._serve(other, Scripted(), shown.append) == 1
    assert shown[0].startswith("ERROR: rank 1 on host-1 waited for rank 0 on host-0")


@pytest.mark.parametrize(("status", "exit_status"), [(0, 1), (1, 1)])
def test_a_rank_that_does_not_end_fails_a_job_that_has_passed(status, exit_status, capsys):
    first, _ = groups(2, timeout_s=0.05)
    assert ranks._end(RankCoordinator(first), status) == exit_status
    assert "waited 0.05 s for rank 1 on host-1 to end" in capsys.readouterr().err


@pytest.mark.parametrize("status", [pytest.ExitCode.INTERRUPTED, pytest.ExitCode.USAGE_ERROR])
def test_nobody_is_waited_for_after_an_interrupt(status):
    first, _ = groups(2, timeout_s=20)
    assert ranks._end(RankCoordinator(first), status) == status
    assert first.ended() is None


def test_torch_s_own_store_does_what_a_group_needs():
    from datetime import timedelta

    from torch.distributed import TCPStore

    wait = timedelta(seconds=20)
    server = TCPStore("127.0.0.1", 0, None, True, wait, wait_for_workers=False)
    client = TCPStore("127.0.0.1", server.port, None, False, wait, wait_for_workers=False)
    first, other = Group(0, 2, "a", server, 5.0), Group(1, 2, "b", client, 5.0)
    first.join()
    other.join()
    assert first.post({"do": "answer", "units": [["s/0"]]}) == 0
    assert other.command() == (0, {"do": "answer", "units": [["s/0"]]})
    assert [other.take(0), first.take(0), other.is_over(0, 2)] == [0, 1, True]
    other.tell("took", unit=0)
    assert list(first.messages()) == [{"kind": "took", "rank": 1, "unit": 0}]
    assert (list(first.messages()), first.name(1), other.ended()) == ([], "rank 1 on b", None)
    first.end(1, final=True)
    # A set is on its way when it returns; what the same client asks next comes after it.
    assert [first.ended(), other.ended()] == [1, 1]
    with pytest.raises(RankError, match="knows this rank already"):
        other.join()


def test_a_store_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch):
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    expected = r"^rank 1 on .* did not reach the store at 127\.0\.0\.1:1 within 1 s \(.*127\.0"
    with pytest.raises(RankError, match=expected) as told:
        group.join(1)
    assert "\n" not in str(told.value)


def test_rank_0_names_who_did_not_come(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name, value in {**ENVIRON, "RANK": "0", "WORLD_SIZE": "3", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    with pytest.raises(RankError, match=r"^waited 0\.2 s for rank 1, 2 of 3 to join: it hangs, or"):
        group.join(0.2)


def test_a_rank_that_is_no_number_is_one_line(monkeypatch):
    for name, value in {**ENVIRON, "RANK": "one"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RankError, match=r"^RANK=one, WORLD_SIZE=2, .*: expected whole numbers"):
        group.join(1)


def test_a_node_that_is_not_known_by_name_is_told_at_once(monkeypatch):
    place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RankError, match=r"rank 1 on .* know the host name 'nowhere.invalid'.*--lo"):
        group.join(20.0)
