from __future__ import annotations

from contextlib import nullcontext

import pytest

from fakes import FakeClock, FakeEngine, FakeLoadedCase, prompts
from perfline.cases.case import ThroughputSpec, load_cases
from perfline.engines.device import Device
from perfline.engines.telemetry import RoundHealth, Watch
from perfline.measure.case_run import CaseRun
from perfline.measure.throughput import TimedRegion, make_ready, metrics

SPEC = ThroughputSpec(sample=4, rounds=3, min_round_s=0.001)


class ScriptedWatch(Watch):
    """One health a round, in order; ``log`` shows when it was read."""

    def __init__(self, *healths, log=None):
        super().__init__()
        self.healths, self.log = list(healths), [] if log is None else log

    def begin(self):
        self.log.append("begin")

    def end(self):
        self.log.append("end")
        return self.healths.pop(0)


def measure(engine, *, rounds=3, spec=SPEC, n=4, health=None):
    chosen = prompts(n, length=100)
    ready = make_ready(engine, chosen, spec, engine.clock)
    stopwatch = TimedRegion(engine, chosen, spec.head, ready, engine.clock, health=health)
    for _ in range(rounds):
        stopwatch.round()
    return stopwatch.finish()


def well(**changes):
    return RoundHealth(**{"sm_clock_mhz": 1980, "temperature_c": 60, "power_w": 600.0} | changes)


def slowed_in(rounds, *slow, engine="inductor", **changes):
    """Timings of so many rounds of 4.06 s, of which some were throttled."""
    healths = [
        well(readings=5, throttled=f"clocks throttled in round {i}" if i in slow else "", **changes)
        for i in range(rounds)
    ]
    scripted = FakeEngine(engine, FakeClock(), token_s=0.01)
    return measure(scripted, rounds=rounds, health=ScriptedWatch(*healths))


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


# --- the device's own health


def test_the_device_is_read_outside_of_the_timed_passes():
    engine = FakeEngine("eager", FakeClock())
    measure(engine, health=ScriptedWatch(*[RoundHealth()] * 3, log=engine.log))
    steps = [entry.split()[0] for entry in engine.log[engine.log.index("reset peak") :]]
    steps = [step for step in steps if step in ("begin", "forward", "end")]
    assert steps == ["begin", *["forward"] * 4, "end"] * 3


def test_a_throttled_round_is_thrown_out_and_counted():
    factors = [1.0] * (1 + 4) + [1.0] * 8 + [5.0] * 4 + [1.0] * 100
    healths = [well(), well(), well(throttled="hot"), well(), well()]
    engine = FakeEngine("inductor", FakeClock(), token_s=0.01, factors=factors)
    timings = measure(engine, rounds=5, health=ScriptedWatch(*healths))
    assert named(timings)["p_infer_core"].samples == (pytest.approx(100),) * 4
    assert (timings.thrown_out, timings.faults) == (("hot",), ())
    assert timings.timed_s == pytest.approx((4 + 5) * 4.06)  # its time was spent all the same


@pytest.mark.parametrize(
    ("rounds", "slow", "left"),
    [(5, (), 5), (5, (0,), 4), (10, (3, 4), 8), (3, (), 3), (2, (), 2), (1, (), 1)],
)
def test_a_fifth_of_the_rounds_may_go(rounds, slow, left):
    timings = slowed_in(rounds, *slow)
    assert (len(timings.rounds), timings.faults) == (left, ())


@pytest.mark.parametrize(
    ("rounds", "slow", "left"),
    [(5, (0, 3), 3), (10, (0, 1, 2), 7), (3, (2,), 2), (5, range(5), 5), (1, (0,), 1)],
)
def test_more_than_that_make_the_run_invalid_and_the_numbers_stay_to_be_seen(rounds, slow, left):
    timings = slowed_in(rounds, *slow)
    assert timings.faults == (
        f"{len(slow)} of {rounds} rounds were thrown out (at most 20 %, and 3 must be left), the "
        f"first with clocks throttled in round {slow[0]}",
    )
    assert len(timings.rounds) == left
    assert len(timings.thrown_out) == len(slow)


def test_another_process_in_any_round_makes_the_run_invalid():
    healths = [well(), well(foreign=(42,)), well(foreign=(7, 42))]
    timings = measure(FakeEngine("eager", FakeClock()), health=ScriptedWatch(*healths))
    assert timings.faults == ("another process computes on the GPU (pid 7, 42)",)
    assert len(timings.rounds) == 3


