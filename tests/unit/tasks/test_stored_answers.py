from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfline.errors import BaselineError
from perfline.fields import Node
from perfline.tasks.answers import Scored, StoredAnswers, question_key

Row = tuple[str, str, str, str, float | None]
LETTER = st.sampled_from("ABCD")
ROWS = st.lists(
    st.tuples(
        st.builds("{}/{}".format, st.sampled_from(["law", "art", "pro_law"]), st.integers(0, 30)),
        LETTER,
        st.sampled_from("ABCD-"),
        LETTER,
        st.floats(0, 1e4),
    ),
    min_size=1,
    unique_by=lambda row: row[0],
)
FOUR: list[Row] = [
    ("law/1", "B", "B", "C", 0.12345),
    ("art/0", "A", "-", "A", 12.0),
    ("law/0", "D", "D", "D", 0.5),
    ("law/10", "C", "C", "A", 0.0),
]


def stored(rows: list[Row]) -> StoredAnswers:
    return StoredAnswers.of(
        rows, date="2026-11-22", commit="1a2b3c4", reason="first", context={"torch": "2.13.0"}
    )


def node(data: object) -> Node:
    text = json.loads(json.dumps(data))
    return Node(Path("b.json"), text, BaselineError, "restore it", "accuracy.eager.")


@given(ROWS)
def test_answers_survive_json_whatever_their_order(rows: list[Row]) -> None:
    answers = stored(rows)

    assert StoredAnswers.from_json(node(answers.to_json())) == answers
    assert stored(rows[::-1]) == answers


def test_answers_are_stored_by_subject_and_index_with_short_margins() -> None:
    answers = stored(FOUR)

    assert answers.ids == ("art/0", "law/0", "law/1", "law/10")
    assert (answers.letters, answers.argmax, answers.labels) == ("ADBC", "-DBC", "ADCA")
    assert answers.margins == (12.0, 0.5, 0.123, 0.0)
    assert answers.to_json()["subjects"] == {
        "art": {"letters": "A", "full_vocab": "-", "labels": "A", "margins": "12"},
        "law": {
            "letters": "DBC",
            "full_vocab": "DBC",
            "labels": "DCA",
            "margins": "0.5 0.123 0",
            "indices": "0 1 10",
        },
    }


def test_the_two_scorings_see_their_own_answers() -> None:
    answers = stored(FOUR)

    assert answers.scored("letters").answers == "ADBC"
    assert answers.scored("letters").correct == 2
    assert answers.scored("letters").margins == answers.margins
    assert answers.scored("full-vocab").answers == "-DBC"
    assert answers.scored("full-vocab").correct == 1


def test_all_of_mmlu_takes_well_under_a_megabyte() -> None:
    rows = [
        (f"subject_{i // 250}/{i % 250}", "ABCD"[i % 4], "ABCD"[i % 4], "A", (i % 977) / 61)
        for i in range(14042)
    ]
    text = json.dumps(stored(rows).to_json(), indent=1)

    assert len(text) < 150_000
    assert len(text.splitlines()) < 500


def test_the_digest_tells_which_questions_not_which_answers() -> None:
    other_answer = [("law/1", "A", "A", "C", 0.1), *FOUR[1:]]
    other_label = [("law/1", "B", "B", "A", 0.1), *FOUR[1:]]

    assert stored(other_answer).questions_digest == stored(FOUR).questions_digest
    assert stored(other_label).questions_digest != stored(FOUR).questions_digest


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("law/2", "K", "A", "A", 0.1), "a letter or label is not one of A to J"),
        (("law/2", "A", "x", "A", 0.1), "a full-vocabulary answer is not A to J or -"),
        (("law/2", "A", "A", "A", float("nan")), "a margin is negative or no number"),
        (("law/2", "A", "A", "A", -0.1), "a margin is negative or no number"),
        (("law/2", "A", "A", "A", float("inf")), "a margin is negative or no number"),
        (("law/1", "A", "A", "A", 0.1), "question law/1 stands twice"),
        (("law", "A", "A", "A", 0.1), "question id 'law': expected subject/index"),
        (("law/x", "A", "A", "A", 0.1), "question id 'law/x': expected subject/index"),
    ],
)
def test_what_is_no_answer_is_not_stored(row: Row, message: str) -> None:
    with pytest.raises(BaselineError, match=f"{message}$"):
        stored([*FOUR, row])


