"""Shared prefixes on a random Llama of 3 layers: the plain path's answers, in other batches."""

from __future__ import annotations

import dataclasses
import itertools
import weakref
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.nn import functional

from perfline.engines import hf
from perfline.engines.device import Device, current_device
from perfline.engines.engine import run_pass
from perfline.engines.prefix_forward import grouped_sdpa
from perfline.engines.prefix_plan import Limits
from perfline.engines.shared_prefix import SharedPrefixRunner, default_limits
from perfline.engines.upstream import cache_argument
from perfline.errors import DeviceMemory, EngineError, NoSharedPrefixes
from perfline.tasks.answers import LETTERS
from perfline.tasks.prompts import Continuation, Prompt
from random_llama import CONFIG, case, traced_only

ROOMY = Limits(forward_tokens=512, forward_cost_tokens=4)
FULL = Limits(forward_tokens=512, forward_cost_tokens=30)
ONE_ROW = Limits(forward_tokens=1, forward_cost_tokens=0)
NO_KV = Limits(kv_bytes=1, forward_cost_tokens=1)
SMALL = Limits(forward_tokens=64, forward_cost_tokens=1)
# Prompts of more than 40 tokens take other frequencies than their first tokens alone.
LONGROPE = {
    "model_type": "phi3",
    "pad_token_id": 0,
    "original_max_position_embeddings": 40,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
    },
}


def some_prompts():
    """Two subjects with passages, and what is odd: twins, a prompt within another, one token."""
    rng = np.random.default_rng(0)

    def run(n):
        return rng.integers(320, size=n, dtype=np.int64)

    head, rows = run(20), []
    for _ in range(2):
        subject = np.concatenate([head, run(30)])
        rows += [np.concatenate([subject, run(3 + 4 * i)]) for i in range(6)]
        passage = np.concatenate([subject, run(40)])
        rows += [np.concatenate([passage, run(9 - i)]) for i in range(4)]
    rows += [rows[3], rows[4][:-1], rows[0][:1], run(33), run(1)]
    return [Prompt(f"s/{i}", "s", row, i % 6, LETTERS[i % 4]) for i, row in enumerate(rows)]


def continued_prompts(normalised=False):
    """The same, each with 2 to 5 choices of 1 to 7 tokens; some begin alike, two are twins."""
    rng = np.random.default_rng(1)
    found = []
    for i, prompt in enumerate(some_prompts()):
        tokens = [rng.integers(320, size=rng.integers(1, 8)) for _ in range(2 + i % 4)]
        tokens[1][0] = tokens[0][0]
        if len(tokens) > 3:
            tokens[3] = tokens[2]
        choices = tuple(Continuation(each, int(rng.integers(1, 30))) for each in tokens)
        new = {"choices": len(choices), "continuations": choices, "normalised": normalised}
        found.append(dataclasses.replace(prompt, label="AB"[i % 2], **new))
    return found


def scores_of(model, prompt):
    """By the model's own forward and nothing else: (sums, sums by length)."""
    sums = []
    for choice in prompt.continuations:
        ids = torch.from_numpy(np.concatenate([prompt.ids, choice.ids]))[None]
        with torch.inference_mode():
            told = model.module(input_ids=ids)[0][0].double().log_softmax(dim=-1)
        wanted = ids[0, len(prompt.ids) :]
        sums.append(float(told[len(prompt.ids) - 1 : -1].gather(1, wanted[:, None]).sum()))
    return sums, [total / c.length for total, c in zip(sums, prompt.continuations, strict=True)]


def load(**config):
    return hf.load(case(config={**CONFIG, **config}), current_device(), None)


@pytest.fixture(scope="module")
def model():
    loaded = load()
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def plain(model):
    return run_pass(model.engine("eager"), some_prompts(), "all").answers


def assert_same(found, plain):
    assert found.ids == plain.ids
    np.testing.assert_allclose(found.letter_logits, plain.letter_logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.scales, plain.scales, rtol=1e-5)
    assert found.argmax.tolist() == plain.argmax.tolist()
    assert found.letters() == plain.letters()
    assert (found.labels, found.shots, found.argmax_letter) == (
        plain.labels,
        plain.shots,
        plain.argmax_letter,
    )


