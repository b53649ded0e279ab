"""What several ranks measured, summed up: every number here is worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes import FakeClock, FakeEngine, prompts
from perfline.cases.case import GatesSpec, ThroughputSpec
from perfline.engines.engine import CompileCounts
from perfline.engines.telemetry import RoundHealth
from perfline.measure import throughput
from perfline.measure.parallel_rounds import ReplicaTimings, aggregate
from perfline.measure.throughput import Round, TimedRegion, make_ready

SPEC = ThroughputSpec(sample=4, rounds=3, min_round_s=0.001)
TOKENS = 100 + 101 + 102 + 103


def timings(token_s=0.01, rounds=3, engine="inductor", wrong=()):
    """What one process measures; a round takes ``TOKENS * token_s`` seconds."""
    scripted = FakeEngine(engine, FakeClock(), token_s=token_s, wrong=frozenset(wrong))
    ready = make_ready(scripted, prompts(4), SPEC, scripted.clock)
    stopwatch = TimedRegion(scripted, prompts(4), SPEC.head, ready, scripted.clock)
    for _ in range(rounds):
        stopwatch.round()
    return stopwatch.finish()


def replica(rank, own, **changes):
    made = ReplicaTimings(
        f"rank {rank} on node-{'ab'[rank // 2]}",
        own.rounds,
        own.ready,
        own.timed,
        own.peak_memory_gib,
        own.waited_fraction,
        own.answers,
    )
    return replace(made, **changes)


def together(*replicas, alone=None, devices=None):
    own = timings()
    return aggregate(replicas, own, alone or own, devices or len(replicas), "fp32")


def named(found, peak=None):
    metrics = [*throughput.metrics(found.timings, 1e6, peak), *found.metrics()]
    return {metric.name: metric for metric in metrics}


def test_whole_ends_with_the_slowest_and_core_is_the_sum_of_rates():
    found = together(replica(0, timings(0.01)), replica(1, timings(0.0125)))
    metrics = named(found)
    assert metrics["p_infer_whole"].value == pytest.approx(2 / 0.0125)
    assert metrics["p_infer_core"].value == pytest.approx(1 / 0.01 + 1 / 0.0125)
    assert metrics["p_infer_core_per_device"].value == pytest.approx(90.0)
    assert metrics["p_infer_whole_one_rank"].value == pytest.approx(100.0)
    assert metrics["scaling_efficiency_infer"].value == pytest.approx(0.8)
    assert metrics["tokens"].value == 3 * 2 * TOKENS
    assert {len(metrics[n].samples) for n in metrics if n.startswith(("p_", "scaling"))} == {3}
    assert {metrics[n].direction for n in metrics if n.endswith(("device", "one_rank"))} == {"info"}


def test_efficiency_is_against_the_replicas_and_per_device_against_the_devices():
    alone = timings(0.008)  # one rank has the machine for itself
    found = together(*(replica(r, timings()) for r in range(2)), alone=alone, devices=4)
    metrics = named(found)
    assert metrics["scaling_efficiency_infer"].value == pytest.approx(0.8)
    assert metrics["p_infer_core_per_device"].value == pytest.approx(200 / 4)


def test_one_model_over_all_ranks_has_nothing_to_scale_against():
    found = together(replica(0, timings()), devices=2)
    assert [metric.name for metric in found.metrics()] == ["p_infer_core_per_device"]
    assert found.metrics()[0].value == pytest.approx(50.0)
    assert found.notes(GatesSpec()) == {"throughput_ranks_infer": 2}


def test_mfu_is_over_the_peak_of_all_devices():
    one = timings()
    found = named(together(*(replica(r, one) for r in range(4))), peak=4e9)
    metrics = {m.name: m.value for m in throughput.metrics(one, 1e6, 1e9)}
    assert found["mfu"].value == pytest.approx(metrics["mfu"])
    assert found["mfu_computed"].value == pytest.approx(metrics["mfu_computed"])


def test_memory_counts_and_waiting_are_the_worst_of_any_rank():
    own = replace(timings(), waited_fraction=0.1)  # not this machine's own
    ready = replace(own.ready, later=CompileCounts(graphs=2), compile_s=9.0)
    worse = replica(
        1,
        own,
        ready=ready,
        timed=CompileCounts(graphs=1),
        peak_memory_gib=3.5,
        waited_fraction=0.25,
    )
    found = together(replica(0, own), worse).timings
    assert (found.peak_memory_gib, found.waited_fraction) == (3.5, 0.25)
    assert (found.timed.graphs, found.ready.later.graphs, found.ready.compile_s) == (1, 2, 9.0)


def test_what_was_compiled_while_rank_0_was_alone_counts_as_well():
    alone = replace(timings(), timed=CompileCounts(graphs=1), faults=("another process",))
    found = together(replica(0, timings()), replica(1, timings()), alone=alone).timings
    assert (found.timed.graphs, found.faults) == (1, ("another process",))


def with_health(own, *healths):
    rounds = zip(own.rounds, healths, strict=True)
    return tuple(replace(done, health=health) for done, health in rounds)


def test_energy_and_power_are_sums_and_absent_where_a_rank_does_not_know_them():
    own = timings()
    read = RoundHealth(joules=100.0, power_w=50.0, sm_clock_mhz=1000, temperature_c=50, readings=3)
    cold = replace(read, joules=60.0, sm_clock_mhz=900, temperature_c=40)
    both = [
        replica(rank, own, rounds=with_health(own, *[health] * 3))
        for rank, health in enumerate((read, cold))
    ]
    metrics = named(together(*both))
    assert metrics["tokens_per_joule"].value == pytest.approx(2 * TOKENS / 160)
    assert metrics["power"].value == 100.0
    assert (metrics["sm_clock"].value, metrics["temperature"].value) == (900, 50)
    split = named(together(*both, devices=4))  # two devices of four are read
    assert {"tokens_per_joule", "power"}.isdisjoint(split)
    assert split["sm_clock"].value == 900
    unknown = named(together(both[0], replica(1, own)))
    assert {"tokens_per_joule", "power", "sm_clock"}.isdisjoint(unknown)


def test_a_round_in_which_any_device_slowed_itself_counts_for_none():
    own = timings(rounds=6)
    slow, well = RoundHealth(throttled="clocks throttled", readings=1), RoundHealth(readings=1)
    hot = replica(1, own, rounds=with_health(own, well, slow, *[well] * 4))
    found = together(replica(0, own), hot).timings
    assert (len(found.rounds), found.thrown_out) == (5, ("rank 1 on node-a: clocks throttled",))
    assert found.faults == ()
    hotter = replica(1, own, rounds=with_health(own, well, slow, slow, *[well] * 3))
    (fault,) = together(replica(0, own), hotter).timings.faults
    assert fault.startswith("2 of 6 rounds were thrown out")


def test_another_process_and_other_answers_on_a_rank_are_faults_that_name_it():
    own = timings()
    foreign = replica(1, own, rounds=with_health(own, *[RoundHealth(foreign=(7,))] * 3))
    wrong = replica(2, timings(wrong=["even/0"]))
    assert together(replica(0, own), foreign, wrong).timings.faults == (
        "rank 1 on node-a: another process computes on the GPU (pid 7)",
        "rank 2 on node-b: 1 of 4 timed answers differ from rank 0's and are no tie",
    )


def test_the_slowest_rank_is_named_and_is_a_finding_beyond_the_margin():
    limits = GatesSpec(throughput_margin_fraction=0.02)
    even = [replica(rank, timings()) for rank in range(3)]
    notes = together(*even, replica(3, timings(0.0101))).notes(limits)
    assert notes == {
        "throughput_ranks_infer": 4,
        "tok_per_s_by_rank_infer": "100.0, 100.0, 100.0, 99.0",
        "slowest_rank_infer": "rank 3 on node-b: 1.0 % below the median of the others",
    }
    notes = together(*even, replica(3, timings(0.0125))).notes(limits)
    assert notes["slowest_rank_infer"] == (
        "rank 3 on node-b: 20.0 % below the median of the others"
    )
    assert notes["straggler_infer"].startswith(
        "rank 3 on node-b is 20.0 % slower than the median of the other ranks (margin 2.0 %)"
    )


def test_only_the_rounds_that_count_say_who_is_slow():
    own = timings(rounds=6)
    slow = RoundHealth(throttled="clocks throttled")
    rounds = (Round(TOKENS, 100.0, 100.0, slow), *own.rounds[1:])
    found = together(replica(0, own), replica(1, own, rounds=rounds))
    assert found.rates == pytest.approx((100.0, 100.0))
