"""A worker answers line by line, measures like the suite, and needs few packages."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fakes import (
    DEVICE,
    ENVIRONMENT,
    FakeClock,
    FakeDecoder,
    FakeEngine,
    FakeLoadedCase,
    FakeLogits,
    prompts,
)
from perfline.cases.case import load_cases, with_settings
from perfline.compare import gates, messages, wire, worker
from perfline.compare.model import (
    FidelityNumbers,
    GeneratedTokens,
    References,
    Round,
    Turn,
    Workload,
)
from perfline.compare.serve import Launch, prompts_digest
from perfline.engines.engine import Profile
from perfline.errors import CaseError, DeviceMemory, EngineError, WorkerError
from perfline.fields import Node, as_json
from perfline.measure.case_run import CaseRun
from perfline.tasks.sampling import tier_order

WORKLOAD = Workload("tiny", (), None, "real", "eager", 6)
SAMPLE = 8


def launch(workload: Workload = WORKLOAD, **script: object) -> Launch:
    """A launch of a scripted engine that is compiled and warm."""
    clock = FakeClock()
    engine = FakeEngine(workload.engine, clock, **script)
    (case,) = load_cases(["tiny"])
    case = replace(case, throughput=replace(case.throughput, sample=SAMPLE))
    opened = FakeLoadedCase({workload.engine: engine})
    return Launch(workload, CaseRun(case, opened, DEVICE, clock=clock), ENVIRONMENT)


def request(**message: object) -> Node:
    return wire.parse(wire.line(**message), "the parent")


def served(*lines: bytes) -> list[dict[str, object]]:
    sink = io.BytesIO()
    worker.serve(lines, sink)
    return [json.loads(line) for line in sink.getvalue().splitlines()]


def opening(**change: object) -> bytes:
    sent = {"workload": messages.workload_json(WORKLOAD), "settings": [], "imports": []}
    return wire.line(ask="open", **{**sent, **change})


def test_ready_says_what_is_timed():
    found = launch(token_s=1e-3).ready()
    tokens = found.tokens
    assert (found.machine, found.device, found.context) == (
        ENVIRONMENT.machine,
        ENVIRONMENT.device,
        ENVIRONMENT.context,
    )
    assert found.facts == {"weights": "sha256:fake"}
    assert found.load_s == 1.5
    assert found.pass_s == pytest.approx(tokens * 1e-3)
    assert (found.graphs, found.graph_breaks, found.recompiles) == (0, 0, 0)


def test_a_warm_up_that_still_compiles_is_no_pass():
    slow = launch(replace(WORKLOAD, engine="inductor"), graphs_at=(0, 3), compile_s=9.0, breaks=2)
    found = slow.ready()
    assert (found.graphs, found.graph_breaks, found.recompiles) == (1, 2, 1)
    assert found.warmup_s > 9 > found.pass_s > 0


def test_its_threads_are_those_that_a_session_of_pytest_tells():
    """Else ``--settle`` would take B for another session, whatever the case sets."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        (told,) = served(opening(settings=["engine.cpu_threads=1"]))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert told["ok"]["context"]["threads"] == "3"


def test_a_round_is_as_many_passes_as_asked():
    measuring = launch(token_s=1e-3, read_s=0.01)
    tokens = measuring.ready().tokens
    done = measuring.round(Turn(3))
    assert done.tokens == 3 * tokens
    assert done.core_s == pytest.approx(3 * tokens * 1e-3)
    assert done.whole_s == pytest.approx(done.core_s + 3 * SAMPLE * 0.01)
    assert done.faults == ()
    assert done.joules is None


def test_the_parts_of_a_pass_are_all_of_its_prompts_each_once():
    measuring = launch(token_s=1e-3)
    ready = measuring.ready()
    assert ready.parts == SAMPLE
    parts = [measuring.round(Turn(part=part, parts=3)) for part in range(3)]
    whole = measuring.round(Turn(1))
    assert sum(done.tokens for done in parts) == whole.tokens == ready.tokens
    assert sum(done.core_s for done in parts) == pytest.approx(whole.core_s)
    assert measuring.round(Turn(2, part=1, parts=3)).tokens == 2 * parts[1].tokens


def test_a_pass_with_decode_or_on_a_gpu_is_not_cut():
    assert launch(replace(WORKLOAD, kind="all")).ready().parts == 1
    on_gpu = launch()
    on_gpu.case_run.device = replace(on_gpu.case_run.device, kind="cuda")
    assert on_gpu.ready().parts == 1


