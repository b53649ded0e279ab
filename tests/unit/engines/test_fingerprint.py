"""What runs inside a forward, counted: each counter sees a change of the compiled engine alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.models.llama import modeling_llama

from perfline.cases.case import ThroughputSpec
from perfline.engines import fingerprint, hf
from perfline.engines.device import current_device
from perfline.gates.fingerprint import against_stored
from perfline.measure import throughput
from perfline.tasks.prompts import Prompt
from random_llama import case


def prompt(length=24):
    ids = torch.arange(length).numpy()
    return Prompt(f"s/{length}", "s", ids, 5, None)


def taken(name="inductor", damage=lambda model: None):
    loaded = hf.load(case(), current_device(), None)
    try:
        damage(loaded)
        engine, asked = loaded.engine(name), [prompt(20), prompt(), prompt(30)]
        ready = throughput.make_ready(engine, asked, ThroughputSpec(sample=3, min_round_s=1e-6))
        found = engine.fingerprint(prompt(), "all", (ready.first, ready.later), 74)
        assert found == engine.fingerprint(prompt(), "all", (ready.first, ready.later), 74)
        return found
    finally:
        loaded.close()


@pytest.fixture(scope="module")
def unchanged():
    return taken()


def only_where_compiled(monkeypatch, more):
    """An MLP that does ``more`` under torch.compile, and is as it was in eager mode."""
    forward = modeling_llama.LlamaMLP.forward

    def other(self, x):
        return forward(self, more(self, x) if torch.compiler.is_compiling() else x)

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", other)


def test_the_eager_engine_tells_operators_and_flops_by_module():
    found = taken("eager")
    assert found.counts == {"prompt_tokens": 74, "weights_elsewhere": 0}
    assert found.operators["aten::mm"] == 3 * 7 + 1  # the layers' matrices, and the head
    assert sum(found.weights.values()) > 0
    assert list(found.weights) == ["cpu float32"]
    flops = found.flops
    assert {"all", "layers.0", "layers.2.mlp", "layers.2.self_attn"} <= flops.keys()
    assert flops["layers.0"] == flops["layers.0.mlp"] + flops["layers.0.self_attn"]


def test_an_operator_more_of_the_compiled_engine_alone_is_seen(monkeypatch, unchanged):
    only_where_compiled(monkeypatch, lambda mlp, x: x + 0.5 * mlp.down_proj(mlp.up_proj(x * 1.5)))
    now = taken()
    assert now.operators["aten::mm"] == unchanged.operators["aten::mm"] + 3 * 2
    verdict = against_stored("fingerprint", unchanged, now, "b.json", timed=True)
    assert verdict.word == "ok"
    assert "aten::mm 22 -> 28" in verdict.reason


def test_a_kernel_more_of_the_compiled_engine_alone_is_seen(monkeypatch, unchanged):
    only_where_compiled(monkeypatch, lambda mlp, x: x + x.cumsum(-1) * 1e-9)
    now = taken()
    assert now.kernels["generated"] > unchanged.kernels["generated"]
    assert now.kernels["nodes"] > unchanged.kernels["nodes"]


def test_a_layer_that_is_no_longer_compiled_is_regressed(unchanged):
    def leave_one_out(model):
        engine = model.engine("inductor")
        engine.compiled_forwards.pop(engine.layers[1])

    now = taken(damage=leave_one_out)
    assert now.counts["graphs"] == unchanged.counts["graphs"] == 1
    assert now.counts["eager_ops"] > unchanged.counts["eager_ops"]
    verdict = against_stored("fingerprint", unchanged, now, "b.json", timed=True)
    assert verdict.word == "regressed"
    assert verdict.reason.startswith("fell off the fast path: operators outside of compiled graphs")


def test_a_weight_in_another_dtype_or_on_another_device_is_counted():
    def cast(model):
        model.module.model.layers[0].mlp.register_buffer("spare", torch.ones(5).half())
        model.module.model.layers[0].mlp.register_buffer("far", torch.ones(7, device="meta"))

    now = taken("eager", cast)
    assert (now.weights["cpu float16"], now.weights["meta float32"]) == (5, 7)
    assert now.counts["weights_elsewhere"] == 7


def test_launches_of_an_accelerator_are_told_by_kernel(monkeypatch):
    events = [
        SimpleNamespace(name=name, device_type=SimpleNamespace(name=where), cpu_parent=None)
        for name, where in (("aten::mm", "CPU"), ("sgemm" + "x" * 200, "CUDA"), ("copy", "CUDA"))
    ]

    class Profiler:
        def supported_activities(self):
            return set()

        def profile(self, activities):
            return self

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def events(self):
            return events

    monkeypatch.setattr(fingerprint, "_profiler", Profiler())
    found = fingerprint.of_run(
        "eager", torch.nn.Linear(1, 1), "cuda", lambda: None, prompt().ids, (None, None), 9
    )
    assert {name[:5]: n for name, n in found.kernels.items()} == {"copy": 1, "sgemm": 1}
    assert max(map(len, found.kernels)) == 100
    assert found.counts["weights_elsewhere"] == 2
