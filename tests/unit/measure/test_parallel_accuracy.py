"""Ranks as threads, a dictionary as the store, scripted engines: no process, no torch."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_ranks import DictStore, groups
from fakes import FakeClock, FakeEngine, prompts
from perfline.distributed.group import Group
from perfline.distributed.replica import check_alike
from perfline.errors import PerflineError, RankError
from perfline.measure.accuracy import AccuracyOptions, AccuracyRun
from perfline.measure.parallel_accuracy import RankCoordinator, help_with

IDENTITY = {"case": "fake", "engine": "eager", "torch": "9.9"}


def accuracy_run(coordinator=None, wrong=(), nan=(), **options):
    engine = FakeEngine("eager", FakeClock(), wrong=frozenset(wrong), nan=frozenset(nan))
    chosen = AccuracyOptions(verify=0, **options)
    return AccuracyRun(engine, engine, None, chosen, IDENTITY, coordinator=coordinator)


def helping(group, run, asked, failed):
    """Another rank's loop, as ``ranks`` runs it."""
    number, command = group.command()
    while command["do"] != "end":
        if command["do"] == "answer":
            try:
                check_alike(command["identity"], run.identity)
                help_with(group, number, command["units"], run, asked)
            except PerflineError as error:
                failed.append(str(error))
                group.tell("failed", **{"pass": number, "text": str(error)})
        number, command = group.command()
    group.leave()


def shared(ranks, asked, runs=None, **options):
    """One pass on rank 0 with ``ranks - 1`` threads beside it; the pass, and what ended it."""
    first, *others = groups(ranks)
    lead = RankCoordinator(first)
    by_id, failed = {prompt.id: prompt for prompt in asked}, []
    threads = [
        threading.Thread(
            target=helping, args=(g, (runs or {}).get(g.rank) or accuracy_run(), by_id, failed)
        )
        for g in others
    ]
    for thread in threads:
        thread.start()
    try:
        return accuracy_run(lead, **options).answer(asked)
    finally:
        lead.end(0, wait=True)
        for thread in threads:
            thread.join(timeout=20)
        assert not any(thread.is_alive() for thread in threads)


@settings(max_examples=25)
@given(st.integers(2, 5), st.integers(1, 90))
def test_ranks_answer_every_question_once_and_as_one_process_does(ranks, n):
    asked = prompts(n)
    done, alone = shared(ranks, asked), accuracy_run().answer(asked)
    assert done.answers.ids == alone.answers.ids
    assert done.answers.argmax_letter == alone.answers.argmax_letter
    assert (done.answers.letter_logits == alone.answers.letter_logits).all()
    assert done.answers.labels == alone.answers.labels
    assert (done.served_tokens, done.flops) == (alone.served_tokens, alone.flops)
    assert (done.replicas, sum(done.by_replica.values())) == (ranks, n)


def test_the_journal_holds_every_rank_s_answers_and_is_continued_by_any_number_of_ranks(tmp_path):
    asked = prompts(60)
    shared(3, asked, journals=tmp_path)
    again = accuracy_run(resume=True, journals=tmp_path).answer(asked)
    assert (again.resumed, again.served_tokens) == (60, 0)


def test_a_sequential_run_is_shared_stage_by_stage():
    asked = prompts(64)
    first, other = groups(2)
    lead, by_id = RankCoordinator(first), {prompt.id: prompt for prompt in asked}
    thread = threading.Thread(target=helping, args=(other, accuracy_run(), by_id, []))
    thread.start()
    done = accuracy_run(lead, sequential=True).answer(asked, lambda got, *_: len(got.ids) >= 8)
    lead.end(0, wait=True)
    thread.join(timeout=20)
    assert len(done.answers.ids) == 8


@dataclass
class Slow:
    """Rank 0's run: leaves the other rank time to take a unit."""

    group: Group
    run: AccuracyRun
    until: str = "0/said"

    def __getattr__(self, name):
        return getattr(self.run, name)

    def part(self, chosen, keep, progress=None):
        end = time.monotonic() + 10
        while not self.group.store.check([self.until]) and time.monotonic() < end:
            time.sleep(0.001)
        return self.run.part(chosen, keep, progress)


def test_an_error_of_a_rank_names_it_and_its_host_and_the_next_pass_works():
    asked = prompts(64)
    first, other = groups(2)
    lead, by_id = RankCoordinator(first), {prompt.id: prompt for prompt in asked}
    broken = accuracy_run(nan=[prompt.id for prompt in asked])
    failed: list[str] = []
    thread = threading.Thread(target=helping, args=(other, broken, by_id, failed))
    thread.start()
    kept: list[str] = []
    with pytest.raises(RankError, match=r"^rank 1 on host-1: eager: logits of .* not finite"):
        lead.answer(Slow(first, accuracy_run()), asked, lambda batch: kept.extend(batch.ids))
    broken.engine.nan = frozenset()
    done = lead.answer(accuracy_run(), asked, None)
    lead.end(1, wait=True)
    thread.join(timeout=20)
    assert len(failed) == 1
    assert len(kept) < 64
    assert sum(len(part.answers.ids) for part in done) == 64