def test_a_recompile_is_a_fault_of_its_round_alone():
    forwards = 1 + SAMPLE  # compile, warm-up
    measuring = launch(replace(WORKLOAD, engine="inductor"), graphs_at=(0, forwards + SAMPLE + 2))
    measuring.ready()
    rounds = [measuring.round(Turn(1)) for _ in range(3)]
    assert [done.faults for done in rounds] == [
        (),
        ("1 graphs were compiled inside the round",),
        (),
    ]


def test_peak_memory_is_the_highest_of_all_rounds():
    measuring = launch()
    measuring.ready()
    assert measuring.peak_memory_gib() is None
    for gib in (1.0, 3.0, 2.0):
        measuring.case_run.loaded.engine("eager").memory_gib = gib
        measuring.round(Turn(1))
    assert measuring.peak_memory_gib() == 3.0


def test_a_profiled_round_is_of_one_prompt_and_may_keep_its_trace(tmp_path):
    measuring, trace = launch(), tmp_path / "trace.json"
    assert measuring.answer("profile", request(trace="")) == {"profiled": True}
    assert [path.name for path in tmp_path.iterdir()] == []
    assert measuring.answer("profile", request(trace=str(trace))) == {"profiled": True}
    assert trace.exists()
    told = measuring.answer("profiles", request())
    built, again = (
        each.build(Profile) for each in Node("a worker", told, WorkerError).items("profiles")
    )
    assert [built, again] == measuring.profiles()
    lengths = sorted(len(prompt.ids) for prompt in measuring.case_run.sample)
    assert built.tokens == lengths[len(lengths) // 2]


def test_the_fingerprint_is_the_suites_own():
    asked = launch().answer("fingerprint", request())
    fingerprint = launch().case_run.fingerprint("eager")
    assert fingerprint is not None
    assert asked == {"fingerprint": as_json(fingerprint)}


def test_generated_tokens_come_with_what_else_was_likely():
    measuring = launch(replace(WORKLOAD, kind="decode"))
    measuring.ready()
    reply = measuring.answer("generated", request())
    sent = request(**reply).items("generated")
    found = [each.build(GeneratedTokens) for each in sent]
    assert [each.tokens for each in found] == [tuple(range(16))] * 4
    assert found[0].likeliest[3] == (3, 0, 1, 2, 4, 5, 6, 7)
    assert found[0].logits[3] == (5.0, *[0.0] * 7)
    assert found[0].largest == (5.0,) * 16


def told(measuring: Launch, references: References) -> FidelityNumbers:
    """What is read of the answer to ``fidelity``, over the wire and back."""
    sent = wire.line(ask="fidelity", references=as_json(references))
    reply = measuring.answer("fidelity", wire.parse(sent, "the parent"))
    return request(**reply).child("fidelity").build(FidelityNumbers)


def computing(**script: object) -> Launch:
    measuring = launch(replace(WORKLOAD, engine="inductor"))
    measuring.case_run.loaded.numbers = FakeLogits(**script)
    return measuring


def test_what_is_computed_in_fp32_comes_with_its_floor():
    own = told(computing(), {})
    assert set(own.references) == {"eager", "inductor"}
    assert own.references["eager"] == computing().case_run.fidelity().prompts
    assert (own.apart, own.drift, own.vocabulary) == ({}, None, 30)
    assert set(own.variations) == {"attention", "batch", "rounding"}


def test_b_is_measured_from_a_s_references_engine_by_engine():
    a = told(computing(), {})
    same = told(computing(), a.references)
    largest = {name: max(max(row) for row in rows.values()) for name, rows in same.apart.items()}
    assert len(same.apart["eager"]) == len(a.references["eager"]) == 16
    assert max(largest.values()) < 1e-12
    off = told(computing(off={"inductor plain": 1e-2}), a.references)
    assert max(max(row) for row in off.apart["inductor"].values()) > 1e-5
    assert max(max(row) for row in off.apart["eager"].values()) < 1e-12
    both = told(computing(off={"inductor plain": 1e-2}), {})
    same_fault = told(computing(off={"inductor plain": 1e-2}), both.references)
    assert max(max(row) for row in same_fault.apart["inductor"].values()) < 1e-12
    case = launch().case_run.case
    words = [gates.numbers(case, "inductor", a, b, ("fp32", "fp32"))[0].word for b in (same, off)]
    assert words == ["ok", "regressed"]


def test_a_damaged_layer_is_named_over_the_wire():
    a = told(computing(), {})
    b = told(computing(damage=1e-3, layer=2), a.references)
    (found,) = gates.numbers(launch().case_run.case, "inductor", a, b, ("fp32", "fp32"))
    assert "hidden states part first in layer 2 of 0 to 2" in found.reason


def test_drift_comes_with_what_is_computed():
    dtype = dict.fromkeys(("rounded", "eager", "attention", "batch"), 0.02)
    a = told(computing(dtype={**dtype, "inductor": 0.02}), {})
    b = told(computing(dtype={**dtype, "inductor": 0.2}), a.references)
    case = launch().case_run.case
    words = {v.metric: v.word for v in gates.numbers(case, "inductor", a, b, ("bf16", "bf16"))}
    assert words == {"fidelity_infer": "ok", "drift_infer": "regressed"}


def test_fp32_that_does_not_fit_is_a_problem_and_no_end():
    measuring = computing(fp32="28.0 GiB are needed")
    assert told(measuring, {}) == FidelityNumbers(problem="28.0 GiB are needed")
    assert measuring.answers().ids


def test_fp32_that_fills_the_device_is_a_problem_and_no_end(monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(FakeLogits, "plain", full)
    problem = told(computing(), {}).problem
    assert problem.startswith("the model in fp32: out of memory on Fake CPU")


@pytest.mark.parametrize(
    "change",
    [
        {"variations": {}},
        {"references": {}},
        {"variations": {"rounding": -1.0}},
        {"apart": {"eager": {"odd/1": [-1e-9]}}},
        {"drift": {"engines": {"eager": [-1.0]}, "variations": {}, "rounded": []}},
        {"most": -1.0},
        {"seconds": "long"},
    ],
    ids=str,
)
def test_fp32_numbers_that_are_none_are_refused(change: dict[str, object]):
    sent = computing().answer("fidelity", request(references={}))["fidelity"]
    assert isinstance(sent, dict)
    assert request(**sent).build(FidelityNumbers)
    with pytest.raises(WorkerError):
        request(**(sent | change)).build(FidelityNumbers)


def test_logits_that_are_none_are_no_tokens(monkeypatch):
    measuring = launch(replace(WORKLOAD, kind="decode"))
    measuring.ready()
    broken = np.full((16, 100), np.nan, np.float32)
    monkeypatch.setattr(FakeDecoder, "logits_after", lambda self, ids, last: broken)
    with pytest.raises(EngineError, match="case 'tiny': logits are not finite in decode"):
        measuring.answer("generated", request())


def test_answers_are_the_first_of_the_fixed_order_head_last():
    measuring = launch()
    found = measuring.answers()
    everything = [prompt.id for prompt in prompts()]
    assert list(found.ids) == [everything[index] for index in tier_order(everything)[:6]]
    log = measuring.case_run.loaded.engine("eager").log
    assert {line.split()[-1] for line in log if line.startswith("forward")} == {"last"}


def test_no_question_is_no_answer_but_dummy_weights_give_logits():
    assert launch(replace(WORKLOAD, questions=0)).answers().ids == ()
    assert len(launch(replace(WORKLOAD, questions=0, weights="dummy")).answers().ids) == SAMPLE


def test_each_task_is_answered_by_its_name_and_the_first_without_one():
    measuring = launch()
    measuring.case_run.case = replace(measuring.case_run.case, tasks=("mmlu", "ceval"))
    measuring.case_run.loaded.more["ceval"] = prompts(4, length=30)
    assert messages.ready(request(**messages.ready_json(measuring.ready()))).by_task
    first = measuring.answer("answers", request())
    assert first == measuring.answer("answers", request(task="mmlu"))
    told = messages.answers(request(**measuring.answer("answers", request(task="ceval"))))
    everything = [prompt.id for prompt in prompts(4)]
    assert list(told.ids) == [everything[index] for index in tier_order(everything)]
    assert told.labels is not None
    with pytest.raises(WorkerError, match=r"task 'sums'; case 'tiny' has mmlu, ceval$"):
        measuring.answer("answers", request(task="sums"))
    measuring.case_run.loaded.absent["sums"] = "its questions are not there"
    assert messages.answers(request(**measuring.answer("answers", request(task="sums")))).ids == ()


def test_an_older_worker_does_not_say_that_it_answers_by_task():
    sent = messages.ready_json(launch().ready())
    del sent["by_task"]
    assert not messages.ready(request(**sent)).by_task


def test_processes_of_ours_are_told_to_the_watch():
    measuring = launch()
    measuring.ready()
    measuring.round(Turn(1), [12, 34])
    assert measuring.health.friends == [12, 34]


@pytest.mark.parametrize("kind", ["accelerator", "cpu"])
def test_a_full_device_is_lack_of_memory_outside_of_a_forward_too(
    monkeypatch: pytest.MonkeyPatch, kind: str
):
    import torch

    full: dict[str, Exception] = {
        "accelerator": torch.OutOfMemoryError("out of memory"),
        "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    }

    def copying(prompt: object) -> None:
        raise full[kind]

    measuring = launch()
    monkeypatch.setattr(measuring.case_run.loaded.engine("eager"), "prepare", copying)
    with pytest.raises(DeviceMemory, match=r"^'answers': out of memory on Fake CPU"):
        measuring.answer("answers", request())


def test_any_other_error_ends_the_worker(monkeypatch: pytest.MonkeyPatch):
    measuring = launch()
    monkeypatch.setattr(measuring.case_run.loaded.engine("eager"), "prepare", lambda prompt: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measuring.answer("answers", request())


def test_an_unknown_word_is_refused():
    with pytest.raises(
        WorkerError,
        match=r"'sing'; expected ready, round, answers, generated, fidelity, peak, fingerprint, ",
    ):
        launch().answer("sing", request())


def test_the_prompts_digest_sees_a_token_and_an_order():
    some = prompts(3)
    changed = [*some[:2], replace(some[2], ids=some[2].ids + 1)]
    digests = {prompts_digest(each) for each in (some, changed, some[::-1], some[:2])}
    assert len(digests) == 4
    assert prompts_digest(prompts(3)) == prompts_digest(some)


def test_nouns_survive_the_wire():
    measuring = launch(token_s=1 / 3e5)
    ready, done, given = measuring.ready(), measuring.round(Turn(1)), measuring.answers()
    given.letter_logits[0] = [0.1, -1e-30, 3e38, 1 / 3]
    workload = replace(WORKLOAD, data_dir=Path("/d"))
    assert messages.ready(request(**{"ask": "x", **messages.ready_json(ready)})) == ready
    assert request(**as_json(done)).build(Round) == done
    assert request(**messages.workload_json(workload)).build(Workload) == workload
    back = messages.answers(request(**messages.answers_json(given)))
    assert (back.ids, back.argmax_letter, back.labels, back.shots) == (
        given.ids,
        given.argmax_letter,
        given.labels,
        given.shots,
    )
    assert np.array_equal(back.letter_logits, given.letter_logits)
    assert np.array_equal(back.argmax, given.argmax)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"core_s": 0}, "key 'core_s' is 0 "),
        ({"core_s": -1.0}, "key 'core_s' is -1 "),
        ({"whole_s": 1e13}, "key 'whole_s' is 1e\\+13 "),
        ({"tokens": True}, "key 'tokens' is"),
        ({"tokens": 0}, "key 'tokens' is 0 \\(expected a whole number at least 1\\)"),
        ({"tokens": 1.5}, "key 'tokens' is 1.5 "),
        ({"waited_fraction": "much"}, "key 'waited_fraction' is"),
        ({"faults": "none"}, "key 'faults' is"),
    ],
)
def test_a_round_that_is_none_is_refused(change: dict[str, object], problem: str):
    sent = as_json(Round(1.0, 10, 0.5, 0.6)) | change
    with pytest.raises(WorkerError, match=problem):
        request(**sent).build(Round)


