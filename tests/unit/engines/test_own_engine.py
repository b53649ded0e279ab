"""What does an engine of the user's own look like to the measuring code?"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from fakes import DEVICE, prompts
from perfline.baselines import judge
from perfline.cases.case import PACKAGED_CASES, Case, load_cases
from perfline.compare import gates, messages
from perfline.compare.wire import node
from perfline.engines.device import current_device
from perfline.engines.engine import CompileCounts, run_pass
from perfline.engines.own_engine import OwnEngine
from perfline.errors import CaseError, EngineError
from perfline.gates.accuracy import same_answers
from perfline.jsonfile import Node
from perfline.measure import journal
from perfline.measure.case_run import open_case
from perfline.tasks.answers import StoredAnswers


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
        ("letter_logits", [1, 2, 3], "letter_logits() gave [1, 2, 3]; expected 4 numbers"),
        ("letter_logits", 7, "letter_logits() gave 7; expected 4 numbers"),
        ("compiled_graphs", "1", "compiled_graphs() gave '1'; expected a whole number"),
        ("flops", -1, "flops() gave -1; expected a number of at least 0, or None"),
        ("peak_memory_gib", float("nan"), "peak_memory_gib() gave nan; expected a number"),
    ],
    ids=["answer", "three", "seven", "graphs", "flops", "memory"],
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
    stand_in = own._engine
    assert (stand_in.closed, stand_in.weights) == (1, tmp_path / "tiny_mmlu" / "tiny_hf")