@pytest.mark.parametrize("limits", [ROOMY, ONE_ROW, NO_KV, SMALL])
def test_answers_and_totals_are_the_plain_path_s_within_any_limits(model, plain, limits):
    prompts = some_prompts()
    runner = SharedPrefixRunner(model.engine("eager"), limits)
    plan = runner.plan(prompts)
    done = runner.run(prompts, plan)
    assert_same(done.answers, plain)
    assert (done.served_tokens, done.computed_tokens, done.padded_tokens, done.halvings) == (
        plan.served_tokens,
        plan.computed_tokens,
        plan.padded_tokens,
        0,
    )
    assert done.computed_tokens < done.served_tokens / 3
    assert 0 < done.core_s <= done.whole_s


@pytest.mark.parametrize("normalised", [False, True])
def test_continuations_are_scored_by_the_log_probabilities_of_their_tokens(model, normalised):
    prompts = continued_prompts(normalised)
    done = run_pass(model.engine("eager"), prompts, "last")
    answers = done.answers
    assert done.tokens == sum(len(row.ids) for prompt in prompts for row in prompt.rows)
    assert (answers.argmax.tolist(), len(answers.scales)) == ([-1] * len(prompts), len(prompts))
    for number, prompt in enumerate(prompts):
        own, other = scores_of(model, prompt)[:: -1 if normalised else 1]
        found = answers.letter_logits[number]
        np.testing.assert_allclose(found[: prompt.choices], own, rtol=1e-5)
        assert np.isnan(found[prompt.choices :]).all()
        assert answers.argmax_letter[number] == LETTERS[int(np.argmax(other))]


@pytest.mark.parametrize("limits", [ROOMY, ONE_ROW, NO_KV, SMALL])
def test_continuations_share_prefixes_too(model, limits):
    prompts = continued_prompts()
    plain = run_pass(model.engine("eager"), prompts, "all").answers
    runner, batches, seen = SharedPrefixRunner(model.engine("eager"), limits), [], []
    plan = runner.plan(prompts)
    done = runner.run(
        prompts, plan, progress=lambda *done: seen.append(done), on_batch=batches.append
    )
    assert_same(done.answers, plain)
    assert done.served_tokens == plan.served_tokens == sum(p.tokens for p in prompts)
    assert done.computed_tokens == plan.computed_tokens < done.served_tokens / 3
    # Whole questions are handed over, each once, though their choices run in several batches.
    assert sorted(name for batch in batches for name in batch.ids) == sorted(plain.ids)
    assert seen[-1] == (len(prompts), len(prompts))
    assert [count for count, _ in seen] == np.cumsum([len(b.ids) for b in batches]).tolist()


def test_memory_that_runs_out_among_a_question_s_choices_loses_none(model, monkeypatch):
    prompts = continued_prompts()
    plain = run_pass(model.engine("eager"), prompts, "last").answers
    out_of_memory_above(model, monkeypatch, 60)
    runner = SharedPrefixRunner(model.engine("eager"), FULL)
    done = runner.run(prompts, runner.plan(prompts))
    assert done.halvings
    assert_same(done.answers, plain)


@pytest.mark.parametrize(
    "config",
    [
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"model_type": "mistral", "sliding_window": 128},
        {"model_type": "mistral", "sliding_window": 9},  # prompts have up to 99 tokens
        {"model_type": "qwen2"},
        {"model_type": "qwen3", "head_dim": 32},
        LONGROPE,
    ],
    ids=str,
)
def test_other_attentions_and_architectures(config):
    loaded, prompts = load(**config), some_prompts()
    plain = run_pass(loaded.engine("eager"), prompts, "last").answers
    runner = SharedPrefixRunner(loaded.engine("eager"), ROOMY)
    assert_same(runner.run(prompts, runner.plan(prompts)).answers, plain)
    loaded.close()