def test_a_rank_that_took_questions_and_is_silent_is_named():
    first, other = groups(2, timeout_s=0.2)
    lead, asked = RankCoordinator(first), prompts(64)

    def hang():
        number, _ = other.command()
        unit = other.take(number)
        other.tell("took", **{"pass": number, "unit": unit})

    thread = threading.Thread(target=hang)
    thread.start()
    slow = Slow(first, accuracy_run())
    expected = r"waited for rank 1 on host-1 with 0 of 16 questions answered \(first: \w+/\d+\)"
    with pytest.raises(RankError, match=expected):
        lead.answer(slow, asked, None)
    thread.join(timeout=20)
    with pytest.raises(RankError, match="waited for rank 1"):  # at once: it is still stuck
        lead.answer(slow, asked, None)
    with pytest.raises(RankError, match="waited for rank 1"):
        lead.prepare("fake", "eager")


def test_a_rank_that_took_questions_and_died_before_it_said_so_is_not_waited_for_forever():
    first, other = groups(2, timeout_s=0.2)
    lead = RankCoordinator(first)
    other.take(0)
    with pytest.raises(RankError, match="a rank that took them and never said so"):
        lead.answer(accuracy_run(), prompts(64), None)


def test_a_rank_that_does_not_end_is_named():
    first, _ = groups(2, timeout_s=0.1)
    with pytest.raises(RankError, match=r"waited 0\.1 s for rank 1 on host-1 to end"):
        RankCoordinator(first).end(0, wait=True)


def test_a_silent_rank_0_is_named():
    _, other = groups(2, timeout_s=0.1)
    with pytest.raises(RankError, match=r"rank 1 on host-1 waited for rank 0 on host-0"):
        other.command()


def test_a_working_rank_0_is_waited_for():
    first, other = groups(2, timeout_s=0.2)
    other.clock = clock = FakeClock()

    def sleep(_):
        clock.now += 0.15
        first.alive()
        if clock.now > 1:
            first.post({"do": "end", "status": 0})

    other.sleep = sleep
    assert other.command() == (0, {"do": "end", "status": 0})


def test_a_crashed_rank_fails_this_pass_and_all_that_follow():
    first, other = groups(2)
    lead = RankCoordinator(first)
    other.tell("crashed", text="RuntimeError: CUDA error")
    for _ in range(2):
        with pytest.raises(RankError, match=r"^rank 1 on host-1 crashed: Runtime.* CUDA"):
            lead.answer(accuracy_run(), prompts(40), None)


def test_a_status_that_all_agreed_on_is_final_and_a_broken_one_is_not():
    store = DictStore()
    first, _ = groups(2, store)
    lead = RankCoordinator(first, broken="rank 1 crashed")
    lead.end(1, wait=True)
    assert first.ended() is None
    first, other = groups(2, store, attempt=1)
    thread = threading.Thread(target=helping, args=(other, accuracy_run(), {}, []))
    thread.start()
    RankCoordinator(first).end(1, wait=True)
    thread.join(timeout=20)
    assert [group.ended() for group in groups(2, store, attempt=2)] == [1, 1]


def test_a_store_that_knows_the_rank_is_refused():
    store = DictStore()
    groups(2, store)
    with pytest.raises(RankError, match="rank 0 on host-0: the store knows this rank already"):
        groups(2, store)


def test_a_store_that_is_gone_is_one_line():
    store = DictStore()
    _, other = groups(2, store)
    store.gone = True
    with pytest.raises(RankError, match=r"not reach the store.*\(Connection reset by peer\)$"):
        other.command()


def test_a_rank_with_other_software_is_refused():
    with pytest.raises(RankError, match=r"its torch is 9\.8, rank 0's is 9\.9"):
        check_alike(IDENTITY, {**IDENTITY, "torch": "9.8"})


def test_hosts_are_those_of_all_ranks_and_one_that_does_not_join_is_named():
    first, _ = groups(2)
    assert first.hosts() == ["host-0", "host-1"]
    first.ranks, first.timeout_s = 4, 0.05
    with pytest.raises(RankError, match=r"^waited 0\.05 s for rank 2, 3 of 4 to join"):
        first.hosts()


def test_a_rank_that_waits_quietly_hears_a_command_a_silent_rank_0_and_a_store_that_is_gone():
    clock = FakeClock()
    # Later than the timeout there is a command, and rank 0 has shown in between that it lives.
    events = [lambda: first.alive(), lambda: first.post({"do": "end", "status": 0})]

    class Scripted(DictStore):
        def wait(self, keys, timeout):
            clock.now += 0.07
            if events:
                events.pop(0)()
            if not self.check(keys):
                raise RuntimeError("wait timeout")

    store = Scripted()
    first, other = groups(2, store, timeout_s=0.1)
    other.clock = clock
    assert other.command(quiet=True) == (0, {"do": "end", "status": 0})
    with pytest.raises(RankError, match=r"no sign of life for 0\.1 s"):
        other.command(quiet=True)
    store.gone = True
    with pytest.raises(RankError, match="does not reach the store"):
        other.command(quiet=True)


def test_a_device_is_claimed_once_a_host():
    first, other = groups(2)
    assert first.claim("uuid")
    assert other.claim("uuid")  # another host
    other.host = first.host
    assert not other.claim("uuid")
