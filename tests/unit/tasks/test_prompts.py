"""MMLU: the prompt bit for bit, truncation by whole shots, both scorings, and broken files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfline.cases.case import MmluSpec
from perfline.errors import DataError
from perfline.tasks.answers import LETTERS, Answers, accuracy, full_vocab_letter
from perfline.tasks.prompts import (
    Question,
    Subject,
    build_prompts,
    hf_encode,
    letter_tokens,
    load_subjects,
    question_set_digest,
    render_prompt,
    stratified_sample,
)

ROW = ["2 + 2 = ?", "3", "4", "None", "5", "B"]


def write(path: Path, rows: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def mmlu(tmp_path: Path) -> Path:
    write(tmp_path / "dev" / "easy_sums_dev.csv", [ROW] * 5)
    write(tmp_path / "test" / "easy_sums_test.csv", [ROW, ROW])
    return tmp_path


def characters(texts: Sequence[str]) -> list[list[int]]:
    """A tokenizer of one token a character, with a BOS (1)."""
    return [[1, *map(ord, text)] for text in texts]


def subject(*test_texts: str, dev: Sequence[str] = ("p", "q\n\nq", "r")) -> Subject:
    def questions(texts: Sequence[str]) -> tuple[Question, ...]:
        return tuple(
            Question("easy_sums", i, text, ("1", "2", "3", "4"), "D")
            for i, text in enumerate(texts)
        )

    return Subject("easy_sums", questions(dev), questions(test_texts))


def answers(
    given: str,
    labels: str | None,
    *,
    first: int = 0,
    name: str = "s",
    vocabulary: str = "",
    most: int = 4,
) -> Answers:
    logits = np.zeros((len(given), most), dtype=np.float32)
    logits[range(len(given)), [LETTERS.index(letter) for letter in given]] = 1.0
    return Answers(
        ids=tuple(f"{name}/{first + i}" for i in range(len(given))),
        letter_logits=logits,
        argmax=np.arange(len(given)),
        argmax_letter=vocabulary or given,
        labels=labels,
        shots=(5,) * len(given),
    )


# --- files ----------------------------------------------------------------------------------------


def test_cells_are_text_as_written(mmlu: Path) -> None:
    write(mmlu / "test" / "easy_sums_test.csv", [["  007 ", "None", "NA", "", 'a "b"\n\nc', "D"]])

    (loaded,) = load_subjects(mmlu, 5)

    assert loaded.name == "easy_sums"
    assert loaded.test == (
        Question("easy_sums", 0, "  007 ", ("None", "NA", "", 'a "b"\n\nc'), "D"),
    )
    assert loaded.test[0].id == "easy_sums/0"
    assert len(loaded.dev) == 5


def test_subjects_are_sorted_and_keep_only_the_shots(mmlu: Path) -> None:
    for name in ("zoo", "art"):
        write(mmlu / "dev" / f"{name}_dev.csv", [ROW] * 7)
        write(mmlu / "test" / f"{name}_test.csv", [ROW])
    (mmlu / "test" / "._art_test.csv").write_bytes(b"\x00\x05\x16")  # as macOS' tar leaves it

    loaded = load_subjects(mmlu, 3)

    assert [s.name for s in loaded] == ["art", "easy_sums", "zoo"]
    assert [len(s.dev) for s in loaded] == [3, 3, 3]


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@settings(max_examples=30)
@given(
    rows=st.lists(
        st.tuples(cells, cells, cells, cells, cells, st.sampled_from("ABCD")),
        min_size=1,
        max_size=5,
    )
)
def test_any_text_survives_the_csv(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str, str, str, str]]
) -> None:
    directory = tmp_path_factory.mktemp("mmlu")
    write(directory / "dev" / "s_dev.csv", [])
    write(directory / "test" / "s_test.csv", rows)

    (loaded,) = load_subjects(directory, 0)

    # One BOM at a file's start is the encoding's, not the text's.
    expected = [(rows[0][0].removeprefix("\ufeff"), *rows[0][1:]), *rows[1:]]
    assert [(q.text, *q.choices, q.label) for q in loaded.test] == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            'q,1,2,3,4,A\n"two\nlines",1,2,3,4,B\nq,1,2,3,4\n',
            r"easy_sums_test\.csv:4: has 5 columns; expected 6",
        ),
        (
            "q,1,2,3,4,5,A\n",
            r"easy_sums_test\.csv:1: has 7 columns; expected 6: question, A, B, C, D, answer",
        ),
        (
            "q,1,2,3,4,A\n\nq,1,2,3,4,E\n",
            r"easy_sums_test\.csv:3: answer is 'E'; expected A, B, C or D",
        ),
        ("q,1,2,3,4,AB\n", r"easy_sums_test\.csv:1: answer is 'AB'"),
        ("q,1,2,3,4,\n", r"easy_sums_test\.csv:1: answer is ''"),
        (
            'q,1,2,3,4,A\n"open,1,2,3,4,A\n',
            r"easy_sums_test\.csv:2: is not valid CSV: unexpected end of data",
        ),
        ("", r"easy_sums_test\.csv: is empty; expected at least one question"),
        ("q,1,2,3,4,A\nq,1,2,\udcff,4,A\n", r"easy_sums_test\.csv:2: is not UTF-8 \(byte 0xff\)"),
    ],
)
def test_a_broken_file_is_named_with_its_line(mmlu: Path, content: str, message: str) -> None:
    path = mmlu / "test" / "easy_sums_test.csv"
    path.write_bytes(content.encode("utf-8", errors="surrogateescape"))
    with pytest.raises(DataError, match=message):
        load_subjects(mmlu, 5)


def test_missing_files_are_named(mmlu: Path) -> None:
    with pytest.raises(DataError, match=r"easy_sums_dev\.csv: has 5 rows; expected at least 6"):
        load_subjects(mmlu, 6)
    (mmlu / "dev" / "easy_sums_dev.csv").unlink()
    with pytest.raises(DataError, match=r"easy_sums_dev\.csv: is missing; subject 'easy_sums' has"):
        load_subjects(mmlu, 5)
    (mmlu / "test" / "easy_sums_test.csv").unlink()
    with pytest.raises(DataError, match=r"test: holds no \*_test\.csv"):
        load_subjects(mmlu, 5)


# --- prompts --------------------------------------------------------------------------------------


def test_the_prompt_is_bit_exact_and_drops_shots_from_the_front() -> None:
    one = subject("  t ")
    head = "The following are multiple choice questions (with answers) about  easy sums.\n\n"
    shots = [f"{text}\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: D\n\n" for text in ("p", "q\n\nq", "r")]
    asked = "  t \nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"

    assert render_prompt(one, one.test[0], 3) == head + "".join(shots) + asked
    assert render_prompt(one, one.test[0], 2) == head + "".join(shots[1:]) + asked
    assert render_prompt(one, one.test[0], 0) == head + asked


def test_a_prompt_keeps_the_shots_that_fit_with_one_token_to_spare() -> None:
    one = subject("t", "t" * 30)
    full = len(characters([render_prompt(one, one.test[0], 3)])[0])

    fits = build_prompts([one], characters, MmluSpec(max_prompt_tokens=full + 1))
    cut = build_prompts([one], characters, MmluSpec(max_prompt_tokens=full))

    assert [p.shots for p in fits] == [3, 2]
    assert [p.shots for p in cut] == [2, 2]
    assert [p.id for p in cut] == ["easy_sums/0", "easy_sums/1"]
    assert cut[0].label == "D"
    assert cut[0].ids.dtype == np.int64
    text = "".join(map(chr, cut[0].ids[1:].tolist()))
    assert text == render_prompt(one, one.test[0], 2)


def test_a_question_that_fits_nowhere_is_named() -> None:
    one = subject("t", "t" * 500)
    with pytest.raises(
        DataError, match=r"easy_sums/1 of task 'mmlu': 6\d\d tokens without any shot; .* 400: raise"
    ):
        build_prompts([one], characters, MmluSpec(max_prompt_tokens=400))
    with pytest.raises(DataError, match=r"easy_sums/1: 7\d\d tokens; the model has 512 positions"):
        build_prompts([one], characters, MmluSpec(), positions=512)


def bpe(*, bos: bool = True, eos: bool = False, letters: str = "ABCD") -> Any:
    """A byte-level Hugging Face tokenizer in memory; ' A' to ' D' are one token each."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "</s>", *alphabet, *(f"Ġ{letter}" for letter in letters)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    core = Tokenizer(models.BPE(vocabulary, [("Ġ", letter) for letter in letters]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if bos or eos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}",
            special_tokens=[("<s>", 0), ("</s>", 1)],
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize(
    ("adds_bos", "setting", "in_front"),
    [
        (True, "tokenizer", 1),
        (False, "tokenizer", 0),
        (True, False, 0),
        (True, True, 1),
        (False, True, 1),
    ],
)
def test_bos_is_as_the_case_says(
    adds_bos: bool, setting: bool | Literal["tokenizer"], in_front: int
) -> None:
    (ids,) = hf_encode(bpe(bos=adds_bos), setting)(["Answer: A"])
    assert ids[:in_front] == [0] * in_front
    assert 0 not in ids[in_front:]
    assert len(ids) == in_front + len("Answer:") + 1


