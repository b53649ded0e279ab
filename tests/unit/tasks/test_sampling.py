from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from perfline.tasks.prompt_lengths import recorded_lengths
from perfline.tasks.sampling import spread_sample, tier_order

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=8)


def ids(counts: list[int]) -> list[str]:
    return [f"s{s}/{i}" for s, n in enumerate(counts) for i in range(n)]


@given(sizes)
def test_it_is_an_order_of_all_questions_whatever_order_they_come_in(counts):
    names = ids(counts)
    order = [names[i] for i in tier_order(names)]
    assert sorted(order) == sorted(names)
    backwards = names[::-1]
    assert [backwards[i] for i in tier_order(backwards)] == order


@given(sizes, st.integers(0, 320))
def test_any_first_n_hold_every_subject_in_proportion_to_one_question(counts, n):
    names = ids(counts)
    n = min(n, len(names))
    taken = Counter(names[i].split("/")[0] for i in tier_order(names)[:n])
    # All places below some p are taken: p x size of each subject, rounded, so p is off by at most
    # half a question a subject.
    for subject, size in enumerate(counts):
        share = size / len(names)
        assert abs(taken[f"s{subject}"] - n * share) <= 0.5 + 0.5 * len(counts) * share + 1e-9


def test_the_real_thousand_holds_all_57_subjects_within_one_question():
    counts = {s.name: len(s.questions) for s in recorded_lengths()}
    names = [f"{name}/{i}" for name, n in counts.items() for i in range(n)]
    taken = Counter(names[i].split("/")[0] for i in tier_order(names)[:1000])
    assert len(taken) == 57
    off = {name: taken[name] - 1000 * n / 14042 for name, n in counts.items()}
    assert max(map(abs, off.values())) < 1.0


def test_the_order_is_pinned():
    names = ids([3, 3])
    assert [names[i] for i in tier_order(names)] == ["s0/1", "s1/0", "s0/0", "s1/1", "s0/2", "s1/2"]


questions_asked = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 50)), min_size=1)


@given(questions_asked, st.integers(1, 20))
def test_a_spread_sample_has_the_longest_and_the_shortest_stratum(questions, n):
    subjects, lengths = zip(*questions, strict=True)
    chosen = spread_sample(subjects, lengths, n)
    assert len(set(chosen)) == len(chosen) == min(n, len(questions))
    assert lengths[chosen[-1]] == max(lengths)
    taken = [lengths[index] for index in chosen]
    assert taken == sorted(taken)


def test_a_spread_sample_takes_every_subject_it_can():
    subjects = [f"s{i % 7}" for i in range(70)]
    chosen = spread_sample(subjects, list(range(70)), 7)
    assert {subjects[index] for index in chosen} == set(subjects)


def test_a_spread_sample_takes_the_middle_of_each_stratum_and_the_longest():
    assert spread_sample(["law"] * 27, list(range(27)), 3) == [4, 13, 26]


def test_a_stratum_gives_one_of_its_own_questions_though_an_earlier_one_has_a_new_subject():
    subjects = ["new", "odd", "law", "law", "law", "law"]
    assert spread_sample(subjects, [0, 1, 2, 3, 4, 5], 3) == [0, 2, 5]


def test_a_subject_is_all_that_stands_before_the_index():
    names = [f"a/{subject}/{i}" for subject in "xyz" for i in range(10)]
    order = [names[i].split("/")[1] for i in tier_order(names)]
    assert all(set(order[k : k + 3]) == set("xyz") for k in range(0, 30, 3))
