"""A real model in fp32 and back: exact, and every way the same."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from perfline.baselines import judge
from perfline.engines import full_precision as full_precision_module
from perfline.engines import hf
from perfline.engines.device import current_device
from perfline.engines.full_precision import ModelLogits, full_precision, own_precision
from perfline.engines.upstream import attention_of
from perfline.errors import DeviceMemory, NoFidelity
from perfline.gates import fidelity as gate
from perfline.measure import fidelity
from perfline.tasks.prompts import Prompt
from random_llama import case


def prompts():
    rng = np.random.default_rng(0)
    front = rng.integers(320, size=20, dtype=np.int64)
    return [
        Prompt(f"s/{i}", "s", np.append(front, rng.integers(320, size=n, dtype=np.int64)), 5, None)
        for i, n in enumerate((3, 9, 14, 20))
    ]


def loaded(precision):
    return hf.load(case(precision), current_device(), None)


def tensors(model):
    named = itertools.chain(model.module.named_parameters(), model.module.named_buffers())
    return {name: tensor.clone() for name, tensor in named}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_model_comes_back_bit_by_bit(precision):
    model = loaded(precision)
    before = tensors(model)
    with full_precision(model) as numbers:
        assert all(t.dtype == torch.float32 for t in tensors(model).values())
        rows, layers = numbers.plain("eager", prompts()[0], [5, 22])
    assert (rows.shape, rows.dtype, len(layers)) == ((2, 320), np.float32, 3)
    after = tensors(model)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {t.dtype for t in after.values()} == {t.dtype for t in before.values()}
    assert torch.get_float32_matmul_precision() == "highest"
    model.close()


def test_every_way_of_a_bf16_model_is_the_same_in_fp32_and_a_broken_one_is_not(monkeypatch):
    model = loaded("bf16")
    with full_precision(model) as numbers:
        found = fidelity.measure(numbers, ("eager", "inductor"), prompts())
        assert set(found.ways) == {"eager shared", "inductor plain", "inductor shared"}
        assert set(found.variations) == {"attention", "batch", "rounding"}
        verdict = gate.between_ways(found.ways, found.variations, found.most, found.without)
        assert verdict.word == "ok", verdict.reason
        compiled = model.engine("inductor")
        forward = type(compiled).forward

        def off(engine, batch, head):
            logits = forward(engine, batch, head)
            return logits * 1.001 if engine is compiled else logits

        monkeypatch.setattr(type(compiled), "forward", off)
        found = fidelity.measure(numbers, ("inductor",), prompts(), shared=False)
    verdict = gate.between_ways(found.ways, found.variations, found.most, found.without)
    assert verdict.word == "regressed"
    assert "inductor plain" in verdict.reason
    model.close()


def test_what_does_not_fit_is_said_before_anything_is_cast(monkeypatch):
    model = loaded("bf16")
    monkeypatch.setattr(type(model.device), "free_memory_gib", lambda self: 1e-6)
    with (
        pytest.raises(NoFidelity, match=r"takes 0.0 GiB more than in its own dtype, and 0.0 GiB"),
        full_precision(model),
    ):
        pass
    assert next(model.module.parameters()).dtype == torch.bfloat16
    model.close()


def with_layers(model, layers):
    asked = replace(model.case, fidelity=replace(model.case.fidelity, layers=layers))
    model.case = asked
    return model


def test_the_first_layers_alone_are_run_where_the_case_asks():
    model, twin = with_layers(loaded("bf16"), 2), loaded("bf16")
    del twin.module.model.layers[2:]
    twin.forget_engines()
    before, ids = tensors(model), prompts()
    with full_precision(twin) as numbers:
        own = numbers.plain("eager", ids[0], [5, 22])
    with full_precision(model) as numbers:
        last = model.module.model.layers[-1].self_attn.q_proj
        assert last.weight.dtype == torch.float32
        rows, layers = numbers.plain("eager", ids[0], [5, 22])
        found = fidelity.measure(numbers, ("eager", "inductor"), ids)
    assert (rows.tolist(), layers) == (own[0].tolist(), own[1])
    assert set(found.ways) == {"eager shared", "inductor plain", "inductor shared"}
    assert gate.between_ways(found.ways, found.variations, found.most, {}).word == "ok"
    with own_precision(model) as numbers:
        assert len(numbers.plain("eager", ids[0], [5])[1]) == 2
    with own_precision(with_layers(model, 9)) as numbers:  # more than there are
        assert len(numbers.plain("eager", ids[0], [5])[1]) == 3
    after = tensors(model)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    model.close()
    twin.close()


def test_a_list_that_would_pass_for_the_layers_is_no_model_of_fewer():
    model = with_layers(loaded("bf16"), 1)
    model.module.model.extra = torch.nn.ModuleList([torch.nn.Identity()] * 2)
    with pytest.raises(NoFidelity, match="does not run 1 of its layers"), full_precision(model):
        pass
    assert len(model.module.model.layers) == 3
    model.close()


def test_how_many_layers_would_fit_is_said(monkeypatch):
    model = loaded("bf16")
    layers = sum(p.numel() for p in model.module.model.layers.parameters()) * 2 / 2**30
    whole = sum(p.numel() for p in model.module.parameters()) * 2 / 2**30
    free = (whole - layers / 3) * 1.1 + 1e-9
    monkeypatch.setattr(type(model.device), "free_memory_gib", lambda self: free)
    with (
        pytest.raises(NoFidelity, match=r"`fidelity: \{layers: 2\}` in .* the first 2 alone"),
        full_precision(model),
    ):
        pass
    with full_precision(with_layers(model, 2)):
        pass
    monkeypatch.setattr(type(model.device), "free_memory_gib", lambda self: 1e-9)
    with pytest.raises(NoFidelity) as none, full_precision(model):
        pass
    assert "layers" not in str(none.value)
    model.close()


def test_an_attention_that_may_know_16_bits_only_gives_way_to_sdpa(monkeypatch):
    model = loaded("bf16")
    config = model.module.config
    monkeypatch.setattr(config, "_attn_implementation_internal", "flex_attention")
    assert attention_of(config) == "flex_attention"
    with full_precision(model):
        assert attention_of(config) == "sdpa"
    assert attention_of(config) == "flex_attention"
    model.close()


FULL = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("error", [DeviceMemory("out of memory"), FULL])
def test_a_cast_that_fails_half_way_leaves_the_model_as_it_was(monkeypatch, error):
    model = loaded("bf16")
    before = tensors(model)
    cast = full_precision_module._cast

    def half(model, some, dtypes):
        monkeypatch.undo()
        cast(model, some[:3], dtypes[:3])
        raise error

    monkeypatch.setattr(full_precision_module, "_cast", half)
    with pytest.raises(DeviceMemory, match="out of memory"), full_precision(model):
        pass
    after = tensors(model)
    assert all(after[name].dtype == tensor.dtype for name, tensor in before.items())
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    model.close()


def test_drift_of_bf16_is_that_of_rounding_and_of_a_wrong_cast_is_not(monkeypatch):
    model = loaded("bf16")

    def drift():
        with full_precision(model) as numbers:
            found = fidelity.measure(numbers, ("eager",), prompts(), shared=False)
        found = fidelity.with_drift(found, ModelLogits(model), ("eager",), prompts())
        verdicts = judge.model_numbers(found, {}, judge.Against(Path("x.json"), None, None))
        return next(v for v in verdicts if v.metric == "drift_val")

    assert drift().word == "ok"
    norm = type(model.module.model.norm)

    def shorter(self, x):  # what it takes is cut to fp8, in 16 bits alone
        if x.dtype == torch.bfloat16:
            x = x.to(torch.float8_e4m3fn).to(x.dtype)
        return right(self, x)

    right = norm.forward
    monkeypatch.setattr(norm, "forward", shorter)
    verdict = drift()
    assert verdict.word == "regressed", verdict.reason
    model.close()


def test_rounding_leaves_no_hook_behind_and_fp32_has_none():
    model = loaded("bf16")
    with full_precision(model) as numbers:
        plain, _ = numbers.plain("eager", prompts()[0], [5])
        rounded, _ = numbers.plain("eager", prompts()[0], [5], "rounded")
        assert np.abs(rounded - plain).max() > 0
        assert np.array_equal(numbers.plain("eager", prompts()[0], [5])[0], plain)
    with pytest.raises(NoFidelity, match="nothing to round to"):
        ModelLogits(model).plain("eager", prompts()[0], [5], "rounded")
    model.close()