def test_letters_are_the_tokens_that_follow_the_colon() -> None:
    tokenizer = bpe()
    settings: list[bool | Literal["tokenizer"]] = [True, False, "tokenizer"]
    for bos in settings:
        found = letter_tokens(hf_encode(tokenizer, bos))
        assert [tokenizer.decode([token]) for token in found] == [" A", " B", " C", " D"]


def test_a_tokenizer_without_letter_tokens_is_refused() -> None:
    with pytest.raises(DataError, match=r"no letter token for 'D': .* expected one more token"):
        letter_tokens(hf_encode(bpe(letters="ABC"), bos=False))
    with pytest.raises(DataError, match=r"no letter token for 'A': .*append an EOS"):
        letter_tokens(hf_encode(bpe(eos=True), "tokenizer"))
    with pytest.raises(DataError, match="A, B, C, D are 9, 9, 9, 9"):
        letter_tokens(lambda texts: [[1, 9][: 1 + text[-1].isupper()] for text in texts])
    without = bpe()
    without.bos_token = None
    with pytest.raises(DataError, match=r"no BOS token; set model\.bos to false"):
        hf_encode(without, True)


# --- answers --------------------------------------------------------------------------------------


def test_a_question_has_as_many_letters_as_choices() -> None:
    few, many = answers("AB", "AB"), answers("J", "J", name="t", most=10)
    few.letter_logits[0, 2:] = np.nan
    few.letter_logits[0, :2] = [-3.0, -2.0]

    both = few.merge(many)

    assert both.letter_logits.shape == (3, 10)
    assert both.has_logits
    assert both.letters() == "BBJ"
    assert both.margins() == (1.0, 1.0, 1.0)
    assert full_vocab_letter(" J", 10) == "J"
    assert full_vocab_letter(" J", 9) == "-"


