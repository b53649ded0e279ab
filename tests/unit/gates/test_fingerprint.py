"""What fell off the fast path is regressed; all else that differs is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perfline.engines.engine import Fingerprint
from perfline.gates import fingerprint

COUNTS = {
    "prompt_tokens": 8965.0,
    "weights_elsewhere": 0.0,
    "eager_ops": 41.0,
    "graphs": 1.0,
    "graph_breaks": 0.0,
    "recompiles": 0.0,
}
LAYERS = {f"layers.{n}{part}": 10.0 for n in range(3) for part in ("", ".mlp", ".self_attn")}
STORED = Fingerprint(
    prompt="0123456789abcdef",
    software="torch 9.9",
    counts=COUNTS,
    operators={"aten::mm": 29.0, "aten::silu": 4.0},
    kernels={"generated": 14.0},
    flops={"all": 60.0, **LAYERS},
    weights={"cuda float16": 1e9},
)


def judged(now, stored=STORED, timed=True):
    return fingerprint.against_stored("fingerprint", stored, now, "b.json", timed)


def test_the_same_is_ok_and_nothing_stored_is_missing():
    found = judged(STORED)
    assert (found.word, found.measured, found.reason) == ("ok", 0.0, "runs what it did")
    found = judged(STORED, None)
    assert (found.word, found.reason) == ("missing", "no stored fingerprint in b.json")
    assert (found.metric, found.gate, found.unit) == ("fingerprint", "baseline", "count")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("prompt_tokens", "tokens of the timed prompts 8965 -> 8966"),
        ("weights_elsewhere", "weights on another device 0 -> 1"),
        ("eager_ops", "operators outside of compiled graphs 41 -> 42"),
        ("graphs", "graphs 1 -> 2"),
        ("graph_breaks", "graph breaks 0 -> 1"),
        ("recompiles", "recompiles 0 -> 1"),
    ],
)
def test_what_falls_off_the_fast_path_is_regressed(name, told):
    more = replace(STORED, counts={**COUNTS, name: COUNTS[name] + 1})
    found = judged(more, timed=False)
    assert (found.word, found.measured) == ("regressed", 1.0)
    assert found.reason == f"fell off the fast path: {told}"
    assert found.headline == "fingerprint regressed +1 (limit +0)"
    less = replace(STORED, counts={**COUNTS, name: COUNTS[name] - 1})
    assert judged(less, timed=False).word == "ok"
    compiled = name in ("graphs", "graph_breaks", "recompiles")
    assert judged(more).word == ("ok" if compiled else "regressed")  # throughput has judged it


@pytest.mark.parametrize("absent_in", ["stored", "now"])
def test_a_count_that_one_of_them_lacks_is_not_compared_as_0(absent_in):
    less = replace(STORED, counts={k: v for k, v in COUNTS.items() if k != "eager_ops"})
    stored, now = (less, STORED) if absent_in == "stored" else (STORED, less)
    found = judged(now, stored)
    assert (found.word, found.measured) == ("ok", 0.0)
    a, b = ("not counted", "41") if absent_in == "stored" else ("41", "not counted")
    assert fingerprint.differences(stored, now) == [
        f"operators outside of compiled graphs {a} -> {b}"
    ]


def test_operators_kernels_weights_and_flops_are_told():
    now = replace(
        STORED,
        operators={"aten::mm": 32.0, "aten::copy_": 1.0},
        kernels={"generated": 15.0},
        weights={"cuda float16": 9e8, "cuda float32": 1e8},
        flops={"all": 80.0, **LAYERS, "layers.2": 20.0, "layers.2.mlp": 20.0},
    )
    found = judged(now)
    assert (found.word, found.measured) == ("ok", 0.0)
    for told in (
        "aten::mm 29 -> 32",
        "aten::silu 4 -> 0",
        "aten::copy_ 0 -> 1",
        "weights in cuda float32 0 -> 100000000",
        "layers.2.mlp x 2 FLOPs",
        "and 1 more",
    ):
        assert told in found.reason
    assert "layers.2 x" not in found.reason
    assert "all x" not in found.reason


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({"all": 60.0}, {"all": 90.0}, "all x 1.5 FLOPs"),
        ({"all": 60.0}, {"all": 90.0, "head": 1.0}, "head 0 -> 1 FLOPs"),  # which all holds, too
        ({"head": 2.0}, {}, "head 2 -> 0 FLOPs"),
        ({"head": 0.0}, {}, ""),
        ({"head": 0.0}, {"mlp": 0.0}, ""),
    ],
)
def test_flops_of_what_one_alone_has_are_told_as_numbers(before, after, told):
    found = fingerprint.differences(replace(STORED, flops=before), replace(STORED, flops=after))
    assert "; ".join(found) == told


def test_weights_that_are_gone_are_told():
    found = fingerprint.differences(STORED, replace(STORED, weights={}))
    assert found == ["weights in cuda float16 1000000000 -> 0"]


@pytest.mark.parametrize(
    ("built", "alike"),
    [
        ("torch 9.9+cpu", True),
        ("torch 9.9+cu126", True),
        ("torch 9.9+rocm6.4", True),
        ("torch 9.9+xpu", True),
        ("torch 9.9+mine", False),
    ],
)
def test_what_a_release_was_built_for_is_no_other_version(built, alike):
    more = {**COUNTS, "eager_ops": 42.0}
    found = judged(replace(STORED, software=built, counts=more))
    assert found.word == ("regressed" if alike else "ok")
    assert ("not compared" in found.reason) is not alike


def test_other_versions_run_other_operators_and_that_is_no_fault():
    now = replace(
        STORED,
        software="torch 10.0",
        operators={"aten::mm": 99.0},
        counts={**COUNTS, "eager_ops": 99.0},
    )
    found = judged(now)
    assert found.word == "ok"
    assert found.reason.endswith("operators and kernels are not compared (torch 9.9 -> torch 10.0)")
    assert "aten" not in found.reason
    slower = replace(now, counts={**COUNTS, "prompt_tokens": 9772.0})
    assert judged(slower).word == "regressed"  # whatever the versions


def test_flops_of_another_prompt_are_not_compared():
    found = judged(replace(STORED, prompt="f" * 16, flops={"all": 99.0}))
    assert (found.word, "FLOPs" in found.reason) == ("ok", False)
    assert found.reason.endswith("another prompt was run")


def test_two_live_stacks_are_compared_whatever_their_versions():
    more = {"aten::mm": 32.0, "aten::silu": 4.0}
    now = replace(STORED, software="torch 10", operators=more, counts={**COUNTS, "graphs": 2.0})
    assert fingerprint.differences(STORED, now) == ["graphs 1 -> 2", "aten::mm 29 -> 32"]
    assert fingerprint.differences(STORED, STORED) == []
    six = replace(STORED, operators={**STORED.operators, **{f"o{n}": 1.0 for n in range(6)}})
    assert fingerprint.differences(STORED, six)[-1] == "o5 0 -> 1"
    others = replace(STORED, operators={f"aten::o{n}": 1.0 for n in range(8)})
    assert fingerprint.differences(STORED, others)[-1] == "and 4 more"
