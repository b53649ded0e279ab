from __future__ import annotations

import dataclasses
import itertools
import time

import numpy as np
import pytest

from fakes import FakeClock, FakeEngine, prompts
from perfline.engines.engine import CompileCounts, run_pass
from perfline.errors import EngineError
from perfline.tasks.answers import accuracy


def test_core_is_the_synchronised_forward_alone_and_whole_is_everything():
    clock = FakeClock()
    engine = FakeEngine("eager", clock, token_s=0.5, read_s=2.0)
    done = run_pass(engine, prompts(3, length=10), "all", clock)
    assert done.tokens == 10 + 11 + 12
    assert done.core_s == 0.5 * 33
    assert done.whole_s == 0.5 * 33 + 3 * 2.0


def test_a_wall_clock_that_jumps_is_no_duration(monkeypatch):
    jumps = itertools.cycle([2e9, 1e9, -1.0])
    begin = time.perf_counter()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: next(jumps))
        done = run_pass(FakeEngine("eager", FakeClock()), prompts(9), "all")
    assert 0 <= done.core_s <= done.whole_s <= time.perf_counter() - begin


def test_each_forward_is_synchronised_before_and_after():
    engine = FakeEngine("eager", FakeClock())
    run_pass(engine, prompts(2), "last", engine.clock)
    one = ["prepare", "synchronize", "forward even/0 last", "synchronize", "read"]
    assert engine.log[0] == "told 2 last"
    assert engine.log[1:6] == one
    assert engine.log[6:] == [entry.replace("even", "odd") for entry in one]


def test_answers_are_in_prompt_order_with_labels_and_shots():
    clock = FakeClock()
    engine = FakeEngine("eager", clock, wrong=frozenset({"odd/0"}))
    done = run_pass(engine, prompts(4), "last", clock)
    assert done.answers.ids == ("even/0", "odd/0", "even/1", "odd/1")
    assert done.answers.labels == "ABCD"
    assert done.answers.letters() == done.answers.argmax_letter == "ACCD"
    assert accuracy(done.answers, "letters") == (3, 4)
    assert done.answers.letter_logits.dtype == np.float32
    assert done.answers.shots == (5, 5, 5, 5)


def test_logits_that_are_not_finite_are_an_error_and_not_a_wrong_answer():
    clock = FakeClock()
    engine = FakeEngine("inductor", clock, nan=frozenset({"even/1", "odd/1"}))
    with pytest.raises(EngineError, match=r"inductor: logits of 2 of 4 .*question even/1"):
        run_pass(engine, prompts(4), "last", clock)


def test_a_question_has_the_letters_of_its_choices_alone():
    engine = FakeEngine(
        "eager", FakeClock(), wrong=frozenset({"even/1"})
    )  # gives D where C is right
    few = [dataclasses.replace(prompt, choices=3) for prompt in prompts(3)]
    done = run_pass(engine, [*few, *prompts(4)[3:]], "last", engine.clock)
    assert np.isnan(done.answers.letter_logits[:, 3]).tolist() == [True, True, True, False]
    assert done.answers.letters() == "ABCD"
    assert done.answers.argmax_letter == "AB-D"
    assert done.answers.has_logits
    many = dataclasses.replace(prompts(1)[0], choices=5)
    with pytest.raises(EngineError, match=r"eager: tells logits of 4 letters, and .* 5 choices"):
        run_pass(engine, [many], "last", engine.clock)


def test_progress_counts_every_prompt():
    seen: list[tuple[int, int]] = []
    clock = FakeClock()
    run_pass(
        FakeEngine("eager", clock), prompts(3), "last", clock, lambda *counts: seen.append(counts)
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("hits", "misses", "cache"), [(0, 0, None), (2, 0, "warm"), (0, 1, "cold"), (3, 1, "cold")]
)
def test_the_compile_cache_is_warm_only_without_a_miss(hits, misses, cache):
    assert CompileCounts(1, 0, hits, misses).cache == cache