@pytest.mark.parametrize(
    ("decoded", "letter"),
    [
        (" A", "A"),
        ("D", "D"),
        (" Because", "B"),
        ("CD", "-"),
        ("AA", "-"),
        (" the", "-"),
        ("", "-"),
        ("a", "-"),
        (" E", "-"),
    ],
)
def test_full_vocab_scoring_is_as_published(decoded: str, letter: str) -> None:
    assert full_vocab_letter(decoded, 4) == letter


def test_both_scorings_come_from_one_pass() -> None:
    mixed = answers("ABCD", "ABCA", vocabulary="A--A").merge(answers("BB", "AB", name="t"))

    assert accuracy(mixed, "letters") == (4, 6)
    assert accuracy(mixed, "full-vocab") == (3, 6)
    assert mixed.labels == "ABCAAB"


def test_a_tie_goes_to_the_first_letter_and_nan_to_none() -> None:
    rows = answers("AAA", "AAA")
    rows.letter_logits[0] = 2.0
    rows.letter_logits[1] = [0.0, 3.0, 3.0, 1.0]
    rows.letter_logits[2] = np.nan
    assert rows.letters() == "AB-"
    assert not rows.has_logits
    assert rows.margins() is None


def test_answers_without_labels_have_no_accuracy() -> None:
    dummy = answers("AB", None)
    assert dummy.letters() == "AB"
    with pytest.raises(DataError, match="without labels"):
        accuracy(dummy, "letters")
    with pytest.raises(DataError, match="do not merge"):
        dummy.merge(answers("A", "A", name="t"))