def zero_shot(continued):
    """Questions that share nothing, of several lengths, asked in three forms or with 3 choices."""
    rng = np.random.default_rng(2)
    found = []
    for n in (38, 40, 31, 35, 33, 39):
        ids = rng.integers(320, size=n)
        tails = [rng.integers(320, size=k) for k in (2, 3, 5)]
        if continued:
            choices = tuple(Continuation(tail, len(tail)) for tail in tails)
            found.append(Prompt(f"s/{n}", "s", ids, 0, "A", choices=3, continuations=choices))
        else:
            whole = [np.concatenate([ids, tail]) for tail in tails]
            found += [Prompt(f"s/{n}-{len(row)}", "s", row, 0, "A") for row in whole]
    return found


@pytest.mark.parametrize("continued", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "mistral", "sliding_window": 9},
        {"model_type": "gemma3_text", "sliding_window": 9, "head_dim": 16},
        {"model_type": "llama4_text", "attention_chunk_size": 16, "num_local_experts": 1},
        LONGROPE,
    ],
    ids=str,
)
def test_rows_on_prefixes_of_unequal_length_answer_in_one_forward(config, continued):
    loaded, prompts = load(**config), zero_shot(continued)
    plain = run_pass(loaded.engine("eager"), prompts, "last").answers
    runner = SharedPrefixRunner(loaded.engine("eager"), ROOMY)
    plan = runner.plan(prompts)
    assert any(len({plan.nodes[n].end for n in batch.nodes}) > 1 for batch in plan.batches)
    done = runner.run(prompts, plan)
    assert_same(done.answers, plain)
    assert done.computed_tokens == plan.computed_tokens
    loaded.close()


def test_where_there_is_no_room_for_copies_of_prefixes_it_goes_on_without(model, monkeypatch):
    prompts, pad, full = zero_shot(continued=True), functional.pad, []

    def padded(held, *more):
        if not full:
            full.append(held)
            raise torch.OutOfMemoryError("out of memory")
        return pad(held, *more)

    monkeypatch.setattr(functional, "pad", padded)
    plain = run_pass(model.engine("eager"), prompts, "last").answers
    runner = SharedPrefixRunner(model.engine("eager"), ROOMY)
    done = runner.run(prompts, runner.plan(prompts))
    assert done.halvings == len(full) == 1
    assert_same(done.answers, plain)


def test_transformers_own_eager_attention_takes_the_mask_too(model, plain, monkeypatch):
    monkeypatch.setattr(model.module.config, "_attn_implementation", "eager")
    runner = SharedPrefixRunner(model.engine("eager"), ROOMY)
    prompts = some_prompts()
    assert_same(runner.run(prompts, runner.plan(prompts)).answers, plain)


def test_on_a_cpu_keys_of_grouped_heads_are_not_repeated(model, plain, monkeypatch):
    heads, sdpa = set(), torch.nn.functional.scaled_dot_product_attention

    def seen(query, key, value, **settings):
        heads.add((query.shape[1], key.shape[1], value.shape[1]))
        return sdpa(query, key, value, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", seen)
    runner, prompts = SharedPrefixRunner(model.engine("eager"), ROOMY), some_prompts()
    assert_same(runner.run(prompts, runner.plan(prompts)).answers, plain)
    assert heads == {(CONFIG["num_attention_heads"], *2 * (CONFIG["num_key_value_heads"],))}
    assert model.module.config._attn_implementation == "sdpa"  # as it was before


def test_what_grouped_attention_does_not_know_is_left_to_transformers():
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8)
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True
    found, _ = grouped_sdpa(module, query, key, key, None)
    mask = torch.full((5, 5), -torch.inf).triu(1)[None, None]
    expected, _ = grouped_sdpa(module, query, key, key, mask)
    torch.testing.assert_close(found, expected)