@pytest.mark.parametrize(
    ("column", "value"),
    [("letters", "AB"), ("argmax", "AB"), ("labels", "AB"), ("margins", (1, 2))],
)
def test_a_column_of_another_length_is_named(column: str, value: object) -> None:
    with pytest.raises(BaselineError, match=f"^answers: 2 {column} for 4 questions$"):
        dataclasses.replace(stored(FOUR), **{column: value})  # type: ignore[arg-type]


def test_an_engine_without_letter_logits_stores_its_full_vocabulary_answers_alone() -> None:
    answers = stored([(name, "-", full, label, None) for name, _, full, label, _ in FOUR])

    assert (answers.letters, answers.margins) == ("----", None)
    subjects = answers.to_json()["subjects"]
    assert subjects == {
        "art": {"full_vocab": "-", "labels": "A"},
        "law": {"full_vocab": "DBC", "labels": "DCA", "indices": "0 1 10"},
    }
    assert StoredAnswers.from_json(node(answers.to_json())) == answers


def test_questions_of_ten_choices_are_stored() -> None:
    rows: list[Row] = [(f"law/{i}", x, x, x, 0.5) for i, x in enumerate("ABCDEFGHIJ")]
    answers = stored([*rows, ("law/10", "A", "-", "A", 0.5)])

    assert answers.scored("letters").correct == 11
    assert answers.scored("full-vocab").correct == 10
    assert StoredAnswers.from_json(node(answers.to_json())) == answers


def test_no_answers_are_not_stored() -> None:
    with pytest.raises(BaselineError, match="there are none"):
        stored([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"letters": "DB"},
            "key 'accuracy.eager.subjects.law.letters' and the other columns differ",
        ),
        (
            {"letters": ""},
            "key 'accuracy.eager.subjects.law.letters' and the other columns differ",
        ),
        (
            {"margins": ""},
            "key 'accuracy.eager.subjects.law.letters' and the other columns differ",
        ),
        ({"margins": "0 x 1"}, "key 'accuracy.eager.subjects.law.margins' holds what is no number"),
        ({"labels": 3}, "key 'accuracy.eager.subjects.law.labels' is 3 (expected text)"),
        ({"indices": "0 1 1"}, "key 'accuracy.eager.subjects' is wrong (answers: question law/1"),
        ({"indices": "0 1 2"}, "key 'accuracy.eager.questions_digest' does not fit the ids and"),
        ({"margins": "0 nan 1"}, "key 'accuracy.eager.subjects' is wrong (answers to store: a m"),
    ],
)
def test_a_wrong_column_is_named(change: dict[str, object], message: str) -> None:
    data = stored(FOUR).to_json()
    data["subjects"]["law"].update(change)  # type: ignore[index]

    with pytest.raises(BaselineError) as raised:
        StoredAnswers.from_json(node(data))

    assert str(raised.value).startswith(f"b.json: {message}")


def test_scored_refuses_columns_of_different_lengths() -> None:
    for columns, said in (
        (("ABC", "AB"), "3 answers"),
        (("AB", "A"), "1 labels"),
        (("AB", "AB", (1.0,)), "1 margins"),
    ):
        with pytest.raises(BaselineError, match=f"{said} for 2 questions"):
            Scored(("a/0", "a/1"), *columns)  # type: ignore[arg-type]


def test_ids_sort_by_number_not_by_text() -> None:
    assert sorted(["b/2", "a/10", "a/9"], key=question_key) == ["a/9", "a/10", "b/2"]
    assert question_key("a/b/3") == ("a/b", 3)


@pytest.mark.parametrize("index", ["9" * 5000, "01", "\u0663", "-1", ""])
def test_an_index_is_a_plain_whole_number(index: str) -> None:
    with pytest.raises(BaselineError, match="expected subject/index") as raised:
        question_key(f"law/{index}")
    assert len(str(raised.value)) < 99