def test_a_question_answered_twice_is_named() -> None:
    with pytest.raises(DataError, match="question s/1 is answered twice"):
        answers("AB", "AB").merge(answers("A", "A", first=1))
    with pytest.raises(DataError, match="do not match: 2 ids"):
        answers("AB", "A")


def test_the_question_set_digest_moves_with_any_cell() -> None:
    base = question_set_digest([subject("t", "u")])
    assert base == question_set_digest([subject("t", "u")])
    assert base.startswith("sha256:")
    others = [[subject("t", "v")], [subject("u", "t")], [subject("t", "u", dev=["p"])], []]
    assert len({base, *map(question_set_digest, others)}) == 5


# --- the throughput sample ------------------------------------------------------------------------


def test_the_sample_takes_the_middle_of_each_stratum() -> None:
    lengths = [9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert [lengths[i] for i in stratified_sample(lengths, 3)] == [8, 2, 5]
    assert stratified_sample(lengths, 9) == list(range(9))
    assert stratified_sample(lengths, 64) == list(range(9))
    assert stratified_sample([5, 5, 5, 5], 2) == [1, 3]
    with pytest.raises(ValueError, match="sample of 0"):
        stratified_sample(lengths, 0)


@given(lengths=st.lists(st.integers(1, 2047), min_size=1, max_size=300), n=st.integers(1, 64))
def test_any_sample_is_spread_over_the_lengths(lengths: list[int], n: int) -> None:
    chosen = stratified_sample(lengths, n)

    assert len(chosen) == len(set(chosen)) == min(n, len(lengths))
    assert chosen == sorted(chosen)
    # The k-th shortest chosen lies inside the k-th of n equal strata.
    ordered = sorted(lengths)
    for k, length in enumerate(sorted(lengths[i] for i in chosen)):
        low, high = k * len(lengths) // len(chosen), -(-(k + 1) * len(lengths) // len(chosen)) - 1
        assert ordered[low] <= length <= ordered[high]


def test_a_csv_that_is_no_file_is_one_line(mmlu: Path) -> None:
    path = mmlu / "test" / "easy_sums_test.csv"
    path.unlink()
    path.symlink_to("nowhere.csv")
    with pytest.raises(DataError) as caught:
        load_subjects(mmlu, 5)
    assert str(caught.value) == (
        f"{path}: cannot be read: No such file or directory; expected a CSV file"
    )
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError) as caught:
        load_subjects(mmlu, 5)
    assert str(caught.value) == f"{path}: cannot be read: Is a directory; expected a CSV file"


def test_choices_that_an_appended_token_makes_all_alike_are_refused():
    """Else every answer would be a tie."""
    rows = (Question("s", 0, "q", ("a", "b", "c", "d"), "B"),)

    def words_and_end(texts: Sequence[str]) -> list[list[int]]:
        return [[*(hash(word) % 2**31 for word in text.split()), 2] for text in texts]

    with pytest.raises(DataError, match=r"s/0 of task 'mmlu': all 4 choices are the same tokens"):
        build_prompts([Subject("s", (), rows)], words_and_end, MmluSpec(), continued=True)