@pytest.mark.parametrize("pids", [["x"], ["9" * 5000], ["-1"]], ids=["text", "digits", "sign"])
def test_processes_that_are_none_are_refused(pids: list[str]):
    sent = messages.ready_json(launch().ready()) | {"others": pids}
    with pytest.raises(WorkerError, match="key 'others' are no numbers of processes"):
        messages.ready(request(**sent))


def test_answers_that_do_not_match_are_refused():
    sent = messages.answers_json(launch().answers())
    sent["argmax_letter"] = "AB"
    with pytest.raises(WorkerError, match="sent answers that are none: answers do not match"):
        messages.answers(request(**sent))


def test_a_relative_directory_of_cases_is_sent_as_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    sent = messages.workload_json(replace(WORKLOAD, case_dirs=(Path("cases"),)))
    assert sent["case_dirs"] == [str(tmp_path / "cases")]


def test_what_is_asked_before_open_is_refused():
    (reply,) = served(wire.line(ask="round", repeats=1))
    assert reply["error"] == {
        "kind": "WorkerError",
        "message": "was asked for 'round' before 'open'",
    }


@pytest.mark.parametrize("line", [b"\xff\n", b"[]\n", b"{}\n", b"[" * 100_000, b'{"protocol":2}\n'])
def test_garbage_is_answered_and_survived(line: bytes):
    replies = served(line, wire.line(ask="round"))
    assert [reply["error"]["kind"] for reply in replies] == ["WorkerError", "WorkerError"]


