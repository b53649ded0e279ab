"""What is refused before anything is measured."""

from __future__ import annotations

import pytest

import fakes
from perfline.cases.case import load_cases
from perfline.engines.device import current_device
from perfline.engines.engine import run_pass
from perfline.errors import DataError
from perfline.measure.case_run import CaseRun, _check_ids, open_case
from random_llama import case


def test_a_token_that_the_model_has_no_row_for_is_refused():
    prompts = fakes.prompts(3, length=100)  # their tokens go up to 101
    _check_ids(case(), prompts, 102)
    with pytest.raises(DataError, match=r"question even/1 holds token 101, .* has 101 rows"):
        _check_ids(case(), prompts, 101)


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
