"""What is refused before anything is measured; and what is, in whatever order it is asked for."""

from __future__ import annotations

import dataclasses
import itertools
import re

import pytest

import fakes
import random_llama
from perfline.cases.case import FidelitySpec, ThroughputSpec, load_cases
from perfline.engines.device import current_device
from perfline.engines.engine import run_pass
from perfline.errors import DataError, MissingData
from perfline.measure.accuracy import AccuracyOptions
from perfline.measure.case_run import CaseRun, _check_ids, in_turn, open_case
from random_llama import CONFIG

TESTS = {
    "accuracy": lambda run: run.answer_all("inductor"),
    "fidelity": lambda run: run.fidelity(),
    "throughput": lambda run: run.time("inductor", in_turn),
}
SMALL = CONFIG | {"max_position_embeddings": 4096, "num_hidden_layers": 1}
HEALTH = ("graphs", "graph_breaks", "recompiles")


def test_a_token_that_the_model_has_no_row_for_is_refused():
    prompts = fakes.prompts(3, length=100)  # their tokens go up to 101
    _check_ids(random_llama.case(), prompts, 102)
    with pytest.raises(DataError, match=r"question even/1 holds token 101, .* has 101 rows"):
        _check_ids(random_llama.case(), prompts, 101)


def test_letters_without_a_token_of_their_own_are_scored_as_continuations(monkeypatch):
    """Of the tiny model's letters, which have one: the answers have to be the same."""
    (tiny,) = load_cases(["tiny"])
    device = current_device()
    loaded = open_case(tiny, device, None, "real")
    some = loaded.prompts[:40]
    by_token = run_pass(loaded.engine("eager"), some, "last").answers
    loaded.close()
    why = "no letter token for 'A'"
    monkeypatch.setattr("perfline.tasks.prompts.case_letters", lambda *_: (None, {"mmlu": why}))

    loaded = open_case(tiny, device, None, "real")
    by_score = run_pass(loaded.engine("eager"), loaded.prompts[:40], "last").answers
    run = CaseRun(tiny, loaded, device)
    run.helper("eager")
    loaded.close()

    assert loaded.facts["mmlu_scored"] == f"by continuation: {why}"
    assert [each.text for each in run.notices.all] == [
        f"tiny: letters of mmlu are scored by continuation: {why}"
    ]
    assert by_score.ids == by_token.ids
    assert by_score.letters() == by_token.letters() == by_score.argmax_letter
    assert by_score.margins() == pytest.approx(by_token.margins(), abs=1e-4)


def test_of_a_task_whose_rows_are_absent_nothing_is_asked_and_of_the_others_all(tmp_path):
    (tiny,) = load_cases(["tiny"])
    case = dataclasses.replace(tiny, tasks=("mmlu", "ceval", "mmlu_lm_eval"))
    loaded = open_case(case, current_device(), tmp_path, "real")
    loaded.close()
    assert list(loaded.absent) == ["ceval"]
    assert re.match(
        r"case tiny: no questions of task 'ceval' at .*/ceval; get", loaded.absent["ceval"]
    )
    assert list(loaded.more) == ["mmlu_lm_eval"]
    assert not [name for name in loaded.facts if "ceval" in name]
    run = CaseRun(case, loaded, current_device())
    with pytest.raises(MissingData, match="no questions of task 'ceval'"):
        run.prompts_of("val_ceval")


@pytest.mark.parametrize(
    ("tasks", "there", "error"),
    [
        (("ceval", "mmlu"), "", MissingData),
        (("mmlu", "ceval"), "question,A,B,C,D,answer\nWhy?,a,b,c,d,E\n", DataError),
    ],
)
def test_without_its_first_task_or_with_bad_rows_nothing_is_loaded(
    monkeypatch, tmp_path, tasks, there, error
):
    monkeypatch.setattr("perfline.engines.hf.load", lambda *_: pytest.fail("was loaded"))
    for split in ("dev", "val") if there else ():
        path = tmp_path / "ceval" / split / f"law_{split}.csv"
        path.parent.mkdir(parents=True)
        path.write_text(there)
    (tiny,) = load_cases(["tiny"])
    with pytest.raises(error) as caught:
        open_case(dataclasses.replace(tiny, tasks=tasks), current_device(), tmp_path, "real")
    assert type(caught.value) is error


@pytest.fixture(scope="module")
def case():
    return dataclasses.replace(
        random_llama.case("bf16", SMALL),
        throughput=ThroughputSpec(sample=2, rounds=1, min_round_s=1e-3),
        fidelity=FidelitySpec(prompts=2),
    )


@pytest.fixture
def opened(monkeypatch, case):
    random_llama.traced_only(monkeypatch)
    loaded = open_case(case, current_device(), None, "dummy")
    shortest = sorted(loaded.prompts, key=lambda prompt: len(prompt.ids))
    yield dataclasses.replace(loaded, prompts=shortest[:4])
    loaded.close()


def test_compile_health_and_the_fingerprint_are_the_same_in_any_order(case, opened):
    found = {}
    for order in itertools.permutations(TESTS):
        run = CaseRun(case, opened, current_device(), options=AccuracyOptions(verify=2))
        for test in order:
            TESTS[test](run)
        fingerprint = run.fingerprint("inductor")
        metrics = run.metrics()
        found[order] = fingerprint, [metrics[name].value for name in HEALTH]
    (first, health), *others = found.values()
    assert health == [1, 0, 0]
    assert [each for each in others if each != (first, health)] == []