def test_a_missing_package_names_the_interpreter_and_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(worker.NEEDED, "no_such_module", "no-such-package")
    (reply,) = served(opening())
    assert reply["error"]["message"] == (
        f"{sys.executable} has no no-such-package; install: "
        f"{sys.executable} -m pip install no-such-package"
    )


def test_an_import_of_the_side_that_fails_is_named():
    (reply,) = served(opening(imports=["no_such_plugin"]))
    assert "cannot import 'no_such_plugin'" in reply["error"]["message"]


def test_an_unknown_setting_is_refused_as_in_yaml_before_anything_is_loaded():
    (reply,) = served(opening(settings=["engine.mod=default"]))
    assert reply["error"]["kind"] == "CaseError"
    assert "--set engine.mod=default: key 'engine.mod' is not known" in reply["error"]["message"]
    assert "did you mean 'engine.mode'?" in reply["error"]["message"]


def imported(module: str) -> set[str]:
    code = f"import sys, {module}; print(*(name.partition('.')[0] for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_worker_itself_needs_nothing_but_python():
    assert not imported("perfline.compare.worker") & {
        "numpy",
        "yaml",
        "torch",
        "perfline.cases.case",
    }


def test_what_it_measures_with_needs_no_more_than_it_says():
    found = imported("perfline.compare.serve")
    assert {"numpy", "yaml"} <= found
    assert not found & {"torch", "pandas", "scipy", "pytest", "tabulate", "jinja2"}