def test_health_is_a_metric_with_a_sample_a_round():
    healths = [
        well(sm_clock_mhz=clock, temperature_c=heat, power_w=power)
        for clock, heat, power in ((1980, 60, 600.0), (1755, 66, 640.0), (1800, 65, 650.0))
    ]
    found = named(measure(FakeEngine("eager", FakeClock()), health=ScriptedWatch(*healths)))
    shown = {n: (m.value, m.unit, m.direction) for n, m in found.items() if n in HEALTH}
    assert shown == {
        "sm_clock_val": (1755, "MHz", "info"),
        "temperature_val": (66, "C", "info"),
        "power_val": (630.0, "W", "info"),
    }
    assert found["sm_clock_val"].samples == (1980, 1755, 1800)


HEALTH = ("sm_clock_val", "temperature_val", "power_val", "tokens_per_joule_val")


def test_what_a_board_does_not_tell_is_absent():
    healths = [RoundHealth(readings=3), RoundHealth(readings=3), well()]
    found = named(measure(FakeEngine("eager", FakeClock()), health=ScriptedWatch(*healths)))
    assert not set(HEALTH) & set(found)
    assert not set(HEALTH) & set(named(measure(FakeEngine("eager", FakeClock()))))


# --- joules


@pytest.mark.parametrize(("engine", "name"), [("inductor", ""), ("eager", "_val")])
def test_tokens_per_joule_are_those_of_all_rounds_that_count(engine, name):
    healths = [well(joules=j) for j in (1000.0, 1030.0, 2000.0, 970.0, 1000.0)]
    healths[2] = well(joules=2000.0, throttled="hot")
    scripted = FakeEngine(engine, FakeClock(), token_s=0.01)  # a round: 406 tokens in 4.06 s
    timings = measure(scripted, rounds=5, health=ScriptedWatch(*healths))
    metric = named(timings)[f"tokens_per_joule{name}"]
    assert (metric.value, metric.unit, metric.direction) == (4 * 406 / 4000, "tok/J", "info")
    assert metric.samples == (0.406, 406 / 1030, 406 / 970, 0.406)
    assert timings.joules_error_fraction == pytest.approx(0.1 / (4 * 4.06))


def test_short_rounds_give_a_sum_but_no_samples():
    """The counter stood still over one round of 0.41 s, and caught up in the next."""
    healths = [well(joules=j) for j in (0.0, 200.0, 100.0)]
    engine = FakeEngine("inductor", FakeClock(), token_s=0.001)
    spec = ThroughputSpec(sample=4, rounds=3, min_round_s=0.4)
    timings = measure(engine, spec=spec, health=ScriptedWatch(*healths))
    metric = named(timings)["tokens_per_joule"]
    assert (metric.value, metric.samples) == (pytest.approx(3 * 406 / 300), ())
    assert timings.joules_error_fraction == pytest.approx(0.1 / (3 * 0.406))


@pytest.mark.parametrize(
    ("token_s", "joules"),
    [(0.0001, (9.0, 9.0, 9.0)), (0.01, (9.0, None, 9.0)), (0.01, (0.0, 0.0, 0.0))],
    ids=["too short", "not counted", "counter stands still"],
)
def test_joules_that_are_not_known_are_absent(token_s, joules):
    engine = FakeEngine("inductor", FakeClock(), token_s=token_s)
    timings = measure(engine, health=ScriptedWatch(*[well(joules=j) for j in joules]))
    assert "tokens_per_joule" not in named(timings)


# --- the record's notes


def bench_notes(monkeypatch, *healths):
    """Notes and seconds of a case that was timed for 3 rounds with these healths."""
    clock = FakeClock()
    engines = {"inductor": FakeEngine("inductor", clock, token_s=0.01)}
    (case,) = load_cases(["tiny"])
    bench = CaseRun(case, FakeLoadedCase(engines, prompts(4)), Device("cpu", "x", "x"), clock=clock)
    monkeypatch.setattr(
        "perfline.measure.case_run.watch", lambda _: nullcontext(ScriptedWatch(*healths))
    )
    monkeypatch.setattr("perfline.measure.throughput.cpu_contention", lambda: None)
    bench.time("inductor", lambda timed, _: [timed() for _ in healths])
    return bench.notes(), bench


def test_the_record_says_what_was_thrown_out_and_how_sure_the_joules_are(monkeypatch):
    healths = [well(readings=5, joules=100.0, throttled="hot" if i == 1 else "") for i in range(5)]
    notes, bench = bench_notes(monkeypatch, *healths)
    round_s = bench.time("inductor", lambda *_: None).rounds[0].whole_s
    assert notes == {
        "rounds_thrown_out_infer": 1,
        "thrown_out_infer": "hot",
        "tokens_per_joule_error_fraction_infer": round(0.1 / (4 * round_s), 4),
    }


def test_where_nothing_watches_nothing_is_said_to_be_well(monkeypatch):
    assert bench_notes(monkeypatch, *[RoundHealth()] * 3)[0] == {}
    assert bench_notes(monkeypatch, *[RoundHealth(readings=2)] * 3)[0] == {
        "rounds_thrown_out_infer": 0
    }
