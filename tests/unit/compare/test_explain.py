"""Which operator of which layer: matched whatever its name, told only where it is certain."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from fake_workers import FakeLauncher, Script, last, plan, states, workload
from perfline.compare import explain as explaining
from perfline.compare import record, run
from perfline.compare.explain import REST, ROUNDS, Explanation, Row, explain, matched
from perfline.compare.record import Comparison
from perfline.engines.engine import Fingerprint, Profile, Span
from perfline.errors import CaseError, DeviceMemory, EngineError, RecordError, WorkerError
from perfline.report import comparison_text

LAYERS = 4
LLAMA = {
    ("self_attn.q_proj", "aten::linear"): 2.0,
    ("self_attn", "aten::scaled_dot_product_attention"): 6.0,
    ("self_attn", "Python"): 1.0,
    ("mlp.up_proj", "aten::linear"): 5.0,
    ("mlp.act_fn", "aten::silu"): 1.0,
    ("mlp", "aten::mul"): 1.0,
}


def times(changes=None, layer=None, without=()):
    """Seconds of every (module, operator); ``changes`` in one layer, or in all."""
    found = {}
    for number in range(LAYERS):
        here = {**LLAMA}
        if layer in (None, number):
            here |= changes or {}
            here = {key: value for key, value in here.items() if key not in without}
        found |= {(f"layers.{number}.{m}", op): value for (m, op), value in here.items()}
    return found | {("lm_head", "aten::linear"): 4.0, ("", "Python"): 2.0}


def profile(seconds, rng=None, sd=0.02, rest=0.5, kernels=None, on_device=False, calls=None):
    factors = np.ones(len(seconds)) if rng is None else np.exp(rng.normal(0, sd, len(seconds)))
    spans = tuple(
        Span(module, operator, value * factor, (calls or {}).get(operator, 1), kernel)
        for ((module, operator), value), factor in zip(seconds.items(), factors, strict=True)
        for kernel in [(kernels or {}).get(operator, "")]
    )
    return Profile(1000, sum(s.seconds for s in spans) + rest, on_device, spans)


def explained(a, b, seed=1, rest=(0.5, 0.5), **more):
    rng = np.random.default_rng(seed)
    both = [
        (profile(a, rng, rest=rest[0], **more), profile(b, rng, rest=rest[1], **more))
        for _ in range(ROUNDS)
    ]
    return explain(*zip(*both, strict=True))


def first(told):
    return told.causes[0].module, told.causes[0].operator


def test_one_operator_that_got_slower_is_named_with_its_module_and_explains_the_change():
    told = explained(times(), times({("mlp.up_proj", "aten::linear"): 10.0}))
    assert first(told) == ("layers.*.mlp.up_proj", "linear")
    assert len(told.causes) == 1
    assert told.explained == pytest.approx(1, abs=0.1)
    cause = told.causes[0]
    assert cause.baseline_s == pytest.approx(LAYERS * 5, rel=0.05)
    assert cause.low_s < cause.change_s < cause.high_s
    assert cause.change_s == pytest.approx(LAYERS * 5, rel=0.05)


def test_one_layer_alone_is_named_as_that_layer():
    told = explained(times(), times({("mlp.up_proj", "aten::linear"): 15.0}, layer=2))
    assert first(told) == ("layers.2.mlp.up_proj", "linear")


def test_a_layer_that_is_certain_is_named_though_all_layers_together_are_not():
    rng = np.random.default_rng(5)

    def restless(seconds):
        sizes = {key: 0.01 if "layers.2" in key[0] else 0.6 for key in seconds}
        return profile({k: v * np.exp(rng.normal(0, sizes[k])) for k, v in seconds.items()})

    slow = times({("mlp.up_proj", "aten::linear"): 6.0}, layer=2)
    told = explain(*zip(*[(restless(times()), restless(slow)) for _ in range(ROUNDS)], strict=True))
    assert [(c.module, c.operator) for c in told.causes] == [("layers.2.mlp.up_proj", "linear")]
    assert told.causes[0].baseline_s == pytest.approx(5, rel=0.02)


def test_rounds_that_something_disturbed_hide_nothing_and_name_nothing():
    rng = np.random.default_rng(2)

    def disturbed(seconds, slow):
        return profile({k: v * (9 if slow else 1) for k, v in seconds.items()}, rng)

    def told(b):
        both = [
            (disturbed(times(), turn in (3, 17)), disturbed(b, turn in (0, 9)))
            for turn in range(ROUNDS)
        ]
        return explain(*zip(*both, strict=True))

    assert first(told(times({("mlp.up_proj", "aten::linear"): 7.0}))) == (
        "layers.*.mlp.up_proj",
        "linear",
    )
    assert told(times()).causes == ()


def test_a_renamed_operator_is_compared_with_what_it_was():
    renamed = times({("mlp.act_fn", "own::fast"): 3.0}, without={("mlp.act_fn", "aten::silu")})
    told = explained(times(), renamed)
    assert first(told) == ("layers.*.mlp.act_fn", "silu -> own::fast")
    assert told.causes[0].change_s == pytest.approx(LAYERS * 2, rel=0.1)


def test_a_renamed_operator_as_fast_as_before_is_not_named():
    renamed = times({("mlp.act_fn", "own::fast"): 1.0}, without={("mlp.act_fn", "aten::silu")})
    assert explained(times(), renamed).causes == ()


def test_another_kernel_of_one_operator_is_told_beside_it():
    rng = np.random.default_rng(1)
    a = [profile(times(), rng, kernels={"aten::linear": "aten::mm"}) for _ in range(ROUNDS)]
    slow = times({("mlp.up_proj", "aten::linear"): 9.0})
    b = [profile(slow, rng, kernels={"aten::linear": "mkldnn::linear"}) for _ in range(ROUNDS)]
    assert first(explain(a, b)) == ("layers.*.mlp.up_proj", "linear (mm -> mkldnn::linear)")


def test_fused_operators_are_compared_with_those_they_were_fused_from():
    """In the lowest module that holds both."""
    gone = {("mlp.act_fn", "aten::silu"), ("mlp", "aten::mul")}
    told = explained(times(), times({("mlp", "own::swiglu"): 6.0}, without=gone))
    assert first(told) == ("layers.*.mlp", "mul + silu -> own::swiglu") or first(told) == (
        "layers.*.mlp",
        "silu + mul -> own::swiglu",
    )
    assert told.causes[0].change_s == pytest.approx(LAYERS * 4, rel=0.1)
    assert len(told.causes) == 1


def keys(module, *operators):
    return {(module, operator): 1 for operator in operators}


def test_the_kernels_of_a_compiler_are_matched_by_what_they_fuse():
    a = keys("layers.*", "cpp_fused_mul_silu", "cpp_fused_add_mean_rsqrt", "aten::mm")
    b = keys("layers.*", "cpp_fused_silu", "cpp_fused_mul", "cpp_fused_mean_rsqrt", "aten::mm")
    rows = {(row.baseline, row.candidate) for row in matched(a, b)}
    layer = [("layers.*", name) for name in ("cpp_fused_mul_silu", "cpp_fused_add_mean_rsqrt")]
    assert rows == {
        ((("layers.*", "aten::mm"),), (("layers.*", "aten::mm"),)),
        ((layer[0],), (("layers.*", "cpp_fused_mul"), ("layers.*", "cpp_fused_silu"))),
        ((layer[1],), (("layers.*", "cpp_fused_mean_rsqrt"),)),
    }


def test_projections_in_one_are_matched_in_the_module_that_holds_them():
    a = keys("layers.*.self_attn.q_proj", "aten::linear") | keys(
        "layers.*.self_attn.k_proj", "aten::linear"
    )
    b = keys("layers.*.self_attn.qkv_proj", "aten::linear")
    assert matched(a, b) == [Row("layers.*.self_attn", tuple(sorted(a)), tuple(b))]


def test_what_is_called_oftener_belongs_to_the_exchange_beside_it():
    sdpa, mul = ("layers.*.self_attn", "aten::sdpa"), ("layers.*.self_attn", "aten::mul")
    softmax = ("layers.*.self_attn", "aten::softmax")
    rows = matched({sdpa: 1, mul: 4}, {softmax: 1, mul: 5})
    assert rows == [Row("layers.*.self_attn", (mul, sdpa), (mul, softmax))]
    rows = matched({sdpa: 1, mul: 4}, {softmax: 1, mul: 4})
    assert Row("layers.*.self_attn", (mul,), (mul,)) in rows


def test_what_is_gone_in_one_layer_and_new_elsewhere_is_not_matched():
    a, b = keys("layers.*.mlp.act_fn", "aten::silu"), keys("lm_head", "own::copy")
    assert matched(a, b) == [
        Row("layers.*.mlp.act_fn", tuple(a), ()),
        Row("lm_head", (), tuple(b)),
    ] or matched(a, b) == [
        Row("lm_head", (), tuple(b)),
        Row("layers.*.mlp.act_fn", tuple(a), ()),
    ]


@pytest.mark.parametrize("seed", range(3))
def test_every_key_is_in_one_row_whatever_the_keys(seed):
    rng = np.random.default_rng(seed)
    modules = [
        "",
        "norm",
        "lm_head",
        "layers.*",
        "layers.*.mlp",
        "layers.*.mlp.up",
        "layers.*.attn",
    ]
    names = ["Python", "aten::mm", "aten::add_mm", "cpp_fused_mul_add", "cpp_fused_add", "own::x"]
    both = list(itertools.product(modules, names))
    for _ in range(50):
        a = {key: int(rng.integers(1, 3)) for key in both if rng.random() < 0.4}
        b = {key: int(rng.integers(1, 3)) for key in both if rng.random() < 0.4}
        rows = matched(a, b)
        assert sorted(key for row in rows for key in row.baseline) == sorted(a)
        assert sorted(key for row in rows for key in row.candidate) == sorted(b)


def test_new_operators_are_told_as_new():
    told = explained(times(), times({("mlp", "aten::clone"): 2.0}))
    assert first(told) == ("layers.*.mlp", "nothing -> clone")
    assert told.causes[0].baseline_s == 0


def test_what_no_operator_accounts_for_is_named():
    told = explained(times(), times(), rest=(0.5, 8.0), on_device=True)
    assert first(told) == ("", REST)
    assert told.explained == pytest.approx(1, abs=0.2)


def test_python_between_operators_is_named_with_its_module():
    told = explained(times(), times({("self_attn", "Python"): 3.0}))
    assert first(told) == ("layers.*.self_attn", "Python")


def test_equals_name_any_operator_once_in_a_hundred_times_at_most(monkeypatch):
    """By the test alone: without the floor beneath which nothing is named."""
    monkeypatch.setattr(explaining, "LEAST_FRACTION", 0.0)
    named = sum(bool(explained(times(), times(), seed, sd=0.1).causes) for seed in range(150))
    assert named <= 5  # 1.5 are expected at most; 5 or fewer with a chance of 99 %


def test_a_change_below_what_two_processes_differ_by_is_not_named():
    small = times({("mlp.act_fn", "aten::silu"): 1.05})  # 0.2 of 70
    assert explained(times(), small, sd=1e-4).causes == ()


def test_explains_little_where_most_of_it_is_uncertain():
    told = Explanation(
        rounds=20, tokens=1000, baseline_s=1.0, change_s=0.1, low_s=0.08, high_s=0.12, compared=30
    )
    cause = explaining.Cause("norm", "mul", 0.1, 0.12, 0.02, 0.01, 0.03)
    told = dataclasses.replace(told, causes=(cause,))
    assert told.explained == pytest.approx(0.2)
    (story, *_) = comparison_text.explained_lines(told)
    assert story == "explains little: 20 % of +10.0 % [+8.0, +12.0]"


FAST = times()
SLOW = times({("mlp.up_proj", "aten::linear"): 10.0})


def sides(a=FAST, b=SLOW, seed=3, **more):
    rng = np.random.default_rng(seed)
    scripts = [
        Script(
            token_s=lambda launch, turn, factor=factor: 1e-5 * factor,
            profile=lambda turn, seconds=seconds: profile(seconds, rng),
            **more,
        )
        for factor, seconds in ((1.0, a), (1.3, b))
    ]
    return FakeLauncher(*scripts)


def asked(**changes):
    return plan(explain=True, max_pairs=10, **changes)


def test_the_last_pairs_own_processes_are_profiled_in_turn_after_the_verdict():
    launcher = sides()
    *_, before, found = states(launcher, asked())
    assert before.ended
    assert before.explanation is None
    assert dataclasses.replace(found, explanation=None) == before
    assert found.verdicts[0].word == "regressed"
    profiled = "".join(line[-1] for line in launcher.log if line.startswith("profile"))
    assert (
        profiled[2:] == ("ABBA" * ROUNDS)[: 2 * ROUNDS]
        or profiled[2:] == ("BAAB" * ROUNDS)[: 2 * ROUNDS]
    )
    assert sorted(profiled[:2]) == ["A", "B"]  # one each that is dropped
    last_round = max(i for i, line in enumerate(launcher.log) if line.startswith("round"))
    assert min(i for i, line in enumerate(launcher.log) if line.startswith("profile")) > last_round
    assert launcher.started == {"baseline": 9, "candidate": 9}  # no pair of its own
    assert launcher.live == set()
    assert first(found.explanation) == ("layers.*.mlp.up_proj", "linear")


def test_nothing_is_profiled_and_no_process_kept_where_nobody_asks():
    launcher = sides()
    found = last(launcher, plan(max_pairs=10))
    assert found.explanation is None
    assert not [line for line in launcher.log if line.startswith(("profile", "fingerprint"))]


def test_of_whole_launches_one_more_pair_is_started():
    launcher = sides()
    found = last(launcher, asked(alternate=True))
    assert launcher.started == {"baseline": 10, "candidate": 10}
    assert found.explanation is not None
    assert found.explanation.causes
    assert launcher.live == set()


def test_what_differs_exactly_comes_first():
    launcher = sides()
    counts = {"graphs": 2.0, "prompt_tokens": 10.0}
    launcher.baseline.fingerprint = Fingerprint("p", "torch 1", counts, {"aten::mm": 4})
    launcher.candidate.fingerprint = Fingerprint(
        "p", "torch 2", counts | {"graphs": 3.0}, {"aten::mm": 8}
    )
    told = last(launcher, asked()).explanation
    assert told.differences == ("graphs 2 -> 3", "aten::mm 4 -> 8")


def test_where_a_process_has_died_one_more_pair_is_started():
    launcher, died = sides(), []
    scripted = launcher.candidate.profile

    def profiled(turn):
        if not died:
            died.append(turn)
            raise WorkerError("candidate: was ended by SIGKILL")
        return scripted(turn)

    launcher.candidate.profile = profiled
    told = last(launcher, asked()).explanation
    assert first(told) == ("layers.*.mlp.up_proj", "linear")
    assert launcher.started == {"baseline": 10, "candidate": 10}
    assert launcher.live == set()


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (WorkerError("candidate: was ended by SIGKILL"), "candidate: was ended by SIGKILL"),
        (DeviceMemory("full"), "A and B do not fit on the device at once: full"),
        (None, "B's perfline cannot profile, as it is older than --explain"),
    ],
)
def test_a_failure_to_explain_changes_no_verdict(error, problem):
    launcher = sides()

    def profiled(turn):
        if error is not None:
            raise error
        return

    launcher.candidate.profile = profiled
    found = last(launcher, asked())
    assert found.verdicts[0].word == "regressed"
    assert found.problem == ""
    assert found.explanation == Explanation(problem=problem)
    assert comparison_text.explained_lines(found.explanation) == [f"not explained: {problem}"]
    assert launcher.live == set()


def test_an_invalid_comparison_is_not_explained():
    launcher = sides(fails={0: EngineError("no")})
    found = last(launcher, asked())
    assert (found.word, found.explanation) == ("invalid", None)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"ranks": 2}, "it profiles one process a side"),
        ({"engine": "my:Own"}, "the engines are eager and inductor"),
        ({"kind": "decode"}, "it profiles prompts"),
    ],
)
def test_what_cannot_be_profiled_is_refused_at_once(changes, why):
    with pytest.raises(CaseError, match=f"--explain: {why}"):
        run.begin(asked(workload=workload(**changes)))


def test_traces_are_kept_and_never_replace_a_file(tmp_path):
    kept = [last(sides(), asked(traces=tmp_path)).explanation.traces for _ in range(2)]
    assert [[Path(path).name for path in pair] for pair in kept] == [
        ["tiny-inductor-baseline.json", "tiny-inductor-candidate.json"],
        ["tiny-inductor-baseline-2.json", "tiny-inductor-candidate-2.json"],
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        Path(path).name for pair in kept for path in pair
    )
    assert (tmp_path / "tiny-inductor-candidate.json").read_text() == "trace of B"


def test_a_failure_leaves_no_trace(tmp_path):
    launcher = sides()
    launcher.candidate.profile = lambda turn: None
    last(launcher, asked(traces=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_record_holds_it_and_a_record_without_it_is_read(tmp_path):
    found, path = last(sides(), asked()), tmp_path / "compare.json"
    for case in (found, dataclasses.replace(found, explanation=None)):
        record.save(path, Comparison("2026-11-26T12:00:00Z", False, "x", {"tiny": case}))
        assert record.load(path).cases["tiny"] == case
        held = json.loads(path.read_text())["cases"]["tiny"]
        assert ("explanation" in held) == (case.explanation is not None)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"baseline_s": 0.0}, "baseline_s"),
        ({"tokens": 0}, "baseline_s"),
        ({"change_s": 0.0}, "change_s"),
        ({"baseline_s": 1e300}, "baseline_s"),
    ],
)
def test_a_record_of_what_no_rounds_can_say_is_refused(tmp_path, changes, key):
    found, path = last(sides(), asked()), tmp_path / "compare.json"
    told = dataclasses.replace(found.explanation, **changes)
    case = dataclasses.replace(found, explanation=told)
    record.save(path, Comparison("2026-11-26T12:00:00Z", False, "x", {"tiny": case}))
    with pytest.raises(RecordError, match=rf"explanation\.{key}"):
        record.load(path)


def test_the_terminal_and_markdown_show_the_table_in_80_columns():
    found = last(sides(), asked())
    whole = Comparison(
        "2026-11-26T12:00:00Z", False, "perfline compare tiny --explain", {"t": found}
    )
    text = comparison_text.terminal(whole, "results/compare.json")
    table = text[text.index("  operator") : text.index("record:")]
    assert max(map(len, table.splitlines())) <= 80
    assert "layers.*.mlp.up_proj" in text
    assert "explains " in text
    assert "next: find the cause" in text
    markdown = comparison_text.markdown(whole)
    (row,) = [line for line in markdown.splitlines() if "mlp.up" in line]
    assert row.startswith("| linear")
    assert row.count("|") == 6