def test_settings_are_read_as_yaml():
    (case,) = load_cases(["tiny"])
    changed = with_settings(
        case, [("engine.mode", "max-autotune"), ("throughput.sample", "4"), ("title", "x y")]
    )
    assert (changed.engine.mode, changed.throughput.sample, changed.title) == (
        "max-autotune",
        4,
        "x y",
    )
    assert changed.digest() != case.digest()
    assert with_settings(case, []) is case


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (("engine.mode", "fast"), "with --set engine.mode=fast: key 'engine.mode' is \"fast\""),
        (("engine", "fast"), "key 'engine' is \"fast\" (expected a mapping"),
        (("title.long", "x"), "--set title.long=x: 'title' is no section of"),
        (("engine.mode", "["), "--set engine.mode=[: the value is not valid YAML: line 1"),
        (("case", "other"), "key 'case' is 'other' (expected 'tiny'"),
        (("", "x"), "key '' is not known"),
        (("throughput.sample", ""), "key 'throughput.sample' is empty (expected"),
        (("throughput.sample", "1" * 100), "is too large"),
    ],
)
def test_a_setting_that_is_none_is_one_line(setting: tuple[str, str], message: str):
    (case,) = load_cases(["tiny"])
    with pytest.raises(CaseError) as caught:
        with_settings(case, [setting])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_warned_of_while_it_gets_ready_is_told_and_ends_nothing(monkeypatch):
    def opened(request, group=None):
        warnings.warn("`x` is deprecated", FutureWarning, stacklevel=2)
        return launch()

    monkeypatch.setattr(Launch, "open", opened)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (reply,) = served(opening())
    found = messages.ready(wire.parse(wire.line(**reply["ok"]), "x"))
    assert [(each.text, each.count) for each in found.notices] == [
        ("`x` is deprecated", 1),
        ("torch 9.9 is newer than tested (2.15.0)", 1),
    ]
