"""What is refused before anything is measured."""

from __future__ import annotations

import pytest

import fakes
from perfline.errors import DataError
from perfline.measure.case_run import _check_ids
from random_llama import case


def test_a_token_that_the_model_has_no_row_for_is_refused():
    prompts = fakes.prompts(3, length=100)  # their tokens go up to 101
    _check_ids(case(), prompts, 102)
    with pytest.raises(DataError, match=r"question even/1 holds token 101, .* has 101 rows"):
        _check_ids(case(), prompts, 101)
