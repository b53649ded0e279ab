"""A replica's ranks as threads: what is told, agreed and followed; no process, no torch world."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from fake_ranks import groups
from fakes import DEVICE, FakeClock, FakeEngine, FakeLoadedCase, prompts
from perfline.cases.case import PACKAGED_CASES, load_case
from perfline.distributed.replica import Replica
from perfline.engines import tensor_parallel
from perfline.engines.device import current_device
from perfline.engines.engine import run_pass
from perfline.engines.torch_engine import told
from perfline.errors import (
    CaseError,
    DeviceMemory,
    EngineError,
    MissingRanks,
    NoFidelity,
    RankError,
    ReplicaLost,
)
from perfline.measure.case_run import CaseRun, open_case
from perfline.measure.parallel_accuracy import RankCoordinator
from perfline.measure.rank_worker import follow

TINY = load_case(PACKAGED_CASES / "tiny.yaml")


def split(tensor):
    return dataclasses.replace(TINY, parallel=dataclasses.replace(TINY.parallel, tensor=tensor))


def replicas(size, ranks=None, timeout_s=20.0):
    return [Replica(group, size, 1) for group in groups(ranks or size, timeout_s=timeout_s)]


def beside(work):
    """Run it in a thread; what it raises is in the list that comes back with the thread."""
    raised: list[BaseException] = []

    def run():
        try:
            work()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


def measuring(opened):
    return CaseRun(TINY, opened, DEVICE)


def test_every_size_th_rank_leads():
    found = [(replica.first, replica.place) for replica in replicas(2, ranks=4)]
    assert found == [(0, 0), (0, 1), (2, 0), (2, 1)]


def test_the_others_run_the_passes_that_the_first_one_runs_and_end_with_it():
    """Of each task: those of another have the same ids here, and prompts twice as long."""
    lead, other = replicas(2)
    asked = prompts(6)
    more = [
        dataclasses.replace(each, task="cmmlu", ids=np.tile(each.ids, 2)) for each in prompts(6)
    ]
    engine = FakeEngine("inductor", FakeClock())
    opened = FakeLoadedCase({"inductor": engine}, asked, more={"cmmlu": more})
    thread, raised = beside(lambda: follow(other, measuring(opened)))
    for head, some in (("last", [asked[4], asked[1]]), ("all", [asked[0]]), ("last", [more[1]])):
        lead.tell(do="pass", engine="inductor", head=head, **told(some))
    lead.leave()
    thread.join(timeout=20)
    assert raised == []
    forwards = [entry for entry in engine.log if entry.startswith("forward")]
    told_of = zip(
        (asked[4], asked[1], asked[0], more[1]), ("last", "last", "all", "last"), strict=True
    )
    assert forwards == [f"forward {each.id} {head}" for each, head in told_of]
    tokens = sum(len(each.ids) for each in (asked[4], asked[1], asked[0], more[1]))
    assert engine.clock.now == pytest.approx(1e-4 * tokens)


def test_what_the_ranks_do_in_step_is_told_once():
    lead, other = replicas(2)
    engine = FakeEngine("eager", FakeClock())
    followed = measuring(FakeLoadedCase({"eager": engine}, prompts(20)))
    thread, raised = beside(lambda: follow(other, followed))
    with lead.in_step(do="fidelity"):
        lead.tell(do="pass", engine="no such engine")  # what a forward within would tell
    lead.tell(do="pass", engine="eager", head="last", **told(prompts(20)[:1]))
    lead.leave()
    thread.join(timeout=20)
    assert raised == []
    assert len(followed.computed) == 16
    assert "forward" in engine.log[-3]


def test_what_breaks_in_step_on_one_rank_is_told_to_the_others():
    lead, other = replicas(2)
    with pytest.raises(ZeroDivisionError), lead.in_step(do="fidelity"):
        1 / 0  # noqa: B018
    found = other.lost(RuntimeError("gloo: Connection closed by peer"))
    assert str(found) == "rank 0 on host-0: ZeroDivisionError: division by zero"


def test_a_rank_that_has_no_room_for_fp32_is_no_fault():
    lead, other = replicas(2)

    def fail():
        with other.agreeing():
            raise NoFidelity("takes 3.0 GiB more")

    thread, _ = beside(fail)
    with pytest.raises(NoFidelity, match=r"^rank 1 on host-1: takes 3\.0 GiB"), lead.agreeing():
        pass
    thread.join(timeout=20)


def test_what_fails_on_all_ranks_alike_ends_no_follower():
    lead, other = replicas(2)
    asked = prompts(4)
    engine = FakeEngine("eager", FakeClock(), nan=frozenset({asked[0].id}))
    thread, raised = beside(
        lambda: follow(other, measuring(FakeLoadedCase({"eager": engine}, asked)))
    )
    for prompt in (asked[0], asked[1]):
        lead.tell(do="pass", engine="eager", head="last", **told([prompt]))
    lead.leave()
    thread.join(timeout=20)
    assert (raised, engine.log[-3][:7]) == ([], "forward")


def test_a_rank_that_cannot_open_the_case_is_named_on_all_others():
    lead, other = replicas(2)

    def fail():
        with other.agreeing():
            raise EngineError("/data/weights: are absent")

    thread, raised = beside(fail)
    with (
        pytest.raises(RankError, match=r"^rank 1 on host-1: /data/weights: are absent$"),
        lead.agreeing(),
    ):
        pass
    thread.join(timeout=20)
    assert [type(error) for error in raised] == [EngineError]  # its own error goes first


def test_a_full_device_of_a_rank_stays_one():
    lead, other = replicas(2)

    def fail():
        with other.agreeing():
            raise DeviceMemory("no room: 3 GiB are free")

    thread, _ = beside(fail)
    with (
        pytest.raises(DeviceMemory, match=r"^rank 1 on host-1: no room: 3 GiB are free$"),
        lead.agreeing(),
    ):
        pass
    thread.join(timeout=20)


def test_a_rank_that_does_not_come_is_named():
    lead, _ = replicas(2, timeout_s=0.05)
    silent = r"waited for rank 1 on host-1, which has said nothing for 0.05 s"
    with pytest.raises(ReplicaLost, match=silent), lead.agreeing():
        pass
    with pytest.raises(ReplicaLost, match=silent):  # and not waited for again
        lead.tell(do="pass")


def test_a_share_of_another_model_is_refused_by_name_on_all_ranks():
    lead, other = replicas(2)
    thread, raised = beside(lambda: other.check_alike({"weights": "sha256:b", "torch": "2"}))
    refused = "its weights is sha256:b, rank 0's is sha256:a"
    with pytest.raises(RankError, match=f"rank 1 on host-1: {refused}"):
        lead.check_alike({"weights": "sha256:a", "torch": "2"})
    thread.join(timeout=20)
    assert str(raised[0]).startswith(refused)


def test_ranks_with_the_same_model_go_on():
    lead, other = replicas(2)
    thread, raised = beside(lambda: other.check_alike({"weights": "sha256:a"}))
    lead.check_alike({"weights": "sha256:a"})
    thread.join(timeout=20)
    assert raised == []


def test_the_rank_that_knows_why_is_told_instead_of_the_collective_that_failed():
    lead, other = replicas(2)
    other.fail("out of memory on Fake GPU: lower mmlu.max_prompt_tokens")
    found = lead.lost(RuntimeError("gloo: Connection closed by peer"))
    assert str(found) == "rank 1 on host-1: out of memory on Fake GPU: lower mmlu.max_prompt_tokens"
    with pytest.raises(ReplicaLost, match="out of memory on Fake GPU"):
        other.tell(do="pass")


def test_a_follower_that_crashes_tells_why_and_does_not_go_on():
    lead, other = replicas(2)
    asked = prompts(2)
    engine = FakeEngine("eager", FakeClock())
    engine.forward = lambda batch, head: 1 / 0
    thread, raised = beside(
        lambda: follow(other, measuring(FakeLoadedCase({"eager": engine}, asked)))
    )
    lead.tell(do="pass", engine="eager", head="last", **told(asked[:1]))
    thread.join(timeout=20)
    assert [type(error) for error in raised] == [ZeroDivisionError]
    found = lead.lost(RuntimeError("gloo: Connection closed by peer"))
    assert str(found) == "rank 1 on host-1: ZeroDivisionError: division by zero"


def test_a_failed_collective_is_told_once_with_the_ranks_that_took_part():
    lead, _ = replicas(2)
    assert lead.lost(RuntimeError("shapes do not fit")) is None
    error = RuntimeError("[../gloo/transport/tcp/pair.cc:1] Connection closed by peer\nframes")
    found = lead.lost(error)
    assert str(found).startswith(
        "rank 0 on host-0 and rank 1 on host-1, which hold one model between them, did not go on "
        "together: [../gloo/transport/tcp/pair.cc:1] Connection closed by peer; one of them hangs"
    )
    with pytest.raises(RankError, match="Connection closed by peer"):
        lead.tell(do="pass")  # who is gone is not waited for again
    assert str(lead.lost(RuntimeError("pair closure"))) == str(found)


def test_no_pass_begins_with_a_replica_that_is_lost():
    first, *_ = groups(2)
    lead = RankCoordinator(first)
    replica = lead.open(split(2))
    replica.lost(RuntimeError("gloo: Connection closed"))
    with pytest.raises(RankError, match="did not go on together"):
        lead.prepare("tiny", "eager")  # or the pass would begin anew, and its journal with it
    with pytest.raises(RankError, match="did not go on together"):
        lead.open(TINY)


def test_a_replica_that_is_lost_elsewhere_ends_all_passes():
    first, other = groups(2)
    lead = RankCoordinator(first)
    other.tell("lost", text="rank 2 on a and rank 3 on a did not go on together")
    (message,) = first.messages()
    for _ in range(2):
        with pytest.raises(RankError, match="rank 2 on a and rank 3"):
            lead.hear(message)
    with pytest.raises(RankError, match="rank 2 on a and rank 3"):
        lead.prepare("tiny", "eager")


def test_a_case_that_is_split_needs_that_many_processes():
    with pytest.raises(MissingRanks, match=r"'tiny' splits its model over 2 .*--nproc-per-node=2"):
        open_case(split(2), current_device(), None, "dummy")
    first, *_ = groups(3)
    with pytest.raises(MissingRanks, match=r"has started 3: expected a multiple of 2"):
        RankCoordinator(first).open(split(2))


def test_units_are_for_replicas_not_for_ranks():
    first, *_ = groups(4)
    lead = RankCoordinator(first)
    replica = lead.open(split(2))
    assert replica is not None
    assert (lead.replicas, [lead.replica_of(rank) for rank in range(4)]) == (2, [0, 0, 1, 1])
    assert lead.open(TINY) is None
    assert lead.replicas == 4


def test_heads_that_cannot_be_split_are_told_with_the_key():
    class Split(torch.nn.Module):
        config = type("C", (), {"get_text_config": lambda self: self, "num_attention_heads": 4})()

    with pytest.raises(CaseError, match=r"key 'parallel.tensor' is 3; the model has 4 num_att"):
        tensor_parallel.check_split(TINY, Split(), 3)
    with pytest.raises(EngineError, match="did not split Split over 2 ranks"):
        tensor_parallel.check_split(TINY, Split(), 2)


def test_random_weights_depend_on_the_name_alone():
    def made(seed):
        torch.manual_seed(seed)
        module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 4))
        tensor_parallel.fill(module, 0.02)
        return module

    one, other = made(0), made(1)
    for name in ("0.weight", "1.weight"):
        torch.testing.assert_close(one.get_parameter(name), other.get_parameter(name))
    assert not torch.equal(one[0].weight.flatten(), one[1].weight.flatten())
    assert not torch.equal(one[0].bias, other[0].bias)  # as the architecture starts them
    assert 0.01 < float(one[0].weight.detach().std()) < 0.03


def test_the_digest_names_a_split_but_cases_without_keep_theirs(tmp_path: Path):
    text = (PACKAGED_CASES / "tiny.yaml").read_text()
    same, other = tmp_path / "a" / "tiny.yaml", tmp_path / "b" / "tiny.yaml"
    for path, more in ((same, "parallel: {tensor: 1}\n"), (other, "parallel: {tensor: 2}\n")):
        path.parent.mkdir()
        path.write_text(text + more)
    assert load_case(same).digest() == TINY.digest() == "sha256:cd4288f66f22a7d1"
    assert load_case(other).digest() != TINY.digest()


def test_a_pass_is_told_before_its_clock_starts():
    clock = FakeClock()
    engine = FakeEngine("eager", clock)
    engine.begin = lambda asked, head: setattr(clock, "now", clock.now + 100)
    done = run_pass(engine, prompts(2), "last", clock)
    assert done.whole_s < 100
    assert np.isfinite(done.answers.letter_logits).all()
