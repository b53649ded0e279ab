"""Rounds of several ranks: threads with scripted engines, each with a clock of its own."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace

import pytest

from fake_ranks import DictStore, groups
from fakes import DEVICE, FakeClock, FakeEngine, prompts
from perfline.cases.case import ThroughputSpec, load_cases
from perfline.errors import EngineError, PerflineError, RankError
from perfline.measure import throughput
from perfline.measure.parallel_accuracy import RankCoordinator
from perfline.measure.parallel_rounds import ALONE_ROUNDS, STEPS, TimedRun, serve
from perfline.measure.throughput import make_ready

CASE = replace(
    load_cases(["tiny"])[0], throughput=ThroughputSpec(sample=4, rounds=3, min_round_s=9.0)
)
TOKENS = 100 + 101 + 102 + 103


def timed_run(token_s=0.01, **script):
    engine = FakeEngine("eager", FakeClock(), token_s=token_s, **script)

    def ready():
        return make_ready(engine, prompts(4), CASE.throughput, engine.clock)

    return TimedRun(CASE, engine, prompts(4), ready, DEVICE, {}, engine.clock)


def in_turn(timed_round, rounds, before=None, /):
    for _ in range(rounds):
        before()
        timed_round()


@dataclass
class Ranks:
    """Rank 0, and threads for the others that answer as ``rank_worker.RankWorker`` does."""

    runs: list[TimedRun]
    timeout_s: float = 20.0
    store: DictStore = field(default_factory=DictStore)

    def __enter__(self):
        first, *others = groups(len(self.runs) + 1, self.store, self.timeout_s)
        for group in others:
            group.timeout_s = 20.0  # rank 0 alone is to lose patience
        self.lead = RankCoordinator(first)
        self.threads = [
            threading.Thread(target=self.helping, args=pair, daemon=True)
            for pair in zip(others, self.runs, strict=True)
        ]
        for thread in self.threads:
            thread.start()
        return self.lead

    def helping(self, group, run):
        number, command = group.command()
        while command["do"] != "end":
            try:
                if command["do"] not in STEPS:
                    serve(group, number, run)
            except PerflineError as error:
                group.tell("failed", **{"pass": number, "text": str(error)})
            number, command = group.command()
        group.leave()

    def __exit__(self, *error):
        self.lead.end(0, wait=not self.lead.broken)
        for thread in self.threads if not self.lead.broken else ():
            thread.join(timeout=20)
            assert not thread.is_alive()


def test_every_rank_times_the_same_rounds_and_the_sum_is_theirs():
    runs = [timed_run(0.0125), timed_run(0.01)]
    with Ranks(runs) as lead:
        found = lead.time(timed_run(0.01), in_turn)
    metrics = {m.name: m.value for m in throughput.metrics(found.timings, 1e6, None)}
    assert metrics["p_val_whole"] == pytest.approx(3 / 0.0125)
    assert metrics["p_val_core"] == pytest.approx(80 + 100 + 100)
    assert (found.devices, found.names) == (
        3,
        ("rank 0 on host-0", "rank 1 on host-1", "rank 2 on host-2"),
    )
    assert found.rates == pytest.approx((100, 80, 100))
    assert (len(found.timings.rounds), len(found.alone.rounds)) == (3, ALONE_ROUNDS)
    assert found.timings.answers.ids == tuple(prompt.id for prompt in prompts(4))


def test_every_rank_repeats_its_pass_as_often_as_rank_0():
    with Ranks([timed_run(0.001)]) as lead:  # by itself it would repeat 23 times
        found = lead.time(timed_run(0.01), in_turn)
    assert found.timings.ready.repeats == 3
    assert {done.tokens for done in found.timings.rounds} == {2 * 3 * TOKENS}


def test_nobody_asks_the_store_while_rank_0_is_alone():
    seen: dict[str, int] = {}

    @dataclass
    class Counting(DictStore):
        def _reached(self):
            if threading.current_thread() is not threading.main_thread():
                seen["asked"] = seen.get("asked", 0) + 1

        def wait(self, keys, timeout):  # a real store is asked once, however long it takes
            self._reached()
            while keys[0] not in self.values:
                time.sleep(0.001)

    with Ranks([timed_run(), timed_run()], store=Counting()) as lead:
        asked = []

        def between_rounds():
            time.sleep(0.05)
            asked.append(seen["asked"])

        run = timed_run()
        alone = run.alone
        object.__setattr__(run, "alone", lambda ready, alive: alone(ready, between_rounds))
        lead.time(run, in_turn)
    assert len(asked) == ALONE_ROUNDS
    assert set(asked) == {asked[0]}


def test_an_error_of_a_rank_names_it_and_its_host_and_the_next_pass_works():
    broken = timed_run(nan=frozenset({"even/1"}))
    with Ranks([timed_run(), broken]) as lead:
        expected = r"^rank 2 on host-2: eager: logits of 1 of \d prompts are not finite"
        with pytest.raises(RankError, match=expected):
            lead.time(timed_run(), in_turn)
        broken.engine.nan = frozenset()
        assert lead.time(timed_run(), in_turn).devices == 3


def test_an_error_of_rank_0_inside_a_round_lets_the_others_go():
    run = timed_run()

    def fails_in_round_2(timed_round, rounds, before=None, /):
        before()
        timed_round()
        before()
        raise EngineError("out of memory")

    with Ranks([timed_run()]) as lead:
        with pytest.raises(EngineError, match="out of memory"):
            lead.time(run, fails_in_round_2)
        assert len(lead.time(run, in_turn).timings.rounds) == 3


class Hanging(FakeEngine):
    """Hangs in its n-th forward."""

    hangs_at, released = 0, threading.Event()

    def forward(self, batch, head):
        if self._forwards == self.hangs_at:
            self.released.wait(20)
        return super().forward(batch, head)


@pytest.mark.parametrize(
    ("forwards", "what"),
    [(0, "make eager ready"), (1 + 4, "end round 1"), (1 + 4 + 3 * 4, "end round 2")],
)
def test_a_rank_that_hangs_is_named_with_what_it_was_waited_for(forwards, what):
    engine = Hanging("eager", FakeClock(), token_s=0.01)
    engine.hangs_at, engine.released = forwards, threading.Event()
    hanging = replace(
        timed_run(),
        engine=engine,
        ready=lambda: make_ready(engine, prompts(4), CASE.throughput, engine.clock),
    )
    expected = rf"^waited for rank 2 on host-2 to {what}: silent for 0\.3 s; it hangs"
    with Ranks([timed_run(), hanging], timeout_s=0.3) as lead:
        with pytest.raises(RankError, match=expected):
            lead.time(timed_run(), in_turn)
        with pytest.raises(RankError, match=expected):  # at once: it is still stuck
            lead.time(timed_run(), in_turn)
        engine.released.set()


def test_a_rank_that_crashes_fails_the_rounds():
    first, other = groups(2)
    other.tell("crashed", text="RuntimeError: CUDA error")
    with pytest.raises(RankError, match=r"^rank 1 on host-1 crashed: RuntimeError: CUDA error"):
        RankCoordinator(first).time(timed_run(), in_turn)
