"""What does an engine of the user's own look like to the measuring code?"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fakes import DEVICE, prompts
from perfline.baselines import judge
from perfline.cases.case import PACKAGED_CASES, Case, load_cases
from perfline.compare import gates, messages
from perfline.compare.wire import node
from perfline.engines.device import current_device
from perfline.engines.engine import CompileCounts, run_pass
from perfline.engines.own_engine import OwnEngine, OwnEngines
from perfline.errors import CaseError, DeviceMemory, EngineError
from perfline.gates.accuracy import same_answers
from perfline.jsonfile import Node
from perfline.measure import journal
from perfline.measure.case_run import open_case
from perfline.tasks.answers import StoredAnswers
from perfline.tasks.prompts import Continuation


class Least:
    """What an engine must have."""

    def forward(self, batch, head):
        return batch

    def answer(self, output):
        return f" {output.label}"


class Most(Least):
    """What it may have."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def begin(self, prompts, head):
        self.log.append(f"begin {len(prompts)} {head}")

    def prepare(self, prompt):
        self.log.append("prepare")
        return prompt

    def synchronize(self):
        self.log.append("synchronize")

    def letter_logits(self, output):
        return np.asarray([output.label == letter for letter in "ABCD"], dtype=np.float32)

    def compiled_graphs(self):
        return 3

    def flops(self, tokens, head):
        return 2.0 * tokens

    def reset_peak_memory(self):
        self.log.append("reset")

    def peak_memory_gib(self):
        return 1.5

    def close(self):
        self.log.append("close")


def engine(kind: object) -> OwnEngine:
    return OwnEngine(kind, "my.module:My_Engine", DEVICE)


@pytest.fixture
def tiny() -> Case:
    (case,) = load_cases(["tiny"])
    return case


def test_what_it_does_not_have_is_absent():
    least = engine(Least())
    answers = run_pass(least, prompts(4), "last").answers
    assert (answers.argmax_letter, answers.letters()) == ("ABCD", "----")
    assert not answers.has_logits
    assert answers.argmax.tolist() == [-1] * 4
    assert least.name == "myengine"
    assert least.compile_counts() == CompileCounts()
    assert (least.flops(9, "all"), least.peak_memory_gib()) == (None, None)
    least.reset_peak_memory()
    least.close()


def continued():
    choices = [Continuation(np.arange(1, n + 2), 2 * n + 2) for n in range(3)]
    (prompt,) = prompts(1)
    return dataclasses.replace(prompt, choices=3, continuations=tuple(choices))


def test_continuations_are_scored_by_the_log_probability_that_it_tells():
    class Scoring(Least):
        def log_probability(self, output, targets):
            assert output.ids[-1] != targets[-1]  # which is not in the prompt
            return -2.0 + 0.5 * len(targets)

    answers = run_pass(engine(Scoring()), [continued()], "last").answers
    assert answers.letter_logits[0, :3].tolist() == [-1.5, -1.0, -0.5]
    assert (answers.letters(), answers.argmax_letter) == ("C", "C")
    assert answers.scales.tolist() == [1.5]


@pytest.mark.parametrize("told", [0.5, float("nan"), "much", None, True])
def test_what_is_no_log_probability_is_refused(told):
    class Wrong(Least):
        def log_probability(self, output, targets):
            return told

    with pytest.raises(EngineError, match=r"log_probability\(\) gave .*; expected a number of at"):
        run_pass(engine(Wrong()), [continued()], "last")


def test_continuations_need_an_engine_that_scores_them(tiny: Case, monkeypatch):
    with pytest.raises(EngineError, match="by continuation, and it has no method 'log_probabil"):
        run_pass(engine(Most()), [continued()], "last")
    case = dataclasses.replace(tiny, tasks=("arc_easy",))
    stand_in = type("StandIn", (Most,), {"__init__": lambda self, case, weights: None})
    monkeypatch.setitem(sys.modules, "stand_in", SimpleNamespace(StandIn=stand_in))
    named = case.with_engines(["stand_in:StandIn"], "--engines")
    with pytest.raises(
        EngineError, match=r"^--engines names 'stand_in:StandIn': .* by continuation"
    ):
        OwnEngines(named)


