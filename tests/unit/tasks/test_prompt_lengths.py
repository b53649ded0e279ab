"""Recorded lengths: the facts of the real data and the Llama-3 tokenizer, and prompts from them."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from perfline.errors import DataError
from perfline.tasks.prompt_lengths import SubjectLengths, dummy_prompts, recorded_lengths
from perfline.tasks.prompts import Prompt


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return dummy_prompts(vocab_size=1000, max_prompt_tokens=2048)


def test_untruncated_mmlu_has_9_625_046_tokens() -> None:
    subjects = recorded_lengths()
    totals = [s.prefix[5] + tokens for s in subjects for tokens in s.questions]

    assert len(subjects) == 57
    assert (len(totals), sum(totals), max(totals)) == (14_042, 9_625_046, 3083)


def test_truncated_mmlu_has_9_396_415_tokens(prompts: list[Prompt]) -> None:
    assert len(prompts) == 14_042
    assert sum(len(p.ids) for p in prompts) == 9_396_415
    assert max(len(p.ids) for p in prompts) == 2045
    assert Counter(p.shots for p in prompts) == {5: 13_673, 4: 203, 3: 161, 2: 5}
    assert Counter(p.subject for p in prompts if p.shots < 5) == {
        "high_school_us_history": 201,
        "high_school_european_history": 165,
        "professional_law": 3,
    }


def test_dummy_prompts_are_random_ids_without_labels_and_always_the_same(
    prompts: list[Prompt],
) -> None:
    again = dummy_prompts(vocab_size=1000, max_prompt_tokens=2048)

    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(prompts, again, strict=True))
    assert prompts[0].id == "abstract_algebra/0"
    assert {p.label for p in prompts} == {None}
    everything = np.concatenate([p.ids for p in prompts])
    assert everything.dtype == np.int64
    assert (everything.min(), everything.max()) == (0, 999)
    # Shared prefixes repeat their ids a few hundred times, so the counts spread.
    assert np.bincount(everything).min() > 0.25 * len(everything) / 1000


def test_a_subject_s_prompts_share_the_shots_that_they_keep(prompts: list[Prompt]) -> None:
    lengths = {s.name: s for s in recorded_lengths()}
    history = [p for p in prompts if p.subject == "high_school_us_history"]
    prefix = lengths["high_school_us_history"].prefix
    whole = next(p.ids for p in history if p.shots == 5)
    shots_start = prefix[0]

    for prompt in history:
        kept = prefix[prompt.shots] - shots_start  # tokens of the last shots
        assert np.array_equal(prompt.ids[:shots_start], whole[:shots_start])
        assert np.array_equal(
            prompt.ids[shots_start : shots_start + kept], whole[prefix[5] - kept : prefix[5]]
        )
    tails = {p.ids[prefix[p.shots] :].tobytes() for p in history}
    assert len(tails) == len(history)


def test_fewer_positions_drop_more_shots_until_none_are_left() -> None:
    subject = SubjectLengths("s", prefix=(10, 30, 60), questions=(39, 90))

    assert [subject.shots_kept(0, limit) for limit in (100, 99, 70, 69, 50)] == [2, 1, 1, 0, 0]
    with pytest.raises(DataError, match=r"question s/1: 100 tokens without any shot; .* below 100"):
        subject.shots_kept(1, 100)


def test_every_recorded_prefix_grows_with_its_shots() -> None:
    for subject in recorded_lengths():
        assert len(subject.prefix) == 6
        assert all(fewer < more for fewer, more in pairwise(subject.prefix))
        assert min(subject.questions) > 0
