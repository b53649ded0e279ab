from __future__ import annotations

import pytest

from fakes import FakeClock, FakeEngine, prompts
from perfline.case import ThroughputSpec
from perfline.throughput import Stopwatch, make_ready, metrics

SPEC = ThroughputSpec(sample=4, rounds=3, min_round_s=0.001)


def measure(engine, *, rounds=3, spec=SPEC, n=4):
    chosen = prompts(n, length=100)
    ready = make_ready(engine, chosen, spec, engine.clock)
    stopwatch = Stopwatch(engine, chosen, spec.head, ready, engine.clock)
    for _ in range(rounds):
        stopwatch.round()
    return stopwatch.finish()


def named(timings, peak=None):
    return {metric.name: metric for metric in metrics(timings, 1e6, peak)}


def test_the_phases_come_in_order_and_nothing_is_subtracted():
    clock = FakeClock()
    # Compiling takes 7 s in the very first forward; each token takes 0.5 s ever after.
    engine = FakeEngine("inductor", clock, token_s=0.5, compile_s=7.0, graphs_at=(0,))
    timings = measure(engine)
    tokens = 100 + 101 + 102 + 103
    assert timings.ready.compile_s == 7.0 + 0.5 * 102  # the middle prompt, compilation included
    assert timings.ready.warmup_s == 0.5 * tokens
    assert [r.core_s for r in timings.rounds] == [0.5 * tokens] * 3
    assert clock.now == timings.ready.compile_s + timings.ready.warmup_s + 3 * 0.5 * tokens
    forwards = [entry for entry in engine.log if entry.startswith(("forward", "reset"))]
    one_pass = [f"forward {p.id} all" for p in prompts(4)]
    assert forwards == ["forward even/1 all", *one_pass, "reset peak", *one_pass * 3]


def test_a_slow_first_timed_round_stays_in_the_samples():
    clock = FakeClock()
    slow_from = 1 + 4  # forwards before the timed region: compile, warm-up
    factors = [1.0] * slow_from + [10.0] * 4 + [1.0] * 100
    engine = FakeEngine("eager", clock, token_s=1.0, factors=factors)
    assert named(measure(engine))["p_val_core"].samples == (0.1, 1.0, 1.0)


def test_throughput_is_the_median_round_under_its_published_name():
    clock = FakeClock()
    engine = FakeEngine("inductor", clock, token_s=0.01, read_s=0.25)
    found = named(measure(engine))
    core, whole = found["p_infer_core"], found["p_infer_whole"]
    assert (core.value, core.unit, core.direction) == (pytest.approx(100), "tok/s", "higher")
    assert whole.value == pytest.approx(406 / (4.06 + 1.0))
    assert found["tokens"].value == 3 * 406
    assert "p_val_core" not in found


def test_mfu_needs_a_known_peak():
    engine = FakeEngine("inductor", FakeClock(), token_s=0.01)
    timings = measure(engine)
    assert "mfu" not in named(timings)
    found = named(timings, peak=1e9)
    assert found["mfu"].value == pytest.approx(100 * 2 * 1e6 / 1e9)
    # The script says 1e6 FLOPs a token really executed: 100 tok/s of them.
    assert found["mfu_computed"].value == pytest.approx(100 * 1e6 / 1e9)


def test_graphs_at_the_first_forward_and_recompiles_after_it_are_told_apart():
    engine = FakeEngine("inductor", FakeClock(), graphs_at=(0, 3), breaks=2)
    found = named(measure(engine))
    assert (found["graphs"].value, found["recompiles"].value) == (1, 1)
    assert found["graph_breaks"].value == 2


def test_a_compilation_inside_the_timed_region_is_counted_there():
    engine = FakeEngine("inductor", FakeClock(), graphs_at=(0, 9))
    timings = measure(engine)
    assert timings.timed.graphs == 1
    assert named(timings)["recompiles"].value == 0


def test_a_round_repeats_its_pass_until_it_is_long_enough():
    engine = FakeEngine("eager", FakeClock(), token_s=0.001)  # a pass takes 0.406 s
    spec = ThroughputSpec(sample=4, rounds=3, min_round_s=1.0)
    timings = measure(engine, spec=spec)
    assert timings.ready.repeats == 3
    assert timings.rounds[0].tokens == 3 * 406


def test_a_warm_up_that_compiled_does_not_decide_the_length_of_a_round():
    engine = FakeEngine("inductor", FakeClock(), token_s=0.001, compile_s=100.0, graphs_at=(0, 2))
    spec = ThroughputSpec(sample=4, rounds=3, min_round_s=1.0)
    assert measure(engine, spec=spec).ready.repeats == 3


def test_memory_is_the_peak_since_the_timed_region_began():
    engine = FakeEngine("inductor", FakeClock(), memory_gib=2.5)
    assert named(measure(engine))["mem"].value == 2.5
    assert engine.log.count("reset peak") == 1