def test_what_it_has_is_asked():
    most = Most()
    own = engine(most)
    answers = run_pass(own, prompts(1), "all").answers
    assert most.log == ["begin 1 all", "prepare", "synchronize", "synchronize"]
    assert answers.letter_logits.tolist() == [[1.0, 0.0, 0.0, 0.0]]
    assert own.compile_counts().graphs == 3
    assert (own.flops(9, "all"), own.peak_memory_gib()) == (18.0, 1.5)
    own.reset_peak_memory()
    own.close()
    assert most.log[-2:] == ["reset", "close"]


@pytest.mark.parametrize(
    ("method", "gives", "message"),
    [
        ("answer", None, "answer() gave None; expected text such as ' B'"),
        ("answer", b" B", "answer() gave b' B'; expected text such as ' B'"),
        ("answer", 33, "answer() gave 33; expected text such as ' B'"),
        ("letter_logits", [1, 2, 3], "letter_logits() gave [1, 2, 3]; expected 4 numbers"),
        ("letter_logits", 7, "letter_logits() gave 7; expected 4 numbers"),
        ("letter_logits", None, "letter_logits() gave None; expected 4 numbers"),
        ("letter_logits", "1234", "letter_logits() gave '1234'; expected 4 numbers"),
        ("letter_logits", torch.ones(1, 4), "letter_logits() gave tensor([[1., 1., 1., 1.]]); "),
        ("letter_logits", [1, 2, 3, 10**400], "letter_logits() gave [1, 2, 3, 1000"),
        ("compiled_graphs", "1", "compiled_graphs() gave '1'; expected a whole number"),
        ("compiled_graphs", True, "compiled_graphs() gave True; expected a whole number"),
        ("compiled_graphs", -1, "compiled_graphs() gave -1; expected at least 0, as before"),
        ("flops", -1, "flops() gave -1; expected a number above 0, or None"),
        ("flops", float("inf"), "flops() gave inf; expected a number above 0, or None"),
        ("peak_memory_gib", float("nan"), "peak_memory_gib() gave nan; expected a number"),
        ("peak_memory_gib", 0, "peak_memory_gib() gave 0; expected a number above 0, or None"),
        ("peak_memory_gib", True, "peak_memory_gib() gave True; expected a number above 0"),
        ("peak_memory_gib", "2 GiB", "peak_memory_gib() gave '2 GiB'; expected a number above 0"),
    ],
    ids=[
        *("answer", "bytes", "token", "three", "seven", "none", "text", "batch", "digits"),
        *("graphs", "true graphs", "fewer than none", "flops", "inf", "memory", "no memory"),
        *("true memory", "unit"),
    ],
)
def test_what_it_says_wrongly_is_one_line(method: str, gives: object, message: str):
    most = Most()
    setattr(most, method, lambda *arguments: gives)
    own = engine(most)

    def measure() -> None:
        run_pass(own, prompts(1), "last")
        own.compile_counts()
        own.flops(1, "all")
        own.peak_memory_gib()

    with pytest.raises(EngineError, match=f"^my.module:My_Engine: {re.escape(message)}"):
        measure()


def fails(error: BaseException):
    def method(*arguments):
        raise error

    return method