def test_compiled_answers_are_the_same_from_one_graph_and_no_recompile(model, plain):
    loaded, prompts = load(), some_prompts()
    engine = loaded.engine("inductor")
    runner = SharedPrefixRunner(engine, ROOMY)
    runner.warm_up(runner.plan(prompts))
    warm = engine.compile_counts()
    assert (warm.graphs, warm.graph_breaks) == (1, 0)
    for limits in (ROOMY, ONE_ROW, NO_KV, SMALL):
        runner.limits = limits
        assert_same(runner.run(prompts, runner.plan(prompts)).answers, plain)
    scored = continued_prompts()
    by_model = run_pass(model.engine("eager"), scored, "last").answers
    assert_same(runner.run(scored, runner.plan(scored)).answers, by_model)
    rng = np.random.default_rng(1)
    for rows, width, before in itertools.product((1, 2, 4, 16), (2, 16, 64), (0, 2, 64)):
        above = runner.forward.empty
        if before:
            front = rng.integers(320, size=(2, before))
            above, _ = runner.forward.extend(above, front, np.array([before, 2]))
        ids = rng.integers(320, size=(rows, width))
        runner.forward.answer(above, ids, np.full(rows, width))
    assert (engine.compile_counts() - warm).graphs == 0
    assert not any(layer._forward_pre_hooks for layer in engine.layers)
    loaded.close()


def test_a_model_compiled_whole_answers_the_same(monkeypatch):
    traced_only(monkeypatch)
    made, prompts = case(config={**CONFIG, "num_hidden_layers": 2}), some_prompts()
    whole = dataclasses.replace(made, engine=dataclasses.replace(made.engine, scope="model"))
    loaded = hf.load(whole, current_device(), None)
    plain = run_pass(loaded.engine("eager"), prompts, "all").answers
    runner = SharedPrefixRunner(loaded.engine("inductor"), ROOMY)
    runner.warm_up(runner.plan(prompts))
    assert_same(runner.run(prompts, runner.plan(prompts)).answers, plain)
    loaded.close()


def test_each_batch_is_handed_over_once_and_progress_counts_up(model, plain):
    prompts, batches, progress = some_prompts(), [], []
    runner = SharedPrefixRunner(model.engine("eager"), SMALL)
    plan = runner.plan(prompts)
    runner.run(
        prompts, plan, progress=lambda *counts: progress.append(counts), on_batch=batches.append
    )
    assert [answers.ids for answers in batches] == [
        tuple(prompts[row].id for row in batch.rows) for batch in plan.batches
    ]
    done = list(itertools.accumulate(len(answers.ids) for answers in batches))
    assert progress == [(n, len(prompts)) for n in done]
    merged = batches[0]
    for answers in batches[1:]:
        merged = merged.merge(answers)
    order = np.argsort([int(name.removeprefix("s/")) for name in merged.ids])
    np.testing.assert_allclose(merged.letter_logits[order], plain.letter_logits, atol=1e-5)


CPU_FULL = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


def out_of_memory_above(model, monkeypatch, tokens, error=None):
    """The stack's forward, for no more than so many tokens at a time."""
    forward = model.module.base_model.forward

    def limited(**arguments):
        if arguments["input_ids"].numel() > tokens:
            raise error or torch.OutOfMemoryError("Tried to allocate 20.00 GiB")
        return forward(**arguments)

    monkeypatch.setattr(model.module.base_model, "forward", limited)


@pytest.mark.parametrize("error", [None, CPU_FULL], ids=["device", "cpu"])
def test_out_of_memory_halves_the_limits_and_goes_on(model, plain, monkeypatch, error):
    out_of_memory_above(model, monkeypatch, 60, error)
    prompts, said, batches = some_prompts(), [], []
    runner = SharedPrefixRunner(model.engine("eager"), FULL, said.append)
    plan = runner.plan(prompts)
    assert max(len(batch.rows) * batch.width for batch in plan.batches) > 60
    runner.warm_up(plan)  # what does not fit is left to the run
    done = runner.run(prompts, plan, on_batch=batches.append)
    assert_same(done.answers, plain)
    assert done.halvings == len(said) >= 1
    assert said[0].startswith("out of memory at ")
    assert sum(len(answers.ids) for answers in batches) == len(prompts)
    assert runner.limits.forward_tokens <= 60


