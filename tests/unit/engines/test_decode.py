"""Generating token by token on random Llamas: the right tokens, and one graph for all layers."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

import random_llama
from perfline.cases.case import DecodeSpec
from perfline.engines import decode, hf, upstream
from perfline.engines.device import current_device
from perfline.engines.engine import CompileCounts
from perfline.errors import NoDecode
from perfline.gates.fingerprint import SAME, against_stored
from perfline.measure import decode as measured
from perfline.tasks.prompts import Prompt

WIDTHS = (37, 20, 61)
TOKENS = 12
LENGTH = 128


def loaded(layers=3, **engine):
    torch.manual_seed(0)
    config = {**random_llama.CONFIG, "num_hidden_layers": layers}
    if layers > 3:
        config |= {"hidden_size": 16, "intermediate_size": 24}
    return hf.load(random_llama.case(config=config, **engine), current_device(), None)


def prompts():
    made = np.random.default_rng(0)
    return [made.integers(0, 320, (1, width)) for width in WIDTHS]


def tokens(decoder):
    return [decoder.generate(ids, TOKENS, LENGTH).tokens for ids in prompts()]


@pytest.fixture
def model():
    made = loaded()
    yield made
    made.close()


def of_generate(model):
    """The tokens that transformers' own ``generate`` gives, greedily and without an end."""
    neutral = transformers.GenerationConfig(
        max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    model.activate("eager")
    model.module.generation_config = neutral
    found = []
    for ids in prompts():
        batch = torch.from_numpy(ids)
        seen = torch.ones_like(batch)  # else token 0 is taken for padding
        whole = model.module.generate(batch, attention_mask=seen, generation_config=neutral)
        found.append(whole[:, ids.shape[1] :].tolist())
    return found


def test_eager_tokens_are_those_of_generate(model):
    given = tokens(decode.Decoder(model, "eager"))
    assert [found.tolist() for found in given] == of_generate(model)


def test_tokens_of_a_batch_are_those_of_its_rows(model):
    decoder = decode.Decoder(model, "eager")
    batch = np.random.default_rng(1).integers(0, 320, (3, 25))
    rows = [decoder.generate(row[None], TOKENS, LENGTH).tokens[0].tolist() for row in batch]
    assert decoder.generate(batch, TOKENS, LENGTH).tokens.tolist() == rows


def test_a_cache_that_was_used_is_empty_again(model):
    decoder = decode.Decoder(model, "eager")
    assert [t.tolist() for t in tokens(decoder)] == [t.tolist() for t in tokens(decoder)]


def test_every_token_has_its_time(model):
    found = decode.Decoder(model, "eager").generate(prompts()[0], TOKENS, LENGTH)
    assert len(found.steps_s) == TOKENS - 1
    assert 0 < found.first_s + sum(found.steps_s) <= found.whole_s


def test_logits_after_are_of_the_next_token(model):
    decoder, ids = decode.Decoder(model, "eager"), prompts()[0]
    given = decoder.generate(ids, 5, LENGTH).tokens[0]
    assert decoder.logits_after(ids[0]).argmax(axis=1) == given[:1]
    behind = decoder.logits_after(np.append(ids[0], given[:-1]), last=5)
    assert behind.argmax(axis=1).tolist() == given.tolist()


def test_streamed_bytes_are_weights_and_the_whole_cache(model):
    config, rows = random_llama.CONFIG, 2
    weights = sum(p.nbytes for p in model.module.parameters())
    unread = (config["vocab_size"] - rows) * config["hidden_size"] * 4
    cache = 2 * 3 * rows * 2 * LENGTH * 16 * 4  # keys and values, layers, rows, heads, size, fp32
    decoder = decode.Decoder(model, "eager")
    assert decoder.streamed_bytes(rows, LENGTH) == weights - unread + cache


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_the_compiled_engine_gives_generate_s_tokens_and_compiles_a_form_once(scope, monkeypatch):
    if scope == "model":
        random_llama.traced_only(monkeypatch)
    model = loaded(scope=scope)
    eager = tokens(decode.Decoder(model, "eager"))
    decoder, engine = decode.Decoder(model, "inductor"), model.engine("inductor")
    first = decoder.generate(prompts()[0], TOKENS, LENGTH)
    counts = engine.compile_counts()
    assert (counts.graphs, counts.graph_breaks) == (2, 0)  # of a prompt, and of a token
    assert [t.tolist() for t in tokens(decoder)] == [t.tolist() for t in eager]
    assert first.tokens.tolist() == eager[0].tolist()
    assert engine.compile_counts() == counts
    assert [t.tolist() for t in eager] == of_generate(model)
    model.close()


def test_every_eighth_token_that_runs_eagerly_is_named_by_the_fingerprint(monkeypatch):
    """In the compiled engine alone; and the tokens are the same."""

    def counted(name):
        model = loaded()
        decoder, ids = decode.Decoder(model, name), prompts()[0]
        decoder.generate(ids, 17, LENGTH)
        counts = model.engine(name).compile_counts()
        twice = [
            decoder.fingerprint(ids, 17, LENGTH, (counts, CompileCounts()), 9) for _ in range(2)
        ]
        assert twice[0] == twice[1]
        model.close()
        return twice[0]

    eager, compiled = counted("eager"), counted("inductor")
    assert "eager_ops" not in eager.counts
    forward, calls = decode.Decoder._next, itertools.count()

    def eighth(self, *arguments):
        if self.name == "eager" or next(calls) % 17 % 8 != 7:
            return forward(self, *arguments)
        with torch.compiler.set_stance("force_eager"):
            return forward(self, *arguments)

    monkeypatch.setattr(decode.Decoder, "_next", eighth)
    judged = against_stored("fingerprint_decode_val", eager, counted("eager"), "b.json", True)
    assert (judged.word, judged.reason) == ("ok", SAME)
    now = counted("inductor")
    assert (now.counts["graphs"], compiled.counts["graphs"]) == (2, 2)
    judged = against_stored("fingerprint_decode", compiled, now, "b.json", True)
    assert judged.word == "regressed"
    assert "fell off the fast path: operators outside of compiled graphs" in judged.reason
    assert now.counts["eager_ops"] > compiled.counts["eager_ops"] + 2 * 3 * 7  # matrices of 2 steps


@pytest.mark.parametrize("layers", [12, 32])
def test_one_graph_serves_all_layers(layers):
    model = loaded(layers)
    eager = tokens(decode.Decoder(model, "eager"))
    decoder, engine = decode.Decoder(model, "inductor"), model.engine("inductor")
    decoder.generate(prompts()[0], 2, 256)
    counts = engine.compile_counts()
    assert counts.graphs == 2
    long = decoder.generate(prompts()[0], 129, 256)  # 128 steps
    assert [t.tolist() for t in tokens(decoder)] == [t.tolist() for t in eager]
    assert len(long.steps_s) == 128
    assert engine.compile_counts() == counts
    model.close()


def test_every_context_has_a_cache_of_its_own_and_recompiles_nothing(monkeypatch):
    random_llama.traced_only(monkeypatch)
    spec = DecodeSpec(batch_sizes=(1, 8, 32), context=(64, 128, 256, 512))
    asked = [Prompt(f"s/{ids.size}", "s", ids[0], 5, None) for ids in prompts()]
    model = loaded(2)
    forms, lines = measured.forms(replace(model.case, decode=spec), asked, 4, model.positions)
    assert len(lines) == 1  # the model has 256 positions
    eager = decode.Decoder(model, "eager")
    for name in ("eager", "inductor"):
        decoder, engine = decode.Decoder(model, name), model.engine(name)
        work = measured.Work(engine, decoder, tuple(forms), 4)
        region = measured.DecodeRegion(work, work.make_ready(0.0))
        region.round()
        found = region.finish(lambda: None, None)
        assert measured.tokens_apart(found.given, forms, eager)[0] == []
        lengths = {"": 128, "b8": 64, "b32": 64, "c64": 64, "c128": 128, "c256": 256}
        assert {form.name: form.length for form in forms} == lengths
        assert set(decoder._caches) == {(form.rows, form.length) for form in forms}
        for (rows, length), cache in decoder._caches.items():
            assert cache.layers[0].keys.shape[::2] == (rows, length)
    # A prompt and a token, by one row or by several: any length of cache runs in those.
    assert (found.ready.first.graphs, found.ready.later.graphs, found.timed.graphs) == (4, 0, 0)
    names = {metric.name for metric in found.metrics()}
    of = {"decode_b8", "decode_b32", "decode_c64", "decode_c128", "decode_c256"}
    assert {name for name in names if name.startswith("decode_")} == of
    assert {name for name in names if name.startswith("ttft_")} == {
        name.replace("decode", "ttft") for name in of
    }
    model.close()


def test_a_model_without_a_static_cache_decodes_eagerly_with_a_growing_one(model, monkeypatch):
    static = tokens(decode.Decoder(model, "eager"))
    monkeypatch.setattr(type(model.module.base_model), "_can_compile_fullgraph", False)
    decoder = decode.Decoder(model, "eager")
    assert not decoder.static
    assert decoder.streamed_bytes(1, LENGTH) is None
    assert [t.tolist() for t in tokens(decoder)] == [t.tolist() for t in static]
    with pytest.raises(NoDecode, match="LlamaModel of transformers supports no static cache"):
        decode.Decoder(model, "inductor")


def test_a_model_that_takes_no_cache_cannot_decode(model, monkeypatch):
    monkeypatch.setattr(upstream, "CACHE_ARGUMENTS", ("nothing",))
    with pytest.raises(NoDecode, match="takes no nothing"):
        decode.Decoder(model, "eager")


def test_layers_of_several_kinds_have_no_static_cache(model):
    shape = {k: v for k, v in random_llama.CONFIG.items() if k != "model_type"}
    config = transformers.AutoConfig.for_model("qwen2", **shape)
    assert upstream.static_cache(model.module.base_model, config, 16) is not None
    config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    config.sliding_window = 8
    assert upstream.static_cache(model.module.base_model, config, 16) is None
