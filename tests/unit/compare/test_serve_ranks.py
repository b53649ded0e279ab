"""A launch of several ranks: threads with scripted engines; torchrun is in tests/e2e."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from fake_ranks import groups
from fakes import DEVICE, ENVIRONMENT, FakeClock, FakeEngine, FakeLoadedCase, FakeLogits, prompts
from perfline.compare import messages, serve, wire
from perfline.compare.model import Turn, Workload
from perfline.compare.serve import Launch, assist
from perfline.errors import DeviceMemory, MissingRanks, PerflineError, RankError

WORKLOAD = Workload("tiny", (), None, "real", "eager", 6, ranks=2)
SETTINGS = ["throughput.sample=8"]


@contextmanager
def launched(
    monkeypatch: pytest.MonkeyPatch,
    *scripts: dict[str, Any],
    workload: Workload = WORKLOAD,
    settings: list[str] = SETTINGS,
) -> Iterator[tuple[Launch, list[FakeEngine]]]:
    """A launch; the n-th script is that of rank n's engine."""
    engines = [FakeEngine(workload.engine, FakeClock(), **script) for script in scripts]
    first, *others = groups(len(scripts))
    ranks = {threading.current_thread(): 0}

    def opened(*arguments: Any) -> FakeLoadedCase:
        return FakeLoadedCase({workload.engine: engines[ranks[threading.current_thread()]]})

    monkeypatch.setattr(serve, "open_case", opened)
    monkeypatch.setattr(serve, "current_device", lambda: DEVICE)
    monkeypatch.setattr(serve, "collect", lambda root: ENVIRONMENT)
    threads = []
    for group in others:
        thread = threading.Thread(target=assist, args=(group,), daemon=True)
        ranks[thread] = group.rank
        thread.start()
        threads.append(thread)
    sent = {"workload": messages.workload_json(workload), "settings": settings}
    launch: list[Launch] = []
    try:
        launch.append(Launch.open(wire.parse(wire.line(ask="open", **sent), "parent"), first))
        yield launch[0], engines
    finally:
        rounds = launch[0]._rounds if launch else None
        if rounds is not None:
            rounds.over()
        first.post({"do": "end"})
        for thread in threads:
            thread.join(timeout=20)
            assert not thread.is_alive()


def test_a_launch_is_of_all_ranks(monkeypatch: pytest.MonkeyPatch):
    with launched(monkeypatch, {}, {}) as (launch, _):
        found = launch.ready()
        assert found.machine == f"{ENVIRONMENT.machine}-2-nodes-x2"  # the threads' hosts differ
        assert len(found.others) == 1
        assert found.tokens == sum(len(prompt.ids) for prompt in launch.case_run.sample)
        done = launch.round(Turn(3))
        assert done.tokens == 2 * 3 * found.tokens
        assert 0 < done.core_s <= done.whole_s
        assert done.faults == ()
        assert launch.round(Turn(1)).tokens == 2 * found.tokens  # as often as is asked, each time
        assert len(launch.answers().ids) == 6


def test_what_is_computed_in_fp32_is_of_the_first_rank_and_of_no_shared_prefix(
    monkeypatch: pytest.MonkeyPatch,
):
    def shared(*_: object) -> None:
        raise AssertionError("a comparison runs each prompt by itself")

    monkeypatch.setattr(FakeLogits, "shared", shared)
    with launched(monkeypatch, {}, {}) as (launch, _):
        launch.ready()
        assert launch.fidelity({}).problem == ""
        assert launch.round(Turn(1)).faults == ()  # the other rank is still there


def test_compile_health_and_memory_are_those_of_the_worst_rank(monkeypatch: pytest.MonkeyPatch):
    compiled = replace(WORKLOAD, engine="inductor")
    odd = {"graphs_at": (0, 3), "breaks": 2, "memory_gib": 7.0}
    healthy = {"graphs_at": (0,), "memory_gib": 3.0}
    with launched(monkeypatch, healthy, odd, workload=compiled) as (launch, _):
        found = launch.ready()
        assert (found.graphs, found.graph_breaks, found.recompiles) == (1, 2, 1)
        assert launch.round(Turn(1)).faults == ()
        assert launch.peak_memory_gib() == 7.0


def test_a_recompile_of_any_rank_is_a_fault_of_its_round(monkeypatch: pytest.MonkeyPatch):
    compiled = replace(WORKLOAD, engine="inductor")
    late = {"graphs_at": (0, 1 + 8 + 2)}  # compile, warm-up, then the first round
    with launched(monkeypatch, {"graphs_at": (0,)}, late, workload=compiled) as (launch, _):
        launch.ready()
        assert launch.round(Turn(1)).faults == ("1 graphs were compiled inside the round",)
        assert launch.round(Turn(1)).faults == ()


def test_a_rank_that_answers_otherwise_spoils_the_round(monkeypatch: pytest.MonkeyPatch):
    wrong = frozenset(prompt.id for prompt in prompts())
    with launched(monkeypatch, {}, {"wrong": wrong}) as (launch, _):
        launch.ready()
        (fault,) = launch.round(Turn(1)).faults
        assert fault.startswith("rank 1 on host-1: 8 of 8 timed answers differ from rank 0's")


def test_all_processes_of_both_sides_are_told_to_every_watch(monkeypatch: pytest.MonkeyPatch):
    seen: list[list[int]] = []
    monkeypatch.setattr(
        "perfline.measure.parallel_rounds._others", lambda pids: seen.append(list(pids)) or []
    )
    with launched(monkeypatch, {}, {}) as (launch, _):
        found = launch.ready()
        launch.round(Turn(1), [12, 34])
        assert seen == [[12, 34, found.pid, *found.others]] * 2


@pytest.mark.parametrize("kind", [DeviceMemory, RankError])
def test_an_error_of_a_rank_names_it_and_a_full_device_stays_one(
    monkeypatch: pytest.MonkeyPatch, kind: type[PerflineError]
):
    with launched(monkeypatch, {}, {}) as (launch, engines):
        launch.ready()

        def fails(batch: object, head: object) -> None:
            raise kind("no room")

        monkeypatch.setattr(engines[1], "forward", fails)
        with pytest.raises(kind, match=r"^rank 1 on host-1: no room$"):
            launch.round(Turn(1))
        launch._rounds = None  # that rank is out of the pass


def test_a_full_device_outside_of_a_forward_is_told_as_one(monkeypatch: pytest.MonkeyPatch):
    import torch

    with launched(monkeypatch, {}, {}) as (launch, engines):
        launch.ready()

        def copies(prompt: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(engines[1], "prepare", copies)
        with pytest.raises(DeviceMemory, match=r"^rank 1 on host-1: .*out of memory on Fake CPU"):
            launch.round(Turn(1))
        launch._rounds = None


def test_a_model_split_over_more_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch):
    settings = [*SETTINGS, "parallel.tensor=3"]
    with (
        pytest.raises(MissingRanks, match="expected a multiple of 3"),
        launched(monkeypatch, {}, {}, settings=settings),
    ):
        pass