def test_where_a_group_of_prefixes_does_not_fit_what_it_took_is_halved(model, monkeypatch):
    prompts = zero_shot(continued=True)
    plain = run_pass(model.engine("eager"), prompts, "last").answers
    runner = SharedPrefixRunner(model.engine("eager"), ROOMY)
    plan = runner.plan(prompts)
    group = max(plan.groups, key=len)
    assert len(group) > 2
    tokens = len(group) * max(plan.nodes[node].end for node in group)
    out_of_memory_above(model, monkeypatch, tokens - 1)
    done = runner.run(prompts, plan)
    assert_same(done.answers, plain)
    assert done.halvings == 1
    assert (runner.limits.forward_tokens, runner.limits.kv_bytes) == (tokens // 2, tokens // 2)


class FakeEvent:
    """``torch.Event`` by script: every millisecond-long interval ends when it is waited for."""

    log: ClassVar[list[str]] = []

    def __init__(self, device, enable_timing):
        assert enable_timing

    def record(self):
        self.log.append("record")

    def synchronize(self):
        self.log.append("synchronize")

    def elapsed_time(self, end):
        return 1.0


# A batch is read when the next is queued; where the fifth does not fit, the fourth is still read.
@pytest.mark.parametrize(("tokens", "events"), [(10_000, "rrrrsrrs"), (70, "rrrrsrrsrrsrsrr")])
def test_a_device_that_runs_behind_gets_the_next_batch_before_the_last_is_read(
    model, plain, monkeypatch, tokens, events
):
    monkeypatch.setattr(Device, "runs_behind", True)
    monkeypatch.setattr(torch, "Event", FakeEvent)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(FakeEvent, "log", [])
    out_of_memory_above(model, monkeypatch, tokens)
    prompts = some_prompts()
    runner = SharedPrefixRunner(model.engine("eager"), FULL)
    plan = runner.plan(prompts)
    done = runner.run(prompts, plan)
    assert_same(done.answers, plain)
    assert "".join(name[0] for name in FakeEvent.log).startswith(events)
    assert done.core_s == pytest.approx(FakeEvent.log.count("synchronize") / 1000)


def test_a_single_row_that_does_not_fit_is_an_error_and_not_a_loop(model, monkeypatch):
    out_of_memory_above(model, monkeypatch, 9)
    runner = SharedPrefixRunner(model.engine("eager"), ROOMY)
    prompts = some_prompts()
    with pytest.raises(DeviceMemory, match=r"a forward of 1 x \d+ tokens on a prefix of \d+: out"):
        runner.run(prompts, runner.plan(prompts))


def test_logits_that_are_not_finite_name_the_question(model, monkeypatch):
    engine = model.engine("eager")
    monkeypatch.setattr(engine.head, "forward", lambda x: torch.full((len(x), 1, 320), torch.nan))
    prompts = some_prompts()[:1]
    runner = SharedPrefixRunner(engine, ROOMY)
    with pytest.raises(EngineError, match=r"1 of 1 prompts are not finite \(first: question s/0\)"):
        runner.run(prompts, runner.plan(prompts))


def test_flops_are_those_that_torch_counts_padding_included(model):
    from torch.utils.flop_counter import FlopCounterMode

    engine, prompts = model.engine("eager"), some_prompts()
    runner = SharedPrefixRunner(engine, ROOMY)
    plan = runner.plan(prompts)
    with FlopCounterMode(display=False) as counter:
        done = runner.run(prompts, plan)
    counts = counter.get_flop_counts()["Global"]
    attention = sum(count for op, count in counts.items() if "attention" in str(op))
    shapes = [(1, node.end - node.start, node.start) for node in plan.nodes]
    shapes += [(len(batch.rows), batch.width, batch.prefix) for batch in plan.batches]
    pairs = sum(rows * (n * (n + 1) / 2 + n * before) for rows, n, before in shapes)
    assert done.flops == pytest.approx(
        counter.get_total_flops() - attention + 4 * 64 * 3 * pairs, rel=2e-3
    )


def test_an_attention_without_mask_is_refused(model, monkeypatch):
    monkeypatch.setattr(model.module.config, "_attn_implementation", "flash_attention_2")
    with pytest.raises(NoSharedPrefixes, match=r"is 'flash_attention_2', expected sdpa or eager"):
        SharedPrefixRunner(model.engine("eager"))


def test_default_limits_leave_most_memory_alone(monkeypatch):
    cpu = current_device()
    monkeypatch.setattr(type(cpu), "free_memory_gib", lambda self: 40.0)
    assert default_limits(cpu, 8, 64).kv_bytes == 2**30
    gpu = dataclasses.replace(cpu, kind="cuda")
    assert default_limits(gpu, 8, 64).kv_bytes == 12 * 2**30
    monkeypatch.setattr(type(cpu), "free_memory_gib", lambda self: None)
    assert default_limits(gpu, 8, 64).kv_bytes == 2**30


def test_no_prompts_are_answered_by_no_forward(model):
    runner = SharedPrefixRunner(model.engine("eager"), ROOMY)
    done = runner.run([], runner.plan([]))
    assert (done.answers.ids, done.served_tokens, done.flops) == ((), 0, 0.0)


def test_out_of_memory_lets_go_of_what_the_failed_forward_held(model, monkeypatch):
    held, left = weakref.WeakSet(), []
    forward = model.module.base_model.forward

    def limited(**arguments):
        if arguments["input_ids"].numel() > 60:
            cache = arguments[cache_argument(model.module.base_model)]
            held.add(cache)
            raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")
        return forward(**arguments)

    monkeypatch.setattr(model.module.base_model, "forward", limited)
    prompts = some_prompts()
    runner = SharedPrefixRunner(model.engine("eager"), FULL, lambda _: left.append(len(held)))
    runner.run(prompts, runner.plan(prompts))
    assert left
    assert set(left) == {0}


def test_a_model_that_takes_no_prefix_is_told_in_one_line(model, monkeypatch):
    def moved(**given):
        if given["attention_mask"] is not None:
            raise TypeError("update() got an unexpected keyword argument 'kwargs'")
        return forward(**given)

    forward = model.module.base_model.forward
    runner = SharedPrefixRunner(model.engine("eager"), ROOMY)
    prompts = some_prompts()
    monkeypatch.setattr(model.module.base_model, "forward", moved)
    with pytest.raises(
        NoSharedPrefixes, match=r"^LlamaForCausalLM does not run after a prefix: TypeErr"
    ):
        runner.warm_up(runner.plan(prompts))


def test_prefixes_of_unequal_length_that_are_one_another_s_are_seen_before_any_question(
    model, monkeypatch
):
    forward = SharedPrefixRunner(model.engine("eager"), ROOMY).forward
    beside = forward.beside
    forward.prove()
    monkeypatch.setattr(forward, "beside", lambda prefixes: beside([*prefixes[::-1]]))
    with pytest.raises(NoSharedPrefixes, match=r"after a prefix are off by 0\.\d"):
        forward.prove()


class Int8Linear(torch.nn.Module):
    """A weight of 8 bits and a scale, as quantizers keep them."""

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.abs().max() / 127
        whole = torch.round(linear.weight / scale).to(torch.int8)
        self.weight = torch.nn.Parameter(whole, requires_grad=False)
        self.scale = torch.nn.Parameter(scale, requires_grad=False)

    def forward(self, states):
        return states @ (self.weight.float() * self.scale).T


def test_quantised_weights_share_prefixes_in_the_dtype_that_is_computed_with():
    model = load()
    for layer in model.module.base_model.layers:
        layer.self_attn.q_proj = Int8Linear(layer.self_attn.q_proj)
    assert next(model.engine("eager").layers.parameters()).dtype == torch.int8
    plain = run_pass(model.engine("eager"), some_prompts(), "all").answers
    runner = SharedPrefixRunner(model.engine("eager"), ROOMY)
    assert_same(runner.run(some_prompts(), runner.plan(some_prompts())).answers, plain)
    model.close()