@pytest.mark.parametrize(
    "method",
    [
        *("begin", "prepare", "synchronize", "forward", "answer", "letter_logits"),
        *("compiled_graphs", "flops", "reset_peak_memory", "peak_memory_gib", "close"),
    ],
)
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("no\nserver"), "ValueError: no"),
        (SystemExit(3), "SystemExit: 3"),
        (StopIteration(), "StopIteration: no message"),
    ],
    ids=["error", "exit", "stop"],
)
def test_what_its_code_raises_is_one_line_with_the_place(method, error, told):
    most = Most()
    setattr(most, method, fails(error))
    own = engine(most)

    def measure() -> None:
        own.reset_peak_memory()
        run_pass(own, prompts(1), "last")
        own.compile_counts()
        own.flops(1, "all")
        own.peak_memory_gib()
        own.close()

    with pytest.raises(EngineError) as raised:
        measure()
    line = rf"my\.module:My_Engine: {method}\(\) failed: {told} \({re.escape(__file__)}:\d+\)"
    assert re.fullmatch(line, str(raised.value))


def test_what_ends_the_session_is_left_alone():
    most = Most()
    most.forward = fails(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run_pass(engine(most), prompts(1), "last")


def test_its_full_memory_is_a_full_device():
    most = Most()
    most.forward = fails(torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(DeviceMemory, match=r"^my.module:My_Engine: forward\(\): out of memory on"):
        run_pass(engine(most), prompts(1), "last")


def test_what_runs_only_when_it_is_awaited_is_no_forward():
    class Later(Least):
        async def forward(self, batch, head):
            return batch

    class Streams(Least):
        def forward(self, batch, head):
            yield batch

    for kind in (Later, Streams):
        with pytest.raises(EngineError, match=r"forward\(\) gave <.*; expected what it computed"):
            run_pass(engine(kind()), prompts(1), "last")


def test_graphs_that_were_compiled_stay_compiled():
    counts = iter([5, np.int64(6), 4])
    most = Most()
    most.compiled_graphs = lambda: next(counts)
    own = engine(most)
    assert [own.compile_counts().graphs, own.compile_counts().graphs] == [5, 6]
    with pytest.raises(EngineError, match=r"compiled_graphs\(\) gave 4; expected at least 6, as b"):
        own.compile_counts()


def test_an_attribute_that_is_no_method_says_so():
    most = Most()
    most.flops = 3e9
    with pytest.raises(EngineError, match=r"^my.module:My_Engine: its attribute 'flops' is 30000"):
        engine(most)


def test_all_engines_are_closed_whichever_fails_to(tiny: Case, monkeypatch):
    made = []

    class Made(Least):
        def __init__(self, case, weights):
            made.append(self)
            self.closed = False

        def close(self):
            self.closed = True
            raise OSError("gone")

    class Other(Made):
        pass

    monkeypatch.setattr(sys.modules[__name__], "Made", Made, raising=False)
    monkeypatch.setattr(sys.modules[__name__], "Other", Other, raising=False)
    named = [f"{__name__}:Made", f"{__name__}:Other"]
    engines = OwnEngines(tiny.with_engines(named, "--engines"))
    for name in ("made", "other"):
        engines.engine(name, None, DEVICE)
    with pytest.raises(EngineError, match=r"close\(\) failed: OSError: gone"):
        engines.close()
    assert [each.closed for each in made] == [True, True]


def test_answers_without_letter_logits_are_stored_sent_and_kept():
    answers = run_pass(engine(Least()), prompts(6), "last").answers
    stored = judge.stored_answers(answers, "2026-11-25", None, {})
    assert stored is not None
    data = json.loads(json.dumps(stored.to_json(), allow_nan=False))
    assert set(data["subjects"]["even"]) == {"full_vocab", "labels"}
    there = Node(None, data, EngineError, "")  # type: ignore[arg-type]
    assert StoredAnswers.from_json(there) == stored
    assert stored.scored("full-vocab").correct == 6
    sent = json.loads(json.dumps(messages.answers_json(answers), allow_nan=False))
    row = json.loads(json.dumps(journal.to_row(answers), allow_nan=False))
    for again in (messages.answers(node(sent, "B")), journal.from_row(row)):
        assert (again.ids, again.argmax_letter) == (answers.ids, answers.argmax_letter)
        assert not again.has_logits


def test_without_letter_logits_every_other_answer_is_a_flip():
    asked = prompts(4)
    eager = run_pass(engine(Most()), asked, "last").answers
    same = run_pass(engine(Least()), asked, "last").answers
    other = dataclasses.replace(same, argmax_letter="ABDD")
    assert same_answers(eager, same, "fp16").word == "ok"
    found = same_answers(eager, other, "fp16")
    assert (found.word, [flip.id for flip in found.flips]) == ("regressed", [asked[2].id])


def test_two_sides_without_letter_logits_compare_by_their_accuracy(tiny: Case):
    both = run_pass(engine(Least()), prompts(8), "last").answers
    record, verdicts = gates.answers(tiny, "my.module:My_Engine", both, both, ("fp32", "fp32"))
    assert [verdict.metric for verdict in verdicts] == ["acc_myengine"]
    assert (record.baseline_correct, record.candidate_correct) == (8, 8)
    dummy = dataclasses.replace(both, labels=None)
    _, (only,) = gates.answers(tiny, "my.module:My_Engine", dummy, dummy, ("fp32", "fp32"))
    assert (only.word, only.measured) == ("missing", None)


def test_the_engines_change_no_digest(tiny: Case):
    own = tiny.with_engines(["eager", "my.module:MyEngine"], "--engines")
    assert own.engine_names == ("eager", "myengine")
    assert own.digest() == tiny.digest()
    assert tiny.engine_names == ("eager", "inductor")


@pytest.mark.parametrize(
    "named",
    ["", "x", "my.module:", ":My", "my-module:My", "a:b:C", "m:Ünïcode", "m:" + "A" * 31],
)
def test_a_name_that_is_none_says_what_one_is(tiny: Case, named: str):
    with pytest.raises(CaseError, match=r"^--engines names '.*(module:Class|of at most 30)"):
        tiny.with_engines([named], "--engines")


def test_a_name_that_no_engine_has_is_not_taken_for_one_of_ours(tiny: Case, monkeypatch):
    model = SimpleNamespace(vocabulary=1000, positions=2048, load_s=0.0, load_peak_gib=None)
    model.engine, model.attention, model.quantization = (lambda name: name), "sdpa", ""
    model.without_letters = {}
    monkeypatch.setattr("perfline.engines.hf.load", lambda *given: model)
    loaded = open_case(tiny, DEVICE, None, "dummy")
    assert loaded.engine("inductor") == "inductor"
    with pytest.raises(EngineError, match=r"tiny.yaml: key 'engines' names no 'eagr', which was"):
        loaded.engine("eagr")


def test_alone_it_needs_no_weights_that_perfline_can_load(
    tiny: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    embedded = PACKAGED_CASES / "embedded"
    shutil.copytree(
        embedded, tmp_path, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True
    )
    (tmp_path / "stand_in.py").write_text(
        "class StandIn:\n"
        "    def __init__(self, case, weights): self.weights, self.closed = weights, 0\n"
        "    def forward(self, batch, head): return batch\n"
        "    def answer(self, output): return f' {output.label}'\n"
        "    def close(self): self.closed += 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    case = tiny.with_engines(["stand_in:StandIn"], "--engines")
    loaded = open_case(case, current_device(), tmp_path, "real")
    assert (loaded.load_s, loaded.load_peak_gib, dict(loaded.own_load_s)) == (None, None, {})
    assert set(loaded.facts) == {"mmlu"}
    own = loaded.engine("standin")
    assert loaded.engine("standin") is own
    assert list(loaded.own_load_s) == ["standin"]
    assert loaded.shared("standin", print) is None
    assert run_pass(own, loaded.prompts[:3], "last").answers.labels is not None
    with pytest.raises(EngineError, match=r"^--engines names no 'eager', which was asked for"):
        loaded.engine("eager")
    loaded.close()
    stand_in = own._can["close"].__self__
    assert (stand_in.closed, stand_in.weights) == (1, tmp_path / "tiny_mmlu" / "tiny_hf")
