"""What is generated behind which prompts, and what the numbers say of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fakes import DEVICE, FakeClock, FakeDecoder, FakeEngine, prompts
from perfline.cases.case import Case, DecodeSpec, ModelSpec
from perfline.engines.device import Device
from perfline.engines.engine import CompileCounts
from perfline.engines.telemetry import RoundHealth
from perfline.errors import EngineError, NoDecode
from perfline.gates import performance
from perfline.gates.accuracy import OtherToken, same_tokens
from perfline.measure import decode
from perfline.tasks.reference import prompt_digest


def case(**decoding) -> Case:
    model = ModelSpec(case_dir="x", weight_dir="y", precision="fp32", nominal_parameters=1e6)
    return Case(id="fake", model=model, decode=DecodeSpec(**decoding), source=Path("x.yaml"))


def region(name="inductor", min_round_s=0.0, **script):
    engine = FakeEngine(name, FakeClock())
    decoder = FakeDecoder(engine, **script)
    forms, _ = decode.forms(case(batch_sizes=(1, 2)), prompts(), 4, 4096)
    work = decode.Work(engine, decoder, tuple(forms), 4, engine.clock)
    ready = work.make_ready(min_round_s)
    return decode.DecodeRegion(work, ready), engine, ready


def test_forms_are_stratified_prompts_a_batch_of_one_length_and_contexts():
    spec = case(batch_sizes=(1, 8), context=(64, 200, 5000))
    (single, batch, short, long), lines = decode.forms(spec, prompts(40, 100), 16, 4096)
    widths = [ids.shape for ids in single.prompts]
    assert len(widths) == decode.PROMPTS
    assert widths == sorted(widths)
    assert widths[0][1] < 110 < 130 < widths[-1][1]
    assert single.length == 192  # the longest, 16 tokens, and up to a multiple of 64
    assert (batch.name, batch.rows, [ids.shape[0] for ids in batch.prompts]) == ("b8", 8, [8])
    assert (short.name, short.length, short.prompts[0].shape) == ("c64", 64, (1, 48))
    assert (long.name, long.length, long.prompts[0].shape) == ("c200", 256, (1, 184))
    assert lines == [
        "fake: decode.context 5000 is left out: 16 tokens are generated, and the model has 4096 "
        "positions"
    ]


def test_prompts_that_leave_no_room_lose_their_beginning():
    (single,), _ = decode.forms(case(), prompts(40, 100), 16, 96)
    assert {ids.shape for ids in single.prompts} == {(1, 80)}
    assert all(ids[0, 0] >= 20 for ids in single.prompts)


@pytest.mark.parametrize("tokens", [96, 97, 100_000])
def test_tokens_that_leave_no_position_for_a_prompt_are_not_generated(tokens):
    (single,), _ = decode.forms(case(), prompts(40), 95, 96)
    assert {ids.shape for ids in single.prompts} == {(1, 1)}
    with pytest.raises(NoDecode, match=rf"x.yaml: decode generates {tokens} tokens.* has 96 pos"):
        decode.forms(case(), prompts(40), tokens, 96)


def test_a_batch_may_have_more_rows_than_there_are_questions():
    (_, batch), _ = decode.forms(case(batch_sizes=(1, 32)), prompts(5), 16, 4096)
    assert batch.prompts[0].shape[0] == 32


def test_tokens_are_as_many_as_the_device_takes_in_short_time():
    assert decode.tokens_of(DecodeSpec(), DEVICE) == 16
    assert decode.tokens_of(DecodeSpec(), Device("cuda", "x", "x")) == 128
    assert decode.tokens_of(DecodeSpec(tokens=3), DEVICE) == 3


def test_the_first_generation_of_each_form_compiles_and_the_others_warm_up():
    _, engine, ready = region(graphs_at=(0, 1, 4))
    assert ready.first == CompileCounts(graphs=2, cache_misses=2)
    assert ready.later == CompileCounts(graphs=1, cache_misses=1)
    assert ready.compile_s == pytest.approx(2 * 0.013)
    assert ready.warmup_s == pytest.approx(5 * 0.013)
    assert engine.log[0] == "forget"


@pytest.mark.parametrize(("tokens", "counted"), [(4, 4), (128, 17)])
def test_the_fingerprint_is_of_the_first_tokens_behind_the_middle_prompt(tokens, counted):
    engine = FakeEngine("inductor", FakeClock())
    decoder = FakeDecoder(engine, graphs_at=(0, 1, 4), eager_ops=9)
    forms, _ = decode.forms(case(batch_sizes=(1, 2)), prompts(), tokens, 4096)
    work = decode.Work(engine, decoder, tuple(forms), tokens, engine.clock)
    found = work.fingerprint(work.make_ready(0.0))
    widths = sorted(ids.shape[1] for ids in forms[0].prompts)
    (middle,) = [ids for ids in forms[0].prompts if ids.shape[1] == widths[2]]
    assert found.prompt == prompt_digest(middle[0])
    assert found.counts == {
        **{"prompt_tokens": sum(widths) + forms[1].prompts[0].size, "weights_elsewhere": 0},
        **{"eager_ops": 9 * counted, "graphs": 2, "graph_breaks": 0, "recompiles": 1},
    }


def test_a_round_repeats_its_pass_until_it_is_long_enough():
    made, engine, ready = region(min_round_s=0.1)
    assert ready.repeats == 2  # of 5 generations of 13 ms
    before = len(engine.log)
    assert made.round().whole_s == pytest.approx(0.13)
    assert len(engine.log) - before == 10


def test_metrics_of_rounds():
    made, *_ = region(factors=(1.0,) * 7 + (2.0,) * 5 + (1.0,) * 100)
    for _ in range(3):
        made.round()
    found = {m.name: m for m in made.finish(lambda: 1.0, None).metrics()}
    assert found["decode"].samples == pytest.approx((500, 1000, 1000))
    assert found["decode"].value == pytest.approx(1000)
    assert (found["decode"].unit, found["decode"].direction) == ("tok/s", "higher")
    assert found["decode_b2"].samples == pytest.approx((1000, 2000, 2000))
    assert found["ttft"].samples == pytest.approx((0.02, 0.01, 0.01))
    assert (found["ttft"].direction, found["ttft_b2"].direction) == ("lower", "info")
    assert found["itl_p50"].value == pytest.approx(1e-3)
    assert found["graphs_decode"].value == 0
    assert not {"mbu", "decode_bandwidth"} & set(found)
    assert "graphs_decode_val" not in found


@pytest.mark.parametrize(
    ("streamed", "uncached", "mbu"),
    [(1000, 1000, 0.5), (999, 1000, None), (None, 1000, None), (1000, None, None)],
)
def test_mbu_is_absent_where_a_cache_may_hold_the_weights(streamed, uncached, mbu):
    made, *_ = region("eager", streamed=streamed)
    made.round()
    found = {m.name: m.value for m in made.finish(lambda: 2e6, uncached).metrics()}
    assert found.get("mbu_val") == (None if mbu is None else pytest.approx(mbu))
    assert found.get("decode_bandwidth") == (None if mbu is None else 0.002)


def test_token_times_are_by_position():
    made, *_ = region()
    made.round()
    assert made.finish(lambda: 1.0, None).token_times_s == pytest.approx((0.01, *[0.001] * 3))


def test_rounds_that_the_device_slowed_do_not_count():
    made, *_ = region()
    for number in range(7):
        done = made.round()
        if number == 2:
            health = RoundHealth(throttled="heat")
            made._rounds[-1] = decode.DecodeRound(done.generated, done.whole_s, health)
    found = made.finish(lambda: 1.0, None)
    assert len(found.rounds) == 6
    assert found.thrown_out == ("heat",)


def test_a_token_is_held_to_the_likeliest_behind_its_own_text():
    forms, _ = decode.forms(case(batch_sizes=(1, 2)), prompts(), 4, 4096)
    same = {f.name: [np.tile(np.arange(4), (f.rows, 1)) for _ in f.prompts] for f in forms}
    other = {name: [ids.copy() for ids in each] for name, each in same.items()}
    other["b2"][0][1, 2:] = 99
    eager = FakeDecoder(FakeEngine("eager", FakeClock()))
    assert decode.tokens_apart(same, forms, eager) == ([], 24)
    others, compared = decode.tokens_apart(other, forms, eager)
    assert others == [OtherToken(f"b2/1 token {at}", at, 99, 5.0, 5.0) for at in (2, 3)]
    assert compared == 24
    twice = {name: [*each, *other[name]] for name, each in same.items()}
    assert decode.tokens_apart(twice, forms, eager) == (others, 28)  # one row of one pass is new


def test_logits_that_are_no_numbers_hold_no_token():
    forms, _ = decode.forms(case(), prompts(), 4, 4096)
    given = {f.name: [np.tile(np.arange(4), (f.rows, 1)) for _ in f.prompts] for f in forms}
    eager = FakeDecoder(FakeEngine("eager", FakeClock()))
    eager.logits_after = lambda ids, last: np.full((last, 100), np.nan, dtype=np.float32)
    with pytest.raises(EngineError, match="logits behind the tokens of single/0 are not finite"):
        decode.tokens_apart(given, forms, eager)


@pytest.mark.parametrize(
    ("gap", "word"), [(0.0, "ok"), (9e-4, "ok"), (2e-3, "regressed"), (float("nan"), "regressed")]
)
def test_another_token_is_a_tie_within_rounding(gap, word):
    found = same_tokens("inductor", [OtherToken("single/0 token 1", 5, 6, gap, 10.0)], 64, "fp32")
    assert (found.metric, found.word, found.gate) == ("decode_flips", word, "paired")
    assert len(found.flips) == (word == "regressed")


@pytest.mark.parametrize(("mbu", "said"), [((), False), ((1.1,), False), ((1.2, 1.2, 0.1), True)])
def test_more_than_the_bandwidth_is_impossible(mbu, said):
    assert bool(performance.impossible_bandwidth(mbu)) is said
