"""What an engine answered: rows that fit, put together, picked out, and scored by continuation."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import pytest

from fake_workers import answers
from perfline.errors import DataError
from perfline.tasks.answers import (
    Answers,
    accuracy,
    letter_table,
    no_answers,
    of_continuations,
    subset,
    union,
)


@dataclass(frozen=True)
class Asked:
    choices: int


def same(a: Answers, b: Answers) -> None:
    for each in fields(Answers):
        np.testing.assert_array_equal(getattr(a, each.name), getattr(b, each.name), each.name)


def scaled(n: int = 4) -> Answers:
    return replace(answers(n=n), scales=np.arange(n, dtype=np.float32) + 20)


@pytest.mark.parametrize(("choices", "width"), [([], 4), ([2, 3], 4), ([4, 5], 5), ([10, 4], 10)])
def test_a_table_of_letters_is_as_wide_as_the_most_choices_and_empty(
    choices: list[int], width: int
) -> None:
    table = letter_table([Asked(each) for each in choices])
    assert (table.shape, table.dtype) == ((len(choices), width), np.float32)
    assert np.isnan(table).all()


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (4, 11), (4,), (4, 4, 4)])
def test_logits_are_a_row_of_4_to_10_for_each_question(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="expected one row of 4 to 10 logits per id"):
        replace(answers(n=4), letter_logits=np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("normalised", "own", "letter", "scale"),
    [(False, (-4.0, -6.0, -9.0), "B", 12.0), (True, (-4.0, -2.0, -3.0), "A", 8.0)],
)
def test_a_continuation_s_score_is_its_sum_or_that_by_token_and_the_letter_is_the_other_s(
    normalised: bool, own: tuple[float, ...], letter: str, scale: float
) -> None:
    """``letter_logits`` are of the task's own rule, ``argmax_letter`` of the other one."""
    found = of_continuations((-4.0, -6.0, -9.0), (8.0, 12.0, 9.0), (1, 3, 3), normalised)
    assert (tuple(found[0]), *found[1:]) == (own, letter, scale)


@pytest.mark.parametrize("whole", [answers(n=4), answers(n=4, labels=False), scaled()])
def test_parts_of_answers_put_together_are_the_whole(whole: Answers) -> None:
    parts = [subset(whole, whole.ids[:1]), no_answers(), subset(whole, whole.ids[1:])]
    same(union(parts), whole)


def test_a_subset_has_the_rows_asked_for_in_that_order() -> None:
    whole = replace(scaled(), shots=(5, 4, 3, 2))
    found = subset(whole, ("sky/2", "sky/0"))
    assert (found.ids, found.argmax_letter, found.labels) == (("sky/2", "sky/0"), "CA", "CA")
    assert (found.letters(), found.argmax.tolist(), found.shots) == ("CA", [2, 0], (3, 5))
    assert found.scales is not None
    assert found.scales.tolist() == [22, 20]


def test_where_a_part_tells_no_scale_its_largest_letter_stands_for_it() -> None:
    silent = replace(answers(n=2), ids=("law/0", "law/1"))
    assert union([scaled(2), silent]).rounding_scales.tolist() == [20, 21, 5, 5]


def test_no_answers_are_none_right_of_none_asked() -> None:
    none = union([no_answers()])
    assert accuracy(none, "letters") == accuracy(none, "full-vocab") == (0, 0)
    assert (none.ids, none.letter_logits.shape, none.letter_logits.dtype) == ((), (0, 4), "float32")
    assert (none.argmax.dtype, none.labels) == ("int64", "")
