"""Where the seconds of a forward go: by operator and module, of the CPU or of a device."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from perfline.compare.explain import ROUNDS, explain
from perfline.engines import hf
from perfline.engines.device import current_device
from perfline.engines.profile import told
from perfline.tasks.prompts import Prompt
from random_llama import case


def event(name, us=0.0, *children, kernels=(), kind="CPU"):
    return SimpleNamespace(
        name=name,
        time_range=SimpleNamespace(elapsed_us=lambda: us),
        cpu_children=list(children),
        kernels=[SimpleNamespace(name=kernel, duration=took) for kernel, took in kernels],
        device_type=SimpleNamespace(name=kind),
    )


def module(name, us, *children, **more):
    return event(f"perfline module {name}", us, *children, **more)


def forward(number, us, *children):
    return event(f"perfline forward {number}", us, *children)


def spans(profile):
    return {(s.module, s.operator): (round(1e6 * s.seconds, 6), s.calls) for s in profile.spans}


def mlp(mm_us):
    linear = event("aten::linear", mm_us + 10, event("aten::t", 4), event("aten::mm", mm_us))
    up = module("layers.0.mlp.up_proj", mm_us + 30, linear)
    return module("layers.0.mlp", mm_us + 100, up, event("aten::mul", 20))


def test_an_operator_is_the_topmost_one_and_python_is_what_lies_between():
    root = forward(0, 300, module("", 280, event("aten::add", 30), mlp(100)))
    profile = told([root, event("aten::other", 99)], [400e-6], 1, 10, on_device=False)
    assert spans(profile) == {
        ("", "aten::add"): (30, 1),
        ("", "Python"): (50, 1),
        ("layers.0.mlp", "Python"): (50, 1),
        ("layers.0.mlp", "aten::mul"): (20, 1),
        ("layers.0.mlp.up_proj", "Python"): (20, 1),
        ("layers.0.mlp.up_proj", "aten::linear"): (110, 1),
    }
    assert {s.operator: s.kernel for s in profile.spans}["aten::linear"] == "aten::mm"
    assert profile.wall_s == pytest.approx(400e-6)


def test_compiled_kernels_lose_their_numbers_and_belong_to_what_was_compiled():
    call = event(
        "## Call CompiledFxGraph abc ##",
        90,
        event("graph_1_cpp_fused_mul_silu_3", 20),
        event("graph_1_cpp_fused_mul_silu_12", 30),
        event("aten::mm", 10),
    )
    region = event("Torch-Compiled Region: 0/0", 100, event("Pregraph bytecode", 5), call)
    layer = module("layers.1", 150, event("TorchDynamo Cache Lookup", 15), region)
    profile = told([forward(0, 160, layer)], [160e-6], 1, 10, on_device=False)
    assert spans(profile) == {
        ("layers.1", "TorchDynamo Cache Lookup"): (15, 1),
        ("layers.1", "cpp_fused_mul_silu"): (50, 2),
        ("layers.1", "aten::mm"): (10, 1),
        ("layers.1", "Python"): (75, 1),
    }


def test_on_a_device_kernels_count_for_what_launched_them():
    linear = event(
        "aten::linear",
        50,
        event("aten::mm", 40, event("cudaLaunchKernel", 9, kernels=[("sm90_gemm", 70)])),
    )
    graph = event("cudaGraphLaunch", 5, kernels=[("triton_poi_fused_mul_silu_7", 30), ("k", 2)])
    up = module("layers.0.mlp.up_proj", 60, linear, kernels=[("perfline module x", 999)])
    root = forward(0, 300, module("", 280, up, module("layers.1", 20, graph)))
    profile = told([root, event("sm90_gemm", 70, kind="CUDA")], [200e-6], 1, 10, on_device=True)
    assert spans(profile) == {
        ("layers.0.mlp.up_proj", "aten::linear"): (70, 1),
        ("layers.1", "triton_poi_fused_mul_silu"): (30, 1),
        ("layers.1", "k"): (2, 1),
    }
    assert profile.spans[0].kernel == "sm90_gemm"
    assert profile.wall_s == pytest.approx(200e-6)  # 98 of them in no kernel


def test_of_the_repeats_of_a_prompt_the_least_counts():
    """Two prompts, in turn."""
    took = (100, 300, 9000, 400, 120, 310)
    roots = [forward(n, us + 120, mlp(us)) for n, us in enumerate(took)]
    walls = [(us + 130 + 50 * (n == 0)) / 1e6 for n, us in enumerate(took)]
    profile = told(roots, walls, 2, 30, on_device=False)
    assert spans(profile)["layers.0.mlp.up_proj", "aten::linear"] == (110 + 310, 6)
    assert profile.wall_s == pytest.approx((100 + 130 + 300 + 130) / 1e6)


PROMPTS = [Prompt(f"s/{n}", "s", torch.arange(n).numpy(), 5, None) for n in (20, 24, 30)]


@pytest.fixture
def eager():
    made = []

    def load():
        made.append(hf.load(case(), current_device(), None))
        return made[-1].engine("eager")

    yield load
    for model in made:
        model.close()


def test_an_mlp_that_runs_again_in_one_layer_is_named_first(eager):
    """A dozen times over: more than anything that a busy machine does to one operator."""
    a, b = eager(), eager()
    mlp = b.layers[1].mlp
    once = mlp.forward
    mlp.forward = lambda x: max((once(x) for _ in range(12)), key=id)
    both = [[side.profile(PROMPTS[:1], "last") for _ in range(ROUNDS)] for side in (a, b)]
    found = explain(*([told() for told in side] for side in both))
    assert found.causes[0].module.startswith("layers.1.mlp")
    assert found.causes[0].change_s > 0
    named = {(cause.module, cause.operator) for cause in found.causes}
    assert any((f"layers.1.mlp.{part}_proj", "linear") in named for part in ("gate", "up", "down"))


def test_a_trace_is_chromes_and_hooks_are_gone(eager, tmp_path):
    engine, trace = eager(), tmp_path / "trace.json"
    profile = engine.profile(PROMPTS, "last", trace)()
    names = {each.get("name") for each in json.loads(trace.read_text())["traceEvents"]}
    assert {"perfline module layers.0.mlp", "aten::linear"} <= names
    assert profile.tokens == 74
    assert not profile.on_device
    assert sum(span.seconds for span in profile.spans) <= profile.wall_s
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in engine.module.modules())
