from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from perfline.distributed.work_units import LEAST_QUESTIONS, cut
from perfline.tasks.prompts import Prompt


def prompts_of(sizes: list[int], length: int = 50) -> list[Prompt]:
    """Subjects of so many questions; the k-th question of a subject has ``length + k`` tokens."""
    return [
        Prompt(
            id=f"s{subject}/{k}",
            subject=f"s{subject}",
            ids=np.arange(length + k, dtype=np.int64),
            shots=5,
            label="A",
        )
        for subject, size in enumerate(sizes)
        for k in range(size)
    ]


def tokens(prompts) -> int:
    return sum(len(prompt.ids) for prompt in prompts)


SIZES = st.lists(st.integers(1, 120), min_size=1, max_size=8)


@given(SIZES, st.integers(1, 9))
def test_every_question_is_in_one_unit_and_the_longest_unit_is_first(sizes, ranks):
    prompts = prompts_of(sizes)
    units = cut(prompts, ranks, tokens)
    assert sorted(name for unit in units for name in unit.ids) == sorted(p.id for p in prompts)
    assert [unit.cost for unit in units] == sorted((unit.cost for unit in units), reverse=True)
    assert sum(unit.cost for unit in units) == tokens(prompts)
    assert cut(list(reversed(prompts_of(sizes)))[::-1], ranks, tokens) == units


@given(SIZES, st.integers(2, 9))
def test_no_unit_holds_two_subjects_and_none_is_cut_below_its_use(sizes, ranks):
    prompts = prompts_of(sizes)
    by_size = dict(enumerate(sizes))
    for unit in cut(prompts, ranks, tokens):
        (subject,) = {name.partition("/")[0] for name in unit.ids}
        whole = by_size[int(subject[1:])]
        assert len(unit.ids) == whole or len(unit.ids) >= LEAST_QUESTIONS


def test_a_subject_that_is_more_than_its_share_is_cut_and_others_are_not():
    by_subject = [
        unit.ids[0].partition("/")[0] for unit in cut(prompts_of([400, 20, 20]), 4, tokens)
    ]
    assert sorted(by_subject) == ["s0", "s0", "s0", "s0", "s1", "s2"]


def test_questions_that_share_a_passage_stay_together():
    passage = {f"s0/{k}": (k * 7) % 4 for k in range(160)}  # their order in the file is mixed
    prompts = [
        Prompt(name, "s0", np.array([9, 9, which, number]), 5, "A")
        for number, (name, which) in enumerate(passage.items())
    ]
    cut_up = [{passage[name] for name in unit.ids} for unit in cut(prompts, 4, len)]
    assert len(cut_up) == 4
    assert all(len(passages) == 1 for passages in cut_up)


def test_one_rank_cuts_nothing():
    assert len(cut(prompts_of([400, 20]), 1, tokens)) == 2
